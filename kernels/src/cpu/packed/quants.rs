// performance-critical: no allocation per token, no lock, no log, no format
//! Packed blocks as vectors: codes unpacked in registers, scales as f32, for one block of 32 elements of 16 rows.
//!
//! Types without mins hold codes that stand 128 above a multiple of their value, so that the correction is one number
//! for all of them; the multiple is taken back in the scale. Layouts are drawn in [`super::layout`].

#![expect(clippy::needless_range_loop, reason = "the loops over registers are all written alike")]

use crate::cpu::dequant::{IQ4_NL_VALUES, MXFP4_VALUES};
use crate::cpu::simd::Dot;

/// A packed block type.
pub(crate) trait Quants {
    /// Blocks of 32 elements that share a head.
    const BLOCKS: usize;
    const HEAD_BYTES: usize;
    const BLOCK_BYTES: usize;
    /// Parts of a block that have scales of their own: 1 or 2.
    const PARTS: usize;
    /// Whether values are `scale * code + min`; otherwise they are `scale * (code - 128)`.
    const MINS: bool;
    /// What [`Quants::quad`] gives.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "the staged way is there for AVX2"))]
    const CODES: Codes;

    /// The eight quads of a block: codes or, without mins, a power of two times the codes, so that they stand 128 above.
    ///
    /// # Safety
    /// `block` must be readable for `BLOCK_BYTES`, and the machine must have the instructions of `S`.
    #[inline(always)]
    unsafe fn codes<S: Dot>(block: *const u8) -> [S::B; 8] {
        // SAFETY: as promised by the caller.
        unsafe {
            let mut codes = [Self::quad::<S>(block, 0); 8];
            for quad in 1..8 {
                codes[quad] = Self::quad::<S>(block, quad);
            }
            codes
        }
    }

    /// One quad, as [`Quants::CODES`] says.
    ///
    /// # Safety
    /// As [`Quants::codes`].
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B;

    /// Scale and min of one part. Where there are no mins, the second is zero.
    ///
    /// # Safety
    /// As [`Quants::codes`]; `head` must be readable for `HEAD_BYTES`.
    unsafe fn scales<S: Dot>(head: *const u8, block: *const u8, part: usize) -> (S::V, S::V);
}

/// How codes are multiplied where products are summed in 16 bits first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codes {
    /// As they are stored, `zero` (a power of two, or 0) above their value and `most` at most.
    Small { zero: i32, most: i32 },
    /// 128 above their value, of which two are all that fits.
    Bytes,
}

#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "the staged way is there for AVX2"))]
impl Codes {
    /// Quads, at most 8, whose products with activations of 8 bits fit 16 bits together. Bytes are not summed so.
    pub const fn quads(self) -> usize {
        match self {
            Codes::Small { most, .. } => match i16::MAX as i32 / (2 * 127 * most) {
                8.. => 8,
                4..8 => 4,
                _ => 2,
            },
            Codes::Bytes => 1,
        }
    }
}

pub(crate) struct Q4_0;
pub(crate) struct Q4_1;
pub(crate) struct Q5_0;
pub(crate) struct Q5_1;
pub(crate) struct Q8_0;
pub(crate) struct Iq4Nl;
pub(crate) struct Iq4Xs;
pub(crate) struct Mxfp4;

/// A quad of the nibble plane: 0 to 3 in the low, 4 to 7 in the high nibbles.
///
/// # Safety
/// 256 readable bytes, and the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn nibbles<S: Dot>(from: *const u8, quad: usize) -> S::B {
    // SAFETY: as promised by the caller.
    unsafe {
        let both = S::bytes(from.add(quad % 4 * 64));
        if quad < 4 { S::shr::<0>(both, 0x0f) } else { S::shr::<4>(both, 0x0f) }
    }
}

/// A table of values as codes that stand 128 above them.
const fn biased(values: &[i8; 16]) -> [u8; 16] {
    let mut table = [0; 16];
    let mut at = 0;
    while at < 16 {
        table[at] = (values[at] as i32 + 128) as u8;
        at += 1;
    }
    table
}

/// A quad of a nibble plane whose codes are places in a table.
///
/// # Safety
/// As [`nibbles`].
#[inline(always)]
unsafe fn looked_up<S: Dot>(from: *const u8, quad: usize, table: &[u8; 16]) -> S::B {
    // SAFETY: as promised by the caller.
    unsafe { S::lookup(nibbles::<S>(from, quad), table) }
}

/// f16 scales of the head's first or second 16 halves, times a power of two.
///
/// # Safety
/// 32 readable bytes, and the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn halves<S: Dot>(from: *const u8, factor: f32) -> S::V {
    // SAFETY: as promised by the caller.
    unsafe { if factor == 1.0 { S::load_f16(from) } else { S::mul(S::load_f16(from), S::splat(factor)) } }
}

// SAFETY of the blocks below: offsets stay within what the trait's contract makes readable.

impl Quants for Q4_0 {
    const BLOCKS: usize = 1;
    const HEAD_BYTES: usize = 32;
    const BLOCK_BYTES: usize = 256;
    const PARTS: usize = 1;
    const MINS: bool = false;
    const CODES: Codes = Codes::Small { zero: 8, most: 15 };

