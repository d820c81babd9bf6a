//! Rotary position embedding: queries and keys are turned by angles that grow with the position.
//!
//! Angles are `position * inv_freq` rounded to f32, as transformers computes them.

use candle_core::{Device, Tensor};

use crate::error::{Result, shape};
use crate::{reference, tensors};

/// Which two elements of a head form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(i, i + rot / 2)`: Hugging Face checkpoints, NEOX models in GGUF.
    Halves,
    /// `(2i, 2i + 1)`: llama models in GGUF.
    Interleaved,
}

/// What turns a position into angles: inverse frequencies (any rope scaling is already in them) and a factor on both
/// cosine and sine. Nothing is computed for positions that never come.
#[derive(Debug, Clone)]
pub struct RopeTable {
    inv_freq: Vec<f32>,
    positions_max: usize,
    attention_factor: f32,
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
        Ok(Self { inv_freq: inv_freq.to_vec(), positions_max, attention_factor })
    }

    /// How many elements of a head are rotated.
    pub fn rotated(&self) -> usize {
        2 * self.inv_freq.len()
    }
}

/// Rotates x `[tokens, heads, head_dim]` by each token's position; elements from [`RopeTable::rotated`] on pass through.
pub fn rope(x: &Tensor, positions: &[u32], table: &RopeTable, style: RopeStyle) -> Result<Tensor> {
    const OP: &str = "rope";
    tensors::require_cpu(OP, x.device())?;
    let (tokens, heads, head_dim) = tensors::dims3(OP, "x", x)?;
    if positions.len() != tokens {
        return Err(shape(OP, format!("{} positions for {tokens} tokens", positions.len())));
    }
    if table.rotated() > head_dim {
        return Err(shape(OP, format!("the table rotates {} of {head_dim} elements a head", table.rotated())));
    }
    if let Some(position) = positions.iter().find(|position| **position as usize >= table.positions_max) {
        return Err(shape(OP, format!("position {position} is past the context of {}", table.positions_max)));
    }
    let (storage, layout) = x.storage_and_layout();
    let values = tensors::values(OP, "x", &storage, layout)?;
    let mut out = reference::rope(values, (heads, head_dim), positions, &table.inv_freq, style);
    for head in out.chunks_mut(head_dim.max(1)) {
        head[..table.rotated()].iter_mut().for_each(|value| *value *= table.attention_factor);
    }
    Ok(Tensor::from_vec(out, (tokens, heads, head_dim), x.device())?)
}
