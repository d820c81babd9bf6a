// What the attention kernels share: where a tile of queries stands in a ragged batch, where a position stands in a
// paged cache (arXiv 2309.06180), how splits of a context are laid down (Dao et al. 2023, "Flash-Decoding"), and
// scores.
//
// q, out  [tokens, heads, head_dim] T; row r of the batch is tokens row_starts[r]..row_starts[r + 1]
// k, v    [blocks, kv_heads, block_size, head_dim] C
//         position p of row r is in block block_tables[table_starts[r] + p / block_size]
// sinks   [heads] f32 or null
// workspace, for more than one split, behind the counters:
//         sums [splits, tokens, heads, head_dim] f32, before the division
//         then [tokens, heads, splits, 2] f32: the largest score times log2(e), and the sum of the weights over 2^that
// A row's tokens are the last ones of its context_lens[r] positions, and each sees the positions up to its own, or all
// of the row's where nothing is causal. A row of context 0 is padding: its output is zeros. A window of 2^30 is none; a
// softcap of 0 is none; the scale is above 0.
//
// Packed queries: the heads of a group (those of one KV head) of all tokens of a row are its packed rows, token by
// token, so that K and V are read once for a group. The order of a row's sums depends on its own tokens, its context
// and the number of splits, and on other rows only in that the longest one decides which kernel a batch takes.
#pragma once

#include "prelude.cuh"

namespace sconce_attention {

constexpr float LOG2_E = 1.44269504088896f;
constexpr uint32_t NOWHERE = 0xffffffffu;

struct Batch {
    const uint32_t *row_starts, *context_lens, *block_tables, *table_starts;
    int rows, tokens, tiles_per_row, causal;
};
struct Heads {
    int heads, kv_heads, head_dim, block_size;
};
struct Scores {
    float scale;
    int window;
    float softcap;
    const float* sinks;
};

// Where splits leave their sums. The counters, all 0 before and behind a launch, count for each tile of a KV head the
// splits that are done: the last brings them together. Without counters a kernel of its own does that.
struct Workspace {
    float* partials;
    uint32_t* counters;
    int splits;
};

// The parameters of every attention kernel, and how a body takes them.
#define ATTENTION_PARAMETERS(T, C)                                                                                     \
    (const T* q, const C* k, const C* v, T* out, float* workspace, uint32_t* counters, const uint32_t* row_starts,     \
     const uint32_t* context_lens, const uint32_t* block_tables, const uint32_t* table_starts, int rows, int tokens,   \
     int tiles_per_row, int causal, int heads, int kv_heads, int head_dim, int block_size, float scale, int window,    \
     float softcap, const float* sinks, int splits)
#define ATTENTION_ARGUMENTS                                                                                            \
    q, k, v, out, Workspace{workspace, counters, splits},                                                              \
        Batch{row_starts, context_lens, block_tables, table_starts, rows, tokens, tiles_per_row, causal},              \
        Heads{heads, kv_heads, head_dim, block_size}, Scores{scale, window, softcap, sinks}

// The last of `rows` rows whose first tile is not behind tile number `index`: row r's tiles begin at row_starts[r] *
// group / tile_rows, plus r where `spaced`. So there is room for a part of a tile at the end of each row, and no list
// of tiles is needed. All lanes of a warp ask together; each round takes 32 rows of those that are left.
__device__ __forceinline__ int first_tile(const Batch& batch, int row, int group, int tile_rows, bool spaced) {
    return int(batch.row_starts[row]) * group / tile_rows + (spaced ? row : 0);
}
__device__ __forceinline__ int row_of_tile(const Batch& batch, int index, int group, int tile_rows, bool spaced) {
    int low = 0, high = batch.rows, lane = threadIdx.x % 32;
    while (high - low > 1) {
        int step = (high - low + 31) / 32, probe = low + lane * step;
        bool before = probe < high && first_tile(batch, probe, group, tile_rows, spaced) <= index;
        int found = __popc(__ballot_sync(ALL_LANES, before));
        low += (max(found, 1) - 1) * step;
        high = min(high, low + step);
    }
    return low;
}

// Some packed rows of one row of the batch, and the positions that any of them sees.
struct Tile {
    int row, token, first, packed;
    // Position of the row's first token, and how many further on the next one stands: 0 where all see all.
    int base, step;
    int lowest, highest;

