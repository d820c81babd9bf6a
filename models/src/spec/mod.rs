//! What a model is, in one struct: read from `config.json` or from GGUF metadata, checked once, trusted afterwards.
//!
//! Invariants of a `Spec` that was read: every size is at least 1, `heads` is a multiple of `kv_heads`, what is rotated of
//! a head is even, and every feature that changes the answer is either represented here or was refused by name.

pub(crate) mod config_json;
pub(crate) mod experts;
pub(crate) mod fields;
pub(crate) mod from_gguf;
pub(crate) mod keys;
pub(crate) mod latent;
pub(crate) mod rope;
pub(crate) mod uneven;

pub use experts::{Experts, GroupScore, Groups, Routing, Scoring};
pub use latent::Latent;
pub use rope::{RopeScaling, RopeSpec};
use sconce_kernels::KvDtype;
pub use uneven::{CacheKind, Convolution, DeltaRule, KvHeads, Uneven};

use crate::family::Family;

/// Layers that attend to the last `tokens` positions only; the others see the whole context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    pub tokens: u32,
    /// Whether the window holds in layer `i`. `[layers]`
    pub layers: Vec<bool>,
}

/// What normalises a hidden state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    Rms,
    Layer { has_bias: bool },
}

/// Where the norms of a layer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// One before attention, one before the feed-forward block.
    Before,
    /// Behind each of them, before its residual (OLMo 2).
    After,
    /// Before and behind each of them (Gemma 2, GLM-4).
    Around,
    /// One before both, which run side by side (Cohere).
    Shared,
}

/// What normalises queries and keys before the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// RMSNorm on every head (Qwen3).
    Heads,
    /// RMSNorm on all heads together (OLMo 2).
    Width,
    /// RMSNorm without weights on every head of the layers with rotation (Llama 4).
    RotatedHeads,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    GeluTanh,
    /// The clamped gate of GPT-OSS.
    ClampedSwiglu,
}

/// Factors, and caps `c * tanh(x / c)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scales {
    pub embedding: f32,
    /// On every attention score.
    pub attention: f32,
    pub attention_cap: Option<f32>,
    /// On what each block adds to the hidden state.
    pub residual: f32,
    pub logits: f32,
    pub logit_cap: Option<f32>,
}

impl Scales {
    /// Attention by the root of the head size, nothing else.
    pub(crate) fn plain(head_dim: usize) -> Self {
        let attention = (head_dim as f64).sqrt().recip() as f32;
        Self { embedding: 1.0, attention, attention_cap: None, residual: 1.0, logits: 1.0, logit_cap: None }
    }

    fn check(&self) -> Result<(), String> {
        let (attention_cap, logit_cap) = (self.attention_cap.unwrap_or(1.0), self.logit_cap.unwrap_or(1.0));
        for (name, value) in [
            ("embedding factor", self.embedding),
            ("attention factor", self.attention),
            ("attention cap", attention_cap),
            ("residual factor", self.residual),
            ("logit factor", self.logits),
            ("logit cap", logit_cap),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(format!("{name} is {value}, expected > 0"));
            }
        }
        Ok(())
    }
}

/// More than any known model has; what a file says beyond it is not believed.
pub(crate) const LAYERS_MAX: usize = 4096;

impl SlidingWindow {
    pub(crate) fn every_layer(tokens: usize, layers: usize) -> Self {
        Self { tokens: u32::try_from(tokens).unwrap_or(u32::MAX), layers: vec![true; layers.min(LAYERS_MAX)] }
    }

    /// Which of the layers have the window if every `step`-th has not; all of them if `step` is 0.
    pub(crate) fn all_but_every(step: usize, layers: usize) -> Vec<bool> {
        (1..=layers).map(|layer| step == 0 || !layer.is_multiple_of(step)).collect()
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
    /// The rotation of layers with a window, where it differs.
    pub local_rope: Option<RopeSpec>,
    /// Whether layer `i` goes without rotation; empty if none does.
    pub unrotated: Vec<bool>,
    /// The head is the embedding.
    pub tied_embeddings: bool,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    pub qk_norm: QkNorm,
    pub norm: NormKind,
    pub norms: Norms,
    pub activation: Activation,
    /// The activation gates a second projection; otherwise the feed-forward block is up and down only.
    pub gated: bool,
    pub scales: Scales,
    /// Each softmax of attention has a sink: a learned score without a value.
    pub sinks: bool,
    pub sliding_window: Option<SlidingWindow>,
    /// Layers whose feed-forward block is a mixture of experts.
    pub experts: Option<Experts>,
    /// Latent attention in all layers: `head_dim` is then the width of what the cache holds of a token.
    pub latent: Option<Latent>,
    pub uneven: Uneven,
    /// What is done to the weights at load, where that is worth knowing.
    pub notes: Vec<String>,
    /// The commonest weight format by bytes: "Q4_1", "BF16".
    pub weight_format: String,
    pub parameters: u64,
    /// Bytes of the tensors as stored, which is what they take in memory.
    pub weight_bytes: u64,
    /// Bytes that the files have in FP8: `weight_bytes` counts them twice, as BF16.
    pub fp8_bytes: u64,
}

impl Spec {
    /// What the cache holds of one token in all layers.
    pub fn kv_bytes_per_token(&self, dtype: KvDtype) -> u64 {
        self.kv_values_per_token() * dtype.bytes() as u64
    }

