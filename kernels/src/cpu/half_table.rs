// performance-critical: no allocation per token, no lock, no log, no format
//! Every f16 as f32, 256 KiB. A block's scale is one load and no shuffle, and shuffles are what dequantising 4-bit
//! blocks is short of.

/// The f32 value of the f16 with these bits.
#[inline(always)]
pub(crate) fn half_to_f32(bits: u16) -> f32 {
    TABLE[bits as usize]
}

static TABLE: [f32; 1 << 16] = {
    let mut table = [0.0; 1 << 16];
    let mut bits = 0;
    while bits < table.len() {
        table[bits] = f32::from_bits(convert(bits as u32));
        bits += 1;
    }
    table
};

// IEEE 754 binary16 (1, 5 and 10 bits) to binary32 (1, 8 and 23 bits).
const fn convert(half: u32) -> u32 {
    let (sign, exponent, fraction) = ((half & 0x8000) << 16, (half >> 10) & 0x1f, half & 0x3ff);
    match (exponent, fraction) {
        (0, 0) => sign,
        (0, _) => {
            // Subnormal: the highest set bit becomes the implicit one.
            let shift = fraction.leading_zeros() - 21;
            sign | ((113 - shift) << 23) | (((fraction << shift) & 0x3ff) << 13)
        }
        // A quiet bit is set, as the hardware does when it converts a signalling NaN.
        (31, 0) => sign | 0x7f80_0000,
        (31, _) => sign | 0x7fc0_0000 | (fraction << 13),
        _ => sign | ((exponent + 112) << 23) | (fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_half_is_converted_as_by_the_crate_half() {
        for bits in 0..=u16::MAX {
            let want = half::f16::from_bits(bits).to_f32();
            assert_eq!(super::half_to_f32(bits).to_bits(), want.to_bits(), "{bits:#x}");
        }
    }
}
