// performance-critical: no allocation per token, no lock, no log, no format
//! From the fused projection to attention: heads are normed and rotated, keys and values go into the cache.
//!
//! Invariant: a head's arithmetic depends on its own values and position only.

use std::cell::Cell;
use std::marker::PhantomData;

use super::format::Format;
use super::pool;
use super::rows::{norm_row, turn};
use super::simd::{Isa, Kernel, LANES, Simd, dispatch};
use crate::rope::RopeStyle;

/// Elements that are worth a thread of their own.
const ELEMENTS_PER_CHUNK: usize = 16 * 1024;

thread_local! {
    static ROW: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Neighbouring heads of a wider row: x is `[tokens, stride]`, the heads start at `start`.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    pub x: &'a [f32],
    pub stride: usize,
    pub start: usize,
    pub heads: usize,
    pub head_dim: usize,
}

impl Heads<'_> {
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn tokens(&self) -> usize {
        self.x.len() / self.stride
    }

    fn of(&self, token: usize) -> &[f32] {
        let at = token * self.stride + self.start;
        &self.x[at..at + self.width()]
    }
}

/// What happens to a head before it is used.
#[derive(Clone, Copy)]
pub struct Turned<'a, A> {
    /// RMSNorm: its weight, as long as a head or as all heads together, and eps.
    pub norm: Option<(&'a [f32], f32)>,
    pub style: RopeStyle,
    /// Cosines and sines of a token, one a pair each.
    pub angles: A,
}

/// The cache of one layer's keys or values, `[blocks, kv_heads, block_size, head_dim]`, and where tokens go in it.
pub(crate) struct Slots<'a, F> {
    pub cache: &'a mut [u8],
    pub block_size: usize,
    pub slots: &'a [u32],
    pub format: PhantomData<F>,
}

#[derive(Clone, Copy)]
struct Out(*mut u8);
// SAFETY: tokens write to disjoint places.
unsafe impl Sync for Out {}

impl Out {
    fn get(&self) -> *mut u8 {
        self.0
    }
}

fn by_tokens(heads: &Heads, work: impl Fn(usize) + Sync) {
    let chunk = (ELEMENTS_PER_CHUNK / heads.width().max(1)).max(1);
    let tokens = heads.tokens();
    pool::run(tokens.div_ceil(chunk), &|index| {
        (index * chunk..((index + 1) * chunk).min(tokens)).for_each(&work);
    });
}

/// The heads, normed and rotated: `[tokens, heads, head_dim]`.
pub fn turned<'a, A>(isa: Isa, heads: Heads, how: Turned<A>) -> Vec<f32>
where
    A: Fn(usize) -> (&'a [f32], &'a [f32]) + Sync,
{
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    let width = heads.width();
    let mut out: Vec<f32> = Vec::with_capacity(heads.tokens() * width);
    let target = Out(out.as_mut_ptr().cast());
    by_tokens(&heads, |token| {
        let (norm, style, angles) = (how.norm, how.style, (how.angles)(token));
        let head_dim = heads.head_dim;
        // SAFETY: the instruction set was checked; the token's heads lie inside the output's capacity.
        unsafe {
            let out = target.get().cast::<f32>().add(token * width);
            dispatch(isa, TurnRow { heads: heads.of(token), head_dim, norm, style, angles, out });
        }
    });
    // SAFETY: every token's heads have been written.
    unsafe { out.set_len(heads.tokens() * width) };
    out
}

/// Rotates the heads in the first `part` of each row of `width` values, in place, each pair of elements half a head apart.
pub fn turn_rows<'a, A>(isa: Isa, x: &mut [f32], (width, part): (usize, usize), head_dim: usize, angles: A)
where
    A: Fn(usize) -> (&'a [f32], &'a [f32]) + Sync,
{
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    assert!(part <= width && part.is_multiple_of(head_dim), "heads of a row");
    let tokens = x.len() / width;
    let chunk = (ELEMENTS_PER_CHUNK / width).max(1);
    let target = Out(x.as_mut_ptr().cast());
    pool::run(tokens.div_ceil(chunk), &|index| {
        for token in index * chunk..((index + 1) * chunk).min(tokens) {
            // SAFETY: the instruction set was checked; the token's row lies inside x, and no other work touches it.
            unsafe {
                let heads = std::slice::from_raw_parts_mut(target.get().cast::<f32>().add(token * width), part);
                dispatch(isa, TurnInPlace { heads, head_dim, angles: angles(token) });
            }
        }
    });
}

