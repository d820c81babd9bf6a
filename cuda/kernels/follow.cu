// The tokens of a step whose step before is still on its way to the host: they are taken from where that one chose them.
//
// chosen [3, rows]: tokens, statuses (0 is done), details; sources [count]: a row each; tokens [count] is written. One thread
// a token.

#include "prelude.cuh"

namespace sconce_follow {

__device__ __forceinline__ void follow(const uint32_t* chosen, const uint32_t* sources, uint32_t* tokens, int rows,
                                       int count) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    uint32_t source = sources[at];
    if (source >= uint32_t(rows)) return;
    tokens[at] = chosen[rows + source] == 0 ? chosen[source] : 0;
}

KERNEL(follow_tokens, (const uint32_t* chosen, const uint32_t* sources, uint32_t* tokens, int rows, int count),
       follow(chosen, sources, tokens, rows, count))

}  // namespace sconce_follow
