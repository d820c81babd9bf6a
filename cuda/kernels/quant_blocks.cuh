// Quantised weights as this back end keeps them, and how a lane reads them.
//
// GGUF's blocks of 18 to 210 bytes allow no wide aligned loads, so rows are packed anew at upload (src/ops/quant/pack.rs),
// losslessly. A unit is 16 rows of 128 elements (types with blocks of 32) or of 256 (super-blocks): first the quants, in the
// order of the tensor core's fragments, so that every load of a warp is one run of 512 bytes; then the scales, row by row.
//   unit (tile of 16 rows, part of k) at (tile * units + part) * BYTES
// With g = lane / 4 and t = lane % 4 a lane holds, of rows g (half 0) and g + 8 (half 1) and each block b of 32, the
// elements 4t..4t+3 (side 0) and 16+4t..16+4t+3 (side 1), each four bytes of a word.
//
// A format is a struct of a lane's piece of a unit with
//   words(half, b, low, high)   its 4 + 4 quants as signed bytes, times a power of two that scale() takes back
//   scale(half, b, side)        what a byte counts
//   offset(half, b, side)       what is added to each element, where HAS_OFFSET
// Formats whose parts of 16 have their own scale say SPLIT. All of it is exact in f32, with or without fused steps.
#pragma once

#include "prelude.cuh"

