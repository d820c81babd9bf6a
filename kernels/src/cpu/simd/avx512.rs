// performance-critical: no allocation per token, no lock, no log, no format
//! AVX-512F: one register is the 16 lanes.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// # Safety
/// The machine must have AVX-512F; the kernel's own conditions must hold.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Avx512>() }
}

#[inline(always)]
fn part_mask(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}

/// Lanes i and i+8 of each vector, added: a's eight sums, then b's.
#[inline(always)]
unsafe fn halves(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller has AVX-512F.
    unsafe {
        let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
        _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
    }
}

/// Lanes i and i+2 of each quarter, added: two sums of a, then two of b.
#[inline(always)]
unsafe fn pairs(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller has AVX-512F.
    unsafe {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
    }
}

// SAFETY of every block below: the instructions are there by the trait's contract, and so are the pointers' lanes.
impl Simd for Avx512 {
    type V = __m512;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: see above.
        unsafe { from.cast::<__m512>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> __m512 {
        // SAFETY: see above; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(part_mask(count), from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        // SAFETY: see above.
        unsafe { to.cast::<__m512>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: __m512, count: usize) {
        // SAFETY: see above; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(to, part_mask(count), v) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: see above; a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe {
            let v = _mm512_add_ps(v, _mm512_shuffle_f32x4::<0b11_10_11_10>(v, v));
            let v = _mm512_castps512_ps256(v);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    unsafe fn max_lane(v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(v: __m512, n: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_scalef_ps(v, n) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(from.cast::<__m256i>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(from.cast::<__m256i>().read_unaligned());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(from.cast::<__m128i>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn lookup_nibbles(from: *const u8, table: __m512) -> [__m512; 2] {
        // SAFETY: see above. The permutation looks at the low four bits of an index only, so nothing need be masked.
        unsafe {
            let low = _mm512_cvtepu8_epi32(from.cast::<__m128i>().read_unaligned());
            let high = _mm512_srli_epi32::<4>(low);
            [_mm512_permutexvar_ps(low, table), _mm512_permutexvar_ps(high, table)]
        }
    }
    #[inline(always)]
    unsafe fn store_sums(y: *mut f32, stride: usize, acc: &[[__m512; 4]; 4]) {
        // SAFETY: see above.
        unsafe {
            // Each level adds the halves of two vectors into one, so the tree is that of `sum`.
            let mut quarters = [_mm512_setzero_ps(); 4]; // [row]: 4 partial sums for each of 4 tokens
            for (row, quarter) in quarters.iter_mut().enumerate() {
                let (first, second) = (halves(acc[0][row], acc[1][row]), halves(acc[2][row], acc[3][row]));
                let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(first, second);
                *quarter = _mm512_add_ps(even, _mm512_shuffle_f32x4::<0b11_01_11_01>(first, second));
            }
            let (first, second) = (pairs(quarters[0], quarters[1]), pairs(quarters[2], quarters[3]));
            let even = _mm512_shuffle_ps::<0b10_00_10_00>(first, second);
            let sums = _mm512_add_ps(even, _mm512_shuffle_ps::<0b11_01_11_01>(first, second));
            y.cast::<__m128>().write_unaligned(_mm512_castps512_ps128(sums));
            y.add(stride).cast::<__m128>().write_unaligned(_mm512_extractf32x4_ps::<1>(sums));
            y.add(2 * stride).cast::<__m128>().write_unaligned(_mm512_extractf32x4_ps::<2>(sums));
            y.add(3 * stride).cast::<__m128>().write_unaligned(_mm512_extractf32x4_ps::<3>(sums));
        }
    }
}
