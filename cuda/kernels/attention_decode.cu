// Paged attention where a row has few queries: decode steps and speculative ones (see attention.cuh for all layouts).
//
// A block takes 16 packed rows of one KV head and a split of the context. Its warps take turns of 16 positions, each
// with a ring of its own, so that they wait for no one; at the end their sums are brought together. Tensor cores work
// on 16 rows even where a group has fewer heads: that costs a tenth of their rate at full memory speed. Bound by bytes:
// K and V once. Empty splits leave sum 0 behind and are passed by when sums are brought together: by the last block of
// a tile where there are counters, which saves a launch, else by `combine`.
// Launch: blocks (rows * tiles_per_row,
// kv_heads, splits) of 32 * WARPS threads; 54 to 74 KiB of shared memory, so that two or three blocks share a
// multiprocessor.

#include "flash.cuh"

namespace sconce_attention {

// As many stages as 56 KiB hold, at least 2 and at most 4 (as `src/ops/attention.rs` has it).
template <int D, int ELEMENT> struct Few {
    static constexpr int WARPS = D > 128 ? 2 : 4;
    static constexpr int FIT = (56 << 10) / (WARPS * 2 * 16 * (D * ELEMENT + 16));
    static constexpr int STAGES = FIT < 2 ? 2 : FIT > 4 ? 4 : FIT;
};

template <typename T, typename C, int D>
__device__ void attend_few(const T* q, const C* k, const C* v, T* out, const Workspace& workspace, const Batch& batch,
                           const Heads& heads, const Scores& scores) {
    Flash<T, C, D, 1, 1, Few<D, sizeof(C)>::WARPS, 16, Few<D, sizeof(C)>::STAGES> flash;
    flash.h = heads;
    flash.run(q, k, v, out, workspace, batch, scores);
}

#define INSTANCE(T, C, D, BLOCKS)                                                                        \
    KERNEL_OF((32 * Few<D, 2>::WARPS), BLOCKS, attention_decode_##T##_##C##_##D, ATTENTION_PARAMETERS(T, C), \
              attend_few<T, C, D>(ATTENTION_ARGUMENTS))
#define INSTANCES(T, C) INSTANCE(T, C, 64, 3) INSTANCE(T, C, 128, 3) INSTANCE(T, C, 256, 2)
INSTANCES(f16, f16)
INSTANCES(f16, fp8)
INSTANCES(bf16, bf16)
INSTANCES(bf16, fp8)
#undef INSTANCES
#undef INSTANCE

// The splits' sums brought to one scale, where the last of them does not do it: a warp a head of a token, at most 32
// splits. Launch: blocks (tokens, heads / 4). Bound by latency for one row, else by the bytes of the sums.
template <typename T>
__device__ void combine(const Workspace& workspace, T* out, const float* sinks, int tokens, int heads, int head_dim) {
    int lane = threadIdx.x % 32, head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    if (head >= heads) return;
    Partials partials(workspace, tokens, Heads{heads, 1, head_dim, 1});
    size_t token_head = size_t(blockIdx.x) * heads + head;
    float weight = partials.weight(token_head, sinks, head);
    const float* sums = partials.sums + token_head * head_dim;
    for (int start = 0; start < head_dim; start += 64) {
        int column = start + 2 * lane;
        float2 all = make_float2(0.0f, 0.0f);
#pragma unroll 8
        for (int split = 0; split < partials.splits; split++) {
            float factor = __shfl_sync(ALL_LANES, weight, split);
            if (factor == 0.0f || column >= head_dim) continue;
            float2 two = *reinterpret_cast<const float2*>(sums + split * partials.step + column);
            all.x += two.x * factor, all.y += two.y * factor;
        }
        if (column >= head_dim) continue;
        struct __align__(2 * sizeof(T)) Pair { T first, second; } pair = {from_float<T>(all.x), from_float<T>(all.y)};
        *reinterpret_cast<Pair*>(out + token_head * head_dim + column) = pair;
    }
}

#define INSTANCE(T)                                                                                                    \
    KERNEL_OF(128, 8, attention_combine_##T,                                                                           \
              (float* workspace, T* out, const float* sinks, int tokens, int heads, int head_dim, int splits),         \
              combine<T>(Workspace{workspace, nullptr, splits}, out, sinks, tokens, heads, head_dim))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE

}  // namespace sconce_attention
