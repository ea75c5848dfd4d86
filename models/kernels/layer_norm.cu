// LayerNorm over C channels, forward and backward; see `layer_norm.py`. Rows are shared out to groups of lanes, as many
// as a row has vectors of channels, so that a warp takes eight rows of 24 channels at once.
//
// Compiled for C, and the types X of the input and Y of the result. All sums are in float.

#include "elements.cuh"

constexpr int LANES = 32, WARPS = warps_of_block(C);
constexpr int PER = sizeof(X) == 4 || sizeof(Y) == 4 ? 4 : 8;  // channels of a vector
constexpr int VECTORS = C / PER;
// lanes of a row
constexpr int GROUP = VECTORS > 16 ? 32 : VECTORS > 8 ? 16 : VECTORS > 4 ? 8 : VECTORS > 2 ? 4 : VECTORS > 1 ? 2 : 1;
constexpr int PIECES = (VECTORS + GROUP - 1) / GROUP;  // vectors of a lane
constexpr int ROWS = WARPS * LANES / GROUP;            // of a block at a time
static_assert(C % PER == 0, "");

// A lane's part of a row, with mean 0 and variance 1; zeros beyond the last channel. Returns what it was multiplied by.
__device__ __forceinline__ float load_normal(float (&v)[PIECES][PER], const X* row, int member, float eps) {
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        const int vector = p * GROUP + member;
        if (vector < VECTORS) load(v[p], row + vector * PER);
#pragma unroll
        for (int i = 0; i < PER; i++)
            if (vector >= VECTORS) v[p][i] = 0.0f;
    }
    return normalize<GROUP, C>(v, eps);
}

extern "C" __global__ void __launch_bounds__(WARPS * LANES) layer_norm_kernel(
    const X* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias, Y* __restrict__ out,
    int rows, float eps) {
    const int member = threadIdx.x % GROUP;
    float w[PIECES][PER], c[PIECES][PER];
#pragma unroll
    for (int p = 0; p < PIECES; p++)
        if (p * GROUP + member < VECTORS) {
            load(w[p], weight + (p * GROUP + member) * PER);
            load(c[p], bias + (p * GROUP + member) * PER);
        }
    for (i64 first = (i64)blockIdx.x * ROWS; first < rows; first += (i64)gridDim.x * ROWS) {
        const bool active = first + threadIdx.x / GROUP < rows;  // all lanes take part in the sums
        const i64 row = min(first + threadIdx.x / GROUP, (i64)rows - 1);
        float v[PIECES][PER];
        load_normal(v, x + row * C, member, eps);
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
#pragma unroll
            for (int i = 0; i < PER; i++) v[p][i] = fmaf(v[p][i], w[p][i], c[p][i]);
            if (active && p * GROUP + member < VECTORS) store(out + row * C + (p * GROUP + member) * PER, v[p]);
        }
    }
}

// parts (blocks, 2, C): gradients of weight and bias over the block's rows
extern "C" __global__ void __launch_bounds__(WARPS * LANES) layer_norm_backward_kernel(
    const Y* __restrict__ grad, const X* __restrict__ x, const float* __restrict__ weight, X* __restrict__ dx,
    float* __restrict__ parts, int rows, float eps) {
    __shared__ float of_warps[WARPS][2][GROUP * PIECES * PER];
    const int member = threadIdx.x % GROUP, warp = threadIdx.x / LANES;
    float w[PIECES][PER], d_w[PIECES][PER], d_c[PIECES][PER];
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        if (p * GROUP + member < VECTORS) load(w[p], weight + (p * GROUP + member) * PER);
#pragma unroll
        for (int i = 0; i < PER; i++) d_w[p][i] = d_c[p][i] = 0.0f;
    }
    for (i64 first = (i64)blockIdx.x * ROWS; first < rows; first += (i64)gridDim.x * ROWS) {
        const bool active = first + threadIdx.x / GROUP < rows;
        const i64 row = min(first + threadIdx.x / GROUP, (i64)rows - 1);
        float v[PIECES][PER], g[PIECES][PER], sum = 0.0f, along = 0.0f;
        const float scale = load_normal(v, x + row * C, member, eps);
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const bool inside = p * GROUP + member < VECTORS;
            if (inside) load(g[p], grad + row * C + (p * GROUP + member) * PER);
#pragma unroll
            for (int i = 0; i < PER; i++) {
                if (!inside || !active) g[p][i] = 0.0f;
                d_w[p][i] = fmaf(g[p][i], v[p][i], d_w[p][i]);
                d_c[p][i] += g[p][i];
                g[p][i] = inside ? g[p][i] * w[p][i] : 0.0f;
                sum += g[p][i];
                along = fmaf(g[p][i], v[p][i], along);
            }
        }
        sum = sum_over<GROUP>(sum) / C;
        along = sum_over<GROUP>(along) / C;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
#pragma unroll
            for (int i = 0; i < PER; i++) g[p][i] = scale * (g[p][i] - sum - v[p][i] * along);
            if (active && p * GROUP + member < VECTORS) store(dx + row * C + (p * GROUP + member) * PER, g[p]);
        }
    }
    // lanes of other rows hold parts of the same channels, then warps
#pragma unroll
    for (int p = 0; p < PIECES; p++)
#pragma unroll
        for (int i = 0; i < PER; i++) {
#pragma unroll
            for (int distance = GROUP; distance < LANES; distance *= 2) {
                d_w[p][i] += __shfl_xor_sync(ALL, d_w[p][i], distance);
                d_c[p][i] += __shfl_xor_sync(ALL, d_c[p][i], distance);
            }
            if (threadIdx.x % LANES < GROUP) {
                of_warps[warp][0][(p * GROUP + member) * PER + i] = d_w[p][i];
                of_warps[warp][1][(p * GROUP + member) * PER + i] = d_c[p][i];
            }
        }
    __syncthreads();
    for (int at = threadIdx.x; at < 2 * C; at += WARPS * LANES) {
        float sum = 0.0f;
        for (int i = 0; i < WARPS; i++) sum += of_warps[i][at / C][at % C];
        parts[(i64)blockIdx.x * 2 * C + at] = sum;
    }
}
