// The product of quantised weights with quantised rows, for one block of threads. Layouts: quant_blocks.cuh, and of the rows
//   quants [k / 32][tiles of 8 rows][32 lanes][8 bytes]: a lane's elements 4t.. and 16+4t.. of row g of the tile
//   meta   [k / 32][tiles of 8 rows][8 rows] of (scale, scale * sum of quants)
// with k up to the next multiple of 128.
#pragma once

#include "quant_blocks.cuh"

namespace sconce_quant {

constexpr int WARPS = 8;

// The rows of x that a block multiplies with: neighbours, from a tile of 8 on.
template <int TILES> struct Neighbours {
    const uint2* quants;
    const float2* meta;
    // Rows and tiles that there are, and the first tile here.
    int count, tiles, first;
    // In block `place` of k, for column tile i: a lane's elements, and scales and sums of its columns 2t and 2t + 1.
    __device__ __forceinline__ void load(int place, int i, int lane, uint2& x, float4& of_columns) const {
        int tile = place * tiles + first + i, row = (first + i) * 8;
        // Rows beyond the last are not read. What their columns hold is not written.
        if (row + lane / 4 < count) x = quants[tile * 32 + lane];
        if (row + 2 * (lane % 4) < count)
            of_columns = *reinterpret_cast<const float4*>(meta + tile * 8 + 2 * (lane % 4));
    }
};

// Any rows: each lane knows those of its columns, less than zero for none.
template <int TILES> struct Gathered {
    const uint2* quants;
    const float2* meta;
    int tiles;
    int own[TILES], pair[TILES][2];
    __device__ __forceinline__ void load(int place, int i, int lane, uint2& x, float4& of_columns) const {
        int row = own[i], first = pair[i][0], second = pair[i][1];
        if (row >= 0) x = quants[(place * tiles + row / 8) * 32 + row % 8 * 4 + lane % 4];
        if (first >= 0) {
            float2 v = meta[(place * tiles + first / 8) * 8 + first % 8];
            of_columns.x = v.x, of_columns.y = v.y;
        }
        if (second >= 0) {
            float2 v = meta[(place * tiles + second / 8) * 8 + second % 8];
            of_columns.z = v.x, of_columns.w = v.y;
        }
    }
};

// A sum of bytes' products, exact in f32: the accumulator starts at this and is a float with these bits less that float
// (an addition instead of a conversion, of which the multiprocessor has few).
constexpr int MAGIC_BITS = 0x4b400000;
__device__ __forceinline__ float from_magic(int sum) { return __int_as_float(sum) - 12582912.0f; }

__device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint2 x, const float (&scale)[2],
                                         const float4& meta) {
    int d[4] = {MAGIC_BITS, MAGIC_BITS, MAGIC_BITS, MAGIC_BITS};
    uint32_t b[2] = {x.x, x.y};
    mma_16832_i8(d, a, b);
    sum[0] += from_magic(d[0]) * (scale[0] * meta.x);
    sum[1] += from_magic(d[1]) * (scale[0] * meta.z);
    sum[2] += from_magic(d[2]) * (scale[1] * meta.x);
    sum[3] += from_magic(d[3]) * (scale[1] * meta.z);
}

