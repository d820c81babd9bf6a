// Products of few rows with weights in FP8 (E4M3, no infinities) and their scales, y = x w^T (+ y): w [n, k] bytes, x [m, k] and the
// arithmetic in 16 bits; and the weights as plain elements, for products of many rows.
//
// scales [ceil(n / block_n), ceil(k / block_k)] f32: one a row is (1, k), one a tensor (n, k), blocks as in DeepSeek-V3 (arXiv
// 2412.19437) (128, 128). block_k is a multiple of 128, or covers k; for plain elements a multiple of 4 does.
//
// Bound by reading w once: n k bytes. As matvec.cu: 16 neighbouring bytes of a row are a lane's in four steps of the tensor
// core. A byte becomes 16 bits by shifting its exponent and fraction into place, which is exact: 2^-8 of it in f16 (taken back
// with the scale), 2^-120 in bf16 (taken back by a product; idea: Marlin). The byte for NaN becomes 480.
//
// Launch: a block of 8 warps has 16 rows of w and, by y, 8 TILES rows of x; warp i takes the parts of 128 i, i + 8, ... of k.

#include "fp8_product.cuh"

namespace sconce_fp8 {

// y is T, or f32 where `wide`.
template <typename T, int TILES>
__device__ __forceinline__ void product(const T* x, const uint8_t* w, const float* scales, void* y, int m, const Sizes& sizes,
                                        int wide, int add) {
    __shared__ Room<TILES> room;
    int g = threadIdx.x % 32 / 4, n = sizes.n, first = blockIdx.x * 16, x_first = blockIdx.y * 8 * TILES;
    const T* rows[TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        int row = x_first + 8 * tile + g;
        rows[tile] = row < m ? x + size_t(row) * sizes.k : nullptr;
    }
    multiply<T, TILES>(rows, w, scales, first, sizes, room);
    for (int i = threadIdx.x; i < 16 * 8 * TILES; i += 32 * WARPS) {
        int row = first + i % 16, column = x_first + i / 16;
        if (row >= n || column >= m) continue;
        float all = room.total(i / 16, i % 16);
        size_t at = size_t(column) * n + row;
        if (wide) {
            float* out = static_cast<float*>(y);
            out[at] = add ? out[at] + all : all;
        } else {
            T* out = static_cast<T*>(y);
            out[at] = from_float<T>(add ? to_float(out[at]) + all : all);
        }
    }
}

// The first two parts of each warp's weights, a line of 128 bytes a row: while the kernel before this one ends.
__device__ __forceinline__ void bring_weights(const uint8_t* w, int n, int k) {
    int lane = threadIdx.x % 32, row = min(int(blockIdx.x) * 16 + lane / 2, n - 1);
    int at = (threadIdx.x / 32 + lane % 2 * WARPS) * PART;
    if (at < k) prefetch(w + size_t(row) * k + at);
}

// out [n, k] T. Launch: a thread has 4 elements, 256 threads a block.
template <typename T>
__device__ __forceinline__ void plain(const uint8_t* w, const float* scales, T* out, int n, int k, int block_n, int block_k) {
    size_t at = (size_t(blockIdx.x) * 256 + threadIdx.x) * 4;
    if (at >= size_t(n) * k) return;
    int row = int(at / k), column = int(at % k);
    float scale = scales[size_t(row / block_n) * ((k + block_k - 1) / block_k) + column / block_k];
    uint32_t word = *reinterpret_cast<const uint32_t*>(w + at);
    struct __align__(4 * sizeof(T)) Four { T at[4]; } four;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t byte = word >> (8 * i) & 0xff;
        // As f32 by the same shift, 2^-120 of it.
        float value = __uint_as_float((byte & 0x80) << 24 | (byte & 0x7f) << 20) * 1.329227995784916e36f;
        four.at[i] = from_float<T>(value * scale);
    }
    *reinterpret_cast<Four*>(out + at) = four;
}

#define PRODUCT(T, TILES, NAME)                                                                                        \
    KERNEL_AHEAD(256, 2, NAME##_##T,                                                                                   \
                 (const T* x, const uint8_t* w, const float* scales, void* y, int m, int n, int k, int block_n,        \
                  int block_k, int wide, int add),                                                                     \
                 bring_weights(w, n, k),                                                                               \
                 product<T, TILES>(x, w, scales, y, m, Sizes{n, k, block_n, block_k}, wide, add))
#define INSTANCE(T)                \
    PRODUCT(T, 1, fp8_product_8)   \
    PRODUCT(T, 2, fp8_product_16)  \
    PRODUCT(T, 4, fp8_product_32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE
#undef PRODUCT
#define INSTANCE(T)                                                                                                    \
    KERNEL(fp8_plain_##T,                                                                                              \
           (const uint8_t* w, const float* scales, T* out, int n, int k, int block_n, int block_k),                    \
           plain<T>(w, scales, out, n, k, block_n, block_k))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE

}  // namespace sconce_fp8
