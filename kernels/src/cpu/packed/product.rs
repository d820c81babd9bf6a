// performance-critical: no allocation per token, no lock, no log, no format
//! Neighbouring panels times all tokens of a step: which tile is computed when, and where its sums go.
//!
//! Each combination of type and width is a kernel of its own, so that the compiler sees one loop at a time.

use std::marker::PhantomData;

use super::activations::{Tiles, UNIT, View};
use super::layout::ROWS;
use super::quants::{self, Quants};
use super::quants_k;
use super::tile::{self, Plain, plain_tile, quant_tile};
use super::tile_halves::half_tile;
#[cfg(target_arch = "aarch64")]
use super::tile_pairs::pair_tile;
#[cfg(target_arch = "x86_64")]
use super::tile_staged::staged_tile;
use super::{PackedWeight, Part, Precision};
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use crate::cpu::simd::dispatch_dot as dispatch_quants;
use crate::cpu::simd::{Dot, DotKernel, Isa, Simd, dispatch_dot};
#[cfg(target_arch = "aarch64")]
use crate::cpu::simd::{Paired, PairedKernel, dispatch_paired as dispatch_quants};
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::{Staged, StagedKernel, dispatch_staged as dispatch_quants};
use crate::weight::GgmlType;

/// Tokens that panels are gone through with before the next ones: their activations stay in the second-level cache.
const TOKENS_AT_ONCE: usize = 128;

/// Some neighbouring panels, for all tokens.
pub(crate) struct Panels<'a> {
    pub weight: &'a PackedWeight,
    pub first: usize,
    pub count: usize,
    pub x: &'a View,
    pub epilogue: &'a Epilogue<'a>,
}

/// Panels `from..to` of one part with the tiles of one width.
#[derive(Clone, Copy)]
struct Task<'a> {
    part: &'a Part,
    precision: Precision,
    from: usize,
    to: usize,
    x: &'a View,
    tiles: Tiles,
    epilogue: &'a Epilogue<'a>,
}

impl Panels<'_> {
    /// Computes them.
    ///
    /// # Safety
    /// The machine must have the instructions of `isa`, the panels must be the weight's, `x` the activations of all
    /// tokens in its forms, cut into tiles for `isa`, and no other thread may write the panels' columns of the output.
    pub unsafe fn run(&self, isa: Isa) {
        let mut start = 0;
        for part in &*self.weight.parts {
            let (from, to) = (self.first.max(start), (self.first + self.count).min(start + part.count()));
            if from < to {
                let mut first = 0;
                while first < self.x.tokens {
                    let end = (first + TOKENS_AT_ONCE).min(self.x.tokens);
                    while first < end {
                        let tiles = Tiles::at(first, end, isa.tile_tokens());
                        let (from, to) = (from - start, to - start);
                        let (x, precision, epilogue) = (self.x, self.weight.precision, self.epilogue);
                        let task = Task { part, precision, from, to, x, tiles, epilogue };
                        // SAFETY: as promised by the caller.
                        unsafe { task.run(isa) };
                        first += tiles.count * tiles.width;
                    }
                }
            }
            start += part.count();
        }
    }
}

