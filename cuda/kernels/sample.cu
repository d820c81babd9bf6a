// From rows of logits to tokens, in the order of the CPU's sampler: what a mask forbids goes first; then forbidden ids, bias,
// penalties; temperature, min-p, top-k, top-p; the draw with a uniform number that the host gives; log probabilities of the
// logits as they were behind the mask.
//
// Whole passes over a row are split over blocks of CHUNK logits (grid: chunks, rows): mask, peak, sums, score_parts. What
// needs a row's whole is one block of 1024 threads a row: choose, scores. Both are bound by reading logits out of the L2
// cache: 4 * vocab bytes a row and pass.
//
// Nothing is sorted. With d = (peak - logit) / temperature, a weight is exp(-d) in fixed point (2^43 is 1), so that sums do
// not depend on their order and equal runs give equal tokens. Whatever is asked of "the best first" is a search for the
// place at which a running count or a running mass reaches a goal: top-k, top-p and the draw itself. A search takes the
// key's bits, eleven at a time from above, with a histogram of counts and masses for each (radix select). Before it, one
// histogram over d finds which logits can matter at all; when they fit the shared memory, searches go through these only.
//
// Logits with d of 32 and more weigh less than 2^-46 and are never drawn.
//
// On sm_90a choose takes 64 registers (16 bytes spilled, none in a loop over logits) and 41 KB, scores 60 and 25 KB: one
// block of 1024 threads a multiprocessor, with 16 loads a thread under way. Not yet measured on a GPU.

#include "prelude.cuh"

namespace sconce_sample {

typedef unsigned long long u64;

constexpr int CHUNK = 4096, CHUNK_THREADS = 256, ROW_THREADS = 1024;
// Loads of a thread that are under way at once when a block goes through a row.
constexpr int LOADS = 16;
constexpr int BINS = 2048;
// Logits that searches keep in shared memory.
constexpr int LIST_MAX = 2048;
constexpr int TOP_MAX = 20;
constexpr float WEIGHT_ONE = 8796093022208.0f;
constexpr float DISTANCE_MAX = 32.0f;

// As src/ops/sample.rs writes them.
enum Mode : uint32_t { NOTHING, GREEDY, DRAW, DRAW_CUT, SCORE };
enum Status : uint32_t { DONE, NOT_FINITE, NOTHING_LEFT };
constexpr uint32_t NONE = 0xffffffffu;

struct Row {
    uint32_t mode;
    float temperature;
    // At least 1; more than the vocabulary is no cut.
    uint32_t top_k;
    float top_p;
    // ln(min_p), or minus infinity.
    float floor;
    // 53 bits in two words.
    uint32_t uniform_low, uniform_high;
    float repetition, presence, frequency;
    // 0: no log probabilities; else one more than the number of likeliest tokens.
    uint32_t logprobs;
    // Of SCORE.
    uint32_t token;
    // Where lists begin, in words of the input, and how many entries they have. Bias and seen are ids, then values.
    uint32_t mask, forbidden, forbidden_len, bias, bias_len, seen, seen_len;
    uint32_t unused;
};

// Higher numbers have higher words; both zeros have one.
__device__ __forceinline__ uint32_t ordered(float x) {
    uint32_t bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(uint32_t bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

template <typename T> __device__ __forceinline__ T larger(T a, T b) { return a < b ? b : a; }
template <typename T> __device__ __forceinline__ T smaller(T a, T b) { return b < a ? b : a; }

// `join` over the threads of a block, known to all of them. `room` holds 33; ends with a barrier.
template <typename T, typename Join> __device__ __forceinline__ T over_block(T x, T* room, T nothing, Join join) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = join(x, __shfl_xor_sync(ALL_LANES, x, step));
    if (lane == 0) room[warp] = x;
    __syncthreads();
    if (warp == 0) {
        T all = lane < warps ? room[lane] : nothing;
#pragma unroll
        for (int step = 16; step > 0; step /= 2) all = join(all, __shfl_xor_sync(ALL_LANES, all, step));
        if (lane == 0) room[32] = all;
    }
    __syncthreads();
    T all = room[32];
    __syncthreads();
    return all;
}

// Sum of the threads before this one, and of all. `room` holds 33; ends with a barrier.
template <typename T> __device__ __forceinline__ T scan_block(T own, T* room, T& total) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    T x = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        T below = __shfl_up_sync(ALL_LANES, x, step);
        if (lane >= step) x += below;
    }
    if (lane == 31) room[warp] = x;
    __syncthreads();
    if (warp == 0) {
        T mine = lane < warps ? room[lane] : T(0), sum = mine;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            T below = __shfl_up_sync(ALL_LANES, sum, step);
            if (lane >= step) sum += below;
        }
        room[lane] = sum - mine;
        if (lane == 31) room[32] = sum;
    }
    __syncthreads();
    T before = room[warp] + x - own;
    total = room[32];
    __syncthreads();
    return before;
}

