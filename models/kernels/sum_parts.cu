// The second half of a sum over many tokens, whose parts blocks of threads have left; see `sum_parts.py`.

#include "elements.cuh"

constexpr int COLUMNS = 32, GROUPS = 16;  // of a block: neighbouring columns, groups of rows

// parts (rows, taps + 1, C): sums over the rows, the first `taps` to first (C, taps), the last to second (C)
extern "C" __global__ void __launch_bounds__(COLUMNS * GROUPS) sum_parts_kernel(
    const float* __restrict__ parts, float* __restrict__ first, float* __restrict__ second, int rows, int taps, int C) {
    __shared__ float of_groups[GROUPS][COLUMNS];
    const int group = threadIdx.x / COLUMNS, lane = threadIdx.x % COLUMNS, columns = (taps + 1) * C;
    const int column = blockIdx.x * COLUMNS + lane;
    float sum = 0.0f;
    if (column < columns) {
#pragma unroll 8
        for (int row = group; row < rows; row += GROUPS) sum += parts[(i64)row * columns + column];
    }
    of_groups[group][lane] = sum;
    __syncthreads();
    if (group > 0 || column >= columns) return;
    for (int i = 1; i < GROUPS; i++) sum += of_groups[i][lane];
    const int tap = column / C, channel = column % C;
    if (tap < taps) first[channel * taps + tap] = sum;
    else second[channel] = sum;
}
