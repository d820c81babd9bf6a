// Rows of the table of embeddings, into the f32 residual stream.
//
// Block (t, c) writes part c of token t. Bound by memory: hidden * (sizeof(T) + 4) bytes a token.

#include "row.cuh"

namespace sconce_embed {

// out[t] = table[ids[t]] * scale, zeros for an id beyond the vocabulary. table [vocab, hidden] T, out [tokens, hidden] f32.
// W divides hidden.
template <int W, typename T>
__device__ __forceinline__ void embedding(const T* table, const uint32_t* ids, float* out, int hidden, int vocab, float scale) {
    uint32_t id = ids[blockIdx.x];
    int at = (blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (at >= hidden) return;
    float v[W] = {};
    if (id < uint32_t(vocab)) {
        load_part(table + size_t(id) * hidden + at, v);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] *= scale;
    }
    store_part(out + size_t(blockIdx.x) * hidden + at, v);
}

#define INSTANCE(T)                                                                                                       \
    KERNEL(embedding_##T, (const T* table, const uint32_t* ids, float* out, int hidden, int vocab, float scale),          \
           embedding<1>(table, ids, out, hidden, vocab, scale))                                                           \
    KERNEL(embedding_wide_##T, (const T* table, const uint32_t* ids, float* out, int hidden, int vocab, float scale),     \
           embedding<4>(table, ids, out, hidden, vocab, scale))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE

}  // namespace sconce_embed
