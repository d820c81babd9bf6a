//! Ids and text equal the tokenizers library's, from tokenizer.json and from GGUF metadata alike.

use std::sync::Arc;

use sconce_text::{GgufVocab, SpecialTokens, Tokenizer};
use serde_json::Value;

use crate::{fixture, read_json};

pub const NAMES: [&str; 8] = ["gpt-2", "smollm", "llama-bpe", "qwen2", "spm", "spm-no-prefix", "wordpiece", "unigram"];

pub fn gguf_vocab(json: &Value) -> GgufVocab {
    let strings = |name: &str| -> Vec<String> {
        json[name].as_array().unwrap().iter().map(|token| token.as_str().unwrap().to_owned()).collect()
    };
    let numbers =
        |name: &str| -> Vec<f64> { json[name].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect() };
    let id = |name: &str| json[name].as_u64().map(|id| id as u32);
    GgufVocab {
        model: json["model"].as_str().unwrap().to_owned(),
        pre: json["pre"].as_str().map(str::to_owned),
        tokens: strings("tokens"),
        scores: numbers("scores").into_iter().map(|score| score as f32).collect(),
        types: numbers("types").into_iter().map(|kind| kind as i32).collect(),
        merges: strings("merges"),
        bos: id("bos"),
        eos: id("eos"),
        unk: id("unk"),
        pad: id("pad"),
        eot: id("eot"),
        add_bos: json["add_bos"].as_bool(),
        add_eos: json["add_eos"].as_bool(),
        add_space_prefix: json["add_space_prefix"].as_bool(),
        precompiled_charsmap: json["charsmap"].as_array().map_or(Vec::new(), |bytes| {
            bytes.iter().map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()).unwrap()).collect()
        }),
        ..GgufVocab::default()
    }
}

