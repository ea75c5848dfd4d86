// What surrounds the recurrence of `cuda_kernels.cu`: packing its inputs, adding up its results, the norm and the gate.
// Layouts are those of `triton_kernels.py`, which says what each kernel does, save that sums over the channels of a block
// are 16 bits wide where the results are.
//
// Compiled for an ELEMENT (bf16, fp16 or float), the type of maps and their gradients, a rank R of the steps and I
// channels.

#include "elements.cuh"

typedef ELEMENT element;

constexpr int T = 16, N = 16, LANES = 32;
constexpr int ROWS = 2 * N + R;  // of the projection of a pixel
constexpr int PACKED = packed_floats<element>(R), RP = padded(R);
constexpr bool MATRIX = BY_MATRIX<element>;
constexpr int WIDTH = ROWS % 4 == 0 ? 4 : ROWS % 2 == 0 ? 2 : 1;  // numbers of a pixel that are read at once
typedef Partial<element>::type partial;

// The pixel that direction k visits at `step`.
__device__ __forceinline__ int pixel_at(int k, int step, int H, int W) {
    int at = k >= 2 ? H * W - 1 - step : step;
    return k & 1 ? at % H * W + at / H : at;
}

// ---- before the recurrence

constexpr int PACK_THREADS = 256, PACK_TILES = 4;  // tiles of a block

// projected (b, L, 4, ROWS), the low-rank steps, B and C of each pixel, to packed (b, 4, tiles, PACKED), B, C and the
// steps in scan order (see `packed_floats`), zero beyond the last; blocks beyond those of the tiles fill weights
// (4, N + R, I): A log2(e) and the step weights, channels last
extern "C" __global__ void __launch_bounds__(PACK_THREADS) pack_kernel(
    const element* __restrict__ projected, const float* __restrict__ A, const float* __restrict__ dt_weight,
    float* __restrict__ packed, float* __restrict__ weights, int H, int W, int tiles, int blocks) {
    const int bk = blockIdx.y, k = bk % 4, L = H * W;
    if (blockIdx.x >= blocks) {
        if (bk >= 4) return;
        const int at = (blockIdx.x - blocks) * PACK_THREADS + threadIdx.x, row = at / I, d = at % I;
        if (row >= N + R) return;
        weights[(bk * (N + R) + row) * I + d] =
            row < N ? A[(bk * I + d) * N + row] * LOG2_E : dt_weight[(bk * I + d) * R + row - N];
        return;
    }
    // read pixel by pixel, WIDTH numbers at once, written row by row, four steps at once
    constexpr int STEPS = PACK_TILES * T, PITCH = ROWS | 1, IN_PIXEL = ROWS / WIDTH;
    __shared__ float buffer[STEPS * PITCH];
    __shared__ int pixels[STEPS];
    if (threadIdx.x < STEPS) {
        const int step = blockIdx.x * STEPS + threadIdx.x;
        pixels[threadIdx.x] = step < L ? pixel_at(k, step, H, W) : -1;
    }
    __syncthreads();
    projected += ((i64)(bk / 4) * L * 4 + k) * ROWS;
#pragma unroll 4
    for (int i = threadIdx.x; i < STEPS * IN_PIXEL; i += PACK_THREADS) {
        const int s = i / IN_PIXEL, from = i % IN_PIXEL * WIDTH, pixel = pixels[s];
        float v[WIDTH] = {};
        if (pixel >= 0) load(v, projected + (i64)pixel * (4 * ROWS) + from);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) buffer[s * PITCH + from + j] = v[j];
    }
    __syncthreads();
    packed += ((i64)bk * tiles + blockIdx.x * PACK_TILES) * PACKED;
    for (int i = 4 * threadIdx.x; i < PACK_TILES * PACKED; i += 4 * PACK_THREADS) {
        const int tile = i / PACKED, in_tile = i % PACKED, row = in_tile / T;
        if (blockIdx.x * PACK_TILES + tile >= tiles) return;
        if (MATRIX && row >= 2 * N) {  // eight numbers in bfloat16
            const int number = 2 * (in_tile - 2 * N * T), from = number % RP;
            float v[8];
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = from + j < R ? buffer[(tile * T + number / RP) * PITCH + from + j] : 0.0f;
            store((bf16*)(packed + i), v);
        } else {
            const int from = row < 2 * N ? row + R : row - 2 * N;
            float v[4];
#pragma unroll
            for (int j = 0; j < 4; j++) v[j] = buffer[(tile * T + i % T + j) * PITCH + from];
            store(packed + i, v);
        }
    }
}

