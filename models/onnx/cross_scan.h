// The kernel of cross_scan.cc: the cross-scan of models/cross_scan/reference.py, with its letters, in float32; A is
// negative. A task is one image and 16 channels. It walks the four directions one after the other, in
// tiles of 32 steps, as models/cross_scan/cpu/cpu_kernels.py does, whose polynomials these are.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int CHANNELS = 16;  // of a task
constexpr int TILE = 32;      // steps
constexpr int TOGETHER = 4;   // steps that are projected together; TILE is a multiple
constexpr int PAIR = 2;       // states that advance together

// Vectors of GCC and Clang, as wide as a register.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int PARTS = CHANNELS / LANES;
typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

Floats& at(float* memory, int part) { return reinterpret_cast<Floats*>(memory)[part]; }
Floats larger(Floats a, Floats b) { return a < b ? b : a; }  // NaN stays

constexpr float LOWEST = -126;  // exponent of a normal number

// 2^x for x <= 0. Adding 1.5 * 2^23 rounds to an integer, which is in the lowest bits then.
// in_range: no x is below LOWEST; elsewhere those become LOWEST.
template <bool in_range>
Floats exp2(Floats x) {
  constexpr float magic = 12582912;
  if (!in_range) x = x < LOWEST ? Floats{} + LOWEST : x;
  const Floats rounded = x + magic, f = x - (rounded - magic);
  const Floats power =
      1 + f * (0.69314700365f +
               f * (0.24022242427f + f * (0.05550733581f + f * (0.00967151299f + f * 0.00132647273f))));
  return (Floats)((Ints)power + ((Ints)rounded << 23));
}

// log(1 + exp(x))
Floats softplus(Floats x) {
  const Floats z = exp2<false>(-1.4426950408889634f * larger(x, -x));
  Floats series = z * 0.00536482641f - 0.03006580099f;
  for (float coefficient : {0.07920455188f, -0.13753803074f, 0.19153656065f, -0.24857163429f, 0.33321323991f,
                            -0.49999648332f, 1.0f})
    series = series * z + coefficient;
  return larger(x, Floats{}) + z * series;
}

struct Call {
  const float *x, *dt, *B, *C, *A, *D, *dt_bias, *dt_weight;
  float* y;
  int64_t b, H, W, I, N, R;

  int64_t blocks() const { return (I + CHANNELS - 1) / CHANNELS; }
  int64_t tasks() const { return b * blocks(); }
};

struct Tile {
  float steps[TILE][CHANNELS], drive[TILE][CHANNELS], out[TILE][CHANNELS];
};

// out[t] += <C[t], h[t]> along h[t] = 2^(step[t] rates) h[t-1] + drive[t] B[t]; rates, states (N, 16), B, C (TILE, N)
template <bool in_range>
void scan_tile(int count, int N, float* rates, float* states, const float* B, const float* C, Tile& tile) {
  for (int n = 0; n < N; n += PAIR) {
    Floats h[PAIR][PARTS], rate[PAIR][PARTS];
    for (int s = 0; s < PAIR; ++s)
      for (int p = 0; p < PARTS; ++p) {
        h[s][p] = at(states + (n + s) * CHANNELS, p);
        rate[s][p] = at(rates + (n + s) * CHANNELS, p);
      }
    for (int t = 0; t < count; ++t) {
      const float *b = B + t * N + n, *c = C + t * N + n;
      for (int p = 0; p < PARTS; ++p) {
        const Floats step = at(tile.steps[t], p), drive = at(tile.drive[t], p);
        Floats out = at(tile.out[t], p);
        for (int s = 0; s < PAIR; ++s) {
          h[s][p] = exp2<in_range>(step * rate[s][p]) * h[s][p] + drive * b[s];
          out += h[s][p] * c[s];
        }
        at(tile.out[t], p) = out;
      }
    }
    for (int s = 0; s < PAIR; ++s)
      for (int p = 0; p < PARTS; ++p) at(states + (n + s) * CHANNELS, p) = h[s][p];
  }
}

// Whether no step times its channel's lowest rate is below LOWEST, which NaN is.
bool all_in_range(int count, const float* lowest_rates, const Tile& tile) {
  bool all = true;
  for (int t = 0; t < count; ++t)
    for (int c = 0; c < CHANNELS; ++c) all &= tile.steps[t][c] * lowest_rates[c] >= LOWEST;
  return all;
}

