// performance-critical: no allocation per token, no lock, no log, no format
//! The encoder that BERT, RoBERTa, XLM-RoBERTa, ModernBERT and Nomic's BERT share (arXiv 1810.04805): layers of
//! attention in both directions and a feed-forward block. Positions and token types are learned, or queries and keys
//! turn; norms stand behind each residual, or before each block.

use candle_core::{Device, Tensor};
use sconce_kernels::{Prologue, RopeTable, Weight, bidirectional_attention, rotate_encoder};

use super::{Embedder, EmbedderSpec, Pooling, TextBatch, check_batch};
use crate::error::Result;
use crate::layers::{Linear, Norm, Sum};

pub(crate) struct EncoderLayer {
    pub attention_norm: Norm,
    /// Query above key above value. `[3 * hidden, hidden]`
    pub qkv: Linear,
    pub rope: Option<RopeTable>,
    /// Positions that a token sees on either side; all of them where there is none.
    pub reach: Option<u32>,
    /// `[hidden, hidden]`
    pub output: Linear,
    pub norm: Norm,
    /// `[ffn, hidden]`, or what is activated above what it gates.
    pub wide: Linear,
    /// `[hidden, ffn]`
    pub down: Linear,
}

/// Where the two norms of a layer stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// Before attention and before the feed-forward block.
    Before,
    /// Behind each of them, its residual added.
    Behind,
}

/// `out(norm(activation(dense(pooled))))`
pub(crate) struct ScoreHead {
    /// `[hidden, hidden]`
    pub dense: Linear,
    pub activation: ScoreActivation,
    pub norm: Norm,
    /// `[1, hidden]`
    pub out: Linear,
}

#[derive(Clone, Copy)]
pub(crate) enum ScoreActivation {
    Tanh,
    Gelu,
}

impl ScoreHead {
    fn forward(&self, pooled: &Tensor) -> Result<Tensor> {
        let dense = self.dense.forward(pooled, Prologue::None)?;
        let active = match self.activation {
            ScoreActivation::Tanh => dense.tanh()?,
            ScoreActivation::Gelu => dense.gelu_erf()?,
        };
        self.out.forward(&active, self.norm.before())
    }
}

/// What is made of the hidden states.
pub(crate) struct Head {
    pub pooling: Pooling,
    pub score: Option<ScoreHead>,
}

pub(crate) struct Encoder {
    pub spec: EmbedderSpec,
    pub hidden: usize,
    pub heads: usize,
    pub place: NormPlace,
    /// Between the halves of the feed-forward blocks.
    pub wide: Prologue<'static>,
    /// `[vocab, hidden]`, mapped: a text reads a few rows of it.
    pub words: Weight,
    /// `[positions, hidden]`; empty where queries and keys turn.
    pub positions: Vec<f32>,
    /// Place of the first token's position in the table.
    pub offset: usize,
    /// The id whose tokens stand at the position of that number and are not counted (RoBERTa).
    pub padding: Option<u32>,
    /// `[types, hidden]`; empty where tokens have none.
    pub types: Vec<f32>,
    pub embedding_norm: Norm,
    pub layers: Vec<EncoderLayer>,
    pub final_norm: Norm,
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
        let pooling = self.head.pooling;
        let hidden = self.layers(batch, pooling)?;
        let is_pooled = pooling.only_token(0, 1).is_some();
        let values = match (&self.head.score, is_pooled) {
            (None, true) => hidden,
            (None, false) => {
                pooling.pool(&hidden.flatten_all()?.to_vec1::<f32>()?, &batch.row_ends, self.hidden, out);
                return Ok(());
            }
            (Some(head), true) => head.forward(&hidden)?,
            (Some(head), false) => {
                let mut pooled = Vec::with_capacity(batch.row_ends.len() * self.hidden);
                pooling.pool(&hidden.flatten_all()?.to_vec1::<f32>()?, &batch.row_ends, self.hidden, &mut pooled);
                head.forward(&Tensor::from_vec(pooled, (batch.row_ends.len(), self.hidden), hidden.device())?)?
            }
        };
        out.extend(values.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }
}

impl Encoder {
    /// The last hidden states: of every token, or `[rows, hidden]` where the pooling takes one of them.
    fn layers(&self, batch: &TextBatch, pooling: Pooling) -> Result<Tensor> {
        const NONE: Norm = Norm::None;
        let mut x = self.embedding_norm.forward(&self.embed(batch)?)?;
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            let norms = (&layer.attention_norm, &layer.norm);
            let (before, behind) = match self.place {
                NormPlace::Before => (norms, (&NONE, &NONE)),
                NormPlace::Behind => ((&NONE, &NONE), norms),
            };
            let mut qkv = layer.qkv.forward(&x, before.0.before())?;
            if let Some(table) = &layer.rope {
                qkv = rotate_encoder(&qkv, &batch.row_ends, self.heads, table)?;
            }
            let mut seen = bidirectional_attention(&qkv, &batch.row_ends, self.heads, layer.reach)?;
            if index == last {
                // Behind the last attention no token looks at another: go on with those that are pooled.
                (seen, x) = (pooled_rows(&seen, batch, pooling)?, pooled_rows(&x, batch, pooling)?);
            }
            let attended = behind.0.forward(&layer.output.add_to(Sum::plain(&x), &seen, Prologue::None)?)?;
            let wide = layer.wide.forward(&attended, before.1.before())?;
            x = behind.1.forward(&layer.down.add_to(Sum::plain(&attended), &wide, self.wide)?)?;
        }
        self.final_norm.forward(&x)
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
                if let Some(place) = self.positions.get(at * hidden..(at + 1) * hidden) {
                    row.iter_mut().zip(place).for_each(|(value, place)| *value += place);
                }
                if let Some(kind) = self.types.get(kind * hidden..(kind + 1) * hidden) {
                    row.iter_mut().zip(kind).for_each(|(value, kind)| *value += kind);
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
