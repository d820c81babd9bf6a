// Grouped products of a mixture of experts with quantised weights: as experts.cu, with w [experts] of units (quant_blocks.cuh)
// and x in 8 bits (quant_product.cuh), its rows gathered as they are read.
//
// Bound by reading the chosen experts' weights once for every 8 or 32 of their routes.
// Launch: blocks of 8 warps, x over tiles of 16 rows of w, y over tiles of routes, z over their parts of 8 or 32; what has no
// routes returns at once.

#include "quant_product.cuh"

namespace sconce_quant {

// Shared memory: WARPS * 8 TILES * 17 floats. y is f32, f16 or bf16 by `kind` 0, 1, 2.
template <typename F, int TILES>
__device__ __forceinline__ void experts(const uint8_t* w, const uint2* quants, const float2* meta, const float* bias, void* y,
                                        const uint32_t* order, const uint4* tiles, int n, int units, int x_tiles, int divide,
                                        int kind) {
    DYNAMIC_SHARED(float, room);
    uint4 tile = tiles[blockIdx.y];
    int count = int(tile.z) - int(blockIdx.z) * 8 * TILES;
    if (count <= 0) return;
    int lane = threadIdx.x % 32, n_tiles = (n + 15) / 16;
    order += tile.y + blockIdx.z * 8 * TILES;
    Gathered<TILES> rows;
    rows.quants = quants, rows.meta = meta, rows.tiles = x_tiles;
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        int own = 8 * i + lane / 4, pair = 8 * i + lane % 4 * 2;
        rows.own[i] = own < count ? int(order[own] / divide) : -1;
#pragma unroll
        for (int j = 0; j < 2; j++) rows.pair[i][j] = pair + j < count ? int(order[pair + j] / divide) : -1;
    }
    w += size_t(tile.x) * n_tiles * units * F::BYTES;
    product_tile<F, TILES, 1>(w, blockIdx.x, n_tiles, units, rows, room);
    for (int i = threadIdx.x; i < 8 * TILES * 16; i += 32 * WARPS) {
        int row = blockIdx.x * 16 + i % 16, column = i / 16;
        if (row >= n || column >= count) continue;
        float all = total<TILES, 1>(room, column, i % 16);
        if (bias) all += bias[size_t(tile.x) * n + row];
        size_t at = size_t(order[column]) * n + row;
        if (kind == 0) static_cast<float*>(y)[at] = all;
        else if (kind == 1) static_cast<f16*>(y)[at] = from_float<f16>(all);
        else static_cast<bf16*>(y)[at] = from_float<bf16>(all);
    }
}

#define EXPERTS(F, TILES, BLOCKS, NAME)                                                                                \
    KERNEL_OF(256, BLOCKS, NAME##_##F,                                                                                 \
              (const uint8_t* w, const uint2* quants, const float2* meta, const float* bias, void* y,                  \
               const uint32_t* order, const uint4* tiles, int n, int units, int x_tiles, int divide, int kind),        \
              experts<F, TILES>(w, quants, meta, bias, y, order, tiles, n, units, x_tiles, divide, kind))
#define INSTANCE(F)                     \
    EXPERTS(F, 1, 2, experts_8)         \
    EXPERTS(F, 4, 1, experts_32)
EACH_FORMAT(INSTANCE)
#undef INSTANCE
#undef EXPERTS

}  // namespace sconce_quant
