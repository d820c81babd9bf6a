// performance-critical: no allocation per token, no lock, no log, no format
//! One panel of 16 rows against a tile of tokens: the innermost loops of every dense layer.
//!
//! Invariant: an output is one lane of one accumulator, which takes the blocks (or elements) of the input in ascending
//! order. So its bits depend on the token and the row alone, not on the width of the tile.
//!
//! No closure here holds vector code: a closure would not be compiled with the instructions of its kernel.

#![expect(clippy::needless_range_loop, reason = "the loops over registers are all written alike")]

use super::activations::{UNIT, View};
use super::quants::{Codes, Quants};
use crate::cpu::simd::{BLOCK, Dot, Staged};

/// Where the first block of some tokens of a tile is. The next block of a token is a tile's width further on, and so is
/// the next part of a block.
///
/// # Safety
/// `tile` must be the first token of a tile of `x`, which has the form i8 or i16, and `inner` the place of one in it.
#[inline(always)]
unsafe fn first_block<Q: Quants, const WIDE: bool>(
    x: &View,
    tile: usize,
    inner: usize,
) -> (*const i8, *const f32, *const i32, *const f32) {
    let first = tile * (x.input / BLOCK);
    let token_bytes = if WIDE { 2 * BLOCK } else { BLOCK };
    // SAFETY: as promised by the caller.
    unsafe {
        let (quants, scales) = (x.quants.add((first + inner) * token_bytes), x.scales.add(first + inner));
        if Q::PARTS == 2 {
            return (quants, scales, x.half_starts.add(2 * first + inner), x.half_sums.add(2 * first + inner));
        }
        (quants, scales, x.starts.add(first + inner), x.sums.add(first + inner))
    }
}

/// Sums of `T` tokens with one panel of a block type. `WIDE` activations have two bytes each.
///
/// # Safety
/// `panel` must be a whole panel of `Q` over `x.input`, `tile` the first token of a tile of `W` tokens of `x` in the form
/// i8 or i16, of which `T` follow from `inner` on, and the machine must have the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn quant_tile<S: Dot, Q: Quants, const T: usize, const W: usize, const WIDE: bool>(
    panel: *const u8,
    x: &View,
    tile: usize,
    inner: usize,
) -> [S::V; T] {
    let blocks = x.input / BLOCK;
    let token_bytes = if WIDE { 2 * BLOCK } else { BLOCK };
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = [S::splat(0.0); T];
        let (mut quants, mut scales, mut starts, mut sums) = first_block::<Q, WIDE>(x, tile, inner);
        let mut head = panel;
        for _ in 0..blocks / Q::BLOCKS {
            let mut block = head.add(Q::HEAD_BYTES);
            for _ in 0..Q::BLOCKS {
                if W <= 4 || !S::MANY_REGISTERS {
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
                        let factor = S::mul(scale, S::splat(*scales.add(token)));
                        acc[token] = S::fma(S::floats(sum), factor, acc[token]);
                        if Q::MINS {
                            acc[token] = S::fma(min, S::splat(*sums.add(token)), acc[token]);
                        }
                    }
                    starts = starts.add(W);
                    sums = sums.add(W);
                }
                quants = quants.add(W * token_bytes);
                scales = scales.add(W);
                block = block.add(Q::BLOCK_BYTES);
            }
            head = block;
        }
        acc
    }
}