// A tile of weights in one block of 32 of k, as operands.
template <typename F> struct Operand {
    uint32_t a[4], offsets[4];
    float scale[2], other[2], offset[2];
    __device__ __forceinline__ void prepare(const F& piece, int b) {
        piece.words(0, b, a[0], a[2]);
        piece.words(1, b, a[1], a[3]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            scale[half] = piece.scale(half, b, 0);
            if constexpr (F::SPLIT) other[half] = piece.scale(half, b, 1);
            if constexpr (F::HAS_OFFSET) offset[half] = piece.offset(half, b, 0);
            if constexpr (F::HAS_BYTE_OFFSET) offset[half] = piece.offset_scale(half);
        }
        if constexpr (F::HAS_BYTE_OFFSET) {
            piece.offset_words(0, b, offsets[0], offsets[2]);
            piece.offset_words(1, b, offsets[1], offsets[3]);
        }
    }
    // With a tile of rows of x.
    __device__ __forceinline__ void multiply_with(float (&sum)[4], uint2 x, const float4& meta) const {
        if constexpr (F::SPLIT) {
            const uint32_t first[4] = {a[0], a[1], 0, 0}, second[4] = {0, 0, a[2], a[3]};
            multiply(sum, first, x, scale, meta);
            multiply(sum, second, x, other, meta);
        } else {
            multiply(sum, a, x, scale, meta);
        }
        if constexpr (F::HAS_OFFSET) {
            sum[0] += offset[0] * meta.y;
            sum[1] += offset[0] * meta.w;
            sum[2] += offset[1] * meta.y;
            sum[3] += offset[1] * meta.w;
        }
        if constexpr (F::HAS_BYTE_OFFSET) multiply(sum, offsets, x, offset, meta);
    }
};

// ROWS * 16 rows of the weight from `first_tile` on (of `tiles_all`) with TILES * 8 rows of x. The warps take every eighth unit of k; with few rows of x the next unit is in flight while one is multiplied. Sums
// meet in `room` [WARPS][8 TILES][16 ROWS + 1], in the order of warps; behind it the block has a barrier.
template <typename F, int TILES, int ROWS, typename Rows>
__device__ __forceinline__ void product_tile(const uint8_t* w, int first_tile, int tiles_all, int units, const Rows& rows,
                                             float* room) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint8_t* at[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        // Tiles beyond the last are the last: read, not written.
        int tile = min(first_tile + r, tiles_all - 1);
        at[r] = w + size_t(tile) * units * F::BYTES;
    }
    float sum[ROWS][TILES][4] = {};
    // Ahead of time only where there are registers for it.
    constexpr bool IS_AHEAD = ROWS == 1 && TILES <= 2;
    F now[ROWS], next;
    if (IS_AHEAD && warp < units) next.load(at[0] + size_t(warp) * F::BYTES, lane);
    for (int unit = warp; unit < units; unit += WARPS) {
        if constexpr (IS_AHEAD) {
            now[0] = next;
            if (unit + WARPS < units) next.load(at[0] + size_t(unit + WARPS) * F::BYTES, lane);
        } else {
#pragma unroll
            for (int r = 0; r < ROWS; r++) now[r].load(at[r] + size_t(unit) * F::BYTES, lane);
        }
#pragma unroll
        for (int b = 0; b < 4 * F::GROUPS; b++) {
            Operand<F> operands[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) operands[r].prepare(now[r], b);
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                // Keeps the compiler from loading rows of x further ahead than there are registers for.
                if (!IS_AHEAD && i % 4 == 0) __syncwarp();
                uint2 x = make_uint2(0, 0);
                float4 meta = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                rows.load(unit * 4 * F::GROUPS + b, i, lane, x, meta);
#pragma unroll
                for (int r = 0; r < ROWS; r++) operands[r].multiply_with(sum[r][i], x, meta);
            }
        }
    }
    constexpr int STRIDE = 16 * ROWS + 1;
    room += warp * 8 * TILES * STRIDE;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int i = 0; i < TILES; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++)
                room[(8 * i + 2 * t + j % 2) * STRIDE + 16 * r + g + 8 * (j / 2)] = sum[r][i][j];
        }
    }
    __syncthreads();
}

// What the warps left in `room` for a column (a row of x) and a row (of the weight).
template <int TILES, int ROWS> __device__ __forceinline__ float total(const float* room, int column, int row) {
    constexpr int STRIDE = 16 * ROWS + 1;
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) all += room[(i * 8 * TILES + column) * STRIDE + row];
    return all;
}

}  // namespace sconce_quant
