//! Models that turn a text into one vector, or a pair of texts into one score: what they are and what they take.
//!
//! Two kinds: encoders that see a text in both directions (`encoder.rs`), and decoders whose last hidden states are
//! pooled (`causal.rs`). Invariant: a sequence's result is the same bit for bit in whatever batch it is computed.

mod assemble;
mod causal;
mod config;
mod encoder;
mod from_gguf;
mod judge;
mod names;
mod pooling;
mod sentence;
mod younger;

use crate::error::{Error, Result};
use crate::gguf;
use crate::load::{Progress, Source, open_source};
use crate::names::Naming;
use crate::safetensors;
use config::Class;

pub(crate) use config::supported_classes;
pub use pooling::Pooling;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Text that goes on: the models of [`crate::load()`].
    Generate,
    /// A vector for a text.
    Embed,
    /// A score for a pair of texts.
    Score,
}

/// What comes out of an embedder, before anything is done that a request may decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A vector a text; `normalize` says whether the model's own pipeline brings it to length 1.
    Embedding { normalize: bool },
    /// One logit a pair; `sigmoid` says whether the model's own pipeline makes a score from 0 to 1 of it.
    Score { sigmoid: bool },
}

/// What an embedder is: read from its files, checked once, trusted afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedderSpec {
    /// The Hugging Face class, or the GGUF `general.architecture`.
    pub architecture: String,
    pub output: Output,
    pub pooling: Pooling,
    pub layers: usize,
    /// Values that come out for a sequence: the vector's size, or 1 for a score.
    pub width: usize,
    pub vocab: usize,
    /// Kinds of tokens (first text, second text): token types must be below it.
    pub types: usize,
    /// Longest sequence, special tokens included.
    pub tokens_max: u32,
    /// The model's pipeline makes texts lower case before they are tokenised.
    pub lower_case: bool,
    /// A decoder that scores a pair by how likely its next token is "yes" and not "no": pairs come in a prompt.
    pub judges: bool,
    pub weight_format: String,
    pub parameters: u64,
    pub weight_bytes: u64,
    /// Activations of one token while it is computed.
    pub step_bytes_per_token: u64,
}

/// Whole sequences without padding, one row each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextBatch {
    /// Token ids. `[tokens]`
    pub tokens: Vec<u32>,
    /// Token types, 0 for a single text. `[tokens]`
    pub types: Vec<u32>,
    /// Exclusive end of each row in `tokens`. `[rows]`
    pub row_ends: Vec<u32>,
}

impl TextBatch {
    /// Empties every array and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.types.clear();
        self.row_ends.clear();
    }

    /// Adds a row; `types` may be empty where all are 0.
    pub fn push(&mut self, tokens: &[u32], types: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.types.extend_from_slice(types);
        self.types.resize(self.tokens.len(), 0);
        self.row_ends.push(self.tokens.len() as u32);
    }
}

/// A loaded embedder.
pub trait Embedder: Send {
    fn spec(&self) -> &EmbedderSpec;

    /// One vector a row into `out`, which is resized to `[rows, width]`. A batch that contradicts itself is refused
    /// before anything is computed.
    fn forward(&mut self, batch: &TextBatch, out: &mut Vec<f32>) -> Result<()>;
}

/// How an embedder is to be read from its files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EmbedderOptions {
    /// Take the usual pooling where no sentence-transformers file says which: the mean for encoders, the last token for
    /// decoders, both brought to length 1.
    pub usual_pooling: bool,
    /// Longest sequence to be asked for, where less than the model takes is enough.
    pub tokens_max: Option<u32>,
    /// A decoder is to score pairs by the logits of "yes" and "no" (Qwen3-Reranker).
    pub judge: bool,
}

/// What a model's files say it is for. Reads headers only.
pub fn read_purpose(source: &Source) -> Result<Purpose> {
    match source {
        Source::Dummy(_) => Ok(Purpose::Generate),
        Source::Gguf(path) => {
            let header = gguf::read_header(path)?;
            match from_gguf::class(&header) {
                Some(Class { scores: true, .. }) => Ok(Purpose::Score),
                Some(_) => Ok(Purpose::Embed),
                None if from_gguf::ranks(&header) => Ok(Purpose::Score),
                None if from_gguf::pooling(&header, path)?.is_some() => Ok(Purpose::Embed),
                None => Ok(Purpose::Generate),
            }
        }
        Source::Folder(folder) => {
            let class = config::read(folder)?.class();
            match class {
                Some(Class { scores: true, .. }) => Ok(Purpose::Score),
                Some(_) => Ok(Purpose::Embed),
                None if judge::answers_of_modules(folder)?.is_some() => Ok(Purpose::Score),
                None if sentence::exists(folder) => Ok(Purpose::Embed),
                None => Ok(Purpose::Generate),
            }
        }
    }
}

