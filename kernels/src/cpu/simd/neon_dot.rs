// performance-critical: no allocation per token, no lock, no log, no format
//! Products on NEON, with and without instructions for groups of four bytes and for pairs of bf16.
//!
//! Such groups are multiplied by instructions that have no stable functions yet; they are written out.

use std::arch::aarch64::*;
use std::arch::asm;

use super::neon::{Neon, each};
use super::{BLOCK, Dot, DotKernel, QuantBlock, Simd};

/// # Safety
/// The machine must have NEON; the kernel's own conditions must hold.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Neon<false, false>>() }
}

/// # Safety
/// As [`run`], and the machine must have the feature DotProd.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn run_dotprod<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Neon<true, false>>() }
}

/// # Safety
/// As [`run_dotprod`], and the machine must have the feature BF16.
#[target_feature(enable = "neon,dotprod,bf16")]
pub(super) unsafe fn run_bf16<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Neon<true, true>>() }
}

type Bytes = [uint8x16_t; 4];
type Ints = [int32x4_t; 4];

/// Adds the products of four groups of four bytes.
#[inline(always)]
unsafe fn multiply_add<const DOT: bool>(acc: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the caller has NEON, and the instruction where it is asked for.
    unsafe {
        if DOT {
            let mut sum = acc;
            asm!(
                "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum, codes = in(vreg) codes, x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
            return sum;
        }
        let first = vpaddlq_s16(vmull_s8(vget_low_s8(codes), vget_low_s8(x)));
        let second = vpaddlq_s16(vmull_high_s8(codes, x));
        vaddq_s32(acc, vpaddq_s32(first, second))
    }
}

/// Adds the products of four pairs of bf16.
#[inline(always)]
unsafe fn multiply_add_bf16<const BF16: bool>(acc: float32x4_t, w: uint32x4_t, x: uint32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe {
        if BF16 {
            let mut sum = acc;
            asm!(
                "bfdot {sum:v}.4s, {w:v}.8h, {x:v}.8h",
                sum = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
            return sum;
        }
        let ([w_even, w_odd], [x_even, x_odd]) = (halves(w), halves(x));
        vfmaq_f32(vfmaq_f32(acc, w_odd, x_odd), w_even, x_even)
    }
}

/// The first and the second of four pairs of bf16.
#[inline(always)]
unsafe fn halves(pairs: uint32x4_t) -> [float32x4_t; 2] {
    // SAFETY: the caller has NEON.
    unsafe {
        let odd = vandq_u32(pairs, vdupq_n_u32(0xffff_0000));
        [vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)), vreinterpretq_f32_u32(odd)]
    }
}

