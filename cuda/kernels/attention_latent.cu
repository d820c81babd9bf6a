// Attention over latents (DeepSeek-V2, arXiv 2405.04434) on tensor cores: the cache has one vector a token, whose whole is every
// head's key and whose last RANK elements are every head's value. See attention.cuh for batches, tables and splits.
//
// q      [tokens, heads, ROTATED + RANK] T
// cache  [blocks, block_size, ROTATED + RANK] T
// out    [tokens, heads, RANK] T; sums of splits likewise
//
// A block takes 16 packed rows (the heads of a token follow each other) and a split of the context, 32 positions at a time, which
// are copied beside the arithmetic. A warp has the scores of 8 positions, then, of all of them, a fourth of the output's columns.
// Bound by bytes for one token a row (a vector is read once for 16 heads), else by shared memory: 16 rows are few for its loads.
// Launch: blocks (tiles, 1, splits) of 128 threads, 97 KiB of shared memory: two blocks a multiprocessor of sm_90, one of sm_80.
// Unmeasured: no GPU was at hand.

#include "attention.cuh"

namespace sconce_attention {

template <typename T, int ROTATED, int RANK> struct LatentRoom {
    static constexpr int WIDTH = ROTATED + RANK, ROWS = 16, KV = 32;
    // An odd number of 16 bytes: the eight rows of a matrix load stand in different banks.
    static constexpr int STRIDE = WIDTH + 8, P_STRIDE = KV + 8, S_STRIDE = KV + 4;
    T q[ROWS * STRIDE];
    T ring[2][KV * STRIDE];
    T p[ROWS * P_STRIDE];
    float s[ROWS * S_STRIDE], factor[ROWS], largest[ROWS], sum[ROWS];
};

template <typename T, int ROTATED, int RANK> struct LatentFlash {
    using Room = LatentRoom<T, ROTATED, RANK>;
    static constexpr int WIDTH = Room::WIDTH, ROWS = Room::ROWS, KV = Room::KV, CHUNKS = WIDTH / 8, O_TILES = RANK / 32;
    static_assert(WIDTH % 32 == 0 && RANK % 64 == 0, "whole loads of matrices, and pairs of them for each warp");

    Room& room;
    Heads h;
    Tile tile;
    int warp, lane, shift;

    // The vectors of a tile of positions; those that no row sees are zeros.
    __device__ __forceinline__ void load(int stage, int number, const uint32_t* table, const T* cache) const {
        for (int row = warp; row < KV; row += 4) {
            int p = number * KV + row;
            bool wanted = p <= tile.highest;
            const T* from = cache + size_t(wanted ? cache_row(table, p, h, 0, shift) : 0) * WIDTH;
            T* to = room.ring[stage] + row * Room::STRIDE;
            for (int chunk = lane; chunk < CHUNKS; chunk += 32) copy_async_16(to + chunk * 8, from + chunk * 8, wanted);
        }
        copy_async_commit();
    }

    __device__ __forceinline__ void load_queries(const T* q) const {
        for (int row = warp; row < ROWS; row += 4) {
            int packed = tile.first + row;
            bool wanted = packed < tile.packed;
            size_t token_head = size_t(tile.token) * h.heads + (wanted ? packed : 0);
            for (int chunk = lane; chunk < CHUNKS; chunk += 32)
                copy_async_16(room.q + row * Room::STRIDE + chunk * 8, q + token_head * WIDTH + chunk * 8, wanted);
        }
    }

    // The products of all rows with this warp's 8 positions.
    __device__ __forceinline__ void score(const T* vectors) const {
        float s[2][4] = {};
        const T* own = room.q + lane % 16 * Room::STRIDE + lane / 16 * 8;
        const T* keys = vectors + (warp * 8 + lane % 8) * Room::STRIDE + lane / 8 * 8;
#pragma unroll 6
        for (int k = 0; k < WIDTH; k += 32) {
            uint32_t a[2][4], four[4];
            load_matrix_x4(a[0], own + k);
            load_matrix_x4(a[1], own + k + 16);
            load_matrix_x4(four, keys + k);
            const uint32_t b[2][2] = {{four[0], four[1]}, {four[2], four[3]}};
            mma_16816<T>(s[0], a[0], b[0]);
            mma_16816<T>(s[1], a[1], b[1]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + 8 * (i / 2), column = warp * 8 + lane % 4 * 2 + i % 2;
            room.s[row * Room::S_STRIDE + column] = s[0][i] + s[1][i];
        }
    }

    // Weights of a tile of positions from its scores: eight threads a row.
    __device__ __forceinline__ void weigh(int number, float scale) const {
        int row = threadIdx.x / 8, part = threadIdx.x % 8, packed = tile.first + row;
        int own = packed < tile.packed ? tile.position(packed, h.heads) : -1;
        float score[KV / 8], most = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < KV / 8; i++) {
            int column = part + 8 * i;
            bool seen = number * KV + column <= own;
            score[i] = seen ? room.s[row * Room::S_STRIDE + column] * scale * LOG2_E : -INFINITY;
            most = fmaxf(most, score[i]);
        }
#pragma unroll
        for (int step = 4; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, step));
        float before = room.largest[row];
        most = fmaxf(most, before);
#pragma unroll
        for (int i = 0; i < KV / 8; i++) {
            // Without anything seen so far there is nothing to be relative to.
            float weight = score[i] == -INFINITY ? 0.0f : exp2_fast(score[i] - most);
            T rounded = from_float<T>(weight);
            room.p[row * Room::P_STRIDE + part + 8 * i] = rounded;
            sum += to_float(rounded);
        }
#pragma unroll
        for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
        if (part == 0) {
            float factor = before == -INFINITY ? 0.0f : exp2_fast(before - most);
            room.factor[row] = factor;
            room.largest[row] = most;
            room.sum[row] = room.sum[row] * factor + sum;
        }
    }

