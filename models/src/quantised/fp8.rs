//! FP8 (E4M3) matrices with one scale, one a row, or one a block of the matrix: as they lie in their file, for who multiplies
//! with them so, or as BF16, each value rounded once.

use std::sync::Arc;

use half::bf16;
use sconce_kernels::{GgmlType, SharedBytes, Weight};

use super::groups::by_rows;
use crate::error::{Error, Result};
use crate::tensors::TensorSet;

/// A matrix `[out, input]` of E4M3 and its scales.
#[derive(Clone)]
pub(crate) struct Fp8Matrix {
    pub out: usize,
    pub input: usize,
    /// Rows and columns that share a scale, cut from the start: the last may be smaller.
    pub block: (usize, usize),
    /// `[ceil(out / block.0), ceil(input / block.1)]`
    pub scales: Vec<f32>,
    /// Where the codes lie.
    pub bytes: SharedBytes,
    pub offset: usize,
}

impl Fp8Matrix {
    pub(super) fn read(set: &TensorSet, name: &str, (out, input): (usize, usize)) -> Result<Self> {
        set.bytes_of(name, &[out, input])?;
        let names = [format!("{name}_scale_inv"), format!("{name}_scale")];
        let scale_name = names.iter().find(|name| set.get(name).is_some()).unwrap_or(&names[0]);
        let (shape, scales) = set.floats_of(scale_name)?;
        let block = match *shape.as_slice() {
            [] | [1] | [1, 1] => (out, input),
            [found] | [found, 1] if found == out => (1, input),
            [rows, columns] if rows > 0 && columns > 0 && rows <= out && columns <= input => {
                (block_of(out, rows), block_of(input, columns))
            }
            _ => return Err(wrong_shape(set, scale_name, &shape)),
        };
        match set.get(name) {
            Some(stored) if block.0 > 0 && block.1 > 0 && stored.bytes == out * input => {
                Ok(Self { out, input, block, scales, bytes: Arc::clone(&stored.file) as _, offset: stored.offset })
            }
            _ => Err(wrong_shape(set, scale_name, &shape)),
        }
    }

    /// `[out, input]`
    pub fn codes(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.offset..self.offset + self.out * self.input]
    }

    /// Each value rounded once.
    pub fn as_bf16(&self) -> Result<Weight> {
        let Self { out, input, block: (rows, columns), .. } = *self;
        let (codes, stride) = (self.codes(), input.div_ceil(columns));
        let table: Vec<f32> = (0..=u8::MAX).map(e4m3).collect();
        let bytes = by_rows(out, 2 * input, |row, to| {
            let codes = &codes[row * input..(row + 1) * input];
            let scales = &self.scales[row / rows * stride..];
            for (column, (code, to)) in codes.iter().zip(to.as_chunks_mut::<2>().0).enumerate() {
                *to = bf16::from_f32(table[usize::from(*code)] * scales[column / columns]).to_le_bytes();
            }
        });
        Ok(Weight::new(GgmlType::Bf16, out, input, Arc::new(bytes), 0)?)
    }
}

/// The size of the blocks that cut `size` into `count`: a power of two as all published ones, 0 if there is none.
fn block_of(size: usize, count: usize) -> usize {
    let block = size.div_ceil(count).next_power_of_two();
    if size.div_ceil(block) == count { block } else { 0 }
}

fn wrong_shape(set: &TensorSet, name: &str, shape: &[usize]) -> Error {
    Error::Config { file: set.source.clone(), detail: format!("tensor {name} has shape {shape:?}, no shape of scales") }
}

/// Four bits of exponent, three of mantissa, no infinity.
fn e4m3(code: u8) -> f32 {
    let (sign, exponent, mantissa) = (code >> 7, i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if sign == 1 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::{block_of, e4m3};

    #[test]
    fn codes_have_the_values_of_the_format() {
        for (code, value) in [(0, 0.0), (1, 0.001953125), (8, 0.015625), (0x38, 1.0), (0x7e, 448.0), (0xb9, -1.125)] {
            assert_eq!(e4m3(code), value, "{code:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }

    #[test]
    fn blocks_are_found_from_the_shapes() {
        for (size, count, block) in [(256, 2, 128), (300, 3, 128), (32, 1, 32), (48, 2, 32), (100, 7, 16), (100, 6, 0)]
        {
            assert_eq!(block_of(size, count), block, "{size} in {count}");
        }
    }
}