// What temperature and min-p leave of a row.
struct Scaled {
    float peak, temperature, floor;
    // Whether a logit can be drawn at all, and how far it is from the peak.
    __device__ __forceinline__ bool distance(float logit, float& d) const {
        float exponent = (logit - peak) / temperature;
        d = fabsf(exponent);
        return exponent >= floor && d < DISTANCE_MAX;
    }
    __device__ static __forceinline__ u64 weight(float d) { return u64(expf(-d) * WEIGHT_ONE); }
};

__device__ __forceinline__ Scaled scaled_of(const Row& row, float peak) { return {peak, row.temperature, row.floor}; }

// Logits whose bit is not set become minus infinity.
__device__ void mask(const uint32_t* input, const Row* rows, float* logits, int vocab) {
    const Row& row = rows[blockIdx.y];
    if (row.mode == NOTHING || row.mask == NONE) return;
    const uint32_t* bits = input + row.mask;
    logits += size_t(blockIdx.y) * vocab;
    for (int id = blockIdx.x * CHUNK + threadIdx.x; id < min(vocab, int(blockIdx.x + 1) * CHUNK); id += CHUNK_THREADS)
        if (!(bits[id / 32] >> id % 32 & 1)) logits[id] = -INFINITY;
}

// One block a row: forbidden ids, bias, penalties, in place. What the logits were is kept in `saved` (as long as the input)
// where log probabilities are wanted.
__device__ void adjust(const uint32_t* input, const Row* rows, float* logits, float* saved, int vocab) {
    const Row& row = rows[blockIdx.x];
    if (row.mode == NOTHING || row.mode == SCORE) return;
    logits += size_t(blockIdx.x) * vocab;
    auto each = [&](uint32_t start, uint32_t len, auto use) {
        for (uint32_t i = threadIdx.x; i < len; i += blockDim.x) use(start + i, input[start + i]);
    };
    if (row.logprobs != 0) {
        auto save = [&](uint32_t at, uint32_t id) { saved[at] = logits[id]; };
        each(row.forbidden, row.forbidden_len, save);
        each(row.bias, row.bias_len, save);
        each(row.seen, row.seen_len, save);
    }
    __syncthreads();
    // What is not a number stays, so that it is found.
    each(row.forbidden, row.forbidden_len, [&](uint32_t, uint32_t id) {
        if (logits[id] < INFINITY) logits[id] = -INFINITY;
    });
    __syncthreads();
    // An id may be there twice.
    each(row.bias, row.bias_len, [&](uint32_t at, uint32_t id) {
        atomicAdd(&logits[id], __uint_as_float(input[at + row.bias_len]));
    });
    __syncthreads();
    each(row.seen, row.seen_len, [&](uint32_t at, uint32_t id) {
        float x = logits[id];
        uint32_t count = input[at + row.seen_len];
        if (!(x < INFINITY)) return;
        x = x > 0.0f ? x / row.repetition : x * row.repetition;
        x = fminf(x, 3.402823466e+38f);
        if (count > 0) x -= row.frequency * float(count) + row.presence;
        logits[id] = x;
    });
}

