// CUDA's execution model in plain C++, as far as the kernels use it: a block's threads are fibers of one OS thread, which
// change at barriers and warp-wide operations. For checks, not for speed.
//
// What goes wrong on a GPU goes wrong here, too, and is told: a barrier that some threads never reach, lanes of a warp at
// different operations, shared memory that nobody wrote (it starts as NaN). The order in which threads run changes from
// pass to pass, so that most missing barriers change results.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// One block runs on an OS thread at a time.
#define __shared__ static thread_local

struct dim3 {
    unsigned x, y, z;
};
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace shim {
struct Thread {
    dim3 thread, block, block_dim, grid_dim;
    // Number in the block.
    unsigned number;
    unsigned char* dynamic_room;
};
extern thread_local Thread* current;

void block_barrier();
// Each lane of the caller's warp lays down so many words; behind it all lanes can read what each has laid down until the
// next call. `what` names the operation: lanes at different ones are an error.
const uint64_t* warp_exchange(const char* what, const uint64_t* words, int count);
constexpr int EXCHANGE_WORDS = 4;

typedef void (*Launcher)(void** arguments);
struct Registration {
    Registration(const char* name, Launcher launcher);
};
template <auto kernel, typename Signature> struct Call;
template <auto kernel, typename... A> struct Call<kernel, void (*)(A...)> {
    template <size_t... index> static void with(void** arguments, std::index_sequence<index...>) {
        kernel(*static_cast<A*>(arguments[index])...);
    }
    static void run(void** arguments) { with(arguments, std::index_sequence_for<A...>()); }
};
inline unsigned lane() { return current->number % 32; }
template <typename T> inline uint64_t to_word(T x) {
    static_assert(sizeof(T) <= 8);
    uint64_t word = 0;
    memcpy(&word, &x, sizeof(T));
    return word;
}
template <typename T> inline T from_word(uint64_t word) {
    T x;
    memcpy(&x, &word, sizeof(T));
    return x;
}
template <typename T> inline T from_lane(const char* what, T x, unsigned lane) {
    uint64_t word = to_word(x);
    return from_word<T>(warp_exchange(what, &word, 1)[lane % 32 * EXCHANGE_WORDS]);
}
}  // namespace shim

#define threadIdx (shim::current->thread)
#define blockIdx (shim::current->block)
#define blockDim (shim::current->block_dim)
#define gridDim (shim::current->grid_dim)

#define KERNEL(exported, parameters, ...)            \
    static void exported parameters { __VA_ARGS__; } \
    static shim::Registration exported##_registered(#exported, &shim::Call<&exported, decltype(&exported)>::run);
#define KERNEL_OF(threads, blocks, exported, parameters, ...) KERNEL(exported, parameters, __VA_ARGS__)
#define KERNEL_AHEAD(threads, blocks, exported, parameters, ahead, ...) KERNEL(exported, parameters, ahead; __VA_ARGS__)
// Reads, so that an address that does not exist is found.
inline void prefetch(const void* at) { (void)*static_cast<const volatile char*>(at); }
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(shim::current->dynamic_room)

inline void __syncthreads() { shim::block_barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) {
    uint64_t nothing = 0;
    shim::warp_exchange("__syncwarp", &nothing, 1);
}
inline void __threadfence() {}
template <typename T> inline T __shfl_xor_sync(unsigned, T x, int other) {
    return shim::from_lane("__shfl_xor_sync", x, shim::lane() ^ unsigned(other));
}
template <typename T> inline T __shfl_sync(unsigned, T x, int lane) {
    return shim::from_lane("__shfl_sync", x, unsigned(lane));
}
template <typename T> inline T __shfl_down_sync(unsigned, T x, unsigned delta) {
    unsigned from = shim::lane() + delta;
    return shim::from_lane("__shfl_down_sync", x, from < 32 ? from : shim::lane());
}
template <typename T> inline T __shfl_up_sync(unsigned, T x, unsigned delta) {
    unsigned own = shim::lane();
    return shim::from_lane("__shfl_up_sync", x, own >= delta ? own - delta : own);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    uint64_t word = predicate != 0;
    const uint64_t* all = shim::warp_exchange("__ballot_sync", &word, 1);
    unsigned bits = 0;
    for (unsigned lane = 0; lane < 32; lane++) bits |= unsigned(all[lane * shim::EXCHANGE_WORDS] & 1) << lane;
    return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }

