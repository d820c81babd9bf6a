//! Tokenizer files with altered bytes, and vocabularies with altered entries, either load or are refused; what loads
//! encodes and decodes. Nothing panics.
//!
//! A longer run: `SCONCE_FUZZ_CASES=100000 cargo nextest run -p sconce-text --test oracle altered`.

use proptest::prelude::*;
use proptest::sample::Index;
use sconce_text::{GgufVocab, SpecialTokens, Tokenizer};

use crate::fixture;
use crate::tokenizer::{NAMES, gguf_vocab};

const TEXT: &str = "Ünïcode, 12345 <|endoftext|>\n\tHello  world! 🦀 don't";

fn cases() -> u32 {
    std::env::var("SCONCE_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(40)
}

fn golden(name: &str) -> serde_json::Value {
    fixture(&format!("tokenizers/{name}.json"))
}

/// Errors are fine, and so are odd tokens.
fn use_it(tokenizer: &Tokenizer) {
    if let Ok(ids) = tokenizer.encode(TEXT, true) {
        let _ = tokenizer.decode(&ids, false);
        ids.iter().for_each(|id| drop((tokenizer.token_text(*id), tokenizer.token_bytes(*id))));
    }
    let _ = tokenizer.decode(&[0, 1, u32::MAX], true);
}

fn change() -> impl Strategy<Value = (Index, u8)> {
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"0123456789[]{},:\"\\".to_vec())];
    (any::<Index>(), byte)
}

/// One entry of a vocabulary becomes something else.
#[derive(Debug, Clone)]
enum Change {
    Token(Index, String),
    Merge(Index, String),
    Type(Index, i32),
    Score(Index, f32),
    Bos(u32),
    Eos(u32),
    Unknown(Option<u32>),
    FewerTokens(Index),
    FewerScores(Index),
    FewerTypes(Index),
    Model(String),
}

fn vocab_change() -> impl Strategy<Value = Change> {
    let text = prop_oneof![Just(String::new()), Just("a".to_owned()), "[ -~]{0,6}", "\\PC{0,3}"];
    prop_oneof![
        (any::<Index>(), text.clone()).prop_map(|(at, text)| Change::Token(at, text)),
        (any::<Index>(), text).prop_map(|(at, text)| Change::Merge(at, text)),
        (any::<Index>(), -3..9_i32).prop_map(|(at, kind)| Change::Type(at, kind)),
        (any::<Index>(), any::<f32>()).prop_map(|(at, score)| Change::Score(at, score)),
        any::<u32>().prop_map(Change::Bos),
        any::<u32>().prop_map(Change::Eos),
        any::<Option<u32>>().prop_map(Change::Unknown),
        any::<Index>().prop_map(Change::FewerTokens),
        any::<Index>().prop_map(Change::FewerScores),
        any::<Index>().prop_map(Change::FewerTypes),
        prop::sample::select(vec!["gpt2", "llama", "bert", "t5", "rwkv", ""])
            .prop_map(|model| Change::Model(model.to_owned())),
    ]
}

fn apply(vocab: &mut GgufVocab, change: Change) {
    fn put<T>(list: &mut [T], at: Index, value: T) {
        if !list.is_empty() {
            let place = at.index(list.len());
            list[place] = value;
        }
    }
    fn cut<T>(list: &mut Vec<T>, at: Index) {
        let len = at.index(list.len() + 1);
        list.truncate(len);
    }
    match change {
        Change::Token(at, text) => put(&mut vocab.tokens, at, text),
        Change::Merge(at, text) => put(&mut vocab.merges, at, text),
        Change::Type(at, kind) => put(&mut vocab.types, at, kind),
        Change::Score(at, score) => put(&mut vocab.scores, at, score),
        Change::Bos(id) => vocab.bos = Some(id),
        Change::Eos(id) => vocab.eos = Some(id),
        Change::Unknown(id) => vocab.unk = id,
        Change::FewerTokens(at) => cut(&mut vocab.tokens, at),
        Change::FewerScores(at) => cut(&mut vocab.scores, at),
        Change::FewerTypes(at) => cut(&mut vocab.types, at),
        Change::Model(model) => vocab.model = model,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn altered_tokenizer_files_never_panic(which in any::<Index>(), changes in prop::collection::vec(change(), 1..4)) {
        let mut bytes = serde_json::to_vec(&golden(NAMES[which.index(NAMES.len())])["tokenizer"]).unwrap();
        for (at, byte) in changes {
            let place = at.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes, &SpecialTokens::default()) {
            use_it(&tokenizer);
        }
    }

    #[test]
    fn altered_gguf_vocabularies_never_panic(
        which in any::<Index>(),
        changes in prop::collection::vec(vocab_change(), 1..4),
    ) {
        let golden = golden(NAMES[which.index(NAMES.len())]);
        prop_assume!(golden["gguf"].is_object());
        let mut vocab = gguf_vocab(&golden["gguf"]);
        changes.into_iter().for_each(|change| apply(&mut vocab, change));
        if let Ok(tokenizer) = Tokenizer::from_gguf(vocab) {
            use_it(&tokenizer);
        }
    }
}

#[test]
fn one_absurd_id_is_refused() {
    let mut tokenizer = golden("gpt-2")["tokenizer"].clone();
    tokenizer["model"]["vocab"]["absurd"] = 9_000_000.into();
    let refused = Tokenizer::from_json(tokenizer.to_string().as_bytes(), &SpecialTokens::default());
    let message = refused.err().expect("the id is far beyond the vocabulary").to_string();
    assert!(message.contains("token id 9000000 is beyond"), "{message}");
}

/// The library looks special tokens of a template up without asking whether they are there.
#[test]
fn a_template_with_a_token_that_is_not_there_is_refused() {
    for template in ["single", "pair"] {
        let mut tokenizer = golden("wordpiece")["tokenizer"].clone();
        assert_eq!(tokenizer["post_processor"]["type"], "TemplateProcessing");
        tokenizer["post_processor"][template][0]["SpecialToken"]["id"] = "[GONE]".into();
        let refused = Tokenizer::from_json(tokenizer.to_string().as_bytes(), &SpecialTokens::default());
        let message = refused.err().expect("no token has that name").to_string();
        assert!(message.contains("it is damaged"), "{message}");
    }
}
