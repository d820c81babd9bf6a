// From the fused projection to attention: bias, RMSNorm over heads, rotary embedding, and K and V into the paged cache.
//
// A warp takes one head of one token at a time: heads of Q, then of K, then of V, as they stand in a row of qkv. All
// arithmetic is in f32 and depends on that token alone; what is read twice (for the norm's sum and for its use) is in
// the first-level cache then. Bound by memory: every element of qkv is read once and written once, in accesses of two
// elements a lane where pairs lie so. Conversion to fp8 saturates to 448; a NaN stays a NaN there (the CPU's cache has
// 448 for it).
//
// qkv     [tokens, (heads + 2 kv_heads) * head_dim] T, head_dim even
// bias    that width, f32, or null
// norms   query, key: [head_dim], or all heads together where `together`; value: [head_dim]; f32, each may be null
// angles  [positions_max, 2, pairs] f32: cosines, then sines; rotated are the first 2 * pairs elements of a head
// slots   block * block_size + offset; a slot outside the cache (u32::MAX: a padded token) is not written
// k, v    [blocks, kv_heads, block_size, head_dim] C
// q       [tokens, heads, head_dim] T
// Launch: blocks (tokens, parts) of full warps; the heads of a token are dealt out to the warps of all its parts. One
// part only where norms go over all heads together.

#include "prelude.cuh"

