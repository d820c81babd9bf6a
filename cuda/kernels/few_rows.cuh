// Sixteen rows of a plain weight with a few rows of x, by a block of 8 warps; see matvec.cu for the idea.
#pragma once

#include "prelude.cuh"

namespace sconce_few_rows {

constexpr int WARPS = 8, STEPS = 4, PART = 32 * STEPS;

// A lane's piece of a part: rows g and g + 8 of the sixteen, 8 elements from 8 t on of every 32.
struct Piece {
    uint4 above[STEPS], below[STEPS];
};

template <typename T> __device__ __forceinline__ uint4 load_weights(const T* from, bool wanted) {
    return wanted ? load_once(reinterpret_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
}

template <typename T>
__device__ __forceinline__ void load_piece(Piece& piece, const T* above, const T* below, int at, int k) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        piece.above[step] = load_weights(above + at + 32 * step, at + 32 * step < k);
        piece.below[step] = load_weights(below + at + 32 * step, at + 32 * step < k);
    }
}

template <int TILES> struct Room {
    float at[WARPS][8 * TILES][17];
    // Sum of a column (a row of x) and a row of the weight, in the order of warps.
    __device__ __forceinline__ float total(int column, int row) const {
        float all = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) all += at[i][column][row];
        return all;
    }
};

// Rows first.. of w [n, k] with the rows of x to which `rows` points, for each lane those of its columns 8 i + g; null is a
// row of zeros. k is a multiple of 8, all rows start at multiples of 16 bytes. Behind it the block has a barrier.
template <typename T, int TILES>
__device__ __forceinline__ void multiply(const T* const (&rows)[TILES], const T* w, int first, int n, int k,
                                         Room<TILES>& room) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    // Rows beyond the last are the last: read, not written.
    const T* above = w + size_t(min(first + g, n - 1)) * k;
    const T* below = w + size_t(min(first + g + 8, n - 1)) * k;
    float sum[TILES][4] = {};
    Piece now, next;
    load_piece(now, above, below, warp * PART + 8 * t, k);
    for (int part = warp; part * PART < k; part += WARPS) {
        load_piece(next, above, below, (part + WARPS) * PART + 8 * t, k);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            uint4 a = now.above[step], b = now.below[step];
            int at = part * PART + 32 * step + 8 * t;
            const uint32_t first_half[4] = {a.x, b.x, a.y, b.y}, second_half[4] = {a.z, b.z, a.w, b.w};
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                uint4 v = make_uint4(0, 0, 0, 0);
                if (rows[tile] && at < k) v = *reinterpret_cast<const uint4*>(rows[tile] + at);
                const uint32_t x_first[2] = {v.x, v.y}, x_second[2] = {v.z, v.w};
                mma_16816<T>(sum[tile], first_half, x_first);
                mma_16816<T>(sum[tile], second_half, x_second);
            }
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

}  // namespace sconce_few_rows
