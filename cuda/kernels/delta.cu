// The gated delta rule (Gated DeltaNet, arXiv 2412.06464) in its plain recurrent form: a layer whose past is one state a sequence, of
// a size that does not grow. Prompts and decodes are computed alike, token after token, and a chunk goes on where the last ended.
//
// x       [tokens, projected] f32: queries, keys, values (mixed in all), gates [values], then two numbers a value head: how much is
//         written, how much is kept
// state   [slots, tail + heads] f32: the last taps - 1 rows [mixed] of what is convolved, then [value_heads, key_dim, value_dim]
// rows    tokens row_starts[r]..row_starts[r + 1] have slot states[r] (u32::MAX: a padding row, of which nothing is touched); a row
//         whose context is its own tokens begins its sequence
// saves   [tokens]: a slot in which the state behind a token is also left, or u32::MAX
//
// All arithmetic is in f32, as on the CPU. Bound by latency: a token waits for the one before.

#include "attention.cuh"

namespace sconce_delta {

using sconce_attention::Batch;
using sconce_attention::row_of_tile;

constexpr uint32_t NONE = 0xffffffffu;

struct Sizes {
    int key_heads, value_heads, key_dim, value_dim, taps, tiled;

    __device__ __forceinline__ int keys() const { return key_heads * key_dim; }
    __device__ __forceinline__ int values() const { return value_heads * value_dim; }
    __device__ __forceinline__ int mixed() const { return 2 * keys() + values(); }
    __device__ __forceinline__ int projected() const { return mixed() + values() + 2 * value_heads; }
    __device__ __forceinline__ size_t tail() const { return size_t(taps - 1) * mixed(); }
    __device__ __forceinline__ size_t state() const { return tail() + size_t(value_heads) * key_dim * value_dim; }
    __device__ __forceinline__ int key_head(int head) const { return tiled ? head % key_heads : head / (value_heads / key_heads); }
};

struct Rows {
    const uint32_t *starts, *contexts, *states;
    int rows;

