//! One layer: attention and feed-forward with the norms where the family has them.

use candle_core::{DType, Tensor};
use sconce_kernels::RopeTable;

use super::{Assembler, Parts, Place, Plan, activation};
use crate::decoder::{FeedForward, Layer};
use crate::error::Result;
use crate::layers::{Attention, HeadNormWeights, Linear, Mixer, Mlp, Norm};
use crate::names::{LayerPart, Part};
use crate::spec::{CacheKind, KvHeads, Norms, QkNorm, RopeSpec};

const QUERY: Parts = (LayerPart::Query, LayerPart::QueryBias);
const KEY: Parts = (LayerPart::Key, LayerPart::KeyBias);
const VALUE: Parts = (LayerPart::Value, LayerPart::ValueBias);
/// Tensors that hold several projections have no biases in any family.
const QKV: Parts = (LayerPart::Qkv, LayerPart::QueryBias);
const OUTPUT: Parts = (LayerPart::Output, LayerPart::OutputBias);
const GATE: Parts = (LayerPart::Gate, LayerPart::GateBias);
const UP: Parts = (LayerPart::Up, LayerPart::UpBias);
const GATE_UP: Parts = (LayerPart::GateUp, LayerPart::GateBias);
const DOWN: Parts = (LayerPart::Down, LayerPart::DownBias);

