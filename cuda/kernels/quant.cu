// Products with quantised weights, y = x w^T (+ y): w [n, k] in units (quant_blocks.cuh), x [m, k] quantised here to 8 bits in
// blocks of 32, y [m, n]. For decoding and small batches; many rows go through dequant.cu and a dense product.
//
// Bound by reading w once: every 16 rows of w meet up to 64 rows of x. The weights are the 16 x 32 operand of the tensor
// core's signed bytes and 8 rows of x the other, so that 1 row and 8 cost the same, and a row's sum does not depend on its
// batch mates. (Sums of 8-bit products with a scale a block: as llama.cpp's q8_1, with the tensor core for its dp4a.)
//
// Launch: blocks of 8 warps, x over tiles of 16 or 32 rows of w, y over parts of up to 64 rows of x.

#include "quant_product.cuh"

namespace sconce_quant {

// quants and meta as in quant_product.cuh. A warp has 128 elements of a row; the last may lie beyond k and are zero then.
// Launch: 8 warps a block, x over groups of 128, y over tiles of 8 rows.
template <typename T> __device__ __forceinline__ void quantise(const T* x, uint32_t* quants, float2* meta, int m, int k) {
    int row = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= m) return;
    int at = blockIdx.x * 128 + 4 * lane;
    float v[4] = {};
    if (at < k) {
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = to_float(x[size_t(row) * k + at + i]);
    }
    float largest = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
#pragma unroll
    for (int step = 4; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    float factor = largest > 0.0f ? 127.0f / largest : 0.0f, scale = largest / 127.0f;
    uint32_t word = 0;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int q = __float2int_rn(v[i] * factor);
        sum += q;
        word |= uint32_t(q & 0xff) << (8 * i);
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    size_t place = size_t(blockIdx.x * 4 + lane / 8) * gridDim.y + blockIdx.y;
    // Of the eight words of a block the first four are side 0.
    quants[(place * 32 + row % 8 * 4 + lane % 4) * 2 + lane % 8 / 4] = word;
    if (lane % 8 == 0) meta[place * 8 + row % 8] = make_float2(scale, scale * float(sum));
}

// The first two units of each warp, one line of 128 bytes a lane: while the kernel before this one ends, memory has nothing
// else to do.
template <typename F> __device__ __forceinline__ void bring_weights(const uint8_t* w, int rows, int n, int units) {
    int tile = min(int(blockIdx.x) * rows, (n + 15) / 16 - 1);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int unit = threadIdx.x / 32 + i * WARPS, at = threadIdx.x % 32 * 128;
        if (unit < units && at < F::BYTES) prefetch(w + (size_t(tile) * units + unit) * F::BYTES + at);
    }
}

// y is f32, f16 or bf16 by `kind` 0, 1, 2, its rows `stride` elements apart. Shared memory: WARPS * 8 TILES * (16 ROWS + 1)
// floats.
template <typename F, int TILES, int ROWS>
__device__ __forceinline__ void product(const uint8_t* w, const uint2* quants, const float2* meta, void* y, int m, int n,
                                        int units, int stride, int kind, int add) {
    DYNAMIC_SHARED(float, room);
    Neighbours<TILES> rows = {quants, meta, m, (m + 7) / 8, int(blockIdx.y) * TILES};
    product_tile<F, TILES, ROWS>(w, blockIdx.x * ROWS, (n + 15) / 16, units, rows, room);
    for (int i = threadIdx.x; i < 8 * TILES * 16 * ROWS; i += 32 * WARPS) {
        int row = blockIdx.x * 16 * ROWS + i % (16 * ROWS), column = i / (16 * ROWS), x_row = blockIdx.y * 8 * TILES + column;
        if (row >= n || x_row >= m) continue;
        float all = total<TILES, ROWS>(room, column, i % (16 * ROWS));
        size_t at = size_t(x_row) * stride + row;
        if (kind == 0) {
            float* out = static_cast<float*>(y) + at;
            *out = add ? *out + all : all;
        } else if (kind == 1) {
            f16* out = static_cast<f16*>(y) + at;
            *out = from_float<f16>(add ? to_float(*out) + all : all);
        } else {
            bf16* out = static_cast<bf16*>(y) + at;
            *out = from_float<bf16>(add ? to_float(*out) + all : all);
        }
    }
}

#define QUANTISE(T)                                                                             \
    KERNEL(quantise_##T, (const T* x, uint32_t* quants, float2* meta, int m, int k),            \
           quantise<T>(x, quants, meta, m, k))
QUANTISE(f32)
QUANTISE(f16)
QUANTISE(bf16)
#undef QUANTISE

#define PRODUCT(F, TILES, ROWS, BLOCKS, NAME)                                                                          \
    KERNEL_AHEAD(256, BLOCKS, NAME##_##F,                                                                              \
              (const uint8_t* w, const uint2* quants, const float2* meta, void* y, int m, int n, int units,            \
               int stride, int kind, int add),                                                                         \
              bring_weights<F>(w, ROWS, n, units),                                                                     \
              product<F, TILES, ROWS>(w, quants, meta, y, m, n, units, stride, kind, add))
#define INSTANCE(F)                         \
    PRODUCT(F, 1, 1, 2, quant_product_8)    \
    PRODUCT(F, 2, 1, 2, quant_product_16)   \
    PRODUCT(F, 4, 2, 1, quant_product_32)   \
    PRODUCT(F, 8, 2, 1, quant_product_64)
EACH_FORMAT(INSTANCE)
#undef INSTANCE
#undef PRODUCT

}  // namespace sconce_quant
