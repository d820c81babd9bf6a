// Which experts see which tokens, without the host: choice and shares from a router's scores, routes sorted by expert, the
// tiles of a grouped product, and the sum over a token's experts.
//
// A route is token * per_token + j, j counting a token's experts in ascending order; a route that does not exist (the token
// is a padded one, or its scores are NaN) has expert NONE and is nowhere in `order`. Everything has one order, there are no
// atomics: the same input gives the same bits. Bound by launches and latency; the arrays are small.

#include "prelude.cuh"

namespace sconce_routes {

constexpr uint32_t NONE = 0xffffffffu;

// Best of the values at lane, lane + 32, ...; of equal ones the first; NaN is never chosen. NONE where there is none.
__device__ __forceinline__ uint32_t best_of(const float* values, int count, int lane) {
    float best = -INFINITY;
    uint32_t at = NONE;
    for (int i = lane; i < count; i += 32) {
        float value = values[i];
        if (value > best || (value == best && at == NONE)) best = value, at = uint32_t(i);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, best, step);
        uint32_t other_at = __shfl_xor_sync(ALL_LANES, at, step);
        if (other_at != NONE && (at == NONE || other > best || (other == best && other_at < at)))
            best = other, at = other_at;
    }
    return at;
}

__device__ __forceinline__ float weight_of(float score, float largest, int is_sigmoid) {
    return is_sigmoid ? 1.0f / (1.0f + expf(-score)) : expf(score - largest);
}

// scores [tokens, experts]; correction [experts] or null; slots [tokens] or null: a token with slot NONE is padded.
// ids and shares [tokens, per_token], per_token at most 32. groups 0 for none, else at most 64; `used` of them are kept, by
// their best or the sum of their best two. Launch: a warp a token, 4 warps a block; shared memory 4 (experts + 64) floats.
__device__ __forceinline__ void choose(const float* scores, const float* correction, const uint32_t* slots, uint32_t* ids,
                                       float* shares, int tokens, int experts, int per_token, int is_sigmoid,
                                       int normalised, float factor, int groups, int used, int best_two) {
    DYNAMIC_SHARED(float, room);
    int token = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    float* ranks = room + threadIdx.x / 32 * (experts + 64);
    float* of_groups = ranks + experts;
    if (token >= tokens) return;
    scores += size_t(token) * experts;
    ids += size_t(token) * per_token;
    shares += size_t(token) * per_token;
    if (slots && slots[token] == NONE) {
        if (lane < per_token) ids[lane] = NONE, shares[lane] = 0.0f;
        return;
    }
    float largest = -INFINITY;
    for (int i = lane; i < experts; i += 32) largest = fmaxf(largest, scores[i]);
    largest = warp_max(largest);
    float all = 1.0f;
    if (!is_sigmoid) {
        all = 0.0f;
        for (int i = lane; i < experts; i += 32) all += weight_of(scores[i], largest, 0);
        all = warp_sum(all);
    }
    for (int i = lane; i < experts; i += 32)
        ranks[i] = correction ? weight_of(scores[i], largest, is_sigmoid) / all + correction[i] : scores[i];
    __syncwarp();
    if (groups > 0) {
        int size = experts / groups;
        for (int group = lane; group < groups; group += 32) {
            float first = -INFINITY, second = -INFINITY;
            for (int i = 0; i < size; i++) {
                float value = ranks[group * size + i];
                if (value > first) second = first, first = value;
                else second = fmaxf(second, value);
            }
            of_groups[group] = best_two ? first + second : first;
        }
        __syncwarp();
        unsigned long long kept = 0;
        for (int i = 0; i < used; i++) {
            uint32_t group = best_of(of_groups, groups, lane);
            __syncwarp();
            if (group != NONE) {
                kept |= 1ull << group;
                // Never chosen again.
                if (lane == 0) of_groups[group] = NAN;
            }
            __syncwarp();
        }
        for (int i = lane; i < experts; i += 32)
            if (!(kept >> (i / size) & 1)) ranks[i] = -INFINITY;
        __syncwarp();
    }
    // Lane j has the j-th best.
    uint32_t mine = NONE;
    for (int j = 0; j < per_token; j++) {
        uint32_t expert = best_of(ranks, experts, lane);
        __syncwarp();
        if (lane == 0 && expert != NONE) ranks[expert] = NAN;
        __syncwarp();
        if (lane == j) mine = expert;
    }
    float share = mine == NONE ? 0.0f : weight_of(scores[mine], largest, is_sigmoid), total = 0.0f;
    int rank = 0;
    for (int j = 0; j < per_token; j++) {
        uint32_t other = __shfl_sync(ALL_LANES, mine, j);
        total += __shfl_sync(ALL_LANES, share, j);
        if (other < mine || (other == mine && j < lane)) rank++;
    }
    if (lane >= per_token) return;
    // Sigmoids may all be zero.
    total = fmaxf(normalised ? total : all, 1.17549435e-38f);
    ids[rank] = mine;
    shares[rank] = share / total * factor;
}

