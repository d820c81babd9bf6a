// What each layer gets of a token beside the hidden state (Gemma 3n and 4): the vectors of all layers once a step, and the gate
// on one layer's. Bound by memory: each element is read and written once.

#include "prelude.cuh"

namespace sconce_own_input {

// all = (norm(scale * projected) * weight + all) / sqrt(2), in place; the norm is over `width` elements. projected T, all f32
// [rows, width], weight [width] f32. Launch: a warp a row, 4 a block.
template <typename T>
__device__ __forceinline__ void join(const T* projected, const float* weight, float* all, int rows, int width, float scale,
                                     float eps) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const T* x = projected + size_t(row) * width;
    float* y = all + size_t(row) * width;
    float sum = 0.0f;
    for (int i = lane; i < width; i += 32) {
        float value = to_float(x[i]) * scale;
        sum += value * value;
    }
    float factor = rsqrtf(warp_sum(sum) / float(width) + eps) * scale;
    for (int i = lane; i < width; i += 32) y[i] = (to_float(x[i]) * factor * weight[i] + y[i]) * 0.70710678118654752f;
}

// y [rows, width] = gelu_tanh(gate) * own: gate [rows, width] T, own the columns from `start` on of row `chosen[row]` of all
// [tokens, stride] f32; without `chosen` row itself, and zeros for a number beyond. Launch: x over rows, y over parts of 256.
template <typename T>
__device__ __forceinline__ void gate_own(const T* gate, const float* all, const uint32_t* chosen, T* y, int width, int start,
                                         int stride, uint32_t tokens) {
    int i = blockIdx.y * 256 + threadIdx.x;
    if (i >= width) return;
    uint32_t row = chosen ? chosen[blockIdx.x] : blockIdx.x;
    float own = row < tokens ? all[size_t(row) * stride + start + i] : 0.0f;
    float x = to_float(gate[size_t(blockIdx.x) * width + i]);
    float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
    y[size_t(blockIdx.x) * width + i] = from_float<T>(0.5f * x * (1.0f + tanhf(inner)) * own);
}

#define INSTANCE(T)                                                                                                     \
    KERNEL_OF(128, 8, own_inputs_##T,                                                                                   \
              (const T* projected, const float* weight, float* all, int rows, int width, float scale, float eps),       \
              join<T>(projected, weight, all, rows, width, scale, eps))                                                 \
    KERNEL_OF(256, 4, own_gate_##T,                                                                                     \
              (const T* gate, const float* all, const uint32_t* chosen, T* y, int width, int start, int stride,         \
               uint32_t tokens),                                                                                        \
              gate_own<T>(gate, all, chosen, y, width, start, stride, tokens))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE

}  // namespace sconce_own_input
