// Quantised weights to plain elements: whole matrices for products of many rows, single rows for embeddings.
//
// Bound by memory: the matrix as it is stored, and n k sizeof(T) bytes to write. Layout: quant_blocks.cuh.

#include "quant_blocks.cuh"

namespace sconce_dequant {
using namespace sconce_quant;

template <typename T> struct __align__(4 * sizeof(T)) Four {
    T at[4];
};

// out [n, k] T. A warp has a unit; a lane writes 4 + 4 elements of two rows for each block, so that four lanes fill sectors.
// Launch: 4 warps a block, ceil(tiles * units / 4) blocks.
template <typename F, typename T>
__device__ __forceinline__ void matrix(const uint8_t* w, T* out, int n, int k, int units, long warps) {
    long warp = long(blockIdx.x) * 4 + threadIdx.x / 32;
    if (warp >= warps) return;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int tile = int(warp / units), unit = int(warp % units);
    F piece;
    piece.load(w + size_t(warp) * F::BYTES, lane);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = tile * 16 + g + 8 * half;
        if (row >= n) continue;
#pragma unroll
        for (int b = 0; b < 4 * F::GROUPS; b++) {
            int at = (unit * 4 * F::GROUPS + b) * 32;
            if (at >= k) continue;
            uint32_t words[2];
            piece.words(half, b, words[0], words[1]);
#pragma unroll
            for (int side = 0; side < 2; side++) {
                float scale = piece.scale(half, b, side), offset = piece.offset(half, b, side);
                Four<T> four;
#pragma unroll
                for (int i = 0; i < 4; i++) four.at[i] = from_float<T>(value_of(piece, words[side], i, scale, offset));
                *reinterpret_cast<Four<T>*>(out + size_t(row) * k + at + 16 * side + 4 * t) = four;
            }
        }
    }
}

// out [tokens, k] f32 = factor * row ids[token] of the table; zeros for ids that it has not. Launch: a block a token, four
// lanes a unit.
template <typename F>
__device__ __forceinline__ void embedding(const uint8_t* w, const uint32_t* ids, float* out, int n, int k, int units,
                                          float factor) {
    uint32_t id = ids[blockIdx.x];
    out += size_t(blockIdx.x) * k;
    if (id >= uint32_t(n)) {
        for (int i = threadIdx.x; i < k; i += blockDim.x) out[i] = 0.0f;
        return;
    }
    int mine = int(id % 16), t = threadIdx.x % 4;
    for (int unit = threadIdx.x / 4; unit < units; unit += blockDim.x / 4) {
        F piece;
        piece.load(w + (size_t(id / 16) * units + unit) * F::BYTES, mine % 8 * 4 + t);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (half != mine / 8) continue;
#pragma unroll
            for (int b = 0; b < 4 * F::GROUPS; b++) {
                int at = (unit * 4 * F::GROUPS + b) * 32;
                if (at >= k) continue;
                uint32_t words[2];
                piece.words(half, b, words[0], words[1]);
#pragma unroll
                for (int side = 0; side < 2; side++) {
                    float scale = piece.scale(half, b, side), offset = piece.offset(half, b, side);
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        out[at + 16 * side + 4 * t + i] = value_of(piece, words[side], i, scale, offset) * factor;
                }
            }
        }
    }
}

#define MATRIX(F, T)                                                                              \
    KERNEL(dequantise_##F##_##T, (const uint8_t* w, T* out, int n, int k, int units, long warps), \
           matrix<F, T>(w, out, n, k, units, warps))
#define INSTANCE(F)                                                                                                  \
    MATRIX(F, f32)                                                                                                   \
    MATRIX(F, f16)                                                                                                   \
    MATRIX(F, bf16)                                                                                                  \
    KERNEL(embedding_##F,                                                                                            \
           (const uint8_t* w, const uint32_t* ids, float* out, int n, int k, int units, float factor),              \
           embedding<F>(w, ids, out, n, k, units, factor))
EACH_FORMAT(INSTANCE)
#undef INSTANCE
#undef MATRIX

}  // namespace sconce_dequant
