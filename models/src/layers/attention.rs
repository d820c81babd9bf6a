// performance-critical: no allocation per token, no lock, no log, no format
//! Grouped-query attention over the paged cache, in the two halves that a step needs apart: [`Attention::write`]
//! computes q, k and v and fills the cache, [`Attention::attend`] reads it.

use candle_core::Tensor;
use sconce_kernels::{
    AttentionBatch, AttentionParams, HeadNorms, KvLayer, PackedWeight, Prologue, QkvHeads, RopeStyle, RopeTable,
    norm_and_rope, paged_attention, rope_and_write_kv, sigmoid_mul,
};

use super::{Join, Linear, Norm, Query, Sum};
use crate::adapter::{Extra, Runs, Site};
use crate::batch::BatchInput;
use crate::error::Result;
use crate::timing::{Operation, timed};

pub(crate) struct Attention<M = PackedWeight> {
    pub norm: Norm,
    /// Query above key above value, `[(heads + 2 * kv_heads) * head_dim, hidden]`; the query alone without K and V of its
    /// own.
    pub qkv: Linear<M>,
    /// Of the same input: sigmoid of it is a factor on what is seen. `[heads * head_dim, hidden]`
    pub gate: Option<Linear<M>>,
    /// Another layer has written what this one reads.
    pub reads_only: bool,
    pub output: Linear<M>,
    pub join: Option<Join>,
    pub head_norms: Option<HeadNormWeights>,
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

/// Weights of the norms over q and k, head by head `[head_dim]` or all together `[heads * head_dim]`, and over the heads
/// of v where they are normed.
pub(crate) struct HeadNormWeights {
    pub query: Tensor,
    pub key: Tensor,
    pub value: Option<Tensor>,
    pub eps: f32,
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

    pub fn attention_batch(&self) -> AttentionBatch<'_> {
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
    /// Writes K and V of `hidden` `[tokens, hidden]` into the step's slots; gives q `[tokens, heads, head_dim]`, and the
    /// gate on what it will see where there is one.
    pub fn write(&self, hidden: &Tensor, step: &Step, cache: &mut KvLayer) -> Result<Query> {
        let gate = match &self.gate {
            Some(gate) => Some(timed(Operation::Qkv, || gate.forward(hidden, self.norm.before()))?),
            None => None,
        };
        // [tokens, (heads + 2 * kv_heads) * head_dim]
        let extra = step.extra(Site::Qkv);
        let qkv = timed(Operation::Qkv, || self.qkv.forward_with(hidden, self.norm.before(), extra))?;
        if self.reads_only {
            let query = qkv.reshape((qkv.dim(0)?, self.heads, self.head_dim))?;
            let norm = self.head_norms.as_ref().map(|norms| (&norms.query, norms.eps));
            let rope = (&self.rope_table, step.rope_style);
            let query = timed(Operation::RopeAndWrite, || norm_and_rope(&query, norm, &step.batch.positions, rope))?;
            return Ok(Query { query, gate });
        }
        let norms = self.head_norms.as_ref().map(|HeadNormWeights { query, key, value, eps }| HeadNorms {
            query,
            key,
            value: value.as_ref(),
            eps: *eps,
        });
        let heads = QkvHeads { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim, norms };
        let (positions, slots) = (&step.batch.positions, &step.batch.slots);
        let rope = (&self.rope_table, step.rope_style, positions.as_slice());
        let query = timed(Operation::RopeAndWrite, || rope_and_write_kv(&qkv, heads, rope, cache, slots))?;
        Ok(Query { query, gate })
    }

    /// What every token sees of its context, before the output projection. `[tokens, heads * head_dim]`
    pub fn attend(&self, query: &Query, step: &Step, cache: &KvLayer) -> Result<Tensor> {
        let params = AttentionParams {
            scale: self.scale,
            window: self.window,
            softcap: self.softcap,
            sinks: self.sinks.as_deref(),
        };
        let batch = step.attention_batch();
        let seen = timed(Operation::Attention, || paged_attention(&query.query, cache, &batch, &params))?;
        let seen = seen.reshape((seen.dim(0)?, self.heads * self.head_dim))?;
        match &query.gate {
            Some(gate) => Ok(sigmoid_mul(gate, &seen)?),
            None => Ok(seen),
        }
    }

    /// The output projection of what was seen, added to the hidden state.
    pub fn add_to(&self, residual: &Tensor, seen: &Tensor, step: &Step) -> Result<Tensor> {
        let to = Sum { residual, join: self.join.as_ref(), extra: step.extra(Site::Output) };
        timed(Operation::Output, || self.output.add_to(to, seen, Prologue::None))
    }
}