impl<P: Place> Assembler<'_, P> {
    pub(super) fn layer(&mut self, plan: &Plan, index: usize) -> Result<Layer<P::Matrix>> {
        let attention = if plan.spec.latent.is_some() {
            Mixer::Latent(self.latent_attention(plan, index)?)
        } else if let Some(sizes) = plan.spec.delta_of(index) {
            Mixer::Delta(self.delta_rule(plan, index, &sizes)?)
        } else if plan.spec.convolves(index) {
            Mixer::Convolution(self.short_convolution(plan, index)?)
        } else {
            Mixer::Attention(self.attention(plan, index)?)
        };
        let mlp = match plan.spec.experts_of(index) {
            Some(experts) => FeedForward::Experts(self.experts(plan, index, experts)?),
            None => FeedForward::Dense(self.mlp(plan, index)?),
        };
        let own_input = self.own_input(plan, index)?;
        let scale = self.layer_scale(plan, index)?;
        Ok(Layer { attention, mlp, is_parallel: plan.spec.norms == Norms::Shared, own_input, scale })
    }

    fn attention(&mut self, plan: &Plan, index: usize) -> Result<Attention<P::Matrix>> {
        let spec = plan.spec;
        let KvHeads { kv_heads, head_dim } = spec.kv_heads_of(index);
        let part = |part| Part::Layer(index, part);
        let norm = match spec.norms {
            Norms::After => Norm::None,
            _ => self.norm(plan, part(LayerPart::AttentionNorm), part(LayerPart::AttentionNormBias))?,
        };
        let post_norm = matches!(spec.norms, Norms::After | Norms::Around);
        let sinks = if spec.sinks { Some(self.vector(part(LayerPart::Sinks), spec.heads)?.to_vec1()?) } else { None };
        let (qkv, gate) = match spec.uneven.output_gate {
            true => self.gated_qkv(plan, index)?,
            false => (self.qkv(plan, index)?, None),
        };
        Ok(Attention {
            norm,
            qkv,
            gate,
            reads_only: matches!(spec.cache_of(index), CacheKind::Shared(_)),
            output: self.linear(index, &[(OUTPUT, spec.hidden)], spec.heads * head_dim, spec.output_bias)?,
            join: self.join(plan, post_norm.then_some(part(LayerPart::AttentionPostNorm)))?,
            head_norms: self.head_norms(plan, index)?,
            rope_table: plan.rope_table(index),
            heads: spec.heads,
            kv_heads,
            head_dim,
            scale: spec.scales.attention,
            window: spec.window(index),
            softcap: spec.scales.attention_cap,
            sinks,
        })
    }

    fn qkv(&mut self, plan: &Plan, index: usize) -> Result<Linear<P::Matrix>> {
        let spec = plan.spec;
        let KvHeads { kv_heads, head_dim } = spec.kv_heads_of(index);
        let (queries, kvs) = (spec.heads * head_dim, kv_heads * head_dim);
        if matches!(spec.cache_of(index), CacheKind::Shared(_)) {
            return self.linear(index, &[(QUERY, queries)], spec.hidden, spec.qkv_bias);
        }
        if plan.traits.fused_qkv {
            return self.linear(index, &[(QKV, queries + 2 * kvs)], spec.hidden, false);
        }
        let keys_are_values = spec.uneven.global_keys_are_values && spec.window(index).is_none();
        let value = if keys_are_values { KEY } else { VALUE };
        self.linear(index, &[(QUERY, queries), (KEY, kvs), (value, kvs)], spec.hidden, spec.qkv_bias)
    }

    fn head_norms(&mut self, plan: &Plan, index: usize) -> Result<Option<HeadNormWeights>> {
        let KvHeads { kv_heads, head_dim } = plan.spec.kv_heads_of(index);
        let (queries, keys) = match plan.spec.qk_norm {
            QkNorm::None => return Ok(None),
            QkNorm::Heads => (head_dim, head_dim),
            QkNorm::Width => (plan.spec.heads * head_dim, kv_heads * head_dim),
            QkNorm::RotatedHeads if plan.spec.rope_of(index).is_none() => return Ok(None),
            QkNorm::RotatedHeads => {
                // Rotation keeps the length of a head, so it does not matter which of the two comes first.
                let ones = Tensor::ones(head_dim, DType::F32, &self.device)?;
                let (query, key) = (ones.clone(), ones);
                return Ok(Some(HeadNormWeights { query, key, value: None, eps: plan.spec.norm_eps }));
            }
        };
        let query = self.norm_weight(plan, Part::Layer(index, LayerPart::QueryNorm), queries)?;
        let key = match plan.spec.cache_of(index) {
            CacheKind::Shared(_) => query.clone(),
            _ => self.norm_weight(plan, Part::Layer(index, LayerPart::KeyNorm), keys)?,
        };
        let value =
            plan.spec.uneven.value_norm.then(|| Tensor::ones(head_dim, DType::F32, &self.device)).transpose()?;
        Ok(Some(HeadNormWeights { query, key, value, eps: plan.spec.norm_eps }))
    }

    fn mlp(&mut self, plan: &Plan, index: usize) -> Result<Mlp<P::Matrix>> {
        let spec = plan.spec;
        let ffn = spec.ffn_of(index);
        let part = |part| Part::Layer(index, part);
        let norm = match spec.norms {
            Norms::After => Norm::None,
            Norms::Shared => self.norm(plan, part(LayerPart::AttentionNorm), part(LayerPart::AttentionNormBias))?,
            _ => self.norm(plan, part(LayerPart::MlpNorm), part(LayerPart::MlpNormBias))?,
        };
        let gate_up = match (spec.gated, plan.traits.fused_gate_up) {
            (true, true) => self.linear(index, &[(GATE_UP, 2 * ffn)], spec.hidden, false)?,
            (true, false) => self.linear(index, &[(GATE, ffn), (UP, ffn)], spec.hidden, spec.mlp_bias)?,
            (false, _) => self.linear(index, &[(UP, ffn)], spec.hidden, spec.mlp_bias)?,
        };
        let post_norm = matches!(spec.norms, Norms::After | Norms::Around);
        Ok(Mlp {
            norm,
            gate_up,
            down: self.linear(index, &[(DOWN, spec.hidden)], ffn, spec.mlp_bias)?,
            activation: activation(spec),
            join: self.join(plan, post_norm.then_some(part(LayerPart::MlpPostNorm)))?,
        })
    }
}

impl Plan<'_> {
    pub(super) fn rope_table(&self, index: usize) -> RopeTable {
        let is_local = |rope: &RopeSpec| self.spec.local_rope.as_ref().is_some_and(|local| std::ptr::eq(local, rope));
        match self.spec.rope_of(index) {
            None => self.no_rope.clone(),
            Some(rope) if is_local(rope) => self.local_rope.clone(),
            Some(_) => self.rope.clone(),
        }
    }
}
