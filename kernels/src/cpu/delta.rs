// performance-critical: no allocation per token, no lock, no log, no format
//! The gated delta rule (arXiv 2412.06464) in its plain recurrent form, token after token, for prompts as for decodes.
//!
//! A head's state is a matrix of key by value dimensions whose columns never meet: a tile of columns is taken through all
//! tokens of a row while it stays in the nearest cache, and the pass that updates it for one token reads it for the next.
//!
//! Invariant: what a token gives depends on its row's own tokens and state only, and is the same bit for bit wherever the
//! row was cut: a pass that follows an update and one that begins a step add the same numbers in the same order.

use super::pool;
use super::rows::{Gate, Out, by_rows, gate_row, norm_row};
use super::simd::{Isa, Kernel, LANES, Simd, dispatch};
use crate::delta::{DeltaSizes, StateSave};

/// Columns of a tile: two vectors, whose state of 128 rows fills half of the nearest cache.
const TILE: usize = 2 * LANES;
/// Elements that are worth a thread of their own.
const ELEMENTS_PER_CHUNK: usize = 16 * 1024;
/// As in the models' own code.
const NORM_EPS: f32 = 1e-6;
/// Beyond it `ln(1 + e^x)` is `x`.
const SOFTPLUS_LINEAR: f32 = 20.0;

/// What a step needs beside the states. Sizes, slots and row ends were checked against each other.
#[derive(Clone, Copy)]
pub(crate) struct Delta<'a> {
    pub sizes: DeltaSizes,
    /// `[tokens, projected]`: queries, keys, values, gates, then two numbers a value head.
    pub x: &'a [f32],
    /// `[taps, mixed]`
    pub taps: &'a [f32],
    /// `[value_heads]` each.
    pub decay: &'a [f32],
    pub decay_bias: &'a [f32],
    /// Weight `[value_dim]` and epsilon.
    pub norm: (&'a [f32], f32),
    pub rows: &'a [Row<'a>],
}

/// One row of the step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub start: usize,
    pub end: usize,
    pub slot: usize,
    /// The row begins its sequence: what the slot holds is another's.
    pub is_first: bool,
    /// Of the row, ascending.
    pub saves: &'a [StateSave],
}

/// What the tokens of a step bring to the recurrence.
struct Prepared {
    /// Convolved; queries and keys of length one. `[tokens, mixed]`
    mixed: Vec<f32>,
    /// What is kept of the state, and how much of the difference is written. `[tokens, value_heads, 2]`
    gates: Vec<f32>,
    /// Query times key. `[tokens, key_heads]`
    products: Vec<f32>,
}

/// `[tokens, values]`. The states are `tails` `[slots, taps - 1, mixed]`, what the convolution still needs of the past, and
/// `heads` `[slots, value_heads, value_dim * key_dim]`, tiles of columns one after the other.
pub(crate) fn run(isa: Isa, delta: &Delta, tails: &mut [f32], heads: &mut [f32]) -> Vec<f32> {
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    let prepared = prepare(isa, delta, tails);
    for row in delta.rows {
        keep_tails(delta, row, tails);
    }
    let seen = recur(isa, delta, &prepared, heads);
    gated_norm(isa, delta, &seen)
}

/// Convolutions, lengths and gates of every token.
fn prepare(isa: Isa, delta: &Delta, tails: &[f32]) -> Prepared {
    let sizes = &delta.sizes;
    let (projected, mixed) = (sizes.projected(), sizes.mixed());
    let tokens = delta.x.len() / projected;
    let mut prepared = Prepared {
        mixed: vec![0.0; tokens * mixed],
        gates: vec![0.0; tokens * sizes.value_heads * 2],
        products: vec![0.0; tokens * sizes.key_heads],
    };
    let mixed_out = Out(prepared.mixed.as_mut_ptr());
    let (gates_out, products_out) = (Out(prepared.gates.as_mut_ptr()), Out(prepared.products.as_mut_ptr()));
    by_rows(tokens, mixed, |first, count| {
        for token in first..first + count {
            // SAFETY: the instruction set was checked; a token's places are its own and inside the three arrays.
            unsafe {
                let out = mixed_out.at(token * mixed);
                dispatch(isa, Convolve { delta, tails, token, out });
                let products = products_out.at(token * sizes.key_heads);
                dispatch(isa, Normalise { sizes, mixed: out, products });
                let gates = gates_out.at(token * sizes.value_heads * 2);
                gates_of(delta, token, std::slice::from_raw_parts_mut(gates, sizes.value_heads * 2));
            }
        }
    });
    prepared
}

