// performance-critical: no allocation per token, no lock, no log, no format
//! The K-quants: super-blocks of 256 elements, whose parts have their own small scales.
//!
//! Layouts are ggml's `block_q2_K` to `block_q6_K`; the offsets in each function are those of the struct's fields.

use super::dequant::half_at;

/// scales `[16]` (low nibble scale, high nibble min), quants `[64]`, d, dmin.
#[inline(always)]
pub(crate) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for part in 0..16 {
        // Parts walk through 32 quant bytes: two parts a bit pair, four bit pairs, then the next 32 bytes.
        let (half, shift, side) = (part / 8, part % 8 / 2 * 2, part % 2);
        let (scale, min) = (d * (block[part] & 15) as f32, dmin * (block[part] >> 4) as f32);
        for i in 0..16 {
            let quant = (block[16 + half * 32 + side * 16 + i] >> shift) & 3;
            out[part * 16 + i] = scale * quant as f32 - min;
        }
    }
}

/// high-bit mask `[32]`, quants `[64]`, 6-bit scales `[12]`, d.
#[inline(always)]
pub(crate) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 108);
    for part in 0..16 {
        let (half, pair, side) = (part / 8, part % 8 / 2, part % 2);
        let low = if part < 8 { block[96 + part] & 15 } else { block[96 + part - 8] >> 4 };
        let high = (block[96 + 8 + part % 4] >> (part / 4 * 2)) & 3;
        let scale = d * ((low | high << 4) as i32 - 32) as f32;
        for i in 0..16 {
            let quant = (block[32 + half * 32 + side * 16 + i] >> (pair * 2)) & 3;
            let high = (block[side * 16 + i] >> (half * 4 + pair)) & 1;
            out[part * 16 + i] = scale * ((quant | high << 2) as i32 - 4) as f32;
        }
    }
}

/// Scale and min of part `part` of 8 from the 12 packed bytes of Q4_K and Q5_K (`get_scale_min_k4`).
#[inline(always)]
fn scale_and_min(packed: &[u8], part: usize) -> (f32, f32) {
    if part < 4 {
        return ((packed[part] & 63) as f32, (packed[part + 4] & 63) as f32);
    }
    let scale = (packed[part + 4] & 15) | (packed[part - 4] >> 6) << 4;
    let min = (packed[part + 4] >> 4) | (packed[part] >> 6) << 4;
    (scale as f32, min as f32)
}

/// d, dmin, 6-bit scales and mins `[12]`, nibbles `[128]`.
#[inline(always)]
pub(crate) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for part in 0..8 {
        let (scale, min) = scale_and_min(&block[4..16], part);
        let (scale, min) = (d * scale, dmin * min);
        let shift = part % 2 * 4;
        for i in 0..32 {
            let quant = (block[16 + part / 2 * 32 + i] >> shift) & 15;
            out[part * 32 + i] = scale * quant as f32 - min;
        }
    }
}

/// d, dmin, 6-bit scales and mins `[12]`, fifth bits `[32]`, nibbles `[128]`.
#[inline(always)]
pub(crate) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for part in 0..8 {
        let (scale, min) = scale_and_min(&block[4..16], part);
        let (scale, min) = (d * scale, dmin * min);
        let shift = part % 2 * 4;
        for i in 0..32 {
            let low = (block[48 + part / 2 * 32 + i] >> shift) & 15;
            let high = (block[16 + i] >> part) & 1;
            out[part * 32 + i] = scale * (low | high << 4) as f32 - min;
        }
    }
}

/// low nibbles `[128]`, high bit pairs `[64]`, i8 scales `[16]`, d.
#[inline(always)]
pub(crate) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for part in 0..16 {
        // Within each half of 128: quarters of 32 take (nibble, byte offset) = (low, 0), (low, 32), (high, 0), (high, 32).
        let (half, quarter, side) = (part / 8, part % 8 / 2, part % 2);
        let scale = d * block[192 + part] as i8 as f32;
        for i in 0..16 {
            let at = side * 16 + i;
            let low = (block[half * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4)) & 15;
            let high = (block[128 + half * 32 + at] >> (quarter * 2)) & 3;
            out[part * 16 + i] = scale * ((low | high << 4) as i32 - 32) as f32;
        }
    }
}