    /// Elements that the cache holds of one token in all layers.
    pub fn kv_values_per_token(&self) -> u64 {
        (0..self.layers).map(|layer| self.cache_values(layer)).sum()
    }

    /// The attention window of a layer, `None` for the whole context.
    pub fn window(&self, layer: usize) -> Option<u32> {
        let window = self.sliding_window.as_ref()?;
        window.layers.get(layer).copied().unwrap_or(false).then_some(window.tokens)
    }

    /// The rotation of a layer, `None` if it has none.
    pub fn rope_of(&self, layer: usize) -> Option<&RopeSpec> {
        if self.unrotated.get(layer).copied().unwrap_or(false) {
            return None;
        }
        let local = self.local_rope.as_ref().filter(|_| self.window(layer).is_some());
        Some(local.unwrap_or(&self.rope))
    }

    /// The experts of a layer, `None` if it has a plain feed-forward block.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers.get(layer).copied().unwrap_or(false))
    }

    /// Layers to make lists for before the spec is checked.
    pub(crate) fn layers_believed(&self) -> usize {
        self.layers.min(LAYERS_MAX)
    }

    /// Width of all query heads side by side.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all K (or V) heads side by side.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of the matrices that one token is multiplied with in the layers.
    fn layer_matrix_parameters(&self) -> u64 {
        let product = |sizes: [usize; 3]| sizes.into_iter().fold(1, |all: u64, size| all.saturating_mul(size as u64));
        let projections = if self.gated { 3 } else { 2 };
        let mut all = 0_u64;
        for layer in 0..self.layers {
            all = all.saturating_add(self.mixer_parameters(layer));
            let width = match self.experts_of(layer) {
                Some(experts) => experts.per_token * experts.ffn + experts.shared_ffn,
                None => self.ffn_of(layer),
            };
            all = all.saturating_add(product([projections, self.hidden, width]));
        }
        all
    }

    /// The matrix multiplications of one token, in floating point operations, attention over the context left out.
    pub fn flops_per_token(&self) -> u64 {
        2 * (self.layer_matrix_parameters() + (self.hidden * self.vocab) as u64)
    }

    /// Elements of all matrices of a model without experts, a tied head counted once.
    pub(crate) fn matrix_parameters(&self) -> u64 {
        let tables = if self.tied_embeddings { 1 } else { 2 };
        self.layer_matrix_parameters() + (tables * self.hidden * self.vocab) as u64
    }

    /// Elements of all norms and biases of a Llama-like model.
    pub(crate) fn vector_parameters(&self) -> u64 {
        let mut layer = 2 * self.hidden;
        layer += if self.qkv_bias { self.query_width() + 2 * self.kv_width() } else { 0 };
        layer += if self.output_bias { self.hidden } else { 0 };
        layer += if self.mlp_bias { 2 * self.ffn + self.hidden } else { 0 };
        layer += if self.qk_norm == QkNorm::Heads { 2 * self.head_dim } else { 0 };
        let of_deltas = (0..self.layers).filter_map(|index| self.delta_of(index)).map(|sizes| {
            let own = sizes.taps * sizes.mixed() + 2 * sizes.value_heads + sizes.value_dim;
            own as i64 - if self.qk_norm == QkNorm::Heads { 2 * self.head_dim as i64 } else { 0 }
        });
        (self.layers * layer + self.hidden) as u64 + of_deltas.sum::<i64>() as u64
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
            ("context length", self.context_max as usize, 1 << 24),
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
        for (name, listed) in [("rotation", &self.unrotated), ("window", self.windowed())] {
            if !listed.is_empty() && listed.len() != self.layers {
                return Err(format!("{name} is said of {} layers, there are {}", listed.len(), self.layers));
            }
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(format!("norm epsilon is {}, expected a small positive number", self.norm_eps));
        }
        if self.sliding_window.as_ref().is_some_and(|window| window.tokens == 0) {
            return Err("sliding window is 0 tokens, expected at least 1".to_owned());
        }
        self.scales.check()?;
        if let Some(experts) = &self.experts {
            experts.check()?;
        }
        if let Some(latent) = &self.latent {
            latent.check()?;
        }
        self.check_uneven()?;
        if let Some(local) = &self.local_rope {
            local.check(self.head_dim)?;
        }
        self.rope.check(self.uneven.global_heads.map_or(self.head_dim, |heads| heads.head_dim))
    }

    fn windowed(&self) -> &Vec<bool> {
        const NONE: &Vec<bool> = &Vec::new();
        self.sliding_window.as_ref().map_or(NONE, |window| &window.layers)
    }
}

#[cfg(test)]
mod tests;
