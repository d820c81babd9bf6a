// performance-critical: no allocation per token, no lock, no log, no format
//! Element types of the KV cache: read 16 or 32 elements at a time as f32, written 16 at a time.

use super::simd::{LANES, Simd};

/// A type whose elements are consecutive in memory.
pub(crate) trait Format {
    /// Bytes of one element.
    const ELEMENT_BYTES: usize;

    /// 16 elements, in order.
    ///
    /// # Safety
    /// `from` must be readable for them, and the machine must have the instructions of `S`.
    unsafe fn load<S: Simd>(from: *const u8) -> S::V;

    /// Writes 16 elements, rounded to nearest.
    ///
    /// # Safety
    /// `to` must be writable for them, and the machine must have the instructions of `S`.
    unsafe fn store<S: Simd>(to: *mut u8, values: S::V);

    /// The first `count` elements, zeros behind them.
    ///
    /// # Safety
    /// As [`Format::load`], for `count` elements.
    #[inline(always)]
    unsafe fn load_part<S: Simd>(from: *const u8, count: usize) -> S::V {
        // SAFETY: the caller promises the bytes; `padded` has room for 16 of the largest element.
        unsafe {
            if count >= LANES {
                return Self::load::<S>(from);
            }
            let mut padded = [0u8; LANES * 4];
            std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), count * Self::ELEMENT_BYTES);
            Self::load::<S>(padded.as_ptr())
        }
    }

    /// Writes the first `count` elements.
    ///
    /// # Safety
    /// As [`Format::store`], for `count` elements.
    #[inline(always)]
    unsafe fn store_part<S: Simd>(to: *mut u8, values: S::V, count: usize) {
        // SAFETY: the caller promises the bytes; `padded` has room for 16 of the largest element.
        unsafe {
            if count >= LANES {
                return Self::store::<S>(to, values);
            }
            let mut padded = [0u8; LANES * 4];
            Self::store::<S>(padded.as_mut_ptr(), values);
            std::ptr::copy_nonoverlapping(padded.as_ptr(), to, count * Self::ELEMENT_BYTES);
        }
    }
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

// SAFETY of the blocks below: 16 elements are what the caller promises, as it does the instructions.
impl Format for F32 {
    const ELEMENT_BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        // SAFETY: see above; f32 loads need no alignment.
        unsafe { S::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut u8, values: S::V) {
        // SAFETY: see above.
        unsafe { S::store(to.cast(), values) }
    }
    #[inline(always)]
    unsafe fn load_part<S: Simd>(from: *const u8, count: usize) -> S::V {
        // SAFETY: see above.
        unsafe { S::load_part(from.cast(), count) }
    }
}

impl Format for F16 {
    const ELEMENT_BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        // SAFETY: see above.
        unsafe { S::load_f16(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut u8, values: S::V) {
        // SAFETY: see above.
        unsafe { S::store_f16(to, values) }
    }
}

impl Format for Bf16 {
    const ELEMENT_BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        // SAFETY: see above.
        unsafe { S::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut u8, values: S::V) {
        let mut lanes = [0_f32; LANES];
        // SAFETY: see above; `lanes` holds 16 values.
        unsafe {
            S::store(lanes.as_mut_ptr(), values);
            for (lane, value) in lanes.into_iter().enumerate() {
                to.cast::<u16>().add(lane).write_unaligned(round_to_bf16(value));
            }
        }
    }
}

/// To nearest, ties to even; NaN stays NaN. Without branches, so that it becomes vector code.
#[inline(always)]
pub(crate) fn round_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_rounded_as_by_the_crate_half() {
        for bits in (0..=u32::MAX).step_by(65_521).chain([0x7f80_0001, 0xffc0_0000, 0x7f7f_ffff, 0x3f80_8000]) {
            let value = f32::from_bits(bits);
            let want = half::bf16::from_f32(value).to_bits();
            assert_eq!(round_to_bf16(value), want, "{bits:#x}");
        }
    }
}