// The largest logit of each chunk with the lowest id that has it, and the first id that is not a number below infinity.
__device__ void peak(const Row* rows, const float* logits, u64* peaks, uint32_t* unsound, int vocab) {
    __shared__ u64 room[33];
    __shared__ uint32_t ids_room[33];
    if (rows[blockIdx.y].mode == NOTHING) return;
    logits += size_t(blockIdx.y) * vocab;
    u64 best = 0;
    uint32_t bad = NONE;
#pragma unroll
    for (int j = 0; j < CHUNK / CHUNK_THREADS; j++) {
        uint32_t id = blockIdx.x * CHUNK + j * CHUNK_THREADS + threadIdx.x;
        if (id < uint32_t(vocab)) {
            float x = logits[id];
            if (!(x < INFINITY)) bad = smaller(bad, id);
            best = larger(best, u64(ordered(x)) << 32 | (NONE - id));
        }
    }
    best = over_block(best, room, u64(0), larger<u64>);
    bad = over_block(bad, ids_room, NONE, smaller<uint32_t>);
    if (threadIdx.x == 0) {
        peaks[blockIdx.y * gridDim.x + blockIdx.x] = best;
        unsound[blockIdx.y * gridDim.x + blockIdx.x] = bad;
    }
}

// The peak of a whole row.
__device__ __forceinline__ u64 row_peak(const u64* peaks, int chunks, u64* room) {
    u64 best = 0;
    for (int i = threadIdx.x; i < chunks; i += blockDim.x) best = larger(best, peaks[i]);
    return over_block(best, room, u64(0), larger<u64>);
}

// The weight of each chunk, of rows that draw from all.
__device__ void sums(const Row* rows, const float* logits, const u64* peaks, u64* masses, int vocab) {
    __shared__ u64 room[33];
    const Row& row = rows[blockIdx.y];
    if (row.mode != DRAW) return;
    logits += size_t(blockIdx.y) * vocab;
    u64 best = row_peak(peaks + blockIdx.y * gridDim.x, gridDim.x, room);
    Scaled scaled = scaled_of(row, from_ordered(best >> 32));
    u64 mass = 0;
#pragma unroll
    for (int j = 0; j < CHUNK / CHUNK_THREADS; j++) {
        int id = blockIdx.x * CHUNK + j * CHUNK_THREADS + threadIdx.x;
        float d;
        if (id < vocab && scaled.distance(logits[id], d)) mass += Scaled::weight(d);
    }
    mass = over_block(mass, room, u64(0), [](u64 a, u64 b) { return a + b; });
    if (threadIdx.x == 0) masses[blockIdx.y * gridDim.x + blockIdx.x] = mass;
}

struct Found {
    uint32_t key;
    // Of those before it.
    uint32_t count;
    u64 mass;
    // How many have this key.
    uint32_t ties;
};

// Shared memory of a search.
struct Search {
    uint32_t counts[BINS];
    u64 masses[BINS];
    u64 mass_room[33];
    uint32_t count_room[33];
    uint32_t digit, before, in_digit, id;
    u64 mass_before;
};

__device__ __forceinline__ void clear_bins(Search& search) {
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) {
        search.counts[i] = 0;
        search.masses[i] = 0;
    }
    __syncthreads();
}