// The scan over the chunks, in place: ends (b, 4, slots, N, I) as left by `ends_kernel`, then with what each chunk was
// handed.
template <bool BACKWARDS>
__device__ __forceinline__ void hand_on(
    const float* weights, const float* totals, float* ends, int chunks, int slots, int stride) {
    const int d = blockIdx.x * LANES + threadIdx.x, n = blockIdx.y, bk = blockIdx.z;
    if (d >= I) return;
    const float rate = weights[(bk % 4 * (N + R) + n) * I + d];
    float state = 0.0f;
    for (int turn = 0; turn < chunks - 1; turn++) {
        const int number = BACKWARDS ? chunks - 1 - turn : turn, slot = BACKWARDS ? number - 1 : (number + 1) * stride;
        float* const end = ends + (((i64)bk * slots + slot) * N + n) * I + d;
        state = fmaf(exp2_(totals[((i64)bk * chunks + number) * I + d] * rate), state, *end);
        *end = state;
    }
}
extern "C" __global__ void hand_on_kernel(
    const float* weights, const float* totals, float* ends, int chunks, int slots, int stride) {
    hand_on<false>(weights, totals, ends, chunks, slots, stride);
}
extern "C" __global__ void hand_on_backwards_kernel(
    const float* weights, const float* totals, float* ends, int chunks, int slots, int stride) {
    hand_on<true>(weights, totals, ends, chunks, slots, stride);
}

// ---- after it

constexpr int PER = 16 / sizeof(element);  // channels of a vector
constexpr int SUM_THREADS = 256, SUM_WIDTH = 8;

// (y0 + y2) + y1 + y3, the original's order, of a vector of the planes (4, size)
__device__ __forceinline__ void sum_planes(float (&to)[PER], const element* planes, i64 at, i64 size) {
    float y1[PER], y2[PER], y3[PER];
    load(to, planes + at);
    load(y1, planes + size + at);
    load(y2, planes + 2 * size + at);
    load(y3, planes + 3 * size + at);
#pragma unroll
    for (int i = 0; i < PER; i++) to[i] = to[i] + y2[i] + y1[i] + y3[i];
}
extern "C" __global__ void __launch_bounds__(SUM_THREADS) sum_planes_kernel(
    const element* __restrict__ planes, element* __restrict__ out, int vectors) {
    const i64 at = (i64)blockIdx.x * SUM_THREADS + threadIdx.x;
    if (at >= vectors) return;
    float sum[PER];
    sum_planes(sum, planes, at * PER, (i64)vectors * PER);
    store(out + at * PER, sum);
}

