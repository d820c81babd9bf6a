// performance-critical: no allocation per token, no lock, no log, no format
//! The decoder that all families share: embedding, layers of attention and feed-forward, norm, head.
//!
//! Residual blocks as in Llama (arXiv 2302.13971); where families differ, [`Spec`] has a switch, and `assemble` has put
//! other parts in the same places.

use candle_core::{Device, Tensor};
use sconce_kernels::{KvDtype, PackedWeight, embedding, scale_and_cap};

use std::sync::Arc;

use crate::Model;
use crate::adapter::{Adapter, AdapterId, AdapterSet};
use crate::batch::{BatchInput, Logits};
use crate::check::check_batch;
use crate::error::Result;
use crate::kv::KvCache;
use crate::layers::{Linear, Mixer, Mlp, Moe, Norm, OwnInput, OwnInputs, Step};
use crate::spec::Spec;
use crate::timing::{Operation, timed};

pub(crate) struct Layer<M = PackedWeight> {
    pub attention: Mixer<M>,
    pub mlp: FeedForward<M>,
    /// Attention and feed-forward look at the same hidden state, side by side.
    pub is_parallel: bool,
    pub own_input: Option<OwnInput<M>>,
    /// Factor on what the layer gives.
    pub scale: f64,
}

pub(crate) enum FeedForward<M = PackedWeight> {
    Dense(Mlp<M>),
    Experts(Moe<M>),
}

pub(crate) struct Decoder<M = PackedWeight> {
    pub spec: Spec,
    pub device: Device,
    /// `[vocab, hidden]`
    pub embedding: M,
    pub own_inputs: Option<OwnInputs<M>>,
    pub layers: Vec<Layer<M>>,
    pub final_norm: Norm,
    /// `[vocab, hidden]`; the embedding itself where the two are tied.
    pub head: Linear<M>,
    pub adapters: AdapterSet,
}

impl Model for Decoder {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn new_kv_cache(&self, blocks: u32, block_size: u32, dtype: KvDtype) -> Result<KvCache> {
        KvCache::new(&self.spec, blocks, block_size, dtype, &self.device)
    }

    fn set_adapter(&mut self, id: AdapterId, adapter: Option<Arc<Adapter>>) -> Result<()> {
        self.adapters.set(id, adapter, self.spec.layers)
    }

    fn forward(&self, batch: &BatchInput, kv: &mut KvCache, logits: &mut Logits) -> Result<()> {
        check_batch(batch, &self.spec, kv.sizes())?;
        for &(from, to) in &batch.state_copies {
            kv.layers.iter_mut().try_for_each(|cache| cache.copy_state(from, to))?;
        }
        logits.vocab = self.spec.vocab;
        logits.values.clear();
        if batch.tokens.is_empty() {
            return Ok(());
        }
        let Some(hidden) = self.hidden_of_samples(batch, kv)? else { return Ok(()) };
        timed(Operation::Logits, || {
            self.head.forward_into(&hidden, self.final_norm.before(), &mut logits.values)?;
            let scales = &self.spec.scales;
            if scales.logits != 1.0 || scales.logit_cap.is_some() {
                scale_and_cap(&mut logits.values, scales.logits, scales.logit_cap);
            }
            Ok(())
        })
    }
}

impl Decoder {
    /// Runs the layers. Hidden states of the sampled rows before the final norm, `[samples, hidden]`, or `None` without
    /// samples.
    pub(crate) fn hidden_of_samples(&self, batch: &BatchInput, kv: &mut KvCache) -> Result<Option<Tensor>> {
        // Without adapters nothing below takes another way.
        let all = self.adapters.runs(batch)?;
        let of_samples = all.as_ref().map(|runs| runs.sampled(&batch.sample_rows));
        // [tokens, hidden]
        let mut hidden = timed(Operation::Embedding, || embedding(&self.embedding, &batch.tokens, &self.device))?;
        if self.spec.scales.embedding != 1.0 {
            hidden = hidden.affine(self.spec.scales.embedding.into(), 0.0)?;
        }
        let mut own_inputs = match &self.own_inputs {
            Some(inputs) => Some(inputs.of(&batch.tokens, &hidden)?),
            None => None,
        };
        let last = self.layers.len() - 1;
        for (index, (layer, cache)) in self.layers.iter().zip(&mut kv.layers).enumerate() {
            let mut step = Step { batch, rope_style: self.spec.rope.style, layer: index, runs: all.as_ref() };
            let query = layer.attention.write(&hidden, &step, cache)?;
            if index == last && batch.sample_rows.is_empty() {
                return Ok(None);
            }
            let mut seen = layer.attention.attend(&query, &step, cache)?;
            if index == last {
                // Nothing after the last layer's attention looks at other tokens: go on with the sampled ones.
                seen = self.sampled_rows(&seen, batch)?;
                hidden = self.sampled_rows(&hidden, batch)?;
                step.runs = of_samples.as_ref();
                own_inputs = own_inputs.map(|inputs| self.sampled_rows(&inputs, batch)).transpose()?;
            }
            let attended = layer.attention.add_to(&hidden, &seen, &step)?;
            let input = if layer.is_parallel { &hidden } else { &attended };
            hidden = match &layer.mlp {
                FeedForward::Dense(mlp) => mlp.forward(input, &attended, &step)?,
                FeedForward::Experts(moe) => timed(Operation::Experts, || moe.forward(input, &attended))?,
            };
            if let (Some(own), Some(inputs)) = (&layer.own_input, &own_inputs) {
                hidden = own.add_to(&hidden, inputs)?;
            }
            if layer.scale != 1.0 {
                hidden = hidden.affine(layer.scale, 0.0)?;
            }
        }
        Ok(Some(hidden))
    }

    fn sampled_rows(&self, x: &Tensor, batch: &BatchInput) -> Result<Tensor> {
        if batch.sample_rows.len() == batch.tokens.len() {
            return Ok(x.clone());
        }
        let rows = Tensor::from_slice(&batch.sample_rows, batch.sample_rows.len(), &self.device)?;
        Ok(x.index_select(&rows, 0)?)
    }
}
