// performance-critical: no allocation per token, no lock, no log, no format
//! Products on AVX2 without VNNI, in the way of [`Staged`].

use std::arch::x86_64::*;

use super::avx2::{Avx2, Ints, multiply_add};
use super::{Dot, Staged, StagedKernel};

/// # Safety
/// The machine must have AVX2, FMA and F16C; the kernel's own conditions must hold.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: StagedKernel>(kernel: K) {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run_staged::<Avx2<false>>() }
}

/// Four activations, in every row's place.
#[inline(always)]
unsafe fn four(x: *const i8) -> __m256i {
    // SAFETY: the caller has AVX2 and 4 readable bytes.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

// SAFETY of every block below: the caller has AVX2, FMA and F16C.
impl Staged for Avx2<false> {
    type Signed = [Ints; 2];

    #[inline(always)]
    unsafe fn ints(value: i32) -> Ints {
        // SAFETY: see above.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }
    #[inline(always)]
    unsafe fn add_ints(a: Ints, b: Ints) -> Ints {
        // SAFETY: see above.
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn pairs(codes: &[Ints], x: *const i8) -> Ints {
        // SAFETY: see above.
        unsafe {
            let mut pairs = Self::zero();
            for (quad, codes) in codes.iter().enumerate() {
                let x = four(x.add(quad * 4));
                let products = [_mm256_maddubs_epi16(codes[0], x), _mm256_maddubs_epi16(codes[1], x)];
                pairs = Self::add_pairs(pairs, products);
            }
            pairs
        }
    }
    #[inline(always)]
    unsafe fn add_pairs(a: Ints, b: Ints) -> Ints {
        // SAFETY: see above.
        unsafe { [_mm256_add_epi16(a[0], b[0]), _mm256_add_epi16(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn add_widened(total: Ints, pairs: Ints, factor: i16) -> Ints {
        // SAFETY: see above.
        unsafe {
            let factor = _mm256_set1_epi16(factor);
            Self::add_ints(total, [_mm256_madd_epi16(pairs[0], factor), _mm256_madd_epi16(pairs[1], factor)])
        }
    }
    #[inline(always)]
    unsafe fn signed(codes: Ints) -> [Ints; 2] {
        // SAFETY: see above.
        unsafe {
            let bias = _mm256_set1_epi8(-128);
            let values = [_mm256_xor_si256(codes[0], bias), _mm256_xor_si256(codes[1], bias)];
            [[_mm256_abs_epi8(values[0]), _mm256_abs_epi8(values[1])], values]
        }
    }
    #[inline(always)]
    unsafe fn add_signed(mut total: Ints, codes: &[[Ints; 2]], x: *const i8) -> Ints {
        // SAFETY: see above. 128 * 127 * 2 fits 16 bits.
        unsafe {
            for (quad, [magnitudes, values]) in codes.iter().enumerate() {
                let x = four(x.add(quad * 4));
                total[0] = multiply_add(total[0], magnitudes[0], _mm256_sign_epi8(x, values[0]));
                total[1] = multiply_add(total[1], magnitudes[1], _mm256_sign_epi8(x, values[1]));
            }
            total
        }
    }
}
