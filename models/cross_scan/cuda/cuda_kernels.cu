// The cross-scan's recurrence, forward and backward, for NVIDIA GPUs from compute capability 8.0 on; see `cuda_scan.py`.
//
// A block owns one image, one direction, 32 channels and a chunk of the steps; its WARPS warps share the 16 states, a
// lane is a channel. It works on tiles of 16 steps, a state at a time, with all rows of the tile in the lane's registers:
// the recurrence needs no other lane. What belongs to a tile but to no state (the steps delta, the output) is shared out
// by steps. What all channels share (B, C, low-rank steps, packed by `cuda_around.cu`) and the rows of the next
// tile arrive in shared memory while a tile is computed. The names and layouts are those of `triton_kernels.py`, save that
// sums over the channels of a block are 16 bits wide where the results will be, and low-rank steps if they are bfloat16:
// then the matrix unit makes the steps of them, and takes the gradients back.
//
// Compiled for an ELEMENT (bf16, fp16 or float), the type of x, y and their gradients (the state is float in any case), a
// rank R of the steps, and 1, 2 or 4 WARPS.

#include "elements.cuh"

typedef ELEMENT element;

constexpr int T = 16;  // steps in a tile, and between two kept states
constexpr int N = 16;  // states
constexpr int LANES = 32;
constexpr int STATES = N / WARPS;  // of a warp
constexpr int STEPS = T / WARPS;   // of a warp
constexpr int GROUP = 4;           // states whose sums over channels are finished together
constexpr int ROWS = 2 * N + R;    // of the projection of a pixel
constexpr int PACKED = packed_floats<element>(R);
constexpr bool MATRIX = BY_MATRIX<element>;
constexpr int RP = padded(R);
constexpr int PITCH = LANES + (MATRIX ? 4 : 0);  // of what the matrix unit reads or writes row by row
constexpr int WEIGHTS = LANES * (MATRIX ? RP : R);  // floats
constexpr int THREADS = WARPS * LANES;
constexpr int TILE = T * LANES;  // numbers in a tile of one row for each step
constexpr int FORWARD_BLOCKS = WARPS == 1 ? 12 : WARPS == 2 ? 10 : 6;  // in a multiprocessor, so many registers
constexpr int BACKWARD_BLOCKS = 12 / WARPS;
constexpr bool EXACT = sizeof(element) == 4;  // sums over channels in float; otherwise items and sums are rounded to bf16
constexpr int RANKS = R % WARPS == 0 && R / WARPS < GROUP ? R / WARPS : GROUP;  // low-rank steps finished together
typedef Partial<element>::type partial;  // a sum over the channels of a block, on its way to `sum_blocks_kernel`

// log(1 + exp(z)) as in `triton_kernels.softplus`, and its derivative
__device__ __forceinline__ float softplus(float z, float& derivative) {
    float e = exp2_(-LOG2_E * fabsf(z));
    float p = fmaf(0.0052326880395412445f, e, -0.029505213722586632f);
    p = fmaf(p, e, 0.07822591066360474f);
    p = fmaf(p, e, -0.13663242757320404f);
    p = fmaf(p, e, 0.19106005132198334f);
    p = fmaf(p, e, -0.2484298199415207f);
    p = fmaf(p, e, 0.3331909775733948f);
    p = fmaf(p, e, -0.4999949336051941f);
    p = fmaf(p, e, 0.9999999403953552f);
    derivative = (z >= 0.0f ? 1.0f : e) * reciprocal(1.0f + e);
    return fmaf(e, p, fmaxf(z, 0.0f));
}

extern __shared__ __align__(16) float shared[];

// ---- loading tiles

__device__ __forceinline__ void wait_for_copies() {
    finish_copies();
    __syncthreads();
}

// The pixel that direction k visits at `step`, -1 beyond the last step of the chunk. The quotient is exact below 2^22.
__device__ __forceinline__ int pixel_at(int k, int step, int last, int L, int H, int W, float one_by_H) {
    int at = k >= 2 ? L - 1 - step : step;
    if (k & 1) {
        int column = (int)(((float)at + 0.5f) * one_by_H);
        at = (at - column * H) * W + column;
    }
    return step < last ? at : -1;
}

