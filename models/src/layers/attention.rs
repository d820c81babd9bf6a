// performance-critical: no allocation per token, no lock, no log, no format
//! Grouped-query attention over the paged cache, in the two halves that a step needs apart: [`Attention::write`]
//! fills the cache, [`Attention::attend`] reads it.

use candle_core::Tensor;
use sconce_kernels::{
    AttentionBatch, AttentionParams, KvLayer, RopeStyle, RopeTable, paged_attention, rms_norm, rope, write_kv,
};

use super::Linear;
use crate::batch::BatchInput;
use crate::error::Result;

pub(crate) struct Attention {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    /// Weights of the norms over each head of q and k. `[head_dim]` each
    pub head_norms: Option<(Tensor, Tensor)>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm_eps: f32,
    pub params: AttentionParams,
}

/// What all layers of a step share.
pub(crate) struct Step<'a> {
    pub batch: &'a BatchInput,
    pub rope_table: &'a RopeTable,
    pub rope_style: RopeStyle,
}

impl Step<'_> {
    fn attention_batch(&self) -> AttentionBatch<'_> {
        AttentionBatch {
            positions: &self.batch.positions,
            row_ends: &self.batch.row_ends,
            context_lens: &self.batch.context_lens,
            block_tables: &self.batch.block_tables,
            block_table_ends: &self.batch.block_table_ends,
        }
    }

    /// Normed where the family norms heads, then rotated. `[tokens, heads * head_dim]` to `[tokens, heads, head_dim]`
    fn heads_of(&self, x: &Tensor, head_dim: usize, norm: Option<(&Tensor, f32)>) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let heads = width / head_dim;
        let x = match norm {
            Some((weight, eps)) => rms_norm(&x.reshape((tokens * heads, head_dim))?, weight, eps)?,
            None => x.clone(),
        };
        let x = x.reshape((tokens, heads, head_dim))?;
        Ok(rope(&x, &self.batch.positions, self.rope_table, self.rope_style)?)
    }
}

impl Attention {
    /// Writes K and V of `x` `[tokens, hidden]` into the step's slots.
    pub fn write(&self, x: &Tensor, step: &Step, cache: &mut KvLayer) -> Result<()> {
        let norm = self.head_norms.as_ref().map(|(_, key)| (key, self.norm_eps));
        // [tokens, kv_heads, head_dim]
        let key = step.heads_of(&self.key.forward(x)?, self.head_dim, norm)?;
        let value = self.value.forward(x)?.reshape((x.dim(0)?, self.kv_heads, self.head_dim))?;
        Ok(write_kv(cache, &key, &value, &step.batch.slots)?)
    }

    /// What every token of `x` `[tokens, hidden]` sees of its context, before the output projection.
    /// `[tokens, heads * head_dim]`
    pub fn attend(&self, x: &Tensor, step: &Step, cache: &KvLayer) -> Result<Tensor> {
        let norm = self.head_norms.as_ref().map(|(query, _)| (query, self.norm_eps));
        // [tokens, heads, head_dim]
        let query = step.heads_of(&self.query.forward(x)?, self.head_dim, norm)?;
        let seen = paged_attention(&query, cache, &step.attention_batch(), &self.params)?;
        Ok(seen.reshape((x.dim(0)?, self.heads * self.head_dim))?)
    }
}
