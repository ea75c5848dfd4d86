// Depthwise 3x3 convolution with zero padding, bias and SiLU of channels-last maps, forward and backward; see
// `conv_silu.py`.
//
// A lane owns two neighbouring channels and walks along a row of the map with the 3x3 window in its registers, so that
// every number is read three times instead of nine. A block's warps take neighbouring rows.
//
// Compiled for an ELEMENT (bf16, fp16 or float): the type of maps and their gradients. Sums are in float.

#include "elements.cuh"

typedef ELEMENT element;

constexpr int WARPS = 8, LANES = 32, CHANNELS = 2 * LANES;

struct Two { float x, y; };
struct __align__(2 * sizeof(element)) Pair { element x, y; };
template <int> struct Word { typedef unsigned long long type; };
template <> struct Word<4> { typedef u32 type; };
typedef Word<sizeof(Pair)>::type word;  // a Pair, as the read-only cache hands it out

__device__ __forceinline__ Two unpack(word bits) {
    Pair v = *(const Pair*)&bits;
    return {to_float(v.x), to_float(v.y)};
}
__device__ __forceinline__ Two load(const element* from) { return unpack(__ldg((const word*)from)); }
__device__ __forceinline__ void store(element* to, Two v) {
    Pair pair;
    assign(pair.x, v.x), assign(pair.y, v.y);
    *(Pair*)to = pair;
}
__device__ __forceinline__ void add_product(Two& to, Two a, Two b) { to = {fmaf(a.x, b.x, to.x), fmaf(a.y, b.y, to.y)}; }

__device__ __forceinline__ float silu(float v) { return v * sigmoid(v); }
__device__ __forceinline__ float silu_derivative(float v) {
    float s = sigmoid(v);
    return s * (1.0f + v * (1.0f - s));
}

// Where a lane works: its two channels, its row of all maps, and which of the rows above and below are inside the map.
struct Place {
    int channel, row;
    bool active, above, below;
    __device__ Place(int rows, int H, int I) {
        channel = blockIdx.y * CHANNELS + 2 * (threadIdx.x % LANES), row = blockIdx.x * WARPS + threadIdx.x / LANES;
        active = channel < I && row < rows;
        above = row % H > 0, below = row % H < H - 1;
    }
};

// The nine weights of both channels, (I, 9) in memory.
__device__ __forceinline__ void load_weights(Two (&weight)[9], const float* from, int channel, bool reversed) {
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
        int at = reversed ? 8 - tap : tap;
        weight[tap] = {from[channel * 9 + at], from[(channel + 1) * 9 + at]};
    }
}

// Calls visit(column, window) for all columns of the row; the window's taps are in the order of the weights. AHEAD
// columns are on their way from memory while one is visited.
template <typename Visit>
__device__ __forceinline__ void walk(const element* map, const Place& place, int W, int I, Visit visit) {
    constexpr int AHEAD = 4;
    const element* const middle = map + (long long)place.row * W * I + place.channel;
    const bool inside[3] = {place.above, true, place.below};
    Two window[9];
    word ahead[AHEAD][3];
    auto fetch = [&](word (&column)[3], int w) {
#pragma unroll
        for (int i = 0; i < 3; i++) {
            column[i] = 0;
            if (inside[i] && w < W) column[i] = __ldg((const word*)(middle + ((i - 1) * W + w) * I));
        }
    };
    auto enter = [&](const word (&column)[3]) {  // moves the window on
#pragma unroll
        for (int i = 0; i < 3; i++) {
            window[3 * i] = window[3 * i + 1], window[3 * i + 1] = window[3 * i + 2];
            window[3 * i + 2] = unpack(column[i]);
        }
    };
    word zeros[3] = {0, 0, 0};
#pragma unroll
    for (int i = 0; i < AHEAD; i++) fetch(ahead[i], i);
    enter(zeros);
    enter(zeros);
    for (int start = -1; start < W; start += AHEAD) {  // `ahead` begins with the column start + 1
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int w = start + i;  // the window's middle, once the next column is in
            enter(ahead[i]);
            fetch(ahead[i], w + 1 + AHEAD);
            if (w >= 0 && w < W) visit(w, window);
        }
    }
}

