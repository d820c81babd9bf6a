// Dense products of few rows, y = x w^T (+ y): x [m, k], w [n, k], y [m, n]; for decoding.
//
// Bound by reading w once: n k sizeof(T) bytes. The weights are the 16 x 16 operand of the tensor core and the few rows of x
// its 8 columns, so that the arithmetic is the same for 1 and 8 rows and a row's sum does not depend on its batch mates.
// A product over k may take k in any order if both operands do: so a lane loads 16 neighbouring bytes of a row (two steps)
// straight into the fragments' registers, and nothing goes through shared memory (idea: Marlin, arXiv 2408.11743).
//
// Launch: a block of 8 warps has 16 rows of w; warp i takes the parts of 128 elements i, i + 8, ... of k, the next part in
// flight while one is multiplied (8 x 16 bytes a lane and part); sums meet in shared memory in the order of warps. The first
// parts are on their way into the cache before the kernel before this one has ended.

#include "few_rows.cuh"

namespace sconce_matvec {

// The first two parts of each warp's weights: while the kernel before this one ends, memory has nothing else to do.
template <typename T> __device__ __forceinline__ void bring_weights(const T* w, int n, int k) {
    using namespace sconce_few_rows;
    // A lane has a line of 128 bytes: half of a row of a part.
    int lane = threadIdx.x % 32, row = min(int(blockIdx.x) * 16 + lane / 2, n - 1);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int at = (threadIdx.x / 32 + i * WARPS) * PART + lane % 2 * (PART / 2);
        if (at < k) prefetch(w + size_t(row) * k + at);
    }
}

// k a multiple of 8, x and w at multiples of 16 bytes, m at most 8 TILES. y is T, or f32 where `wide`.
template <typename T, int TILES>
__device__ __forceinline__ void product(const T* x, const T* w, void* y, int m, int n, int k, int wide, int add) {
    __shared__ sconce_few_rows::Room<TILES> room;
    int g = threadIdx.x % 32 / 4, first = blockIdx.x * 16;
    const T* rows[TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) rows[tile] = 8 * tile + g < m ? x + size_t(8 * tile + g) * k : nullptr;
    sconce_few_rows::multiply<T, TILES>(rows, w, first, n, k, room);
    int row = first + threadIdx.x % 16, column = threadIdx.x / 16;
    if (column >= m || row >= n) return;
    float all = room.total(column, threadIdx.x % 16);
    size_t at = size_t(column) * n + row;
    if (wide) {
        float* out = static_cast<float*>(y);
        out[at] = add ? out[at] + all : all;
    } else {
        T* out = static_cast<T*>(y);
        out[at] = from_float<T>(add ? to_float(out[at]) + all : all);
    }
}

// The same for any k, any alignment and any m: a warp has a row of w. Launch: 4 warps a block.
template <typename T>
__device__ __forceinline__ void plain(const T* x, const T* w, void* y, int m, int n, int k, int wide, int add) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= n) return;
    w += size_t(row) * k;
    for (int first = 0; first < m; first += 8) {
        float sum[8] = {};
        for (int i = lane; i < k; i += 32) {
            float weight = to_float(w[i]);
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (first + j < m) sum[j] += to_float(x[size_t(first + j) * k + i]) * weight;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float all = warp_sum(sum[j]);
            if (lane != 0 || first + j >= m) continue;
            size_t at = size_t(first + j) * n + row;
            if (wide) {
                float* out = static_cast<float*>(y);
                out[at] = add ? out[at] + all : all;
            } else {
                T* out = static_cast<T*>(y);
                out[at] = from_float<T>(add ? to_float(out[at]) + all : all);
            }
        }
    }
}

#define PARAMETERS(T) (const T* x, const T* w, void* y, int m, int n, int k, int wide, int add)
#define INSTANCE(T)                                                                                        \
    KERNEL_AHEAD(256, 2, matvec_8_##T, PARAMETERS(T), bring_weights<T>(w, n, k),                           \
                 product<T, 1>(x, w, y, m, n, k, wide, add))                                               \
    KERNEL_AHEAD(256, 2, matvec_16_##T, PARAMETERS(T), bring_weights<T>(w, n, k),                          \
                 product<T, 2>(x, w, y, m, n, k, wide, add))
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE
#define INSTANCE(T) KERNEL(matvec_plain_##T, PARAMETERS(T), plain<T>(x, w, y, m, n, k, wide, add))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE
#undef PARAMETERS

}  // namespace sconce_matvec