impl Task<'_> {
    unsafe fn run(self, isa: Isa) {
        // SAFETY: as promised by the caller.
        unsafe {
            match self.part.ty {
                GgmlType::F32 => self.plain::<tile::F32>(isa),
                GgmlType::F16 => self.plain::<tile::F16>(isa),
                GgmlType::Bf16 if self.precision == Precision::High => self.plain::<tile::Bf16Wide>(isa),
                GgmlType::Bf16 => self.plain::<tile::Bf16>(isa),
                GgmlType::Q4_0 => self.quants::<quants::Q4_0>(isa),
                GgmlType::Q4_1 => self.quants::<quants::Q4_1>(isa),
                GgmlType::Q5_0 => self.quants::<quants::Q5_0>(isa),
                GgmlType::Q5_1 => self.quants::<quants::Q5_1>(isa),
                GgmlType::Q8_0 => self.quants::<quants::Q8_0>(isa),
                GgmlType::Q2K => self.quants::<quants_k::Q2K>(isa),
                GgmlType::Q3K => self.quants::<quants_k::Q3K>(isa),
                GgmlType::Q4K => self.quants::<quants_k::Q4K>(isa),
                GgmlType::Q5K => self.quants::<quants_k::Q5K>(isa),
                GgmlType::Q6K => self.quants::<quants_k::Q6K>(isa),
                GgmlType::Iq4Nl => self.quants::<quants::Iq4Nl>(isa),
                GgmlType::Iq4Xs => self.quants::<quants::Iq4Xs>(isa),
                GgmlType::Mxfp4 => self.quants::<quants::Mxfp4>(isa),
            }
        }
    }

    unsafe fn quants<Q: Quants>(self, isa: Isa) {
        // SAFETY: as promised by the caller; tiles have the widths of `Tiles::at`.
        unsafe {
            match (self.tiles.width, self.precision) {
                (16, Precision::Fast) => dispatch_quants(isa, QuantTask::<Q, 16, false>(self, PhantomData)),
                (4, Precision::Fast) => dispatch_quants(isa, QuantTask::<Q, 4, false>(self, PhantomData)),
                (_, Precision::Fast) => dispatch_quants(isa, QuantTask::<Q, 1, false>(self, PhantomData)),
                (16, Precision::High) => dispatch_quants(isa, QuantTask::<Q, 16, true>(self, PhantomData)),
                (4, Precision::High) => dispatch_quants(isa, QuantTask::<Q, 4, true>(self, PhantomData)),
                (_, Precision::High) => dispatch_quants(isa, QuantTask::<Q, 1, true>(self, PhantomData)),
            }
        }
    }

    unsafe fn plain<P: Plain>(self, isa: Isa) {
        // SAFETY: as above.
        unsafe {
            match self.tiles.width {
                16 => dispatch_dot(isa, PlainTask::<P, 16>(self, PhantomData)),
                4 => dispatch_dot(isa, PlainTask::<P, 4>(self, PhantomData)),
                _ => dispatch_dot(isa, PlainTask::<P, 1>(self, PhantomData)),
            }
        }
    }

    /// Panel `index`, its first row in the output and how many rows the part has from there on.
    #[inline(always)]
    unsafe fn panel(&self, index: usize) -> (*const u8, usize, usize) {
        // SAFETY: the caller promises a panel of the part.
        let panel = unsafe { self.part.panels.bytes().as_ptr().add(index * self.part.panel_bytes) };
        (panel, self.part.row + index * ROWS, self.part.rows - index * ROWS)
    }
}

struct QuantTask<'a, Q, const T: usize, const WIDE: bool>(Task<'a>, PhantomData<Q>);

