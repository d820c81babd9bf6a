//! Tokenizers from the metadata of GGUF files: the pipeline that the original model's tokenizer.json describes.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::utils::Sequence as NormalizerSequence;
use tokenizers::normalizers::{NormalizerWrapper, Prepend};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, Tokenizer as Pipeline};

use super::pre::PreTokenizer;
use super::unigram;
use sconce_vocabulary::error::{Error, Result};

/// The `tokenizer.ggml.*` metadata of a GGUF file.
#[derive(Debug, Clone, Default)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `bert` (WordPiece) or `t5` (SentencePiece Unigram).
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
    pub sep: Option<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    /// Each text of a pair ends with the separator.
    pub add_sep: Option<bool>,
    pub add_space_prefix: Option<bool>,
    pub remove_extra_whitespaces: Option<bool>,
    /// What a `t5` model's characters become before they are cut, in SentencePiece's own form.
    pub precompiled_charsmap: Vec<u8>,
}

/// What a file's metadata amounts to.
pub(super) struct Built {
    pub pipeline: Pipeline,
    /// Ids put before and after a text when special tokens are asked for.
    pub prefix: Vec<u32>,
    pub suffix: Vec<u32>,
    pub eos: Vec<u32>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const NORMAL: i32 = 1;

/// Tokens that end an answer although `eos_token_id` names another one. Chat models are often converted with the base
/// model's end token, while their template ends each turn with one of these.
const END_TOKENS: [&str; 12] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
];

pub(super) fn build(vocab: &GgufVocab) -> Result<Built> {
    check(vocab)?;
    let (mut pipeline, add_bos) = match vocab.model.as_str() {
        "gpt2" => byte_level(vocab)?,
        "llama" => sentence_piece(vocab)?,
        "bert" => word_piece(vocab)?,
        "t5" => (unigram::build(vocab)?, true),
        other => {
            return Err(Error::internal(format!(
                "GGUF tokenizer model `{other}` (tokenizer.ggml.model) is not supported, only gpt2, llama, bert and t5; \
                 use the model's safetensors files with their tokenizer.json instead"
            )));
        }
    };
    pipeline.add_tokens(added_tokens(vocab)).map_err(broken)?;
    let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
    if let Some(around) = around(vocab)? {
        pipeline.with_post_processor(Some(around));
    } else {
        prefix.extend(vocab.bos.filter(|_| vocab.add_bos.unwrap_or(add_bos)));
        suffix.extend(vocab.eos.filter(|_| vocab.add_eos.unwrap_or(false)));
    }
    Ok(Built { pipeline, prefix, suffix, eos: end_ids(vocab) })
}

/// What encoders put around a text and between two; with token types, which a model without them passes over.
fn around(vocab: &GgufVocab) -> Result<Option<TemplateProcessing>> {
    let (first, last, twice) = match vocab.model.as_str() {
        "bert" => (id_of(vocab, "[CLS]").or(vocab.bos), id_of(vocab, "[SEP]").or(vocab.sep).or(vocab.eos), false),
        // RoBERTa's: two separators between two texts.
        "t5" => (vocab.bos, vocab.eos.or(vocab.sep), true),
        "gpt2" if vocab.add_sep == Some(true) => {
            (vocab.bos, vocab.sep.or(vocab.eos), vocab.pre.as_deref() == Some("roberta-bpe"))
        }
        _ => return Ok(None),
    };
    let (Some(first), Some(last)) = (first, last) else {
        return Err(broken("an encoder's vocabulary needs a token before a text and one behind it"));
    };
    let mark = |name: &str, id: u32| {
        SpecialToken::new(name.to_owned(), vec![id], vec![vocab.tokens[id as usize].clone()]).map_err(broken)
    };
    let pair = if twice { "first $A last last $B last" } else { "first $A last $B:1 last:1" };
    let mut template = TemplateProcessing::builder();
    template.try_single("first $A last").map_err(broken)?.try_pair(pair).map_err(broken)?;
    template.special_tokens(vec![mark("first", first)?, mark("last", last)?]);
    template.build().map(Some).map_err(broken)
}