// Adds the blocks of channels, partials (blocks, b, 4, tiles, T, ROWS), to the gradient of projected (b, L, 4, ROWS). A
// thread adds SUM_WIDTH neighbouring numbers, of which there are `vectors`.
extern "C" __global__ void __launch_bounds__(SUM_THREADS) sum_blocks_kernel(
    const partial* __restrict__ partials, element* __restrict__ d_projected, int vectors, int H, int W, int tiles) {
    const int vector = blockIdx.x * SUM_THREADS + threadIdx.x, L = H * W;
    if (vector >= vectors) return;
    constexpr int IN_TILE = T * ROWS / SUM_WIDTH, BLOCKS = I / LANES;
    float sum[SUM_WIDTH] = {};
#pragma unroll 6
    for (int block = 0; block < BLOCKS; block++) {
        float v[SUM_WIDTH];
        load(v, partials + ((i64)block * vectors + vector) * SUM_WIDTH);
#pragma unroll
        for (int i = 0; i < SUM_WIDTH; i++) sum[i] += v[i];
    }
    const int tile = vector / IN_TILE, bk = tile / tiles, k = bk % 4, first = vector % IN_TILE * SUM_WIDTH;
#pragma unroll
    for (int i = 0; i < SUM_WIDTH; i += WIDTH) {
        const int step = tile % tiles * T + (first + i) / ROWS, row = (first + i) % ROWS;
        if (step >= L) return;
        float v[WIDTH];
#pragma unroll
        for (int j = 0; j < WIDTH; j++) v[j] = sum[i + j];
        store(d_projected + (((i64)(bk / 4) * L + pixel_at(k, step, H, W)) * 4 + k) * ROWS + row, v);
    }
}

// Adds the images and chunks of the parameters' gradients, partials (b, 4, chunks, N + R + 2, I).
extern "C" __global__ void __launch_bounds__(128) sum_parameters_kernel(
    const float* __restrict__ partials, float* __restrict__ dA, float* __restrict__ dW, float* __restrict__ dD,
    float* __restrict__ d_bias, int batch, int chunks) {
    const int d = blockIdx.x * 128 + threadIdx.x, j = blockIdx.y, k = blockIdx.z;
    if (d >= I) return;
    constexpr i64 PART = (N + R + 2) * I;
    partials += k * chunks * PART + j * I + d;
    float sum = 0.0f;
    for (int chunk = 0; chunk < chunks; chunk++)
#pragma unroll 8
        for (int b = 0; b < batch; b++) sum += partials[(4 * b * chunks + chunk) * PART];
    const int at = k * I + d;
    if (j < N) dA[at * N + j] = sum;
    else if (j < N + R) dW[at * R + j - N] = sum;
    else if (j == N + R) dD[at] = sum;
    else d_bias[at] = sum;
}

// ---- the norm and the gate: a warp takes a token

constexpr int VECTORS = I / PER, PIECES = (VECTORS + LANES - 1) / LANES;  // of a token, of a lane
constexpr int GATE_WARPS = warps_of_block(I), GATE_THREADS = GATE_WARPS * LANES;

// LayerNorm(y) * SiLU(z) of y, the sum of the planes (4, tokens, I) rounded to their type
template <bool SAVE>
__device__ __forceinline__ void gate(
    const element* planes, const element* z, const float* weight, const float* bias, element* y, element* out,
    int tokens, int z_row, float eps) {
    const int lane = threadIdx.x % LANES;
    const i64 token = (i64)blockIdx.x * GATE_WARPS + threadIdx.x / LANES;
    if (token >= tokens) return;
    float v[PIECES][PER], w[PER], c[PER], g[PER];
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        const int at = (p * LANES + lane) * PER;
        if (at < I) {
            sum_planes(v[p], planes, token * I + at, (i64)tokens * I);
            if (SAVE) store(y + token * I + at, v[p]);
        }
#pragma unroll
        for (int i = 0; i < PER; i++) v[p][i] = at < I ? rounded<element>(v[p][i]) : 0.0f;
    }
    normalize<LANES, I>(v, eps);
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        const int at = (p * LANES + lane) * PER;
        if (at < I) {
            load(w, weight + at), load(c, bias + at), load(g, z + token * z_row + at);
#pragma unroll
            for (int i = 0; i < PER; i++) v[p][i] = fmaf(v[p][i], w[i], c[i]) * g[i] * sigmoid(g[i]);
            store(out + token * I + at, v[p]);
        }
    }
}
#define GATE_ARGUMENTS                                                                                                \
    const element *__restrict__ planes, const element *__restrict__ z, const float *__restrict__ weight,             \
        const float *__restrict__ bias, element *__restrict__ y, element *__restrict__ out, int tokens, int z_row,   \
        float eps