template <typename T> inline T atomicAdd(T* at, T x) {
    if constexpr (std::is_integral<T>::value) {
        return __atomic_fetch_add(at, x, __ATOMIC_SEQ_CST);
    } else {
        T old, sum;
        __atomic_load(at, &old, __ATOMIC_SEQ_CST);
        do sum = old + x;
        while (!__atomic_compare_exchange(at, &old, &sum, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
        return old;
    }
}
template <typename T> inline T atomicMax(T* at, T x) {
    T old = __atomic_load_n(at, __ATOMIC_SEQ_CST);
    while (old < x && !__atomic_compare_exchange_n(at, &old, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
    return old;
}
template <typename T> inline T atomicMin(T* at, T x) {
    T old = __atomic_load_n(at, __ATOMIC_SEQ_CST);
    while (x < old && !__atomic_compare_exchange_n(at, &old, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
    return old;
}
template <typename T> inline T __ldg(const T* at) { return *at; }

template <typename T> inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> inline T max(T a, T b) { return a < b ? b : a; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __saturatef(float x) { return x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }
inline unsigned __float_as_uint(float x) { return shim::from_word<unsigned>(shim::to_word(x)); }
inline float __uint_as_float(unsigned x) { return shim::from_word<float>(shim::to_word(x)); }
inline int __float_as_int(float x) { return shim::from_word<int>(shim::to_word(x)); }
inline float __int_as_float(int x) { return shim::from_word<float>(shim::to_word(x)); }
inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += int(int8_t(a >> 8 * i)) * int(int8_t(b >> 8 * i));
    return c;
}
// Bytes by their number out of y:x, a nibble of `s` each.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    uint64_t both = uint64_t(y) << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= unsigned(both >> (s >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return out;
}

typedef float f32;
struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };
struct fp8 { uint8_t bits; };

namespace shim {
uint16_t f16_of(float x);
float float_of_f16(uint16_t bits);
uint8_t fp8_of(float x);
float float_of_fp8(uint8_t bits);
inline uint16_t bf16_of(float x) {
    uint32_t bits = __float_as_uint(x);
    if (x != x) return uint16_t(bits >> 16 | 0x40);
    // Rounds to the nearest, of two equally near to the even one.
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
}  // namespace shim

inline float to_float(float x) { return x; }
inline float to_float(f16 x) { return shim::float_of_f16(x.bits); }
inline float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
inline float to_float(fp8 x) { return shim::float_of_fp8(x.bits); }
template <typename T> inline T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline f16 from_float<f16>(float x) { return {shim::f16_of(x)}; }
template <> inline bf16 from_float<bf16>(float x) { return {shim::bf16_of(x)}; }
template <> inline fp8 from_float<fp8>(float x) { return {shim::fp8_of(x)}; }

namespace shim {
template <typename T> inline float half_of(uint32_t word, int half) {
    T x;
    uint16_t bits = uint16_t(word >> 16 * half);
    memcpy(&x, &bits, 2);
    return to_float(x);
}
}  // namespace shim

template <typename T> inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    uint64_t words[3] = {a[0] | uint64_t(a[1]) << 32, a[2] | uint64_t(a[3]) << 32, b[0] | uint64_t(b[1]) << 32};
    const uint64_t* all = shim::warp_exchange("mma_16816", words, 3);
    unsigned g = shim::lane() / 4, t = shim::lane() % 4;
    for (int i = 0; i < 4; i++) {
        unsigned row = g + 8 * (i / 2), column = 2 * t + i % 2;
        float sum = d[i];
        for (unsigned k = 0; k < 16; k++) {
            unsigned a_word = 2 * (k / 8) + row / 8, b_word = k / 8;
            uint32_t own_a = uint32_t(all[(row % 8 * 4 + k % 8 / 2) * shim::EXCHANGE_WORDS + a_word / 2] >> 32 * (a_word % 2));
            uint32_t own_b = uint32_t(all[(column * 4 + k % 8 / 2) * shim::EXCHANGE_WORDS + 2] >> 32 * b_word);
            sum += shim::half_of<T>(own_a, k % 2) * shim::half_of<T>(own_b, k % 2);
        }
        d[i] = sum;
    }
}

inline void mma_16832_i8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    uint64_t words[3] = {a[0] | uint64_t(a[1]) << 32, a[2] | uint64_t(a[3]) << 32, b[0] | uint64_t(b[1]) << 32};
    const uint64_t* all = shim::warp_exchange("mma_16832_i8", words, 3);
    unsigned g = shim::lane() / 4, t = shim::lane() % 4;
    for (int i = 0; i < 4; i++) {
        unsigned row = g + 8 * (i / 2), column = 2 * t + i % 2;
        for (unsigned k = 0; k < 32; k += 4) {
            unsigned a_word = 2 * (k / 16) + row / 8, b_word = k / 16;
            uint32_t own_a = uint32_t(all[(row % 8 * 4 + k % 16 / 4) * shim::EXCHANGE_WORDS + a_word / 2] >> 32 * (a_word % 2));
            uint32_t own_b = uint32_t(all[(column * 4 + k % 16 / 4) * shim::EXCHANGE_WORDS + 2] >> 32 * b_word);
            d[i] = __dp4a(int(own_a), int(own_b), d[i]);
        }
    }
}

namespace shim {
inline void load_matrix(uint32_t (&r)[4], const void* row, bool transposed) {
    uint64_t word = to_word(row);
    const uint64_t* all = warp_exchange("load_matrix", &word, 1);
    for (unsigned j = 0; j < 4; j++) {
        uint16_t pair[2];
        for (unsigned i = 0; i < 2; i++) {
            unsigned across = lane() / 4, along = 2 * (lane() % 4) + i;
            unsigned from_row = transposed ? along : across, column = transposed ? across : along;
            pair[i] = from_word<const uint16_t*>(all[(8 * j + from_row) * EXCHANGE_WORDS])[column];
        }
        r[j] = pair[0] | uint32_t(pair[1]) << 16;
    }
}
}  // namespace shim
inline void load_matrix_x4(uint32_t (&r)[4], const void* row) { shim::load_matrix(r, row, false); }
inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row) { shim::load_matrix(r, row, true); }

inline uint32_t multiply_two_bf16(uint32_t a, uint32_t b) {
    uint32_t low = shim::bf16_of(shim::half_of<bf16>(a, 0) * shim::half_of<bf16>(b, 0));
    return low | uint32_t(shim::bf16_of(shim::half_of<bf16>(a, 1) * shim::half_of<bf16>(b, 1))) << 16;
}
inline void copy_async_16(void* shared, const void* global, bool wanted) {
    if (wanted) memcpy(shared, global, 16);
    else memset(shared, 0, 16);
}
inline void copy_async_commit() {}
template <int newest> inline void copy_async_wait() {}
inline uint4 load_once(const uint4* at) { return *at; }

template <typename V> inline V load_fresh(const V* at) { return *at; }
inline float exp2_fast(float x) { return exp2f(x); }
template <typename T> inline void four_of_fp8(uint32_t (&to)[2], uint32_t codes) {
    for (int i = 0; i < 2; i++) {
        T pair[2];
        for (int j = 0; j < 2; j++) pair[j] = from_float<T>(shim::float_of_fp8(uint8_t(codes >> (16 * i + 8 * j))));
        memcpy(&to[i], pair, 4);
    }
}