// Rows of 32 channels, T of them, at the pixels that lanes 0 to 15 of every warp hold; a pitch of I between pixels.
// Offsets have 32 bits and are added last: the compiler would rather compute a pointer again than keep it.
template <typename E> __device__ __forceinline__ void load_rows(E* to, const E* from, u32 offset, int pixel, int I) {
    constexpr int PER = 16 / sizeof(E), IN_ROW = LANES / PER, PIECES = T * IN_ROW;
#pragma unroll
    for (int i = 0; i < PIECES; i += THREADS) {
        u32 at = i + threadIdx.x;
        int p = __shfl_sync(ALL, pixel, at / IN_ROW % T);
        if (PIECES % THREADS == 0 || at < PIECES)
            begin_copy16(to + at * PER, from + (offset + (u32)max(p, 0) * (u32)I + at % IN_ROW * PER), p >= 0);
    }
}
__device__ __forceinline__ void load_packed(float* to, const float* from, u32 offset) {
    constexpr int PIECES = PACKED / 4;
#pragma unroll
    for (int i = 0; i < PIECES; i += THREADS) {
        u32 at = i + threadIdx.x;
        if (PIECES % THREADS == 0 || at < PIECES) begin_copy16(to + 4 * at, from + (offset + 4 * at), true);
    }
}

// 16 numbers that all lanes share
__device__ __forceinline__ void read16(float (&to)[T], const float* from) {
#pragma unroll
    for (int i = 0; i < T; i += 4) {
        float4 v = *(const float4*)(from + i);
        to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
}

// ---- the steps: delta = softplus(bias + <step weights, low-rank steps r>)

// The step weights of the block's channels: (R, 32), or for the matrix unit in two parts, bfloat16 (2, 32, RP), whose sum
// has 16 of a float's 24 bits
__device__ __forceinline__ void load_weights(float* to, const float* from, int I, int lane, int warp) {
    for (int j = warp; j < (MATRIX ? RP : R); j += WARPS) {
        const float w = j < R ? from[j * I] : 0.0f;
        if (MATRIX) {
            bf16* high = (bf16*)to + lane * RP + j;
            assign(*high, w);
            assign(high[LANES * RP], w - to_float(*high));
        } else to[j * LANES + lane] = w;
    }
}

// The steps of a tile that begins at `step`, (T, 32), zeros from `last` on, and with DERIVATIVES those by what softplus
// is taken of. The warps share them out.
template <bool DERIVATIVES>
__device__ __forceinline__ void fill_steps(
    float* deltas, float* derivatives, const float* biases, const float* r, const float* weight, int lane, int warp,
    int step, int last) {
    if (MATRIX) {
        constexpr int TILES = LANES / 8 / WARPS;  // of 8 channels
        const int channels = 8 * TILES * warp;
        float4 c[TILES];  // of step lane / 4 and 8 later, of two channels
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            const float2 bias = *(const float2*)(biases + channels + 8 * i + lane % 4 * 2);
            c[i] = {bias.x, bias.y, bias.x, bias.y};
        }
#pragma unroll
        for (int j = 0; j < RP; j += 16) {
            const uint4 a = load_four<false>((const bf16*)r + lane % 16 * RP + j + lane / 16 * 8);
            const bf16* const from = (const bf16*)weight + (lane / 16 * LANES + channels + lane % 8) * RP + j;
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                const uint4 w = load_four<false>(from + 8 * i * RP + lane / 8 % 2 * 8);  // both parts
                multiply(c[i], a.x, a.y, a.z, a.w, w.x, w.y);
                multiply(c[i], a.x, a.y, a.z, a.w, w.z, w.w);
            }
        }
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            const int d = channels + 8 * i + lane % 4 * 2;
            const float z[2][2] = {{c[i].x, c[i].y}, {c[i].z, c[i].w}};
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int t = lane / 4 + 8 * half;
                const bool inside = step + t < last;
                float2 derivative, delta = {softplus(z[half][0], derivative.x), softplus(z[half][1], derivative.y)};
                if (!inside) delta = derivative = {0.0f, 0.0f};
                *(float2*)(deltas + t * PITCH + d) = delta;
                if (DERIVATIVES) *(float2*)(derivatives + t * PITCH + d) = derivative;
            }
        }
        return;
    }
    float z[STEPS];
#pragma unroll
    for (int t = 0; t < STEPS; t++) z[t] = biases[lane];
#pragma unroll(R <= 12 ? R : 4)
    for (int j = 0; j < R; j++) {
        float w = weight[j * LANES + lane];
#pragma unroll
        for (int t = 0; t < STEPS; t += 4) {
            float4 v = *(const float4*)(r + j * T + warp * STEPS + t);
            z[t] = fmaf(w, v.x, z[t]), z[t + 1] = fmaf(w, v.y, z[t + 1]);
            z[t + 2] = fmaf(w, v.z, z[t + 2]), z[t + 3] = fmaf(w, v.w, z[t + 3]);
        }
    }
