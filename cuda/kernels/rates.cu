// Reads memory as fast as it can be read: what a device's figures are held against.
//
// Every thread has eight loads of 16 bytes under way; a grid of a few blocks a multiprocessor strides over all of it.

#include "prelude.cuh"

namespace sconce_rates {

// x [vectors] of 16 bytes. `never` is written to when the sum of all words is one certain value, so that no load is left out.
__device__ void read(const uint4* x, long vectors, unsigned* never) {
    constexpr int AT_ONCE = 8;
    unsigned sum = 0;
    long stride = long(gridDim.x) * blockDim.x * AT_ONCE;
    for (long first = long(blockIdx.x) * blockDim.x * AT_ONCE + threadIdx.x; first < vectors; first += stride) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            long at = first + long(i) * blockDim.x;
            if (at < vectors) {
                uint4 v = load_once(x + at);
                sum += v.x ^ v.y ^ v.z ^ v.w;
            }
        }
    }
    if (sum == 0x5ca1ab1e) atomicAdd(never, 1u);
}

KERNEL_OF(256, 6, rates_read, (const uint4* x, long vectors, unsigned* never), read(x, vectors, never))

}  // namespace sconce_rates
