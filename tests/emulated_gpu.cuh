// In place of `models/kernels/instructions.cuh`: CUDA's words and instructions in plain C++, so that the kernels run on
// a CPU. The threads of a block are fibers that take turns: each thread runs until it has to wait for its warp, each warp
// until it has to wait for the block. What depends on their order, which can be reversed, lacks a barrier. Shared memory
// begins as NaN.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ thread_local  // may be declared outside of functions and defined within, as in CUDA; there is one thread

struct float2 { float x, y; } __align__(8);
struct float4 { float x, y, z, w; } __align__(16);
struct uint2 { u32 x, y; } __align__(8);
struct uint4 { u32 x, y, z, w; } __align__(16);
struct Index { u32 x = 0, y = 0, z = 0; };

using std::max;
using std::min;

constexpr u32 ALL = 0xffffffff;
constexpr int WARP = 32, MOST_THREADS = 1024, STACK_BYTES = 256 << 10, MOST_SHARED_BYTES = 96 << 10;

static Index threadIdx, blockIdx, gridDim;
thread_local float shared[MOST_SHARED_BYTES / sizeof(float)] __align__(16);

// ---- fibers

enum Wait { NOTHING, FOR_WARP, FOR_BLOCK, FOR_EVER };
struct Copy { void* to; const void* from; bool valid; };
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    Wait waits;
    std::vector<Copy> copies;
    u32 turn;  // which half of `handed` the next exchange of the warp uses
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static bool reversed;
static u32 handed[2][MOST_THREADS][6];

static Fiber& me() { return fibers[threadIdx.x]; }
static void wait(Wait what) {
    const u32 number = threadIdx.x;
    me().waits = what;
    swapcontext(&me().context, &scheduler);
    threadIdx.x = number;
}
static const char* error;  // the first, told to the caller
static void fail(const char* reason) {
    if (!error) error = reason;
}

// Lets go of those in [begin, end) if all wait for `what`; ended ones count unless they are needed. True if it did.
static bool release(int begin, int end, Wait what, bool ended_count) {
    int waiting = 0;
    for (int i = begin; i < end; i++) {
        waiting += fibers[i].waits == what;
        if (fibers[i].waits != what && !(ended_count && fibers[i].waits == FOR_EVER)) return false;
    }
    for (int i = begin; i < end; i++)
        if (fibers[i].waits == what) fibers[i].waits = NOTHING;
    return waiting > 0;
}

static void run_warp(int begin, int end) {
    do {
        for (int i = begin; i < end; i++) {
            threadIdx.x = reversed ? begin + end - 1 - i : i;
            if (me().waits == NOTHING) swapcontext(&scheduler, &me().context);
        }
    } while (release(begin, end, FOR_WARP, false));
}

static void run_block(int threads) {
    const int warps = (threads + WARP - 1) / WARP;
    do {
        for (int i = 0; i < warps; i++) {
            const int begin = (reversed ? warps - 1 - i : i) * WARP;
            run_warp(begin, min(begin + WARP, threads));
        }
    } while (release(0, threads, FOR_BLOCK, true));
    for (int i = 0; i < threads; i++) {
        if (fibers[i].waits != FOR_EVER) fail("threads wait for others that do not come");
        if (!fibers[i].copies.empty()) fail("copies were not waited for");
        fibers[i].copies.clear();
    }
}

template <typename Call> static void enter(u32 high, u32 low) {
    Call& call = *(Call*)((unsigned long long)high << 32 | low);
    const u32 number = threadIdx.x;
    call();
    threadIdx.x = number;
    me().waits = FOR_EVER;
}

template <typename Call> static void run_grid(Call call, int threads, bool order) {
    reversed = order;
    while ((int)fibers.size() < threads) fibers.emplace_back();
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
                std::fill(std::begin(shared), std::end(shared), NAN);
                const unsigned long long address = (unsigned long long)&call;
                for (int i = 0; i < threads; i++) {
                    Fiber& f = fibers[i];
                    f.waits = NOTHING, f.turn = 0;
                    getcontext(&f.context);
                    f.context.uc_stack.ss_sp = f.stack.get(), f.context.uc_stack.ss_size = STACK_BYTES;
                    f.context.uc_link = &scheduler;
                    makecontext(&f.context, (void (*)())enter<Call>, 2, (u32)(address >> 32), (u32)address);
                }
                run_block(threads);
            }
}

// Names of one letter are macros here: the kernels' numbers.
template <typename... Types, size_t... numbers>
static void launch_with(
    void (*kernel)(Types...), void** arguments, int threads, bool order, std::index_sequence<numbers...>) {
    run_grid([&] { kernel(*(Types*)arguments[numbers]...); }, threads, order);
}
template <typename... Types>
static const char* launch(
    void (*kernel)(Types...), void** arguments, int count, const int* grid, int threads, int order) {
    if (count != sizeof...(Types)) return "it has another number of arguments";
    if (threads > MOST_THREADS) return "too many threads";
    gridDim.x = grid[0], gridDim.y = grid[1], gridDim.z = grid[2];
    error = nullptr;
    launch_with(kernel, arguments, threads, order, std::index_sequence_for<Types...>());
    return error;
}

