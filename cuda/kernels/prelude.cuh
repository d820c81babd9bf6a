// What every kernel file may use: element types, conversions, sums over a warp or a block, tensor-core steps, copies that
// run beside the arithmetic. Kernels contain no inline assembly of their own: all of it is here, and `shim/` has the same
// functions in plain C++, so that each kernel also runs on a CPU, where CI checks it.
//
// A kernel is a template `__device__` function and one KERNEL line for each of its instances:
//   KERNEL(name_of_instance, (parameters), body<type>(arguments))
#pragma once

#ifdef SCONCE_SHIM
#include "../shim/shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>

// From Hopper on a kernel's blocks are brought onto the device while the kernel before it still ends (programmatic dependent
// launch), so that the gap between two kernels is the wait below and not a launch. The wait is for the whole of the kernel
// before and for its writes; since every kernel begins with it, it is for all before that, too.
__device__ __forceinline__ void begin_early() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#define KERNEL(exported, parameters, ...) \
    extern "C" __global__ void exported parameters { begin_early(); __VA_ARGS__; }
// As KERNEL, with the threads of a block and the blocks that shall fit a multiprocessor.
#define KERNEL_OF(threads, blocks, exported, parameters, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) exported parameters { begin_early(); __VA_ARGS__; }
// As KERNEL_OF; `ahead` runs before the kernels before this one have ended. It may only use addresses that follow from the
// arguments and bring what stands there nearer, by prefetch.
#define KERNEL_AHEAD(threads, blocks, exported, parameters, ahead, ...)                    \
    extern "C" __global__ void __launch_bounds__(threads, blocks) exported parameters {    \
        ahead;                                                                             \
        begin_early();                                                                     \
        __VA_ARGS__;                                                                       \
    }
// Brings a line of 128 bytes into the second-level cache, where kernels begin early at all. It is no read: what others write
// there later is seen.
__device__ __forceinline__ void prefetch(const void* at) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}
// Shared memory whose size the launch says, 16-byte aligned.
#define DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(16) unsigned char dynamic_room[]; \
    type* name = reinterpret_cast<type*>(dynamic_room)

typedef float f32;
typedef __half f16;
typedef __nv_bfloat16 bf16;
typedef __nv_fp8_e4m3 fp8;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(fp8 x) { return static_cast<float>(x); }
template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ f16 from_float<f16>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
// Values beyond 448 become 448, as in the CPU's cache.
template <> __device__ __forceinline__ fp8 from_float<fp8>(float x) { return fp8(x); }

// One step of a tensor core: d += a b, a 16 x 16 (rows of K), b 16 x 8 (columns of K), d 16 x 8 in f32.
// With g = lane / 4 and t = lane % 4, a lane holds
//   a[0]: row g, columns 2t 2t+1      a[1]: row g+8      a[2]: row g, columns 2t+8 2t+9      a[3]: row g+8, likewise
//   b[0]: k 2t 2t+1 of column g       b[1]: k 2t+8 2t+9
//   d[0] d[1]: row g, columns 2t 2t+1       d[2] d[3]: row g+8
// (PTX ISA, "Matrix Fragments for mma.m16n8k16").
template <typename T> __device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_16816<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_16816<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// As above in signed bytes: a 16 x 32, b 32 x 8, d in i32; four consecutive k a register, 4t.. and 4t+16.. .
__device__ __forceinline__ void mma_16832_i8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit elements out of shared memory: lane i names row i % 8 of matrix i / 8 (16 bytes). Of matrix
// j a lane gets row lane / 4, columns 2 (lane % 4) and the next; transposed: column lane / 4, rows 2 (lane % 4) and the next.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], const void* row) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// 16 bytes from global to shared memory beside the arithmetic; zeros where they are not `wanted` (nothing is read then).
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool wanted) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    int bytes = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `newest` groups are under way. Other threads' copies are seen behind the next barrier only.
template <int newest> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
}

