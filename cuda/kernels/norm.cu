// Norms of the f32 residual stream into the type that products take, and sums into it: RMSNorm (arXiv 1910.07467),
// LayerNorm (arXiv 1607.06450).
//
// One block a row of `dim` elements: full warps, at most 1024 threads. `wide`: every row and vector begins at a multiple
// of 16 bytes and dim is one of 4, so that four elements move at once. A row of up to 16 elements a thread is read once
// and stays in registers between the passes. Bound by memory: add_rms_norm moves dim * (8 + 2 sizeof(T)) bytes a row.

#include "row.cuh"

namespace sconce_norm {

// y = x / sqrt(mean(x^2) + eps) * weight. x [rows, dim] f32, weight [dim] f32, y [rows, dim] T.
template <int W, typename T>
__device__ __forceinline__ void rms_norm(const float* x, const float* weight, T* y, int dim, float eps) {
    __shared__ float room[33];
    x += size_t(blockIdx.x) * dim;
    y += size_t(blockIdx.x) * dim;
    RowPart<W> row(dim);
    float sum = 0.0f;
    auto read = [&](int at, float (&v)[W]) { load_part(x + at, v); };
    row.first([&](int at, float (&v)[W]) {
        read(at, v);
#pragma unroll
        for (int j = 0; j < W; j++) sum += v[j] * v[j];
    });
    float factor = rsqrtf(block_sum(sum, room) / float(dim) + eps);
    row.again(read, [&](int at, float (&v)[W]) {
        float w[W];
        load_part(weight + at, w);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] = v[j] * factor * w[j];
        store_part(y + at, v);
    });
}

// y = (x - mean) / sqrt(variance + eps) * weight + bias; null is no bias. As rms_norm; bias [dim] f32.
template <int W, typename T>
__device__ __forceinline__ void layer_norm(const float* x, const float* weight, const float* bias, T* y, int dim, float eps) {
    __shared__ float room[33];
    x += size_t(blockIdx.x) * dim;
    y += size_t(blockIdx.x) * dim;
    RowPart<W> row(dim);
    float sum = 0.0f, squares = 0.0f;
    auto read = [&](int at, float (&v)[W]) { load_part(x + at, v); };
    row.first([&](int at, float (&v)[W]) {
        read(at, v);
#pragma unroll
        for (int j = 0; j < W; j++) sum += v[j];
    });
    float mean = block_sum(sum, room) / float(dim);
    // In a pass of its own: the difference of two large sums would lose what the variance is made of.
    row.again(read, [&](int at, float (&v)[W]) {
#pragma unroll
        for (int j = 0; j < W; j++) squares += (v[j] - mean) * (v[j] - mean);
    });
    float factor = rsqrtf(block_sum(squares, room) / float(dim) + eps);
    row.again(read, [&](int at, float (&v)[W]) {
        float w[W], b[W] = {};
        load_part(weight + at, w);
        if (bias) load_part(bias + at, b);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] = (v[j] - mean) * factor * w[j] + b[j];
        store_part(y + at, v);
    });
}

// y + bias at `at`.
template <int W, typename Y>
__device__ __forceinline__ void load_biased(const Y* y, const float* bias, int at, float (&v)[W]) {
    load_part(y + at, v);
    if (bias) {
        float b[W];
        load_part(bias + at, b);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] += b[j];
    }
}

// residual += scale * rms_norm(y + bias); null `weight` is no norm, null is no bias. y [rows, dim] Y, residual f32.
template <int W, typename Y>
__device__ __forceinline__ void add_scaled(const Y* y, const float* bias, const float* weight, float* residual, int dim,
                                           float eps, float scale) {
    __shared__ float room[33];
    y += size_t(blockIdx.x) * dim;
    residual += size_t(blockIdx.x) * dim;
    RowPart<W> row(dim);
    float sum = 0.0f;
    auto read = [&](int at, float (&v)[W]) { load_biased(y, bias, at, v); };
    row.first([&](int at, float (&v)[W]) {
        read(at, v);
#pragma unroll
        for (int j = 0; j < W; j++) sum += v[j] * v[j];
    });
    // `weight` is the same for the whole block, so that either all its threads meet at the barrier or none.
    float factor = weight ? rsqrtf(block_sum(sum, room) / float(dim) + eps) : 1.0f;
    row.again(read, [&](int at, float (&v)[W]) {
        float r[W];
        load_part(residual + at, r);
        if (weight) {
            float w[W];
            load_part(weight + at, w);
#pragma unroll
            for (int j = 0; j < W; j++) v[j] = v[j] * factor * w[j];
        }
#pragma unroll
        for (int j = 0; j < W; j++) r[j] += scale * v[j];
        store_part(residual + at, r);
    });
}