#pragma unroll
    for (int t = 0; t < STEPS; t++) {
        const int s = warp * STEPS + t;
        float derivative, delta = softplus(z[t], derivative);
        deltas[s * PITCH + lane] = step + s < last ? delta : 0.0f;
        if (DERIVATIVES) derivatives[s * PITCH + lane] = step + s < last ? derivative : 0.0f;
    }
}

// ---- forward

template <bool SAVE>
__device__ __forceinline__ void scan(
    const element* x, const float* packed, const float* weights, const float* D, const float* bias, float* starts,
    element* planes, int H, int W, int I, int chunk, int tiles, int slots, int stride) {
    const int lane = (u32)threadIdx.x % LANES, warp = (u32)threadIdx.x / LANES, d = blockIdx.x * LANES + lane;
    const int b = blockIdx.z / 4, k = blockIdx.z % 4, L = H * W, batch = gridDim.z / 4;
    const int first = blockIdx.y * chunk, last = min(first + chunk, L);
    const float one_by_H = 1.0f / H;
    float* const weight = shared;                                     // see load_weights
    float* const biases = weight + WEIGHTS;                           // (32,)
    float* const deltas = biases + LANES;                             // (T, 32)
    float* const parts = deltas + T * PITCH + lane;                   // (WARPS, T, 32): y of each warp's states
    float* const both_tiles = parts + WARPS * TILE - lane;            // 2 packed tiles
    element* const both_x = (element*)(both_tiles + 2 * PACKED);      // 2 x (T, 32)
    const u32 of_x = (u32)(b * L) * (u32)I + blockIdx.x * LANES, of_plane = (u32)(k * batch * L) * (u32)I + of_x + lane;
    const u32 of_packed = (u32)(blockIdx.z * tiles) * PACKED;
    const u32 of_start = (u32)(blockIdx.z * slots * N + warp * STATES) * (u32)I + d;
    weights += k * (N + R) * I + d;

    const float skip = D[k * I + d];
    if (warp == 0) biases[lane] = bias[k * I + d];
    float rate[STATES], h[STATES];
#pragma unroll
    for (int i = 0; i < STATES; i++) {
        rate[i] = weights[(warp * STATES + i) * I];
        h[i] = first > 0 ? starts[of_start + (u32)(blockIdx.y * stride * N + i) * (u32)I] : 0.0f;
    }
    load_weights(weight, weights + N * I, I, lane, warp);

    auto fetch = [&](int step, int number) {
        int pixel = pixel_at(k, step + lane % T, last, L, H, W, one_by_H);
        load_packed(both_tiles + number * PACKED, packed, of_packed + (u32)(step / T) * PACKED);
        load_rows(both_x + number * TILE, x, of_x, pixel, I);
        return pixel;
    };
    int next_pixel = fetch(first, 0);
    for (int step = first, number = 0; step < last; step += T, number ^= 1) {
        const int pixel = next_pixel;
        wait_for_copies();
        if (step + T < last) next_pixel = fetch(step + T, number ^ 1);
        const float* tile = both_tiles + number * PACKED;
        const element* u_tile = both_x + number * TILE + lane;

        fill_steps<false>(deltas, nullptr, biases, tile + 2 * N * T, weight, lane, warp, step, last);
        if (SAVE) {
#pragma unroll
            for (int i = 0; i < STATES; i++) starts[of_start + (u32)(step + i) * (u32)I] = h[i];
        }
        __syncthreads();
        float delta[T], drive[T], y[T];
#pragma unroll
        for (int t = 0; t < T; t++) {
            delta[t] = deltas[t * PITCH + lane];
            drive[t] = delta[t] * to_float(u_tile[t * LANES]);
            y[t] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < STATES; i++) {
            const int n = warp * STATES + i;
            float B[T], C[T];
            read16(B, tile + n * T);
            read16(C, tile + (N + n) * T);
#pragma unroll
            for (int t = 0; t < T; t++) {
                h[i] = fmaf(exp2_(delta[t] * rate[i]), h[i], drive[t] * B[t]);
                y[t] = fmaf(h[i], C[t], y[t]);
            }
        }
#pragma unroll
        for (int t = 0; t < T; t++) parts[warp * TILE + t * LANES] = y[t];
        __syncthreads();
#pragma unroll
        for (int t = 0; t < STEPS; t++) {
            const int s = warp * STEPS + t;
            float sum = skip * to_float(u_tile[s * LANES]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += parts[w * TILE + s * LANES];
            int p = __shfl_sync(ALL, pixel, s);
            if (p >= 0) assign(planes[of_plane + (u32)p * (u32)I], sum);
        }
    }
}

#define FORWARD_ARGUMENTS                                                                                              \
    const element *x, const float *packed, const float *weights, const float *D, const float *bias, float *starts,    \
        element *planes, int H, int W, int I, int chunk, int tiles, int slots, int stride
extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) scan_kernel(FORWARD_ARGUMENTS) {
    scan<false>(x, packed, weights, D, bias, starts, planes, H, W, I, chunk, tiles, slots, stride);
}
extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) scan_saving_kernel(FORWARD_ARGUMENTS) {
    scan<true>(x, packed, weights, D, bias, starts, planes, H, W, I, chunk, tiles, slots, stride);
}

