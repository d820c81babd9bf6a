// The way into latent attention (DeepSeek-V2, arXiv 2405.04434), where the cache has one vector a token for all heads: the rotated
// key, then the normed latent. attention_latent.cu and the plain kernels of attention read it.
//
// Bound by memory: every element is read and written once or twice; all arithmetic is in f32.
//
// angles  [positions_max, 2, pairs] f32: cosines, then sines; rotated are 2 * pairs elements

#include "prelude.cuh"

namespace sconce_latent {

struct Turn {
    const float* angles;
    int positions_max, pairs, interleaved;

    // Element i of the rotated x at a position. A padded token's position may be anything.
    template <typename X> __device__ __forceinline__ float of(const X* x, uint32_t position, int i) const {
        const float* cosines = angles + size_t(min(position, uint32_t(positions_max - 1))) * 2 * pairs;
        int pair = interleaved ? i / 2 : i % pairs;
        bool second = interleaved ? i % 2 == 1 : i >= pairs;
        float a = to_float(x[interleaved ? 2 * pair : pair]), b = to_float(x[interleaved ? 2 * pair + 1 : pair + pairs]);
        float cosine = cosines[pair], sine = cosines[pairs + pair];
        return second ? b * cosine + a * sine : a * cosine - b * sine;
    }
};

// x [tokens, stride] f32 from the latents on: `rank` elements of a latent, then the key that is rotated. cache [slots,
// 2 pairs + rank] C; a slot outside it (u32::MAX: a padded token) is not written. Launch: a block of full warps a token.
template <typename C>
__device__ __forceinline__ void write(const float* x, int stride, const float* weight, float eps, int rank, const Turn& turn,
                                      const uint32_t* positions, const uint32_t* slots, C* cache, uint32_t slots_max) {
    __shared__ float room[33];
    uint32_t slot = slots[blockIdx.x], position = positions[blockIdx.x];
    if (slot >= slots_max) return;
    const float* latent = x + size_t(blockIdx.x) * stride;
    int rotated = 2 * turn.pairs;
    C* to = cache + size_t(slot) * (rotated + rank);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < rank; i += blockDim.x) sum += latent[i] * latent[i];
    float factor = rsqrtf(block_sum(sum, room) / float(rank) + eps);
    for (int i = threadIdx.x; i < rank; i += blockDim.x) to[rotated + i] = from_float<C>(latent[i] * factor * weight[i]);
    for (int i = threadIdx.x; i < rotated; i += blockDim.x) to[i] = from_float<C>(turn.of(latent + rank, position, i));
}

// y [tokens, dim] = norm of the first dim elements of x [tokens, stride] f32. Launch: a block of full warps a token.
template <typename T>
__device__ __forceinline__ void norm(const float* x, int stride, const float* weight, float eps, T* y, int dim) {
    __shared__ float room[33];
    const float* from = x + size_t(blockIdx.x) * stride;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) sum += from[i] * from[i];
    float factor = rsqrtf(block_sum(sum, room) / float(dim) + eps);
    T* to = y + size_t(blockIdx.x) * dim;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) to[i] = from_float<T>(from[i] * factor * weight[i]);
}

// Queries x [tokens, stride], a head's plain elements before those that are rotated: plain [tokens * heads, plain_len], and the
// rotated ones into the first of q [tokens * heads, width]. Launch: blocks (tokens, ceil(heads / 8)) of 8 warps, a warp a head.
template <typename X, typename T>
__device__ __forceinline__ void split(const X* x, int stride, int heads, int plain_len, const Turn& turn,
                                      const uint32_t* positions, T* plain, T* q, int width) {
    int head = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32, rotated = 2 * turn.pairs;
    if (head >= heads) return;
    uint32_t position = positions[blockIdx.x];
    const X* from = x + size_t(blockIdx.x) * stride + size_t(head) * (plain_len + rotated);
    size_t row = size_t(blockIdx.x) * heads + head;
    for (int i = lane; i < plain_len; i += 32) plain[row * plain_len + i] = from_float<T>(to_float(from[i]));
    for (int i = lane; i < rotated; i += 32) q[row * width + i] = from_float<T>(turn.of(from + plain_len, position, i));
}

#define WRITE(C)                                                                                                          \
    KERNEL_OF(256, 4, latent_write_##C,                                                                                   \
              (const float* x, int stride, const float* weight, float eps, int rank, const float* angles,                 \
               int positions_max, int pairs, int interleaved, const uint32_t* positions, const uint32_t* slots, C* cache, \
               uint32_t slots_max),                                                                                       \
              write<C>(x, stride, weight, eps, rank, Turn{angles, positions_max, pairs, interleaved}, positions, slots,   \
                       cache, slots_max))
WRITE(f32)
WRITE(f16)
WRITE(bf16)
WRITE(fp8)
#undef WRITE
#define SPLIT(X, T)                                                                                                       \
    KERNEL_OF(256, 4, latent_split_##X##_##T,                                                                             \
              (const X* x, int stride, int heads, int plain_len, const float* angles, int positions_max, int pairs,       \
               int interleaved, const uint32_t* positions, T* plain, T* q, int width),                                    \
              split<X, T>(x, stride, heads, plain_len, Turn{angles, positions_max, pairs, interleaved}, positions, plain, \
                          q, width))
#define INSTANCE(T)                                                                                          \
    KERNEL_OF(256, 4, latent_norm_##T,                                                                       \
              (const float* x, int stride, const float* weight, float eps, T* y, int dim),                   \
              norm<T>(x, stride, weight, eps, y, dim))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
SPLIT(f32, f32)
SPLIT(f32, f16)
SPLIT(f32, bf16)
SPLIT(f16, f16)
SPLIT(bf16, bf16)
#undef INSTANCE
#undef SPLIT

}  // namespace sconce_latent