namespace sconce_quant {

__device__ __forceinline__ uint32_t component(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
__device__ __forceinline__ uint32_t component(const uint2& v, int i) { return i == 0 ? v.x : v.y; }
__device__ __forceinline__ float half_in(uint32_t word, int which) {
    uint16_t bits = uint16_t(word >> (16 * which));
    return to_float(*reinterpret_cast<const f16*>(&bits));
}
__device__ __forceinline__ int byte_in(uint32_t word, int which) { return int(word >> (8 * which) & 0xff); }
__device__ __forceinline__ int signed_byte_in(uint32_t word, int which) { return int(int8_t(word >> (8 * which))); }
// All bytes of a word, moved left by so many bits, or right.
__device__ __forceinline__ uint32_t moved(uint32_t word, int left) { return left >= 0 ? word << left : word >> -left; }
template <typename T> __device__ __forceinline__ T load_scales(const uint8_t* from) {
    return __ldg(reinterpret_cast<const T*>(from));
}

// Planes of quants: `load` takes the start of the plane.
template <int GROUPS> struct Nibbles {
    static constexpr int BYTES = 1024 * GROUPS;
    uint4 at[2 * GROUPS];
    __device__ __forceinline__ void load(const uint8_t* from, int lane) {
#pragma unroll
        for (int i = 0; i < 2 * GROUPS; i++) at[i] = load_once(reinterpret_cast<const uint4*>(from + 512 * i + 16 * lane));
    }
    // Byte j: element j of side 0 below, of side 1 above; of formats with a table: nibble j is element j of both.
    __device__ __forceinline__ uint32_t word(int half, int b) const { return component(at[b / 4 * 2 + half], b % 4); }
};
// Two bits an element, 256 elements: byte j of a word has element j of block b, side s at bits 2 (2 (b % 2) + s).
struct Pairs {
    static constexpr int BYTES = 1024;
    uint4 at[2];
    __device__ __forceinline__ void load(const uint8_t* from, int lane) {
#pragma unroll
        for (int i = 0; i < 2; i++) at[i] = load_once(reinterpret_cast<const uint4*>(from + 512 * i + 16 * lane));
    }
    __device__ __forceinline__ uint32_t word(int half, int b) const { return component(at[half], b / 2); }
};
// One bit an element: byte j of a word has element j of block b, side s at bit 2 (b % 4) + s.
template <int GROUPS> struct Bits {
    static constexpr int BYTES = 256 * GROUPS;
    uint32_t at[2 * GROUPS];
    __device__ __forceinline__ void load(const uint8_t* from, int lane) {
        if constexpr (GROUPS == 1) {
            uint2 v = load_scales<uint2>(from + 8 * lane);
            at[0] = v.x, at[1] = v.y;
        } else {
            uint4 v = load_once(reinterpret_cast<const uint4*>(from + 16 * lane));
            at[0] = v.x, at[1] = v.y, at[2] = v.z, at[3] = v.w;
        }
    }
    __device__ __forceinline__ uint32_t word(int half, int b) const { return at[half * GROUPS + b / 4]; }
};

constexpr uint32_t TOPS = 0x80808080u;

// Scales of a lane's two rows: BYTES a row.
template <typename T> struct Scales {
    static constexpr int BYTES = 16 * sizeof(T);
    T at[2];
    __device__ __forceinline__ void load(const uint8_t* from, int lane) {
        at[0] = load_scales<T>(from + sizeof(T) * (lane / 4));
        at[1] = load_scales<T>(from + sizeof(T) * (lane / 4 + 8));
    }
};

struct Plain {
    static constexpr bool SPLIT = false, HAS_OFFSET = false, HAS_BYTE_OFFSET = false;
    __device__ __forceinline__ float offset(int, int, int) const { return 0.0f; }
};

// 16 values by the nibbles of a word, in their order.
__device__ __forceinline__ void look_up(uint32_t word, const uint32_t (&table)[4], uint32_t& low, uint32_t& high) {
    uint32_t index = word & 0x77777777u, upper = 0x32103210u | (word & 0x88888888u) >> 1;
    low = __byte_perm(__byte_perm(table[0], table[1], index), __byte_perm(table[2], table[3], index), upper);
    index >>= 16, upper >>= 16;
    high = __byte_perm(__byte_perm(table[0], table[1], index), __byte_perm(table[2], table[3], index), upper);
}
// Values of IQ4_NL and IQ4_XS, and doubled ones of MXFP4, four a word (kernels/src/cpu/dequant.rs).
__device__ __forceinline__ void look_up_iq4(uint32_t word, uint32_t& low, uint32_t& high) {
    const uint32_t table[4] = {0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u};
    look_up(word, table, low, high);
}
__device__ __forceinline__ void look_up_mxfp4(uint32_t word, uint32_t& low, uint32_t& high) {
    const uint32_t table[4] = {0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu};
    look_up(word, table, low, high);
}

struct q4_0 : Plain {
    static constexpr int GROUPS = 1, BYTES = 1152;
    Nibbles<1> nibbles;
    Scales<uint2> scales;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        nibbles.load(unit, lane);
        scales.load(unit + 1024, lane);
    }
    // 16 (q - 8)
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        uint32_t word = nibbles.word(half, b);
        low = (word << 4 & 0xf0f0f0f0u) ^ TOPS;
        high = (word & 0xf0f0f0f0u) ^ TOPS;
    }
    __device__ __forceinline__ float scale(int half, int b, int) const {
        return half_in(component(scales.at[half], b / 2), b % 2) * 0.0625f;
    }
};

struct q4_1 : Plain {
    static constexpr int GROUPS = 1, BYTES = 1280;
    static constexpr bool HAS_OFFSET = true;
    Nibbles<1> nibbles;
    Scales<uint4> scales;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        nibbles.load(unit, lane);
        scales.load(unit + 1024, lane);
    }
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        uint32_t word = nibbles.word(half, b);
        low = word & 0x0f0f0f0fu;
        high = word >> 4 & 0x0f0f0f0fu;
    }
    __device__ __forceinline__ float scale(int half, int b, int) const { return half_in(component(scales.at[half], b), 0); }
    __device__ __forceinline__ float offset(int half, int b, int) const { return half_in(component(scales.at[half], b), 1); }
};

