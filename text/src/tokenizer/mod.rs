//! Text to token ids and back, for one model.
//!
//! The merges run in the `tokenizers` library. What this module adds: pipelines from GGUF metadata, the exact bytes of
//! each token in one table, and decoding from that table where a model's decoder only joins bytes.

mod gguf;
mod pre;
mod special;
mod unigram;
mod vocab;
mod whole;

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer as Pipeline};

pub use gguf::GgufVocab;
pub use special::SpecialTokens;
pub(crate) use vocab::{Joining, Piece};
pub use whole::{Encoded, Excess};

use sconce_vocabulary::error::{Error, Result};
use vocab::Pieces;

/// Most tokens of a vocabulary; the largest known has 260,000. One absurd id must not become gigabytes of table.
const TOKENS_MAX: usize = 1 << 24;
/// Ids that a vocabulary may leave out: so many times its tokens, and some more.
const GAPS: (usize, usize) = (8, 1 << 14);

/// Vocabulary and rules of one model. Immutable; one `Arc` of it is shared by all requests.
pub struct Tokenizer {
    pipeline: Pipeline,
    pieces: Pieces,
    joining: Joining,
    /// Ids put around a text by `add_special`, where the pipeline has no post-processor of its own.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    bos: Option<u32>,
    eos: Vec<u32>,
    special: SpecialTokens,
}

impl Tokenizer {
    /// From the bytes of `tokenizer.json`.
    pub fn from_json(tokenizer_json: &[u8], special: &SpecialTokens) -> Result<Self> {
        let mut pipeline = read_pipeline(tokenizer_json)?;
        // Truncation and padding are settings of a training run; here they would silently change prompts.
        pipeline.with_truncation(None).map_err(|error| Error::internal(format!("tokenizer.json: {error}")))?;
        pipeline.with_padding(None);
        let known = pipeline.get_added_tokens_decoder();
        let missing: Vec<AddedToken> = special
            .names()
            .filter(|name| {
                pipeline.token_to_id(name).is_some_and(|id| known.get(&id).is_none_or(|token| !token.special))
            })
            .map(|name| AddedToken::from(name, true))
            .collect();
        pipeline.add_tokens(missing).map_err(|error| Error::internal(format!("tokenizer.json: {error}")))?;
        let id_of = |name: &Option<String>| name.as_deref().and_then(|name| pipeline.token_to_id(name));
        let bos = id_of(&special.bos);
        let mut eos: Vec<u32> = id_of(&special.eos).into_iter().collect();
        for id in &special.eos_ids {
            if !eos.contains(id) {
                eos.push(*id);
            }
        }
        let vocabulary = pipeline.get_vocab(true);
        let most = (vocabulary.len().saturating_mul(GAPS.0) + GAPS.1).min(TOKENS_MAX);
        let highest = vocabulary.into_values().max();
        let joining = joining_of(&pipeline)?;
        let len = highest.map_or(0, |id| id as usize + 1);
        if len > most {
            let message = format!("tokenizer.json: token id {} is beyond the limit of {most} for its tokens", len - 1);
            return Err(Error::internal(message + "; the file is damaged"));
        }
        let pieces = Pieces::collect(len, joining, &pipeline, |id| pipeline.id_to_token(id));
        let special = special.clone();
        Ok(Self { pipeline, pieces, joining, prefix: Vec::new(), suffix: Vec::new(), bos, eos, special })
    }