/// As [`quant_tile`], with the same bits, in the way of [`Staged`].
///
/// # Safety
/// As [`quant_tile`].
#[inline(always)]
pub(super) unsafe fn staged_tile<S: Staged, Q: Quants, const T: usize, const WIDE: bool>(
    panel: *const u8,
    x: &View,
    token: usize,
) -> [S::V; T] {
    let blocks = x.input / BLOCK;
    let token_bytes = if WIDE { 2 * BLOCK } else { BLOCK };
    // SAFETY: as promised by the caller.
    unsafe {
        let mut acc = [S::splat(0.0); T];
        let mut totals = [S::zero(); T];
        let (mut quants, mut scales, mut starts, mut sums) = first_block::<Q, WIDE>(x, token, 0);
        let mut head = panel;
        for _ in 0..blocks / Q::BLOCKS {
            let mut block = head.add(Q::HEAD_BYTES);
            for _ in 0..Q::BLOCKS {
                for line in (0..Q::BLOCK_BYTES).step_by(64) {
                    S::prefetch(block.wrapping_add(PREFETCH_BYTES + line));
                }
                for part in 0..Q::PARTS {
                    if WIDE {
                        add_byte::<S, Q, T, WIDE, true>(&mut totals, block, part, quants);
                        for token in 0..T {
                            totals[token] = S::join(totals[token], S::zero());
                        }
                        add_byte::<S, Q, T, WIDE, false>(&mut totals, block, part, quants.add(BLOCK));
                    } else {
                        add_byte::<S, Q, T, WIDE, true>(&mut totals, block, part, quants);
                    }
                    let (scale, min) = Q::scales::<S>(head, block, part);
                    for token in 0..T {
                        let total = finished::<S, Q, WIDE>(totals[token], *starts.add(token));
                        let factor = S::mul(scale, S::splat(*scales.add(token)));
                        acc[token] = S::fma(S::floats(total), factor, acc[token]);
                        if Q::MINS {
                            acc[token] = S::fma(min, S::splat(*sums.add(token)), acc[token]);
                        }
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

/// What small codes are multiplied with so that they stand 128 above their value.
const fn over_zero<Q: Quants>() -> i16 {
    match Q::CODES {
        Codes::Small { zero: zero @ 1.., .. } => (128 / zero) as i16,
        _ => 1,
    }
}

/// Whether sums stay in 16 bits over a whole part of a block.
const fn in_pairs<Q: Quants, const WIDE: bool>() -> bool {
    !WIDE && matches!(Q::CODES, Codes::Small { .. }) && Q::CODES.quads() >= 8 / Q::PARTS
}

/// The sum of `(code - 128) * x`, or of `code * x` where there are mins, over a part of a block.
///
/// # Safety
/// The machine must have the instructions of `S`.
#[inline(always)]
unsafe fn finished<S: Staged, Q: Quants, const WIDE: bool>(total: S::I, start: i32) -> S::I {
    // SAFETY: as promised by the caller.
    unsafe {
        // The values of bytes have their signs.
        let from_zero = Q::MINS || Q::CODES == Codes::Bytes;
        match (in_pairs::<Q, WIDE>(), from_zero) {
            (true, true) => S::add_widened(S::zero(), total, over_zero::<Q>()),
            (true, false) => S::add_widened(S::ints(start), total, over_zero::<Q>()),
            (false, true) => total,
            (false, false) => S::add_ints(S::ints(start), total),
        }
    }
}

/// Adds one byte's products of a part of a block to the sums of `T` tokens, or starts them anew.
///
/// # Safety
/// `block` must be a block of `Q`, `x` the first token's byte of its first element, and the machine must have the
/// instructions of `S`.
#[inline(always)]
unsafe fn add_byte<S: Staged, Q: Quants, const T: usize, const WIDE: bool, const ANEW: bool>(
    totals: &mut [S::I; T],
    block: *const u8,
    part: usize,
    x: *const i8,
) {
    let quads = 8 / Q::PARTS;
    let first = part * quads;
    // SAFETY: as promised by the caller.
    unsafe {
        if Q::CODES == Codes::Bytes {
            add_bytes::<S, Q, T, WIDE, ANEW>(totals, block, first, x);
            for quad in (first + BYTES_AT_ONCE..first + quads).step_by(BYTES_AT_ONCE) {
                add_bytes::<S, Q, T, WIDE, false>(totals, block, quad, x);
            }
        } else {
            add_small::<S, Q, T, WIDE, ANEW>(totals, block, first, x);
            for quad in (first + SMALL_AT_ONCE..first + quads).step_by(SMALL_AT_ONCE) {
                add_small::<S, Q, T, WIDE, false>(totals, block, quad, x);
            }
        }
    }
}

/// Quads whose codes of all rows fit eight registers.
const SMALL_AT_ONCE: usize = 4;
/// The same where each code is in two.
const BYTES_AT_ONCE: usize = 2;

/// Adds the products of [`SMALL_AT_ONCE`] quads from `quad` on.
///
/// # Safety
/// As [`add_byte`].
#[inline(always)]
unsafe fn add_small<S: Staged, Q: Quants, const T: usize, const WIDE: bool, const ANEW: bool>(
    totals: &mut [S::I; T],
    block: *const u8,
    quad: usize,
    x: *const i8,
) {
    let apart = if WIDE { 2 * BLOCK } else { BLOCK };
    // SAFETY: as promised by the caller.
    unsafe {
        let mut codes = [Q::quad::<S>(block, quad); SMALL_AT_ONCE];
        for at in 1..SMALL_AT_ONCE {
            codes[at] = Q::quad::<S>(block, quad + at);
        }
        for token in 0..T {
            let x = x.add(token * apart + quad * 4);
            let mut total = if ANEW { S::zero() } else { totals[token] };
            if in_pairs::<Q, WIDE>() {
                total = S::add_pairs(total, S::pairs(&codes, x));
            } else {
                let at_once = if Q::CODES.quads() < SMALL_AT_ONCE { Q::CODES.quads() } else { SMALL_AT_ONCE };
                for at in (0..SMALL_AT_ONCE).step_by(at_once) {
                    let pairs = S::pairs(&codes[at..at + at_once], x.add(at * 4));
                    total = S::add_widened(total, pairs, over_zero::<Q>());
                }
            }
            totals[token] = total;
        }
    }
}

/// Adds the products of [`BYTES_AT_ONCE`] quads from `quad` on.
///
/// # Safety
/// As [`add_byte`].
#[inline(always)]
unsafe fn add_bytes<S: Staged, Q: Quants, const T: usize, const WIDE: bool, const ANEW: bool>(
    totals: &mut [S::I; T],
    block: *const u8,
    quad: usize,
    x: *const i8,
) {
    let apart = if WIDE { 2 * BLOCK } else { BLOCK };
    // SAFETY: as promised by the caller.
    unsafe {
        let codes = [S::signed(Q::quad::<S>(block, quad)), S::signed(Q::quad::<S>(block, quad + 1))];
        for token in 0..T {
            let total = if ANEW { S::zero() } else { totals[token] };
            totals[token] = S::add_signed(total, &codes, x.add(token * apart + quad * 4));
        }
    }
}

/// Adds a quad's products in the way of `Q`'s codes.
///
/// # Safety
/// As [`Dot::dot`].
#[inline(always)]
unsafe fn multiply<S: Dot, Q: Quants>(sum: S::I, codes: S::B, x: *const i8) -> S::I {
    // SAFETY: as promised by the caller.
    unsafe { if Q::MINS { S::dot(sum, codes, x) } else { S::dot_biased(sum, codes, x) } }
}

/// How far ahead of its use a weight is asked for.
const PREFETCH_BYTES: usize = 2048;

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
