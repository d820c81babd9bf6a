//! A layer of latent attention. What heads make of the latent is split into a matrix a head, and the half that makes keys
//! is turned around, so that it can be applied to queries.

use sconce_kernels::Weight;

use super::{Assembler, Parts, Place, Plan, WeightSource};
use crate::error::Result;
use crate::layers::{LatentAttention, Linear, RmsNorm};
use crate::names::{Expert, LayerPart, Part};
use crate::spec::Latent;

const QUERY_DOWN: Parts = (LayerPart::QueryDown, LayerPart::QueryDownBias);
const LATENT: Parts = (LayerPart::Latent, LayerPart::LatentBias);
// These two have no biases in any family; the second name is never asked for.
const QUERY: Parts = (LayerPart::Query, LayerPart::QueryBias);
const QUERY_UP: Parts = (LayerPart::QueryUp, LayerPart::QueryUp);
const OUTPUT: Parts = (LayerPart::Output, LayerPart::OutputBias);

/// A matrix for each head.
type Heads<P> = Vec<Linear<<P as Place>::Matrix>>;

impl<P: Place> Assembler<'_, P> {
    pub(super) fn latent_attention(&mut self, plan: &Plan, index: usize) -> Result<LatentAttention<P::Matrix>> {
        let spec = plan.spec;
        let sizes = spec.latent.expect("only layers of latent attention are built here");
        let part = |part| Part::Layer(index, part);
        let queries = spec.heads * sizes.query();
        let (down, query_up) = match sizes.query_rank {
            None => (self.linear(index, &[(QUERY, queries), (LATENT, sizes.width())], spec.hidden, false)?, None),
            Some(rank) => {
                let parts = [(QUERY_DOWN, rank), (LATENT, sizes.width())];
                let down = self.linear(index, &parts, spec.hidden, spec.qkv_bias)?;
                let weight = self.vector(part(LayerPart::QueryDownNorm), rank)?;
                let norm = RmsNorm { weight, eps: sizes.norm_eps };
                (down, Some((norm, self.linear(index, &[(QUERY_UP, queries)], rank, false)?)))
            }
        };
        let weight = self.vector(part(LayerPart::LatentNorm), sizes.rank)?;
        let (key, value) = self.of_heads(index, &sizes, spec.heads)?;
        Ok(LatentAttention {
            norm: self.norm(plan, part(LayerPart::AttentionNorm), part(LayerPart::AttentionNormBias))?,
            down,
            query_up,
            latent_norm: RmsNorm { weight, eps: sizes.norm_eps },
            key,
            value,
            output: self.linear(index, &[(OUTPUT, spec.hidden)], spec.heads * sizes.value, spec.output_bias)?,
            join: self.join(plan, None)?,
            rope_table: plan.rope_table(index),
            sizes,
            scale: spec.scales.attention,
        })
    }

    /// What a head multiplies its query with, `[rank, plain]`, and what it has seen, `[value, rank]`.
    fn of_heads(&mut self, index: usize, sizes: &Latent, heads: usize) -> Result<(Heads<P>, Heads<P>)> {
        let Latent { rank, plain, value, .. } = *sizes;
        let both = Part::Layer(index, LayerPart::LatentUp);
        if !matches!(&self.source, WeightSource::Files(tensors) if !tensors.has(both)) {
            let all = self.matrix(both, heads * (plain + value), rank)?;
            let (mut keys, mut values) = (Vec::with_capacity(heads), Vec::with_capacity(heads));
            for first in (0..heads).map(|head| head * (plain + value)) {
                keys.push(self.of_head(&all.rows(first, plain).transposed()?)?);
                values.push(self.of_head(&all.rows(first + plain, value))?);
            }
            self.is_read(both, &all);
            return Ok((keys, values));
        }
        let (mut keys, mut values) = (Vec::with_capacity(heads), Vec::with_capacity(heads));
        for head in 0..heads {
            let head = Expert { index: head, of: heads };
            for (part, out, input, all) in [
                (LayerPart::LatentKey(head), rank, plain, &mut keys),
                (LayerPart::LatentValue(head), value, rank, &mut values),
            ] {
                let part = Part::Layer(index, part);
                let weight = self.matrix(part, out, input)?;
                all.push(self.of_head(&weight)?);
                self.is_read(part, &weight);
            }
        }
        Ok((keys, values))
    }

    fn of_head(&mut self, weight: &Weight) -> Result<Linear<P::Matrix>> {
        // Which a place may want to lay together, as it does experts.
        Ok(Linear { weight: self.place.expert(&[weight])?, bias: None })
    }
}
