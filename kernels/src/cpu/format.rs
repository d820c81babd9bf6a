// performance-critical: no allocation per token, no lock, no log, no format
//! Weight formats that are dequantised in registers, 16 or 32 elements at a time.
//!
//! Invariant: a format's values come from one function, whether they go into scratch (many tokens) or straight into
//! the sums (few tokens). That is why both ways give the same bits.

use super::dequant::IQ4_NL_VALUES;
use super::simd::{LANES, Simd};

/// A format whose steps of 32 elements are consecutive in memory.
pub(crate) trait Format {
    /// Bytes of 32 elements.
    const BYTES: usize;
    /// Bytes of one element where rows may have any length; 0 where rows are whole blocks of 32.
    const ELEMENT_BYTES: usize;

    /// 32 elements, in order.
    ///
    /// # Safety
    /// `from` must be readable for `BYTES` bytes, and the machine must have the instructions of `S`.
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::V; 2];

    /// The last `count` elements of a row, zeros behind them.
    ///
    /// # Safety
    /// As [`Format::unpack`], for `count * ELEMENT_BYTES` bytes; `count` must be below 32.
    #[inline(always)]
    unsafe fn unpack_part<S: Simd>(from: *const u8, count: usize) -> [S::V; 2] {
        let mut padded = [0u8; 32 * 4];
        // SAFETY: the caller promises the bytes; `padded` has room for 31 of the largest element.
        unsafe {
            std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), count * Self::ELEMENT_BYTES);
            Self::unpack::<S>(padded.as_ptr())
        }
    }
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;
pub(crate) struct Q4_0;
pub(crate) struct Q4_1;
pub(crate) struct Q8_0;
pub(crate) struct Iq4Nl;

// SAFETY of the blocks below: offsets stay within `BYTES`, which the caller promises, as it does the instructions.
impl Format for F32 {
    const BYTES: usize = 128;
    const ELEMENT_BYTES: usize = 4;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::V; 2] {
        // SAFETY: see above; f32 loads need no alignment.
        unsafe { [S::load(from.cast()), S::load(from.add(64).cast())] }
    }
    #[inline(always)]
    unsafe fn unpack_part<S: Simd>(from: *const u8, count: usize) -> [S::V; 2] {
        let (first, second) = (count.min(LANES), count.saturating_sub(LANES));
        // SAFETY: see above; the second part starts inside or at the end of the first.
        unsafe { [S::load_part(from.cast(), first), S::load_part(from.add(first * 4).cast(), second)] }
    }
}

impl Format for F16 {
    const BYTES: usize = 64;
    const ELEMENT_BYTES: usize = 2;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::V; 2] {
        // SAFETY: see above.
        unsafe { [S::load_f16(from), S::load_f16(from.add(32))] }
    }
}

impl Format for Bf16 {
    const BYTES: usize = 64;
    const ELEMENT_BYTES: usize = 2;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::V; 2] {
        // SAFETY: see above.
        unsafe { [S::load_bf16(from), S::load_bf16(from.add(32))] }
    }
}

/// The values that a nibble can stand for, before the scale.
static NIBBLES: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
static NIBBLES_MINUS_8: [f32; LANES] = [-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.];
static NIBBLES_IQ4_NL: [f32; LANES] = {
    let mut values = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        values[i] = IQ4_NL_VALUES[i] as f32;
        i += 1;
    }
    values
};

// A 4-bit block has 16 possible values: the scale is applied to those, and the 32 elements are looked up.
impl Format for Q4_0 {
    const BYTES: usize = 18;
    const ELEMENT_BYTES: usize = 0;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::V; 2] {
        // SAFETY: see above.
        unsafe { S::lookup_nibbles(from.add(2), S::mul(S::load(NIBBLES_MINUS_8.as_ptr()), S::splat_f16(from))) }
    }
}

impl Format for Q4_1 {
    const BYTES: usize = 20;
    const ELEMENT_BYTES: usize = 0;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::V; 2] {
        // SAFETY: see above.
        unsafe {
            let table = S::fma(S::load(NIBBLES.as_ptr()), S::splat_f16(from), S::splat_f16(from.add(2)));
            S::lookup_nibbles(from.add(4), table)
        }
    }
}

impl Format for Iq4Nl {
    const BYTES: usize = 18;
    const ELEMENT_BYTES: usize = 0;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::V; 2] {
        // SAFETY: see above.
        unsafe { S::lookup_nibbles(from.add(2), S::mul(S::load(NIBBLES_IQ4_NL.as_ptr()), S::splat_f16(from))) }
    }
}

impl Format for Q8_0 {
    const BYTES: usize = 34;
    const ELEMENT_BYTES: usize = 0;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(from: *const u8) -> [S::V; 2] {
        // SAFETY: see above.
        unsafe {
            let scale = S::splat_f16(from);
            [S::mul(S::load_i8(from.add(2)), scale), S::mul(S::load_i8(from.add(18)), scale)]
        }
    }
}