// Finds the bin in which a running count, or a running mass, reaches `goal` when it starts from what `found` has before it;
// there is one. Adds to `found` what the bins before it hold. 1024 threads, behind a barrier; returns the bin.
__device__ __forceinline__ uint32_t cross(Search& search, bool by_mass, u64 goal, Found& found) {
    constexpr int OWN = BINS / ROW_THREADS;
    uint32_t own_count = 0, all_count;
    u64 own_mass = 0, all_mass;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        own_count += search.counts[threadIdx.x * OWN + i];
        own_mass += search.masses[threadIdx.x * OWN + i];
    }
    uint32_t count = found.count + scan_block(own_count, search.count_room, all_count);
    u64 mass = found.mass + scan_block(own_mass, search.mass_room, all_mass);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        uint32_t bin = threadIdx.x * OWN + i, more_count = search.counts[bin];
        u64 more_mass = search.masses[bin];
        u64 before = by_mass ? mass : count, more = by_mass ? more_mass : more_count;
        if (before < goal && goal <= before + more) {
            search.digit = bin;
            search.before = count;
            search.mass_before = mass;
            search.in_digit = more_count;
        }
        count += more_count;
        mass += more_mass;
    }
    __syncthreads();
    found.count = search.before;
    found.mass = search.mass_before;
    found.ties = search.in_digit;
    uint32_t digit = search.digit;
    __syncthreads();
    return digit;
}

// The key at which a running count or mass of a source reaches `goal`, the lowest key first.
template <typename Source> __device__ Found find(const Source& source, bool by_mass, u64 goal, Search& search) {
    Found found = {0, 0, 0, 0};
    constexpr int BITS[3] = {11, 11, 10}, SHIFT[3] = {21, 10, 0};
#pragma unroll
    for (int level = 0; level < 3; level++) {
        clear_bins(search);
        source.each([&](uint32_t key, uint32_t) {
            // Of the first level all bits above are zero: a shift by the width of a word is not defined.
            uint32_t above = level == 0 ? 0 : key >> SHIFT[level] >> BITS[level];
            if (above != found.key) return;
            uint32_t digit = key >> SHIFT[level] & ((1u << BITS[level]) - 1);
            atomicAdd(&search.counts[digit], 1u);
            if (Source::WEIGHS) atomicAdd(&search.masses[digit], Source::weight(key));
        });
        __syncthreads();
        uint32_t digit = cross(search, by_mass, goal, found);
        found.key = found.key << BITS[level] | digit;
    }
    return found;
}

// The id of the `place`-th (from 0, the lowest id first) of `ties` with this key.
template <typename Source>
__device__ uint32_t tie(const Source& source, uint32_t key, uint32_t place, uint32_t ties, Search& search) {
    if (ties == 1) {
        source.each([&](uint32_t other, uint32_t id) {
            if (other == key) search.id = id;
        });
        __syncthreads();
        uint32_t id = search.id;
        __syncthreads();
        return id;
    }
    Found found = {0, 0, 0, 0};
    constexpr int BITS[2] = {11, 11}, SHIFT[2] = {11, 0};
#pragma unroll
    for (int level = 0; level < 2; level++) {
        clear_bins(search);
        source.each([&](uint32_t other, uint32_t id) {
            if (other == key && (level == 0 ? 0 : id >> BITS[0]) == found.key)
                atomicAdd(&search.counts[id >> SHIFT[level] & (BINS - 1)], 1u);
        });
        __syncthreads();
        found.key = found.key << BITS[level] | cross(search, false, u64(place) + 1, found);
    }
    return found.key;
}

// `use(id, logit)` for all logits of a row, by one block.
template <typename Use> __device__ __forceinline__ void each_logit(const float* logits, int vocab, Use use) {
    for (int base = threadIdx.x; base < vocab; base += LOADS * blockDim.x) {
        float x[LOADS];
#pragma unroll
        for (int j = 0; j < LOADS; j++) {
            int id = base + j * blockDim.x;
            x[j] = id < vocab ? logits[id] : -INFINITY;
        }
#pragma unroll
        for (int j = 0; j < LOADS; j++) {
            int id = base + j * blockDim.x;
            if (id < vocab) use(uint32_t(id), x[j]);
        }
    }
}