// residual += scale * (y + bias), then out = rms_norm(residual): one launch between two products.
template <int W, typename Y, typename T>
__device__ __forceinline__ void add_rms_norm(const Y* y, const float* bias, float* residual, const float* weight, T* out,
                                             int dim, float eps, float scale) {
    __shared__ float room[33];
    y += size_t(blockIdx.x) * dim;
    residual += size_t(blockIdx.x) * dim;
    out += size_t(blockIdx.x) * dim;
    RowPart<W> row(dim);
    float sum = 0.0f;
    row.first([&](int at, float (&v)[W]) {
        float more[W];
        load_part(residual + at, v);
        load_biased(y, bias, at, more);
#pragma unroll
        for (int j = 0; j < W; j++) {
            v[j] += scale * more[j];
            sum += v[j] * v[j];
        }
        store_part(residual + at, v);
    });
    float factor = rsqrtf(block_sum(sum, room) / float(dim) + eps);
    auto read = [&](int at, float (&v)[W]) { load_part(residual + at, v); };
    row.again(read, [&](int at, float (&v)[W]) {
        float w[W];
        load_part(weight + at, w);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] = v[j] * factor * w[j];
        store_part(out + at, v);
    });
}

#define NORMS(T)                                                                                                          \
    KERNEL_OF(1024, 1, rms_norm_##T, (const float* x, const float* weight, T* y, int dim, float eps),                     \
              rms_norm<1>(x, weight, y, dim, eps))                                                                        \
    KERNEL_OF(1024, 1, rms_norm_wide_##T, (const float* x, const float* weight, T* y, int dim, float eps),                \
              rms_norm<4>(x, weight, y, dim, eps))                                                                        \
    KERNEL_OF(1024, 1, layer_norm_##T,                                                                                    \
              (const float* x, const float* weight, const float* bias, T* y, int dim, float eps),                         \
              layer_norm<1>(x, weight, bias, y, dim, eps))                                                                \
    KERNEL_OF(1024, 1, layer_norm_wide_##T,                                                                               \
              (const float* x, const float* weight, const float* bias, T* y, int dim, float eps),                         \
              layer_norm<4>(x, weight, bias, y, dim, eps))                                                                \
    KERNEL_OF(1024, 1, add_scaled_##T,                                                                                    \
              (const T* y, const float* bias, const float* weight, float* residual, int dim, float eps, float scale),     \
              add_scaled<1>(y, bias, weight, residual, dim, eps, scale))                                                  \
    KERNEL_OF(1024, 1, add_scaled_wide_##T,                                                                               \
              (const T* y, const float* bias, const float* weight, float* residual, int dim, float eps, float scale),     \
              add_scaled<4>(y, bias, weight, residual, dim, eps, scale))
NORMS(f32)
NORMS(f16)
NORMS(bf16)
#undef NORMS

#define ADD_NORM(Y, T)                                                                                                    \
    KERNEL_OF(1024, 1, add_rms_norm_##Y##_##T,                                                                            \
              (const Y* y, const float* bias, float* residual, const float* weight, T* out, int dim, float eps,           \
               float scale),                                                                                              \
              add_rms_norm<1>(y, bias, residual, weight, out, dim, eps, scale))                                           \
    KERNEL_OF(1024, 1, add_rms_norm_wide_##Y##_##T,                                                                       \
              (const Y* y, const float* bias, float* residual, const float* weight, T* out, int dim, float eps,           \
               float scale),                                                                                              \
              add_rms_norm<4>(y, bias, residual, weight, out, dim, eps, scale))
ADD_NORM(f32, f32)
ADD_NORM(f32, f16)
ADD_NORM(f32, bf16)
ADD_NORM(f16, f16)
ADD_NORM(bf16, bf16)
#undef ADD_NORM

}  // namespace sconce_norm