    /// From the metadata of a GGUF file.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self> {
        let gguf::Built { pipeline, prefix, suffix, eos } = gguf::build(&vocab)?;
        let joining = joining_of(&pipeline)?;
        let name = |id: Option<u32>| id.map(|id| vocab.tokens[id as usize].clone());
        let special = SpecialTokens {
            bos: name(vocab.bos),
            eos: name(vocab.eos),
            unk: name(vocab.unk),
            pad: name(vocab.pad),
            additional: Vec::new(),
            eos_ids: eos.clone(),
        };
        let bos = vocab.bos;
        let len = vocab.tokens.len();
        let mut tokens = vocab.tokens;
        let pieces = Pieces::collect(len, joining, &pipeline, |id| match joining {
            Joining::Library => pipeline.id_to_token(id),
            _ => Some(std::mem::take(&mut tokens[id as usize])),
        });
        Ok(Self { pipeline, pieces, joining, prefix, suffix, bos, eos, special })
    }

    /// `add_special` adds BOS and EOS where the model's own post-processor does. Special tokens that stand in the text
    /// are always recognised, as in transformers. For a rendered chat template pass `false`: the template writes them.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = fenced(|| self.pipeline.encode_fast(text, add_special))
            .map_err(|why| Error::internal(format!("the tokenizer failed on the prompt: {why}")))?;
        if !add_special || self.prefix.is_empty() && self.suffix.is_empty() {
            return Ok(encoding.get_ids().to_vec());
        }
        Ok([self.prefix.as_slice(), encoding.get_ids(), self.suffix.as_slice()].concat())
    }

    /// As `encode`, or `None` when the text has clearly more than `tokens_max` tokens: more than twice as many.
    ///
    /// The library takes some 200 bytes of memory a byte of text. A text that is refused for its length must not cost
    /// that, so beginnings of it are tried first; one has at most a few tokens more than it has inside the whole, where
    /// a merge spans the cut, hence the factor of two.
    pub fn encode_bounded(&self, text: &str, add_special: bool, tokens_max: usize) -> Result<Option<Vec<u32>>> {
        const BEGINNING_BYTES_MIN: usize = 64 * 1024;
        // Ordinary text has 3 to 5 bytes a token: a text that fits is rarely tried twice.
        let mut bytes = tokens_max.saturating_mul(8).max(BEGINNING_BYTES_MIN);
        while bytes < text.len() {
            let beginning = &text[..text.floor_char_boundary(bytes)];
            if self.encode(beginning, false)?.len() / 2 > tokens_max {
                return Ok(None);
            }
            bytes = bytes.saturating_mul(4);
        }
        self.encode(text, add_special).map(Some)
    }

    /// Equal to transformers' `decode(ids, clean_up_tokenization_spaces=False)`; ids without a token are skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let pieces = || {
            let known = ids.iter().filter_map(|id| self.pieces.get(*id));
            known.filter(|piece| !(skip_special && piece.is_special))
        };
        match self.joining {
            Joining::ByteLevel => {
                let bytes = pieces().flat_map(|piece| piece.bytes).copied().collect::<Vec<u8>>();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Joining::SentencePiece { strip_first_space } => Ok(join_sentence_pieces(pieces(), strip_first_space)),
            Joining::Library => self.decode_by_library(ids, skip_special),
        }
    }

    fn decode_by_library(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let decoded = fenced(|| self.pipeline.decode(ids, skip_special));
        decoded.map_err(|why| Error::internal(format!("the tokenizer failed to decode: {why}")))
    }

    /// The token's own text, for log-probabilities: with its leading space, and U+FFFD for a part of a character.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.piece(id).map_or(&[], |piece| piece.bytes)).into_owned()
    }

    /// The exact bytes that the token stands for; empty outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.piece(id).map_or_else(Vec::new, |piece| piece.bytes.to_vec())
    }

    /// One more than the highest id, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Whether `skip_special` drops the token.
    pub fn is_special(&self, id: u32) -> bool {
        self.piece(id).is_some_and(|piece| piece.is_special)
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Every id that ends an answer.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.pipeline.token_to_id(token)
    }

    /// The names of the special tokens, as chat templates see them.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    pub(crate) fn piece(&self, id: u32) -> Option<Piece<'_>> {
        self.pieces.get(id)
    }

    pub(crate) fn joining(&self) -> Joining {
        self.joining
    }
}

/// The pipeline that a file describes.
fn read_pipeline(tokenizer_json: &[u8]) -> Result<Pipeline> {
    let read = fenced(|| {
        let pipeline = Pipeline::from_bytes(tokenizer_json)?;
        // Some damage shows with the first text only: better here than amid requests. Whether these texts have tokens is
        // not asked, for a vocabulary may lack them.
        let (_, _) = (pipeline.encode("a", true), pipeline.encode(("a", "a"), true));
        Ok(pipeline)
    });
    read.map_err(|why| Error::internal(format!("tokenizer.json: {why}; fetch the model's files again")))
}

/// Calls the library, which panics where a file is damaged, sometimes only with certain texts: an error to us. What it
/// keeps between calls is a cache, which a call that is broken off leaves as it was or unused.
fn fenced<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    outcome.map_err(|_| "it is damaged".to_owned())?.map_err(|error| error.to_string())
}

fn joining_of(pipeline: &Pipeline) -> Result<Joining> {
    let decoder = serde_json::to_value(pipeline.get_decoder());
    let decoder: Value = decoder.map_err(|error| Error::internal(format!("tokenizer.json: decoder: {error}")))?;
    Ok(Joining::of(&decoder))
}

/// A run of byte tokens is text only when all of it is valid, as in the library's ByteFallback.
fn join_sentence_pieces<'a>(pieces: impl Iterator<Item = Piece<'a>>, strip_first_space: bool) -> String {
    let mut text = String::new();
    let mut run = Vec::new();
    let close = |run: &mut Vec<u8>, text: &mut String| {
        match std::str::from_utf8(run) {
            Ok(valid) => text.push_str(valid),
            Err(_) => text.extend(run.iter().map(|_| char::REPLACEMENT_CHARACTER)),
        }
        run.clear();
    };
    for piece in pieces {
        if piece.is_byte {
            run.extend_from_slice(piece.bytes);
        } else {
            close(&mut run, &mut text);
            text.push_str(&String::from_utf8_lossy(piece.bytes));
        }
    }
    close(&mut run, &mut text);
    if strip_first_space && text.starts_with(' ') {
        text.remove(0);
    }
    text
}
