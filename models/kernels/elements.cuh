// What the CUDA kernels share: types of numbers, conversion to float and back, vectors, sums over lanes, normalisation.

#include "instructions.cuh"

struct bf16 { u16 bits; };
struct fp16 { u16 bits; };

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __uint_as_float((u32)v.bits << 16); }
__device__ __forceinline__ float to_float(fp16 v) { return half_to_float(v.bits); }
__device__ __forceinline__ void assign(float& to, float v) { to = v; }
__device__ __forceinline__ void assign(bf16& to, float v) { to.bits = to_bfloat16(v); }
__device__ __forceinline__ void assign(fp16& to, float v) { to.bits = to_half(v); }

template <typename E> __device__ __forceinline__ float rounded(float v) {
    E e;
    assign(e, v);
    return to_float(e);
}

// Warps of a block that normalises tokens: as many as fit, with their sums, into 48 KiB
__device__ __host__ constexpr int warps_of_block(int channels) { return channels <= 384 ? 8 : channels <= 768 ? 4 : 2; }

__device__ __forceinline__ float sigmoid(float v) {
    float e = exp2_(-LOG2_E * fabsf(v));
    return (v >= 0.0f ? 1.0f : e) * reciprocal(1.0f + e);
}

// Of sums over the channels of a block, which are added up in float: as wide as the results will be
template <typename E> struct Partial { typedef bf16 type; };
template <> struct Partial<float> { typedef float type; };

// Whether the matrix unit, which takes bfloat16, does the low-rank steps' matmuls: where they are bfloat16
template <typename E> constexpr bool BY_MATRIX = false;
template <> constexpr bool BY_MATRIX<bf16> = true;
__device__ __host__ constexpr int padded(int rank) { return (rank + 15) / 16 * 16; }
// Floats of a packed tile of 16 steps: B and C (16, steps), then the low-rank steps, (rank, steps) or, for the matrix
// unit, in bfloat16 (steps, padded rank)
template <typename E> __device__ __host__ constexpr int packed_floats(int rank) {
    return 16 * (32 + (BY_MATRIX<E> ? padded(rank) / 2 : rank));
}

// COUNT neighbouring numbers, read and written at once
template <typename E, int COUNT> struct alignas(COUNT * sizeof(E)) Vector { E of[COUNT]; };

template <int COUNT, typename E> __device__ __forceinline__ void load(float (&to)[COUNT], const E* from) {
    Vector<E, COUNT> v = *(const Vector<E, COUNT>*)from;
#pragma unroll
    for (int i = 0; i < COUNT; i++) to[i] = to_float(v.of[i]);
}
template <int COUNT, typename E> __device__ __forceinline__ void store(E* to, const float (&from)[COUNT]) {
    Vector<E, COUNT> v;
#pragma unroll
    for (int i = 0; i < COUNT; i++) assign(v.of[i], from[i]);
    *(Vector<E, COUNT>*)to = v;
}

// The sum over groups of GROUP neighbouring lanes, in all of them
template <int GROUP> __device__ __forceinline__ float sum_over(float v) {
#pragma unroll
    for (int distance = GROUP / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(ALL, v, distance);
    return v;
}

// The numbers of a row, CHANNELS of them, shared out in vectors of PER to GROUP neighbouring lanes: with mean 0 and
// variance 1 afterwards, zeros beyond the last channel. Returns what they were multiplied by.
template <int GROUP, int CHANNELS, int PIECES, int PER>
__device__ __forceinline__ float normalize(float (&v)[PIECES][PER], float eps) {
    const int member = threadIdx.x % GROUP;
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int p = 0; p < PIECES; p++)
#pragma unroll
        for (int i = 0; i < PER; i++) sum += v[p][i];
    const float mean = sum_over<GROUP>(sum) / CHANNELS;
#pragma unroll
    for (int p = 0; p < PIECES; p++)
#pragma unroll
        for (int i = 0; i < PER; i++) {
            v[p][i] = p * GROUP + member < CHANNELS / PER ? v[p][i] - mean : 0.0f;
            squares = fmaf(v[p][i], v[p][i], squares);
        }
    const float scale = rsqrtf(sum_over<GROUP>(squares) / CHANNELS + eps);
#pragma unroll
    for (int p = 0; p < PIECES; p++)
#pragma unroll
        for (int i = 0; i < PER; i++) v[p][i] *= scale;
    return scale;
}