struct q5_0 : Plain {
    static constexpr int GROUPS = 1, BYTES = 1408;
    Nibbles<1> nibbles;
    Bits<1> bits;
    Scales<uint2> scales;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        nibbles.load(unit, lane);
        bits.load(unit + 1024, lane);
        scales.load(unit + 1280, lane);
    }
    // 8 (q - 16)
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        uint32_t word = nibbles.word(half, b), tops = bits.word(half, b);
        int bit = 2 * (b % 4);
        low = ((word << 3 & 0x78787878u) | (moved(tops, 7 - bit) & TOPS)) ^ TOPS;
        high = ((word >> 1 & 0x78787878u) | (moved(tops, 6 - bit) & TOPS)) ^ TOPS;
    }
    __device__ __forceinline__ float scale(int half, int b, int) const {
        return half_in(component(scales.at[half], b / 2), b % 2) * 0.125f;
    }
};

// Nibbles and one bit, unsigned.
template <int GROUPS>
__device__ __forceinline__ void five_bits(const Nibbles<GROUPS>& nibbles, const Bits<GROUPS>& bits, int half, int b,
                                          uint32_t& low, uint32_t& high) {
    uint32_t word = nibbles.word(half, b), tops = bits.word(half, b);
    int bit = 2 * (b % 4);
    low = (word & 0x0f0f0f0fu) | (moved(tops, 4 - bit) & 0x10101010u);
    high = (word >> 4 & 0x0f0f0f0fu) | (moved(tops, 3 - bit) & 0x10101010u);
}

struct q5_1 : Plain {
    static constexpr int GROUPS = 1, BYTES = 1536;
    static constexpr bool HAS_OFFSET = true;
    Nibbles<1> nibbles;
    Bits<1> bits;
    Scales<uint4> scales;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        nibbles.load(unit, lane);
        bits.load(unit + 1024, lane);
        scales.load(unit + 1280, lane);
    }
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        five_bits(nibbles, bits, half, b, low, high);
    }
    __device__ __forceinline__ float scale(int half, int b, int) const { return half_in(component(scales.at[half], b), 0); }
    __device__ __forceinline__ float offset(int half, int b, int) const { return half_in(component(scales.at[half], b), 1); }
};

struct q8_0 : Plain {
    static constexpr int GROUPS = 1, BYTES = 2176;
    // Bytes as they are: at[2 half + b / 2] has sides 0 and 1 of block b, then of b + 1.
    uint4 at[4];
    Scales<uint2> scales;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
#pragma unroll
        for (int i = 0; i < 4; i++) at[i] = load_once(reinterpret_cast<const uint4*>(unit + 512 * i + 16 * lane));
        scales.load(unit + 2048, lane);
    }
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        low = component(at[2 * half + b / 2], b % 2 * 2);
        high = component(at[2 * half + b / 2], b % 2 * 2 + 1);
    }
    __device__ __forceinline__ float scale(int half, int b, int) const {
        return half_in(component(scales.at[half], b / 2), b % 2);
    }
};

struct iq4_nl : Plain {
    static constexpr int GROUPS = 1, BYTES = 1152;
    Nibbles<1> nibbles;
    Scales<uint2> scales;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        nibbles.load(unit, lane);
        scales.load(unit + 1024, lane);
    }
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        look_up_iq4(nibbles.word(half, b), low, high);
    }
    __device__ __forceinline__ float scale(int half, int b, int) const {
        return half_in(component(scales.at[half], b / 2), b % 2);
    }
};

struct mxfp4 : Plain {
    static constexpr int GROUPS = 1, BYTES = 1088;
    Nibbles<1> nibbles;
    Scales<uint32_t> scales;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        nibbles.load(unit, lane);
        scales.load(unit + 1024, lane);
    }
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        look_up_mxfp4(nibbles.word(half, b), low, high);
    }
    // Half of the power of two that the byte stands for, as the values are doubled.
    __device__ __forceinline__ float scale(int half, int b, int) const {
        uint32_t power = uint32_t(byte_in(scales.at[half], b));
        return __uint_as_float(power < 2 ? 0x00200000u << power : (power - 1) << 23);
    }
};

