//! Rotary position embedding: queries and keys are turned by angles that grow with the position.
//!
//! Angles are `position * inv_freq` rounded to f32, as transformers computes them.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor};

use crate::cpu::Isa;
use crate::cpu::heads::{self, Heads, Turned};
use crate::error::{Result, shape};
use crate::tensors;

/// Which two elements of a head form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(i, i + rot / 2)`: Hugging Face checkpoints, NEOX models in GGUF.
    Halves,
    /// `(2i, 2i + 1)`: llama models in GGUF.
    Interleaved,
}

/// Positions whose angles are computed together, when the first of them is met.
const PAGE: usize = 256;

/// Cosines and sines of every position, from inverse frequencies (any rope scaling is already in them) and a factor
/// on both. Pages of positions are computed when they are first met, so a long context costs nothing at the start.
#[derive(Debug, Clone)]
pub struct RopeTable {
    table: Arc<Pages>,
}

#[derive(Debug)]
struct Pages {
    inv_freq: Vec<f32>,
    positions_max: usize,
    attention_factor: f32,
    /// Each `[PAGE, 2, pairs]`: cosines, then sines.
    pages: Vec<OnceLock<Box<[f32]>>>,
}

impl RopeTable {
    /// A table for positions below `positions_max`.
    pub fn new(inv_freq: &[f32], positions_max: usize, attention_factor: f32, device: &Device) -> Result<Self> {
        const OP: &str = "rope table";
        tensors::require_cpu(OP, device)?;
        if inv_freq.is_empty() {
            return Err(shape(OP, "there are no inverse frequencies"));
        }
        if let Some(bad) = inv_freq.iter().chain([&attention_factor]).find(|value| !value.is_finite()) {
            return Err(shape(OP, format!("{bad} is no usable frequency or factor")));
        }
        let pages = (0..positions_max.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        let table = Pages { inv_freq: inv_freq.to_vec(), positions_max, attention_factor, pages };
        Ok(Self { table: Arc::new(table) })
    }

    /// A table that turns nothing, for layers without rotary embedding.
    pub fn identity(positions_max: usize) -> Self {
        let pages = (0..positions_max.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        Self { table: Arc::new(Pages { inv_freq: Vec::new(), positions_max, attention_factor: 1.0, pages }) }
    }

    /// How many elements of a head are rotated.
    pub fn rotated(&self) -> usize {
        2 * self.table.inv_freq.len()
    }

    /// Refuses positions that are not one a token or past the end, and heads that are too small.
    pub(crate) fn check(&self, op: &'static str, positions: &[u32], tokens: usize, head_dim: usize) -> Result<()> {
        if positions.len() != tokens {
            return Err(shape(op, format!("{} positions for {tokens} tokens", positions.len())));
        }
        if self.rotated() > head_dim {
            return Err(shape(op, format!("the table rotates {} of {head_dim} elements a head", self.rotated())));
        }
        let positions_max = self.table.positions_max;
        match positions.iter().find(|position| **position as usize >= positions_max) {
            Some(position) => Err(shape(op, format!("position {position} is past the context of {positions_max}"))),
            None => Ok(()),
        }
    }

    /// Cosines and sines of one position below `positions_max`, one a pair each.
    pub(crate) fn angles(&self, position: u32) -> (&[f32], &[f32]) {
        let (position, pairs) = (position as usize, self.table.inv_freq.len());
        let page = self.table.pages[position / PAGE].get_or_init(|| self.table.page(position / PAGE * PAGE));
        let at = position % PAGE * 2 * pairs;
        page[at..at + 2 * pairs].split_at(pairs)
    }
}

impl Pages {
    fn page(&self, first: usize) -> Box<[f32]> {
        let mut page = Vec::with_capacity(PAGE * 2 * self.inv_freq.len());
        for position in first..first + PAGE {
            let angles = self.inv_freq.iter().map(|inv_freq| (position as f32 * inv_freq) as f64);
            page.extend(angles.clone().map(|angle| angle.cos() as f32 * self.attention_factor));
            page.extend(angles.map(|angle| angle.sin() as f32 * self.attention_factor));
        }
        page.into()
    }
}

/// Rotates x `[tokens, heads, head_dim]` by each token's position; elements from [`RopeTable::rotated`] on pass through.
pub fn rope(x: &Tensor, positions: &[u32], table: &RopeTable, style: RopeStyle) -> Result<Tensor> {
    norm_and_rope(x, None, positions, (table, style))
}

/// As [`rope`], behind an RMSNorm over each head where there is one: its weight `[head_dim]`, and epsilon.
pub fn norm_and_rope(
    x: &Tensor,
    norm: Option<(&Tensor, f32)>,
    positions: &[u32],
    (table, style): (&RopeTable, RopeStyle),
) -> Result<Tensor> {
    const OP: &str = "rope";
    tensors::require_cpu(OP, x.device())?;
    let (tokens, heads, head_dim) = tensors::dims3(OP, "x", x)?;
    table.check(OP, positions, tokens, head_dim)?;
    let (storage, layout) = x.storage_and_layout();
    let values = tensors::values(OP, "x", &storage, layout)?;
    let guard = norm.map(|(weight, eps)| (weight.storage_and_layout(), weight, eps));
    let norm = match &guard {
        None => None,
        Some(((storage, layout), weight, eps)) => {
            tensors::require_dims(OP, "norm", weight, &[head_dim])?;
            Some((tensors::values(OP, "norm", storage, layout)?, *eps))
        }
    };
    let angles = |token: usize| table.angles(positions[token]);
    let heads = Heads { x: values, stride: heads * head_dim, start: 0, heads, head_dim };
    let out = heads::turned(Isa::best(), heads, Turned { norm, style, angles });
    Ok(Tensor::from_vec(out, x.shape(), x.device())?)
}
