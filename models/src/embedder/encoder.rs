// performance-critical: no allocation per token, no lock, no log, no format
//! The encoder that BERT, RoBERTa and XLM-RoBERTa share (arXiv 1810.04805): learned positions and token types, layers of
//! attention in both directions and a feed-forward block, each with its residual normed behind it.

use candle_core::{Device, Tensor};
use sconce_kernels::{Activation, Prologue, Weight, bidirectional_attention, layer_norm};

use super::{Embedder, EmbedderSpec, Pooling, TextBatch, check_batch};
use crate::error::Result;
use crate::layers::{Linear, Sum};

pub(crate) struct LayerNorm {
    /// `[hidden]`
    pub weight: Tensor,
    /// `[hidden]`
    pub bias: Tensor,
    pub eps: f32,
}

impl LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(layer_norm(x, &self.weight, &self.bias, self.eps)?)
    }
}

pub(crate) struct EncoderLayer {
    /// Query above key above value. `[3 * hidden, hidden]`
    pub qkv: Linear,
    /// `[hidden, hidden]`
    pub output: Linear,
    pub attention_norm: LayerNorm,
    /// `[ffn, hidden]`
    pub up: Linear,
    /// `[hidden, ffn]`
    pub down: Linear,
    pub norm: LayerNorm,
}

/// `out(tanh(dense(first token)))`
pub(crate) struct ScoreHead {
    /// `[hidden, hidden]`
    pub dense: Linear,
    /// `[1, hidden]`
    pub out: Linear,
}

pub(crate) enum Head {
    Pool(Pooling),
    Score(ScoreHead),
}

pub(crate) struct Encoder {
    pub spec: EmbedderSpec,
    pub hidden: usize,
    pub heads: usize,
    pub activation: Activation,
    /// `[vocab, hidden]`, mapped: a text reads a few rows of it.
    pub words: Weight,
    /// `[positions, hidden]`
    pub positions: Vec<f32>,
    /// Place of the first token's position in the table.
    pub offset: usize,
    /// The id whose tokens stand at the position of that number and are not counted (RoBERTa).
    pub padding: Option<u32>,
    /// `[types, hidden]`
    pub types: Vec<f32>,
    pub embedding_norm: LayerNorm,
    pub layers: Vec<EncoderLayer>,
    pub head: Head,
}

impl Embedder for Encoder {
    fn spec(&self) -> &EmbedderSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &TextBatch, out: &mut Vec<f32>) -> Result<()> {
        check_batch(batch, &self.spec)?;
        out.clear();
        if batch.row_ends.is_empty() {
            return Ok(());
        }
        let pooling = match &self.head {
            Head::Pool(pooling) => *pooling,
            Head::Score(_) => Pooling::Cls,
        };
        let hidden = self.layers(batch, pooling)?;
        match &self.head {
            Head::Score(head) => {
                let dense = head.dense.forward(&hidden, Prologue::None)?.tanh()?;
                let logits = head.out.forward(&dense, Prologue::None)?;
                out.extend(logits.flatten_all()?.to_vec1::<f32>()?);
            }
            Head::Pool(pooling) => {
                let values = hidden.flatten_all()?.to_vec1::<f32>()?;
                match pooling.only_token(0, 1) {
                    Some(_) => out.extend(values),
                    None => pooling.pool(&values, &batch.row_ends, self.hidden, out),
                }
            }
        }
        Ok(())
    }
}

impl Encoder {
    /// The last hidden states: of every token, or `[rows, hidden]` where the pooling takes one of them.
    fn layers(&self, batch: &TextBatch, pooling: Pooling) -> Result<Tensor> {
        let mut x = self.embedding_norm.forward(&self.embed(batch)?)?;
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            let qkv = layer.qkv.forward(&x, Prologue::None)?;
            let mut seen = bidirectional_attention(&qkv, &batch.row_ends, self.heads)?;
            if index == last {
                // Behind the last attention no token looks at another: go on with those that are pooled.
                (seen, x) = (pooled_rows(&seen, batch, pooling)?, pooled_rows(&x, batch, pooling)?);
            }
            let attended =
                layer.attention_norm.forward(&layer.output.add_to(Sum::plain(&x), &seen, Prologue::None)?)?;
            let wide = layer.up.forward(&attended, Prologue::None)?;
            let sum = layer.down.add_to(Sum::plain(&attended), &wide, Prologue::Activation(self.activation))?;
            x = layer.norm.forward(&sum)?;
        }
        Ok(x)
    }

    /// Sums of word, position and type. `[tokens, hidden]`
    fn embed(&self, batch: &TextBatch) -> Result<Tensor> {
        let hidden = self.hidden;
        let mut sums = vec![0.0; batch.tokens.len() * hidden];
        let mut start = 0;
        for &end in &batch.row_ends {
            let mut position = self.offset;
            for token in start..end as usize {
                let (id, kind) = (batch.tokens[token], batch.types[token] as usize);
                let row = &mut sums[token * hidden..(token + 1) * hidden];
                self.words.row_f32(id as usize, row);
                let at = match self.padding {
                    Some(padding) if padding == id => padding as usize,
                    _ => {
                        position += 1;
                        position - 1
                    }
                };
                let (place, kind) = (&self.positions[at * hidden..], &self.types[kind * hidden..]);
                for ((value, place), kind) in row.iter_mut().zip(place).zip(kind) {
                    *value += place + kind;
                }
            }
            start = end as usize;
        }
        Ok(Tensor::from_vec(sums, (batch.tokens.len(), hidden), &Device::Cpu)?)
    }
}

/// The rows that the pooling takes, where it takes one a sequence.
fn pooled_rows(x: &Tensor, batch: &TextBatch, pooling: Pooling) -> Result<Tensor> {
    let starts = std::iter::once(0).chain(batch.row_ends.iter().copied());
    let only: Option<Vec<u32>> =
        starts.zip(&batch.row_ends).map(|(start, &end)| pooling.only_token(start, end)).collect();
    match only {
        None => Ok(x.clone()),
        Some(rows) => Ok(x.index_select(&Tensor::from_vec(rows, batch.row_ends.len(), x.device())?, 0)?),
    }
}