/// Reads an embedder's headers: fast, whatever the size of the weights.
pub fn read_embedder_spec(source: &Source, options: EmbedderOptions) -> Result<EmbedderSpec> {
    match plan(source, options)? {
        Plan::Encoder(plan) => Ok(plan.spec),
        Plan::Causal(plan) => Ok(plan.spec),
    }
}

pub(crate) enum Plan {
    Encoder(Box<assemble::EncoderPlan>),
    Causal(Box<causal::CausalPlan>),
}

/// Everything that is known before weights are read.
pub(crate) fn plan(source: &Source, options: EmbedderOptions) -> Result<Plan> {
    if let Source::Folder(folder) = source {
        let config = config::read(folder)?;
        if let Some(class) = config.class() {
            let sentence = sentence::read(folder, options, Pooling::Mean, class.scores)?;
            let tensors = safetensors::open(folder, Naming::HuggingFace(&[]))?;
            let checked = config.checked(class)?;
            let described = assemble::Described { file: config.path, class, config: checked, sentence, tensors };
            let plan = assemble::EncoderPlan::new(described, options)?;
            return Ok(Plan::Encoder(Box::new(plan)));
        }
    }
    if let Some(plan) = judge::plan(source, options)? {
        return Ok(Plan::Causal(Box::new(plan)));
    }
    let sentence = match source {
        Source::Folder(folder) => sentence::read(folder, options, Pooling::LastToken, false)?,
        Source::Dummy(_) => sentence::Sentence::usual(Pooling::LastToken),
        Source::Gguf(path) => {
            let header = gguf::read_header(path)?;
            if let Some(class) = from_gguf::class(&header) {
                let described = from_gguf::describe(path, class, options)?;
                return Ok(Plan::Encoder(Box::new(assemble::EncoderPlan::new(described, options)?)));
            }
            sentence::Sentence::usual(from_gguf::pooling(&header, path)?.unwrap_or(Pooling::LastToken))
        }
    };
    let (spec, weights) = open_source(source, true)?;
    Ok(Plan::Causal(Box::new(causal::CausalPlan::new((spec, weights), sentence, options, None)?)))
}

impl Plan {
    pub fn spec(&self) -> &EmbedderSpec {
        match self {
            Self::Encoder(plan) => &plan.spec,
            Self::Causal(plan) => &plan.spec,
        }
    }

    pub fn load(
        self,
        device: candle_core::Device,
        precision: sconce_kernels::Precision,
        progress: Progress,
    ) -> Result<Box<dyn Embedder>> {
        match self {
            Self::Encoder(plan) => Ok(Box::new(plan.load(device, precision, progress)?)),
            Self::Causal(plan) => Ok(Box::new(plan.load(device, precision, progress)?)),
        }
    }
}

/// The contract of a batch, checked before anything is computed.
pub(crate) fn check_batch(batch: &TextBatch, spec: &EmbedderSpec) -> Result<()> {
    let fault = |fault: String| Err(Error::Batch(fault));
    let tokens = batch.tokens.len();
    if batch.types.len() != tokens || batch.row_ends.last().map_or(0, |&end| end as usize) != tokens {
        let (types, end) = (batch.types.len(), batch.row_ends.last());
        return fault(format!("{tokens} tokens with {types} types, and rows that end at {end:?}"));
    }
    let mut start = 0;
    for (row, &end) in batch.row_ends.iter().enumerate() {
        if end <= start || end - start > spec.tokens_max {
            return fault(format!("row {row} is {start} to {end}, expected 1 to {} tokens", spec.tokens_max));
        }
        start = end;
    }
    if let Some(token) = batch.tokens.iter().find(|&&token| token as usize >= spec.vocab) {
        return fault(format!("token {token} is outside the vocabulary of {}", spec.vocab));
    }
    match batch.types.iter().find(|&&kind| kind as usize >= spec.types) {
        Some(kind) => fault(format!("token type {kind} in a model of {}", spec.types)),
        None => Ok(()),
    }
}