// Two bf16 of a register times two others.
__device__ __forceinline__ uint32_t multiply_two_bf16(uint32_t a, uint32_t b) {
    __nv_bfloat162 product = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
    return *reinterpret_cast<uint32_t*>(&product);
}

// 16 bytes that are read once and shall not push others out of the cache.
__device__ __forceinline__ uint4 load_once(const uint4* at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

// What another block of the same launch has written: not out of the first-level cache, which may hold what was there.
template <typename V> __device__ __forceinline__ V load_fresh(const V* at) { return __ldcg(at); }

// 2^x to within two units in the last place; nothing for what would be subnormal.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The four fp8 codes of a word as two registers of a fragment, the lowest code first. Of a bf16 fragment NaN becomes 480.
template <typename T> __device__ __forceinline__ void four_of_fp8(uint32_t (&to)[2], uint32_t codes);
template <> __device__ __forceinline__ void four_of_fp8<f16>(uint32_t (&to)[2], uint32_t codes) {
    __half2_raw low = __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(codes & 0xffff), __NV_E4M3);
    __half2_raw high = __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(codes >> 16), __NV_E4M3);
    to[0] = low.x | uint32_t(low.y) << 16;
    to[1] = high.x | uint32_t(high.y) << 16;
}
template <> __device__ __forceinline__ void four_of_fp8<bf16>(uint32_t (&to)[2], uint32_t codes) {
    // As bits of a bf16, exponent and mantissa stand for the value over 2^120: the bias is 127 instead of 7.
    const __nv_bfloat162 bias = __float2bfloat162_rn(0x1p120f);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t high = __byte_perm(codes, 0, i == 0 ? 0x1404 : 0x3424);
        uint32_t bits = (high & 0x80008000u) | (high & 0x7f007f00u) >> 4;
        __nv_bfloat162 value = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&bits), bias);
        to[i] = *reinterpret_cast<uint32_t*>(&value);
    }
}
#endif

constexpr unsigned ALL_LANES = 0xffffffffu;

// 16 bytes of elements, moved in one access. The address must be 16-byte aligned.
template <typename T> struct __align__(16) Vec {
    static constexpr int LEN = 16 / sizeof(T);
    T at[LEN];
};
template <typename T> __device__ __forceinline__ Vec<T> load_vec(const T* from) {
    return *reinterpret_cast<const Vec<T>*>(from);
}
template <typename T> __device__ __forceinline__ void store_vec(T* to, const Vec<T>& v) {
    *reinterpret_cast<Vec<T>*>(to) = v;
}
// The same of weights, which a step reads once.
template <typename T> __device__ __forceinline__ Vec<T> load_vec_once(const T* from) {
    uint4 raw = load_once(reinterpret_cast<const uint4*>(from));
    return *reinterpret_cast<Vec<T>*>(&raw);
}

// Two elements as one register of a tensor core's fragment, the first in the lower half.
template <typename T> __device__ __forceinline__ uint32_t pack_two(float first, float second) {
    struct __align__(4) Pair { T x, y; } pair = {from_float<T>(first), from_float<T>(second)};
    return *reinterpret_cast<uint32_t*>(&pair);
}

// Sum and largest over the lanes of a warp, known to all of them. The order of addition is fixed.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// The same over a block of full warps, at most 1024 threads; `room` is shared memory of 33 floats. Ends with a barrier, so
// that `room` can be used again at once.
__device__ __forceinline__ float block_sum(float x, float* room) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    if (lane == 0) room[warp] = x;
    __syncthreads();
    if (warp == 0) {
        float all = warp_sum(lane < warps ? room[lane] : 0.0f);
        if (lane == 0) room[32] = all;
    }
    __syncthreads();
    float all = room[32];
    __syncthreads();
    return all;
}
__device__ __forceinline__ float block_max(float x, float* room) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_max(x);
    if (lane == 0) room[warp] = x;
    __syncthreads();
    if (warp == 0) {
        float all = warp_max(lane < warps ? room[lane] : -INFINITY);
        if (lane == 0) room[32] = all;
    }
    __syncthreads();
    float all = room[32];
    __syncthreads();
    return all;
}
