//! A decoder as an embedder: its last hidden states, normed, and pooled (Qwen3-Embedding and its like) or judged by
//! (Qwen3-Reranker, `judge.rs`).
//!
//! A sequence is computed whole, so K and V of a layer are needed only while that layer runs: all layers share one
//! layer's cache.

use candle_core::Device;
use sconce_kernels::{KvDtype, Precision};

use super::judge::Judge;
use super::sentence::Sentence;
use super::{Embedder, EmbedderOptions, EmbedderSpec, Output, TextBatch, check_batch};
use crate::assemble::{Assembler, OnCpu, WeightSource};
use crate::batch::BatchInput;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::kv::KvCache;
use crate::load::Progress;
use crate::spec::Spec;

/// Tokens in a block of the cache.
const BLOCK: u32 = 64;
/// Unless the operator asks for more: a text is computed in one step, and this many tokens are a step of seconds.
const TOKENS_MAX_USUAL: u32 = 8192;

/// Everything that is known of a decoder before its weights are read.
pub(crate) struct CausalPlan {
    pub spec: EmbedderSpec,
    decoder: Spec,
    weights: WeightSource,
    judge: Option<Judge>,
}

impl CausalPlan {
    pub(super) fn new(
        (decoder, weights): (Spec, WeightSource),
        sentence: Sentence,
        options: EmbedderOptions,
        judge: Option<Judge>,
    ) -> Result<Self> {
        if let Some(width) = sentence.width.filter(|width| *width != decoder.hidden) {
            let detail = format!("{} values a token, but the vectors that are pooled have {width}", decoder.hidden);
            return Err(Error::Config { file: "1_Pooling/config.json".into(), detail });
        }
        if decoder.uneven.delta.is_some() {
            let (file, feature) = (decoder.architecture.clone().into(), "vectors from a model with a recurrent state");
            let next = "use it to generate, without --task embed";
            return Err(Error::Unsupported { file, feature: feature.to_owned(), next });
        }
        let model_max = sentence.tokens_max.unwrap_or(u32::MAX).min(decoder.context_max).max(1);
        let spec = EmbedderSpec {
            architecture: decoder.architecture.clone(),
            output: match judge {
                Some(_) => Output::Score { sigmoid: true },
                None => Output::Embedding { normalize: sentence.normalize },
            },
            pooling: sentence.pooling,
            layers: decoder.layers,
            width: if judge.is_some() { 1 } else { decoder.hidden },
            vocab: decoder.vocab,
            types: 1,
            tokens_max: options.tokens_max.unwrap_or(TOKENS_MAX_USUAL).min(model_max),
            lower_case: sentence.lower_case,
            judges: judge.is_some(),
            weight_format: decoder.weight_format.clone(),
            parameters: decoder.parameters,
            weight_bytes: decoder.weight_bytes,
            step_bytes_per_token: 4
                * (4 * decoder.hidden + 3 * (decoder.query_width() + 2 * decoder.kv_width()) + 3 * decoder.ffn) as u64,
        };
        Ok(Self { spec, decoder, weights, judge })
    }

    pub(super) fn load(self, device: Device, precision: Precision, progress: Progress) -> Result<Causal> {
        let decoder = Assembler::new(self.weights, device, OnCpu::new(precision), progress)
            .decoder(self.decoder, self.spec.tokens_max)?;
        Ok(Causal { spec: self.spec, decoder, judge: self.judge, cache: None, batch: BatchInput::default() })
    }
}

pub(crate) struct Causal {
    spec: EmbedderSpec,
    decoder: Decoder,
    judge: Option<Judge>,
    /// As large as the largest batch so far.
    cache: Option<KvCache>,
    batch: BatchInput,
}

impl Embedder for Causal {
    fn spec(&self) -> &EmbedderSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &TextBatch, out: &mut Vec<f32>) -> Result<()> {
        check_batch(batch, &self.spec)?;
        out.clear();
        if batch.row_ends.is_empty() {
            return Ok(());
        }
        let blocks = self.fill(batch);
        let pooling = self.spec.pooling;
        if self.cache.as_ref().is_none_or(|cache| cache.blocks() < blocks) {
            // The old one goes first.
            self.cache = None;
            self.cache = Some(KvCache::shared(&self.decoder.spec, blocks, BLOCK, KvDtype::F32, &self.decoder.device)?);
        }
        let Some(cache) = &mut self.cache else { return Ok(()) };
        let Some(hidden) = self.decoder.hidden_of_samples(&self.batch, cache)? else { return Ok(()) };
        let hidden = self.decoder.final_norm.forward(&hidden)?;
        let values = hidden.flatten_all()?.to_vec1::<f32>()?;
        match (&self.judge, pooling.only_token(0, 1)) {
            (Some(judge), _) => judge.scores(&values, &self.decoder.spec.scales, out),
            (None, Some(_)) => out.extend(values),
            (None, None) => pooling.pool(&values, &batch.row_ends, self.spec.width, out),
        }
        Ok(())
    }
}

impl Causal {
    /// The decoder's batch: every row a whole prompt in blocks of its own. Gives the number of blocks.
    fn fill(&mut self, texts: &TextBatch) -> u32 {
        let input = &mut self.batch;
        input.clear();
        input.tokens.extend_from_slice(&texts.tokens);
        let (mut start, mut blocks) = (0, 0);
        for &end in &texts.row_ends {
            let len = end - start;
            input.positions.extend(0..len);
            input.slots.extend(blocks * BLOCK..blocks * BLOCK + len);
            input.row_ends.push(end);
            input.context_lens.push(len);
            input.block_tables.extend(blocks..blocks + len.div_ceil(BLOCK));
            input.block_table_ends.push(input.block_tables.len() as u32);
            match self.spec.pooling.only_token(start, end) {
                Some(token) => input.sample_rows.push(token),
                None => input.sample_rows.extend(start..end),
            }
            blocks += len.div_ceil(BLOCK);
            start = end;
        }
        blocks
    }
}