    // Position of a packed row's token.
    __device__ __forceinline__ int position(int packed_row, int group) const {
        return base + step * (packed_row / group);
    }
};
__device__ __forceinline__ bool find_tile(const Batch& batch, int index, int group, int tile_rows, Tile& tile) {
    int number;
    if (batch.tiles_per_row > 0) {
        tile.row = index / batch.tiles_per_row;
        number = index % batch.tiles_per_row;
    } else {
        tile.row = row_of_tile(batch, index, group, tile_rows, true);
        number = index - first_tile(batch, tile.row, group, tile_rows, true);
    }
    tile.token = int(batch.row_starts[tile.row]);
    int count = int(batch.row_starts[tile.row + 1]) - tile.token, context = int(batch.context_lens[tile.row]);
    tile.base = batch.causal ? context - count : context - 1, tile.step = batch.causal;
    tile.packed = count * group;
    tile.first = number * tile_rows;
    if (tile.first >= tile.packed) return false;
    tile.lowest = tile.position(tile.first, group);
    tile.highest = tile.position(min(tile.first + tile_rows, tile.packed) - 1, group);
    return true;
}

// The KV tiles, each of `size` positions from a multiple of it on, that one of `splits` splits of positions from..to
// takes.
__device__ __forceinline__ int2 tiles_of_split(int from, int to, int size, int split, int splits) {
    int first = from / size, end = (max(to, 0) + size - 1) / size;
    int each = (max(end - first, 0) + splits - 1) / splits;
    int start = min(first + split * each, end);
    return make_int2(start, min(start + each, end));
}

// log2 of the block size, or -1: a shift saves a division for each position.
__device__ __forceinline__ int shift_of(const Heads& h) {
    return (h.block_size & (h.block_size - 1)) == 0 ? __ffs(h.block_size) - 1 : -1;
}
// Where position p of a row stands: row of head_dim elements in k and in v.
__device__ __forceinline__ uint32_t cache_row(const uint32_t* table, int p, const Heads& h, int kv_head, int shift) {
    uint32_t size = uint32_t(h.block_size), at = uint32_t(p), block = shift >= 0 ? at >> shift : at / size;
    return (table[block] * uint32_t(h.kv_heads) + uint32_t(kv_head)) * size + (at - block * size);
}
// Whether a query at position `own` sees position p: one comparison for both ends.
__device__ __forceinline__ bool sees(int own, int p, int window) { return uint32_t(own - p) < uint32_t(window); }

// A score under a cap c, times log2(e), from the product of q and k: c tanh(scale / c * product), by one exponential
// and one reciprocal, to an absolute error of about 1e-6 c.
struct Cap {
    float inner, outer;

    __device__ __forceinline__ Cap(const Scores& scores)
        : inner(2.0f * LOG2_E * scores.scale / scores.softcap), outer(scores.softcap * LOG2_E) {}
    __device__ __forceinline__ float of(float product) const {
        return outer - __fdividef(2.0f * outer, 1.0f + exp2_fast(inner * product));
    }
};

// What a head's sums are divided by: its sink takes its share. 0 where nothing was seen.
__device__ __forceinline__ float share(float largest, float sum, const float* sinks, int head) {
    if (!(sum > 0.0f)) return 0.0f;
    if (sinks) sum += exp2_fast(sinks[head] * LOG2_E - largest);
    return 1.0f / sum;
}

// Places in the workspace.
struct Partials {
    float *sums, *scales;
    size_t step;
    int splits;

    __device__ __forceinline__ Partials(const Workspace& workspace, int tokens, const Heads& h)
        : sums(workspace.partials), step(size_t(tokens) * h.heads * h.head_dim), splits(workspace.splits) {
        scales = sums + splits * step;
    }
    __device__ __forceinline__ void lay_down(size_t token_head, int split, float largest, float sum) const {
        *reinterpret_cast<float2*>(scales + (token_head * splits + split) * 2) = make_float2(largest, sum);
    }
    // What a head's sums of each split are multiplied with to make its output; lane i of a warp has that of split i.
    __device__ __forceinline__ float weight(size_t token_head, const float* sinks, int head) const {
        int lane = threadIdx.x % 32;
        float2 own = make_float2(-INFINITY, 0.0f);
        if (lane < splits) own = load_fresh(reinterpret_cast<const float2*>(scales + (token_head * splits + lane) * 2));
        float most = warp_max(own.x), weight = own.y > 0.0f ? exp2_fast(own.x - most) : 0.0f;
        return weight * share(most, warp_sum(own.y * weight), sinks, head);
    }
};

}  // namespace sconce_attention
