//! Latent attention (DeepSeek-V2, arXiv 2405.04434): what the cache holds of a token is one vector, from which every
//! head's K and V follow by a matrix each.
//!
//! Those matrices are applied to the queries and to what the queries have seen instead, so that K and V of a context are
//! never spelled out. To the cache and to attention that is one KV head as wide as the vector.

use super::fields::Fields;
use super::keys::Keys;
use super::{RopeScaling, Spec};
use crate::error::Result;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latent {
    /// Width that queries pass through on their way; `None` if they are projected in one step.
    pub query_rank: Option<usize>,
    /// Width of a token's latent.
    pub rank: usize,
    /// Elements of a query head without a position.
    pub plain: usize,
    /// Elements of a query head, and of the key that all heads share, that are rotated.
    pub rotated: usize,
    /// Elements of a value head.
    pub value: usize,
    /// Of the norms on the two latents.
    pub norm_eps: f32,
}

/// Metadata keys that the family reads and others refuse.
pub(crate) const GGUF_KEYS: [&str; 4] =
    ["expert_count", "expert_group_used_count", "leading_dense_block_count", "rope.scaling.yarn_log_multiplier"];

impl Latent {
    /// Elements of the vector in the cache: the rotated key, then the latent.
    pub fn width(&self) -> usize {
        self.rotated.saturating_add(self.rank)
    }

    /// Elements of a query head as projected.
    pub fn query(&self) -> usize {
        self.plain.saturating_add(self.rotated)
    }

    /// Puts the sizes where the cache and attention look for them.
    pub(crate) fn set(self, spec: &mut Spec) {
        spec.head_dim = self.width();
        spec.kv_heads = 1;
        spec.rope.rotated = self.rotated;
        spec.scales.attention = (self.query() as f64).sqrt().recip() as f32;
        spec.latent = Some(self);
    }

    pub(super) fn check(&self) -> Result<(), String> {
        const SIZE_MAX: usize = 1 << 16;
        for (name, value) in [
            ("rank of the latent", self.rank),
            ("rank of the query", self.query_rank.unwrap_or(1)),
            ("plain part of a query", self.plain),
            ("rotated part of a query", self.rotated),
            ("size of a value", self.value),
        ] {
            if value == 0 || value > SIZE_MAX {
                return Err(format!("{name} is {value}, expected 1 to {SIZE_MAX}"));
            }
        }
        Ok(())
    }

    /// Elements of a layer's matrices.
    pub(super) fn matrix_parameters(&self, hidden: usize, heads: usize) -> u64 {
        let product = |a: usize, b: usize| (a as u64).saturating_mul(b as u64);
        let query = match self.query_rank {
            Some(rank) => product(hidden + heads * self.query(), rank),
            None => product(hidden, heads * self.query()),
        };
        let latent = product(hidden, self.width()) + product(heads * (self.plain + self.value), self.rank);
        query + latent + product(hidden, heads * self.value)
    }
}

/// The keys of `config.json`.
pub(crate) fn from_config(fields: &Fields, spec: &mut Spec) -> Result<()> {
    let latent = Latent {
        query_rank: fields.optional_size("q_lora_rank")?,
        rank: fields.size("kv_lora_rank")?,
        plain: fields.size("qk_nope_head_dim")?,
        rotated: fields.size("qk_rope_head_dim")?,
        value: fields.size("v_head_dim")?,
        // Transformers does not pass the model's epsilon on to these two.
        norm_eps: 1e-6,
    };
    latent.set(spec);
    if let RopeScaling::Yarn { factor, .. } = spec.rope.scaling {
        let nested = fields.object_at("rope_parameters")?.or(fields.object_at("rope_scaling")?);
        let all = match nested {
            Some(object) => Fields { object, file: fields.file }.number("mscale_all_dim")?.unwrap_or(0.0),
            None => 0.0,
        };
        let stretched = super::rope::yarn_attention_factor(factor, all);
        spec.scales.attention *= (stretched * stretched) as f32;
    }
    Ok(())
}

/// The keys of a GGUF, where files from before the two halves of a head's matrix were split lack the names in `mla`.
pub(crate) fn from_metadata(keys: &Keys, spec: &mut Spec) -> Result<()> {
    let either = |mla: &str, old: &str| match keys.optional_size(mla)? {
        Some(size) => Ok(size),
        None => keys.size(old),
    };
    let query = either("attention.key_length_mla", "attention.key_length")?;
    let rotated = keys.size("rope.dimension_count")?;
    let Some(plain) = query.checked_sub(rotated) else {
        return Err(keys.wrong(format!("{rotated} of {query} elements of a query are rotated")));
    };
    let latent = Latent {
        query_rank: keys.optional_size("attention.q_lora_rank")?.filter(|&rank| rank > 0),
        rank: keys.size("attention.kv_lora_rank")?,
        plain,
        rotated,
        value: either("attention.value_length_mla", "attention.value_length")?,
        norm_eps: spec.norm_eps,
    };
    latent.set(spec);
    if let RopeScaling::Yarn { factor, attention_factor, .. } = &mut spec.rope.scaling {
        // llama.cpp takes YaRN's factor off the angles again and puts this one on the scores.
        let on_scores = 1.0 + keys.number("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0) * factor.ln();
        *attention_factor = 1.0;
        spec.scales.attention *= (on_scores * on_scores) as f32;
    }
    Ok(())
}
