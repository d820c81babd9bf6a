//! A layer of the gated delta rule, and matrices whose rows files hold head by head.

use sconce_kernels::{DeltaSizes, Weight};

use super::{Assembler, Parts, Place, Plan, WeightSource};
use crate::error::Result;
use crate::layers::{DeltaMixer, Linear};
use crate::names::{DeltaPart, LayerPart, Part};

// It has no bias; the second name is never asked for.
const OUT: Parts = (LayerPart::Delta(DeltaPart::Out), LayerPart::Delta(DeltaPart::Out));

impl<P: Place> Assembler<'_, P> {
    pub(super) fn delta_rule(
        &mut self,
        plan: &Plan,
        index: usize,
        sizes: &DeltaSizes,
    ) -> Result<DeltaMixer<P::Matrix>> {
        let (spec, part) = (plan.spec, |part| Part::Layer(index, part));
        let is_gguf = matches!(&self.source, WeightSource::Files(tensors) if !tensors.is_hugging_face());
        let decay = self.vector(part(LayerPart::Delta(DeltaPart::Decay)), sizes.value_heads)?;
        Ok(DeltaMixer {
            norm: self.norm(plan, part(LayerPart::AttentionNorm), part(LayerPart::AttentionNormBias))?,
            input: self.delta_input(plan, index, sizes)?,
            taps: self.taps(part(LayerPart::Delta(DeltaPart::Taps)), sizes.mixed(), sizes.taps)?,
            // A GGUF's converter has done it already.
            decay: if is_gguf { decay } else { decay.exp()?.neg()? },
            decay_bias: self.vector(part(LayerPart::Delta(DeltaPart::DecayBias)), sizes.value_heads)?,
            head_norm: self.vector(part(LayerPart::Delta(DeltaPart::Norm)), sizes.value_dim)?,
            eps: spec.norm_eps,
            output: self.linear(index, &[(OUT, spec.hidden)], sizes.values(), false)?,
            join: self.join(plan, None)?,
        })
    }

    /// All that a layer projects, one below the other.
    fn delta_input(&mut self, plan: &Plan, index: usize, sizes: &DeltaSizes) -> Result<Linear<P::Matrix>> {
        let (hidden, part) = (plan.spec.hidden, |part| Part::Layer(index, part));
        let has = |one: DeltaPart| matches!(&self.source, WeightSource::Files(tensors) if tensors.has(part(LayerPart::Delta(one))));
        let each = sizes.value_heads / sizes.key_heads;
        let mixed_widths = [sizes.key_dim, sizes.key_dim, each * sizes.value_dim, each * sizes.value_dim];
        let (mixed, gate, heads) = (sizes.mixed(), sizes.values(), sizes.value_heads);
        // Tensors, their rows, and how wide each kind of rows is in a head where they stand head by head.
        let mut tensors: Vec<(DeltaPart, usize, &[usize])> = Vec::new();
        match has(DeltaPart::MixedAndGate) {
            true => tensors.push((DeltaPart::MixedAndGate, mixed + gate, &mixed_widths)),
            false => tensors.extend([(DeltaPart::Mixed, mixed, &[] as &[usize]), (DeltaPart::Gate, gate, &[])]),
        }
        let kept_widths = [each, each];
        match has(DeltaPart::WrittenAndKept) {
            true => tensors.push((DeltaPart::WrittenAndKept, 2 * heads, &kept_widths)),
            false => tensors.extend([(DeltaPart::Written, heads, &[] as &[usize]), (DeltaPart::Kept, heads, &[])]),
        }
        let parts: Vec<(Part, usize)> =
            tensors.iter().map(|(one, out, _)| (part(LayerPart::Delta(*one)), *out)).collect();
        if let Some(weight) = self.ready(&parts, hidden) {
            return Ok(Linear { weight, bias: None });
        }
        let mut read = Vec::new();
        let mut weights = Vec::new();
        for ((part, out), (_, _, widths)) in parts.iter().zip(tensors) {
            let all = self.matrix(*part, *out, hidden)?;
            match widths {
                [] => weights.push(all.clone()),
                widths => weights.extend(by_kind(&all, sizes.key_heads, widths)?),
            }
            read.push((*part, all));
        }
        let weight = self.place.matrix(&weights.iter().collect::<Vec<_>>())?;
        self.place.laid(&parts, &weight);
        read.iter().for_each(|(part, weight)| self.is_read(*part, weight));
        Ok(Linear { weight, bias: None })
    }

    /// Queries, keys and values of a layer of attention whose queries' matrix also has gates; and those.
    pub(super) fn gated_qkv(&mut self, plan: &Plan, index: usize) -> Result<WithGate<P::Matrix>> {
        let (spec, part) = (plan.spec, |part| Part::Layer(index, part));
        let (queries, kvs) = (spec.query_width(), spec.kv_width());
        // Half of the first tensor is in either.
        let in_qkv = [(part(LayerPart::Query), queries), (part(LayerPart::Key), kvs), (part(LayerPart::Value), kvs)];
        let in_gate = [(part(LayerPart::Query), queries)];
        if let Some(qkv) = self.ready(&in_qkv, spec.hidden)
            && let Some(gate) = self.ready(&in_gate, spec.hidden)
        {
            return Ok((Linear { weight: qkv, bias: None }, Some(Linear { weight: gate, bias: None })));
        }
        let both = self.matrix(part(LayerPart::Query), 2 * queries, spec.hidden)?;
        let key = self.matrix(part(LayerPart::Key), kvs, spec.hidden)?;
        let value = self.matrix(part(LayerPart::Value), kvs, spec.hidden)?;
        let halves = by_kind(&both, spec.heads, &[spec.head_dim, spec.head_dim])?;
        let qkv = self.place.matrix(&[&halves[0], &key, &value])?;
        let gate = self.place.matrix(&[&halves[1]])?;
        self.place.laid(&in_qkv, &qkv);
        self.place.laid(&in_gate, &gate);
        for (one, weight) in [(LayerPart::Query, &both), (LayerPart::Key, &key), (LayerPart::Value, &value)] {
            self.is_read(part(one), weight);
        }
        Ok((Linear { weight: qkv, bias: None }, Some(Linear { weight: gate, bias: None })))
    }
}

/// Queries, keys and values, and the gate of what attention gives where there is one.
pub(super) type WithGate<M> = (Linear<M>, Option<Linear<M>>);

/// A matrix whose rows stand head by head, `widths` of each kind in every head, as one matrix a kind.
fn by_kind(all: &Weight, heads: usize, widths: &[usize]) -> Result<Vec<Weight>> {
    let head: usize = widths.iter().sum();
    let mut start = 0;
    let mut kinds = Vec::with_capacity(widths.len());
    for &width in widths {
        let rows: Vec<Weight> = (0..heads).map(|index| all.rows(index * head + start, width)).collect();
        kinds.push(Weight::stacked(&rows)?);
        start += width;
    }
    Ok(kinds)
}