// ---- CUDA's functions

static void __syncthreads() { wait(FOR_BLOCK); }
static void __syncwarp() { wait(FOR_WARP); }

// Hands `size` words to the warp, and returns what all its lanes have handed.
static u32 (*exchange(const u32* words, int size))[6] {
    u32(*half)[6] = handed[me().turn];
    std::copy(words, words + size, half[threadIdx.x]);
    me().turn ^= 1;
    wait(FOR_WARP);
    return half + threadIdx.x / WARP * WARP;
}
template <typename Value> static Value shuffle(Value v, u32 lane) {
    u32 word;
    static_assert(sizeof(Value) == 4, "");
    std::memcpy(&word, &v, 4);
    std::memcpy(&v, exchange(&word, 1)[lane % WARP], 4);
    return v;
}
template <typename Value> static Value __shfl_sync(u32, Value v, int lane) { return shuffle(v, lane); }
template <typename Value> static Value __shfl_xor_sync(u32, Value v, int distance) { return shuffle(v, threadIdx.x % WARP ^ distance); }

template <typename Value> static Value __ldg(const Value* from) { return *from; }
static float __uint_as_float(u32 bits) {
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
}
static float rsqrtf(float v) { return 1.0f / std::sqrt(v); }

// ---- the instructions

static float half_to_float(u16 bits) {
    _Float16 v;
    std::memcpy(&v, &bits, 2);
    return v;
}
static u16 to_half(float v) {
    const _Float16 half = v;
    u16 bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
static u16 to_bfloat16(float v) {
    u32 bits;
    std::memcpy(&bits, &v, 4);
    return v != v ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static u32 to_two_bfloat16(float low, float high) { return (u32)to_bfloat16(high) << 16 | to_bfloat16(low); }

static u32 product_of_two(u32 a, u32 b) {
    auto product = [&](u32 x, u32 y) { return __uint_as_float(x) * __uint_as_float(y); };
    return to_two_bfloat16(product(a << 16, b << 16), product(a & 0xffff0000u, b & 0xffff0000u));
}

static float exp2_(float v) { return exp2f(v); }
static float reciprocal(float v) { return 1.0f / v; }

static void copy16(const Copy& c) {
    if ((size_t)c.to % 16 || (size_t)c.from % 16) fail("a copy of 16 bytes at an address that is no multiple of 16");
    else if (c.valid) std::memcpy(c.to, c.from, 16);
    else std::memset(c.to, 0, 16);
}
// At once in one order, as late as possible in the other.
static void begin_copy16(void* to, const void* from, bool valid) {
    if (reversed) me().copies.push_back({to, from, valid});
    else copy16({to, from, valid});
}
static void finish_copies() {
    for (const Copy& c : me().copies) copy16(c);
    me().copies.clear();
}
static float4 read4_again(const float* from) { return *(const float4*)from; }

// Rows and columns are those of "ldmatrix" in NVIDIA's PTX manual.
template <int COUNT, bool COLUMNS, typename Vector> static Vector load_matrices(const void* row) {
    if ((size_t)row % 16) fail("a row of a matrix at an address that is no multiple of 16");
    const unsigned long long address = (unsigned long long)row;
    const u32 words[2] = {(u32)address, (u32)(address >> 32)};
    u32(*const of)[6] = exchange(words, 2);
    const int group = threadIdx.x % WARP / 4, member = threadIdx.x % 4;
    auto number = [&](int matrix, int row, int column) -> u32 {
        const u32* const at = of[matrix * 8 + row];
        return ((const u16*)((unsigned long long)at[1] << 32 | at[0]))[column];
    };
    Vector v;
    for (int i = 0; i < COUNT; i++)
        ((u32*)&v)[i] = COLUMNS ? number(i, 2 * member, group) | number(i, 2 * member + 1, group) << 16
                                : number(i, group, 2 * member) | number(i, group, 2 * member + 1) << 16;
    return v;
}
template <bool COLUMNS> static uint4 load_four(const void* row) { return load_matrices<4, COLUMNS, uint4>(row); }
static uint2 load_two_columns(const void* row) { return load_matrices<2, true, uint2>(row); }

// The layout of operands is that of "mma.m16n8k16 with floating point type" in NVIDIA's PTX manual.
static void multiply(float4& c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    const u32 words[6] = {a0, a1, a2, a3, b0, b1};
    u32(*const of)[6] = exchange(words, 6);
    const int group = threadIdx.x % WARP / 4, member = threadIdx.x % 4;
    auto half = [](u32 word, int i) { return __uint_as_float(i ? word & 0xffff0000u : word << 16); };
    auto a = [&](int row, int k) { return half(of[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2); };
    auto b = [&](int k, int column) { return half(of[column * 4 + k % 8 / 2][4 + k / 8], k % 2); };
    float* const out[4] = {&c.x, &c.y, &c.z, &c.w};
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++) *out[i] += a(group + i / 2 * 8, k) * b(k, 2 * member + i % 2);
}
