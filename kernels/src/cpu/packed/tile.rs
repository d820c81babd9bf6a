// performance-critical: no allocation per token, no lock, no log, no format
//! One panel of 16 rows against a tile of tokens: the innermost loops of every dense layer.
//!
//! Invariant: an output is one lane of one accumulator, which takes the blocks (or elements) of the input in ascending
//! order. So its bits depend on the token and the row alone, not on the width of the tile.
//!
//! No closure here holds vector code: a closure would not be compiled with the instructions of its kernel.

#![expect(clippy::needless_range_loop, reason = "the loops over registers are all written alike")]

use super::activations::{UNIT, View};
use super::quants::Quants;
use crate::cpu::simd::{BLOCK, Dot};

/// Sums of `T` tokens with one panel of a block type.
///
/// # Safety
/// `panel` must be a whole panel of `Q` over `x.input`, `token` the first of a tile of `T` tokens of `x` in the form i8,
/// and the machine must have the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn quant_tile<S: Dot, Q: Quants, const T: usize>(
    panel: *const u8,
    x: &View,
    token: usize,
) -> [S::V; T] {
    let blocks = x.input / BLOCK;
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = [S::splat(0.0); T];
        let first = token * blocks;
        let (mut quants, mut scales) = (x.quants.add(first * BLOCK), x.scales.add(first));
        let (mut starts, mut sums) = (x.starts.add(first), x.sums.add(first));
        if Q::PARTS == 2 {
            (starts, sums) = (x.half_starts.add(2 * first), x.half_sums.add(2 * first));
        }
        let mut head = panel;
        for _ in 0..blocks / Q::BLOCKS {
            let mut block = head.add(Q::HEAD_BYTES);
            for _ in 0..Q::BLOCKS {
                if T <= 4 {
                    // Few tokens wait for memory: the stream is asked for well ahead, across page boundaries too.
                    for line in (0..Q::BLOCK_BYTES).step_by(64) {
                        S::prefetch(block.wrapping_add(PREFETCH_BYTES + line));
                    }
                }
                let codes = Q::codes::<S>(block);
                for part in 0..Q::PARTS {
                    let (scale, min) = Q::scales::<S>(head, block, part);
                    let quads = 8 / Q::PARTS;
                    for token in 0..T {
                        let x = quants.add(token * BLOCK);
                        let mut sum = if Q::MINS { S::zero() } else { S::start(starts.add(token)) };
                        for quad in part * quads..(part + 1) * quads {
                            if Q::MINS {
                                sum = S::dot(sum, codes[quad], x.add(quad * 4));
                            } else {
                                sum = S::dot_biased(sum, codes[quad], x.add(quad * 4));
                            }
                        }
                        let factor = S::mul(scale, S::splat(*scales.add(token)));
                        acc[token] = S::fma(S::floats(sum), factor, acc[token]);
                        if Q::MINS {
                            acc[token] = S::fma(min, S::splat(*sums.add(token)), acc[token]);
                        }
                    }
                    starts = starts.add(T);
                    sums = sums.add(T);
                }
                quants = quants.add(T * BLOCK);
                scales = scales.add(T);
                block = block.add(Q::BLOCK_BYTES);
            }
            head = block;
        }
        acc
    }
}

/// How far ahead of its use a weight is asked for.
const PREFETCH_BYTES: usize = 2048;

/// A type of plain numbers.
pub(super) trait Plain {
    /// Whether it gains from instructions for bf16.
    const BF16: bool = false;
    /// Elements that are taken at once: bf16 go in pairs.
    const STEP: usize;
    /// Bytes of a step of 16 rows.
    const STEP_BYTES: usize;

    /// Adds the products of a step's weights with `T` tokens, whose values stand [`UNIT`] apart from `unit + at` on.
    ///
    /// # Safety
    /// The pointers must be valid for that, and the machine must have the instructions of `S`.
    unsafe fn step<S: Dot, const T: usize>(acc: &mut [S::V; T], w: *const u8, x: &View, at: usize);
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Plain for F32 {
    const STEP: usize = 1;
    const STEP_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn step<S: Dot, const T: usize>(acc: &mut [S::V; T], w: *const u8, x: &View, at: usize) {
        // SAFETY: as promised by the caller.
        unsafe {
            let w = S::load(w.cast());
            for token in 0..T {
                acc[token] = S::fma(w, S::splat(*x.f32.add(at + token * UNIT)), acc[token]);
            }
        }
    }
}

impl Plain for F16 {
    const STEP: usize = 1;
    const STEP_BYTES: usize = 32;

    #[inline(always)]
    unsafe fn step<S: Dot, const T: usize>(acc: &mut [S::V; T], w: *const u8, x: &View, at: usize) {
        // SAFETY: as promised by the caller.
        unsafe {
            let w = S::load_f16(w);
            for token in 0..T {
                acc[token] = S::fma(w, S::splat(*x.f32.add(at + token * UNIT)), acc[token]);
            }
        }
    }
}

impl Plain for Bf16 {
    const BF16: bool = true;
    const STEP: usize = 2;
    const STEP_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn step<S: Dot, const T: usize>(acc: &mut [S::V; T], w: *const u8, x: &View, at: usize) {
        // SAFETY: as promised by the caller.
        unsafe {
            for token in 0..T {
                acc[token] = S::dot_bf16(acc[token], w, x.bf16.add(at + token * UNIT));
            }
        }
    }
}

/// Sums of `T` tokens with `R` neighbouring panels of plain numbers.
///
/// # Safety
/// `panel` must be the first of `R` whole panels of `P` over `x.input`, `token` the first of a tile of `T` tokens of `x`
/// in the form of `P`, and the machine must have the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn plain_tile<S: Dot, P: Plain, const T: usize, const R: usize>(
    panel: *const u8,
    x: &View,
    token: usize,
) -> [[S::V; T]; R] {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = [[S::splat(0.0); T]; R];
        let panel_bytes = x.input.div_ceil(P::STEP) * P::STEP_BYTES;
        let mut at = token * x.width;
        let mut w = panel;
        for _ in 0..x.input / UNIT {
            for step in 0..UNIT / P::STEP {
                for r in 0..R {
                    let w = w.add(r * panel_bytes);
                    if T * R <= 4 {
                        S::prefetch(w.wrapping_add(PREFETCH_BYTES));
                    }
                    P::step::<S, T>(&mut acc[r], w, x, at + step * P::STEP);
                }
                w = w.add(P::STEP_BYTES);
            }
            at += T * UNIT;
        }
        for step in 0..(x.input % UNIT).div_ceil(P::STEP) {
            for r in 0..R {
                P::step::<S, T>(&mut acc[r], w.add(r * panel_bytes), x, at + step * P::STEP);
            }
            w = w.add(P::STEP_BYTES);
        }
        acc
    }
}
