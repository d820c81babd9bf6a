// Products with weights in FP8 (E4M3, no infinities) and their scales by a block of 8 warps: sixteen rows of w [n, k] bytes with a
// few rows of x, the arithmetic in 16 bits. fp8.cu has the layouts.
#pragma once

#include "prelude.cuh"

namespace sconce_fp8 {

constexpr int WARPS = 8, PART = 128;

struct Sizes {
    int n, k, block_n, block_k;
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

// Room for the sums of 8 TILES rows of x.
template <int TILES> struct Room {
    float at[WARPS][8 * TILES][17];
    // Sum of a column (a row of x) and a row of the weight, in the order of warps.
    __device__ __forceinline__ float total(int column, int row) const {
        float all = 0.0f;
#pragma unroll
        for (int j = 0; j < WARPS; j++) all += at[j][column][row];
        return all;
    }
};

// Rows first.. of w [n, k] with the rows of x to which `rows` points, for each lane those of its columns 8 i + g; null is a row
// of zeros. k is a multiple of 16, all rows start at multiples of 16 bytes. Behind it the block has a barrier.
template <typename T, int TILES>
__device__ __forceinline__ void multiply(const T* const (&rows)[TILES], const uint8_t* w, const float* scales, int first,
                                         const Sizes& sizes, Room<TILES>& room) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, n = sizes.n, k = sizes.k;
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
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    v[tile][i] = make_uint4(0, 0, 0, 0);
                    if (rows[tile] && at < k) v[tile][i] = *reinterpret_cast<const uint4*>(rows[tile] + at + 8 * i);
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
        for (int i = 0; i < 4; i++) room.at[warp][8 * tile + 2 * t + i % 2][g + 8 * (i / 2)] = sum[tile][i];
    }
    __syncthreads();
}

}  // namespace sconce_fp8