    #[inline(always)]
    unsafe fn codes<S: Dot>(block: *const u8) -> [S::B; 8] {
        // SAFETY: see above. 16 * code
        unsafe {
            let mut codes = [S::bytes(block); 8];
            for quad in 0..4 {
                let both = S::bytes(block.add(quad * 64));
                codes[quad] = S::shl::<4>(both, 0xf0);
                codes[quad + 4] = S::shr::<0>(both, 0xf0);
            }
            codes
        }
    }
    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        // SAFETY: see above.
        unsafe { nibbles::<S>(block, quad) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, _block: *const u8, _part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { (halves::<S>(head, 1.0 / 16.0), S::splat(0.0)) }
    }
}

impl Quants for Iq4Nl {
    const BLOCKS: usize = 1;
    const HEAD_BYTES: usize = 32;
    const BLOCK_BYTES: usize = 256;
    const PARTS: usize = 1;
    const MINS: bool = false;
    const CODES: Codes = Codes::Bytes;

    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        const TABLE: [u8; 16] = biased(&IQ4_NL_VALUES);
        // SAFETY: see above.
        unsafe { looked_up::<S>(block, quad, &TABLE) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, _block: *const u8, _part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { (halves::<S>(head, 1.0), S::splat(0.0)) }
    }
}

impl Quants for Mxfp4 {
    const BLOCKS: usize = 1;
    const HEAD_BYTES: usize = 32;
    const BLOCK_BYTES: usize = 256;
    const PARTS: usize = 1;
    const MINS: bool = false;
    const CODES: Codes = Codes::Bytes;

    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        const TABLE: [u8; 16] = biased(&MXFP4_VALUES);
        // SAFETY: see above.
        unsafe { looked_up::<S>(block, quad, &TABLE) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, _block: *const u8, _part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { (S::load_bf16(head), S::splat(0.0)) }
    }
}

impl Quants for Iq4Xs {
    const BLOCKS: usize = 8;
    const HEAD_BYTES: usize = 32;
    const BLOCK_BYTES: usize = 32 + 256;
    const PARTS: usize = 1;
    const MINS: bool = false;
    const CODES: Codes = Codes::Bytes;

    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        const TABLE: [u8; 16] = biased(&IQ4_NL_VALUES);
        // SAFETY: see above.
        unsafe { looked_up::<S>(block.add(32), quad, &TABLE) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, block: *const u8, _part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { (S::mul(S::load_f16(head), S::load_i8(block)), S::splat(0.0)) }
    }
}

impl Quants for Q4_1 {
    const BLOCKS: usize = 1;
    const HEAD_BYTES: usize = 64;
    const BLOCK_BYTES: usize = 256;
    const PARTS: usize = 1;
    const MINS: bool = true;
    const CODES: Codes = Codes::Small { zero: 0, most: 15 };

    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        // SAFETY: see above.
        unsafe { nibbles::<S>(block, quad) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, _block: *const u8, _part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { (halves::<S>(head, 1.0), halves::<S>(head.add(32), 1.0)) }
    }
}

impl Quants for Q5_0 {
    const BLOCKS: usize = 1;
    const HEAD_BYTES: usize = 32;
    const BLOCK_BYTES: usize = 320;
    const PARTS: usize = 1;
    const MINS: bool = false;
    const CODES: Codes = Codes::Small { zero: 16, most: 31 };

    #[inline(always)]
    unsafe fn codes<S: Dot>(block: *const u8) -> [S::B; 8] {
        // SAFETY: see above. 8 * code
        unsafe {
            let mut codes = [S::bytes(block); 8];
            for quad in 0..4 {
                let both = S::bytes(block.add(quad * 64));
                codes[quad] = S::or_bits(S::shl::<3>(both, 0x78), block.add(256 + quad * 8), 0x80);
                codes[quad + 4] = S::or_bits(S::shr::<1>(both, 0x78), block.add(288 + quad * 8), 0x80);
            }
            codes
        }
    }
    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        // SAFETY: see above.
        unsafe { five_bits::<S>(block, quad) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, _block: *const u8, _part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { (halves::<S>(head, 1.0 / 8.0), S::splat(0.0)) }
    }
}

/// A quad of nibbles with a plane of fifth bits behind them.
///
/// # Safety
/// 320 readable bytes, and the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn five_bits<S: Dot>(from: *const u8, quad: usize) -> S::B {
    // SAFETY: as promised by the caller.
    unsafe { S::or_bits(nibbles::<S>(from, quad), from.add(256 + quad * 8), 0x10) }
}

impl Quants for Q5_1 {
    const BLOCKS: usize = 1;
    const HEAD_BYTES: usize = 64;
    const BLOCK_BYTES: usize = 320;
    const PARTS: usize = 1;
    const MINS: bool = true;
    const CODES: Codes = Codes::Small { zero: 0, most: 31 };

    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        // SAFETY: see above.
        unsafe { five_bits::<S>(block, quad) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, _block: *const u8, _part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { (halves::<S>(head, 1.0), halves::<S>(head.add(32), 1.0)) }
    }
}

impl Quants for Q8_0 {
    const BLOCKS: usize = 1;
    const HEAD_BYTES: usize = 32;
    const BLOCK_BYTES: usize = 512;
    const PARTS: usize = 1;
    const MINS: bool = false;
    const CODES: Codes = Codes::Bytes;

    #[inline(always)]
    unsafe fn quad<S: Dot>(block: *const u8, quad: usize) -> S::B {
        // SAFETY: see above.
        unsafe { S::bytes(block.add(quad * 64)) }
    }
    #[inline(always)]
    unsafe fn scales<S: Dot>(head: *const u8, _block: *const u8, _part: usize) -> (S::V, S::V) {
        // SAFETY: see above.
        unsafe { (halves::<S>(head, 1.0), S::splat(0.0)) }
    }
}
