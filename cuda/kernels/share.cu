// Adds a part of each row that a score of the row says: the expert that every token sees, where a router says how much of it.
//
// Bound by memory: reads rows * width twice and writes them once.

#include "prelude.cuh"

namespace sconce_share {

// x [rows, width] T, scores [rows] F32, y [rows, width] F32. Launch: (width / 256, rows) blocks of 256 threads.
template <typename T> __device__ void add_share(const T* x, const float* scores, float* y, int width) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    size_t at = size_t(blockIdx.y) * width + column;
    float share = 1.0f / (1.0f + expf(-scores[blockIdx.y]));
    y[at] += share * to_float(x[at]);
}

#define INSTANCE(T)                                                                          \
    KERNEL(add_share_##T, (const T* x, const float* scores, float* y, int width), add_share<T>(x, scores, y, width))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE

}  // namespace sconce_share
