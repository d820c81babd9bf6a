// performance-critical: no allocation per token, no lock, no log, no format
//! AVX2 with FMA and F16C: two registers are the 16 lanes.

use std::arch::x86_64::*;

use super::{Dot, DotKernel, Kernel, QuantBlock, Simd};

/// With `VNNI`, the machine can multiply groups of four bytes.
#[derive(Clone, Copy)]
pub(super) struct Avx2<const VNNI: bool>;

/// # Safety
/// The machine must have AVX2, FMA and F16C; the kernel's own conditions must hold.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Avx2<false>>() }
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_dot<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Avx2<false>>() }
}

/// # Safety
/// As [`run`], and the machine must have AVX-VNNI.
#[target_feature(enable = "avx2,avxvnni,fma,f16c")]
pub(super) unsafe fn run_dot_vnni<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Avx2<true>>() }
}

type Pair = [__m256; 2];

#[inline(always)]
unsafe fn scale(v: __m256, n: __m256) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    }
}

#[inline(always)]
unsafe fn bf16_wide(from: *const u8) -> __m256 {
    // SAFETY: the caller has AVX2 and 16 readable bytes.
    unsafe {
        let words = _mm256_cvtepu16_epi32(from.cast::<__m128i>().read_unaligned());
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    }
}

#[inline(always)]
unsafe fn i8_wide(from: *const u8) -> __m256 {
    // SAFETY: the caller has AVX2 and 8 readable bytes.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(from.cast::<i64>().read_unaligned()))) }
}

#[inline(always)]
unsafe fn u8_wide(from: *const u8) -> __m256 {
    // SAFETY: the caller has AVX2 and 8 readable bytes.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(from.cast::<i64>().read_unaligned()))) }
}

/// A permutation looks at three bits of an index; the fourth, moved to the sign, blends.
#[inline(always)]
unsafe fn look_up(index: __m256i, table: Pair) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let low = _mm256_permutevar8x32_ps(table[0], index);
        let high = _mm256_permutevar8x32_ps(table[1], index);
        _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
    }
}