// order: the routes by expert, each expert's in ascending order, from first[expert] on, count[expert] of them. ids
// [routes]. Launch: a block of 8 warps an expert.
__device__ __forceinline__ void sort(const uint32_t* ids, uint32_t* order, uint32_t* first, uint32_t* count, int routes) {
    __shared__ uint32_t less_of[8], equal_of[8];
    uint32_t expert = blockIdx.x, less = 0, equal = 0;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int at = 0; at < routes; at += 256) {
        uint32_t id = at + int(threadIdx.x) < routes ? ids[at + threadIdx.x] : NONE;
        less += __popc(__ballot_sync(ALL_LANES, id < expert));
        equal += __popc(__ballot_sync(ALL_LANES, id == expert));
    }
    if (lane == 0) less_of[warp] = less, equal_of[warp] = equal;
    __syncthreads();
    uint32_t start = 0, all = 0;
    for (int i = 0; i < 8; i++) start += less_of[i], all += equal_of[i];
    if (threadIdx.x == 0) first[expert] = start, count[expert] = all;
    if (all == 0) return;
    for (int at = 0; at < routes; at += 256) {
        int route = at + threadIdx.x;
        bool is_mine = route < routes && ids[route] == expert;
        unsigned mates = __ballot_sync(ALL_LANES, is_mine);
        __syncthreads();
        if (lane == 0) equal_of[warp] = __popc(mates);
        __syncthreads();
        uint32_t before = 0, here = 0;
        for (int i = 0; i < 8; i++) {
            if (i < warp) before += equal_of[i];
            here += equal_of[i];
        }
        if (is_mine) order[start + before + __popc(mates & ((1u << lane) - 1))] = uint32_t(route);
        start += here;
    }
}

// tiles [bound] of (expert, first place in order, places, 0): each expert's places in tiles of `columns`; those that are
// left over have no places. Launch: one block of 1024 threads; experts at most 1024.
__device__ __forceinline__ void tiles_of(const uint32_t* first, const uint32_t* count, uint4* tiles, int experts, int columns,
                                         int bound) {
    __shared__ uint32_t ends[1024];
    int expert = threadIdx.x;
    uint32_t mine = expert < experts ? count[expert] : 0, own = (mine + columns - 1) / columns;
    ends[expert] = own;
    __syncthreads();
    for (int step = 1; step < 1024; step *= 2) {
        uint32_t before = expert >= step ? ends[expert - step] : 0;
        __syncthreads();
        ends[expert] += before;
        __syncthreads();
    }
    uint32_t start = ends[expert] - own;
    for (uint32_t i = 0; i < own && start + i < uint32_t(bound); i++) {
        uint32_t done = i * columns;
        tiles[start + i] = make_uint4(uint32_t(expert), first[expert] + done, min(mine - done, uint32_t(columns)), 0);
    }
    for (uint32_t i = ends[1023] + expert; i < uint32_t(bound); i += 1024) tiles[i] = make_uint4(0, 0, 0, 0);
}

