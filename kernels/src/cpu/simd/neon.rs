// performance-critical: no allocation per token, no lock, no log, no format
//! NEON (aarch64): four registers are the 16 lanes.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Kernel, Simd};

/// With `DOT`, the machine can multiply groups of four bytes; with `BF16`, also pairs of bf16.
#[derive(Clone, Copy)]
pub(super) struct Neon<const DOT: bool, const BF16: bool>;

/// # Safety
/// The machine must have NEON; the kernel's own conditions must hold.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run::<Neon<false, false>>() }
}

type Lanes = [float32x4_t; 4];

/// Each register by itself. A closure would not be compiled with the instructions of its kernel.
macro_rules! each {
    ($at:ident => $value:expr) => {{
        let mut all = [{
            let $at = 0_usize;
            $value
        }; 4];
        for $at in 1..4 {
            all[$at] = $value;
        }
        all
    }};
}
pub(super) use each;

/// Four partial sums.
#[inline(always)]
unsafe fn quarters(v: Lanes) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3])) }
}

/// Two partial sums of each, from four.
#[inline(always)]
unsafe fn halves(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe {
        let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
        vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b)))
    }
}

/// 16 words of 16 bits, in halves of 8.
#[inline(always)]
unsafe fn words(from: *const u8) -> [uint16x8_t; 2] {
    // SAFETY: the caller has NEON and 32 readable bytes.
    unsafe { [vreinterpretq_u16_u8(vld1q_u8(from)), vreinterpretq_u16_u8(vld1q_u8(from.add(16)))] }
}