fn check(vocab: &GgufVocab) -> Result<()> {
    let tokens = vocab.tokens.len();
    if tokens == 0 || u32::try_from(tokens).is_err() {
        return Err(Error::internal(format!(
            "GGUF metadata has {tokens} tokens (tokenizer.ggml.tokens); the file has no usable vocabulary"
        )));
    }
    for (name, len) in [("scores", vocab.scores.len()), ("token_type", vocab.types.len())] {
        if len != 0 && len != tokens {
            return Err(Error::internal(format!(
                "GGUF metadata has {len} entries in tokenizer.ggml.{name} for {tokens} tokens; the file is damaged"
            )));
        }
    }
    let named = [
        ("bos", vocab.bos),
        ("eos", vocab.eos),
        ("unknown", vocab.unk),
        ("padding", vocab.pad),
        ("eot", vocab.eot),
        ("separator", vocab.sep),
    ];
    for (name, id) in named {
        if let Some(id) = id.filter(|id| *id as usize >= tokens) {
            return Err(Error::internal(format!(
                "tokenizer.ggml.{name}_token_id is {id}, but there are only {tokens} tokens; the file is damaged"
            )));
        }
    }
    Ok(())
}

pub(super) fn broken(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("the GGUF file's vocabulary does not make a tokenizer: {error}; the file is damaged"))
}

fn type_of(vocab: &GgufVocab, index: usize) -> i32 {
    vocab.types.get(index).copied().unwrap_or(NORMAL)
}

fn id_of(vocab: &GgufVocab, token: &str) -> Option<u32> {
    vocab.tokens.iter().position(|known| known == token).map(|index| index as u32)
}

/// The first id of a token that stands there twice wins, as its later copies are padding.
fn vocab_map<'a>(tokens: impl ExactSizeIterator<Item = std::borrow::Cow<'a, str>>) -> Vocab {
    let mut map = Vocab::with_capacity(tokens.len());
    for (index, token) in tokens.enumerate() {
        map.entry(token.into_owned()).or_insert(index as u32);
    }
    map
}

fn byte_level(vocab: &GgufVocab) -> Result<(Pipeline, bool)> {
    let pre = PreTokenizer::by_name(vocab.pre.as_deref())?;
    let mut merges = Merges::with_capacity(vocab.merges.len());
    for (index, merge) in vocab.merges.iter().enumerate() {
        // The left half may itself start with a space in vocabularies that are not byte-level.
        let cut = merge.char_indices().skip(1).find(|(_, character)| *character == ' ').map(|(at, _)| at);
        let cut = cut.ok_or_else(|| broken(format!("tokenizer.ggml.merges[{index}] `{merge}` is no pair")))?;
        merges.push((merge[..cut].to_owned(), merge[cut + 1..].to_owned()));
    }
    let map = vocab_map(vocab.tokens.iter().map(|token| token.as_str().into()));
    let model =
        BPE::builder().vocab_and_merges(map, merges).ignore_merges(pre.ignore_merges).build().map_err(broken)?;
    let mut pipeline = Pipeline::new(model);
    if pre.composes_unicode() {
        pipeline.with_normalizer(Some(NFC)).map_err(broken)?;
    }
    pipeline.with_pre_tokenizer(Some(pre.build()?));
    pipeline.with_decoder(Some(ByteLevel::new(true, true, true)));
    Ok((pipeline, pre.add_bos))
}

fn sentence_piece(vocab: &GgufVocab) -> Result<(Pipeline, bool)> {
    if vocab.scores.is_empty() {
        return Err(broken("a `llama` vocabulary needs tokenizer.ggml.scores"));
    }
    let map = vocab_map(vocab.tokens.iter().map(|token| token.as_str().into()));
    let merges = merges_by_score(vocab, &map);
    let unknown = vocab.unk.map(|id| id as usize);
    let unknown = unknown.or_else(|| (0..vocab.tokens.len()).find(|index| type_of(vocab, *index) == UNKNOWN));
    let mut builder = BPE::builder().vocab_and_merges(map, merges).byte_fallback(true).fuse_unk(true);
    if let Some(index) = unknown {
        builder = builder.unk_token(vocab.tokens[index].clone());
    }
    let mut pipeline = Pipeline::new(builder.build().map_err(broken)?);
    let space = || Replace::new(" ", "▁").map_err(broken);
    let unspace = Replace::new("▁", " ").map_err(broken)?;
    let prefix = vocab.add_space_prefix.unwrap_or(true);
    // The space comes before each stretch between special tokens, as SentencePiece's `add_dummy_prefix` has it.
    let mut normalizers = vec![NormalizerWrapper::Replace(space()?)];
    if prefix {
        normalizers.insert(0, NormalizerWrapper::Prepend(Prepend::new("▁".to_owned())));
    }
    pipeline.with_normalizer(Some(NormalizerSequence::new(normalizers))).map_err(broken)?;
    let mut decoders = vec![
        DecoderWrapper::Replace(unspace),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ];
    if prefix {
        decoders.push(DecoderWrapper::Strip(Strip::new(' ', 1, 0)));
    }
    pipeline.with_decoder(Some(DecoderSequence::new(decoders)));
    Ok((pipeline, true))
}

