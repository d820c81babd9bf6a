// Flash attention over a paged cache on tensor cores (arXiv 2205.14135, 2307.08691): the body of the decode and the
// prefill kernels. See attention.cuh for all layouts.
#pragma once

#include "attention.cuh"

namespace sconce_attention {

// Flash attention of one tile: either WARPS_M warps with TILES times 16 packed rows each, over all positions, or
// WARPS_N warps with the same rows, which deal out the positions; the other number is 1. KV positions of K and V at a
// time come through a ring of STAGES stages of shared memory beside the arithmetic. Rows of shared memory are 16 bytes
// longer than the data, an odd number of 16 bytes in all: the eight rows of a matrix load then stand in different
// banks.
//
// An fp8 cache stays fp8 in shared memory. A lane takes four neighbouring elements of a row of K at once as its k 2t,
// 2t+1, 2t+8, 2t+9, and Q is laid down in that order, too; V is loaded transposed in pairs of bytes, so that of each 16
// columns one product has the even ones and the next the odd ones (`column_of`).
template <typename T, typename C, int D, int TILES, int WARPS_M, int WARPS_N, int KV, int STAGES> struct Flash {
    static constexpr bool NARROW = sizeof(C) == 1;
    static constexpr int THREADS = 32 * WARPS_M * WARPS_N, LOADERS = 32 * WARPS_M, ROWS = 16 * TILES * WARPS_M;
    static constexpr int Q_STRIDE = D + 8, KV_STRIDE = D * int(sizeof(C)) + 16, STAGE = 2 * KV * KV_STRIDE;
    static constexpr int CHUNKS = D * int(sizeof(C)) / 16, IN_CHUNK = 16 / int(sizeof(C)), NAMED = (KV + 31) / 32;
    static constexpr int S_TILES = KV / 8, O_TILES = D / 8;
    static_assert(WARPS_M == 1 || WARPS_N == 1, "warps share rows or positions");
    static_assert(KV % 16 == 0 && KV <= 64 && D % 32 == 0, "whole products of a tensor core");
    static_assert(LOADERS % CHUNKS == 0 && KV * CHUNKS % LOADERS == 0, "the same columns of every row for a thread");

    Heads h;
    Tile tile;
    int kv_head, group, lane, warp_m, warp_n, shift;
    T* q_room;
    unsigned char* ring;

    // For each position of this warp's part of a KV tile its row in the cache: lane i has that of position i (and 32 +
    // i).
    __device__ __forceinline__ void name_rows(uint32_t (&named)[NAMED], const uint32_t* table, int start, int from,
                                              int to) const {
#pragma unroll
        for (int i = 0; i < NAMED; i++) {
            int p = start + 32 * i + lane;
            bool wanted = 32 * i + lane < KV && p >= from && p < to;
            named[i] = wanted ? cache_row(table, p, h, kv_head, shift) : NOWHERE;
        }
    }

    // A thread copies the same 16 bytes of rows that are LOADERS / CHUNKS apart.
    __device__ __forceinline__ void load(int stage, const uint32_t (&named)[NAMED], const C* k, const C* v) const {
        uint32_t loader = WARPS_M == 1 ? uint32_t(lane) : threadIdx.x, first = loader / CHUNKS, chunk = loader % CHUNKS;
        unsigned char* room = ring + stage * STAGE + first * KV_STRIDE + chunk * 16;
        bool column = int(chunk * IN_CHUNK) < h.head_dim;
        const C *keys = k + chunk * IN_CHUNK, *values = v + chunk * IN_CHUNK;
#pragma unroll
        for (int i = 0; i < KV * CHUNKS / LOADERS; i++) {
            uint32_t row = first + i * (LOADERS / CHUNKS), at = __shfl_sync(ALL_LANES, named[0], row % 32);
            if (NAMED == 2) {
                uint32_t other = __shfl_sync(ALL_LANES, named[NAMED - 1], row % 32);
                at = row < 32 ? at : other;
            }
            bool wanted = at != NOWHERE && column;
            size_t from = size_t(wanted ? at : 0) * uint32_t(h.head_dim);
            unsigned char* to = room + i * (LOADERS / CHUNKS) * KV_STRIDE;
            copy_async_16(to, keys + from, wanted);
            copy_async_16(to + KV * KV_STRIDE, values + from, wanted);
        }
    }

    // The tile's queries into shared memory, zeros for rows and columns that do not exist.
    __device__ __forceinline__ void load_queries(const T* q) const {
        for (int index = threadIdx.x; index < ROWS * (D / 8); index += THREADS) {
            int row = index / (D / 8), column = index % (D / 8) * 8, packed = tile.first + row;
            Vec<T> values;
#pragma unroll
            for (int i = 0; i < 8; i++) values.at[i] = from_float<T>(0.0f);
            if (packed < tile.packed && column < h.head_dim) {
                size_t token_head = token_head_of(packed);
                values = load_vec(q + token_head * h.head_dim + column);
            }
            T* to = q_room + row * Q_STRIDE + column;
            if (!NARROW) {
                store_vec(to, values);
            } else {
                const uint32_t* pairs = reinterpret_cast<const uint32_t*>(&values);
                T* sixteen = q_room + row * Q_STRIDE + column / 16 * 16;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int two = column % 16 / 4 + i / 2;
                    *reinterpret_cast<uint32_t*>(sixteen + i % 2 * 8 + 2 * two) = pairs[i];
                }
            }
        }
    }