// ---- what a chunk hands on when nothing was handed to it, and the sum of its steps
//
// Forward: the end state, v = x, into slot (chunk + 1) * stride of ends (b, 4, slots, N, I). BACKWARDS: the gradient of the
// state before the chunk, v = gradient of y, into slot chunk - 1. totals (b, 4, chunks, I).

template <bool BACKWARDS>
__device__ __forceinline__ void hand_out(
    const element* v, const float* packed, const float* weights, const float* bias, float* ends, float* totals, int H,
    int W, int I, int chunk, int tiles, int slots, int stride) {
    const int lane = (u32)threadIdx.x % LANES, warp = (u32)threadIdx.x / LANES, d = blockIdx.x * LANES + lane;
    const int b = blockIdx.z / 4, k = blockIdx.z % 4, L = H * W, number = blockIdx.y + (BACKWARDS ? 1 : 0);
    const int first = number * chunk, last = min(first + chunk, L), chunks = (L + chunk - 1) / chunk;
    const float one_by_H = 1.0f / H;
    float* const weight = shared;                                   // see load_weights
    float* const biases = weight + WEIGHTS;                         // (32,)
    float* const deltas = biases + LANES;                           // (T, 32)
    float* const tile = deltas + T * PITCH;                         // packed
    element* const v_tile = (element*)(tile + PACKED);              // (T, 32)
    const u32 of_v = (u32)(b * L) * (u32)I + blockIdx.x * LANES, of_packed = (u32)(blockIdx.z * tiles) * PACKED;
    weights += k * (N + R) * I + d;
    if (warp == 0) biases[lane] = bias[k * I + d];
    float rate[STATES], h[STATES], total = 0.0f;
#pragma unroll
    for (int i = 0; i < STATES; i++) rate[i] = weights[(warp * STATES + i) * I], h[i] = 0.0f;
    load_weights(weight, weights + N * I, I, lane, warp);

    const int count = (last - first + T - 1) / T;
    for (int turn = 0; turn < count; turn++) {
        const int step = first + (BACKWARDS ? count - 1 - turn : turn) * T;
        __syncthreads();  // the tile before is done
        load_packed(tile, packed, of_packed + (u32)(step / T) * PACKED);
        load_rows(v_tile, v, of_v, pixel_at(k, step + lane % T, last, L, H, W, one_by_H), I);
        wait_for_copies();
        fill_steps<false>(deltas, nullptr, biases, tile + 2 * N * T, weight, lane, warp, step, last);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < T; i++) {
            const int t = BACKWARDS ? T - 1 - i : i;
            const float delta = deltas[t * PITCH + lane], u = to_float(v_tile[t * LANES + lane]);
            total += delta;
#pragma unroll
            for (int j = 0; j < STATES; j++) {
                const float decay = exp2_(delta * rate[j]);
                const int n = warp * STATES + j;
                h[j] = BACKWARDS ? decay * fmaf(u, tile[(N + n) * T + t], h[j])
                                 : fmaf(decay, h[j], delta * u * tile[n * T + t]);
            }
        }
    }
    const int slot = BACKWARDS ? number - 1 : (number + 1) * stride;
#pragma unroll
    for (int j = 0; j < STATES; j++) ends[(((i64)blockIdx.z * slots + slot) * N + warp * STATES + j) * I + d] = h[j];
    if (warp == 0) totals[((i64)blockIdx.z * chunks + number) * I + d] = total;
}
#define ENDS_ARGUMENTS                                                                                                 \
    const element *v, const float *packed, const float *weights, const float *bias, float *ends, float *totals, int H, \
        int W, int I, int chunk, int tiles, int slots, int stride
