// performance-critical: no allocation per token, no lock, no log, no format
//! The dot product that attention scores are made of, for a tile of queries and keys at a time.
//!
//! Invariant: an accumulator takes elements 16 at a time in ascending order and its lanes are summed in one tree, so
//! each result has the same bits in a tile of any size.
//!
//! No closure here holds vector code: a closure would not be compiled with the instructions of its kernel.

use super::format::Format;
use super::simd::{LANES, Simd};

/// Accumulators of `T` vectors against `R` rows: `[token][row]`.
///
/// # Safety
/// Each x must be readable for `length` values, each w for `length` elements of `F`, and the machine must have the instructions of `S`.
#[expect(clippy::needless_range_loop, reason = "the loops over registers are all written alike")]
#[inline(always)]
pub(crate) unsafe fn dots<S: Simd, F: Format, const T: usize, const R: usize>(
    x: [*const f32; T],
    w: [*const u8; R],
    length: usize,
) -> [[S::V; R]; T] {
    // SAFETY: all offsets stay below `length` elements, which the caller promises.
    unsafe {
        let zero = S::splat(0.0);
        let mut acc = [[zero; R]; T];
        let steps = length / 32;
        for step in 0..steps {
            let mut unpacked = [[zero; 2]; R];
            for row in 0..R {
                let w = w[row].add(step * 32 * F::ELEMENT_BYTES);
                unpacked[row] = [F::load::<S>(w), F::load::<S>(w.add(LANES * F::ELEMENT_BYTES))];
            }
            for half in 0..2 {
                for token in 0..T {
                    let x = S::load(x[token].add(step * 32 + half * LANES));
                    for row in 0..R {
                        acc[token][row] = S::fma(x, unpacked[row][half], acc[token][row]);
                    }
                }
            }
        }
        let rest = length % 32;
        if rest != 0 {
            let mut unpacked = [[zero; 2]; R];
            for row in 0..R {
                let (w, first) = (w[row].add(steps * 32 * F::ELEMENT_BYTES), rest.min(LANES));
                unpacked[row][0] = F::load_part::<S>(w, first);
                unpacked[row][1] = F::load_part::<S>(w.add(first * F::ELEMENT_BYTES), rest - first);
            }
            for half in 0..2 {
                let count = rest.saturating_sub(half * LANES).min(LANES);
                for token in 0..T {
                    let x = S::load_part(x[token].add(length - rest + half * LANES.min(rest)), count);
                    for row in 0..R {
                        acc[token][row] = S::fma(x, unpacked[row][half], acc[token][row]);
                    }
                }
            }
        }
        acc
    }
}

/// Where a tile's results go: `y[token * stride + row]`.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub y: *mut f32,
    pub stride: usize,
}

impl Target {
    /// # Safety
    /// The place must lie in the same matrix.
    #[inline(always)]
    unsafe fn at(self, token: usize, row: usize) -> Target {
        // SAFETY: as promised by the caller.
        Target { y: unsafe { self.y.add(token * self.stride + row) }, stride: self.stride }
    }
}

/// `T x R` dot products into `target`.
///
/// # Safety
/// As [`dots`], and `target` must be writable for `T` rows of `R` values.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, F: Format, const T: usize, const R: usize>(
    x: [*const f32; T],
    w: [*const u8; R],
    length: usize,
    target: Target,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        let acc = dots::<S, F, T, R>(x, w, length);
        if T == 4 && R == 4 {
            // Same sizes, as the condition says: only the compiler does not know.
            let acc = &*(&raw const acc).cast::<[[S::V; 4]; 4]>();
            return S::store_sums(target.y, target.stride, acc);
        }
        for (token, acc) in acc.iter().enumerate() {
            for (row, acc) in acc.iter().enumerate() {
                *target.y.add(token * target.stride + row) = S::sum(*acc);
            }
        }
    }
}

/// A matrix in memory: where it starts and how many of its units one row takes.
#[derive(Clone, Copy)]
pub(crate) struct Rows<P> {
    pub start: P,
    pub stride: usize,
}

impl Rows<*const f32> {
    /// # Safety
    /// Rows `from` to `from + N - 1` must lie in the matrix.
    #[inline(always)]
    pub(crate) unsafe fn pointers<const N: usize>(&self, from: usize) -> [*const f32; N] {
        let mut pointers = [self.start; N];
        for (row, pointer) in pointers.iter_mut().enumerate() {
            // SAFETY: as promised by the caller.
            *pointer = unsafe { self.start.add((from + row) * self.stride) };
        }
        pointers
    }
}

impl Rows<*const u8> {
    /// # Safety
    /// Rows `from` to `from + N - 1` must lie in the matrix.
    #[inline(always)]
    pub(crate) unsafe fn pointers<const N: usize>(&self, from: usize) -> [*const u8; N] {
        let mut pointers = [self.start; N];
        for (row, pointer) in pointers.iter_mut().enumerate() {
            // SAFETY: as promised by the caller.
            *pointer = unsafe { self.start.add((from + row) * self.stride) };
        }
        pointers
    }
}

