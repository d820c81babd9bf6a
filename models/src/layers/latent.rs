// performance-critical: no allocation per token, no lock, no log, no format
//! Latent attention (DeepSeek-V2, arXiv 2405.04434) over a cache of one vector a token: the rotated key, then the latent.
//!
//! A head's key is a matrix times the latent. It is applied to the query instead (`q . (W c) = (W^T q) . c`), and the
//! head's value matrix to the mix of latents that the query has seen. Prefill and decode do the same, so that a token's
//! result does not depend on how a prompt was cut.

use candle_core::Tensor;
use sconce_kernels::{
    AttentionParams, KvLayer, PackedWeight, Prologue, RopeTable, paged_attention, rms_norm, rope, write_vectors,
};

use super::{Join, Linear, Norm, RmsNorm, Step, Sum};
use crate::error::Result;
use crate::spec::Latent;

pub(crate) struct LatentAttention<M = PackedWeight> {
    pub norm: Norm,
    /// Queries (or what they pass through), then latent, then the shared key. `[query + rank + rotated, hidden]`
    pub down: Linear<M>,
    /// `[heads * (plain + rotated), query rank]`, behind a norm.
    pub query_up: Option<(RmsNorm, Linear<M>)>,
    pub latent_norm: RmsNorm,
    /// What the plain part of a query is multiplied with, a head each. `[rank, plain]`
    pub key: Vec<Linear<M>>,
    /// What the latents that a head has seen become. `[value, rank]`
    pub value: Vec<Linear<M>>,
    pub output: Linear<M>,
    pub join: Option<Join>,
    pub rope_table: RopeTable,
    pub sizes: Latent,
    pub scale: f32,
}

impl LatentAttention {
    /// Writes the vectors of `hidden` `[tokens, hidden]` into the step's slots; gives queries as wide as those,
    /// `[tokens, heads, rotated + rank]`.
    pub fn write(&self, hidden: &Tensor, step: &Step, cache: &mut KvLayer) -> Result<Tensor> {
        let Latent { rank, plain, rotated, .. } = self.sizes;
        let (tokens, heads) = (hidden.dim(0)?, self.key.len());
        let (positions, slots, style) = (&step.batch.positions, &step.batch.slots, step.rope_style);
        let down = self.down.forward(hidden, self.norm.before())?;
        let query_width = down.dim(1)? - rank - rotated;
        let latent = down.narrow(1, query_width, rank)?.contiguous()?;
        let latent = rms_norm(&latent, &self.latent_norm.weight, self.latent_norm.eps)?;
        let key = down.narrow(1, query_width + rank, rotated)?;
        let vector = Tensor::cat(&[&key, &latent], 1)?.contiguous()?.reshape((tokens, 1, rotated + rank))?;
        let vector = rope(&vector, positions, &self.rope_table, style)?;
        write_vectors(cache, &vector.reshape((tokens, rotated + rank))?, slots)?;
        let mut query = down.narrow(1, 0, query_width)?.contiguous()?;
        if let Some((norm, up)) = &self.query_up {
            query = up.forward(&query, Prologue::RmsNorm { weight: &norm.weight, eps: norm.eps })?;
        }
        let query = query.reshape((tokens, heads, plain + rotated))?;
        // [tokens, heads, rank]
        let on_latents = self.each_head(&self.key, &query.narrow(2, 0, plain)?)?;
        let query = Tensor::cat(&[&query.narrow(2, plain, rotated)?, &on_latents], 2)?.contiguous()?;
        Ok(rope(&query, positions, &self.rope_table, style)?)
    }

    /// What every token sees of its context, before the output projection. `[tokens, heads * value]`
    pub fn attend(&self, query: &Tensor, step: &Step, cache: &KvLayer) -> Result<Tensor> {
        let params = AttentionParams { scale: self.scale, window: None, softcap: None, sinks: None };
        let seen = paged_attention(query, cache, &step.attention_batch(), &params)?;
        let latents = seen.narrow(2, self.sizes.rotated, self.sizes.rank)?;
        Ok(self.each_head(&self.value, &latents)?.flatten_from(1)?)
    }

    /// The output projection of what was seen, added to the hidden state.
    pub fn add_to(&self, residual: &Tensor, seen: &Tensor) -> Result<Tensor> {
        self.output.add_to(Sum { join: self.join.as_ref(), ..Sum::plain(residual) }, seen, Prologue::None)
    }

    /// Each head's own matrix times its part of x `[tokens, heads, input]`: `[tokens, heads, out]`.
    fn each_head(&self, matrices: &[Linear], x: &Tensor) -> Result<Tensor> {
        let one = |(head, matrix): (usize, &Linear)| {
            let x = x.narrow(1, head, 1)?.squeeze(1)?.contiguous()?;
            matrix.forward(&x, Prologue::None)
        };
        let all = matrices.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&all, 1)?.contiguous()?)
    }
}
