// performance-critical: no allocation per token, no lock, no log, no format
//! One panel against a tile of tokens in the way of [`Staged`]: sixteen registers, and no instruction for groups of four
//! bytes.

#![expect(clippy::needless_range_loop, reason = "the loops over registers are all written alike")]

use super::activations::View;
use super::quants::{Codes, Quants};
use super::tile::{PREFETCH_BYTES, add_scaled, first_block};
use crate::cpu::simd::{BLOCK, Staged};

/// As [`super::tile::quant_tile`], with the same bits, in the way of [`Staged`].
///
/// # Safety
/// As there.
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
        let (mut quants, mut scales, mut starts, mut sums) = first_block::<Q, WIDE>(x, token);
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
                    let of_panel = Q::scales::<S>(head, block, part);
                    for token in 0..T {
                        let total = finished::<S, Q, WIDE>(totals[token], *starts.add(token));
                        acc[token] =
                            add_scaled::<S, Q>(acc[token], total, of_panel, (scales.add(token), sums.add(token)));
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