/// All dot products of `tokens` vectors and `rows` rows, in the largest tiles that fit the registers.
///
/// # Safety
/// As [`tile`] for every token and row.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd, F: Format>(
    x: Rows<*const f32>,
    w: Rows<*const u8>,
    (tokens, rows): (usize, usize),
    length: usize,
    target: Target,
) {
    // SAFETY: tiles cover 0..tokens times 0..rows and nothing else.
    unsafe {
        if !S::MANY_REGISTERS {
            return cover_folded::<S, F>(x, w, (tokens, rows), length, target);
        }
        let whole = tokens / 4 * 4;
        cover::<S, F, 4, 4>(x, w, (whole, rows), length, target);
        let x = Rows { start: x.start.add(whole * x.stride), stride: x.stride };
        let target = Target { y: target.y.add(whole * target.stride), stride: target.stride };
        match tokens - whole {
            0 => {}
            1 => cover::<S, F, 1, 4>(x, w, (1, rows), length, target),
            2 => cover::<S, F, 2, 4>(x, w, (2, rows), length, target),
            _ => cover::<S, F, 3, 4>(x, w, (3, rows), length, target),
        }
    }
}

/// [`product`] for few registers: eight sums at a time, of four accumulators each time. What those fold into leaves room for the
/// next, so that one tile's sums are added up while the products of others go on.
#[inline(always)]
unsafe fn cover_folded<S: Simd, F: Format>(
    x: Rows<*const f32>,
    w: Rows<*const u8>,
    (tokens, rows): (usize, usize),
    length: usize,
    target: Target,
) {
    // SAFETY: as promised by the caller of `product`.
    unsafe {
        let whole = rows / 8 * 8;
        for token in (0..tokens / 2 * 2).step_by(2) {
            let x = x.pointers::<2>(token);
            for row in (0..whole).step_by(4) {
                let [[a, b], [c, d]] = dots::<S, F, 2, 2>(x, w.pointers::<2>(row), length);
                let (first, second) = (S::fold(a, c), S::fold(b, d));
                let [[a, b], [c, d]] = dots::<S, F, 2, 2>(x, w.pointers::<2>(row + 2), length);
                let y = target.at(token, row).y;
                S::store_folded([y, y.add(target.stride)], [first, second, S::fold(a, c), S::fold(b, d)]);
            }
            for row in whole..rows {
                tile::<S, F, 2, 1>(x, w.pointers::<1>(row), length, target.at(token, row));
            }
        }
        if tokens % 2 == 1 {
            let x = x.pointers::<1>(tokens - 1);
            for row in (0..whole).step_by(8) {
                let w = w.pointers::<8>(row);
                let [[a, b, c, d]] = dots::<S, F, 1, 4>(x, [w[0], w[1], w[4], w[5]], length);
                let (ac, bd) = (S::fold(a, c), S::fold(b, d));
                let [[a, b, c, d]] = dots::<S, F, 1, 4>(x, [w[2], w[3], w[6], w[7]], length);
                let y = target.at(tokens - 1, row).y;
                S::store_folded([y, y.add(4)], [ac, bd, S::fold(a, c), S::fold(b, d)]);
            }
            for row in whole..rows {
                tile::<S, F, 1, 1>(x, w.pointers::<1>(row), length, target.at(tokens - 1, row));
            }
        }
    }
}

/// [`product`] in tiles of `T x R`, single tokens and rows at the edges.
#[inline(always)]
unsafe fn cover<S: Simd, F: Format, const T: usize, const R: usize>(
    x: Rows<*const f32>,
    w: Rows<*const u8>,
    (tokens, rows): (usize, usize),
    length: usize,
    target: Target,
) {
    // SAFETY: as promised by the caller of `product`.
    unsafe {
        let (whole_tokens, whole_rows) = (tokens / T * T, rows / R * R);
        for token in (0..whole_tokens).step_by(T) {
            let x = x.pointers::<T>(token);
            for row in (0..whole_rows).step_by(R) {
                tile::<S, F, T, R>(x, w.pointers::<R>(row), length, target.at(token, row));
            }
            for row in whole_rows..rows {
                tile::<S, F, T, 1>(x, w.pointers::<1>(row), length, target.at(token, row));
            }
        }
        for token in whole_tokens..tokens {
            let x = x.pointers::<1>(token);
            for row in (0..whole_rows).step_by(R) {
                tile::<S, F, 1, R>(x, w.pointers::<R>(row), length, target.at(token, row));
            }
            for row in whole_rows..rows {
                tile::<S, F, 1, 1>(x, w.pointers::<1>(row), length, target.at(token, row));
            }
        }
    }
}