// SAFETY of every block below: the instructions are there by the trait's contract, and so are the pointers' lanes.
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type V = Pair;
    type Folded = __m256;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Pair {
        // SAFETY: see above.
        unsafe { from.cast::<Pair>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Pair) {
        // SAFETY: see above.
        unsafe {
            to.cast::<Pair>().write_unaligned(v);
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: see above; a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn add(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn min(a: Pair, b: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sum(v: Pair) -> f32 {
        // SAFETY: see above.
        unsafe {
            let v = _mm256_add_ps(v[0], v[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    unsafe fn scale_by_power(v: Pair, n: Pair) -> Pair {
        // SAFETY: see above. 2^n is an f32 with n in its exponent field.
        unsafe { [scale(v[0], n[0]), scale(v[1], n[1])] }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Pair {
        // SAFETY: see above.
        unsafe {
            let second = from.add(16).cast::<__m128i>().read_unaligned();
            [_mm256_cvtph_ps(from.cast::<__m128i>().read_unaligned()), _mm256_cvtph_ps(second)]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u8, v: Pair) {
        // SAFETY: see above.
        unsafe {
            to.cast::<__m128i>().write_unaligned(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            to.add(16).cast::<__m128i>().write_unaligned(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Pair {
        // SAFETY: see above.
        unsafe { [bf16_wide(from), bf16_wide(from.add(16))] }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Pair {
        // SAFETY: see above.
        unsafe { [i8_wide(from), i8_wide(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Pair {
        // SAFETY: see above.
        unsafe { [u8_wide(from), u8_wide(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn lookup_nibbles(from: *const u8, table: Pair) -> [Pair; 2] {
        // SAFETY: see above.
        unsafe {
            let first = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(from.cast::<i64>().read_unaligned()));
            let second = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(from.add(8).cast::<i64>().read_unaligned()));
            let low = [look_up(first, table), look_up(second, table)];
            let (first, second) = (_mm256_srli_epi32::<4>(first), _mm256_srli_epi32::<4>(second));
            [low, [look_up(first, table), look_up(second, table)]]
        }
    }
    #[inline(always)]
    unsafe fn max_lane(v: Pair) -> f32 {
        // SAFETY: see above.
        unsafe {
            let v = _mm256_max_ps(v[0], v[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
    /// Four partial sums of each.
    #[inline(always)]
    unsafe fn fold(a: Pair, b: Pair) -> __m256 {
        // SAFETY: see above.
        unsafe {
            let (a, b) = (_mm256_add_ps(a[0], a[1]), _mm256_add_ps(b[0], b[1]));
            _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
        }
    }
    #[inline(always)]
    unsafe fn store_folded(y: [*mut f32; 2], pairs: [__m256; 4]) {
        // SAFETY: see above. Each level adds the halves of two vectors into one, so the tree is that of `sum`.
        unsafe {
            let (first, second) = (halves(pairs[0], pairs[1]), halves(pairs[2], pairs[3]));
            let even = _mm256_shuffle_ps::<0b10_00_10_00>(first, second);
            let sums = _mm256_add_ps(even, _mm256_shuffle_ps::<0b11_01_11_01>(first, second));
            _mm_storeu_ps(y[0], _mm256_castps256_ps128(sums));
            _mm_storeu_ps(y[1], _mm256_extractf128_ps::<1>(sums));
        }
    }
}

/// Two partial sums of each, from four, in both halves.
#[inline(always)]
unsafe fn halves(a: __m256, b: __m256) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let first = _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
        _mm256_add_ps(first, _mm256_shuffle_ps::<0b11_10_11_10>(a, b))
    }
}

pub(super) type Ints = [__m256i; 2];

/// Sums of the products of four unsigned and four signed bytes. No pair of products may pass 16 bits.
#[inline(always)]
pub(super) unsafe fn multiply_add(acc: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let pairs = _mm256_maddubs_epi16(unsigned, signed);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// As [`multiply_add`], for codes that stand 128 above their value: signs move to the other side.
#[inline(always)]
unsafe fn multiply_add_biased(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2. 128 * 127 * 2 fits 16 bits.
    unsafe {
        let values = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
        multiply_add(acc, _mm256_abs_epi8(values), _mm256_sign_epi8(x, values))
    }
}

#[inline(always)]
unsafe fn bf16_pairs(acc: __m256, w: __m256i, x: __m256i) -> __m256 {
    // SAFETY: the caller has AVX2 and FMA.
    unsafe {
        let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        let (w_odd, x_odd) = (_mm256_and_si256(w, high), _mm256_and_si256(x, high));
        let (w_even, x_even) = (_mm256_slli_epi32::<16>(w), _mm256_slli_epi32::<16>(x));
        let odd = _mm256_fmadd_ps(_mm256_castsi256_ps(w_odd), _mm256_castsi256_ps(x_odd), acc);
        _mm256_fmadd_ps(_mm256_castsi256_ps(w_even), _mm256_castsi256_ps(x_even), odd)
    }
}

// SAFETY of every block below: as above.
impl<const VNNI: bool> Dot for Avx2<VNNI> {
    type B = Ints;
    type I = Ints;
    const TOKENS: usize = if VNNI { 4 } else { 16 };

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Ints {
        // SAFETY: see above.
        unsafe { from.cast::<Ints>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn shl<const BITS: u32>(bytes: Ints, mask: u8) -> Ints {
        // SAFETY: see above. The count is a constant to the compiler.
        unsafe {
            let (count, mask) = (_mm_cvtsi32_si128(BITS.cast_signed()), _mm256_set1_epi8(mask.cast_signed()));
            [
                _mm256_and_si256(_mm256_sll_epi16(bytes[0], count), mask),
                _mm256_and_si256(_mm256_sll_epi16(bytes[1], count), mask),
            ]
        }
    }
    #[inline(always)]
    unsafe fn shr<const BITS: u32>(bytes: Ints, mask: u8) -> Ints {
        // SAFETY: see above.
        unsafe {
            let (count, mask) = (_mm_cvtsi32_si128(BITS.cast_signed()), _mm256_set1_epi8(mask.cast_signed()));
            [
                _mm256_and_si256(_mm256_srl_epi16(bytes[0], count), mask),
                _mm256_and_si256(_mm256_srl_epi16(bytes[1], count), mask),
            ]
        }
    }
    #[inline(always)]
    unsafe fn or(a: Ints, b: Ints) -> Ints {
        // SAFETY: see above.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn or_bits(bytes: Ints, bits: *const u8, value: u8) -> Ints {
        // SAFETY: see above; the mask is 8 bytes. Each byte looks its own bit up.
        unsafe {
            let spread = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let value = _mm256_set1_epi8(value.cast_signed());
            let mut out = bytes;
            for half in 0..2 {
                let mask = _mm256_set1_epi32(bits.add(half * 4).cast::<i32>().read_unaligned());
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(mask, spread), own), own);
                out[half] = _mm256_or_si256(bytes[half], _mm256_and_si256(set, value));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn lookup(codes: Ints, table: &[u8; 16]) -> Ints {
        // SAFETY: see above.
        unsafe {
            let table = _mm256_broadcastsi128_si256(table.as_ptr().cast::<__m128i>().read_unaligned());
            [_mm256_shuffle_epi8(table, codes[0]), _mm256_shuffle_epi8(table, codes[1])]
        }
    }
    #[inline(always)]
    unsafe fn zero() -> Ints {
        // SAFETY: see above.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn start(minus_128_sums: *const i32) -> Ints {
        // SAFETY: see above.
        unsafe { if VNNI { [_mm256_set1_epi32(minus_128_sums.read()); 2] } else { Self::zero() } }
    }
    #[inline(always)]
    unsafe fn dot_biased(acc: Ints, codes: Ints, x: *const i8) -> Ints {
        // SAFETY: see above.
        unsafe {
            if VNNI {
                return Self::dot(acc, codes, x);
            }
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            [multiply_add_biased(acc[0], codes[0], x), multiply_add_biased(acc[1], codes[1], x)]
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: Ints, codes: Ints, x: *const i8) -> Ints {
        // SAFETY: see above.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            if VNNI {
                [_mm256_dpbusd_avx_epi32(acc[0], codes[0], x), _mm256_dpbusd_avx_epi32(acc[1], codes[1], x)]
            } else {
                [multiply_add(acc[0], codes[0], x), multiply_add(acc[1], codes[1], x)]
            }
        }
    }
    #[inline(always)]
    unsafe fn floats(ints: Ints) -> Pair {
        // SAFETY: see above.
        unsafe { [_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])] }
    }
    #[inline(always)]
    unsafe fn join(a: Ints, b: Ints) -> Ints {
        // SAFETY: see above.
        unsafe {
            let (first, second) = (_mm256_slli_epi32::<8>(a[0]), _mm256_slli_epi32::<8>(a[1]));
            [_mm256_add_epi32(first, b[0]), _mm256_add_epi32(second, b[1])]
        }
    }
    #[inline(always)]
    unsafe fn bf16_pairs(w: *const u8) -> [Pair; 2] {
        // SAFETY: see above.
        unsafe {
            let (w, high) = (Self::bytes(w), _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            let even = [_mm256_slli_epi32::<16>(w[0]), _mm256_slli_epi32::<16>(w[1])];
            let odd = [_mm256_and_si256(w[0], high), _mm256_and_si256(w[1], high)];
            [
                [_mm256_castsi256_ps(even[0]), _mm256_castsi256_ps(even[1])],
                [_mm256_castsi256_ps(odd[0]), _mm256_castsi256_ps(odd[1])],
            ]
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Pair, w: *const u8, x: *const u16) -> Pair {
        // SAFETY: see above.
        unsafe {
            let (w, x) = (Self::bytes(w), _mm256_set1_epi32(x.cast::<i32>().read_unaligned()));
            [bf16_pairs(acc[0], w[0], x), bf16_pairs(acc[1], w[1], x)]
        }
    }
    #[inline(always)]
    unsafe fn quantise(x: *const f32, to: *mut i8) -> QuantBlock {
        // SAFETY: see above.
        unsafe {
            let [a, b] = Self::load(x);
            let [c, d] = Self::load(x.add(16));
            let sign = _mm256_set1_ps(-0.0);
            let (ab, cd) = (
                _mm256_max_ps(_mm256_andnot_ps(sign, a), _mm256_andnot_ps(sign, b)),
                _mm256_max_ps(_mm256_andnot_ps(sign, c), _mm256_andnot_ps(sign, d)),
            );
            let unordered = _mm256_or_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, b), _mm256_cmp_ps::<_CMP_UNORD_Q>(c, d));
            let most = if _mm256_movemask_ps(unordered) != 0 { f32::NAN } else { max_of(_mm256_max_ps(ab, cd)) };
            let (factor, scale) = QuantBlock::factors(most);
            let factor = _mm256_set1_ps(factor);
            let (a, b) = (_mm256_cvtps_epi32(_mm256_mul_ps(a, factor)), _mm256_cvtps_epi32(_mm256_mul_ps(b, factor)));
            let (c, d) = (_mm256_cvtps_epi32(_mm256_mul_ps(c, factor)), _mm256_cvtps_epi32(_mm256_mul_ps(d, factor)));
            // Packing goes by halves of registers: groups of four end up as 0 2 4 6 1 3 5 7.
            let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            to.cast::<__m256i>().write_unaligned(bytes);
            QuantBlock { scale, sums: [sum_of(_mm256_add_epi32(a, b)), sum_of(_mm256_add_epi32(c, d))] }
        }
    }
}

/// The largest lane, none of which may be NaN.
#[inline(always)]
unsafe fn max_of(v: __m256) -> f32 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
    }
}

/// Sum of the lanes.
#[inline(always)]
unsafe fn sum_of(v: __m256i) -> i32 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
        let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
        _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v)))
    }
}