// Sources of searches: key and id of each candidate, in any order. A lower key is a better one.
struct RowSource {
    static constexpr bool WEIGHS = true;
    const float* logits;
    int vocab;
    Scaled scaled;
    template <typename Use> __device__ __forceinline__ void each(Use use) const {
        each_logit(logits, vocab, [&](uint32_t id, float x) {
            float d;
            if (scaled.distance(x, d)) use(__float_as_uint(d), id);
        });
    }
    __device__ static __forceinline__ u64 weight(uint32_t key) { return Scaled::weight(__uint_as_float(key)); }
};
struct ListSource {
    static constexpr bool WEIGHS = true;
    const uint32_t* keys;
    const uint32_t* ids;
    uint32_t len;
    template <typename Use> __device__ __forceinline__ void each(Use use) const {
        for (uint32_t i = threadIdx.x; i < len; i += blockDim.x) use(keys[i], ids[i]);
    }
    __device__ static __forceinline__ u64 weight(uint32_t key) { return Scaled::weight(__uint_as_float(key)); }
};
// Raw logits, minus infinity left out.
struct BestSource {
    static constexpr bool WEIGHS = false;
    const float* logits;
    int vocab;
    template <typename Use> __device__ __forceinline__ void each(Use use) const {
        each_logit(logits, vocab, [&](uint32_t id, float x) {
            if (x > -INFINITY) use(~ordered(x), id);
        });
    }
    __device__ static __forceinline__ u64 weight(uint32_t) { return 0; }
};

// The first place at which a running mass passes `uniform` of `mass`, counted in mass from 1.
__device__ __forceinline__ u64 draw_goal(const Row& row, u64 mass) {
    double uniform = (double(row.uniform_high) * 4294967296.0 + double(row.uniform_low)) / 9007199254740992.0;
    return smaller(u64(uniform * double(mass)) + 1, mass);
}

// How many of equals with this weight it takes from `before` to `goal`.
__device__ __forceinline__ u64 ties_to(u64 goal, u64 before, u64 weight) { return (goal - before + weight - 1) / weight; }

// Top-k, top-p and the draw among what a source has; `count` and `mass` are of all that can be drawn.
template <typename Source>
__device__ uint32_t choose_from(const Source& source, const Row& row, uint32_t count, u64 mass, Search& search) {
    if (row.top_k < count) {
        Found last = find(source, false, row.top_k, search);
        mass = last.mass + (row.top_k - last.count) * Source::weight(last.key);
    }
    if (row.top_p < 1.0f) {
        double exact = ceil(double(row.top_p) * double(mass));
        u64 goal = smaller(larger(u64(exact), u64(1)), mass);
        Found last = find(source, true, goal, search);
        u64 weight = Source::weight(last.key);
        mass = last.mass + ties_to(goal, last.mass, weight) * weight;
    }
    u64 goal = draw_goal(row, mass);
    Found found = find(source, true, goal, search);
    u64 place = ties_to(goal, found.mass, Source::weight(found.key)) - 1;
    return tie(source, found.key, uint32_t(place), found.ties, search);
}

// A draw with top-k or top-p.
__device__ uint32_t draw_cut(const Row& row, const RowSource& source, Search& search, uint32_t* keys, uint32_t* ids) {
    // How far the bins reach: 64 for each step of one.
    auto bin_of = [](uint32_t key) { return uint32_t(__uint_as_float(key) * (BINS / DISTANCE_MAX)); };
    clear_bins(search);
    source.each([&](uint32_t key, uint32_t) {
        atomicAdd(&search.counts[bin_of(key)], 1u);
        atomicAdd(&search.masses[bin_of(key)], RowSource::weight(key));
    });
    __syncthreads();
    uint32_t own_count = 0, count;
    u64 own_mass = 0, mass;
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) {
        own_count += search.counts[bin];
        own_mass += search.masses[bin];
    }
    scan_block(own_count, search.count_room, count);
    scan_block(own_mass, search.mass_room, mass);
    bool cuts_count = row.top_k < count;
    double exact = ceil(double(row.top_p) * double(mass));
    u64 goal = cuts_count ? row.top_k : row.top_p < 1.0f ? smaller(larger(u64(exact), u64(1)), mass) : u64(count);
    Found last = {0, 0, 0, 0};
    uint32_t last_bin = cross(search, !cuts_count && row.top_p < 1.0f, goal, last);
    uint32_t wanted = last.count + last.ties;
    if (wanted > uint32_t(LIST_MAX)) return choose_from(source, row, count, mass, search);
    if (threadIdx.x == 0) search.id = 0;
    __syncthreads();
    source.each([&](uint32_t key, uint32_t id) {
        if (bin_of(key) > last_bin) return;
        uint32_t place = atomicAdd(&search.id, 1u);
        keys[place] = key;
        ids[place] = id;
    });
    __syncthreads();
    return choose_from(ListSource{keys, ids, wanted}, row, count, mass, search);
}