    // s = q k^T for this warp's rows and the positions of a stage.
    __device__ __forceinline__ void multiply_keys(const unsigned char* keys, float (&s)[TILES][S_TILES][4]) const {
        const T* own = q_room + (warp_m * TILES * 16 + lane % 16) * Q_STRIDE + lane / 16 * 8;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t a[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; m++) load_matrix_x4(a[m], own + m * 16 * Q_STRIDE + k * 16);
#pragma unroll
            for (int n = 0; n < S_TILES; n += 2) {
                uint32_t b[2][2];
                if (NARROW) {
                    const unsigned char* at = keys + (n * 8 + lane / 4) * KV_STRIDE + k * 16 + lane % 4 * 4;
                    four_of_fp8<T>(b[0], *reinterpret_cast<const uint32_t*>(at));
                    four_of_fp8<T>(b[1], *reinterpret_cast<const uint32_t*>(at + 8 * KV_STRIDE));
                } else {
                    uint32_t four[4];
                    int row = n * 8 + lane % 8 + lane / 16 * 8;
                    load_matrix_x4(four, keys + row * KV_STRIDE + (k * 16 + lane / 8 % 2 * 8) * int(sizeof(C)));
                    b[0][0] = four[0], b[0][1] = four[1], b[1][0] = four[2], b[1][1] = four[3];
                }
#pragma unroll
                for (int m = 0; m < TILES; m++) {
                    mma_16816<T>(s[m][n], a[m], b[0]);
                    mma_16816<T>(s[m][n + 1], a[m], b[1]);
                }
            }
        }
    }

    // o += p v for the weights p of a stage's positions.
    __device__ __forceinline__ void multiply_values(const unsigned char* values, const float (&p)[TILES][S_TILES][4],
                                                    float (&o)[TILES][O_TILES][4]) const {
#pragma unroll
        for (int j = 0; j < KV / 16; j++) {
            uint32_t a[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; m++) {
                a[m][0] = pack_two<T>(p[m][2 * j][0], p[m][2 * j][1]);
                a[m][1] = pack_two<T>(p[m][2 * j][2], p[m][2 * j][3]);
                a[m][2] = pack_two<T>(p[m][2 * j + 1][0], p[m][2 * j + 1][1]);
                a[m][3] = pack_two<T>(p[m][2 * j + 1][2], p[m][2 * j + 1][3]);
            }
            const unsigned char* row = values + (j * 16 + lane % 16) * KV_STRIDE + lane / 16 * 16;
#pragma unroll
            for (int n = 0; n < O_TILES; n += NARROW ? 4 : 2) {
                uint32_t four[4], b[4][2];
                load_matrix_x4_transposed(four, row + n * 8 * int(sizeof(C)));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    if (NARROW) {
                        uint32_t early[2], late[2];
                        four_of_fp8<T>(early, __byte_perm(four[2 * i], 0, 0x3120));
                        four_of_fp8<T>(late, __byte_perm(four[2 * i + 1], 0, 0x3120));
                        b[2 * i][0] = early[0], b[2 * i][1] = late[0];
                        b[2 * i + 1][0] = early[1], b[2 * i + 1][1] = late[1];
                    } else {
                        b[i][0] = four[2 * i], b[i][1] = four[2 * i + 1];
                    }
                }
#pragma unroll
                for (int m = 0; m < TILES; m++)
#pragma unroll
                    for (int i = 0; i < (NARROW ? 4 : 2); i++) mma_16816<T>(o[m][n + i], a[m], b[i]);
            }
        }
    }

    // Two neighbouring columns of what a lane has of a row's output: the first of them, and both values.
    __device__ __forceinline__ int column_of(const float (&o)[O_TILES][4], int n, int half, float& first,
                                             float& second) const {
        if (NARROW) {
            first = o[n / 2 * 2][2 * half + n % 2], second = o[n / 2 * 2 + 1][2 * half + n % 2];
            return n / 2 * 16 + lane % 4 * 4 + n % 2 * 2;
        }
        first = o[n][2 * half], second = o[n][2 * half + 1];
        return n * 8 + lane % 4 * 2;
    }

    __device__ void run(const T* q, const C* k, const C* v, T* out, const Workspace& workspace, const Batch& batch,
                        const Scores& scores) {
        lane = threadIdx.x % 32;
        warp_m = WARPS_M == 1 ? 0 : threadIdx.x / 32, warp_n = WARPS_N == 1 ? 0 : threadIdx.x / 32;
        kv_head = blockIdx.y, group = h.heads / h.kv_heads, shift = shift_of(h);
        // The last tiles of a row see the most: they begin first.
        if (!find_tile(batch, gridDim.x - 1 - blockIdx.x, group, ROWS, tile)) return;
        DYNAMIC_SHARED(unsigned char, room);
        q_room = reinterpret_cast<T*>(room);
        ring = room + ROWS * Q_STRIDE * int(sizeof(T)) + warp_n * STAGES * STAGE;
        const uint32_t* table = batch.block_tables + batch.table_starts[tile.row];
        int from = max(tile.lowest + 1 - scores.window, 0), to = tile.highest + 1;
        int2 part = tiles_of_split(from, to, KV * WARPS_N, blockIdx.z, workspace.splits);
        uint32_t named[NAMED];
        int own = warp_n * KV;
#pragma unroll
        for (int stage = 0; stage < STAGES - 1; stage++) {
            if (part.x + stage < part.y) {
                name_rows(named, table, (part.x + stage) * KV * WARPS_N + own, from, to);
                load(stage, named, k, v);
            }
            copy_async_commit();
        }
        name_rows(named, table, (part.x + STAGES - 1) * KV * WARPS_N + own, from, to);
        load_queries(q);
        __syncthreads();

        float o[TILES][O_TILES][4], largest[TILES][2], sum[TILES][2];
        int position[TILES][2];
#pragma unroll
        for (int m = 0; m < TILES; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = tile.first + (warp_m * TILES + m) * 16 + half * 8 + lane / 4;
                position[m][half] = tile.position(row, group);
                largest[m][half] = -INFINITY, sum[m][half] = 0.0f;
            }
#pragma unroll
            for (int n = 0; n < O_TILES; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) o[m][n][i] = 0.0f;
        }
        int reach = tile.position(min(tile.first + (warp_m + 1) * TILES * 16, tile.packed) - 1, group);
        // Of a decode step's row among prompts only one warp has queries; the others help to copy.
        bool idle = tile.first + warp_m * TILES * 16 >= tile.packed;
        int stage = 0;
        for (int i = part.x; i < part.y; i++) {
            copy_async_wait<STAGES - 2>();
            if (WARPS_M == 1) __syncwarp();
            else __syncthreads();
            if (i + STAGES - 1 < part.y) load(stage == 0 ? STAGES - 1 : stage - 1, named, k, v);
            copy_async_commit();
            name_rows(named, table, (i + STAGES) * KV * WARPS_N + own, from, to);
            int start = i * KV * WARPS_N + own;
            if (!idle && start <= reach) {
                const unsigned char* keys = ring + stage * STAGE;
                bool whole = start + KV - 1 <= tile.lowest && start > tile.highest - scores.window;
                step(keys, start, whole, scores, position, o, largest, sum);
            }
            stage = stage == STAGES - 1 ? 0 : stage + 1;
        }
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int other = 1; other < 4; other *= 2)
                    sum[m][half] += __shfl_xor_sync(ALL_LANES, sum[m][half], other);
        if (WARPS_N > 1) finish_together(o[0], largest[0], sum[0], room, out, workspace, batch.tokens, scores);
        else finish(o, largest, sum, out, workspace, batch.tokens, scores);
    }

    // Scores, weights and sums of one stage.
    __device__ __forceinline__ void step(const unsigned char* keys, int start, bool whole, const Scores& scores,
                                         const int (&position)[TILES][2], float (&o)[TILES][O_TILES][4],
                                         float (&largest)[TILES][2], float (&sum)[TILES][2]) const {
        float s[TILES][S_TILES][4];
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int n = 0; n < S_TILES; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) s[m][n][i] = 0.0f;
        multiply_keys(keys, s);
        // What an exponent of two takes is the product times `unit`; a capped score is one already.
        float unit = scores.scale * LOG2_E;
        if (scores.softcap > 0.0f) {
            Cap cap(scores);
            unit = 1.0f;
#pragma unroll
            for (int m = 0; m < TILES; m++)
#pragma unroll
                for (int n = 0; n < S_TILES; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) s[m][n][i] = cap.of(s[m][n][i]);
        }
        if (!whole) {
#pragma unroll
            for (int m = 0; m < TILES; m++)
#pragma unroll
                for (int n = 0; n < S_TILES; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int p = start + n * 8 + lane % 4 * 2 + i % 2;
                        s[m][n][i] = sees(position[m][i / 2], p, scores.window) ? s[m][n][i] : -INFINITY;
                    }
        }
        float factor[TILES][2];
        bool grown = false;
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float most = -INFINITY;
#pragma unroll
                for (int n = 0; n < S_TILES; n++) most = fmaxf(most, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
                most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
                most = fmaxf(largest[m][half], most * unit);
                // Rows that have seen nothing yet take no weights from an infinite base.
                float base = most == -INFINITY ? 0.0f : most, total = 0.0f;
                factor[m][half] = exp2_fast(largest[m][half] - base);
                grown = grown || most > largest[m][half];
                largest[m][half] = most;
#pragma unroll
                for (int n = 0; n < S_TILES; n++)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++) {
                        s[m][n][i] = exp2_fast(fmaf(s[m][n][i], unit, -base));
                        total += s[m][n][i];
                    }
                sum[m][half] = sum[m][half] * factor[m][half] + total;
            }
        // Behind the first stages the largest score seldom grows.
        if (__any_sync(ALL_LANES, grown)) {
#pragma unroll
            for (int m = 0; m < TILES; m++)
#pragma unroll
                for (int n = 0; n < O_TILES; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) o[m][n][i] *= factor[m][i / 2];
        }
        multiply_values(keys + KV * KV_STRIDE, s, o);
    }

    // Where warps have rows of their own: out of the registers, over the queries' place where that makes accesses
    // whole.
    __device__ __forceinline__ void finish(const float (&o)[TILES][O_TILES][4], const float (&largest)[TILES][2],
                                           const float (&sum)[TILES][2], T* out, const Workspace& workspace, int tokens,
                                           const Scores& scores) const {
        T* own = q_room + warp_m * TILES * 16 * Q_STRIDE;
        // Before the other lanes' last reads of the queries nothing may be put in their place.
        __syncwarp();
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = m * 16 + half * 8 + lane / 4, packed = tile.first + warp_m * TILES * 16 + row;
                if (packed >= tile.packed) continue;
                int head = kv_head * group + packed % group;
                size_t token_head = token_head_of(packed);
                float first, second;
                if (workspace.splits == 1) {
                    float factor = share(largest[m][half], sum[m][half], scores.sinks, head);
#pragma unroll
                    for (int n = 0; n < O_TILES; n++) {
                        int column = column_of(o[m], n, half, first, second);
                        uint32_t two = pack_two<T>(first * factor, second * factor);
                        *reinterpret_cast<uint32_t*>(own + row * Q_STRIDE + column) = two;
                    }
                } else {
                    Partials partials(workspace, tokens, h);
                    float* to = partials.sums + blockIdx.z * partials.step + token_head * h.head_dim;
#pragma unroll
                    for (int n = 0; n < O_TILES; n++) {
                        int column = column_of(o[m], n, half, first, second);
                        if (column < h.head_dim) *reinterpret_cast<float2*>(to + column) = make_float2(first, second);
                    }
                    if (lane % 4 == 0) partials.lay_down(token_head, blockIdx.z, largest[m][half], sum[m][half]);
                }
            }
        if (workspace.splits > 1) return;
        __syncwarp();
        for (int index = lane; index < TILES * 16 * (D / 8); index += 32) {
            int row = index / (D / 8), column = index % (D / 8) * 8;
            int packed = tile.first + warp_m * TILES * 16 + row;
            if (packed >= tile.packed || column >= h.head_dim) continue;
            size_t token_head = token_head_of(packed);
            store_vec(out + token_head * h.head_dim + column, load_vec(own + row * Q_STRIDE + column));
        }
    }

    // Where warps have positions of their own: their sums are brought to one scale through the ring's memory.
    __device__ __forceinline__ void finish_together(const float (&o)[O_TILES][4], const float (&largest)[2],
                                                    const float (&sum)[2], unsigned char* room, T* out,
                                                    const Workspace& workspace, int tokens,
                                                    const Scores& scores) const {
        float* sums = reinterpret_cast<float*>(room + ROWS * Q_STRIDE * int(sizeof(T)));
        float* scales = sums + WARPS_N * 16 * D;
        copy_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = warp_n * 16 + half * 8 + lane / 4;
#pragma unroll
            for (int n = 0; n < O_TILES; n++) {
                float first, second;
                int column = column_of(o, n, half, first, second);
                *reinterpret_cast<float2*>(sums + row * D + column) = make_float2(first, second);
            }
            if (lane % 4 == 0) *reinterpret_cast<float2*>(scales + 2 * row) = make_float2(largest[half], sum[half]);
        }
        __syncthreads();
        int valid = min(tile.packed - tile.first, 16);
        for (int index = threadIdx.x; index < valid * (D / 4); index += THREADS) {
            int row = index / (D / 4), column = index % (D / 4) * 4, packed = tile.first + row;
            if (column >= h.head_dim) continue;
            float most = -INFINITY, total = 0.0f, at[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int warp = 0; warp < WARPS_N; warp++) most = fmaxf(most, scales[2 * (warp * 16 + row)]);
#pragma unroll
            for (int warp = 0; warp < WARPS_N; warp++) {
                const float* scale = scales + 2 * (warp * 16 + row);
                float weight = scale[1] > 0.0f ? exp2_fast(scale[0] - most) : 0.0f;
                const float4 four = *reinterpret_cast<const float4*>(sums + (warp * 16 + row) * D + column);
                total += scale[1] * weight;
                at[0] += four.x * weight, at[1] += four.y * weight, at[2] += four.z * weight, at[3] += four.w * weight;
            }
            int head = kv_head * group + packed % group;
            size_t token_head = token_head_of(packed);
            if (workspace.splits == 1) {
                float factor = share(most, total, scores.sinks, head);
                uint32_t low = pack_two<T>(at[0] * factor, at[1] * factor);
                uint32_t high = pack_two<T>(at[2] * factor, at[3] * factor);
                *reinterpret_cast<uint2*>(out + token_head * h.head_dim + column) = make_uint2(low, high);
            } else {
                Partials partials(workspace, tokens, h);
                float* to = partials.sums + blockIdx.z * partials.step + token_head * h.head_dim + column;
                *reinterpret_cast<float4*>(to) = make_float4(at[0], at[1], at[2], at[3]);
                if (column == 0) partials.lay_down(token_head, blockIdx.z, most, total);
            }
        }
        if (workspace.splits > 1 && workspace.counters) finish_last(sums, valid, out, workspace, tokens, scores);
    }

    // The last block of a tile's splits brings all of them together, in the order of the splits.
    __device__ __forceinline__ void finish_last(float* room, int valid, T* out, const Workspace& workspace, int tokens,
                                                const Scores& scores) const {
        uint32_t* counter = workspace.counters + blockIdx.y * gridDim.x + blockIdx.x;
        uint32_t* last = reinterpret_cast<uint32_t*>(room) + 16 * 32;
        // Every thread's sums are there for others before this block is counted.
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            *last = atomicAdd(counter, 1u) == uint32_t(workspace.splits - 1);
            if (*last) *counter = 0;
        }
        __syncthreads();
        if (!*last) return;
        __threadfence();
        Partials partials(workspace, tokens, h);
        for (int row = warp_n; row < valid; row += WARPS_N) {
            int packed = tile.first + row, head = kv_head * group + packed % group;
            room[row * 32 + lane] = partials.weight(token_head_of(packed), scores.sinks, head);
        }
        __syncthreads();
        for (int index = threadIdx.x; index < valid * (D / 4); index += THREADS) {
            int row = index / (D / 4), column = index % (D / 4) * 4;
            if (column >= h.head_dim) continue;
            size_t at = token_head_of(tile.first + row) * h.head_dim + column;
            float all[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
            for (int split = 0; split < workspace.splits; split++) {
                float weight = room[row * 32 + split];
                if (weight == 0.0f) continue;
                float4 four = load_fresh(reinterpret_cast<const float4*>(partials.sums + split * partials.step + at));
                all[0] += four.x * weight, all[1] += four.y * weight;
                all[2] += four.z * weight, all[3] += four.w * weight;
            }
            uint2 four = make_uint2(pack_two<T>(all[0], all[1]), pack_two<T>(all[2], all[3]));
            *reinterpret_cast<uint2*>(out + at) = four;
        }
    }

    // A packed row's place among all heads of all tokens.
    __device__ __forceinline__ size_t token_head_of(int packed) const {
        return size_t(tile.token + packed / group) * h.heads + kv_head * group + packed % group;
    }
};

}  // namespace sconce_attention
