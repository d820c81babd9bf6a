// performance-critical: no allocation per token, no lock, no log, no format
//! The decoder that all families share: embedding, layers of attention and gated feed-forward, norm, head.
//!
//! Pre-norm residual blocks as in Llama (arXiv 2302.13971); where families differ, [`Spec`] has a switch.

use candle_core::{Device, Storage, Tensor};
use sconce_kernels::{RopeTable, Weight, add_rms_norm, embedding, rms_norm};

use crate::Model;
use crate::batch::{BatchInput, Logits};
use crate::check::check_batch;
use crate::error::{Error, Result};
use crate::kv::KvCache;
use crate::layers::{Attention, Linear, Mlp, Step};
use crate::spec::Spec;

pub(crate) struct Layer {
    /// `[hidden]`
    pub attention_norm: Tensor,
    pub attention: Attention,
    /// `[hidden]`
    pub mlp_norm: Tensor,
    pub mlp: Mlp,
}

pub(crate) struct Decoder {
    pub spec: Spec,
    pub device: Device,
    /// `[vocab, hidden]`
    pub embedding: Weight,
    pub layers: Vec<Layer>,
    /// `[hidden]`
    pub final_norm: Tensor,
    /// `[vocab, hidden]`; the embedding itself where the two are tied.
    pub head: Linear,
    pub rope_table: RopeTable,
}

impl Model for Decoder {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn new_kv_cache(&self, blocks: u32, block_size: u32) -> Result<KvCache> {
        KvCache::new(&self.spec, blocks, block_size, &self.device)
    }

    fn forward(&self, batch: &BatchInput, kv: &mut KvCache, logits: &mut Logits) -> Result<()> {
        check_batch(batch, &self.spec, kv)?;
        logits.vocab = self.spec.vocab;
        logits.values.clear();
        if batch.tokens.is_empty() {
            return Ok(());
        }
        match self.hidden_of_samples(batch, kv)? {
            Some(normed) => copy_into(&self.head.forward(&normed)?, &mut logits.values),
            None => Ok(()),
        }
    }
}

impl Decoder {
    /// Runs the layers. Final-normed hidden states of the sampled rows, `[samples, hidden]`, or `None` without samples.
    fn hidden_of_samples(&self, batch: &BatchInput, kv: &mut KvCache) -> Result<Option<Tensor>> {
        let eps = self.spec.norm_eps;
        let step = Step { batch, rope_table: &self.rope_table, rope_style: self.spec.rope.style };
        // [tokens, hidden]
        let mut hidden = embedding(&self.embedding, &batch.tokens, &self.device)?;
        let mut normed = rms_norm(&hidden, &self.layers[0].attention_norm, eps)?;
        for (index, (layer, cache)) in self.layers.iter().zip(&mut kv.layers).enumerate() {
            layer.attention.write(&normed, &step, cache)?;
            let next_layer = self.layers.get(index + 1);
            if next_layer.is_none() && batch.sample_rows.is_empty() {
                return Ok(None);
            }
            let mut seen = layer.attention.attend(&normed, &step, cache)?;
            if next_layer.is_none() {
                // Nothing after the last layer's attention looks at other tokens: go on with the sampled ones.
                seen = self.sampled_rows(&seen, batch)?;
                hidden = self.sampled_rows(&hidden, batch)?;
            }
            let mixed = layer.attention.output.forward(&seen)?;
            (normed, hidden) = add_rms_norm(&mixed, &hidden, &layer.mlp_norm, eps)?;
            let mlp = layer.mlp.forward(&normed)?;
            let next_norm = next_layer.map_or(&self.final_norm, |layer| &layer.attention_norm);
            (normed, hidden) = add_rms_norm(&mlp, &hidden, next_norm, eps)?;
        }
        Ok(Some(normed))
    }

    fn sampled_rows(&self, x: &Tensor, batch: &BatchInput) -> Result<Tensor> {
        if batch.sample_rows.len() == batch.tokens.len() {
            return Ok(x.clone());
        }
        let rows = Tensor::from_slice(&batch.sample_rows, batch.sample_rows.len(), &self.device)?;
        Ok(x.index_select(&rows, 0)?)
    }
}

/// Copies a contiguous f32 tensor out of the tensor library without a vector in between.
fn copy_into(x: &Tensor, values: &mut Vec<f32>) -> Result<()> {
    let (storage, layout) = x.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        values.extend(x.flatten_all()?.to_vec1::<f32>()?);
        return Ok(());
    };
    values.extend_from_slice(&storage.as_slice::<f32>().map_err(Error::Candle)?[start..end]);
    Ok(())
}
