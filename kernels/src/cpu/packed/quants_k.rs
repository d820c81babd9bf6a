// performance-critical: no allocation per token, no lock, no log, no format
//! As [`super::quants`], the K-quants: eight blocks of 32 share a head, and blocks have small scales of their own.

#![expect(clippy::needless_range_loop, reason = "the loops over registers are all written alike")]

use super::quants::{Codes, Quants, five_bits, halves, nibbles};
use crate::cpu::simd::{Dot, LANES};

pub(crate) struct Q2K;
pub(crate) struct Q3K;
pub(crate) struct Q4K;
pub(crate) struct Q5K;
pub(crate) struct Q6K;

/// A quad of a plane of two bits.
///
/// # Safety
/// 128 readable bytes, and the instructions of `S`.
#[inline(always)]
unsafe fn two_bits<S: Dot>(from: *const u8, quad: usize) -> S::B {
    // SAFETY: as promised by the caller.
    unsafe {
        let four = S::bytes(from.add(quad / 4 * 64));
        match quad % 4 {
            0 => S::shr::<0>(four, 3),
            1 => S::shr::<2>(four, 3),
            2 => S::shr::<4>(four, 3),
            _ => S::shr::<6>(four, 3),
        }
    }
}

// SAFETY of the blocks below: offsets stay within what the trait's contract makes readable.

/// Scale and min of Q4_K and Q5_K: d and dmin times a byte each.
///
/// # Safety
/// A head of 64 and a side of 32 readable bytes, and the instructions of `S`.
#[inline(always)]
unsafe fn scale_and_min<S: Dot>(head: *const u8, side: *const u8) -> (S::V, S::V) {
    // SAFETY: as promised by the caller.
    unsafe {
        let scale = S::mul(S::load_f16(head), S::load_u8(side));
        let min = S::mul(S::load_f16(head.add(32)), S::load_u8(side.add(LANES)));
        (scale, S::sub(S::splat(0.0), min))
    }
}

impl Quants for Q4K {
    const BLOCKS: usize = 8;
    const HEAD_BYTES: usize = 64;
    const BLOCK_BYTES: usize = 32 + 256;
    const PARTS: usize = 1;
    const MINS: bool = true;
    const CODES: Codes = Codes::Small { zero: 0, most: 15 };

    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        // SAFETY: see above.
        unsafe { nibbles::<S>(block.add(32), quad) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, block: *const u8, _part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { scale_and_min::<S>(head, block) }
    }
}

impl Quants for Q5K {
    const BLOCKS: usize = 8;
    const HEAD_BYTES: usize = 64;
    const BLOCK_BYTES: usize = 32 + 320;
    const PARTS: usize = 1;
    const MINS: bool = true;
    const CODES: Codes = Codes::Small { zero: 0, most: 31 };

    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        // SAFETY: see above.
        unsafe { five_bits::<S>(block.add(32), quad) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, block: *const u8, _part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { scale_and_min::<S>(head, block) }
    }
}

impl Quants for Q6K {
    const BLOCKS: usize = 8;
    const HEAD_BYTES: usize = 32;
    const BLOCK_BYTES: usize = 32 + 384;
    const PARTS: usize = 2;
    const MINS: bool = false;
    const CODES: Codes = Codes::Small { zero: 32, most: 63 };

    #[inline(always)]
    unsafe fn codes<S: Dot>(block: *const u8) -> [S::B; 8] {
        // SAFETY: see above. 4 * code: the low four bits in bits 2 to 5, the high two in bits 6 and 7.
        unsafe {
            let block = block.add(32);
            let mut codes = [S::bytes(block); 8];
            for quad in 0..4 {
                let both = S::bytes(block.add(quad * 64));
                codes[quad] = S::shl::<2>(both, 0x3c);
                codes[quad + 4] = S::shr::<2>(both, 0x3c);
            }
            for vector in 0..2 {
                let high = S::bytes(block.add(256 + vector * 64));
                let quads = &mut codes[vector * 4..vector * 4 + 4];
                quads[0] = S::or(quads[0], S::shl::<6>(high, 0xc0));
                quads[1] = S::or(quads[1], S::shl::<4>(high, 0xc0));
                quads[2] = S::or(quads[2], S::shl::<2>(high, 0xc0));
                quads[3] = S::or(quads[3], S::shl::<0>(high, 0xc0));
            }
            codes
        }
    }
    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        // SAFETY: see above. The high two bits of a quad stand where its place among four says.
        unsafe {
            let (low, high) = (nibbles::<S>(block.add(32), quad), S::bytes(block.add(32 + 256 + quad / 4 * 64)));
            let high = match quad % 4 {
                0 => S::shl::<4>(high, 0x30),
                1 => S::shl::<2>(high, 0x30),
                2 => S::shl::<0>(high, 0x30),
                _ => S::shr::<2>(high, 0x30),
            };
            S::or(low, high)
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, block: *const u8, part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { (S::mul(halves::<S>(head, 1.0 / 4.0), S::load_i8(block.add(part * LANES))), S::splat(0.0)) }
    }
}

impl Quants for Q3K {
    const BLOCKS: usize = 8;
    const HEAD_BYTES: usize = 32;
    const BLOCK_BYTES: usize = 32 + 192;
    const PARTS: usize = 2;
    const MINS: bool = false;
    const CODES: Codes = Codes::Small { zero: 4, most: 7 };

    #[inline(always)]
    unsafe fn codes<S: Dot>(block: *const u8) -> [S::B; 8] {
        // SAFETY: see above. 32 * code: the low two bits in bits 5 and 6, the high one in bit 7.
        unsafe {
            let block = block.add(32);
            let mut codes = [S::bytes(block); 8];
            for vector in 0..2 {
                let low = S::bytes(block.add(vector * 64));
                let quads = &mut codes[vector * 4..vector * 4 + 4];
                quads[0] = S::shl::<5>(low, 0x60);
                quads[1] = S::shl::<3>(low, 0x60);
                quads[2] = S::shl::<1>(low, 0x60);
                quads[3] = S::shr::<1>(low, 0x60);
            }
            for quad in 0..8 {
                codes[quad] = S::or_bits(codes[quad], block.add(128 + quad * 8), 0x80);
            }
            codes
        }
    }
    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        // SAFETY: see above.
        unsafe { S::or_bits(two_bits::<S>(block.add(32), quad), block.add(32 + 128 + quad * 8), 4) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, block: *const u8, part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { (S::mul(halves::<S>(head, 1.0 / 32.0), S::load_i8(block.add(part * LANES))), S::splat(0.0)) }
    }
}

impl Quants for Q2K {
    const BLOCKS: usize = 8;
    const HEAD_BYTES: usize = 64;
    const BLOCK_BYTES: usize = 32 + 128;
    const PARTS: usize = 2;
    const MINS: bool = true;
    const CODES: Codes = Codes::Small { zero: 0, most: 3 };

    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        // SAFETY: see above.
        unsafe { two_bits::<S>(block.add(32), quad) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, block: *const u8, part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe {
            let [scale, min] = S::lookup_nibbles(block.add(part * LANES), S::load(NIBBLES.as_ptr()));
            let min = S::mul(S::load_f16(head.add(32)), min);
            (S::mul(S::load_f16(head), scale), S::sub(S::splat(0.0), min))
        }
    }
}

static NIBBLES: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