/// One token's causal convolution over its row, and SiLU.
struct Convolve<'a> {
    delta: &'a Delta<'a>,
    tails: &'a [f32],
    token: usize,
    out: *mut f32,
}

impl Kernel for Convolve<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Delta { sizes, x, taps, rows, .. } = *self.delta;
        let (projected, mixed, count) = (sizes.projected(), sizes.mixed(), sizes.taps);
        let row = &rows[rows.partition_point(|row| row.end <= self.token)];
        let tail = &self.tails[row.slot * (count - 1) * mixed..(row.slot + 1) * (count - 1) * mixed];
        // The tap that meets the row's first token; those before it meet the tail, or nothing.
        let own = (count - 1).saturating_sub(self.token - row.start);
        let first = if row.is_first { own } else { 0 };
        for column in (0..mixed).step_by(LANES) {
            let left = mixed - column;
            // SAFETY: columns stay below the width, in rows of slices that were checked; the caller promises room.
            unsafe {
                let mut sum = S::splat(0.0);
                for tap in first..count {
                    let from = if tap < own {
                        tail[(self.token - row.start + tap) * mixed + column..].as_ptr()
                    } else {
                        x[(self.token + tap + 1 - count) * projected + column..].as_ptr()
                    };
                    sum = S::fma(
                        S::load_part(taps.as_ptr().add(tap * mixed + column), left),
                        S::load_part(from, left),
                        sum,
                    );
                }
                S::store_part(self.out.add(column), sum, left);
            }
        }
        // SAFETY: the row was written above; `gate_row` reads a vector before it writes it.
        unsafe {
            let row = std::slice::from_raw_parts(self.out, mixed);
            gate_row::<S>(Gate::Silu, row, None, self.out);
        }
    }
}

/// Queries and keys of one token become vectors of length one, queries also shorter by the root of their dimension.
struct Normalise<'a> {
    sizes: &'a DeltaSizes,
    /// `[mixed]`
    mixed: *mut f32,
    /// Query times key. `[key_heads]`
    products: *mut f32,
}

impl Kernel for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (dim, keys) = (self.sizes.key_dim, self.sizes.keys());
        let scale = (dim as f32).sqrt().recip();
        for head in 0..self.sizes.key_heads {
            // SAFETY: heads lie in the first two parts of the row, and each has a product.
            unsafe {
                let query = self.mixed.add(head * dim);
                let key = query.add(keys);
                let [query_factor, key_factor] = [(query, scale), (key, 1.0)].map(|(vector, factor)| {
                    let squares = sum_of_products::<S>(vector, vector, dim);
                    S::splat(factor / (squares + NORM_EPS).sqrt())
                });
                for at in (0..dim).step_by(LANES) {
                    let left = dim - at;
                    S::store_part(query.add(at), S::mul(S::load_part(query.add(at), left), query_factor), left);
                    S::store_part(key.add(at), S::mul(S::load_part(key.add(at), left), key_factor), left);
                }
                *self.products.add(head) = sum_of_products::<S>(query, key, dim);
            }
        }
    }
}

#[inline(always)]
unsafe fn sum_of_products<S: Simd>(a: *const f32, b: *const f32, dim: usize) -> f32 {
    // SAFETY: the caller promises `dim` values of both.
    unsafe {
        let mut sum = S::splat(0.0);
        for at in (0..dim).step_by(LANES) {
            sum = S::fma(S::load_part(a.add(at), dim - at), S::load_part(b.add(at), dim - at), sum);
        }
        S::sum(sum)
    }
}

/// What each value head keeps of its state, and how much of the difference it writes.
fn gates_of(delta: &Delta, token: usize, gates: &mut [f32]) {
    let Delta { sizes, x, decay, decay_bias, .. } = *delta;
    let start = token * sizes.projected() + sizes.mixed() + sizes.values();
    let (written, kept) = x[start..start + 2 * sizes.value_heads].split_at(sizes.value_heads);
    for (head, gates) in gates.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let time = kept[head] + decay_bias[head];
        let time = if time > SOFTPLUS_LINEAR { time } else { time.exp().ln_1p() };
        *gates = [(decay[head] * time).exp(), 1.0 / (1.0 + (-written[head]).exp())];
    }
}