// A draw from all: the running sum goes over the ids.
__device__ uint32_t draw_all(const Row& row, const RowSource& source, const u64* masses, int chunks, Search& search) {
    // As many chunks a thread as it takes; in nearly all cases one.
    int each = (chunks + ROW_THREADS - 1) / ROW_THREADS, first = threadIdx.x * each;
    u64 own = 0, mass, nothing;
    for (int i = first; i < min(first + each, chunks); i++) own += masses[i];
    u64 before = scan_block(own, search.mass_room, mass);
    u64 goal = draw_goal(row, mass);
    for (int i = first; i < min(first + each, chunks); i++) {
        if (before < goal && goal <= before + masses[i]) {
            search.digit = i;
            search.mass_before = before;
        }
        before += masses[i];
    }
    __syncthreads();
    constexpr int OWN = CHUNK / ROW_THREADS;
    int start = search.digit * CHUNK + threadIdx.x * OWN;
    u64 weights[OWN];
    own = 0;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        float d;
        bool possible = start + i < source.vocab && source.scaled.distance(source.logits[start + i], d);
        weights[i] = possible ? Scaled::weight(d) : 0;
        own += weights[i];
    }
    before = search.mass_before + scan_block(own, search.mass_room, nothing);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (before < goal && goal <= before + weights[i]) search.id = start + i;
        before += weights[i];
    }
    __syncthreads();
    uint32_t id = search.id;
    __syncthreads();
    return id;
}

struct Chosen {
    uint32_t* tokens;
    uint32_t* statuses;
    // Of a row that is not finite: the id.
    uint32_t* details;
};

// One block a row: the token. Puts back what `adjust` changed.
__device__ void choose(const uint32_t* input, const Row* rows, float* logits, const float* saved, const u64* peaks,
                       const uint32_t* unsound, const u64* masses, Chosen chosen, int vocab, int chunks) {
    __shared__ Search search;
    __shared__ uint32_t keys[LIST_MAX], ids[LIST_MAX];
    const Row& row = rows[blockIdx.x];
    if (row.mode == NOTHING) return;
    logits += size_t(blockIdx.x) * vocab;
    peaks += size_t(blockIdx.x) * chunks;
    unsound += size_t(blockIdx.x) * chunks;
    masses += size_t(blockIdx.x) * chunks;
    u64 best = row_peak(peaks, chunks, search.mass_room);
    uint32_t bad = NONE;
    for (int i = threadIdx.x; i < chunks; i += blockDim.x) bad = smaller(bad, unsound[i]);
    bad = over_block(bad, search.count_room, NONE, smaller<uint32_t>);
    float peak = from_ordered(best >> 32);
    uint32_t status = bad != NONE ? NOT_FINITE : peak == -INFINITY ? NOTHING_LEFT : DONE;
    uint32_t token = NONE - uint32_t(best);
    if (row.mode == SCORE) token = row.token;
    if (status == DONE && (row.mode == DRAW || row.mode == DRAW_CUT)) {
        RowSource source = {logits, vocab, scaled_of(row, peak)};
        token = row.mode == DRAW ? draw_all(row, source, masses, chunks, search)
                                 : draw_cut(row, source, search, keys, ids);
    }
    if (row.logprobs != 0 && row.mode != SCORE) {
        // All threads have read what they need: every draw ends with a barrier.
        auto restore = [&](uint32_t start, uint32_t len) {
            for (uint32_t i = threadIdx.x; i < len; i += blockDim.x) logits[input[start + i]] = saved[start + i];
        };
        restore(row.forbidden, row.forbidden_len);
        restore(row.bias, row.bias_len);
        restore(row.seen, row.seen_len);
    }
    if (threadIdx.x == 0) {
        chosen.tokens[blockIdx.x] = token;
        chosen.statuses[blockIdx.x] = status;
        chosen.details[blockIdx.x] = bad;
    }
}

