// Grouped products of a mixture of experts with weights in FP8: as experts.cu, with w [experts, n, k] bytes and their scales
// [experts, ceil(n / block_n), ceil(k / block_k)] as fp8.cu has them; x and the arithmetic in 16 bits.
//
// Bound by reading the chosen experts' weights once for every 8 or 32 of their routes.
// Launch: blocks of 8 warps, x over tiles of 16 rows of w, y over tiles of routes, z over their parts of 8 or 32; what has no
// routes returns at once.

#include "fp8_product.cuh"

namespace sconce_fp8 {

// y is T, or f32 where `wide`.
template <typename T, int TILES>
__device__ __forceinline__ void experts(const T* x, const uint8_t* w, const float* scales, const float* bias, void* y,
                                        const uint32_t* order, const uint4* tiles, const Sizes& sizes, int divide, int wide) {
    __shared__ Room<TILES> room;
    uint4 tile = tiles[blockIdx.y];
    int count = int(tile.z) - int(blockIdx.z) * 8 * TILES;
    if (count <= 0) return;
    int g = threadIdx.x % 32 / 4, n = sizes.n, k = sizes.k, first = blockIdx.x * 16;
    order += tile.y + blockIdx.z * 8 * TILES;
    const T* rows[TILES];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        int own = 8 * i + g;
        rows[i] = own < count ? x + size_t(order[own] / divide) * k : nullptr;
    }
    int blocks = (n + sizes.block_n - 1) / sizes.block_n, columns = (k + sizes.block_k - 1) / sizes.block_k;
    w += size_t(tile.x) * n * k, scales += size_t(tile.x) * blocks * columns;
    multiply<T, TILES>(rows, w, scales, first, sizes, room);
    for (int i = threadIdx.x; i < 16 * 8 * TILES; i += 32 * WARPS) {
        int row = first + i % 16, column = i / 16;
        if (row >= n || column >= count) continue;
        float all = room.total(column, i % 16);
        if (bias) all += bias[size_t(tile.x) * n + row];
        size_t at = size_t(order[column]) * n + row;
        if (wide) static_cast<float*>(y)[at] = all;
        else static_cast<T*>(y)[at] = from_float<T>(all);
    }
}

#define EXPERTS(T, TILES, NAME)                                                                                        \
    KERNEL_OF(256, 2, NAME##_##T,                                                                                      \
              (const T* x, const uint8_t* w, const float* scales, const float* bias, void* y, const uint32_t* order,   \
               const uint4* tiles, int n, int k, int block_n, int block_k, int divide, int wide),                      \
              experts<T, TILES>(x, w, scales, bias, y, order, tiles, Sizes{n, k, block_n, block_k}, divide, wide))
#define INSTANCE(T)                  \
    EXPERTS(T, 1, experts_fp8_8)     \
    EXPERTS(T, 4, experts_fp8_32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE
#undef EXPERTS

}  // namespace sconce_fp8