/// The last inputs of the convolution, at the row's end and wherever its state is saved.
fn keep_tails(delta: &Delta, row: &Row, tails: &mut [f32]) {
    let (mixed, kept) = (delta.sizes.mixed(), delta.sizes.taps - 1);
    for save in row.saves {
        keep_tail(delta, row, (save.token as usize + 1, save.slot as usize), tails);
    }
    // The row's own tail last: the others are made of it.
    if row.end - row.start < kept && !row.is_first {
        let shift = (row.end - row.start) * mixed;
        let own = &mut tails[row.slot * kept * mixed..(row.slot + 1) * kept * mixed];
        own.copy_within(shift.., 0);
        let start = own.len() - shift;
        copy_inputs(delta, row.start, &mut own[start..]);
        return;
    }
    keep_tail(delta, row, (row.end, row.slot), tails);
}

/// Leaves the inputs before token `end` of the row in the tail of `slot`, zeros where there are none.
fn keep_tail(delta: &Delta, row: &Row, (end, slot): (usize, usize), tails: &mut [f32]) {
    let (mixed, kept) = (delta.sizes.mixed(), delta.sizes.taps - 1);
    let own = (end - row.start).min(kept);
    // What comes from before the row.
    let before = (kept - own) * mixed;
    let (to, from) = (slot * kept * mixed, row.slot * kept * mixed);
    if row.is_first {
        tails[to..to + before].fill(0.0);
    } else {
        tails.copy_within(from + own * mixed..from + own * mixed + before, to);
    }
    copy_inputs(delta, end - own, &mut tails[to + before..to + kept * mixed]);
}

/// What is convolved of the tokens from `first` on.
fn copy_inputs(delta: &Delta, first: usize, to: &mut [f32]) {
    let (projected, mixed) = (delta.sizes.projected(), delta.sizes.mixed());
    for (at, to) in to.chunks_exact_mut(mixed).enumerate() {
        let from = (first + at) * projected;
        to.copy_from_slice(&delta.x[from..from + mixed]);
    }
}

/// The recurrence: `[tokens, values]`.
fn recur(isa: Isa, delta: &Delta, prepared: &Prepared, heads: &mut [f32]) -> Vec<f32> {
    let sizes = delta.sizes;
    let tokens = delta.x.len() / sizes.projected();
    let mut seen = vec![0.0; tokens * sizes.values()];
    let (seen_out, heads_out) = (Out(seen.as_mut_ptr()), Out(heads.as_mut_ptr()));
    let tiles = sizes.value_dim.div_ceil(TILE);
    pool::run(delta.rows.len() * sizes.value_heads * tiles, &|job| {
        let (row, head, tile) = (job / tiles / sizes.value_heads, job / tiles % sizes.value_heads, job % tiles);
        let mut column = tile * TILE;
        let end = sizes.value_dim.min(column + TILE);
        while column < end {
            let work = Tile { delta, prepared, row: &delta.rows[row], head, column, heads: heads_out, seen: seen_out };
            // SAFETY: the instruction set was checked; rows have slots of their own, heads and columns parts of their
            // own in them and in the result.
            unsafe {
                if column + TILE <= end {
                    dispatch(isa, Wide(work));
                } else {
                    dispatch(isa, Narrow(work));
                }
            }
            column += if column + TILE <= end { TILE } else { LANES };
        }
    });
    seen
}

/// Some columns of one head of one row.
#[derive(Clone, Copy)]
struct Tile<'a> {
    delta: &'a Delta<'a>,
    prepared: &'a Prepared,
    row: &'a Row<'a>,
    head: usize,
    column: usize,
    heads: Out,
    seen: Out,
}

/// All columns of a tile.
struct Wide<'a>(Tile<'a>);
/// As many as are left, at most one vector.
struct Narrow<'a>(Tile<'a>);

impl Kernel for Wide<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: as promised by the caller.
        unsafe { self.0.run::<S, 2>(LANES) }
    }
}