// SAFETY of every block below: the instructions are there by the trait's contract, and so are the pointers' lanes.
impl<const DOT: bool, const BF16: bool> Simd for Neon<DOT, BF16> {
    type V = Lanes;
    type Folded = [float32x4_t; 2];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Lanes {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(value); 4] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Lanes {
        // SAFETY: see above.
        unsafe { each!(at => vld1q_f32(from.add(at * 4))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Lanes) {
        // SAFETY: see above.
        unsafe {
            each!(at => vst1q_f32(to.add(at * 4), v[at]));
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly)) }
    }
    #[inline(always)]
    unsafe fn add(a: Lanes, b: Lanes) -> Lanes {
        // SAFETY: see above.
        unsafe { each!(at => vaddq_f32(a[at], b[at])) }
    }
    #[inline(always)]
    unsafe fn sub(a: Lanes, b: Lanes) -> Lanes {
        // SAFETY: see above.
        unsafe { each!(at => vsubq_f32(a[at], b[at])) }
    }
    #[inline(always)]
    unsafe fn mul(a: Lanes, b: Lanes) -> Lanes {
        // SAFETY: see above.
        unsafe { each!(at => vmulq_f32(a[at], b[at])) }
    }
    #[inline(always)]
    unsafe fn div(a: Lanes, b: Lanes) -> Lanes {
        // SAFETY: see above.
        unsafe { each!(at => vdivq_f32(a[at], b[at])) }
    }
    #[inline(always)]
    unsafe fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        // SAFETY: see above.
        unsafe { each!(at => vfmaq_f32(c[at], a[at], b[at])) }
    }
    #[inline(always)]
    unsafe fn max(a: Lanes, b: Lanes) -> Lanes {
        // SAFETY: see above. The instruction for a maximum gives NaN whichever side has it.
        unsafe { each!(at => vbslq_f32(vcgtq_f32(a[at], b[at]), a[at], b[at])) }
    }
    #[inline(always)]
    unsafe fn min(a: Lanes, b: Lanes) -> Lanes {
        // SAFETY: see above.
        unsafe { each!(at => vbslq_f32(vcltq_f32(a[at], b[at]), a[at], b[at])) }
    }
    #[inline(always)]
    unsafe fn sum(v: Lanes) -> f32 {
        // SAFETY: see above.
        unsafe {
            let v = quarters(v);
            vpadds_f32(vadd_f32(vget_low_f32(v), vget_high_f32(v)))
        }
    }
    #[inline(always)]
    unsafe fn max_lane(v: Lanes) -> f32 {
        // SAFETY: see above.
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(v[0], v[1]), vmaxnmq_f32(v[2], v[3]))) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(v: Lanes, n: Lanes) -> Lanes {
        // SAFETY: see above. 2^n is an f32 with n in its exponent field.
        unsafe {
            let powers = each!(at => vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n[at]), vdupq_n_s32(127))));
            each!(at => vmulq_f32(v[at], vreinterpretq_f32_s32(powers[at])))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Lanes {
        // SAFETY: see above.
        unsafe {
            let [first, second] = words(from);
            let (first, second) = (vreinterpretq_f16_u16(first), vreinterpretq_f16_u16(second));
            let [first, second] = [
                [vcvt_f32_f16(vget_low_f16(first)), vcvt_high_f32_f16(first)],
                [vcvt_f32_f16(vget_low_f16(second)), vcvt_high_f32_f16(second)],
            ];
            [first[0], first[1], second[0], second[1]]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u8, v: Lanes) {
        // SAFETY: see above.
        unsafe {
            let first = vcvt_high_f16_f32(vcvt_f16_f32(v[0]), v[1]);
            let second = vcvt_high_f16_f32(vcvt_f16_f32(v[2]), v[3]);
            vst1q_u8(to, vreinterpretq_u8_f16(first));
            vst1q_u8(to.add(16), vreinterpretq_u8_f16(second));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Lanes {
        // SAFETY: see above.
        unsafe {
            let [first, second] = words(from);
            let wide = [
                vshll_n_u16::<16>(vget_low_u16(first)),
                vshll_high_n_u16::<16>(first),
                vshll_n_u16::<16>(vget_low_u16(second)),
                vshll_high_n_u16::<16>(second),
            ];
            each!(at => vreinterpretq_f32_u32(wide[at]))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Lanes {
        // SAFETY: see above.
        unsafe {
            let bytes = vreinterpretq_s8_u8(vld1q_u8(from));
            let (first, second) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            let wide = [
                vmovl_s16(vget_low_s16(first)),
                vmovl_high_s16(first),
                vmovl_s16(vget_low_s16(second)),
                vmovl_high_s16(second),
            ];
            each!(at => vcvtq_f32_s32(wide[at]))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Lanes {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_u8(from);
            let (first, second) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            let wide = [
                vmovl_u16(vget_low_u16(first)),
                vmovl_high_u16(first),
                vmovl_u16(vget_low_u16(second)),
                vmovl_high_u16(second),
            ];
            each!(at => vcvtq_f32_u32(wide[at]))
        }
    }
    /// A value's four bytes are looked up as bytes.
    #[inline(always)]
    unsafe fn lookup_nibbles(from: *const u8, table: Lanes) -> [Lanes; 2] {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_u8(from);
            let table = each!(at => vreinterpretq_u8_f32(table[at]));
            let table = uint8x16x4_t(table[0], table[1], table[2], table[3]);
            let each_byte = vreinterpretq_u8_u32(vdupq_n_u32(0x0302_0100));
            let nibbles = [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)];
            let mut out = [Self::splat(0.0); 2];
            for (out, nibbles) in out.iter_mut().zip(nibbles) {
                let places = vshlq_n_u8::<2>(nibbles);
                for (at, out) in out.iter_mut().enumerate() {
                    let four = vqtbl1q_u8(places, vld1q_u8(FOUR_TIMES[at].as_ptr()));
                    *out = vreinterpretq_f32_u8(vqtbl4q_u8(table, vorrq_u8(four, each_byte)));
                }
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn fold(a: Lanes, b: Lanes) -> [float32x4_t; 2] {
        // SAFETY: see above.
        unsafe { [quarters(a), quarters(b)] }
    }
    #[inline(always)]
    unsafe fn store_folded(y: [*mut f32; 2], pairs: [[float32x4_t; 2]; 4]) {
        // SAFETY: see above. Each level adds the halves of two vectors into one, so the tree is that of `sum`.
        unsafe {
            for (which, y) in y.into_iter().enumerate() {
                let first = halves(pairs[0][which], pairs[1][which]);
                vst1q_f32(y, vpaddq_f32(first, halves(pairs[2][which], pairs[3][which])));
            }
        }
    }
}

/// Each of four neighbouring bytes four times, for the four fours of a register.
static FOUR_TIMES: [[u8; 16]; 4] = {
    let mut places = [[0; 16]; 4];
    let mut at = 0;
    while at < 64 {
        places[at / 16][at % 16] = (at / 4) as u8;
        at += 1;
    }
    places
};
