// performance-critical: no allocation per token, no lock, no log, no format
//! Activations in the forms that packed weights are multiplied with, laid out for the tiles that will read them.
//!
//! Tokens are cut into tiles of 16, 4 or 1, widest first. In a tile, block after block of 32 (or 16) elements
//! has all tokens side by side, so a tile reads one stream with constant offsets.
//!
//! Invariant: what a token becomes depends on its own values only.

use crate::cpu::format::round_to_bf16;
use crate::cpu::simd::{BLOCK, Dot, LANES};

/// The forms that some weights need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forms {
    pub f32: bool,
    pub bf16: bool,
    pub i8: bool,
    /// i8 with a second byte below.
    pub i16: bool,
}

/// Elements of a tile's unit in the forms f32 and bf16.
pub(crate) const UNIT: usize = 16;

/// Buffers that keep their memory from call to call.
#[derive(Default)]
pub(crate) struct Activations {
    input: usize,
    tokens: usize,
    f32: Vec<f32>,
    bf16: Vec<u16>,
    quants: Vec<i8>,
    /// A scale for each block.
    scales: Vec<f32>,
    /// `-128 * sum` of each block, and of its halves.
    starts: Vec<i32>,
    half_starts: Vec<i32>,
    /// `scale * sum` of each block, and of its halves.
    sums: Vec<f32>,
    half_sums: Vec<f32>,
}

/// Neighbouring tiles of one width: 16, 4 or 1 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiles {
    pub first: usize,
    pub count: usize,
    pub width: usize,
}

impl Tiles {
    /// The tiles from token `first` on, before `end`, that are as wide as possible, at most `most`. Where `first` is a
    /// multiple of 16 or the end of other tiles, cutting at multiples of 16 changes no tile.
    #[inline(always)]
    pub fn at(first: usize, end: usize, most: usize) -> Tiles {
        let left = end - first;
        let width = if most >= 16 && left >= 16 {
            16
        } else if most >= 4 && left >= 4 {
            4
        } else {
            1
        };
        Tiles { first, count: left / width, width }
    }

    /// The first token and the width of the tile that token `token` of `tokens` is in.
    #[inline(always)]
    fn around(token: usize, tokens: usize, most: usize) -> (usize, usize) {
        let mut first = 0;
        loop {
            let tiles = Tiles::at(first, tokens, most);
            let end = first + tiles.count * tiles.width;
            if token < end {
                return (first + (token - first) / tiles.width * tiles.width, tiles.width);
            }
            first = end;
        }
    }
}

/// Where tiles read.
#[derive(Clone, Copy)]
pub(crate) struct View {
    pub f32: *const f32,
    pub bf16: *const u16,
    pub quants: *const i8,
    pub scales: *const f32,
    pub starts: *const i32,
    pub half_starts: *const i32,
    pub sums: *const f32,
    pub half_sums: *const f32,
    /// Elements of a token in the forms f32 and bf16: the input, rounded up to whole units.
    pub width: usize,
    pub input: usize,
    pub tokens: usize,
}
// SAFETY: read by all threads while nobody writes; written by one thread a token.
unsafe impl Sync for View {}

impl Activations {
    /// Makes room for `tokens` rows of `input`; what stood there is lost.
    pub fn resize(&mut self, tokens: usize, input: usize, forms: Forms) {
        (self.input, self.tokens) = (input, tokens);
        let width = input.next_multiple_of(UNIT);
        grow(&mut self.f32, if forms.f32 { tokens * width } else { 0 });
        grow(&mut self.bf16, if forms.bf16 { tokens * width } else { 0 });
        let blocks = if forms.i8 || forms.i16 { tokens * (input / BLOCK) } else { 0 };
        grow(&mut self.quants, blocks * BLOCK * if forms.i16 { 2 } else { 1 });
        grow(&mut self.scales, blocks);
        grow(&mut self.starts, blocks);
        grow(&mut self.half_starts, 2 * blocks);
        grow(&mut self.sums, blocks);
        grow(&mut self.half_sums, 2 * blocks);
    }