    __device__ __forceinline__ int of_token(int token) const {
        return row_of_tile(Batch{starts, contexts, nullptr, nullptr, rows, 0, 0, 1}, token, 1, 1, false);
    }
    // Whether the row's first token is its sequence's.
    __device__ __forceinline__ bool begins(int row) const { return contexts[row] == starts[row + 1] - starts[row]; }
};

// What stands `back` tokens before token `token` of a row that starts at `start`: of the step, of the tail, or nothing.
__device__ __forceinline__ float earlier(const float* x, const float* tail, const Sizes& sizes, int start, int token, int back,
                                         bool begins, int column) {
    int at = token - back;
    if (at >= start) return x[size_t(at) * sizes.projected() + column];
    int row = sizes.taps - 1 + at - start;
    return begins || row < 0 ? 0.0f : tail[size_t(row) * sizes.mixed() + column];
}

// mixed [tokens, mixed] = what is convolved behind SiLU, queries and keys of length one (queries over the root of their dimension);
// gates [tokens, value_heads, 2] = what is kept of a state, how much of the difference is written. Launch: 8 warps a token.
__device__ __forceinline__ void mix(const float* x, const float* states, const float* taps, const float* decay,
                                    const float* decay_bias, float* mixed, float* gates, const Rows& rows, const Sizes& sizes) {
    int token = blockIdx.x, row = rows.of_token(token), width = sizes.mixed();
    uint32_t slot = rows.states[row];
    if (slot == NONE) return;
    int start = int(rows.starts[row]);
    bool begins = rows.begins(row);
    const float* tail = states + slot * sizes.state();
    float* own = mixed + size_t(token) * width;
    for (int column = threadIdx.x; column < width; column += 256) {
        float sum = 0.0f;
        for (int tap = 0; tap < sizes.taps; tap++) {
            float value = earlier(x, tail, sizes, start, token, sizes.taps - 1 - tap, begins, column);
            sum += taps[size_t(tap) * width + column] * value;
        }
        own[column] = sum / (1.0f + expf(-sum));
    }
    const float* numbers = x + size_t(token) * sizes.projected() + width + sizes.values();
    for (int head = threadIdx.x; head < sizes.value_heads; head += 256) {
        float time = numbers[sizes.value_heads + head] + decay_bias[head];
        time = time > 20.0f ? time : log1pf(expf(time));
        float* gate = gates + (size_t(token) * sizes.value_heads + head) * 2;
        gate[0] = expf(decay[head] * time);
        gate[1] = 1.0f / (1.0f + expf(-numbers[head]));
    }
    __syncthreads();
    int lane = threadIdx.x % 32;
    for (int vector = threadIdx.x / 32; vector < 2 * sizes.key_heads; vector += 8) {
        float* at = own + size_t(vector) * sizes.key_dim;
        float sum = 0.0f;
        for (int i = lane; i < sizes.key_dim; i += 32) sum += at[i] * at[i];
        float factor = rsqrtf(warp_sum(sum) + 1e-6f) * (vector < sizes.key_heads ? rsqrtf(float(sizes.key_dim)) : 1.0f);
        for (int i = lane; i < sizes.key_dim; i += 32) at[i] *= factor;
    }
}

// The tails of saved states. Launch: x over tokens, y over parts of 256 columns.
__device__ __forceinline__ void save_tails(const float* x, float* states, const uint32_t* saves, const Rows& rows,
                                           const Sizes& sizes) {
    int token = blockIdx.x, row = rows.of_token(token), column = blockIdx.y * 256 + threadIdx.x;
    uint32_t slot = rows.states[row], to = saves[token];
    if (column >= sizes.mixed() || slot == NONE || to == NONE) return;
    const float* tail = states + slot * sizes.state();
    for (int i = 0; i < sizes.taps - 1; i++) {
        float value = earlier(x, tail, sizes, int(rows.starts[row]), token, sizes.taps - 2 - i, rows.begins(row), column);
        states[to * sizes.state() + size_t(i) * sizes.mixed() + column] = value;
    }
}

// The rows' own tails, once all tokens have seen the old ones. A thread goes on from older to newer, so that it reads what it has
// not written yet. Launch: x over rows, y over parts of 256 columns.
__device__ __forceinline__ void keep_tails(const float* x, float* states, const Rows& rows, const Sizes& sizes) {
    int row = blockIdx.x, column = blockIdx.y * 256 + threadIdx.x;
    uint32_t slot = rows.states[row];
    if (column >= sizes.mixed() || slot == NONE) return;
    float* tail = states + slot * sizes.state();
    int start = int(rows.starts[row]), last = int(rows.starts[row + 1]) - 1;
    for (int i = 0; i < sizes.taps - 1; i++) {
        float value = earlier(x, tail, sizes, start, last, sizes.taps - 2 - i, rows.begins(row), column);
        tail[size_t(i) * sizes.mixed() + column] = value;
    }
}

constexpr int WARPS = 4;

// seen [tokens, values]: what each token reads of its state. A block has 32 columns of one value head of one row: a lane a column,
// a warp every fourth of its key_dim rows, at most EACH of them in registers. Launch: blocks (rows, value_heads,
// ceil(value_dim / 32)) of 4 warps; key_dim at most 4 EACH.
template <int EACH>
__device__ __forceinline__ void recur(const float* mixed, const float* gates, float* states, const uint32_t* saves, float* seen,
                                      const Rows& rows, const Sizes& sizes) {
    __shared__ float vectors[2][2][WARPS * EACH], sums[2][WARPS][3][32];
    int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t slot = rows.states[row];
    if (slot == NONE) return;
    int column = blockIdx.z * 32 + lane, dim = sizes.key_dim, width = sizes.mixed();
    bool is_column = column < sizes.value_dim;
    size_t own = sizes.tail() + size_t(head) * dim * sizes.value_dim + (is_column ? column : 0);
    float state[EACH];
    bool begins = rows.begins(row);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int at = warp + WARPS * i;
        bool is_read = at < dim && is_column && !begins;
        state[i] = is_read ? states[slot * sizes.state() + own + size_t(at) * sizes.value_dim] : 0.0f;
    }
    int start = int(rows.starts[row]), end = int(rows.starts[row + 1]);
    for (int token = start; token < end; token++) {
        // Two rooms take turns, so that one barrier a token and room is enough.
        int room = token % 2;
        const float* query = mixed + size_t(token) * width + sizes.key_head(head) * dim;
        for (int i = threadIdx.x; i < dim; i += 32 * WARPS) {
            vectors[room][0][i] = query[i];
            vectors[room][1][i] = query[sizes.keys() + i];
        }
        __syncthreads();
        float known = 0.0f, asked = 0.0f, product = 0.0f;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int at = warp + WARPS * i;
            if (at >= dim) break;
            float q = vectors[room][0][at], k = vectors[room][1][at];
            known += k * state[i], asked += q * state[i], product += q * k;
        }
        sums[room][warp][0][lane] = known, sums[room][warp][1][lane] = asked, sums[room][warp][2][lane] = product;
        __syncthreads();
        known = asked = product = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) {
            known += sums[room][i][0][lane], asked += sums[room][i][1][lane], product += sums[room][i][2][lane];
        }
        const float* gate = gates + (size_t(token) * sizes.value_heads + head) * 2;
        float kept = gate[0], value = 0.0f;
        size_t place = size_t(head) * sizes.value_dim + column;
        if (is_column) value = mixed[size_t(token) * width + 2 * sizes.keys() + place];
        float change = gate[1] * (value - kept * known);
        if (warp == 0 && is_column) seen[size_t(token) * sizes.values() + place] = product * change + kept * asked;
        uint32_t to = saves[token];
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int at = warp + WARPS * i;
            if (at >= dim) break;
            state[i] = kept * state[i] + vectors[room][1][at] * change;
            if (to != NONE && is_column) states[to * sizes.state() + own + size_t(at) * sizes.value_dim] = state[i];
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int at = warp + WARPS * i;
        if (at < dim && is_column) states[slot * sizes.state() + own + size_t(at) * sizes.value_dim] = state[i];
    }
}

