//! Text to token ids and back, for one model.

use crate::error::Result;

/// Vocabulary and rules of one model. Immutable; one `Arc` of it is shared by all requests.
pub struct Tokenizer {}

/// Special tokens as the model's files name them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpecialTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
    /// Further end-of-sequence ids (`eos_token_id` of generation_config.json or config.json).
    pub eos_ids: Vec<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
}

impl SpecialTokens {
    /// Reads what the files say; each is optional. `tokenizer_config.json` wins over `special_tokens_map.json`;
    /// `generation_config.json` adds end ids (pass config.json when there is none).
    pub fn from_files(
        tokenizer_config: Option<&[u8]>,
        special_tokens_map: Option<&[u8]>,
        generation_config: Option<&[u8]>,
    ) -> Result<Self> {
        let _ = (tokenizer_config, special_tokens_map, generation_config);
        unimplemented!()
    }
}

/// The `tokenizer.ggml.*` metadata of a GGUF file.
#[derive(Debug, Clone, Default)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece BPE) or `bert` (WordPiece).
    pub model: String,
    /// Name of the pre-tokenizer of a `gpt2` model.
    pub pre: Option<String>,
    pub tokens: Vec<String>,
    pub scores: Vec<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte. Empty: all normal.
    pub types: Vec<i32>,
    pub merges: Vec<String>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
    /// End of turn; one more end-of-sequence token.
    pub eot: Option<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
}

impl Tokenizer {
    /// From the bytes of `tokenizer.json`.
    pub fn from_json(tokenizer_json: &[u8], special: &SpecialTokens) -> Result<Self> {
        let _ = (tokenizer_json, special);
        unimplemented!()
    }

    /// From the metadata of a GGUF file.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self> {
        let _ = vocab;
        unimplemented!()
    }

    /// `add_special` adds BOS and EOS where the model's own post-processor does. Special tokens that stand in the text
    /// are always recognised, as in transformers. For a rendered chat template pass `false`: the template writes them.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let _ = (text, add_special);
        unimplemented!()
    }

    /// Equal to transformers' `decode(ids, clean_up_tokenization_spaces=False)`; ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let _ = (ids, skip_special);
        unimplemented!()
    }

    /// The token decoded on its own, for log-probabilities; a part of a character shows as U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        let _ = id;
        unimplemented!()
    }

    /// The exact bytes that the token stands for; empty outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let _ = id;
        unimplemented!()
    }

    /// One more than the highest id, added tokens included.
    pub fn vocab_size(&self) -> usize {
        unimplemented!()
    }

    pub fn is_special(&self, id: u32) -> bool {
        let _ = id;
        unimplemented!()
    }

    pub fn bos(&self) -> Option<u32> {
        unimplemented!()
    }

    /// Every id that ends an answer.
    pub fn eos(&self) -> &[u32] {
        unimplemented!()
    }

    pub fn id_of(&self, token: &str) -> Option<u32> {
        let _ = token;
        unimplemented!()
    }

    /// The names of the special tokens, as chat templates see them.
    pub fn special_tokens(&self) -> &SpecialTokens {
        unimplemented!()
    }
}