    pub fn view(&self) -> View {
        View {
            f32: self.f32.as_ptr(),
            bf16: self.bf16.as_ptr(),
            quants: self.quants.as_ptr(),
            scales: self.scales.as_ptr(),
            starts: self.starts.as_ptr(),
            half_starts: self.half_starts.as_ptr(),
            sums: self.sums.as_ptr(),
            half_sums: self.half_sums.as_ptr(),
            width: self.input.next_multiple_of(UNIT),
            input: self.input,
            tokens: self.tokens,
        }
    }
}

fn grow<T: Copy + Default>(values: &mut Vec<T>, len: usize) {
    if values.len() < len {
        values.resize(len, T::default());
    }
}

impl View {
    /// Writes one token's row in the wanted forms.
    ///
    /// # Safety
    /// The buffers must have been sized for rows of `row.len()` in these forms, no other thread may use this
    /// token's places, and the machine must have the instructions of `S`.
    #[inline(always)]
    pub unsafe fn put<S: Dot>(&self, row: &[f32], token: usize, forms: Forms) {
        let tile = Tiles::around(token, self.tokens, S::TOKENS);
        // SAFETY: as promised by the caller; offsets stay in the token's places of its tile.
        unsafe {
            if forms.i8 {
                self.put_quants::<S, false>(row, token, tile);
            }
            if forms.i16 {
                self.put_quants::<S, true>(row, token, tile);
            }
            if forms.f32 || forms.bf16 {
                self.put_plain::<S>(row, token, tile, forms);
            }
        }
    }

    #[inline(always)]
    unsafe fn put_quants<S: Dot, const WIDE: bool>(&self, row: &[f32], token: usize, (first, width): (usize, usize)) {
        let blocks = row.len() / BLOCK;
        // SAFETY: as promised by the caller.
        unsafe {
            for block in 0..blocks {
                let at = first * blocks + block * width + (token - first);
                let x = row.as_ptr().add(block * BLOCK);
                let found = if WIDE {
                    S::quantise_wide(x, self.quants.cast_mut().add(at * 2 * BLOCK))
                } else {
                    S::quantise(x, self.quants.cast_mut().add(at * BLOCK))
                };
                self.scales.cast_mut().add(at).write(found.scale);
                let [start, end] = found.sums;
                let sum = start.wrapping_add(end);
                self.starts.cast_mut().add(at).write(sum.wrapping_mul(-128));
                self.sums.cast_mut().add(at).write(found.scale * sum as f32);
                // Halves of a block stand apart by the tile's width, as blocks do.
                let half = 2 * (first * blocks + block * width) + (token - first);
                self.half_starts.cast_mut().add(half).write(start.wrapping_mul(-128));
                self.half_starts.cast_mut().add(half + width).write(end.wrapping_mul(-128));
                self.half_sums.cast_mut().add(half).write(found.scale * start as f32);
                self.half_sums.cast_mut().add(half + width).write(found.scale * end as f32);
            }
        }
    }

    #[inline(always)]
    unsafe fn put_plain<S: Dot>(&self, row: &[f32], token: usize, (first, width): (usize, usize), forms: Forms) {
        // SAFETY: as promised by the caller; what lies behind the row's end becomes zero.
        unsafe {
            for unit in 0..self.width / UNIT {
                let at = first * self.width + (unit * width + (token - first)) * UNIT;
                let values = S::load_part(row.as_ptr().add(unit * UNIT), row.len() - unit * UNIT);
                if forms.f32 {
                    S::store(self.f32.cast_mut().add(at), values);
                }
                if forms.bf16 {
                    let mut lanes = [0_f32; LANES];
                    S::store(lanes.as_mut_ptr(), values);
                    let to = self.bf16.cast_mut().add(at);
                    for (lane, value) in lanes.into_iter().enumerate() {
                        to.add(lane).write(round_to_bf16(value));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_in_one_tile() {
        for most in [1, 4, 16] {
            for tokens in 1..150 {
                let mut first = 0;
                while first < tokens {
                    let tiles = Tiles::at(first, tokens, most);
                    for token in first..first + tiles.count * tiles.width {
                        let start = first + (token - first) / tiles.width * tiles.width;
                        assert_eq!(Tiles::around(token, tokens, most), (start, tiles.width), "{token} of {tokens}");
                    }
                    first += tiles.count * tiles.width;
                }
                assert_eq!(first, tokens);
            }
        }
    }
}
