// Activations between the products of a feed-forward layer, with or without something that they gate.
//
// Block (r, c) does part c of row r, one access of W elements a thread; `wide` is 16 bytes. Bound by memory: a gated row
// moves 3 * width * sizeof(T) bytes.

#include "row.cuh"

namespace sconce_activate {

struct Silu {
    __device__ static __forceinline__ float of(float x) { return x / (1.0f + __expf(-x)); }
    __device__ static __forceinline__ float gated(float gate, float up) { return of(gate) * up; }
};
// Hendrycks and Gimpel, arXiv 1606.08415, with the tanh approximation and exactly.
struct GeluTanh {
    __device__ static __forceinline__ float of(float x) {
        float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
        return 0.5f * x * (1.0f + tanhf(inner));
    }
    __device__ static __forceinline__ float gated(float gate, float up) { return of(gate) * up; }
};
struct Gelu {
    __device__ static __forceinline__ float of(float x) { return 0.5f * x * (1.0f + erff(x * 0.7071067812f)); }
};
struct Relu {
    __device__ static __forceinline__ float of(float x) { return fmaxf(x, 0.0f); }
};
// gate * sigmoid(1.702 gate) * (up + 1), gate at most 7, up within -7..7 (GPT-OSS).
struct ClampedSwiglu {
    __device__ static __forceinline__ float gated(float gate, float up) {
        gate = fminf(gate, 7.0f);
        up = fminf(fmaxf(up, -7.0f), 7.0f) + 1.0f;
        return gate / (1.0f + __expf(-1.702f * gate)) * up;
    }
};

template <int W> __device__ __forceinline__ void add_part(const float* bias, float (&v)[W]) {
    if (!bias) return;
#pragma unroll
    for (int j = 0; j < W; j++) v[j] += bias[j];
}

// y = activation(gate) * up. x [rows, 2 * width] T, gate before up; bias [2 * width] f32 or null; y [rows, width] T.
template <typename A, int W, typename T>
__device__ __forceinline__ void gated(const T* x, const float* bias, T* y, int width) {
    int at = (blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (at >= width) return;
    x += size_t(blockIdx.x) * 2 * width + at;
    float gate[W], up[W];
    load_part(x, gate);
    load_part(x + width, up);
    add_part(bias ? bias + at : nullptr, gate);
    add_part(bias ? bias + width + at : nullptr, up);
#pragma unroll
    for (int j = 0; j < W; j++) gate[j] = A::gated(gate[j], up[j]);
    store_part(y + size_t(blockIdx.x) * width + at, gate);
}

// y = activation(x + bias). x, y [rows, width] T, which may be the same; bias [width] f32 or null.
template <typename A, int W, typename T>
__device__ __forceinline__ void activated(const T* x, const float* bias, T* y, int width) {
    int at = (blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (at >= width) return;
    float v[W];
    load_part(x + size_t(blockIdx.x) * width + at, v);
    add_part(bias ? bias + at : nullptr, v);
#pragma unroll
    for (int j = 0; j < W; j++) v[j] = A::of(v[j]);
    store_part(y + size_t(blockIdx.x) * width + at, v);
}

// y += bias, in place.
template <int W, typename T> __device__ __forceinline__ void add_bias(const float* bias, T* y, int width) {
    int at = (blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (at >= width) return;
    float v[W];
    y += size_t(blockIdx.x) * width + at;
    load_part(y, v);
    add_part(bias + at, v);
    store_part(y, v);
}

#define GATED(name, A, T)                                                                     \
    KERNEL(gated_##name##_##T, (const T* x, const float* bias, T* y, int width),              \
           gated<A, 1>(x, bias, y, width))                                                    \
    KERNEL(gated_##name##_wide_##T, (const T* x, const float* bias, T* y, int width),         \
           gated<A, 16 / sizeof(T)>(x, bias, y, width))
#define ACTIVATED(name, A, T)                                                                 \
    KERNEL(activated_##name##_##T, (const T* x, const float* bias, T* y, int width),          \
           activated<A, 1>(x, bias, y, width))                                                \
    KERNEL(activated_##name##_wide_##T, (const T* x, const float* bias, T* y, int width),     \
           activated<A, 16 / sizeof(T)>(x, bias, y, width))
#define INSTANCE(T)                                                                           \
    GATED(silu, Silu, T)                                                                      \
    GATED(gelu_tanh, GeluTanh, T)                                                             \
    GATED(clamped_swiglu, ClampedSwiglu, T)                                                   \
    ACTIVATED(silu, Silu, T)                                                                  \
    ACTIVATED(gelu_tanh, GeluTanh, T)                                                         \
    ACTIVATED(gelu, Gelu, T)                                                                  \
    ACTIVATED(relu, Relu, T)                                                                  \
    KERNEL(add_bias_##T, (const float* bias, T* y, int width), add_bias<1>(bias, y, width))   \
    KERNEL(add_bias_wide_##T, (const float* bias, T* y, int width), add_bias<16 / sizeof(T)>(bias, y, width))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE
#undef ACTIVATED
#undef GATED

}  // namespace sconce_activate
