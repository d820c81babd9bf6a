// performance-critical: no allocation per token, no lock, no log, no format
//! Grouped-query attention over the paged cache, in the two halves that a step needs apart: [`Attention::write`]
//! computes q, k and v and fills the cache, [`Attention::attend`] reads it.

use candle_core::Tensor;
use sconce_kernels::{
    AttentionBatch, AttentionParams, HeadNorms, KvLayer, QkvHeads, RopeStyle, RopeTable, paged_attention,
    rope_and_write_kv,
};

use super::{Linear, Norm};
use crate::batch::BatchInput;
use crate::error::Result;

pub(crate) struct Attention {
    pub norm: Norm,
    /// Query above key above value. `[(heads + 2 * kv_heads) * head_dim, hidden]`
    pub qkv: Linear,
    pub output: Linear,
    /// Weights of the norms over each head of q and k. `[head_dim]` each
    pub head_norms: Option<(Tensor, Tensor)>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
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
}

impl Attention {
    /// Writes K and V of `hidden` `[tokens, hidden]` into the step's slots; gives q `[tokens, heads, head_dim]`.
    pub fn write(&self, hidden: &Tensor, step: &Step, cache: &mut KvLayer) -> Result<Tensor> {
        // [tokens, (heads + 2 * kv_heads) * head_dim]
        let qkv = self.qkv.forward(hidden, self.norm.before(), None)?;
        let norms = self.head_norms.as_ref().map(|(query, key)| HeadNorms { query, key, eps: self.norm.eps });
        let heads = QkvHeads { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim, norms };
        let (positions, slots) = (&step.batch.positions, &step.batch.slots);
        Ok(rope_and_write_kv(&qkv, heads, (step.rope_table, step.rope_style, positions), cache, slots)?)
    }

    /// What every token sees of its context, before the output projection. `[tokens, heads * head_dim]`
    pub fn attend(&self, query: &Tensor, step: &Step, cache: &KvLayer) -> Result<Tensor> {
        let seen = paged_attention(query, cache, &step.attention_batch(), &self.params)?;
        Ok(seen.reshape((query.dim(0)?, self.heads * self.head_dim))?)
    }
}
