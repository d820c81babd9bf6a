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

/// Where the first block of a tile is. The next block is the tile's width further on, and so is the next part of a block.
///
/// # Safety
/// `tile` must be the first token of a tile of `x`, which has the form i8 or i16.
#[inline(always)]
pub(super) unsafe fn first_block<Q: Quants, const WIDE: bool>(
    x: &View,
    tile: usize,
) -> (*const i8, *const f32, *const i32, *const f32) {
    let first = tile * (x.input / BLOCK);
    let token_bytes = if WIDE { 2 * BLOCK } else { BLOCK };
    // SAFETY: as promised by the caller.
    unsafe {
        let (quants, scales) = (x.quants.add(first * token_bytes), x.scales.add(first));
        if Q::PARTS == 2 {
            return (quants, scales, x.half_starts.add(2 * first), x.half_sums.add(2 * first));
        }
        (quants, scales, x.starts.add(first), x.sums.add(first))
    }
}

/// Sums of `T` tokens with one panel of a block type. `WIDE` activations have two bytes each.
///
/// # Safety
/// `panel` must be a whole panel of `Q` over `x.input`, `tile` the first token of a tile of `T` tokens of `x` in the form
/// i8 or i16, and the machine must have the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn quant_tile<S: Dot, Q: Quants, const T: usize, const WIDE: bool>(
    panel: *const u8,
    x: &View,
    tile: usize,
) -> [S::V; T] {
    let blocks = x.input / BLOCK;
    let token_bytes = if WIDE { 2 * BLOCK } else { BLOCK };
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = [S::splat(0.0); T];
        let (mut quants, mut scales, mut starts, mut sums) = first_block::<Q, WIDE>(x, tile);
        let mut head = panel;
        for _ in 0..blocks / Q::BLOCKS {
            let mut block = head.add(Q::HEAD_BYTES);
            for _ in 0..Q::BLOCKS {
                if T <= 4 || !S::MANY_REGISTERS {
                    // Few tokens wait for memory: the stream is asked for well ahead, across page boundaries too.
                    for line in (0..Q::BLOCK_BYTES).step_by(64) {
                        S::prefetch(block.wrapping_add(PREFETCH_BYTES + line));
                    }
                }
                let codes = Q::codes::<S>(block);
                for part in 0..Q::PARTS {
                    let of_panel = Q::scales::<S>(head, block, part);
                    let quads = 8 / Q::PARTS;
                    for token in 0..T {
                        let x = quants.add(token * token_bytes);
                        let mut sum = if Q::MINS { S::zero() } else { S::start(starts.add(token)) };
                        if WIDE {
                            let mut high = S::zero();
                            for quad in part * quads..(part + 1) * quads {
                                high = multiply::<S, Q>(high, codes[quad], x.add(quad * 4));
                            }
                            sum = S::join(high, sum);
                        }
                        for quad in part * quads..(part + 1) * quads {
                            let x = if WIDE { x.add(BLOCK + quad * 4) } else { x.add(quad * 4) };
                            sum = multiply::<S, Q>(sum, codes[quad], x);
                        }
                        acc[token] =
                            add_scaled::<S, Q>(acc[token], sum, of_panel, (scales.add(token), sums.add(token)));
                    }
                    starts = starts.add(T);
                    sums = sums.add(T);
                }
                quants = quants.add(T * token_bytes);
                scales = scales.add(T);
                block = block.add(Q::BLOCK_BYTES);
            }
            head = block;
        }
        acc
    }
}

/// Adds a part's sum of one token, scaled, to what the token has so far. `of_panel` is what [`Quants::scales`] gives,
/// `of_token` the token's scale and its `scale * sum` there.
///
/// # Safety
/// Both must be readable (the second where there are mins), and the machine must have the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn add_scaled<S: Dot, Q: Quants>(
    acc: S::V,
    total: S::I,
    of_panel: (S::V, S::V),
    of_token: (*const f32, *const f32),
) -> S::V {
    // SAFETY: as promised by the caller.
    unsafe {
        let factor = S::mul(of_panel.0, S::splat(*of_token.0));
        let acc = S::fma(S::floats(total), factor, acc);
        if Q::MINS { S::fma(of_panel.1, S::splat(*of_token.1), acc) } else { acc }
    }
}

/// Adds a quad's products in the way of `Q`'s codes.
///
/// # Safety
/// As [`Dot::dot`].
#[inline(always)]
pub(super) unsafe fn multiply<S: Dot, Q: Quants>(sum: S::I, codes: S::B, x: *const i8) -> S::I {
    // SAFETY: as promised by the caller.
    unsafe { if Q::MINS { S::dot(sum, codes, x) } else { S::dot_biased(sum, codes, x) } }
}

/// How far ahead of its use a weight is asked for.
pub(super) const PREFETCH_BYTES: usize = 2048;

/// A type of plain numbers.
pub(super) trait Plain {
    /// Whether it gains from instructions for bf16.
    const BF16: bool = false;
    /// Whether sums of six tokens fit 16 registers beside what a step needs.
    const SIX: bool;
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
/// BF16 with activations in f32.
pub(super) struct Bf16Wide;

impl Plain for F32 {
    const SIX: bool = true;
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
    const SIX: bool = true;
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
    const SIX: bool = false;
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

impl Plain for Bf16Wide {
    const SIX: bool = false;
    const STEP: usize = 2;
    const STEP_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn step<S: Dot, const T: usize>(acc: &mut [S::V; T], w: *const u8, x: &View, at: usize) {
        // SAFETY: as promised by the caller; behind an odd input stands a zero.
        unsafe {
            let [even, odd] = S::bf16_pairs(w);
            for token in 0..T {
                let x = x.f32.add(at + token * UNIT);
                acc[token] = S::fma(even, S::splat(*x), acc[token]);
                acc[token] = S::fma(odd, S::splat(*x.add(1)), acc[token]);
            }
        }
    }
}

/// Sums of `T` tokens with `R` neighbouring panels of plain numbers. The tokens are the first ones from `at` on in a tile
/// that is `W` wide.
///
/// # Safety
/// `panel` must be the first of `R` whole panels of `P` over `x.input`, `at` where the form of `P` has the first token's
/// first unit, in a tile of `W` tokens of which `T` follow, and the machine must have the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn plain_tile<S: Dot, P: Plain, const T: usize, const R: usize, const W: usize>(
    panel: *const u8,
    x: &View,
    mut at: usize,
) -> [[S::V; T]; R] {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = [[S::splat(0.0); T]; R];
        let panel_bytes = x.input.div_ceil(P::STEP) * P::STEP_BYTES;
        let mut w = panel;
        for _ in 0..x.input / UNIT {
            for step in 0..UNIT / P::STEP {
                for r in 0..R {
                    let w = w.add(r * panel_bytes);
                    if W <= 4 || !S::MANY_REGISTERS {
                        S::prefetch(w.wrapping_add(PREFETCH_BYTES));
                    }
                    P::step::<S, T>(&mut acc[r], w, x, at + step * P::STEP);
                }
                w = w.add(P::STEP_BYTES);
            }
            at += W * UNIT;
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