// y [tokens, values] T = norm of each head of seen, times SiLU of its gate in x. Launch: a warp a head of a token, 4 a block: x over
// tokens, y over parts of 4 heads.
template <typename T>
__device__ __forceinline__ void gate(const float* seen, const float* x, const float* weight, float eps, T* y, const Sizes& sizes) {
    int token = blockIdx.x, head = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, dim = sizes.value_dim;
    if (head >= sizes.value_heads) return;
    size_t at = size_t(token) * sizes.values() + size_t(head) * dim;
    const float* gates = x + size_t(token) * sizes.projected() + sizes.mixed() + size_t(head) * dim;
    float sum = 0.0f;
    for (int i = lane; i < dim; i += 32) sum += seen[at + i] * seen[at + i];
    float factor = rsqrtf(warp_sum(sum) / float(dim) + eps);
    for (int i = lane; i < dim; i += 32) {
        y[at + i] = from_float<T>(seen[at + i] * factor * weight[i] * (gates[i] / (1.0f + expf(-gates[i]))));
    }
}

// The state of one slot becomes that of another.
__device__ __forceinline__ void copy(float* states, size_t each, uint32_t from, uint32_t to) {
    size_t at = size_t(blockIdx.x) * 256 + threadIdx.x;
    if (at < each) states[to * each + at] = states[from * each + at];
}

// y = y * sigmoid(x), elements of one type: the gate on what attention has seen in the layers between.
template <typename T> __device__ __forceinline__ void sigmoid_mul(const T* x, T* y, size_t len) {
    size_t at = size_t(blockIdx.x) * 256 + threadIdx.x;
    if (at < len) y[at] = from_float<T>(to_float(y[at]) / (1.0f + expf(-to_float(x[at]))));
}

#define SIZES_PARAMETERS int key_heads, int value_heads, int key_dim, int value_dim, int taps_count, int tiled
#define SIZES Sizes{key_heads, value_heads, key_dim, value_dim, taps_count, tiled}
#define ROWS_PARAMETERS const uint32_t *row_starts, const uint32_t *contexts, const uint32_t *slots, int rows
#define ROWS Rows{row_starts, contexts, slots, rows}

KERNEL_OF(256, 4, delta_mix,
          (const float* x, const float* states, const float* taps, const float* decay, const float* decay_bias, float* mixed,
           float* gates, ROWS_PARAMETERS, SIZES_PARAMETERS),
          mix(x, states, taps, decay, decay_bias, mixed, gates, ROWS, SIZES))
KERNEL_OF(256, 4, delta_save_tails,
          (const float* x, float* states, const uint32_t* saves, ROWS_PARAMETERS, SIZES_PARAMETERS),
          save_tails(x, states, saves, ROWS, SIZES))
KERNEL_OF(256, 4, delta_keep_tails, (const float* x, float* states, ROWS_PARAMETERS, SIZES_PARAMETERS),
          keep_tails(x, states, ROWS, SIZES))
#define RECUR(EACH, BLOCKS)                                                                                                 \
    KERNEL_OF(128, BLOCKS, delta_recur_##EACH,                                                                              \
              (const float* mixed, const float* gates, float* states, const uint32_t* saves, float* seen, ROWS_PARAMETERS, \
               SIZES_PARAMETERS),                                                                                           \
              recur<EACH>(mixed, gates, states, saves, seen, ROWS, SIZES))
// So many blocks a multiprocessor as leave a state in registers.
RECUR(8, 4)
RECUR(32, 3)
RECUR(64, 2)
#undef RECUR
KERNEL(delta_copy, (float* states, size_t each, uint32_t from, uint32_t to), copy(states, each, from, to))
#define INSTANCE(T)                                                                                               \
    KERNEL_OF(128, 8, delta_gate_##T,                                                                             \
              (const float* seen, const float* x, const float* weight, float eps, T* y, SIZES_PARAMETERS),        \
              gate<T>(seen, x, weight, eps, y, SIZES))                                                            \
    KERNEL(sigmoid_mul_##T, (const T* x, T* y, size_t len), sigmoid_mul<T>(x, y, len))
INSTANCE(f32)
INSTANCE(f16)
INSTANCE(bf16)
#undef INSTANCE
#undef ROWS
#undef ROWS_PARAMETERS
#undef SIZES
#undef SIZES_PARAMETERS

}  // namespace sconce_delta
