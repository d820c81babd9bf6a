// Gated short convolutions in place of attention (LFM2): from each token three vectors, the product of the first and the third of
// which is convolved with that of the tokens just before it and multiplied with the second. What is convolved lies in the cache's
// blocks, a vector a token.
//
// x       [tokens, 3, width] T; bias [3, width] f32 or null, added first
// cache   [blocks, block_size, width] C; rows, contexts and tables as in attention.cuh
// taps    [taps, width] f32, the oldest token's first; tap_bias [width] f32 or null
//
// Bound by memory: a token reads its three vectors and `taps` of the cache. Launch of both: x over tokens, y over parts of 256.

#include "attention.cuh"

namespace sconce_convolution {

using sconce_attention::Batch;

template <typename T> __device__ __forceinline__ float one(const T* x, const float* bias, int part, int width, int column) {
    return to_float(x[(size_t(blockIdx.x) * 3 + part) * width + column]) + (bias ? bias[part * width + column] : 0.0f);
}

// A slot outside the cache (u32::MAX: a padded token) is not written.
template <typename T, typename C>
__device__ __forceinline__ void write(const T* x, const float* bias, const uint32_t* slots, C* cache, int width,
                                      uint32_t slots_max) {
    int column = blockIdx.y * 256 + threadIdx.x;
    uint32_t slot = slots[blockIdx.x];
    if (column >= width || slot >= slots_max) return;
    cache[size_t(slot) * width + column] = from_float<C>(one(x, bias, 0, width, column) * one(x, bias, 2, width, column));
}

// y [tokens, width] T. Every sum begins with the bias and goes from the oldest token to the own.
template <typename T, typename C>
__device__ __forceinline__ void mix(const T* x, const float* bias, const C* cache, const float* taps, const float* tap_bias,
                                    T* y, const Batch& batch, int width, int count, int block_size) {
    int token = blockIdx.x, column = blockIdx.y * 256 + threadIdx.x;
    int row = sconce_attention::row_of_tile(batch, token, 1, 1, false);
    if (column >= width) return;
    int start = int(batch.row_starts[row]), tokens = int(batch.row_starts[row + 1]) - start;
    // Of a padding row, whose context is 0, nothing is read.
    int position = token >= start + tokens ? -1 : int(batch.context_lens[row]) - tokens + (token - start);
    const uint32_t* table = batch.block_tables + batch.table_starts[row];
    float sum = tap_bias ? tap_bias[column] : 0.0f;
    for (int tap = max(count - 1 - position, 0); tap < count && position >= 0; tap++) {
        int p = position + 1 + tap - count;
        size_t place = size_t(table[p / block_size]) * block_size + p % block_size;
        sum += taps[size_t(tap) * width + column] * to_float(cache[place * width + column]);
    }
    y[size_t(token) * width + column] = from_float<T>(one(x, bias, 1, width, column) * sum);
}

#define INSTANCE(T, C)                                                                                                    \
    KERNEL_OF(256, 4, convolution_write_##T##_##C,                                                                        \
              (const T* x, const float* bias, const uint32_t* slots, C* cache, int width, uint32_t slots_max),            \
              write<T, C>(x, bias, slots, cache, width, slots_max))                                                       \
    KERNEL_OF(256, 4, convolution_mix_##T##_##C,                                                                          \
              (const T* x, const float* bias, const C* cache, const float* taps, const float* tap_bias, T* y,             \
               const uint32_t* row_starts, const uint32_t* context_lens, const uint32_t* block_tables,                    \
               const uint32_t* table_starts, int rows, int tokens, int width, int count, int block_size),                 \
              mix<T, C>(x, bias, cache, taps, tap_bias, y,                                                                \
                        Batch{row_starts, context_lens, block_tables, table_starts, rows, tokens, 0, 1}, width, count,    \
                        block_size))
#define INSTANCES(T) INSTANCE(T, f32) INSTANCE(T, f16) INSTANCE(T, bf16) INSTANCE(T, fp8)
INSTANCES(f32)
INSTANCES(f16)
INSTANCES(bf16)
#undef INSTANCES
#undef INSTANCE

}  // namespace sconce_convolution
