// Paged attention by plain loops, for every pair of types and every even head_dim up to 1024 (see attention.cuh for all
// layouts): what f32 models use to be exact, and heads or caches that tensor cores have no instance for. All sums in
// f32.
//
// A block takes one head of one token and a split of the context, 128 positions at a time: a thread has the score of
// one position, then columns of the output. Launch: blocks (tokens, heads, splits) of 128 threads, head_dim floats of
// shared memory. K and V are read once for every query: not for speed.

#include "attention.cuh"

namespace sconce_attention {

constexpr int PLAIN = 128, PLAIN_COLUMNS = 8;

template <typename T, typename C>
__device__ void attend_plain(const T* q, const C* k, const C* v, T* out, const Workspace& workspace, const Batch& batch,
                             const Heads& h, const Scores& scores) {
    __shared__ float room[33], weights[PLAIN];
    __shared__ uint32_t places[PLAIN];
    DYNAMIC_SHARED(float, query);
    int token = blockIdx.x, head = blockIdx.y, kv_head = head / (h.heads / h.kv_heads);
    int row = row_of_tile(batch, token, 1, 1, false);
    int start = int(batch.row_starts[row]), count = int(batch.row_starts[row + 1]) - start;
    int context = int(batch.context_lens[row]);
    // A token that belongs to no row sees nothing.
    int position = token >= start + count ? -1 : batch.causal ? context - count + (token - start) : context - 1;
    int from = max(position + 1 - scores.window, 0), shift = shift_of(h);
    const uint32_t* table = batch.block_tables + batch.table_starts[row];
    size_t token_head = size_t(token) * h.heads + head;
    for (int i = threadIdx.x; i < h.head_dim; i += PLAIN) query[i] = to_float(q[token_head * h.head_dim + i]);
    __syncthreads();
    float all[PLAIN_COLUMNS], largest = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PLAIN_COLUMNS; i++) all[i] = 0.0f;
    int2 part = tiles_of_split(from, position + 1, PLAIN, blockIdx.z, workspace.splits);
    for (int tile = part.x; tile < part.y; tile++) {
        int p = tile * PLAIN + threadIdx.x;
        float score = -INFINITY;
        if (p >= from && p <= position) {
            uint32_t place = cache_row(table, p, h, kv_head, shift);
            const C* key = k + size_t(place) * h.head_dim;
            float product = 0.0f;
            for (int i = 0; i < h.head_dim; i++) product += query[i] * to_float(key[i]);
            score = scores.softcap > 0.0f ? Cap(scores).of(product) : product * scores.scale * LOG2_E;
            places[threadIdx.x] = place;
        }
        // Every tile has a position that is seen.
        float most = fmaxf(largest, block_max(score, room)), factor = exp2_fast(largest - most);
        float weight = exp2_fast(score - most);
        weights[threadIdx.x] = weight;
        sum = sum * factor + weight;
        largest = most;
        __syncthreads();
        int first = max(from - tile * PLAIN, 0), end = min(position + 1 - tile * PLAIN, PLAIN);
#pragma unroll
        for (int i = 0; i < PLAIN_COLUMNS; i++) {
            int column = threadIdx.x + i * PLAIN;
            if (column >= h.head_dim) break;
            all[i] *= factor;
            for (int j = first; j < end; j++)
                all[i] += weights[j] * to_float(v[size_t(places[j]) * h.head_dim + column]);
        }
        __syncthreads();
    }
    sum = block_sum(sum, room);
    Partials partials(workspace, batch.tokens, h);
    float factor = share(largest, sum, scores.sinks, head);
#pragma unroll
    for (int i = 0; i < PLAIN_COLUMNS; i++) {
        int column = threadIdx.x + i * PLAIN;
        if (column >= h.head_dim) break;
        if (workspace.splits == 1) out[token_head * h.head_dim + column] = from_float<T>(all[i] * factor);
        else partials.sums[blockIdx.z * partials.step + token_head * h.head_dim + column] = all[i];
    }
    if (workspace.splits > 1 && threadIdx.x == 0) partials.lay_down(token_head, blockIdx.z, largest, sum);
}

#define INSTANCE(T, C) \
    KERNEL(attention_plain_##T##_##C, ATTENTION_PARAMETERS(T, C), attend_plain<T, C>(ATTENTION_ARGUMENTS))
#define INSTANCES(T) INSTANCE(T, f32) INSTANCE(T, f16) INSTANCE(T, bf16) INSTANCE(T, fp8)
INSTANCES(f32)
INSTANCES(f16)
INSTANCES(bf16)
#undef INSTANCES
#undef INSTANCE

}  // namespace sconce_attention
