// performance-critical: no allocation per token, no lock, no log, no format
//! Products on NEON with I8MM, in the way of [`Paired`].
//!
//! The instruction has no stable function yet; it is written out.

use std::arch::aarch64::*;
use std::arch::asm;

use super::neon::Neon;
use super::{Paired, PairedKernel};

/// # Safety
/// The machine must have NEON, DotProd and I8MM; the kernel's own conditions must hold.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn run<K: PairedKernel>(kernel: K) {
    // SAFETY: as promised by the caller.
    unsafe { kernel.run_paired::<Neon<true, true>>() }
}

type Bytes = [uint8x16_t; 4];
type Ints = [int32x4_t; 4];

// SAFETY of every block below: the caller has NEON, DotProd and I8MM, and what pointers name is there.
impl Paired for Neon<true, true> {
    type M = [int8x16_t; 8];
    /// Of rows 2n and 2n + 1: the first row's sums for both tokens, then the second row's.
    type D = [int32x4_t; 8];

    #[inline(always)]
    unsafe fn eights<const BIASED: bool>(first: Bytes, second: Bytes) -> Self::M {
        // SAFETY: see above.
        unsafe {
            let mut pairs = [vdupq_n_s8(0); 8];
            for four in 0..4 {
                let (mut a, mut b) = (first[four], second[four]);
                if BIASED {
                    let bias = vdupq_n_u8(0x80);
                    (a, b) = (veorq_u8(a, bias), veorq_u8(b, bias));
                }
                let (a, b) = (vreinterpretq_s32_u8(a), vreinterpretq_s32_u8(b));
                pairs[2 * four] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
                pairs[2 * four + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
            }
            pairs
        }
    }
    #[inline(always)]
    unsafe fn no_sums() -> Self::D {
        // SAFETY: see above.
        unsafe { [vdupq_n_s32(0); 8] }
    }
    #[inline(always)]
    unsafe fn add_eights(mut sums: Self::D, values: Self::M, x: [*const i8; 2]) -> Self::D {
        // SAFETY: see above; the instruction touches registers alone.
        unsafe {
            let x = vcombine_s8(vld1_s8(x[0]), vld1_s8(x[1]));
            for (sum, values) in sums.iter_mut().zip(values) {
                asm!(
                    "smmla {sum:v}.4s, {values:v}.16b, {x:v}.16b",
                    sum = inout(vreg) *sum, values = in(vreg) values, x = in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn apart(sums: Self::D) -> [Ints; 2] {
        // SAFETY: see above.
        unsafe {
            let mut apart = [[vdupq_n_s32(0); 4]; 2];
            for four in 0..4 {
                let (a, b) = (sums[2 * four], sums[2 * four + 1]);
                (apart[0][four], apart[1][four]) = (vuzp1q_s32(a, b), vuzp2q_s32(a, b));
            }
            apart
        }
    }
}
