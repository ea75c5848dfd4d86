// The single instructions, in PTX, that the CUDA kernels use beside C++. Tests put plain C++ in this file's place and run
// the kernels on a CPU.

#pragma once

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

constexpr u32 ALL = 0xffffffff;  // lanes of a warp

__device__ __forceinline__ float half_to_float(u16 bits) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
    return result;
}
__device__ __forceinline__ u16 to_half(float v) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}
__device__ __forceinline__ u16 to_bfloat16(float v) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}
__device__ __forceinline__ u32 to_two_bfloat16(float low, float high) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
// Both products of pairs of bfloat16, rounded
__device__ __forceinline__ u32 product_of_two(u32 a, u32 b) {
    u32 bits;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(bits) : "r"(a), "r"(b), "r"(0x80008000u));
    return bits;
}

__device__ __forceinline__ float exp2_(float v) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
    return result;
}
__device__ __forceinline__ float reciprocal(float v) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
    return result;
}

// 16 bytes from global to shared memory, zeros unless `valid`: they are there after `finish_copies`.
__device__ __forceinline__ void begin_copy16(void* to, const void* from, bool valid) {
    u32 address = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid ? 16 : 0));
}
__device__ __forceinline__ void finish_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four numbers in shared memory that were read before: again, because keeping them would take registers that there are
// not.
__device__ __forceinline__ float4 read4_again(const float* from) {
    float4 v;
    u32 address = (u32)__cvta_generic_to_shared(from);
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address));
    return v;
}

// c += a b by the whole warp: a (16, 16) and b (16, 8) in pairs of bfloat16, c (16, 8) in float, shared out to the lanes
// as mma.m16n8k16 has it
__device__ __forceinline__ void multiply(float4& c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Matrices (8, 8) of 16-bit numbers from shared memory, as `multiply` wants them: lane i has the address of row i % 8 of
// matrix i / 8, and gets two neighbours of row i / 4 of each, or with COLUMNS of column i / 4.
template <bool COLUMNS> __device__ __forceinline__ uint4 load_four(const void* row) {
    uint4 v;
    u32 address = (u32)__cvta_generic_to_shared(row);
    if (COLUMNS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}
__device__ __forceinline__ uint2 load_two_columns(const void* row) {  // of the addresses, those of lanes 0 to 15 count
    uint2 v;
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
    return v;
}