/// SentencePiece joins the neighbours whose joint token has the best score. As merge rules: every way to cut a token in
/// two tokens, best score first, as transformers' converter orders them.
fn merges_by_score(vocab: &GgufVocab, map: &Vocab) -> Merges {
    struct Rule<'a> {
        score: f32,
        left: &'a str,
        right: &'a str,
        ids: (u32, u32),
    }
    let mut rules = Vec::new();
    for (index, token) in vocab.tokens.iter().enumerate() {
        if !matches!(type_of(vocab, index), NORMAL | USER_DEFINED) || map.get(token) != Some(&(index as u32)) {
            continue;
        }
        let first = rules.len();
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(left_id), Some(right_id)) = (map.get(left), map.get(right)) {
                rules.push(Rule { score: vocab.scores[index], left, right, ids: (*left_id, *right_id) });
            }
        }
        rules[first..].sort_by_key(|rule| rule.ids);
    }
    let length = |text: &str| text.chars().count();
    rules.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| length(b.left).cmp(&length(a.left)))
            .then_with(|| length(b.right).cmp(&length(a.right)))
    });
    rules.into_iter().map(|rule| (rule.left.to_owned(), rule.right.to_owned())).collect()
}

fn word_piece(vocab: &GgufVocab) -> Result<(Pipeline, bool)> {
    let bracketed = |token: &str| token.starts_with('[') && token.ends_with(']');
    // GGUF marks the start of a word instead of its continuation.
    let spell = |token: &str| match token.strip_prefix('▁') {
        Some(word) => word.to_owned(),
        None if bracketed(token) => token.to_owned(),
        None => format!("##{token}"),
    };
    let words = || vocab.tokens.iter().filter(|token| !bracketed(token));
    let uncased = !words().any(|token| token.chars().any(|character| character.is_ascii_uppercase()));
    let unknown = vocab.unk.map_or("[UNK]", |id| vocab.tokens[id as usize].as_str());
    let map = vocab_map(vocab.tokens.iter().map(|token| spell(token).into()));
    let model = WordPiece::builder()
        .vocab(map)
        .unk_token(unknown.to_owned())
        .max_input_chars_per_word(100)
        .build()
        .map_err(broken)?;
    let mut pipeline = Pipeline::new(model);
    pipeline.with_normalizer(Some(BertNormalizer::new(true, true, None, uncased))).map_err(broken)?;
    pipeline.with_pre_tokenizer(Some(BertPreTokenizer));
    pipeline.with_decoder(Some(WordPieceDecoder::new("##".to_owned(), true)));
    Ok((pipeline, true))
}

/// Control tokens are special; user-defined ones are found in the text all the same, but shown when decoding.
fn added_tokens(vocab: &GgufVocab) -> Vec<AddedToken> {
    // Phi-3's special tokens swallow the white space after them; its conversions do not say so.
    let is_phi3 = vocab.model == "llama" && id_of(vocab, "<|placeholder1|>").is_some();
    let mut added = Vec::new();
    for (index, token) in vocab.tokens.iter().enumerate() {
        let kind = type_of(vocab, index);
        let is_unknown = kind == UNKNOWN || vocab.unk == Some(index as u32);
        let is_bert_mark =
            vocab.model == "bert" && ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"].contains(&token.as_str());
        let special = kind == CONTROL || is_unknown || is_bert_mark;
        if !special && kind != USER_DEFINED || token.is_empty() {
            continue;
        }
        let swallows = is_phi3 && (token.starts_with("<|") || token == "</s>") && token != "<|endoftext|>";
        added.push(AddedToken::from(token.as_str(), special).normalized(false).rstrip(swallows));
    }
    added
}

fn end_ids(vocab: &GgufVocab) -> Vec<u32> {
    let mut ends: Vec<u32> = [vocab.eos, vocab.eot].into_iter().flatten().collect();
    let marks: Vec<(usize, &str)> =
        vocab.tokens.iter().map(String::as_str).enumerate().filter(|(_, token)| END_TOKENS.contains(token)).collect();
    // In the harmony format `<|end|>` closes a message, not the answer.
    let is_harmony = ["<|return|>", "<|call|>"].iter().all(|wanted| marks.iter().any(|(_, token)| token == wanted));
    for (index, token) in marks {
        let id = index as u32;
        let is_mark = matches!(type_of(vocab, index), CONTROL | USER_DEFINED);
        if is_mark && !(is_harmony && token == "<|end|>") && !ends.contains(&id) {
            ends.push(id);
        }
    }
    ends
}
