//! LoRA adapters (arXiv 2106.09685) in PEFT's files: small matrices that are added to the projections of a model.
//!
//! Invariants: an adapter that exists fits its model, every tensor of its file has a place in it, and whatever its config
//! asks for beyond plain low-rank additions was refused by name.

mod config;
mod read;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use sconce_kernels::{LowRank, Prologue, Segment, add_low_rank};

use crate::batch::BatchInput;
use crate::error::{Error, Result};

pub use read::load_adapter;

/// Names an adapter for the life of its model; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId(pub u32);

/// The projections that an adapter may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    /// Query, key and value together.
    Qkv,
    Output,
    /// Gate and up together, or up alone.
    GateUp,
    Down,
}

impl Site {
    pub const ALL: [Site; 4] = [Site::Qkv, Site::Output, Site::GateUp, Site::Down];
}

/// What is added to each projection of one layer, by [`Site`]; in the order of their columns.
type LayerParts = [Vec<LowRank>; Site::ALL.len()];

/// A loaded adapter. Immutable, to be shared.
#[derive(Debug)]
pub struct Adapter {
    layers: Vec<LayerParts>,
    rank: usize,
    bytes: u64,
    base_model: Option<String>,
}

impl Adapter {
    /// The largest rank of its parts.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes of its matrices in memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The base model that its config names.
    pub fn base_model(&self) -> Option<&str> {
        self.base_model.as_deref()
    }
}

/// The adapters that a model has at hand.
#[derive(Default)]
pub(crate) struct AdapterSet(Vec<(AdapterId, Arc<Adapter>)>);

impl AdapterSet {
    /// Puts an adapter in or takes it out; `layers` are the model's.
    pub fn set(&mut self, id: AdapterId, adapter: Option<Arc<Adapter>>, layers: usize) -> Result<()> {
        self.0.retain(|(known, _)| *known != id);
        if let Some(adapter) = adapter {
            if adapter.layers.len() != layers {
                let found = adapter.layers.len();
                return Err(Error::Batch(format!("an adapter of {found} layers for a model of {layers}")));
            }
            self.0.push((id, adapter));
        }
        Ok(())
    }

    /// The tokens of a batch that have adapters; `None` where none has.
    pub fn runs(&self, batch: &BatchInput) -> Result<Option<Runs<'_>>> {
        let mut runs: Vec<(Range<usize>, &Adapter)> = Vec::new();
        let mut start = 0;
        for (row, id) in batch.adapters.iter().enumerate() {
            let end = batch.row_ends[row] as usize;
            if let Some(id) = id {
                let found = self.0.iter().find(|(known, _)| known == id);
                let Some((_, adapter)) = found else {
                    return Err(Error::Batch(format!("row {row} has adapter {}, which is not loaded", id.0)));
                };
                match runs.last_mut() {
                    Some((run, last)) if run.end == start && std::ptr::eq(*last, &raw const **adapter) => run.end = end,
                    _ => runs.push((start..end, adapter)),
                }
            }
            start = end;
        }
        Ok(if runs.is_empty() { None } else { Some(Runs(runs)) })
    }
}

/// Neighbouring tokens with the same adapter, in ascending order.
pub(crate) struct Runs<'a>(Vec<(Range<usize>, &'a Adapter)>);

impl Runs<'_> {
    /// The same of the sampled tokens, counted among them.
    pub fn sampled(&self, sample_rows: &[u32]) -> Self {
        let place = |token: usize| sample_rows.partition_point(|row| (*row as usize) < token);
        let runs = self.0.iter().map(|(run, adapter)| (place(run.start)..place(run.end), *adapter));
        Self(runs.filter(|(run, _)| !run.is_empty()).collect())
    }
}

/// What adapters add to one projection of a step.
#[derive(Clone, Copy)]
pub(crate) struct Extra<'a> {
    pub runs: &'a Runs<'a>,
    pub layer: usize,
    pub site: Site,
}

impl Extra<'_> {
    /// Adds it to `y` `[tokens, out]`, what the projection made of `x`.
    pub fn add(&self, x: &Tensor, prologue: Prologue, y: &mut [f32], out: usize) -> Result<()> {
        let segments: Vec<Segment> = (self.runs.0.iter())
            .map(|(tokens, adapter)| Segment {
                tokens: tokens.clone(),
                parts: &adapter.layers[self.layer][self.site as usize],
            })
            .filter(|segment| !segment.parts.is_empty())
            .collect();
        Ok(add_low_rank(x, prologue, &segments, y, out)?)
    }
}
