//! Vectors and scores against Transformers on tiny random models of every kind, bit for bit in every batch, and files
//! that are refused.
//!
//! Fixtures: `fixtures/make_embedders.py`.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use sconce_models::{
    Embedder, EmbedderOptions, LoadOptions, Output, Pooling, Precision, Purpose, Source, TextBatch, load,
    load_embedder, read_embedder_spec, read_purpose,
};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Golden {
    tokens: Vec<u32>,
    types: Vec<u32>,
    values: Vec<f32>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embed")
}

fn goldens(name: &str) -> Vec<Golden> {
    let bytes = fs::read(fixtures().join(format!("{name}.golden.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words =
        |tensor: String| -> Vec<[u8; 4]> { tensors.tensor(&tensor).unwrap().data().as_chunks::<4>().0.to_vec() };
    let ids = |tensor: String| words(tensor).into_iter().map(u32::from_le_bytes).collect();
    (0..4)
        .map(|index| Golden {
            tokens: ids(format!("tokens.{index}")),
            types: ids(format!("types.{index}")),
            values: words(format!("values.{index}")).into_iter().map(f32::from_le_bytes).collect(),
        })
        .collect()
}

fn batch_of(rows: &[&Golden]) -> TextBatch {
    let mut batch = TextBatch::default();
    rows.iter().for_each(|row| batch.push(&row.tokens, &row.types));
    batch
}

fn source_of(name: &str) -> Source {
    let file = fixtures().join(format!("{name}.gguf"));
    if file.is_file() { Source::Gguf(file) } else { Source::Folder(fixtures().join(name)) }
}

fn open(name: &str, precision: Precision) -> Box<dyn Embedder> {
    let source = source_of(name);
    let options = LoadOptions { precision, ..LoadOptions::default() };
    load_embedder(&source, EmbedderOptions::default(), options).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn values(model: &mut dyn Embedder, rows: &[&Golden]) -> Vec<f32> {
    let mut out = vec![7.0];
    model.forward(&batch_of(rows), &mut out).expect("a sound batch");
    assert_eq!(out.len(), rows.len() * model.spec().width);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn check(name: &str, purpose: Purpose, output: Output, pooling: Pooling) {
    let source = source_of(name);
    assert_eq!(read_purpose(&source).expect("sound files"), purpose, "{name}");
    for precision in [Precision::High, Precision::Fast] {
        let mut model = open(name, precision);
        let model = &mut *model;
        assert_eq!(model.spec(), &read_embedder_spec(&source, EmbedderOptions::default()).unwrap(), "{name}");
        assert_eq!((model.spec().output, model.spec().pooling), (output, pooling), "{name}");
        let is_rounded = model.spec().weight_format == "BF16" || name.ends_with("q8_0");
        let tolerance = match precision {
            // Scores are differences: what they lose is more of them than of a vector.
            Precision::Fast if is_rounded && purpose == Purpose::Score => 2e-1,
            Precision::Fast if is_rounded => 6e-2,
            Precision::High if is_rounded => 5e-4,
            _ => 1e-4,
        };
        let width = model.spec().width;
        let rows = goldens(name);
        let all: Vec<&Golden> = rows.iter().collect();
        let crowd = values(model, &all);
        for (row, found) in rows.iter().zip(crowd.chunks(width)) {
            let scale = row.values.iter().fold(1e-3_f32, |scale, value| scale.max(value.abs()));
            for (found, expected) in found.iter().zip(&row.values) {
                let error = (found - expected).abs() / scale;
                assert!(error < tolerance, "{name} {precision:?}: {found} is not {expected}");
            }
            assert_eq!(bits(&values(model, &[row])), bits(found), "{name}: alone and in a crowd");
        }
        let turned: Vec<&Golden> = rows.iter().rev().collect();
        let turned = values(model, &turned);
        let back: Vec<f32> = turned.chunks(width).rev().flatten().copied().collect();
        assert_eq!(bits(&back), bits(&crowd), "{name}: in another order");
        assert!(values(model, &[]).is_empty());
    }
}

#[test]
fn vectors_and_scores_are_transformers() {
    let embedding = |normalize| Output::Embedding { normalize };
    check("bert", Purpose::Embed, embedding(true), Pooling::Mean);
    check("bert_cls_bf16", Purpose::Embed, embedding(false), Pooling::Cls);
    check("xlm_roberta_f16", Purpose::Embed, embedding(true), Pooling::WeightedMean);
    check("qwen3", Purpose::Embed, embedding(true), Pooling::LastToken);
    check("reranker", Purpose::Score, Output::Score { sigmoid: true }, Pooling::Cls);
    check("xlm_roberta_reranker", Purpose::Score, Output::Score { sigmoid: false }, Pooling::Cls);
    check("modern_bert", Purpose::Embed, embedding(true), Pooling::Mean);
    check("modern_bert_biased_f16", Purpose::Embed, embedding(false), Pooling::Cls);
    check("nomic_bert", Purpose::Embed, embedding(false), Pooling::Mean);
    check("nomic_bert_older_f16", Purpose::Embed, embedding(true), Pooling::Mean);
    let score = Output::Score { sigmoid: true };
    check("modern_bert_reranker", Purpose::Score, score, Pooling::Mean);
    check("modern_bert_reranker_cls", Purpose::Score, score, Pooling::Cls);
    check("nomic_bert_reranker", Purpose::Score, score, Pooling::Cls);
    check("bert_f32", Purpose::Embed, embedding(true), Pooling::Mean);
    check("roberta_reranker_q8_0", Purpose::Score, score, Pooling::Cls);
    check("modern_bert_q8_0", Purpose::Embed, embedding(true), Pooling::Cls);
    check("modern_bert_reranker_q8_0", Purpose::Score, score, Pooling::Mean);
    check("qwen3_logit_score", Purpose::Score, score, Pooling::LastToken);
    check("qwen3_reranker_f32", Purpose::Score, score, Pooling::LastToken);
    check("nomic_bert_q8_0", Purpose::Embed, embedding(true), Pooling::Mean);
}

#[test]
fn a_decoder_judges_when_the_operator_says_so() {
    let source = source_of("qwen3_reranker");
    assert_eq!(read_purpose(&source).expect("sound files"), Purpose::Generate);
    let options = EmbedderOptions { judge: true, ..EmbedderOptions::default() };
    let mut model = load_embedder(&source, options, LoadOptions::default()).expect("a decoder");
    assert_eq!((model.spec().output, model.spec().judges), (Output::Score { sigmoid: true }, true));
    let rows = goldens("qwen3_reranker");
    for row in &rows {
        let found = values(&mut *model, &[row])[0];
        assert!((found - row.values[0]).abs() < 1e-4 * row.values[0].abs().max(1.0), "{found} is not {:?}", row.values);
    }
    let folder = folder_of("qwen3_reranker");
    edit(folder.path(), "tokenizer.json", |v| {
        v["model"]["vocab"].as_object_mut().expect("a vocabulary").remove("yes");
    });
    let source = Source::Folder(folder.path().to_owned());
    let error = read_embedder_spec(&source, options).expect_err("no such token").to_string();
    assert!(error.contains("no token \"yes\""), "{error}");
}

#[test]
fn the_longest_text_is_what_the_files_allow() {
    for (name, longest) in [
        ("bert", 24),
        ("bert_cls_bf16", 40),
        ("xlm_roberta_f16", 40),
        ("qwen3", 33),
        ("modern_bert", 40),
        ("nomic_bert_older_f16", 40),
        ("roberta_reranker_q8_0", 40),
    ] {
        let source = source_of(name);
        let of = |tokens_max| {
            let options = EmbedderOptions { tokens_max, ..EmbedderOptions::default() };
            read_embedder_spec(&source, options).unwrap().tokens_max
        };
        assert_eq!((of(None), of(Some(10)), of(Some(4000))), (longest, 10, longest), "{name}");
    }
}

#[test]
fn batches_that_contradict_themselves_are_refused() {
    for (name, types) in [("bert", 2), ("qwen3", 1)] {
        let mut model = open(name, Precision::High);
        let cases: [(&str, TextBatch); 6] = [
            ("outside the vocabulary", TextBatch { tokens: vec![5, 4000], types: vec![0; 2], row_ends: vec![2] }),
            ("token type", TextBatch { tokens: vec![5], types: vec![types], row_ends: vec![1] }),
            ("rows that end at", TextBatch { tokens: vec![5], types: vec![0], row_ends: vec![2] }),
            ("with 0 types", TextBatch { tokens: vec![5], types: vec![], row_ends: vec![1] }),
            ("row 1 is", TextBatch { tokens: vec![5], types: vec![0], row_ends: vec![1, 1] }),
            ("row 0 is", TextBatch { tokens: vec![5; 34], types: vec![0; 34], row_ends: vec![34] }),
        ];
        for (part, batch) in cases {
            let error = model.forward(&batch, &mut Vec::new()).expect_err(part).to_string();
            assert!(error.contains(part), "{name}: {error:?} must say {part:?}");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn folder_of(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixtures().join(name), folder.path());
    folder
}

fn edit(folder: &Path, file: &str, edit: impl Fn(&mut Value)) {
    let path = folder.join(file);
    let mut value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn files_that_cannot_be_served_are_refused_by_name() {
    type Edit = fn(&mut Value);
    let cases: [(&str, &str, Edit, &str); 33] = [
        ("bert", "config.json", |v| v["hidden_size"] = json!(0), "hidden_size is 0"),
        ("reranker", "config.json", |v| v["hidden_size"] = json!(64), "the config asks for ["),
        ("bert", "config.json", |v| v["hidden_size"] = json!("x"), "invalid type"),
        ("bert", "config.json", |v| v["num_attention_heads"] = json!(5), "not a multiple of 5"),
        ("bert", "config.json", |v| v["num_hidden_layers"] = json!(3), "encoder.layer.2"),
        ("bert", "config.json", |v| v["num_hidden_layers"] = json!(1), "encoder.layer.1"),
        ("bert", "config.json", |v| v["num_hidden_layers"] = json!(1_u64 << 40), "num_hidden_layers is"),
        ("bert", "config.json", |v| v["hidden_act"] = json!("mish"), "hidden_act mish is not supported"),
        ("bert", "config.json", |v| v["position_embedding_type"] = json!("relative_key"), "position_embedding_type"),
        ("bert", "config.json", |v| v["is_decoder"] = json!(true), "is_decoder"),
        ("bert", "config.json", |v| v["layer_norm_eps"] = json!(-1), "layer_norm_eps"),
        ("bert", "modules.json", |v| v[2]["type"] = json!("a.Dense"), "module 2 of type a.Dense"),
        ("bert", "modules.json", |v| *v = json!([]), "no Transformer followed by Pooling"),
        ("bert", "modules.json", |v| v[1]["path"] = json!("../elsewhere"), "expected a folder in this one"),
        ("bert", "1_Pooling/config.json", |v| v["pooling_mode"] = json!(["cls", "mean"]), "2 ways at once"),
        ("bert", "1_Pooling/config.json", |v| v["pooling_mode"] = json!("median"), "pooling_mode median"),
        ("bert", "1_Pooling/config.json", |v| v["embedding_dimension"] = json!(48), "have 48 values"),
        ("xlm_roberta_f16", "config.json", |v| v["pad_token_id"] = json!(60), "leave none behind pad_token_id"),
        ("reranker", "config.json", |v| v["id2label"] = json!({"0": "A", "1": "B"}), "a classifier of 2 labels"),
        ("qwen3", "config.json", |v| v["is_causal"] = json!(false), "looks in both directions"),
        ("modern_bert", "config.json", |v| v["hidden_activation"] = json!("relu"), "hidden_activation relu"),
        ("modern_bert", "config.json", |v| v["layer_types"] = json!(["full_attention"]), "names 1 layers of 5"),
        ("modern_bert", "config.json", |v| v["layer_types"][1] = json!("linear"), "layer type linear"),
        ("modern_bert", "config.json", |v| v["attention_bias"] = json!(true), "attn.Wqkv.bias"),
        ("modern_bert", "config.json", |v| v["rope_parameters"]["full_attention"]["rope_type"] = json!("yarn"), "yarn"),
        ("modern_bert", "config.json", |v| v["num_attention_heads"] = json!(32), "cannot be rotated"),
        (
            "modern_bert",
            "config.json",
            |v| v["rope_parameters"]["full_attention"]["rope_theta"] = json!(0.0),
            "theta is 0",
        ),
        ("modern_bert_reranker", "config.json", |v| v["classifier_pooling"] = json!("max"), "expected cls or mean"),
        (
            "modern_bert_reranker",
            "config.json",
            |v| v["classifier_activation"] = json!("silu"),
            "classifier_activation",
        ),
        ("nomic_bert", "config.json", |v| v["moe_every_n_layers"] = json!(2), "a mixture of experts"),
        ("nomic_bert", "config.json", |v| v["head_dim"] = json!(16), "a head_dim other than"),
        ("nomic_bert_older_f16", "config.json", |v| v["rotary_emb_fraction"] = json!(0.5), "rotary_emb_fraction"),
        ("qwen3_logit_score", "1_LogitScore/config.json", |v| v["false_token_id"] = json!(null), "no false_token_id"),
    ];
    for (name, file, change, part) in cases {
        let folder = folder_of(name);
        edit(folder.path(), file, change);
        let source = Source::Folder(folder.path().to_owned());
        let message = match load_embedder(&source, EmbedderOptions::default(), LoadOptions::default()) {
            Ok(_) => panic!("{name} with another {file} was loaded, expected {part:?}"),
            Err(error) => error.to_string(),
        };
        assert!(message.contains(part) && !message.contains('\n'), "{message:?} must say {part:?}");
    }
}

#[test]
fn without_sentence_transformers_files_the_operator_must_agree() {
    for (name, pooling) in [("bert", Pooling::Mean), ("qwen3", Pooling::LastToken)] {
        let folder = folder_of(name);
        fs::remove_file(folder.path().join("modules.json")).unwrap();
        let source = Source::Folder(folder.path().to_owned());
        let refusal = read_embedder_spec(&source, EmbedderOptions::default()).expect_err(name).to_string();
        assert!(refusal.contains("--task embed") && refusal.contains(pooling.name()), "{refusal}");
        let options = EmbedderOptions { usual_pooling: true, ..EmbedderOptions::default() };
        let spec = read_embedder_spec(&source, options).expect("agreed");
        assert_eq!((spec.pooling, spec.output), (pooling, Output::Embedding { normalize: true }));
    }
    let decoder = Source::Folder(fixtures().join("../qwen3"));
    assert_eq!(read_purpose(&decoder).expect("sound files"), Purpose::Generate);
    let options = EmbedderOptions { usual_pooling: true, ..EmbedderOptions::default() };
    for source in [decoder, Source::Dummy("tiny:f32".to_owned())] {
        let mut model = load_embedder(&source, options, LoadOptions::default()).expect("any decoder");
        let mut out = Vec::new();
        model.forward(&batch_of(&[&goldens("qwen3")[1]]), &mut out).expect("a sound batch");
        assert!(out.len() == model.spec().width && out.iter().all(|value| value.is_finite()));
    }
    // The other way round: an encoder generates nothing.
    let error = load(&Source::Folder(fixtures().join("bert")), LoadOptions::default()).err().expect("refused");
    assert!(error.to_string().contains("BertModel is not supported"), "{error}");
}