__device__ __forceinline__ Two convolve(const Two (&window)[9], const Two (&weight)[9], Two sum) {
#pragma unroll
    for (int tap = 0; tap < 9; tap++) add_product(sum, window[tap], weight[tap]);
    return sum;
}

// out = SiLU(convolution of x + bias)
extern "C" __global__ void __launch_bounds__(WARPS * LANES) conv_silu_kernel(
    const element* __restrict__ x, const float* __restrict__ weights, const float* __restrict__ bias,
    element* __restrict__ out, int rows, int H, int W, int I) {
    const Place place(rows, H, I);
    if (!place.active) return;
    Two weight[9], offset = {bias[place.channel], bias[place.channel + 1]};
    load_weights(weight, weights, place.channel, false);
    out += (long long)place.row * W * I + place.channel;
    walk(x, place, W, I, [&](int w, const Two (&window)[9]) {
        Two sum = convolve(window, weight, offset);
        store(out + (long long)w * I, {silu(sum.x), silu(sum.y)});
    });
}

// d_sum, the gradient of what SiLU is taken of, and the block's part of the parameters' gradients: parts (blocks, 10, I),
// nine weights and the bias.
extern "C" __global__ void __launch_bounds__(WARPS * LANES) conv_silu_backward_kernel(
    const element* __restrict__ grad, const element* __restrict__ x, const float* __restrict__ weights,
    const float* __restrict__ bias, element* __restrict__ d_sum, float* __restrict__ parts, int rows, int H, int W,
    int I) {
    __shared__ Two of_warps[WARPS][10][LANES];
    const Place place(rows, H, I);
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    Two total[10];
#pragma unroll
    for (int i = 0; i < 10; i++) total[i] = {0.0f, 0.0f};
    if (place.active) {
        Two weight[9], offset = {bias[place.channel], bias[place.channel + 1]};
        load_weights(weight, weights, place.channel, false);
        const long long start = (long long)place.row * W * I + place.channel;
        grad += start, d_sum += start;
        walk(x, place, W, I, [&](int w, const Two (&window)[9]) {
            Two sum = convolve(window, weight, offset), g = load(grad + (long long)w * I);
            g = {g.x * silu_derivative(sum.x), g.y * silu_derivative(sum.y)};
            store(d_sum + (long long)w * I, g);
#pragma unroll
            for (int tap = 0; tap < 9; tap++) add_product(total[tap], window[tap], g);
            total[9].x += g.x, total[9].y += g.y;
        });
    }
#pragma unroll
    for (int i = 0; i < 10; i++) of_warps[warp][i][lane] = total[i];
    __syncthreads();
    for (int i = warp; i < 10; i += WARPS) {
        Two sum = {0.0f, 0.0f};
        for (int w = 0; w < WARPS; w++) sum.x += of_warps[w][i][lane].x, sum.y += of_warps[w][i][lane].y;
        const int channel = blockIdx.y * CHANNELS + 2 * lane;
        if (channel < I) *(Two*)(parts + ((long long)blockIdx.x * 10 + i) * I + channel) = sum;
    }
}

// dx, the convolution of d_sum with the reversed weights
extern "C" __global__ void __launch_bounds__(WARPS * LANES) conv_transposed_kernel(
    const element* __restrict__ d_sum, const float* __restrict__ weights, element* __restrict__ dx, int rows, int H,
    int W, int I) {
    const Place place(rows, H, I);
    if (!place.active) return;
    Two weight[9];
    load_weights(weight, weights, place.channel, true);
    dx += (long long)place.row * W * I + place.channel;
    walk(d_sum, place, W, I, [&](int w, const Two (&window)[9]) {
        store(dx + (long long)w * I, convolve(window, weight, {0.0f, 0.0f}));
    });
}
