//! Low-rank additions to what a dense layer has computed, for the tokens that have an adapter.

use candle_core::Tensor;

pub use crate::cpu::low_rank::{LowRank, Segment};
use crate::cpu::{self, Isa};
use crate::error::{Result, shape};
use crate::matmul::{Prologue, with_prologue};
use crate::tensors;

const OP: &str = "add_low_rank";

/// `y += scale * (prologue(x) A^T) B^T` for each segment's tokens: x as [`crate::matmul`] takes it, y `[tokens, out]`.
///
/// Segments ascend and are apart, as are the columns of a segment's parts; all parts take one input. What a token gets has
/// the same bits whatever else is in the call.
pub fn add_low_rank(x: &Tensor, prologue: Prologue, segments: &[Segment], y: &mut [f32], out: usize) -> Result<()> {
    tensors::require_cpu(OP, x.device())?;
    let (tokens, columns) = tensors::dims2(OP, "x", x)?;
    if y.len() != tokens * out {
        return Err(shape(OP, format!("y has {} values, not {tokens} rows of {out}", y.len())));
    }
    let Some(input) = segments.iter().flat_map(|segment| segment.parts).map(LowRank::input).next() else {
        return Ok(());
    };
    if columns != if prologue.is_gated() { 2 * input } else { input } {
        return Err(shape(OP, format!("x has {columns} columns and the adapter takes {input}")));
    }
    let mut before = 0;
    for Segment { tokens: run, parts } in segments {
        if run.start < before || run.end < run.start || run.end > tokens {
            return Err(shape(OP, format!("tokens {run:?} do not follow {before} or end beyond {tokens}")));
        }
        before = run.end;
        let mut column = 0;
        for part in *parts {
            if part.input() != input || part.columns().start < column || part.columns().end > out {
                let (own, takes) = (part.columns(), part.input());
                return Err(shape(
                    OP,
                    format!("a part for columns {own:?} of {out} takes {takes} values, not {input}"),
                ));
            }
            column = part.columns().end;
        }
    }
    let (storage, layout) = x.storage_and_layout();
    let x = tensors::values(OP, "x", &storage, layout)?;
    with_prologue(OP, prologue, input, |prologue| {
        cpu::low_rank::add(Isa::best(), (x, columns), prologue, segments, (y, out));
    })
}