extern "C" __global__ void __launch_bounds__(THREADS) ends_kernel(ENDS_ARGUMENTS) {
    hand_out<false>(v, packed, weights, bias, ends, totals, H, W, I, chunk, tiles, slots, stride);
}
extern "C" __global__ void __launch_bounds__(THREADS) ends_backwards_kernel(ENDS_ARGUMENTS) {
    hand_out<true>(v, packed, weights, bias, ends, totals, H, W, I, chunk, tiles, slots, stride);
}

// ---- sums over the 32 channels of a warp
//
// A lane holds p[0..15], the items of its channel at 16 steps; wanted is the sum over the lanes for each step. Packed in
// pairs, a lane's items are what the matrix unit takes as its left operand (m16n8k16), and with a right operand that is
// one where the column is the item's, the matmul adds groups of four lanes, each step in a column of its own. The eight
// groups are then added through shared memory, for four sums at a time.

constexpr int SUM_PITCH = 144;  // numbers that one sum takes there: 32 lanes x 4, and 16 to keep the banks apart
constexpr int SCRATCH = 4 * SUM_PITCH;

struct Selector {
    u32 of_column[4];  // bf16 pairs: one where the lane's column is 2 i, or 2 i + 1
};

__device__ __forceinline__ Selector make_selector(int lane) {
    Selector s;
    int column = lane / 4;
#pragma unroll
    for (int i = 0; i < 4; i++) s.of_column[i] = column == 2 * i ? 0x3f80u : column == 2 * i + 1 ? 0x3f800000u : 0u;
    return s;
}

// The sums of groups of four lanes go to `scratch`, place `number` of four.
__device__ __forceinline__ void begin_sum(float* scratch, int number, const float (&p)[T], const Selector& s, int lane) {
    float4 c = {0.0f, 0.0f, 0.0f, 0.0f};
    float rest[T];
    u32 q[T / 2];
#pragma unroll
    for (int t = 0; t < T; t++) rest[t] = p[t];
#pragma unroll
    for (int part = 0; part < (EXACT ? 3 : 1); part++) {  // a float is the sum of three bf16
#pragma unroll
        for (int i = 0; i < T / 2; i++) {
            if (part > 0) {
                rest[2 * i] -= __uint_as_float(q[i] << 16);
                rest[2 * i + 1] -= __uint_as_float(q[i] & 0xffff0000u);
            }
            q[i] = to_two_bfloat16(rest[2 * i], rest[2 * i + 1]);
        }
        multiply(c, q[0], q[1], q[2], q[3], s.of_column[0], s.of_column[1]);
        multiply(c, q[4], q[5], q[6], q[7], s.of_column[2], s.of_column[3]);
    }
    *(float4*)(scratch + number * SUM_PITCH + lane * 4) = c;
}
// The same of items that are packed already.
__device__ __forceinline__ void begin_sum(
    float* scratch, int number, const u32 (&q)[T / 2], const Selector& s, int lane) {
    float4 c = {0.0f, 0.0f, 0.0f, 0.0f};
    multiply(c, q[0], q[1], q[2], q[3], s.of_column[0], s.of_column[1]);
    multiply(c, q[4], q[5], q[6], q[7], s.of_column[2], s.of_column[3]);
    *(float4*)(scratch + number * SUM_PITCH + lane * 4) = c;
}

// Adds the groups of four sums: to[t * ROWS + number] for number < count.
__device__ __forceinline__ void finish_sums(partial* to, int count, const float* scratch, int lane) {
    __syncwarp();
    const int number = lane / 8, t = 2 * (lane % 8);
    const float* from = scratch + number * SUM_PITCH + t;
    float low = 0.0f, high = 0.0f;
#pragma unroll
    for (int group = 0; group < 8; group++) {
        float2 v = *(const float2*)(from + 16 * group);
        low += v.x, high += v.y;
    }
    if (number < count) {
        assign(to[t * ROWS + number], low);
        assign(to[(t + 1) * ROWS + number], high);
    }
    __syncwarp();
}

// ---- backward

