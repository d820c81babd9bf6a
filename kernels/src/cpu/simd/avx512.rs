// performance-critical: no allocation per token, no lock, no log, no format
//! AVX-512F: one register is the 16 lanes.

use std::arch::x86_64::*;

use super::{Dot, DotKernel, Kernel, QuantBlock, Simd, store_each_folded};

/// With `BF16`, the machine can multiply pairs of bf16.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>;

/// # Safety
/// The machine must have what [`super::Isa::Avx512`] names; the kernel's own conditions must hold.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Avx512<false>>() }
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run_dot<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Avx512<false>>() }
}

/// # Safety
/// As [`run`], and the machine must have AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn run_dot_bf16<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Avx512<true>>() }
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
impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    type Folded = [__m512; 2];

    #[inline(always)]
    unsafe fn fold(a: __m512, b: __m512) -> [__m512; 2] {
        [a, b]
    }
    #[inline(always)]
    unsafe fn store_folded(y: [*mut f32; 2], pairs: [[__m512; 2]; 4]) {
        // SAFETY: as promised by the caller.
        unsafe { store_each_folded::<Self>(y, pairs) };
    }
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
    unsafe fn store_f16(to: *mut u8, v: __m512) {
        // SAFETY: see above.
        unsafe { to.cast::<__m256i>().write_unaligned(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
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
    unsafe fn load_u8(from: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(from.cast::<__m128i>().read_unaligned())) }
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

// SAFETY of every block below: as above.
impl<const BF16: bool> Dot for Avx512<BF16> {
    type B = __m512i;
    type I = __m512i;
    const TOKENS: usize = 16;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m512i {
        // SAFETY: see above.
        unsafe { from.cast::<__m512i>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn shl<const BITS: u32>(bytes: __m512i, mask: u8) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(_mm512_slli_epi16::<BITS>(bytes), _mm512_set1_epi8(mask.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn shr<const BITS: u32>(bytes: __m512i, mask: u8) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<BITS>(bytes), _mm512_set1_epi8(mask.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or_bits(bytes: __m512i, bits: *const u8, value: u8) -> __m512i {
        // SAFETY: see above; the mask is 8 bytes. Adding is or, because the bit is not set.
        unsafe {
            let mask = bits.cast::<u64>().read_unaligned();
            _mm512_mask_add_epi8(bytes, mask, bytes, _mm512_set1_epi8(value.cast_signed()))
        }
    }
    #[inline(always)]
    unsafe fn lookup(codes: __m512i, table: &[u8; 16]) -> __m512i {
        // SAFETY: see above.
        unsafe {
            let table = _mm512_broadcast_i32x4(table.as_ptr().cast::<__m128i>().read_unaligned());
            _mm512_shuffle_epi8(table, codes)
        }
    }
    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn start(minus_128_sums: *const i32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(minus_128_sums.read()) }
    }
    #[inline(always)]
    unsafe fn dot_biased(acc: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        // SAFETY: see above.
        unsafe { Self::dot(acc, codes, x) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn floats(ints: __m512i) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(ints) }
    }
    #[inline(always)]
    unsafe fn join(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<8>(a), b) }
    }
    #[inline(always)]
    unsafe fn bf16_pairs(w: *const u8) -> [__m512; 2] {
        // SAFETY: see above.
        unsafe {
            let w = w.cast::<__m512i>().read_unaligned();
            let odd = _mm512_and_si512(w, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(w)), _mm512_castsi512_ps(odd)]
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: __m512, w: *const u8, x: *const u16) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let w = w.cast::<__m512i>().read_unaligned();
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            if BF16 {
                // The same bits, seen as 32 bf16.
                let (w, x) = (std::mem::transmute::<__m512i, __m512bh>(w), std::mem::transmute::<__m512i, __m512bh>(x));
                return _mm512_dpbf16_ps(acc, w, x);
            }
            let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let (w_even, x_even) = (_mm512_slli_epi32::<16>(w), _mm512_slli_epi32::<16>(x));
            let (w_odd, x_odd) = (_mm512_and_si512(w, high), _mm512_and_si512(x, high));
            let odd = _mm512_fmadd_ps(_mm512_castsi512_ps(w_odd), _mm512_castsi512_ps(x_odd), acc);
            _mm512_fmadd_ps(_mm512_castsi512_ps(w_even), _mm512_castsi512_ps(x_even), odd)
        }
    }
    #[inline(always)]
    unsafe fn quantise(x: *const f32, to: *mut i8) -> QuantBlock {
        // SAFETY: see above.
        unsafe {
            let (a, b) = (Self::load(x), Self::load(x.add(16)));
            let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
            let has_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, b) != 0;
            let largest = if has_nan { f32::NAN } else { largest };
            let (factor, scale) = QuantBlock::factors(largest);
            let factor = _mm512_set1_ps(factor);
            let (a, b) = (_mm512_cvtps_epi32(_mm512_mul_ps(a, factor)), _mm512_cvtps_epi32(_mm512_mul_ps(b, factor)));
            to.cast::<__m128i>().write_unaligned(_mm512_cvtsepi32_epi8(a));
            to.add(16).cast::<__m128i>().write_unaligned(_mm512_cvtsepi32_epi8(b));
            QuantBlock { scale, sums: [_mm512_reduce_add_epi32(a), _mm512_reduce_add_epi32(b)] }
        }
    }
}
