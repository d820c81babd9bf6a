// Rows taken by index, and work on single elements: conversions, scale and cap.
//
// gather: block (r, c) copies part c of row r. The others: one access of W elements a thread. All bound by memory.

#include "row.cuh"

namespace sconce_rows {

// y[r] = x[indices[r]], zeros for an index beyond x. x [rows_in, dim], y [rows, dim] T; W divides dim.
template <int W, typename T>
__device__ __forceinline__ void gather(const T* x, const uint32_t* indices, T* y, int dim, int rows_in) {
    uint32_t index = indices[blockIdx.x];
    int at = (blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (at >= dim) return;
    float v[W] = {};
    if (index < uint32_t(rows_in)) load_part(x + size_t(index) * dim + at, v);
    store_part(y + size_t(blockIdx.x) * dim + at, v);
}

template <int W, typename X, typename Y>
__device__ __forceinline__ void convert(const X* x, Y* y, size_t len) {
    size_t at = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * W;
    if (at >= len) return;
    float v[W];
    load_part(x + at, v);
    store_part(y + at, v);
}

// x = scale * x, then cap * tanh(x / cap) unless cap is 0. In place.
template <int W> __device__ __forceinline__ void cap_all(float* x, size_t len, float scale, float cap) {
    size_t at = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * W;
    if (at >= len) return;
    float v[W];
    load_part(x + at, v);
#pragma unroll
    for (int j = 0; j < W; j++) {
        v[j] *= scale;
        if (cap != 0.0f) v[j] = tanhf(v[j] / cap) * cap;
    }
    store_part(x + at, v);
}

#define GATHER(T)                                                                                                         \
    KERNEL(gather_##T, (const T* x, const uint32_t* indices, T* y, int dim, int rows_in),                                 \
           gather<1>(x, indices, y, dim, rows_in))                                                                        \
    KERNEL(gather_wide_##T, (const T* x, const uint32_t* indices, T* y, int dim, int rows_in),                            \
           gather<16 / sizeof(T)>(x, indices, y, dim, rows_in))
GATHER(f32)
GATHER(f16)
GATHER(bf16)
#undef GATHER

#define CONVERT(X, Y)                                                                                \
    KERNEL(convert_##X##_##Y, (const X* x, Y* y, size_t len), convert<1>(x, y, len))                 \
    KERNEL(convert_wide_##X##_##Y, (const X* x, Y* y, size_t len), convert<4>(x, y, len))
CONVERT(f32, f32)
CONVERT(f32, f16)
CONVERT(f32, bf16)
CONVERT(f16, f32)
CONVERT(bf16, f32)
#undef CONVERT

KERNEL(scale_and_cap, (float* x, size_t len, float scale, float cap), cap_all<1>(x, len, scale, cap))
KERNEL(scale_and_cap_wide, (float* x, size_t len, float scale, float cap), cap_all<4>(x, len, scale, cap))

}  // namespace sconce_rows