    // o = factor o + p v for this warp's columns.
    __device__ __forceinline__ void mix(const T* vectors, float (&o)[O_TILES][4]) const {
        float above = room.factor[lane / 4], below = room.factor[lane / 4 + 8];
#pragma unroll
        for (int n = 0; n < O_TILES; n++) o[n][0] *= above, o[n][1] *= above, o[n][2] *= below, o[n][3] *= below;
#pragma unroll
        for (int j = 0; j < KV / 16; j++) {
            uint32_t a[4];
            load_matrix_x4(a, room.p + lane % 16 * Room::P_STRIDE + j * 16 + lane / 16 * 8);
            const T* row = vectors + (j * 16 + lane % 16) * Room::STRIDE + ROTATED + warp * (RANK / 4) + lane / 16 * 8;
#pragma unroll
            for (int n = 0; n < O_TILES; n += 2) {
                uint32_t four[4];
                load_matrix_x4_transposed(four, row + n * 8);
                const uint32_t b[2][2] = {{four[0], four[1]}, {four[2], four[3]}};
                mma_16816<T>(o[n], a, b[0]);
                mma_16816<T>(o[n + 1], a, b[1]);
            }
        }
    }

    __device__ __forceinline__ void store(const float (&o)[O_TILES][4], T* out, const Workspace& workspace,
                                          const Batch& batch) const {
        Partials partials(workspace, batch.tokens, Heads{h.heads, 1, RANK, 1});
#pragma unroll
        for (int side = 0; side < 2; side++) {
            int row = lane / 4 + 8 * side, packed = tile.first + row;
            if (packed >= tile.packed) continue;
            size_t token_head = size_t(tile.token) * h.heads + packed;
            float largest = room.largest[row], sum = room.sum[row], factor = share(largest, sum, nullptr, 0);
            size_t at = token_head * RANK + warp * (RANK / 4) + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < O_TILES; n++) {
                float first = o[n][2 * side], second = o[n][2 * side + 1];
                if (workspace.splits == 1) {
                    *reinterpret_cast<uint32_t*>(out + at + n * 8) = pack_two<T>(first * factor, second * factor);
                } else {
                    float* to = partials.sums + blockIdx.z * partials.step + at + n * 8;
                    *reinterpret_cast<float2*>(to) = make_float2(first, second);
                }
            }
            if (workspace.splits > 1 && warp == 0 && lane % 4 == 0) partials.lay_down(token_head, blockIdx.z, largest, sum);
        }
    }

    __device__ __forceinline__ void run(const T* q, const T* cache, T* out, const Workspace& workspace, const Batch& batch,
                                        float scale) {
        if (!find_tile(batch, blockIdx.x, h.heads, ROWS, tile)) return;
        warp = threadIdx.x / 32, lane = threadIdx.x % 32, shift = shift_of(h);
        const uint32_t* table = batch.block_tables + batch.table_starts[tile.row];
        int2 part = tiles_of_split(0, tile.highest + 1, KV, blockIdx.z, workspace.splits);
        float o[O_TILES][4] = {};
        load_queries(q);
        if (part.x < part.y) load(0, part.x, table, cache);
        if (threadIdx.x < ROWS) {
            room.largest[threadIdx.x] = -INFINITY;
            room.sum[threadIdx.x] = 0.0f;
        }
        for (int number = part.x; number < part.y; number++) {
            const T* vectors = room.ring[(number - part.x) % 2];
            copy_async_wait<0>();
            __syncthreads();
            if (number + 1 < part.y) load((number + 1 - part.x) % 2, number + 1, table, cache);
            score(vectors);
            __syncthreads();
            weigh(number, scale);
            __syncthreads();
            mix(vectors, o);
        }
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        store(o, out, workspace, batch);
    }
};

template <typename T, int ROTATED, int RANK>
__device__ void attend_latents(const T* q, const T* cache, T* out, const Workspace& workspace, const Batch& batch, int heads,
                               int block_size, float scale) {
    using Room = LatentRoom<T, ROTATED, RANK>;
    DYNAMIC_SHARED(Room, room);
    LatentFlash<T, ROTATED, RANK> flash{*room, Heads{heads, 1, ROTATED + RANK, block_size}, {}, 0, 0, 0};
    flash.run(q, cache, out, workspace, batch, scale);
}

#define INSTANCE(T, ROTATED, RANK)                                                                                      \
    KERNEL_OF(128, 1, attention_latent_##T##_##ROTATED##_##RANK,                                                        \
              (const T* q, const T* cache, T* out, float* workspace, const uint32_t* row_starts,                        \
               const uint32_t* context_lens, const uint32_t* block_tables, const uint32_t* table_starts, int rows,      \
               int tokens, int tiles_per_row, int heads, int block_size, float scale, int splits),                      \
              attend_latents<T, ROTATED, RANK>(                                                                         \
                  q, cache, out, Workspace{workspace, nullptr, splits},                                                 \
                  Batch{row_starts, context_lens, block_tables, table_starts, rows, tokens, tiles_per_row, 1}, heads,   \
                  block_size, scale))
INSTANCE(f16, 64, 512)
INSTANCE(bf16, 64, 512)
INSTANCE(f16, 32, 256)
INSTANCE(bf16, 32, 256)
#undef INSTANCE

}  // namespace sconce_attention