/// One token's heads, where they stand.
struct TurnInPlace<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    angles: (&'a [f32], &'a [f32]),
}

impl Kernel for TurnInPlace<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        turn(self.heads, self.head_dim, RopeStyle::Halves, self.angles);
    }
}

/// Writes the heads, normed and rotated where `how` says so, into their slots. The slots must be the cache's and
/// differ from each other.
pub(crate) fn write<'a, A, F>(isa: Isa, heads: Heads, how: Option<Turned<A>>, into: Slots<F>)
where
    A: Fn(usize) -> (&'a [f32], &'a [f32]) + Sync,
    F: Format + Sync,
{
    assert!(isa.is_available(), "{isa:?} on a machine without it");
    let (width, head_dim) = (heads.width(), heads.head_dim);
    let head_bytes = into.block_size * head_dim * F::ELEMENT_BYTES;
    let (slots, block_size, len) = (into.slots, into.block_size, into.cache.len());
    let target = Out(into.cache.as_mut_ptr());
    by_tokens(&heads, |token| {
        let mut row = ROW.take();
        row.resize(row.len().max(width), 0.0);
        let mut from = heads.of(token);
        if let Some(how) = &how {
            let (norm, style, angles) = (how.norm, how.style, (how.angles)(token));
            // SAFETY: the instruction set was checked, and the row has room.
            unsafe { dispatch(isa, TurnRow { heads: from, head_dim, norm, style, angles, out: row.as_mut_ptr() }) };
            from = &row[..width];
        }
        let (block, offset) = (slots[token] as usize / block_size, slots[token] as usize % block_size);
        let at = block * heads.heads * head_bytes + offset * head_dim * F::ELEMENT_BYTES;
        assert!(at + (heads.heads - 1) * head_bytes + head_dim * F::ELEMENT_BYTES <= len, "a slot of the cache");
        // SAFETY: the instruction set was checked; the last head's place was, and no other token has this slot.
        unsafe {
            let to = target.get().add(at);
            dispatch(isa, StoreHeads { from, head_dim, to, stride: head_bytes, format: PhantomData::<F> });
        }
        ROW.set(row);
    });
}

/// One token's heads.
struct TurnRow<'a> {
    heads: &'a [f32],
    head_dim: usize,
    norm: Option<(&'a [f32], f32)>,
    style: RopeStyle,
    angles: (&'a [f32], &'a [f32]),
    out: *mut f32,
}

impl Kernel for TurnRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller promises room for all heads.
        unsafe {
            match self.norm {
                Some((weight, eps)) => {
                    for (index, part) in self.heads.chunks_exact(weight.len()).enumerate() {
                        norm_row::<S>(part, weight, eps, self.out.add(index * weight.len()));
                    }
                }
                None => std::ptr::copy_nonoverlapping(self.heads.as_ptr(), self.out, self.heads.len()),
            }
            let out = std::slice::from_raw_parts_mut(self.out, self.heads.len());
            turn(out, self.head_dim, self.style, self.angles);
        }
    }
}

/// One token's heads on their way into the cache.
struct StoreHeads<'a, F> {
    from: &'a [f32],
    head_dim: usize,
    to: *mut u8,
    /// Bytes from one head's place to the next.
    stride: usize,
    format: PhantomData<F>,
}

impl<F: Format> Kernel for StoreHeads<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (index, head) in self.from.chunks_exact(self.head_dim).enumerate() {
            for at in (0..self.head_dim).step_by(LANES) {
                let left = self.head_dim - at;
                // SAFETY: the caller promises a place for every head.
                unsafe {
                    let values = S::load_part(head.as_ptr().add(at), left);
                    let to = self.to.add(index * self.stride + at * F::ELEMENT_BYTES);
                    F::store_part::<S>(to, values, left);
                }
            }
        }
    }
}