void copy(float* to, const float* from, int width) {
  if (width == CHANNELS)
    std::memcpy(to, from, CHANNELS * sizeof(float));  // a few instructions, as its size is known
  else
    std::memcpy(to, from, width * sizeof(float));
}

void run_task(void* data, size_t index) {
  const Call& call = *static_cast<Call*>(data);
  const int64_t L = call.H * call.W, I = call.I, R = call.R, image = index / call.blocks();
  const int64_t first = index % call.blocks() * CHANNELS;
  const int width = static_cast<int>(std::min<int64_t>(CHANNELS, I - first)), given_N = static_cast<int>(call.N);
  const int N = (given_N + PAIR - 1) / PAIR * PAIR;
  std::vector<float> rates(N * CHANNELS), states(N * CHANNELS), weight(R * CHANNELS), B(TILE * N), C(TILE * N);
  float lowest_rates[CHANNELS] = {}, bias[CHANNELS] = {}, skip[CHANNELS] = {};
  Tile tile = {};  // zeros in channels that there are not
  for (int k = 0; k < 4; ++k) {
    for (int c = 0; c < width; ++c) {
      const int64_t row = k * I + first + c;
      lowest_rates[c] = 0;
      for (int n = 0; n < given_N; ++n) {
        rates[n * CHANNELS + c] = 1.4426950408889634f * call.A[row * given_N + n];
        lowest_rates[c] = std::min(lowest_rates[c], rates[n * CHANNELS + c]);
      }
      for (int j = 0; j < R; ++j) weight[j * CHANNELS + c] = call.dt_weight[row * R + j];
      bias[c] = call.dt_bias[row];
      skip[c] = call.D[row];
    }
    const auto pixel = [&](int64_t step) {  // counted through the batch
      if (k >= 2) step = L - 1 - step;
      return image * L + (k % 2 == 0 ? step : step % call.H * call.W + step / call.H);
    };
    std::fill(states.begin(), states.end(), 0.0f);
    for (int64_t start = 0; start < L; start += TILE) {
      const int count = static_cast<int>(std::min<int64_t>(TILE, L - start));
      int64_t pixels[TILE];
      for (int t = 0; t < count; ++t) {
        pixels[t] = pixel(start + t);
        const int64_t ahead = pixel(std::min(start + t + TILE, L - 1));  // in the next tile
        __builtin_prefetch(call.B + (ahead * 4 + k) * given_N);
        __builtin_prefetch(call.C + (ahead * 4 + k) * given_N);
        __builtin_prefetch(call.dt + (ahead * 4 + k) * R);
        __builtin_prefetch(call.x + ahead * I + first);
        __builtin_prefetch(call.y + ahead * I + first, 1);
        std::memcpy(&B[t * N], call.B + (pixels[t] * 4 + k) * given_N, given_N * sizeof(float));
        std::memcpy(&C[t * N], call.C + (pixels[t] * 4 + k) * given_N, given_N * sizeof(float));
        copy(tile.out[t], call.x + pixels[t] * I + first, width);  // x, at first
      }
      for (int t = 0; t < count; t += TOGETHER) {
        const float* dt[TOGETHER];
        for (int i = 0; i < TOGETHER; ++i) dt[i] = call.dt + (pixels[std::min(t + i, count - 1)] * 4 + k) * R;
        for (int p = 0; p < PARTS; ++p) {
          Floats raw[TOGETHER];
          for (Floats& sum : raw) sum = at(bias, p);
          for (int j = 0; j < R; ++j)
            for (int i = 0; i < TOGETHER; ++i) raw[i] += at(&weight[j * CHANNELS], p) * dt[i][j];
          for (int i = 0; i < TOGETHER; ++i) {
            const Floats step = softplus(raw[i]), x = at(tile.out[t + i], p);
            at(tile.steps[t + i], p) = step;
            at(tile.drive[t + i], p) = step * x;
            at(tile.out[t + i], p) = x * at(skip, p);
          }
        }
      }
      const auto scan = all_in_range(count, lowest_rates, tile) ? scan_tile<true> : scan_tile<false>;
      scan(count, N, rates.data(), states.data(), B.data(), C.data(), tile);
      for (int t = 0; t < count; ++t) {
        float* y = call.y + pixels[t] * I + first;
        if (k > 0)
          for (int c = 0; c < width; ++c) tile.out[t][c] += y[c];
        copy(y, tile.out[t], width);
      }
    }
  }
}

}  // namespace
