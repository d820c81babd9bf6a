//! Embedding and reranking models from files to vectors: tiny random ones against sentence-transformers, and the real
//! MiniLM where SCONCE_REAL_EMBEDDING_MODEL names its folder (tests/run downloads it).
//!
//! Fixtures: `models/tests/fixtures/make_embedders.py`, `tests/fixtures/embed/make_minilm.py`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sconce::config::{DeviceChoice, ModelConfig, ModelLimits, TaskChoice};
use sconce::error::{Error, Result};
use sconce::hub::progress::Silent;
use sconce::launch::Launch;
use sconce::pool::{Task, TokenizeInput};
use sconce::request::{EmbedFinish, EmbedInput, EmbedRequest, Embedded, Overlong, Params, Prompt, Request, Tenant};
use serde::Deserialize;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures/embed")
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).expect("a fixture")).expect("as the script writes it")
}

async fn launched(reference: &Path, task: TaskChoice, limits: ModelLimits) -> Result<Launch> {
    let launch = Launch::plan(&[config("m", reference, task, limits)])?;
    launch.load(Arc::new(Silent)).await?;
    Ok(launch)
}

fn config(name: &str, reference: &Path, task: TaskChoice, limits: ModelLimits) -> ModelConfig {
    ModelConfig {
        reference: reference.display().to_string(),
        served_names: vec![name.to_owned()],
        device: DeviceChoice::Cpu,
        task,
        limits,
        chat_template: None,
        parsers: Default::default(),
        lora: Default::default(),
        loading: Default::default(),
    }
}

async fn launch(name: &str) -> Launch {
    launched(&fixtures().join(name), TaskChoice::Auto, ModelLimits::default()).await.expect("it loads")
}

fn request(inputs: Vec<EmbedInput>) -> EmbedRequest {
    EmbedRequest {
        model: "m".to_owned(),
        inputs,
        label: |place| format!("input[{place}]"),
        overlong: Overlong::Refuse,
        add_special_tokens: true,
        finish: EmbedFinish::default(),
        priority: 0,
    }
}

fn texts(texts: &[String]) -> Vec<EmbedInput> {
    texts.iter().cloned().map(EmbedInput::Text).collect()
}

fn close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < tolerance, "{what}: {found} is not {expected}");
    }
}

fn refusal(outcome: Result<Embedded>) -> Error {
    outcome.expect_err("it must be refused")
}

#[derive(Deserialize)]
struct BertTexts {
    texts: Vec<String>,
    tokens: Vec<u32>,
    full_tokens: Vec<u32>,
    vectors: Vec<Vec<f32>>,
    cut_to_6: Vec<Vec<f32>>,
}

#[tokio::test]
async fn vectors_are_sentence_transformers() {
    let launch = launch("bert").await;
    let golden: BertTexts = read(&fixtures().join("bert.texts.json"));
    let card = launch.pool.member("m").expect("the model").card().clone();
    assert_eq!((card.task, card.max_model_len, card.chat), (Task::Embed { dimensions: 32 }, 24, false));
    // One text is longer than the model takes.
    let long = golden.full_tokens.iter().position(|&tokens| tokens > 24).expect("a long one");
    let error = refusal(launch.pool.embed(request(texts(&golden.texts))).await);
    assert_eq!(error.param, Some(format!("input[{long}]")));
    assert_eq!(error.code, Some("context_length_exceeded"));
    assert!(error.message.contains("has 32 tokens, and model 'm' takes 24"), "{error}");
    let cut = |to| EmbedRequest { overlong: Overlong::Cut(to), ..request(texts(&golden.texts)) };
    let embedded = launch.pool.embed(cut(None)).await.expect("cut");
    assert_eq!(embedded.prompt_tokens, golden.tokens.iter().sum::<u32>());
    for ((found, expected), text) in embedded.rows().zip(&golden.vectors).zip(&golden.texts) {
        close(found, expected, 1e-5, text);
    }
    let embedded = launch.pool.embed(cut(Some(6))).await.expect("cut");
    for ((found, expected), text) in embedded.rows().zip(&golden.cut_to_6).zip(&golden.texts) {
        close(found, expected, 1e-5, text);
    }
    for to in [1, 25] {
        assert_eq!(refusal(launch.pool.embed(cut(Some(to))).await).param.as_deref(), Some("truncate_prompt_tokens"));
    }
    launch.stop(Duration::from_secs(5)).await;
}