// Parts of log probabilities.
struct Parts {
    float* maxima;
    double* sums;
    // Logits that come before the row's token, and logits above minus infinity.
    uint32_t* ranks;
    uint32_t* possible;
};

// For each chunk: its largest logit, the sum of exp(logit - largest), and the counts of Parts.
__device__ void score_parts(const Row* rows, const float* logits, Chosen chosen, Parts parts, int vocab) {
    __shared__ double sum_room[33];
    __shared__ uint32_t count_room[33];
    __shared__ float room[33];
    if (rows[blockIdx.y].logprobs == 0 || chosen.statuses[blockIdx.y] != DONE) return;
    logits += size_t(blockIdx.y) * vocab;
    uint32_t token = chosen.tokens[blockIdx.y];
    float own = logits[token], x[CHUNK / CHUNK_THREADS], largest = -INFINITY;
    uint32_t rank = 0, possible = 0;
#pragma unroll
    for (int j = 0; j < CHUNK / CHUNK_THREADS; j++) {
        uint32_t id = blockIdx.x * CHUNK + j * CHUNK_THREADS + threadIdx.x;
        x[j] = id < uint32_t(vocab) ? logits[id] : -INFINITY;
        largest = fmaxf(largest, x[j]);
        rank += id < uint32_t(vocab) && (x[j] > own || (x[j] == own && id < token));
        possible += x[j] > -INFINITY;
    }
    largest = block_max(largest, room);
    double sum = 0.0;
#pragma unroll
    for (int j = 0; j < CHUNK / CHUNK_THREADS; j++)
        if (x[j] > -INFINITY) sum += double(expf(x[j] - largest));
    sum = over_block(sum, sum_room, 0.0, [](double a, double b) { return a + b; });
    auto add = [](uint32_t a, uint32_t b) { return a + b; };
    rank = over_block(rank, count_room, 0u, add);
    possible = over_block(possible, count_room, 0u, add);
    if (threadIdx.x == 0) {
        size_t at = size_t(blockIdx.y) * gridDim.x + blockIdx.x;
        parts.maxima[at] = largest;
        parts.sums[at] = sum;
        parts.ranks[at] = rank;
        parts.possible[at] = possible;
    }
}