// By the matrix unit, of d_zs (T, 32), the gradient of what softplus is taken of: adds that of the step weights, <d_z, r>,
// to d_weight (R, 32), and writes that of the low-rank steps, <d_z, step weights>, into sums (T, ROWS). A number of d_zs
// is a pair of bfloat16, whose sum has 16 bits: two columns of a matrix (T, 64).
__device__ __forceinline__ void step_gradients(
    float* d_weight, partial* sums, const u32* d_zs, const float* r, const float* weight, int lane, int warp) {
    constexpr int TILES = LANES / 4 / WARPS;  // of 4 channels
    uint2 z[TILES];
#pragma unroll
    for (int i = 0; i < TILES; i++) z[i] = load_two_columns(d_zs + lane % 16 * PITCH + 4 * (warp * TILES + i));
#pragma unroll
    for (int m = 0; m < RP; m += 16) {
        const uint4 a = load_four<true>((const bf16*)r + (lane / 16 * 8 + lane % 8) * RP + m + lane / 8 % 2 * 8);
        const int j = m + lane / 4;
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            float* const to = d_weight + j * PITCH + 4 * (warp * TILES + i) + lane % 4;
            const bool first = m + 8 <= R || j < R, second = m + 16 <= R || j + 8 < R;
            float4 c = {first ? to[0] : 0.0f, 0.0f, second ? to[8 * PITCH] : 0.0f, 0.0f};
            multiply(c, a.x, a.y, a.z, a.w, z[i].x, z[i].y);
            if (first) to[0] = c.x + c.y;
            if (second) to[8 * PITCH] = c.z + c.w;
        }
    }
    uint4 pairs[LANES / 8];
