//! Decoders that score a pair by their next token: the logit of "yes" less that of "no" behind a prompt that holds the
//! pair (Qwen3-Reranker, arXiv 2506.05176). Its sigmoid is the share of "yes" among the two.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::causal::CausalPlan;
use super::sentence::{self, Sentence};
use super::{EmbedderOptions, Pooling, from_gguf};
use crate::assemble::WeightSource;
use crate::error::{Error, Result, shown};
use crate::gguf;
use crate::load::{Source, open_source};
use crate::names::Part;
use crate::safetensors::read_text;
use crate::spec::{Scales, Spec};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// The tokens that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answers {
    yes: u32,
    no: u32,
}

/// Their rows of the head.
pub(super) struct Judge {
    /// `[hidden]`
    yes: Vec<f32>,
    /// `[hidden]`
    no: Vec<f32>,
}

impl Judge {
    /// One score for each of the hidden states `[rows, hidden]`.
    pub fn scores(&self, hidden: &[f32], scales: &Scales, out: &mut Vec<f32>) {
        let logit = |row: &[f32], weights: &[f32]| {
            let product: f64 = row.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let logit = product * f64::from(scales.logits);
            scales.logit_cap.map(f64::from).map_or(logit, |cap| (logit / cap).tanh() * cap)
        };
        out.extend(
            hidden.chunks_exact(self.yes.len()).map(|row| (logit(row, &self.yes) - logit(row, &self.no)) as f32),
        );
    }
}

/// The plan of a decoder that judges: because its files say so, or because the operator does.
pub(super) fn plan(source: &Source, options: EmbedderOptions) -> Result<Option<CausalPlan>> {
    let answers = match source {
        Source::Dummy(name) if options.judge => {
            let feature = "scoring pairs with made-up weights".to_owned();
            return Err(Error::Unsupported { file: name.into(), feature, next: "use a model" });
        }
        Source::Dummy(_) => None,
        Source::Folder(folder) => match answers_of_modules(folder)? {
            Some(answers) => Some(answers),
            None if options.judge => Some(answers_of_tokenizer(folder)?),
            None => None,
        },
        Source::Gguf(path) => {
            let header = gguf::read_header(path)?;
            if header.tensor(from_gguf::SCORE).is_some() && from_gguf::ranks(&header) {
                // The rows that the converter has taken from the head.
                Some(Answers { yes: 0, no: 1 })
            } else if options.judge || from_gguf::ranks(&header) {
                Some(answers_of_vocabulary(&header, path)?)
            } else {
                None
            }
        }
    };
    let Some(answers) = answers else { return Ok(None) };
    let (spec, weights) = open_source(source, true)?;
    let judge = judge(&spec, &weights, answers)?;
    let sentence = Sentence { normalize: false, ..Sentence::usual(Pooling::LastToken) };
    CausalPlan::new((spec, weights), sentence, options, Some(judge)).map(Some)
}

fn judge(spec: &Spec, weights: &WeightSource, answers: Answers) -> Result<Judge> {
    let WeightSource::Files(tensors) = weights else { unreachable!("what has answers has files") };
    let head = match tensors.get(from_gguf::SCORE) {
        Some(_) => tensors.named_matrix(from_gguf::SCORE, 2, spec.hidden)?,
        None if tensors.has(Part::Head) => tensors.matrix(Part::Head, spec.vocab, spec.hidden)?,
        None => tensors.matrix(Part::Embedding, spec.vocab, spec.hidden)?,
    };
    let row = |id: u32| {
        if id as usize >= head.out() {
            let detail = format!("token {id} is outside the vocabulary of {}", head.out());
            return Err(Error::Config { file: tensors.source.clone(), detail });
        }
        let mut row = vec![0.0; spec.hidden];
        head.row_f32(id as usize, &mut row);
        Ok(row)
    };
    Ok(Judge { yes: row(answers.yes)?, no: row(answers.no)? })
}

#[derive(Deserialize)]
struct LogitScore {
    true_token_id: u32,
    false_token_id: Option<u32>,
}

/// What sentence-transformers' files say, where they end with the module for this.
pub(super) fn answers_of_modules(folder: &Path) -> Result<Option<Answers>> {
    let Some(file) = sentence::module_config(folder, "LogitScore")? else { return Ok(None) };
    let config: LogitScore = sentence::parse(&file)?;
    match config.false_token_id {
        Some(no) => Ok(Some(Answers { yes: config.true_token_id, no })),
        None => Err(Error::Unsupported {
            file,
            feature: "a score of one token's logit (no false_token_id)".to_owned(),
            next: "use a reranker that compares two tokens",
        }),
    }
}

fn answers_of_tokenizer(folder: &Path) -> Result<Answers> {
    let file = folder.join(TOKENIZER);
    let text = read_text(&file, TOKENIZER_BYTES_MAX)?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| Error::Config { file: file.clone(), detail: shown(&error.to_string()) })?;
    let id = |word: &str| value["model"]["vocab"].get(word)?.as_u64().and_then(|id| u32::try_from(id).ok());
    answers(id, &file)
}

fn answers_of_vocabulary(header: &gguf::Header, file: &Path) -> Result<Answers> {
    let tokens = header.strings("tokenizer.ggml.tokens").unwrap_or_default();
    let id = |word: &str| tokens.iter().position(|token| token == word).and_then(|id| u32::try_from(id).ok());
    answers(id, file)
}

fn answers(id: impl Fn(&str) -> Option<u32>, file: &Path) -> Result<Answers> {
    let one = |word: &str| {
        let detail = format!("the vocabulary has no token {word:?}, by which a decoder scores pairs");
        id(word).ok_or_else(|| Error::Config { file: file.to_owned(), detail })
    };
    Ok(Answers { yes: one("yes")?, no: one("no")? })
}