/// The same model, its vocabulary in the GGUF file.
#[tokio::test]
async fn a_gguf_gives_the_same_vectors() {
    let launch = launch("bert_f32.gguf").await;
    let golden: BertTexts = read(&fixtures().join("bert.texts.json"));
    let cut = EmbedRequest { overlong: Overlong::Cut(Some(24)), ..request(texts(&golden.texts)) };
    let embedded = launch.pool.embed(cut).await.expect("cut");
    assert_eq!(embedded.prompt_tokens, golden.tokens.iter().sum::<u32>());
    for ((found, expected), text) in embedded.rows().zip(&golden.vectors).zip(&golden.texts) {
        close(found, expected, 1e-5, text);
    }
    launch.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_a_request_may_decide_about_its_vectors() {
    let launch = launch("bert").await;
    let text = || vec![EmbedInput::Text("the cat".to_owned())];
    let of = |finish| launch.pool.embed(EmbedRequest { finish, ..request(text()) });
    let plain = of(EmbedFinish::default()).await.expect("a vector").values;
    let raw = of(EmbedFinish { activate: Some(false), ..EmbedFinish::default() }).await.expect("a vector").values;
    let length = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
    assert!((length(&plain) - 1.0).abs() < 1e-6 && (length(&raw) - 1.0).abs() > 0.1);
    let scaled: Vec<f32> = raw.iter().map(|value| value / length(&raw)).collect();
    close(&scaled, &plain, 1e-6, "the same direction");
    let short = of(EmbedFinish { dimensions: Some(5), activate: None }).await.expect("a vector");
    assert_eq!(short.width, 5);
    let first: Vec<f32> = plain[..5].iter().map(|value| value / length(&plain[..5])).collect();
    close(&short.values, &first, 1e-6, "the first values, of length 1");
    for dimensions in [0, 33] {
        let error = refusal(of(EmbedFinish { dimensions: Some(dimensions), activate: None }).await);
        assert!(error.param.as_deref() == Some("dimensions") && error.message.contains("1 to 32"), "{error}");
    }
    // Token ids are taken as they are, and texts without special tokens as well.
    let member = launch.pool.member("m").expect("the model");
    let input = TokenizeInput::Text { text: "the cat".to_owned(), add_special_tokens: true };
    let tokens = member.tokenize(input).expect("tokens").tokens;
    assert_eq!(member.detokenize(&tokens).expect("text"), "[CLS] the cat [SEP]");
    let ids = launch.pool.embed(request(vec![EmbedInput::Tokens(tokens.clone())])).await.expect("a vector");
    assert_eq!((ids.values, ids.prompt_tokens), (plain.clone(), 4));
    let bare = EmbedRequest { add_special_tokens: false, ..request(text()) };
    let inner = launch.pool.embed(request(vec![EmbedInput::Tokens(tokens[1..3].to_vec())])).await.expect("a vector");
    assert_eq!(launch.pool.embed(bare).await.expect("a vector"), inner);
    let error = refusal(launch.pool.embed(request(vec![EmbedInput::Tokens(vec![5, 5000])])).await);
    assert!(error.message.contains("5000 is outside the vocabulary"), "{error}");
    launch.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn many_texts_come_back_in_order_and_alike() {
    let launch = launch("bert").await;
    let words = ["the", "cat", "sat", "on", "mat", "dog", "ran", "far"];
    let all: Vec<String> = (0..1500_usize)
        .map(|place| (0..1 + place % 9).map(|at| words[(place * 7 + at * at) % 8]).collect::<Vec<_>>().join(" "))
        .collect();
    // Beside the event loop as well: a long text that is cut.
    let long = EmbedInput::Text("dog ".repeat(40_000));
    let pool = &launch.pool;
    let crowd = pool.embed(request(texts(&all)));
    let single = pool.embed(EmbedRequest { overlong: Overlong::Cut(None), ..request(vec![long.clone()]) });
    let (crowd, single) = tokio::join!(crowd, single);
    let (crowd, single) = (crowd.expect("vectors"), single.expect("a vector"));
    assert_eq!((crowd.rows().count(), single.prompt_tokens), (1500, 24));
    for place in [0, 1, 700, 1499] {
        let alone = pool.embed(request(texts(&all[place..=place]))).await.expect("a vector");
        let found = crowd.rows().nth(place).expect("a row");
        assert_eq!(alone.values, found, "text {place} alone and in a crowd");
    }
    let snapshot = pool.member("m").expect("the model").snapshot();
    assert_eq!((snapshot.embedded_texts, snapshot.running, snapshot.waiting), (1505, 0, 0));
    let alone: u64 = [0, 1, 700, 1499].into_iter().map(|place: u64| place % 9 + 3).sum();
    assert_eq!(snapshot.prompt_tokens, u64::from(crowd.prompt_tokens) + 24 + alone);
    assert!(snapshot.steps < 60, "{} steps for {} tokens", snapshot.steps, snapshot.prompt_tokens);
    // Refusing what is far too long is cheap and says so.
    let error = refusal(pool.embed(request(vec![long])).await);
    assert!(error.message.contains("more than 48 tokens"), "{error}");
    assert_eq!(pool.live(), 0);
    launch.stop(Duration::from_secs(5)).await;
}

#[derive(Deserialize)]
struct Judged {
    pairs: Vec<(String, String)>,
    scores: Vec<f32>,
    tokens: Vec<u32>,
    longest: u32,
    cut: Vec<f32>,
}

#[tokio::test]
async fn a_decoder_judges_as_its_model_card_says() {
    let reference = fixtures().join("qwen3_reranker");
    let launch = launched(&reference, TaskChoice::Score, ModelLimits::default()).await.expect("it loads");
    assert_eq!(launch.pool.member("m").expect("the model").card().task, Task::Score);
    let golden: Judged = read(&fixtures().join("qwen3_reranker.texts.json"));
    let pairs = || {
        let inputs = golden.pairs.iter().map(|(a, b)| EmbedInput::Pair(a.as_str().into(), b.clone())).collect();
        request(inputs)
    };
    let scores = launch.pool.embed(pairs()).await.expect("scores");
    close(&scores.values, &golden.scores, 1e-5, "scores");
    assert_eq!(scores.prompt_tokens, golden.tokens.iter().sum::<u32>());
    let cut = EmbedRequest { overlong: Overlong::Cut(Some(golden.longest)), ..pairs() };
    let cut = launch.pool.embed(cut).await.expect("cut documents");
    close(&cut.values, &golden.cut, 1e-5, "cut");
    assert_ne!(cut.values, scores.values);
    let finish = EmbedFinish { dimensions: None, activate: Some(false) };
    let logits = launch.pool.embed(EmbedRequest { finish, ..pairs() }).await.expect("logits").values;
    let shares: Vec<f32> = logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
    close(&shares, &golden.scores, 1e-5, "the share of yes");
    let long = EmbedInput::Pair("a".into(), "word ".repeat(200));
    let error = refusal(launch.pool.embed(request(vec![long])).await);
    assert_eq!(error.code, Some("context_length_exceeded"), "{error}");
    launch.stop(Duration::from_secs(5)).await;
    // Without being told it generates.
    let launch = launched(&reference, TaskChoice::Auto, ModelLimits::default()).await.expect("it loads");
    assert_eq!(launch.pool.member("m").expect("the model").card().task, Task::Generate);
    launch.stop(Duration::from_secs(5)).await;
    // Another decoder's vocabulary has no such prompt.
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let text = std::fs::read(reference.join(file)).expect("a fixture");
        let text = match file {
            "tokenizer.json" => String::from_utf8(text).expect("text").replace("<think>", "<thunk>").into_bytes(),
            _ => text,
        };
        std::fs::write(folder.path().join(file), text).expect("written");
    }
    let refused = launched(folder.path(), TaskChoice::Score, ModelLimits::default()).await;
    let error = refused.err().expect("another prompt");
    assert!(error.message.contains("no token <think>"), "{error}");
}

#[derive(Deserialize)]
struct Pairs {
    pairs: Vec<(String, String)>,
    scores: Vec<f32>,
    logits: Vec<f32>,
    cut_to_9: Vec<f32>,
}

#[tokio::test]
async fn scores_are_a_cross_encoders() {
    let launch = launch("reranker").await;
    assert_eq!(launch.pool.member("m").expect("the model").card().task, Task::Score);
    let golden: Pairs = read(&fixtures().join("reranker.texts.json"));
    let pairs = || {
        let inputs = golden.pairs.iter().map(|(a, b)| EmbedInput::Pair(a.as_str().into(), b.clone())).collect();
        request(inputs)
    };
    let scores = launch.pool.embed(pairs()).await.expect("scores");
    close(&scores.values, &golden.scores, 1e-5, "scores");
    let finish = EmbedFinish { dimensions: None, activate: Some(false) };
    let logits = launch.pool.embed(EmbedRequest { finish, ..pairs() }).await.expect("logits");
    close(&logits.values, &golden.logits, 1e-5, "logits");
    let cut = launch.pool.embed(EmbedRequest { overlong: Overlong::Cut(Some(9)), ..pairs() }).await.expect("scores");
    close(&cut.values, &golden.cut_to_9, 1e-5, "cut to 9 tokens");
    let error = refusal(launch.pool.embed(request(vec![EmbedInput::Text("a".to_owned())])).await);
    assert!(error.code == Some("wrong_task") && error.message.contains("/v1/rerank or /v1/score"), "{error}");
    let long = EmbedInput::Pair("the cat".into(), "dog ".repeat(60));
    assert_eq!(refusal(launch.pool.embed(request(vec![long])).await).code, Some("context_length_exceeded"));
    launch.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn tasks_are_told_apart_by_name() {
    let launch = launch("bert").await;
    let generate = Request {
        id: "test".to_owned(),
        model: "m".to_owned(),
        prompt: Prompt::Text("a".to_owned()),
        params: Params { n: 1, ..Params::default() },
        tenant: Tenant::default(),
        priority: 0,
        end_user: None,
    };
    let error = launch.pool.submit(generate).await.err().expect("it generates nothing");
    assert!(error.code == Some("wrong_task") && error.message.contains("/v1/embeddings"), "{error}");
    let pair = EmbedInput::Pair("a".into(), "b".to_owned());
    assert_eq!(refusal(launch.pool.embed(request(vec![pair])).await).code, Some("wrong_task"));
    launch.stop(Duration::from_secs(5)).await;

    let sim = Path::new("sim");
    let launch = launched(sim, TaskChoice::Auto, ModelLimits::default()).await.expect("sim");
    let error = refusal(launch.pool.embed(request(vec![EmbedInput::Text("a".to_owned())])).await);
    assert!(error.code == Some("wrong_task") && error.message.contains("--task embed"), "{error}");
    launch.stop(Duration::from_secs(5)).await;

    let refused = async |name: &str, task, limits| {
        launched(&fixtures().join(name), task, limits).await.err().expect("it is refused").message
    };
    let limits = ModelLimits::default;
    assert!(refused("bert", TaskChoice::Score, limits()).await.contains("--task score needs a model with a head"));
    assert!(refused("reranker", TaskChoice::Embed, limits()).await.contains("scores pairs of texts and nothing else"));
    assert!(refused("bert", TaskChoice::Generate, limits()).await.contains("BertModel is not supported"));
    let long = ModelLimits { max_model_len: Some(25), ..limits() };
    assert!(refused("bert", TaskChoice::Auto, long).await.contains("--max-model-len 25 is beyond the 24 tokens"));
    let error = launched(sim, TaskChoice::Embed, limits()).await.err().expect("it is refused");
    assert!(error.message.contains("sim makes no vectors"), "{error}");
    // Any decoder, when the operator says so.
    let launch = launched(Path::new("dummy:tiny:f32"), TaskChoice::Embed, limits()).await.expect("a decoder");
    let embedded = launch.pool.embed(request(vec![EmbedInput::Text("abc".to_owned())])).await.expect("a vector");
    let square: f32 = embedded.values.iter().map(|value| value * value).sum();
    assert!(embedded.width == 64 && (square - 1.0).abs() < 1e-5, "{square}");
    launch.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn one_server_chats_embeds_and_scores() {
    let (limits, auto) = (ModelLimits::default, TaskChoice::Auto);
    let models = [
        config("chat", Path::new("sim"), auto, limits()),
        config("vectors", &fixtures().join("bert"), auto, limits()),
        config("scores", &fixtures().join("reranker"), auto, limits()),
    ];
    let launch = Launch::plan(&models).expect("three models");
    let reports = launch.load(Arc::new(Silent)).await.expect("they load");
    let tasks: Vec<&str> = reports.iter().map(|report| report.task.name()).collect();
    assert_eq!(tasks, ["generate", "embed", "score"]);
    assert!(reports[1].what.starts_with("BertModel, 2 layers"), "{}", reports[1].what);
    let asked = |model: &str, input| EmbedRequest { model: model.to_owned(), ..request(vec![input]) };
    let vector = launch.pool.embed(asked("vectors", EmbedInput::Text("the cat".to_owned()))).await.expect("a vector");
    let score =
        launch.pool.embed(asked("scores", EmbedInput::Pair("a".into(), "b".to_owned()))).await.expect("a score");
    assert_eq!((vector.width, score.width), (32, 1));
    let error = refusal(launch.pool.embed(asked("", EmbedInput::Text("a".to_owned()))).await);
    assert_eq!(error.code, Some("model_not_found"), "which of the three is not said: {error}");
    launch.stop(Duration::from_secs(5)).await;
}

#[derive(Deserialize)]
struct Minilm {
    texts: Vec<String>,
    tokens: Vec<u32>,
    vectors: Vec<Vec<f32>>,
}

#[tokio::test]
async fn minilm_is_sentence_transformers() {
    let Ok(folder) = std::env::var("SCONCE_REAL_EMBEDDING_MODEL") else {
        println!("skipped: SCONCE_REAL_EMBEDDING_MODEL names no model folder");
        return;
    };
    let launch = launched(Path::new(&folder), TaskChoice::Auto, ModelLimits::default()).await.expect("it loads");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embed/minilm.json");
    let golden: Minilm = read(&path);
    let asked = EmbedRequest { overlong: Overlong::Cut(None), ..request(texts(&golden.texts)) };
    let embedded = launch.pool.embed(asked).await.expect("vectors");
    assert_eq!(embedded.prompt_tokens, golden.tokens.iter().sum::<u32>());
    for ((found, expected), text) in embedded.rows().zip(&golden.vectors).zip(&golden.texts) {
        let cosine: f32 = found.iter().zip(expected).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.9999, "{cosine}: {text}");
        close(found, expected, 1e-4, text);
    }
    launch.stop(Duration::from_secs(5)).await;
}