impl Kernel for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let left = (self.0.delta.sizes.value_dim - self.0.column).min(LANES);
        // SAFETY: as promised by the caller.
        unsafe { self.0.run::<S, 1>(left) }
    }
}

/// What a state gives for a key and a query: both times each column.
type Read<V, const N: usize> = ([V; N], [V; N]);

impl Tile<'_> {
    /// All tokens of the row; `last` columns are in the last vector.
    #[inline(always)]
    unsafe fn run<S: Simd, const N: usize>(&self, last: usize) {
        let Tile { delta, prepared, row, head, column, heads, seen } = *self;
        let sizes = &delta.sizes;
        let (key_dim, mixed, values) = (sizes.key_dim, sizes.mixed(), sizes.values());
        let stride = (N - 1) * LANES + last;
        let place = |slot: usize| {
            // SAFETY: slot, head and column were checked against the states' sizes.
            unsafe { heads.at((slot * sizes.value_heads + head) * sizes.head_values() + column * key_dim) }
        };
        let key_head = sizes.key_head(head);
        let vectors = |token: usize| {
            let at = token * mixed + key_head * key_dim;
            (prepared.mixed[at + sizes.keys()..].as_ptr(), prepared.mixed[at..].as_ptr())
        };
        let state = place(row.slot);
        let shape = (key_dim, stride, last);
        let mut saves = row.saves;
        // SAFETY: the state has `key_dim` rows of `stride` columns, every token's vectors `key_dim` values, and values and
        // results at least `stride` more.
        unsafe {
            let mut read = if row.is_first {
                std::ptr::write_bytes(state, 0, key_dim * stride);
                ([S::splat(0.0); N], [S::splat(0.0); N])
            } else {
                pass::<S, N, false, true>(state, shape, None, Some(vectors(row.start)))
            };
            for token in row.start..row.end {
                let gates = &prepared.gates[2 * (token * sizes.value_heads + head)..][..2];
                let (kept, written) = (S::splat(gates[0]), S::splat(gates[1]));
                let product = S::splat(prepared.products[token * sizes.key_heads + key_head]);
                let own = head * sizes.value_dim + column;
                let value = prepared.mixed[token * mixed + 2 * sizes.keys() + own..].as_ptr();
                let out = seen.at(token * values + own);
                let mut change = [S::splat(0.0); N];
                for (n, change) in change.iter_mut().enumerate() {
                    let count = if n + 1 == N { last } else { LANES };
                    let known = S::mul(kept, read.0[n]);
                    *change = S::mul(written, S::sub(S::load_part(value.add(n * LANES), count), known));
                    let seen = S::fma(product, *change, S::mul(kept, read.1[n]));
                    S::store_part(out.add(n * LANES), seen, count);
                }
                let update = Some((kept, vectors(token).0, change));
                if token + 1 < row.end {
                    read = pass::<S, N, true, true>(state, shape, update, Some(vectors(token + 1)));
                } else {
                    pass::<S, N, true, false>(state, shape, update, None);
                }
                while let Some((save, rest)) = saves.split_first()
                    && save.token as usize == token
                {
                    std::ptr::copy_nonoverlapping(state, place(save.slot as usize), key_dim * stride);
                    saves = rest;
                }
            }
        }
    }
}

/// What is kept of a state, the key, and the change that goes with it.
type Update<V, const N: usize> = (V, *const f32, [V; N]);

