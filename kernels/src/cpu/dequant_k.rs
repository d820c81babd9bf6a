// performance-critical: no allocation per token, no lock, no log, no format
//! The K-quants: super-blocks of 256 elements, whose parts have their own small scales.
//!
//! Layouts are ggml's `block_q2_K` to `block_q6_K`; the offsets in each function are those of the struct's fields.

use super::dequant::half_at;

/// Part `index` of a block's bytes, as an array: loops over it have no bounds checks and become vector code.
#[inline(always)]
fn part<const N: usize>(bytes: &[u8], index: usize) -> &[u8; N] {
    &bytes.as_chunks::<N>().0[index]
}

/// scales `[16]` (low nibble scale, high nibble min), quants `[64]`, d, dmin.
#[inline(always)]
pub(crate) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (index, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Parts walk through 32 quant bytes: two parts a bit pair, four bit pairs, then the next 32 bytes.
        let (half, shift, side) = (index / 8, index % 8 / 2 * 2, index % 2);
        let (scale, min) = (d * (block[index] & 15) as f32, dmin * (block[index] >> 4) as f32);
        let quants = part::<16>(&block[16..80], half * 2 + side);
        for (value, quant) in out.iter_mut().zip(quants) {
            *value = scale * ((quant >> shift) & 3) as f32 - min;
        }
    }
}

/// high-bit mask `[32]`, quants `[64]`, 6-bit scales `[12]`, d.
#[inline(always)]
pub(crate) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 108);
    for (index, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (half, pair, side) = (index / 8, index % 8 / 2, index % 2);
        let low = if index < 8 { block[96 + index] & 15 } else { block[96 + index - 8] >> 4 };
        let high = (block[96 + 8 + index % 4] >> (index / 4 * 2)) & 3;
        let scale = d * ((low | high << 4) as i32 - 32) as f32;
        let (quants, highs) = (part::<16>(&block[32..96], half * 2 + side), part::<16>(&block[..32], side));
        for ((value, quant), high) in out.iter_mut().zip(quants).zip(highs) {
            let quant = (quant >> (pair * 2)) & 3 | ((high >> (half * 4 + pair)) & 1) << 2;
            *value = scale * (quant as i32 - 4) as f32;
        }
    }
}

/// Scale and min of part `index` of 8 from the 12 packed bytes of Q4_K and Q5_K (`get_scale_min_k4`).
#[inline(always)]
fn scale_and_min(packed: &[u8; 12], index: usize) -> (f32, f32) {
    if index < 4 {
        return ((packed[index] & 63) as f32, (packed[index + 4] & 63) as f32);
    }
    let scale = (packed[index + 4] & 15) | (packed[index - 4] >> 6) << 4;
    let min = (packed[index + 4] >> 4) | (packed[index] >> 6) << 4;
    (scale as f32, min as f32)
}

/// d, dmin, 6-bit scales and mins `[12]`, nibbles `[128]`.
#[inline(always)]
pub(crate) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (index, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(part(&block[4..16], 0), index);
        let (scale, min) = (d * scale, dmin * min);
        let shift = index % 2 * 4;
        for (value, quant) in out.iter_mut().zip(part::<32>(&block[16..], index / 2)) {
            *value = scale * ((quant >> shift) & 15) as f32 - min;
        }
    }
}

/// d, dmin, 6-bit scales and mins `[12]`, fifth bits `[32]`, nibbles `[128]`.
#[inline(always)]
pub(crate) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let highs = part::<32>(&block[16..48], 0);
    for (index, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(part(&block[4..16], 0), index);
        let (scale, min) = (d * scale, dmin * min);
        let shift = index % 2 * 4;
        for ((value, quant), high) in out.iter_mut().zip(part::<32>(&block[48..], index / 2)).zip(highs) {
            let quant = (quant >> shift) & 15 | ((high >> index) & 1) << 4;
            *value = scale * quant as f32 - min;
        }
    }
}

/// low nibbles `[128]`, high bit pairs `[64]`, i8 scales `[16]`, d.
#[inline(always)]
pub(crate) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for (index, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // In each half of 128, quarters of 32 take (nibble, bytes) = (low, 0..), (low, 32..), (high, 0..), (high, 32..).
        let (half, quarter, side) = (index / 8, index % 8 / 2, index % 2);
        let scale = d * block[192 + index] as i8 as f32;
        let lows = part::<16>(&block[..128], half * 4 + quarter % 2 * 2 + side);
        let highs = part::<16>(&block[128..192], half * 2 + side);
        for ((value, low), high) in out.iter_mut().zip(lows).zip(highs) {
            let quant = (low >> (quarter / 2 * 4)) & 15 | ((high >> (quarter * 2)) & 3) << 4;
            *value = scale * (quant as i32 - 32) as f32;
        }
    }
}