// SAFETY of every block below: the instructions are there by the trait's contract, and so is what pointers name.
impl<const DOT: bool, const BF16: bool> Dot for Neon<DOT, BF16> {
    type B = Bytes;
    type I = Ints;
    const TOKENS: usize = 16;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Bytes {
        // SAFETY: see above.
        unsafe { each!(at => vld1q_u8(from.add(at * 16))) }
    }
    #[inline(always)]
    unsafe fn shl<const BITS: u32>(bytes: Bytes, mask: u8) -> Bytes {
        // SAFETY: see above. The count is a constant to the compiler.
        unsafe {
            let count = vdupq_n_s8(BITS as i8);
            each!(at => vandq_u8(vshlq_u8(bytes[at], count), vdupq_n_u8(mask)))
        }
    }
    #[inline(always)]
    unsafe fn shr<const BITS: u32>(bytes: Bytes, mask: u8) -> Bytes {
        // SAFETY: see above. A negative count shifts to the right.
        unsafe {
            let count = vdupq_n_s8(-(BITS as i8));
            each!(at => vandq_u8(vshlq_u8(bytes[at], count), vdupq_n_u8(mask)))
        }
    }
    #[inline(always)]
    unsafe fn or(a: Bytes, b: Bytes) -> Bytes {
        // SAFETY: see above.
        unsafe { each!(at => vorrq_u8(a[at], b[at])) }
    }
    #[inline(always)]
    unsafe fn or_bits(bytes: Bytes, bits: *const u8, value: u8) -> Bytes {
        // SAFETY: see above. Each byte looks its own bit up.
        unsafe {
            let own = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let bits = vld1_u8(bits);
            let bits = vcombine_u8(bits, bits);
            each!(at => {
                let which = vcombine_u8(vdup_n_u8(2 * at as u8), vdup_n_u8(2 * at as u8 + 1));
                let set = vtstq_u8(vqtbl1q_u8(bits, which), own);
                vorrq_u8(bytes[at], vandq_u8(set, vdupq_n_u8(value)))
            })
        }
    }
    #[inline(always)]
    unsafe fn lookup(codes: Bytes, table: &[u8; 16]) -> Bytes {
        // SAFETY: see above.
        unsafe {
            let table = vld1q_u8(table.as_ptr());
            each!(at => vqtbl1q_u8(table, codes[at]))
        }
    }
    #[inline(always)]
    unsafe fn zero() -> Ints {
        // SAFETY: see above.
        unsafe { [vdupq_n_s32(0); 4] }
    }
    /// Codes become signed, so that nothing need be taken back.
    #[inline(always)]
    unsafe fn start(_minus_128_sums: *const i32) -> Ints {
        // SAFETY: see above.
        unsafe { Self::zero() }
    }
    #[inline(always)]
    unsafe fn dot_biased(acc: Ints, codes: Bytes, x: *const i8) -> Ints {
        // SAFETY: see above.
        unsafe {
            let bias = vdupq_n_u8(0x80);
            Self::dot(acc, each!(at => veorq_u8(codes[at], bias)), x)
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: Ints, codes: Bytes, x: *const i8) -> Ints {
        // SAFETY: see above.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            each!(at => multiply_add::<DOT>(acc[at], vreinterpretq_s8_u8(codes[at]), x))
        }
    }
    #[inline(always)]
    unsafe fn floats(ints: Ints) -> Self::V {
        // SAFETY: see above.
        unsafe { each!(at => vcvtq_f32_s32(ints[at])) }
    }
    #[inline(always)]
    unsafe fn join(a: Ints, b: Ints) -> Ints {
        // SAFETY: see above.
        unsafe { each!(at => vaddq_s32(vshlq_n_s32::<8>(a[at]), b[at])) }
    }
    #[inline(always)]
    unsafe fn bf16_pairs(w: *const u8) -> [Self::V; 2] {
        // SAFETY: see above.
        unsafe {
            let pairs = each!(at => halves(vreinterpretq_u32_u8(vld1q_u8(w.add(at * 16)))));
            [each!(at => pairs[at][0]), each!(at => pairs[at][1])]
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::V, w: *const u8, x: *const u16) -> Self::V {
        // SAFETY: see above.
        unsafe {
            let x = vdupq_n_u32(x.cast::<u32>().read_unaligned());
            each!(at => multiply_add_bf16::<BF16>(acc[at], vreinterpretq_u32_u8(vld1q_u8(w.add(at * 16))), x))
        }
    }
    #[inline(always)]
    unsafe fn quantise(x: *const f32, to: *mut i8) -> QuantBlock {
        const { assert!(BLOCK == 32) };
        // SAFETY: see above.
        unsafe {
            let (a, b) = (Self::load(x), Self::load(x.add(16)));
            let both = each!(at => vmaxq_f32(vabsq_f32(a[at]), vabsq_f32(b[at])));
            // This maximum is NaN where any value is.
            let largest = vmaxvq_f32(vmaxq_f32(vmaxq_f32(both[0], both[1]), vmaxq_f32(both[2], both[3])));
            let (factor, scale) = QuantBlock::factors(largest);
            let sums = [round(a, factor, to), round(b, factor, to.add(16))];
            QuantBlock { scale, sums }
        }
    }
}

/// Writes 16 values times a factor, rounded to nearest, ties to even, and sums them up.
#[inline(always)]
unsafe fn round(x: [float32x4_t; 4], factor: f32, to: *mut i8) -> i32 {
    // SAFETY: the caller has NEON and 16 writable bytes.
    unsafe {
        let ints = each!(at => vcvtnq_s32_f32(vmulq_n_f32(x[at], factor)));
        let first = vqmovn_high_s32(vqmovn_s32(ints[0]), ints[1]);
        let second = vqmovn_high_s32(vqmovn_s32(ints[2]), ints[3]);
        vst1q_s8(to, vqmovn_high_s16(vqmovn_s16(first), second));
        vaddvq_s32(vaddq_s32(vaddq_s32(ints[0], ints[1]), vaddq_s32(ints[2], ints[3])))
    }
}