/// One way through the columns of a state: with `UPDATE`, what is kept of it plus key times change; with `READ`, what the
/// result gives for the next key and query.
#[inline(always)]
unsafe fn pass<S: Simd, const N: usize, const UPDATE: bool, const READ: bool>(
    state: *mut f32,
    (rows, stride, last): (usize, usize, usize),
    update: Option<Update<S::V, N>>,
    next: Option<(*const f32, *const f32)>,
) -> Read<S::V, N> {
    // SAFETY: as promised by the caller.
    unsafe {
        let zero = S::splat(0.0);
        // Of even and odd rows: one sum would wait for itself.
        let (mut known, mut asked) = ([[zero; N]; 2], [[zero; N]; 2]);
        let mut one = |row: usize, half: usize| {
            for n in 0..N {
                let count = if n + 1 == N { last } else { LANES };
                let at = state.add(row * stride + n * LANES);
                let mut values = if count == LANES { S::load(at) } else { S::load_part(at, count) };
                if UPDATE && let Some((kept, key, change)) = &update {
                    values = S::fma(S::splat(*key.add(row)), change[n], S::mul(*kept, values));
                    if count == LANES {
                        S::store(at, values)
                    } else {
                        S::store_part(at, values, count)
                    };
                }
                if READ && let Some((key, query)) = &next {
                    known[half][n] = S::fma(S::splat(*key.add(row)), values, known[half][n]);
                    asked[half][n] = S::fma(S::splat(*query.add(row)), values, asked[half][n]);
                }
            }
        };
        for pair in 0..rows / 2 {
            one(2 * pair, 0);
            one(2 * pair + 1, 1);
        }
        if rows % 2 == 1 {
            one(rows - 1, 0);
        }
        let mut read = ([zero; N], [zero; N]);
        for n in 0..N {
            read.0[n] = S::add(known[0][n], known[1][n]);
            read.1[n] = S::add(asked[0][n], asked[1][n]);
        }
        read
    }
}

/// Each head's result normed, times SiLU of its gate: `[tokens, values]`.
fn gated_norm(isa: Isa, delta: &Delta, seen: &[f32]) -> Vec<f32> {
    let sizes = &delta.sizes;
    let values = sizes.values();
    let tokens = seen.len() / values;
    let mut out: Vec<f32> = vec![0.0; seen.len()];
    let target = Out(out.as_mut_ptr());
    let chunk = (ELEMENTS_PER_CHUNK / values.max(1)).max(1);
    pool::run(tokens.div_ceil(chunk), &|index| {
        for token in index * chunk..((index + 1) * chunk).min(tokens) {
            let gate = token * sizes.projected() + sizes.mixed();
            let (seen, gate) = (&seen[token * values..(token + 1) * values], &delta.x[gate..gate + values]);
            // SAFETY: the instruction set was checked; the token's place in the result is its own.
            unsafe { dispatch(isa, GatedNorm { seen, gate, norm: delta.norm, out: target.at(token * values) }) };
        }
    });
    out
}

struct GatedNorm<'a> {
    seen: &'a [f32],
    gate: &'a [f32],
    norm: (&'a [f32], f32),
    out: *mut f32,
}

impl Kernel for GatedNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (weight, eps) = self.norm;
        // SAFETY: the caller promises room for the row; the norm is written before it is read.
        unsafe {
            for (at, head) in self.seen.chunks_exact(weight.len()).enumerate() {
                norm_row::<S>(head, weight, eps, self.out.add(at * weight.len()));
            }
            let normed = std::slice::from_raw_parts(self.out, self.seen.len());
            gate_row::<S>(Gate::Silu, self.gate, Some(normed), self.out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HeadOrder, reference};

    #[test]
    fn every_instruction_set_agrees() {
        let order = HeadOrder::Grouped;
        let sizes = DeltaSizes { key_heads: 2, value_heads: 4, key_dim: 21, value_dim: 43, taps: 4, order };
        let wave = |count: usize, step: f32| (0..count).map(|at| (at as f32 * step).sin()).collect::<Vec<f32>>();
        let (x, taps) = (wave(7 * sizes.projected(), 0.37), wave(sizes.taps * sizes.mixed(), 0.91));
        let (decay, decay_bias, norm) = ([-0.1, -0.5, -1.0, -2.0], wave(4, 1.3), wave(43, 0.2));
        let want = reference::gated_delta_rule(&x, &sizes, &taps, (&decay, &decay_bias), (&norm, 1e-6));
        let rows = [Row { start: 0, end: 7, slot: 0, is_first: true, saves: &[] }];
        let norm = (&norm[..], 1e-6);
        let delta = Delta { sizes, x: &x, taps: &taps, decay: &decay, decay_bias: &decay_bias, norm, rows: &rows };
        for isa in Isa::available() {
            let (mut tails, mut heads) = (vec![0.0; 3 * sizes.mixed()], vec![0.0; 4 * sizes.head_values()]);
            let found = run(isa, &delta, &mut tails, &mut heads);
            let is_close = |(found, want): (&f32, &f32)| (found - want).abs() <= 2e-5 * (1.0 + want.abs());
            assert!(found.iter().zip(&want).all(is_close), "{isa:?}");
        }
    }
}