/// The same tokenizer from both kinds of files.
pub fn both(golden: &Value) -> [(&'static str, Arc<Tokenizer>); 2] {
    let json = serde_json::to_vec(&golden["tokenizer"]).unwrap();
    let from_json = Tokenizer::from_json(&json, &SpecialTokens::default()).unwrap();
    let from_gguf = Tokenizer::from_gguf(gguf_vocab(&golden["gguf"])).unwrap();
    [("json", Arc::new(from_json)), ("gguf", Arc::new(from_gguf))]
}

#[test]
fn pairs_are_put_together_as_the_models_were_trained() {
    for name in ["wordpiece", "unigram"] {
        let golden = fixture(&format!("tokenizers/{name}.json"));
        let tokenizer = Tokenizer::from_gguf(gguf_vocab(&golden["gguf"])).unwrap();
        for pair in golden["pairs"].as_array().unwrap() {
            let (first, second) = (pair["first"].as_str().unwrap(), pair["second"].as_str().unwrap());
            let found = tokenizer.encode_whole((first, Some(second)), true, 1000).unwrap().unwrap();
            assert_eq!((found.ids, found.types), (ids(&pair["ids"]), ids(&pair["types"])), "{name}: {pair}");
            let cut = tokenizer.encode_cut((first, Some(second)), true, 9).unwrap();
            assert_eq!((cut.ids, cut.types), (ids(&pair["ids_9"]), ids(&pair["types_9"])), "{name}: {pair} cut");
        }
    }
}

pub fn ids(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn check(name: &str, tokenizer: &Tokenizer, goldens: &Value) -> (usize, Vec<String>) {
    let (mut checks, mut wrong) = (0, Vec::new());
    let mut compare = |what: &str, text: &Value, ours: Value, theirs: &Value| {
        checks += 1;
        if ours != *theirs {
            wrong.push(format!("{name}: {what} of {text}\n  ours   {ours}\n  theirs {theirs}"));
        }
    };
    for row in goldens["texts"].as_array().unwrap() {
        let text = row["text"].as_str().unwrap();
        compare("ids", &row["text"], tokenizer.encode(text, false).unwrap().into(), &row["ids"]);
        if let Some(expected) = row.get("ids_special") {
            compare("ids with specials", &row["text"], tokenizer.encode(text, true).unwrap().into(), expected);
        }
    }
    let rows = ["texts", "sequences"].iter().flat_map(|kind| goldens[kind].as_array().unwrap());
    for row in rows.filter(|row| row.get("decoded").is_some()) {
        let sequence = ids(&row["ids"]);
        compare("text", &row["ids"], tokenizer.decode(&sequence, false).unwrap().into(), &row["decoded"]);
        compare("skipping text", &row["ids"], tokenizer.decode(&sequence, true).unwrap().into(), &row["decoded_skip"]);
    }
    (checks, wrong)
}

#[test]
fn tokenizers_equal_the_library() {
    let (mut checks, mut wrong) = (0, Vec::new());
    for name in NAMES {
        let golden = fixture(&format!("tokenizers/{name}.json"));
        for (kind, tokenizer) in both(&golden) {
            let (more, differences) = check(&format!("{name} from {kind}"), &tokenizer, &golden["goldens"]);
            checks += more;
            wrong.extend(differences);
        }
    }
    assert!(wrong.is_empty(), "{} of {checks} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checks > 1_000, "only {checks} checks ran");
}

#[test]
fn a_far_too_long_text_is_refused_and_others_are_as_before() {
    for name in ["smollm", "spm", "wordpiece"] {
        for (kind, tokenizer) in both(&fixture(&format!("tokenizers/{name}.json"))) {
            let text = "The quick brown fox, in 2024. 日本語 naïve\n".repeat(1_500);
            let whole = tokenizer.encode(&text, true).unwrap();
            for tokens_max in [whole.len(), whole.len() / 2 + 1] {
                let bounded = tokenizer.encode_bounded(&text, true, tokens_max).unwrap();
                assert_eq!(bounded.as_ref(), Some(&whole), "{name} from {kind}, at most {tokens_max}");
            }
            for far_too_long in [text.as_str(), &"日".repeat(30_000), &"x".repeat(80_000)] {
                let count = tokenizer.encode(far_too_long, true).unwrap().len();
                let bounded = tokenizer.encode_bounded(far_too_long, true, 1_000).unwrap();
                // A WordPiece vocabulary makes one unknown token of a word however long it is.
                assert_eq!(bounded.is_none(), count > 2_100, "{name} from {kind}: {count} tokens");
            }
        }
    }
}

/// Real vocabularies, which are too large to commit: `make_text.py vocab` says how to run this.
#[test]
fn extra_vocab() {
    let Some(path) = std::env::var_os("SCONCE_EXTRA_VOCAB") else {
        println!("skipped: SCONCE_EXTRA_VOCAB is not set");
        return;
    };
    let golden = read_json(path.as_ref());
    // CPU time, because other work on the machine must not count.
    let best = |run: &dyn Fn()| {
        let times = (0..7).map(|_| {
            let start_ns = cpu_ns();
            run();
            cpu_ns() - start_ns
        });
        std::time::Duration::from_nanos(times.min().unwrap())
    };
    let vocab = gguf_vocab(&golden["gguf"]);
    let tokenizer = Tokenizer::from_gguf(vocab.clone()).unwrap();
    let load = best(&|| drop(Tokenizer::from_gguf(vocab.clone()).unwrap()));
    println!("loaded {} tokens in {load:?} at best, end tokens {:?}", tokenizer.vocab_size(), tokenizer.eos());
    let long = "The quick brown fox, in 2024, jumped over 13 lazy dogs. 日本語 naïve\n".repeat(1_500);
    let count = tokenizer.encode(&long, false).unwrap().len();
    let encode = best(&|| drop(tokenizer.encode(&long, false).unwrap()));
    println!("encoded {} bytes into {count} tokens in {encode:?} at best", long.len());
    let (checks, wrong) = check("extra", &tokenizer, &golden["goldens"]);
    assert!(wrong.is_empty(), "{} of {checks} differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("{checks} checks are equal");
}

fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}