extern "C" __global__ void __launch_bounds__(GATE_THREADS) gate_kernel(GATE_ARGUMENTS) {
    gate<false>(planes, z, weight, bias, y, out, tokens, z_row, eps);
}
extern "C" __global__ void __launch_bounds__(GATE_THREADS) gate_saving_kernel(GATE_ARGUMENTS) {
    gate<true>(planes, z, weight, bias, y, out, tokens, z_row, eps);
}

// Its gradients; parts (blocks, 2, I): those of weight and bias over the block's tokens
extern "C" __global__ void __launch_bounds__(GATE_THREADS) gate_backward_kernel(
    const element* __restrict__ grad, const element* __restrict__ y, const element* __restrict__ z,
    const float* __restrict__ weight, const float* __restrict__ bias, element* __restrict__ dy,
    element* __restrict__ dz, float* __restrict__ parts, int tokens, int z_row, float eps) {
    __shared__ float of_warps[GATE_WARPS][2][I];
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    float d_w[PIECES][PER], d_c[PIECES][PER];
#pragma unroll
    for (int p = 0; p < PIECES; p++)
#pragma unroll
        for (int i = 0; i < PER; i++) d_w[p][i] = d_c[p][i] = 0.0f;
    for (i64 token = (i64)blockIdx.x * GATE_WARPS + warp; token < tokens; token += (i64)gridDim.x * GATE_WARPS) {
        float v[PIECES][PER], g[PIECES][PER], sum = 0.0f, along = 0.0f;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const int at = (p * LANES + lane) * PER;
#pragma unroll
            for (int i = 0; i < PER; i++) v[p][i] = g[p][i] = 0.0f;
            if (at < I) load(v[p], y + token * I + at), load(g[p], grad + token * I + at);
        }
        const float scale = normalize<LANES, I>(v, eps);
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const int at = (p * LANES + lane) * PER;
            if (at < I) {
                float w[PER], c[PER], gate[PER], to_gate[PER];
                load(w, weight + at), load(c, bias + at), load(gate, z + token * z_row + at);
#pragma unroll
                for (int i = 0; i < PER; i++) {
                    const float s = sigmoid(gate[i]);
                    to_gate[i] = g[p][i] * fmaf(v[p][i], w[i], c[i]) * s * (1.0f + gate[i] * (1.0f - s));
                    g[p][i] *= gate[i] * s;
                    d_w[p][i] = fmaf(g[p][i], v[p][i], d_w[p][i]);
                    d_c[p][i] += g[p][i];
                    g[p][i] *= w[i];
                    sum += g[p][i];
                    along = fmaf(g[p][i], v[p][i], along);
                }
                store(dz + token * I + at, to_gate);
            }
        }
        sum = sum_over<LANES>(sum) / I;
        along = sum_over<LANES>(along) / I;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const int at = (p * LANES + lane) * PER;
#pragma unroll
            for (int i = 0; i < PER; i++) g[p][i] = scale * (g[p][i] - sum - v[p][i] * along);
            if (at < I) store(dy + token * I + at, g[p]);
        }
    }
#pragma unroll
    for (int p = 0; p < PIECES; p++)
#pragma unroll
        for (int i = 0; i < PER; i++) {
            const int at = (p * LANES + lane) * PER + i;
            if (at < I) of_warps[warp][0][at] = d_w[p][i], of_warps[warp][1][at] = d_c[p][i];
        }
    __syncthreads();
    for (int at = threadIdx.x; at < 2 * I; at += GATE_THREADS) {
        float sum = 0.0f;
        for (int i = 0; i < GATE_WARPS; i++) sum += of_warps[i][at / I][at % I];
        parts[(i64)blockIdx.x * 2 * I + at] = sum;
    }
}