namespace sconce_rope {

template <typename T> struct Two {
    struct __align__(2 * sizeof(T)) Pair { T x, y; };
};

// Elements i and i + 1 of a head; i is even, and so is what stands before the head.
template <typename T> __device__ __forceinline__ float2 load_two(const T* from) {
    typename Two<T>::Pair two = *reinterpret_cast<const typename Two<T>::Pair*>(from);
    return make_float2(to_float(two.x), to_float(two.y));
}
template <typename T> __device__ __forceinline__ void store_two(T* to, float first, float second) {
    typename Two<T>::Pair two = {from_float<T>(first), from_float<T>(second)};
    *reinterpret_cast<typename Two<T>::Pair*>(to) = two;
}

// One head before its rotation: x, behind its bias and its norm.
template <typename T> struct Head {
    const T* x;
    const float* bias;    // or null
    const float* weight;  // or null: no norm
    float factor;

    __device__ __forceinline__ float one(int i) const {
        float value = to_float(x[i]) + (bias ? bias[i] : 0.0f);
        return weight ? value * factor * weight[i] : value;
    }
    __device__ __forceinline__ float2 two(int i) const {
        float2 value = load_two(x + i);
        if (bias) value = make_float2(value.x + bias[i], value.y + bias[i + 1]);
        if (weight) value = make_float2(value.x * factor * weight[i], value.y * factor * weight[i + 1]);
        return value;
    }
};

// Sum of the squares of `len` elements behind their bias, over `count` threads of which the caller is number `at`.
template <typename T>
__device__ __forceinline__ float squares(const T* x, const float* bias, int len, int at, int count) {
    float sum = 0.0f;
    for (int i = 2 * at; i < len; i += 2 * count) {
        float2 value = load_two(x + i);
        if (bias) value = make_float2(value.x + bias[i], value.y + bias[i + 1]);
        sum += value.x * value.x + value.y * value.y;
    }
    return sum;
}

// Rotates a head by `angles` (null: not at all) and stores it.
template <typename T, typename To>
__device__ __forceinline__ void turn(const Head<T>& head, const float* angles, int pairs, int interleaved, int head_dim,
                                     To* to) {
    int lane = threadIdx.x % 32, rotated = 0;
    if (angles) {
        const float *cosines = angles, *sines = angles + pairs;
        rotated = 2 * pairs;
        if (interleaved) {
            for (int i = lane; i < pairs; i += 32) {
                float2 pair = head.two(2 * i);
                float cosine = cosines[i], sine = sines[i];
                store_two(to + 2 * i, pair.x * cosine - pair.y * sine, pair.y * cosine + pair.x * sine);
            }
        } else if (pairs % 2 == 0) {
            for (int i = 2 * lane; i < pairs; i += 64) {
                float2 a = head.two(i), b = head.two(i + pairs);
                float2 cosine = load_two(cosines + i), sine = load_two(sines + i);
                store_two(to + i, a.x * cosine.x - b.x * sine.x, a.y * cosine.y - b.y * sine.y);
                store_two(to + i + pairs, b.x * cosine.x + a.x * sine.x, b.y * cosine.y + a.y * sine.y);
            }
        } else {
            for (int i = lane; i < pairs; i += 32) {
                float a = head.one(i), b = head.one(i + pairs), cosine = cosines[i], sine = sines[i];
                to[i] = from_float<To>(a * cosine - b * sine);
                to[i + pairs] = from_float<To>(b * cosine + a * sine);
            }
        }
    }
    for (int i = rotated + 2 * lane; i < head_dim; i += 64) {
        float2 value = head.two(i);
        store_two(to + i, value.x, value.y);
    }
}

template <typename T, typename C>
__device__ void rope(const T* qkv, const float* bias, const float* query_norm, const float* key_norm,
                     const float* value_norm, float eps, int together, const float* angles, int positions_max,
                     int pairs, int interleaved, const uint32_t* positions, const uint32_t* slots, C* k, C* v, T* q,
                     int heads, int kv_heads, int head_dim, int block_size, uint32_t slots_max) {
    __shared__ float room[33];
    int token = blockIdx.x, warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int all = heads + 2 * kv_heads;
    const T* row = qkv + size_t(token) * all * head_dim;
    float query_factor = 0.0f, key_factor = 0.0f;
    if (together) {
        const T* key = row + heads * head_dim;
        const float* key_bias = bias ? bias + heads * head_dim : nullptr;
        float sum = squares(row, bias, heads * head_dim, threadIdx.x, blockDim.x);
        query_factor = rsqrtf(block_sum(sum, room) / float(heads * head_dim) + eps);
        sum = squares(key, key_bias, kv_heads * head_dim, threadIdx.x, blockDim.x);
        key_factor = rsqrtf(block_sum(sum, room) / float(kv_heads * head_dim) + eps);
    }
    // A padded token's position may be anything: the last one stands for those past the end.
    int position = int(min(positions[token], uint32_t(positions_max - 1)));
    const float* turns = pairs > 0 ? angles + size_t(position) * 2 * pairs : nullptr;
    uint32_t slot = slots[token];
    for (int index = blockIdx.y * warps + warp; index < all; index += gridDim.y * warps) {
        bool query = index < heads, key = !query && index < heads + kv_heads;
        Head<T> head = {row + index * head_dim, bias ? bias + index * head_dim : nullptr, nullptr, 1.0f};
        head.weight = query ? query_norm : key ? key_norm : value_norm;
        if (together && (query || key)) {
            head.factor = query ? query_factor : key_factor;
            head.weight += (query ? index : index - heads) * head_dim;
        } else if (head.weight) {
            float sum = warp_sum(squares(head.x, head.bias, head_dim, lane, 32));
            head.factor = rsqrtf(sum / float(head_dim) + eps);
        }
        if (query) {
            T* to = q + (size_t(token) * heads + index) * head_dim;
            turn(head, turns, pairs, interleaved, head_dim, to);
        } else if (slot < slots_max) {
            int kv_head = key ? index - heads : index - heads - kv_heads;
            size_t place = (size_t(slot / block_size) * kv_heads + kv_head) * block_size + slot % block_size;
            turn(head, key ? turns : nullptr, pairs, interleaved, head_dim, (key ? k : v) + place * head_dim);
        }
    }
}

#define INSTANCE(T, C)                                                                                                 \
    KERNEL_OF(256, 4, rope_##T##_##C,                                                                                  \
              (const T* qkv, const float* bias, const float* query_norm, const float* key_norm,                        \
               const float* value_norm, float eps, int together, const float* angles, int positions_max, int pairs,    \
               int interleaved, const uint32_t* positions, const uint32_t* slots, C* k, C* v, T* q, int heads,         \
               int kv_heads, int head_dim, int block_size, uint32_t slots_max),                                        \
              rope<T, C>(qkv, bias, query_norm, key_norm, value_norm, eps, together, angles, positions_max, pairs,     \
                         interleaved, positions, slots, k, v, q, heads, kv_heads, head_dim, block_size, slots_max))
#define INSTANCES(T) INSTANCE(T, f32) INSTANCE(T, f16) INSTANCE(T, bf16) INSTANCE(T, fp8)
INSTANCES(f32)
INSTANCES(f16)
INSTANCES(bf16)
#undef INSTANCES
#undef INSTANCE

}  // namespace sconce_rope