// order and tiles as above where every token sees every expert: route token * experts + e leads to expert e. Launch: a thread a
// route.
__device__ __forceinline__ void every(uint32_t* order, uint4* tiles, int tokens, int experts, int columns) {
    int at = blockIdx.x * 256 + threadIdx.x, each = (tokens + columns - 1) / columns;
    if (at >= tokens * experts) return;
    int expert = at / tokens, token = at % tokens;
    order[at] = uint32_t(token * experts + expert);
    if (token % columns != 0) return;
    uint32_t count = uint32_t(min(tokens - token, columns));
    tiles[expert * each + token / columns] = make_uint4(uint32_t(expert), uint32_t(at), count, 0);
}

// y [routes, width] = shares[route] * x [token of the route]. Launch: x over routes, y over parts of 256 of width.
template <typename T>
__device__ __forceinline__ void scale(const T* x, const uint32_t* ids, const float* shares, T* y, int width, int per_token) {
    int route = blockIdx.x, i = blockIdx.y * 256 + threadIdx.x;
    if (i >= width || ids[route] == NONE) return;
    y[size_t(route) * width + i] = from_float<T>(shares[route] * to_float(x[size_t(route / per_token) * width + i]));
}

// y [tokens, width] = sum over j of shares[token, j] * x[token * per_token + j], or added to y; without shares all are 1. A token
// without a route stays as it is where it is added to, and becomes zero otherwise. Launch: x over tokens, y over parts of 256 of width.
template <typename T>
__device__ __forceinline__ void combine(const T* x, const uint32_t* ids, const float* shares, float* y, int width,
                                        int per_token, int add) {
    int i = blockIdx.y * 256 + threadIdx.x;
    if (i >= width) return;
    float sum = 0.0f;
    for (int j = 0; j < per_token; j++) {
        size_t route = size_t(blockIdx.x) * per_token + j;
        if (ids[route] != NONE) sum += (shares ? shares[route] : 1.0f) * to_float(x[route * width + i]);
    }
    float* out = y + size_t(blockIdx.x) * width + i;
    if (!add) *out = sum;
    else if (ids[size_t(blockIdx.x) * per_token] != NONE) *out += sum;
}

KERNEL(routes_choose,
       (const float* scores, const float* correction, const uint32_t* slots, uint32_t* ids, float* shares, int tokens,
        int experts, int per_token, int is_sigmoid, int normalised, float factor, int groups, int used, int best_two),
       choose(scores, correction, slots, ids, shares, tokens, experts, per_token, is_sigmoid, normalised, factor, groups,
              used, best_two))
KERNEL(routes_sort, (const uint32_t* ids, uint32_t* order, uint32_t* first, uint32_t* count, int routes),
       sort(ids, order, first, count, routes))
KERNEL(routes_tiles,
       (const uint32_t* first, const uint32_t* count, uint4* tiles, int experts, int columns, int bound),
       tiles_of(first, count, tiles, experts, columns, bound))
KERNEL(routes_every, (uint32_t* order, uint4* tiles, int tokens, int experts, int columns),
       every(order, tiles, tokens, experts, columns))
#define INSTANCE(T)                                                                                              \
    KERNEL(experts_combine_##T,                                                                                  \
           (const T* x, const uint32_t* ids, const float* shares, float* y, int width, int per_token, int add),  \
           combine<T>(x, ids, shares, y, width, per_token, add))                                                 \
    KERNEL(experts_scale_##T,                                                                                    \
           (const T* x, const uint32_t* ids, const float* shares, T* y, int width, int per_token),               \
           scale<T>(x, ids, shares, y, width, per_token))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE

}  // namespace sconce_routes
