// What kernels that go through rows share: some elements in one access, and a walk of a block along one row.
#pragma once

#include "prelude.cuh"

// W elements moved in one access, as floats. The address must be a multiple of W elements' bytes, which at most are 16.
template <int W, typename T> __device__ __forceinline__ void load_part(const T* from, float (&to)[W]) {
    struct __align__(W * sizeof(T)) Part { T at[W]; } part = *reinterpret_cast<const Part*>(from);
#pragma unroll
    for (int j = 0; j < W; j++) to[j] = to_float(part.at[j]);
}
template <int W, typename T> __device__ __forceinline__ void store_part(T* to, const float (&from)[W]) {
    struct __align__(W * sizeof(T)) Part { T at[W]; } part;
#pragma unroll
    for (int j = 0; j < W; j++) part.at[j] = from_float<T>(from[j]);
    *reinterpret_cast<Part*>(to) = part;
}

// A thread's part of one row of `dim` elements (a multiple of W): the first KEPT accesses stay in registers from pass to
// pass; what a longer row has beyond that is read again.
template <int W> struct RowPart {
    static constexpr int KEPT = 4;
    float kept[KEPT][W];
    int dim;

    __device__ __forceinline__ explicit RowPart(int dim) : dim(dim) {}

    // `read(at, values)` gives the elements at `at`, and does with them what the first pass is for.
    template <typename Read> __device__ __forceinline__ void first(Read read) {
#pragma unroll
        for (int i = 0; i < KEPT; i++) {
            int at = (threadIdx.x + i * blockDim.x) * W;
            if (at < dim) read(at, kept[i]);
        }
        for (int at = (threadIdx.x + KEPT * blockDim.x) * W; at < dim; at += blockDim.x * W) {
            float values[W];
            read(at, values);
        }
    }

    // `use(at, values)` of the same elements; `read` again gives those that were not kept.
    template <typename Read, typename Use> __device__ __forceinline__ void again(Read read, Use use) {
#pragma unroll
        for (int i = 0; i < KEPT; i++) {
            int at = (threadIdx.x + i * blockDim.x) * W;
            if (at < dim) use(at, kept[i]);
        }
        for (int at = (threadIdx.x + KEPT * blockDim.x) * W; at < dim; at += blockDim.x * W) {
            float values[W];
            read(at, values);
            use(at, values);
        }
    }
};