impl<Q: Quants, const T: usize, const WIDE: bool> DotKernel for QuantTask<'_, Q, T, WIDE> {
    type Output = ();
    const BF16: bool = false;

    #[inline(always)]
    unsafe fn run<S: Dot>(self) {
        // Wider tiles than the registers hold are never cut: their code is left out.
        if T > S::TOKENS {
            return;
        }
        let task = self.0;
        for index in task.from..task.to {
            // SAFETY: as promised by the caller.
            unsafe {
                let (panel, row, rows) = task.panel(index);
                for tile in 0..task.tiles.count {
                    let token = task.tiles.first + tile * T;
                    let acc = if T == 16 && !S::MANY_REGISTERS {
                        half_tile::<S, Q, T, WIDE>(panel, task.x, token)
                    } else {
                        quant_tile::<S, Q, T, WIDE>(panel, task.x, token)
                    };
                    task.epilogue.store::<S, T>(&acc, token, row, rows.min(ROWS));
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl<Q: Quants, const T: usize, const WIDE: bool> StagedKernel for QuantTask<'_, Q, T, WIDE> {
    #[inline(always)]
    unsafe fn run_staged<S: Staged>(self) {
        if T > S::TOKENS {
            return;
        }
        let task = self.0;
        for index in task.from..task.to {
            // SAFETY: as promised by the caller.
            unsafe {
                let (panel, row, rows) = task.panel(index);
                for tile in 0..task.tiles.count {
                    let token = task.tiles.first + tile * T;
                    let acc = staged_tile::<S, Q, T, WIDE>(panel, task.x, token);
                    task.epilogue.store::<S, T>(&acc, token, row, rows.min(ROWS));
                }
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
impl<Q: Quants, const T: usize, const WIDE: bool> PairedKernel for QuantTask<'_, Q, T, WIDE> {
    #[inline(always)]
    unsafe fn run_paired<S: Paired>(self) {
        // SAFETY: as promised by the caller.
        unsafe {
            if T != 16 || WIDE {
                return self.run::<S>();
            }
            let task = self.0;
            for index in task.from..task.to {
                let (panel, row, rows) = task.panel(index);
                for tile in 0..task.tiles.count {
                    let token = task.tiles.first + tile * T;
                    let acc = pair_tile::<S, Q>(panel, task.x, token);
                    task.epilogue.store::<S, 16>(&acc, token, row, rows.min(ROWS));
                }
            }
        }
    }
}

struct PlainTask<'a, P, const T: usize>(Task<'a>, PhantomData<P>);

impl<P: Plain, const T: usize> DotKernel for PlainTask<'_, P, T> {
    type Output = ();
    const BF16: bool = P::BF16;

    #[inline(always)]
    unsafe fn run<S: Dot>(self) {
        if T > S::TOKENS {
            return;
        }
        // An operand that is loaded serves all panels (weights: all tokens) of a round; as many sums wait for their turn as
        // the units have stages. Both fit the registers: eight tokens with two panels, four with four, one with four; of
        // 16 registers, six tokens (four, where a step needs more of them) with one panel, whatever the tile.
        let task = self.0;
        let mut index = task.from;
        // SAFETY: as promised by the caller.
        unsafe {
            while T == 16 && S::MANY_REGISTERS && index + 1 < task.to {
                task.panels::<S, P, 8, 0, 2, T>(index);
                index += 2;
            }
            while (T == 1 || T == 4 && S::MANY_REGISTERS) && index + 3 < task.to {
                task.panels::<S, P, T, 0, 4, T>(index);
                index += 4;
            }
            for index in index..task.to {
                if T == 16 && !S::MANY_REGISTERS && P::SIX {
                    task.panels::<S, P, 6, 4, 1, T>(index);
                } else if T == 16 && !S::MANY_REGISTERS {
                    task.panels::<S, P, 4, 0, 1, T>(index);
                } else {
                    task.panels::<S, P, T, 0, 1, T>(index);
                }
            }
        }
    }
}

impl Task<'_> {
    /// `R` panels from `index` on with all tiles, each of `W` tokens, `T` at a time and then `REST`.
    #[inline(always)]
    unsafe fn panels<S: Dot, P: Plain, const T: usize, const REST: usize, const R: usize, const W: usize>(
        &self,
        index: usize,
    ) {
        // SAFETY: as promised by the caller.
        unsafe {
            for tile in 0..self.tiles.count {
                let first = self.tiles.first + tile * W;
                for token in (0..W - REST).step_by(T) {
                    self.tokens::<S, P, T, R, W>(index, first, token);
                }
                if REST > 0 {
                    self.tokens::<S, P, REST, R, W>(index, first, W - REST);
                }
            }
        }
    }

    /// `T` tokens from `token` on of the tile whose first one is `first`.
    #[inline(always)]
    unsafe fn tokens<S: Dot, P: Plain, const T: usize, const R: usize, const W: usize>(
        &self,
        index: usize,
        first: usize,
        token: usize,
    ) {
        // SAFETY: as promised by the caller.
        unsafe {
            let (panel, row, rows) = self.panel(index);
            let at = first * self.x.width + token * UNIT;
            let acc = plain_tile::<S, P, T, R, W>(panel, self.x, at);
            for (r, acc) in acc.iter().enumerate() {
                let rows = (rows - r * ROWS).min(ROWS);
                self.epilogue.store::<S, T>(acc, first + token, row + r * ROWS, rows);
            }
        }
    }
}

/// What is added to the sums, and where they go.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    /// `[out]`
    pub bias: Option<&'a [f32]>,
    /// `[tokens, out]`
    pub residual: Option<&'a [f32]>,
    /// `[tokens, out]`
    pub y: *mut f32,
    pub out: usize,
}
// SAFETY: threads write through `y` to disjoint places only.
unsafe impl Sync for Epilogue<'_> {}

impl Epilogue<'_> {
    /// Finishes the sums of `rows` rows from `row` on.
    ///
    /// # Safety
    /// The rows and the `T` tokens from `first` on must be those of the output, and the machine must have the instructions of `S`.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd, const T: usize>(&self, acc: &[S::V; T], first: usize, row: usize, rows: usize) {
        // SAFETY: as promised by the caller.
        unsafe {
            for (token, sum) in acc.iter().enumerate() {
                let at = (first + token) * self.out + row;
                let mut value = *sum;
                if let Some(bias) = self.bias {
                    value = S::add(value, S::load_part(bias.as_ptr().add(row), rows));
                }
                if let Some(residual) = self.residual {
                    value = S::add(value, S::load_part(residual.as_ptr().add(at), rows));
                }
                if rows == ROWS {
                    S::store(self.y.add(at), value);
                } else {
                    S::store_part(self.y.add(at), value, rows);
                }
            }
        }
    }
}