struct q2_k : Plain {
    static constexpr int GROUPS = 2, BYTES = 1344;
    // Offsets differ by parts of 16: the product takes them as bytes, too.
    static constexpr bool HAS_BYTE_OFFSET = true;
    Pairs pairs;
    // Nibbles of scale (below) and offset (above) of the 16 parts.
    Scales<uint4> parts;
    Scales<uint32_t> scales;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        pairs.load(unit, lane);
        parts.load(unit + 1024, lane);
        scales.load(unit + 1280, lane);
    }
    __device__ __forceinline__ uint32_t part(int half, int b, int side) const {
        return uint32_t(byte_in(component(parts.at[half], b / 2), b % 2 * 2 + side));
    }
    // q times the part's scale: at most 45.
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        uint32_t word = pairs.word(half, b);
        low = (word >> (b % 2 * 4) & 0x03030303u) * (part(half, b, 0) & 15);
        high = (word >> (b % 2 * 4 + 2) & 0x03030303u) * (part(half, b, 1) & 15);
    }
    __device__ __forceinline__ float scale(int half, int, int) const { return half_in(scales.at[half], 0); }
    __device__ __forceinline__ float offset(int half, int b, int side) const {
        return -(half_in(scales.at[half], 1) * float(part(half, b, side) >> 4));
    }
    // Each element's offset as a byte, and what such a byte counts.
    __device__ __forceinline__ void offset_words(int half, int b, uint32_t& low, uint32_t& high) const {
        low = (part(half, b, 0) >> 4) * 0x01010101u;
        high = (part(half, b, 1) >> 4) * 0x01010101u;
    }
    __device__ __forceinline__ float offset_scale(int half) const { return -half_in(scales.at[half], 1); }
};

struct q3_k : Plain {
    static constexpr int GROUPS = 2, BYTES = 1824;
    static constexpr bool SPLIT = true;
    Pairs pairs;
    Bits<2> bits;
    Scales<uint4> parts;
    Scales<uint16_t> scales;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        pairs.load(unit, lane);
        bits.load(unit + 1024, lane);
        parts.load(unit + 1536, lane);
        scales.load(unit + 1792, lane);
    }
    // 32 (q - 4)
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        uint32_t word = pairs.word(half, b), tops = bits.word(half, b);
        int pair = b % 2 * 4, bit = 2 * (b % 4);
        low = ((moved(word, 5 - pair) & 0x60606060u) | (moved(tops, 7 - bit) & TOPS)) ^ TOPS;
        high = ((moved(word, 3 - pair) & 0x60606060u) | (moved(tops, 6 - bit) & TOPS)) ^ TOPS;
    }
    __device__ __forceinline__ float scale(int half, int b, int side) const {
        int part = signed_byte_in(component(parts.at[half], b / 2), b % 2 * 2 + side);
        return half_in(scales.at[half], 0) * float(part) * 0.03125f;
    }
};

// Eight scales and eight offsets of 6 bits a row, one byte each, and the two factors of all.
struct EightParts {
    Scales<uint4> parts;
    Scales<uint32_t> scales;
    __device__ __forceinline__ void load(const uint8_t* from, int lane) {
        parts.load(from, lane);
        scales.load(from + 256, lane);
    }
    __device__ __forceinline__ float scale(int half, int b) const {
        return half_in(scales.at[half], 0) * float(byte_in(component(parts.at[half], b / 4), b % 4));
    }
    __device__ __forceinline__ float offset(int half, int b) const {
        return -(half_in(scales.at[half], 1) * float(byte_in(component(parts.at[half], 2 + b / 4), b % 4)));
    }
};

