// performance-critical: no allocation per token, no lock, no log, no format
//! AVX2 with FMA and F16C: two registers are the 16 lanes.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// # Safety
/// The machine must have AVX2, FMA and F16C; the kernel's own conditions must hold.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Avx2>() }
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
impl Simd for Avx2 {
    type V = Pair;

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
}
