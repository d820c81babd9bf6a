// Grouped products of a mixture of experts with plain weights: y[route] = x[source of the route] w[expert]^T (+ bias), for all
// routes of all experts in one launch. w [experts, n, k], bias [experts, n] f32 or null, y [routes, n].
//
// A tile of routes (routes.cu) has one expert and up to 8 or 64 routes. The source of a route is route / divide: its token for
// the first product (divide = experts a token), itself for the second.
// Tiles of 8: bound by reading each expert's weights once, as matvec.cu. Tiles of 64: 64 x 64 of y a block of 4 warps, operands
// through shared memory three deep (48 KiB, so four blocks a multiprocessor), bound by tensor cores and L2.
//
// Launch: x over rows of w, y over tiles; tiles without routes return at once.

#include "few_rows.cuh"

namespace sconce_experts {

struct Task {
    const uint32_t* order;
    const uint4* tiles;
    const float* bias;
    void* y;
    int n, k, divide, wide;
};

template <typename T>
__device__ __forceinline__ void store(const Task& task, uint32_t expert, uint32_t route, int row, float value) {
    if (task.bias) value += task.bias[size_t(expert) * task.n + row];
    size_t at = size_t(route) * task.n + row;
    if (task.wide) static_cast<float*>(task.y)[at] = value;
    else static_cast<T*>(task.y)[at] = from_float<T>(value);
}

// Launch: 8 warps, x over ceil(n / 16).
template <typename T> __device__ __forceinline__ void few(const T* x, const T* w, const Task& task) {
    __shared__ sconce_few_rows::Room<1> room;
    uint4 tile = task.tiles[blockIdx.y];
    if (tile.z == 0) return;
    int g = threadIdx.x % 32 / 4, first = blockIdx.x * 16;
    const T* rows[1] = {nullptr};
    if (g < int(tile.z)) rows[0] = x + size_t(task.order[tile.y + g] / task.divide) * task.k;
    sconce_few_rows::multiply<T, 1>(rows, w + size_t(tile.x) * task.n * task.k, first, task.n, task.k, room);
    int row = first + threadIdx.x % 16, column = threadIdx.x / 16;
    if (column >= int(tile.z) || row >= task.n) return;
    store<T>(task, tile.x, task.order[tile.y + column], row, room.total(column, threadIdx.x % 16));
}

// Any k and any number of routes a tile. Launch: 4 warps, a row of w each.
template <typename T> __device__ __forceinline__ void plain(const T* x, const T* w, const Task& task) {
    uint4 tile = task.tiles[blockIdx.y];
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= task.n) return;
    w += (size_t(tile.x) * task.n + row) * task.k;
    for (int column = 0; column < int(tile.z); column++) {
        uint32_t route = task.order[tile.y + column];
        const T* from = x + size_t(route / task.divide) * task.k;
        float sum = 0.0f;
        for (int i = lane; i < task.k; i += 32) sum += to_float(from[i]) * to_float(w[i]);
        sum = warp_sum(sum);
        if (lane == 0) store<T>(task, tile.x, route, row, sum);
    }
}

constexpr int SIDE = 64, DEPTH = 3, CHUNKS = 8;

// One operand's 64 rows of 64 elements, in 16-byte chunks whose places differ from row to row so that eight rows of a column
// lie in different banks.
template <typename T> struct Operand {
    Vec<T> at[SIDE * CHUNKS];
    __device__ __forceinline__ Vec<T>* place(int row, int chunk) { return at + row * CHUNKS + (chunk ^ (row % 8)); }
};
template <typename T> struct Stage {
    Operand<T> w, x;
};

// Launch: 4 warps, x over ceil(n / 64); shared memory DEPTH stages.
template <typename T> __device__ __forceinline__ void many(const T* x, const T* w, const Task& task) {
    DYNAMIC_SHARED(Stage<T>, stages);
    uint4 tile = task.tiles[blockIdx.y];
    if (tile.z == 0) return;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * SIDE, k = task.k;
    // A thread copies chunk threadIdx % 8 of rows threadIdx / 8 + 16 i of both operands.
    int chunk = threadIdx.x % CHUNKS, own_row = threadIdx.x / CHUNKS;
    const T *from_w[4], *from_x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = own_row + 16 * i;
        from_w[i] = first + row < task.n ? w + (size_t(tile.x) * task.n + first + row) * k : nullptr;
        from_x[i] = row < int(tile.z) ? x + size_t(task.order[tile.y + row] / task.divide) * k : nullptr;
    }
    int steps = (k + 63) / 64;
    auto copy = [&](int step) {
        if (step < steps) {
            Stage<T>& stage = stages[step % DEPTH];
            int at = step * 64 + chunk * 8;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = own_row + 16 * i;
                // What is not wanted is not read, so any address does.
                bool has_w = from_w[i] && at < k, has_x = from_x[i] && at < k;
                copy_async_16(stage.w.place(row, chunk), has_w ? from_w[i] + at : w, has_w);
                copy_async_16(stage.x.place(row, chunk), has_x ? from_x[i] + at : x, has_x);
            }
        }
        copy_async_commit();
    };
    // A warp has 32 rows of w and 32 routes.
    int w_row = warp / 2 * 32, x_row = warp % 2 * 32;
    float sum[2][4][4] = {};
#pragma unroll
    for (int i = 0; i < DEPTH - 1; i++) copy(i);
    for (int step = 0; step < steps; step++) {
        copy_async_wait<DEPTH - 2>();
        __syncthreads();
        copy(step + DEPTH - 1);
        Stage<T>& stage = stages[step % DEPTH];
#pragma unroll
        for (int part = 0; part < 4; part++) {
            uint32_t a[2][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                load_matrix_x4(a[i], stage.w.place(w_row + 16 * i + lane % 16, 2 * part + lane / 16));
                load_matrix_x4(b[i], stage.x.place(x_row + 16 * i + lane % 8 + lane / 16 * 8, 2 * part + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const uint32_t columns[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    mma_16816<T>(sum[i][j], a[i], columns);
                }
            }
        }
    }
    copy_async_wait<0>();
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int side = 0; side < 2; side++) {
            int column = x_row + 8 * j + lane % 4 * 2 + side;
            if (column >= int(tile.z)) continue;
            uint32_t route = task.order[tile.y + column];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = first + w_row + 16 * (i / 2) + lane / 4 + 8 * (i % 2);
                if (row < task.n) store<T>(task, tile.x, route, row, sum[i / 2][j][i % 2 * 2 + side]);
            }
        }
    }
}

#define PARAMETERS(T)                                                                                                \
    (const T* x, const T* w, const float* bias, void* y, const uint32_t* order, const uint4* tiles, int n, int k,    \
     int divide, int wide)
#define TASK Task{order, tiles, bias, y, n, k, divide, wide}
#define INSTANCE(T)                                                              \
    KERNEL_OF(256, 2, experts_8_##T, PARAMETERS(T), few<T>(x, w, TASK))          \
    KERNEL_OF(128, 4, experts_64_##T, PARAMETERS(T), many<T>(x, w, TASK))
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE
#define INSTANCE(T) KERNEL(experts_plain_##T, PARAMETERS(T), plain<T>(x, w, TASK))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE
#undef TASK
#undef PARAMETERS

}  // namespace sconce_experts
