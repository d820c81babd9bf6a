//! What a model is, in one struct: read from `config.json` or from GGUF metadata, checked once, trusted afterwards.
//!
//! Invariants of a `Spec` that was read: every size is at least 1, `heads` is a multiple of `kv_heads`, `head_dim` is
//! even, and every feature that changes the answer is either represented here or was refused by name.

pub(crate) mod config_json;
pub(crate) mod from_gguf;
pub(crate) mod rope;

pub use rope::{RopeScaling, RopeSpec};
use sconce_kernels::KvDtype;

use crate::family::Family;

/// Layers that attend to the last `tokens` positions only; the others see the whole context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    pub tokens: u32,
    /// Whether the window holds in layer `i`. `[layers]`
    pub layers: Vec<bool>,
}

/// More than any known model has; what a file says beyond it is not believed.
pub(crate) const LAYERS_MAX: usize = 4096;

impl SlidingWindow {
    pub(crate) fn every_layer(tokens: usize, layers: usize) -> Self {
        Self { tokens: u32::try_from(tokens).unwrap_or(u32::MAX), layers: vec![true; layers.min(LAYERS_MAX)] }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// As found: the Hugging Face class, or the GGUF `general.architecture`.
    pub architecture: String,
    pub family: Family,
    pub layers: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Rows of the embedding: the length of a row of logits, which may exceed the tokenizer's vocabulary.
    pub vocab: usize,
    pub context_max: u32,
    pub norm_eps: f32,
    pub rope: RopeSpec,
    /// The head is the embedding.
    pub tied_embeddings: bool,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// RMSNorm on every head of q and k before the rotation (Qwen3).
    pub qk_norm: bool,
    pub sliding_window: Option<SlidingWindow>,
    /// The commonest weight format by bytes: "Q4_1", "BF16".
    pub weight_format: String,
    pub parameters: u64,
    /// Bytes of the tensors as stored, which is what they take in memory.
    pub weight_bytes: u64,
}

impl Spec {
    /// K and V of one token in all layers.
    pub fn kv_bytes_per_token(&self, dtype: KvDtype) -> u64 {
        let values = 2 * self.layers as u64 * self.kv_heads as u64 * self.head_dim as u64;
        values * dtype.bytes() as u64
    }

    /// The attention window of a layer, `None` for the whole context.
    pub fn window(&self, layer: usize) -> Option<u32> {
        let window = self.sliding_window.as_ref()?;
        window.layers.get(layer).copied().unwrap_or(false).then_some(window.tokens)
    }

    /// Width of all query heads side by side.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all K (or V) heads side by side.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of the matrices of all layers.
    fn layer_matrix_parameters(&self) -> u64 {
        let attention = self.hidden * (2 * self.query_width() + 2 * self.kv_width());
        self.layers as u64 * (attention + 3 * self.hidden * self.ffn) as u64
    }

    /// The matrix multiplications of one token, in floating point operations, attention over the context left out.
    pub fn flops_per_token(&self) -> u64 {
        2 * (self.layer_matrix_parameters() + (self.hidden * self.vocab) as u64)
    }

    /// Elements of all matrices, a tied head counted once.
    pub(crate) fn matrix_parameters(&self) -> u64 {
        let tables = if self.tied_embeddings { 1 } else { 2 };
        self.layer_matrix_parameters() + (tables * self.hidden * self.vocab) as u64
    }

    /// Elements of all norms and biases.
    pub(crate) fn vector_parameters(&self) -> u64 {
        let mut layer = 2 * self.hidden;
        layer += if self.qkv_bias { self.query_width() + 2 * self.kv_width() } else { 0 };
        layer += if self.output_bias { self.hidden } else { 0 };
        layer += if self.mlp_bias { 2 * self.ffn + self.hidden } else { 0 };
        layer += if self.qk_norm { 2 * self.head_dim } else { 0 };
        (self.layers * layer + self.hidden) as u64
    }

    /// What no model of these families may contradict, whatever file it came from.
    pub(crate) fn check(&self) -> Result<(), String> {
        // Generous beyond any known model, and small enough that no product of two sizes overflows.
        const SIZE_MAX: usize = 1 << 24;
        let sizes = [
            ("layers", self.layers, LAYERS_MAX),
            ("hidden size", self.hidden, SIZE_MAX),
            ("feed-forward size", self.ffn, SIZE_MAX),
            ("attention heads", self.heads, 1 << 16),
            ("kv heads", self.kv_heads, 1 << 16),
            ("head size", self.head_dim, 1 << 16),
            ("vocabulary size", self.vocab, SIZE_MAX),
            ("context length", self.context_max as usize, 1 << 28),
        ];
        for (name, value, max) in sizes {
            if value == 0 || value > max {
                return Err(format!("{name} is {value}, expected 1 to {max}"));
            }
        }
        if self.query_width() > SIZE_MAX {
            return Err(format!("{} heads of size {} are too wide", self.heads, self.head_dim));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} attention heads are not a multiple of {} kv heads", self.heads, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head size {} is odd, which rotary embeddings cannot use", self.head_dim));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(format!("norm epsilon is {}, expected a small positive number", self.norm_eps));
        }
        if self.sliding_window.as_ref().is_some_and(|window| window.tokens == 0) {
            return Err("sliding window is 0 tokens, expected at least 1".to_owned());
        }
        self.rope.check(self.head_dim)
    }
}

#[cfg(test)]
mod tests;