// One block a row. scores [rows, 4 + 2 TOP_MAX] words: log probability, rank, number of the likeliest, nothing; their ids;
// their log probabilities.
__device__ void scores(const Row* rows, const float* logits, Chosen chosen, Parts parts, uint32_t* scores, int vocab, int chunks) {
    __shared__ Search search;
    __shared__ double sum_room[33];
    __shared__ float room[33];
    __shared__ uint32_t keys[TOP_MAX], ids[TOP_MAX];
    const Row& row = rows[blockIdx.x];
    if (row.logprobs == 0 || chosen.statuses[blockIdx.x] != DONE) return;
    logits += size_t(blockIdx.x) * vocab;
    scores += size_t(blockIdx.x) * (4 + 2 * TOP_MAX);
    size_t first = size_t(blockIdx.x) * chunks;
    float largest = -INFINITY;
    uint32_t own_rank = 0, own_possible = 0, rank, possible;
    for (int i = threadIdx.x; i < chunks; i += blockDim.x) {
        largest = fmaxf(largest, parts.maxima[first + i]);
        own_rank += parts.ranks[first + i];
        own_possible += parts.possible[first + i];
    }
    largest = block_max(largest, room);
    scan_block(own_rank, search.count_room, rank);
    scan_block(own_possible, search.count_room, possible);
    double sum = 0.0;
    for (int i = threadIdx.x; i < chunks; i += blockDim.x)
        if (parts.sums[first + i] > 0.0) sum += parts.sums[first + i] * double(expf(parts.maxima[first + i] - largest));
    sum = over_block(sum, sum_room, 0.0, [](double a, double b) { return a + b; });
    double log_sum = double(largest) + log(sum);
    uint32_t count = smaller(smaller(row.logprobs - 1, uint32_t(TOP_MAX)), possible);
    if (count > 0) {
        BestSource source = {logits, vocab};
        Found last = find(source, false, count, search);
        uint32_t taken = count - last.count;
        uint32_t last_id = tie(source, last.key, taken - 1, last.ties, search);
        if (threadIdx.x == 0) search.id = 0;
        __syncthreads();
        source.each([&](uint32_t key, uint32_t id) {
            if (key < last.key || (key == last.key && id <= last_id)) {
                uint32_t place = atomicAdd(&search.id, 1u);
                keys[place] = key;
                ids[place] = id;
            }
        });
        __syncthreads();
        if (threadIdx.x < count) {
            uint32_t place = 0, key = keys[threadIdx.x], id = ids[threadIdx.x];
            for (uint32_t i = 0; i < count; i++) place += keys[i] < key || (keys[i] == key && ids[i] < id);
            scores[4 + place] = id;
            scores[4 + TOP_MAX + place] = __float_as_uint(float(double(logits[id]) - log_sum));
        }
    }
    if (threadIdx.x == 0) {
        scores[0] = __float_as_uint(float(double(logits[chosen.tokens[blockIdx.x]]) - log_sum));
        scores[1] = rank + 1;
        scores[2] = count;
        scores[3] = 0;
    }
}

KERNEL_OF(256, 4, sample_mask, (const uint32_t* input, float* logits, int vocab),
          mask(input, reinterpret_cast<const Row*>(input), logits, vocab))
KERNEL_OF(256, 4, sample_adjust, (const uint32_t* input, float* logits, float* saved, int vocab),
          adjust(input, reinterpret_cast<const Row*>(input), logits, saved, vocab))
KERNEL_OF(256, 4, sample_peak, (const uint32_t* input, const float* logits, u64* peaks, uint32_t* unsound, int vocab),
          peak(reinterpret_cast<const Row*>(input), logits, peaks, unsound, vocab))
KERNEL_OF(256, 4, sample_sums, (const uint32_t* input, const float* logits, const u64* peaks, u64* masses, int vocab),
          sums(reinterpret_cast<const Row*>(input), logits, peaks, masses, vocab))
KERNEL_OF(1024, 1, sample_choose,
          (const uint32_t* input, float* logits, const float* saved, const u64* peaks, const uint32_t* unsound,
           const u64* masses, uint32_t* tokens, uint32_t* statuses, uint32_t* details, int vocab, int chunks),
          choose(input, reinterpret_cast<const Row*>(input), logits, saved, peaks, unsound, masses,
                 Chosen{tokens, statuses, details}, vocab, chunks))
KERNEL_OF(256, 4, sample_score_parts,
          (const uint32_t* input, const float* logits, uint32_t* tokens, uint32_t* statuses, float* maxima, double* sums,
           uint32_t* ranks, uint32_t* possible, int vocab),
          score_parts(reinterpret_cast<const Row*>(input), logits, Chosen{tokens, statuses, nullptr},
                      Parts{maxima, sums, ranks, possible}, vocab))
KERNEL_OF(1024, 1, sample_scores,
          (const uint32_t* input, const float* logits, uint32_t* tokens, uint32_t* statuses, float* maxima, double* sums,
           uint32_t* ranks, uint32_t* possible, uint32_t* out, int vocab, int chunks),
          scores(reinterpret_cast<const Row*>(input), logits, Chosen{tokens, statuses, nullptr},
                 Parts{maxima, sums, ranks, possible}, out, vocab, chunks))

}  // namespace sconce_sample
