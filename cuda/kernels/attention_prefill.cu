// Paged attention where rows have many queries: prompts and pieces of them (see attention.cuh for all layouts).
//
// A block takes 128 packed rows (64 where heads are wider than 128) of one KV head: four warps of 32 (16) rows, each
// over all positions up to its last row's. Bound by tensor cores: 4 * head_dim operations a query, head and position.
// 32 rows a warp make each fragment of K and V serve two products, which halves the shared memory's load. One barrier a
// KV tile.
// Launch: blocks (tokens * group / ROWS + rows, kv_heads, splits) of 128 threads; tiles are found in
// row_starts.

#include "flash.cuh"

namespace sconce_attention {

template <typename T, typename C, int D>
__device__ void attend_many(const T* q, const C* k, const C* v, T* out, const Workspace& workspace, const Batch& batch,
                            const Heads& heads, const Scores& scores) {
    Flash<T, C, D, (D > 128 ? 1 : 2), 4, 1, (D > 64 ? 32 : 64), 2> flash;
    flash.h = heads;
    flash.run(q, k, v, out, workspace, batch, scores);
}

#define INSTANCE(T, C, D)                                                                \
    KERNEL_OF(128, 2, attention_prefill_##T##_##C##_##D, ATTENTION_PARAMETERS(T, C), \
              attend_many<T, C, D>(ATTENTION_ARGUMENTS))
#define INSTANCES(T, C) INSTANCE(T, C, 64) INSTANCE(T, C, 128) INSTANCE(T, C, 256)
INSTANCES(f16, f16)
INSTANCES(f16, fp8)
INSTANCES(bf16, bf16)
INSTANCES(bf16, fp8)
#undef INSTANCES
#undef INSTANCE

}  // namespace sconce_attention
