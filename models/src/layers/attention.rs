// performance-critical: no allocation per token, no lock, no log, no format
//! Grouped-query attention over the paged cache, in the two halves that a step needs apart: [`Attention::write`]
//! computes q, k and v and fills the cache, [`Attention::attend`] reads it.

use candle_core::Tensor;
use sconce_kernels::{
    AttentionBatch, AttentionParams, HeadNorms, KvLayer, Prologue, QkvHeads, RopeStyle, RopeTable, paged_attention,
    rope_and_write_kv,
};

use super::{Join, Linear, Norm, Sum};
use crate::adapter::{Extra, Runs, Site};
use crate::batch::BatchInput;
use crate::error::Result;

pub(crate) struct Attention {
    pub norm: Norm,
    /// Query above key above value. `[(heads + 2 * kv_heads) * head_dim, hidden]`
    pub qkv: Linear,
    pub output: Linear,
    pub join: Option<Join>,
    /// Weights of the norms over q and k, head by head `[head_dim]` or all together `[heads * head_dim]`, and epsilon.
    pub head_norms: Option<(Tensor, Tensor, f32)>,
    pub rope_table: RopeTable,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub window: Option<u32>,
    pub softcap: Option<f32>,
    /// `[heads]`
    pub sinks: Option<Vec<f32>>,
}

/// What the blocks of a layer know of a step.
pub(crate) struct Step<'a> {
    pub batch: &'a BatchInput,
    pub rope_style: RopeStyle,
    pub layer: usize,
    /// The tokens that have adapters, if any have.
    pub runs: Option<&'a Runs<'a>>,
}

impl Step<'_> {
    /// What adapters add to a projection.
    pub fn extra(&self, site: Site) -> Option<Extra<'_>> {
        self.runs.map(|runs| Extra { runs, layer: self.layer, site })
    }

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
        let qkv = self.qkv.forward_with(hidden, self.norm.before(), step.extra(Site::Qkv))?;
        let norms = self.head_norms.as_ref().map(|(query, key, eps)| HeadNorms { query, key, eps: *eps });
        let heads = QkvHeads { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim, norms };
        let (positions, slots) = (&step.batch.positions, &step.batch.slots);
        Ok(rope_and_write_kv(&qkv, heads, (&self.rope_table, step.rope_style, positions), cache, slots)?)
    }

    /// What every token sees of its context, before the output projection. `[tokens, heads * head_dim]`
    pub fn attend(&self, query: &Tensor, step: &Step, cache: &KvLayer) -> Result<Tensor> {
        let params = AttentionParams {
            scale: self.scale,
            window: self.window,
            softcap: self.softcap,
            sinks: self.sinks.as_deref(),
        };
        let seen = paged_attention(query, cache, &step.attention_batch(), &params)?;
        Ok(seen.reshape((query.dim(0)?, self.heads * self.head_dim))?)
    }

    /// The output projection of what was seen, added to the hidden state.
    pub fn add_to(&self, residual: &Tensor, seen: &Tensor, step: &Step) -> Result<Tensor> {
        let to = Sum { residual, join: self.join.as_ref(), extra: step.extra(Site::Output) };
        self.output.add_to(to, seen, Prologue::None)
    }
}
