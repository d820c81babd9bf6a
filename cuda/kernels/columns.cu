// Puts a narrow matrix into some columns of a wide one: products of matrices of several types that together make one row.
//
// Bound by memory: reads and writes rows * n elements once.

#include "prelude.cuh"

namespace sconce_columns {

// x [rows, n], y [rows, stride] from its first wanted column on. Launch: enough threads for rows * n, any block.
template <typename T> __device__ void place(const T* x, T* y, int rows, int n, int stride) {
    size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < size_t(rows) * n) y[at / n * stride + at % n] = x[at];
}

// The other way: y [rows, n], x [rows, stride] from its first wanted column on.
template <typename T> __device__ void take(const T* x, T* y, int rows, int n, int stride) {
    size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < size_t(rows) * n) y[at] = x[at / n * stride + at % n];
}

#define INSTANCE(T)                                                                                        \
    KERNEL(columns_##T, (const T* x, T* y, int rows, int n, int stride), place<T>(x, y, rows, n, stride))  \
    KERNEL(columns_taken_##T, (const T* x, T* y, int rows, int n, int stride), take<T>(x, y, rows, n, stride))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE

}  // namespace sconce_columns