#pragma unroll
    for (int i = 0; i < LANES / 8; i++) pairs[i] = load_four<false>(d_zs + lane % 16 * PITCH + 8 * i + lane / 16 * 4);
    for (int n = 8 * warp; n < R; n += 8 * WARPS) {
        float4 c = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < LANES / 8; i++) {
            const bf16* const w = (const bf16*)weight + (8 * i + lane % 4) * RP + n + lane / 4;
            multiply(c, pairs[i].x, pairs[i].y, pairs[i].z, pairs[i].w, w[0].bits * 0x10001u, w[4 * RP].bits * 0x10001u);
        }
        const int j = n + lane % 4 * 2;
        partial* const to = sums + lane / 4 * ROWS + j;
        if (j < R) assign(to[0], c.x), assign(to[8 * ROWS], c.z);
        if (j + 1 < R) assign(to[1], c.y), assign(to[8 * ROWS + 1], c.w);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) scan_backward_kernel(
    const element* grad, const element* x, const float* packed, const float* weights, const float* D, const float* bias,
    const float* starts, const float* carry_in, element* dx, partial* blocks_out, float* parameters_out, int H, int W,
    int I, int chunk, int tiles, int slots) {
    const int lane = (u32)threadIdx.x % LANES, warp = (u32)threadIdx.x / LANES, d = blockIdx.x * LANES + lane;
    const int b = blockIdx.z / 4, k = blockIdx.z % 4, L = H * W, batch = gridDim.z / 4;
    const int first = blockIdx.y * chunk, last = min(first + chunk, L);
    const float one_by_H = 1.0f / H;
    float* const weight = shared;                                     // see load_weights
    float* const biases = weight + WEIGHTS;                           // (32,)
    float* const d_weight = biases + LANES;                           // (R, 32)
    float* const deltas = d_weight + R * PITCH;                       // (T, 32)
    float* const d_zs = deltas + T * PITCH;                           // (T, 32): d(delta)/dz, then the gradient of z
    float* const rates = d_zs + T * PITCH + lane;                     // (N, 32)
    float* const carries = rates + N * LANES;                         // (N, 32)
    float* const d_rates = carries + N * LANES;                       // (N, 32)
    float* const parts = d_rates + N * LANES;                         // (WARPS, 2, T, 32): g_B and w_A of a warp's states
    float* const scratch = parts - lane + warp * 2 * SCRATCH;         // in the same place, before
    float* const both_starts = parts - lane + WARPS * 2 * SCRATCH;    // 2 x (N, 32)
    float* const both_tiles = both_starts + 2 * N * LANES;            // 2 packed tiles
    element* const both_x = (element*)(both_tiles + 2 * PACKED);      // 2 x (T, 32)
    element* const both_grad = both_x + 2 * TILE;                     // 2 x (T, 32)
    partial* const sums = (partial*)(both_grad + 2 * TILE);           // (T, ROWS): gradients of the low-rank steps, B, C
    static_assert(TILE <= SCRATCH && T == N, "");
    const u32 of_x = (u32)(b * L) * (u32)I + blockIdx.x * LANES, of_plane = (u32)(k * batch * L) * (u32)I + of_x + lane;
    const u32 of_packed = (u32)(blockIdx.z * tiles) * PACKED;
    const u32 of_block = (blockIdx.x * gridDim.z + blockIdx.z) * (u32)tiles * (ROWS * T);
    const u32 of_start = blockIdx.z * (u32)(slots * N) * (u32)I + blockIdx.x * LANES;
    weights += k * (N + R) * I + d;
    const i64 part = (i64)blockIdx.z * gridDim.y + blockIdx.y;
    carry_in += part * N * I + d;
    parameters_out += part * (N + R + 2) * I + d;

    const float skip = D[k * I + d];
    if (warp == 0) biases[lane] = bias[k * I + d];
    const Selector selector = make_selector(lane);
    float d_skip = 0.0f, d_bias = 0.0f;
    for (int n = warp * STATES; n < (warp + 1) * STATES; n++) {
        rates[n * LANES] = weights[n * I];
        carries[n * LANES] = carry_in[n * I];
        d_rates[n * LANES] = 0.0f;
    }
    load_weights(weight, weights + N * I, I, lane, warp);
    for (int j = warp; j < R; j += WARPS) d_weight[j * PITCH + lane] = 0.0f;

    auto fetch = [&](int step, int number) {
        int pixel = pixel_at(k, step + lane % T, last, L, H, W, one_by_H);
        load_packed(both_tiles + number * PACKED, packed, of_packed + (u32)(step / T) * PACKED);
        load_rows(both_starts + number * N * LANES, starts, of_start + (u32)step * (u32)I, lane % T, I);
        load_rows(both_x + number * TILE, x, of_x, pixel, I);
        load_rows(both_grad + number * TILE, grad, of_x, pixel, I);
        return pixel;
    };
    const int of_last = first + (last - first - 1) / T * T;
    int next_pixel = fetch(of_last, 0);
    for (int step = of_last, number = 0; step >= first; step -= T, number ^= 1) {
        const int pixel = next_pixel;
        wait_for_copies();
        if (step > first) next_pixel = fetch(step - T, number ^ 1);
        const float* tile = both_tiles + number * PACKED;
        const float* start = both_starts + number * N * LANES + lane;
        const element* u_tile = both_x + number * TILE + lane;
        const element* q_tile = both_grad + number * TILE + lane;

        fill_steps<true>(deltas, d_zs, biases, tile + 2 * N * T, weight, lane, warp, step, last);
        __syncthreads();
        {
            float delta[T], drive[T], q[T], g_B[T], w_A[T];  // <g, B>, and <s h_before, A> with A times log2(e)
#pragma unroll
            for (int t = 0; t < T; t++) {
                delta[t] = deltas[t * PITCH + lane];
                drive[t] = delta[t] * to_float(u_tile[t * LANES]);
                q[t] = to_float(q_tile[t * LANES]);
                g_B[t] = w_A[t] = 0.0f;
            }
            u32 two_q[T / 2];  // as the sums take them
#pragma unroll
            for (int t = 0; t < T; t += 2) two_q[t / 2] = to_two_bfloat16(q[t], q[t + 1]);
#pragma unroll 1
            for (int begin = warp * STATES; begin < (warp + 1) * STATES; begin += GROUP) {
#pragma unroll
                for (int i = 0; i < GROUP; i++) {
                    const int n = begin + i;
                    const float before_tile = start[n * LANES], rate = rates[n * LANES];
                    float decay[T], h[T], item[T], state = before_tile;
                    u32 two_items[T / 2];
#pragma unroll
                    for (int t4 = 0; t4 < T; t4 += 4) {
                        const float4 B4 = *(const float4*)(tile + n * T + t4);
                        const float B[4] = {B4.x, B4.y, B4.z, B4.w};
#pragma unroll
                        for (int t = t4; t < t4 + 4; t++) {
                            decay[t] = exp2_(delta[t] * rate);
                            state = fmaf(decay[t], state, drive[t] * B[t - t4]);
                            h[t] = state;
                            if (EXACT) item[t] = q[t] * state;
                            else if (t % 2 == 1)
                                two_items[t / 2] = product_of_two(to_two_bfloat16(h[t - 1], h[t]), two_q[t / 2]);
                        }
                    }
                    if (EXACT) begin_sum(scratch + SCRATCH, i, item, selector, lane);  // dC
                    else begin_sum(scratch + SCRATCH, i, two_items, selector, lane);
                    float g_next = carries[n * LANES], d_rate = d_rates[n * LANES];
#pragma unroll
                    for (int t4 = T - 4; t4 >= 0; t4 -= 4) {
                        const float4 B4 = read4_again(tile + n * T + t4), C4 = *(const float4*)(tile + (N + n) * T + t4);
                        const float B[4] = {B4.x, B4.y, B4.z, B4.w}, C[4] = {C4.x, C4.y, C4.z, C4.w};
#pragma unroll
                        for (int t = t4 + 3; t >= t4; t--) {
                            float g = fmaf(q[t], C[t - t4], g_next);
                            item[t] = g * drive[t];
                            g_B[t] = fmaf(g, B[t - t4], g_B[t]);
                            g_next = decay[t] * g;
                            float w = g_next * (t > 0 ? h[t > 0 ? t - 1 : 0] : before_tile);
                            w_A[t] = fmaf(w, rate, w_A[t]);
                            d_rate = fmaf(w, delta[t], d_rate);
                        }
                    }
                    carries[n * LANES] = g_next;
                    d_rates[n * LANES] = d_rate;
                    begin_sum(scratch, i, item, selector, lane);  // dB
                }
                finish_sums(sums + R + begin, GROUP, scratch, lane);
                finish_sums(sums + R + N + begin, GROUP, scratch + SCRATCH, lane);
            }
            __syncthreads();  // the sums are done, parts takes their place
#pragma unroll
            for (int t = 0; t < T; t++) {
                parts[(2 * warp) * TILE + t * LANES] = g_B[t];
                parts[(2 * warp + 1) * TILE + t * LANES] = w_A[t];
            }
        }
        __syncthreads();
#pragma unroll
        for (int t = 0; t < STEPS; t++) {
            const int s = warp * STEPS + t;
            float g_B = 0.0f, w_A = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                g_B += parts[2 * w * TILE + s * LANES];
                w_A += parts[(2 * w + 1) * TILE + s * LANES];
            }
            const float u = to_float(u_tile[s * LANES]), q = to_float(q_tile[s * LANES]);
            const int p = __shfl_sync(ALL, pixel, s);
            const float to_store = fmaf(deltas[s * PITCH + lane], g_B, skip * q);
            if (p >= 0) assign(dx[of_plane + (u32)p * (u32)I], to_store);
            float* const at = d_zs + s * PITCH + lane;
            const float d_z = fmaf(w_A, LN_2, u * g_B) * *at;
            d_skip = fmaf(q, u, d_skip);
            d_bias += d_z;
            if (MATRIX) *(u32*)at = to_two_bfloat16(d_z, d_z - rounded<bf16>(d_z));
            else *at = d_z;
        }
        __syncthreads();
        if (MATRIX) step_gradients(d_weight, sums, (const u32*)d_zs, tile + 2 * N * T, weight, lane, warp);
        else {
            float d_z[T];
#pragma unroll
            for (int t = 0; t < T; t++) d_z[t] = d_zs[t * PITCH + lane];
#pragma unroll 1
            for (int begin = RANKS * warp; begin < R; begin += RANKS * WARPS) {
#pragma unroll
                for (int i = 0; i < RANKS; i++) {
                    const int j = begin + i;
                    if (R % RANKS == 0 || j < R) {
                        float r[T], item[T], w = weight[j * LANES + lane], total = d_weight[j * PITCH + lane];
                        read16(r, tile + (2 * N + j) * T);
#pragma unroll
                        for (int t = 0; t < T; t++) {
                            total = fmaf(d_z[t], r[t], total);
                            item[t] = d_z[t] * w;
                        }
                        d_weight[j * PITCH + lane] = total;
                        begin_sum(scratch, i, item, selector, lane);
                    }
                }
                finish_sums(sums + begin, min(RANKS, R - begin), scratch, lane);
            }
        }
        __syncthreads();
        constexpr int PER = 16 / sizeof(partial), PIECES = T * ROWS / PER;
#pragma unroll
        for (int i = 0; i < PIECES; i += THREADS) {
            u32 at = i + threadIdx.x;
            if (at < PIECES) *(float4*)(blocks_out + (of_block + (u32)step * ROWS + PER * at)) = ((const float4*)sums)[at];
        }
    }
    for (int n = warp * STATES; n < (warp + 1) * STATES; n++) parameters_out[n * I] = d_rates[n * LANES];
    for (int j = warp; j < R; j += WARPS) parameters_out[(N + j) * I] = d_weight[j * PITCH + lane];
    // the warps had different steps
    deltas[warp * LANES + lane] = d_skip;
    d_zs[warp * LANES + lane] = d_bias;
    __syncthreads();
    if (warp == 0) {
        for (int w = 1; w < WARPS; w++) {
            d_skip += deltas[w * LANES + lane];
            d_bias += d_zs[w * LANES + lane];
        }
        parameters_out[(N + R) * I] = d_skip;
        parameters_out[(N + R + 1) * I] = d_bias;
    }
}
