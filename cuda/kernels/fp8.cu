// Products of few rows with weights in FP8 (E4M3, no infinities) and their scales, y = x w^T (+ y): w [n, k] bytes, x [m, k] and the
// arithmetic in 16 bits; and the weights as plain elements, for products of many rows.
//
// scales [ceil(n / block_n), ceil(k / block_k)] f32: one a row is (1, k), one a tensor (n, k), blocks as in DeepSeek-V3 (arXiv
// 2412.19437) (128, 128). block_k is a multiple of 128, or covers k.
//
// Bound by reading w once: n k bytes. As matvec.cu: 16 neighbouring bytes of a row are a lane's in four steps of the tensor
// core. A byte becomes 16 bits by shifting its exponent and fraction into place, which is exact: 2^-8 of it in f16 (taken back
// with the scale), 2^-120 in bf16 (taken back by a product; idea: Marlin). The byte for NaN becomes 480.
//
// Launch: a block of 8 warps has 16 rows of w and, by y, 8 TILES rows of x; warp i takes the parts of 128 i, i + 8, ... of k.

#include "prelude.cuh"

namespace sconce_fp8 {

constexpr int WARPS = 8, PART = 128;

struct Sizes {
    int m, n, k, block_n, block_k;
};

// Elements 2 i and 2 i + 1 of a word of four as a fragment's register.
template <typename T> __device__ __forceinline__ uint32_t widen(uint32_t word, int i);
template <> __device__ __forceinline__ uint32_t widen<f16>(uint32_t word, int i) {
    uint32_t pair = __byte_perm(word, 0, i == 0 ? 0x1404 : 0x3424);
    return (pair & 0x80008000u) | (pair & 0x7f007f00u) >> 1;
}
template <> __device__ __forceinline__ uint32_t widen<bf16>(uint32_t word, int i) {
    uint32_t pair = __byte_perm(word, 0, i == 0 ? 0x1404 : 0x3424);
    // 2^120, twice.
    return multiply_two_bf16((pair & 0x80008000u) | (pair & 0x7f007f00u) >> 4, 0x7b807b80u);
}
template <typename T> __device__ __forceinline__ float factor_of();
template <> __device__ __forceinline__ float factor_of<f16>() { return 256.0f; }
template <> __device__ __forceinline__ float factor_of<bf16>() { return 1.0f; }

// A lane's piece of a part: of rows g and g + 8 the 16 bytes from 16 t on of either half.
struct Piece {
    uint4 above[2], below[2];
};

__device__ __forceinline__ uint4 load_weights(const uint8_t* from, bool wanted) {
    return wanted ? load_once(reinterpret_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void load_piece(Piece& piece, const uint8_t* above, const uint8_t* below, int at, int k) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        piece.above[i] = load_weights(above + at + 64 * i, at + 64 * i < k);
        piece.below[i] = load_weights(below + at + 64 * i, at + 64 * i < k);
    }
}

__device__ __forceinline__ uint32_t component(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// k a multiple of 16, x and w at multiples of 16 bytes. y is T, or f32 where `wide`.
template <typename T, int TILES>
__device__ __forceinline__ void product(const T* x, const uint8_t* w, const float* scales, void* y, const Sizes& sizes,
                                        int wide, int add) {
    __shared__ float room[WARPS][8 * TILES][17];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int m = sizes.m, n = sizes.n, k = sizes.k, first = blockIdx.x * 16, x_first = blockIdx.y * 8 * TILES;
    // Rows beyond the last are the last: read, not written.
    int row_above = min(first + g, n - 1), row_below = min(first + g + 8, n - 1);
    const uint8_t *above = w + size_t(row_above) * k, *below = w + size_t(row_below) * k;
    int columns = (k + sizes.block_k - 1) / sizes.block_k;
    const float* scales_above = scales + size_t(row_above / sizes.block_n) * columns;
    const float* scales_below = scales + size_t(row_below / sizes.block_n) * columns;
    float sum[TILES][4] = {};
    Piece now, next;
    load_piece(now, above, below, warp * PART + 16 * t, k);
    for (int part = warp; part * PART < k; part += WARPS) {
        load_piece(next, above, below, (part + WARPS) * PART + 16 * t, k);
        float of_part[TILES][4] = {};
        float scale_above = scales_above[part * PART / sizes.block_k] * factor_of<T>();
        float scale_below = scales_below[part * PART / sizes.block_k] * factor_of<T>();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int at = part * PART + 64 * half + 16 * t;
            uint4 v[TILES][2];
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                int row = x_first + 8 * tile + g;
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    v[tile][i] = make_uint4(0, 0, 0, 0);
                    if (row < m && at < k) v[tile][i] = *reinterpret_cast<const uint4*>(x + size_t(row) * k + at + 8 * i);
                }
            }
#pragma unroll
            for (int step = 0; step < 4; step++) {
                uint32_t up = component(now.above[half], step), down = component(now.below[half], step);
                const uint32_t a[4] = {widen<T>(up, 0), widen<T>(down, 0), widen<T>(up, 1), widen<T>(down, 1)};
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    const uint4& of_x = v[tile][step / 2];
                    const uint32_t b[2] = {component(of_x, step % 2 * 2), component(of_x, step % 2 * 2 + 1)};
                    mma_16816<T>(of_part[tile], a, b);
                }
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[tile][i] += of_part[tile][i] * (i < 2 ? scale_above : scale_below);
        }
        now = next;
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int i = 0; i < 4; i++) room[warp][8 * tile + 2 * t + i % 2][g + 8 * (i / 2)] = sum[tile][i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * 8 * TILES; i += 32 * WARPS) {
        int row = first + i % 16, column = x_first + i / 16;
        if (row >= n || column >= m) continue;
        float all = 0.0f;
#pragma unroll
        for (int j = 0; j < WARPS; j++) all += room[j][i / 16][i % 16];
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
                 product<T, TILES>(x, w, scales, y, Sizes{m, n, k, block_n, block_k}, wide, add))
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