struct q4_k : Plain {
    static constexpr int GROUPS = 2, BYTES = 2368;
    static constexpr bool HAS_OFFSET = true;
    Nibbles<2> nibbles;
    EightParts parts;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        nibbles.load(unit, lane);
        parts.load(unit + 2048, lane);
    }
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        uint32_t word = nibbles.word(half, b);
        low = word & 0x0f0f0f0fu;
        high = word >> 4 & 0x0f0f0f0fu;
    }
    __device__ __forceinline__ float scale(int half, int b, int) const { return parts.scale(half, b); }
    __device__ __forceinline__ float offset(int half, int b, int) const { return parts.offset(half, b); }
};

struct q5_k : Plain {
    static constexpr int GROUPS = 2, BYTES = 2880;
    static constexpr bool HAS_OFFSET = true;
    Nibbles<2> nibbles;
    Bits<2> bits;
    EightParts parts;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        nibbles.load(unit, lane);
        bits.load(unit + 2048, lane);
        parts.load(unit + 2560, lane);
    }
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        five_bits(nibbles, bits, half, b, low, high);
    }
    __device__ __forceinline__ float scale(int half, int b, int) const { return parts.scale(half, b); }
    __device__ __forceinline__ float offset(int half, int b, int) const { return parts.offset(half, b); }
};

struct q6_k : Plain {
    static constexpr int GROUPS = 2, BYTES = 3360;
    static constexpr bool SPLIT = true;
    Nibbles<2> nibbles;
    Pairs pairs;
    Scales<uint4> parts;
    Scales<uint16_t> scales;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        nibbles.load(unit, lane);
        pairs.load(unit + 2048, lane);
        parts.load(unit + 3072, lane);
        scales.load(unit + 3328, lane);
    }
    // 4 (q - 32)
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        uint32_t word = nibbles.word(half, b), tops = pairs.word(half, b);
        int pair = b % 2 * 4;
        low = ((word << 2 & 0x3c3c3c3cu) | (moved(tops, 6 - pair) & 0xc0c0c0c0u)) ^ TOPS;
        high = ((word >> 2 & 0x3c3c3c3cu) | (moved(tops, 4 - pair) & 0xc0c0c0c0u)) ^ TOPS;
    }
    __device__ __forceinline__ float scale(int half, int b, int side) const {
        int part = signed_byte_in(component(parts.at[half], b / 2), b % 2 * 2 + side);
        return half_in(scales.at[half], 0) * float(part) * 0.25f;
    }
};

struct iq4_xs : Plain {
    static constexpr int GROUPS = 2, BYTES = 2208;
    Nibbles<2> nibbles;
    // Scales of the eight blocks, less 32.
    Scales<uint2> parts;
    Scales<uint16_t> scales;
    __device__ __forceinline__ void load(const uint8_t* unit, int lane) {
        nibbles.load(unit, lane);
        parts.load(unit + 2048, lane);
        scales.load(unit + 2176, lane);
    }
    __device__ __forceinline__ void words(int half, int b, uint32_t& low, uint32_t& high) const {
        look_up_iq4(nibbles.word(half, b), low, high);
    }
    __device__ __forceinline__ float scale(int half, int b, int) const {
        return half_in(scales.at[half], 0) * float(signed_byte_in(component(parts.at[half], b / 4), b % 4));
    }
};

// The same line for each format.
#define EACH_FORMAT(LINE) \
    LINE(q4_0) LINE(q4_1) LINE(q5_0) LINE(q5_1) LINE(q8_0) LINE(iq4_nl) LINE(mxfp4) \
    LINE(q2_k) LINE(q3_k) LINE(q4_k) LINE(q5_k) LINE(q6_k) LINE(iq4_xs)

// The value of element `which` of a word of four.
template <typename F>
__device__ __forceinline__ float value_of(const F& piece, uint32_t word, int which, float scale, float offset) {
    float value = float(signed_byte_in(word, which)) * scale;
    return F::HAS_OFFSET || F::HAS_BYTE_OFFSET ? value + offset : value;
}

}  // namespace sconce_quant
