//! LoRA adapters through the HTTP API: chosen by name, beside each other, loaded and unloaded while requests run, with
//! the answers of Transformers and PEFT.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use sconce::api::{ApiConfig, router};
use sconce::config::lora::{LoraConfig, LoraModule, LoraWishes};
use sconce::config::{DeviceChoice, KvCacheDtype, MatmulPrecision, ModelConfig, ModelLimits};
use sconce::hub::progress::Silent;
use sconce::launch::Launch;
use serde_json::{Value, json};
use tower::ServiceExt;

const ADAPTERS: [&str; 3] = ["all", "patterns", "second_layer"];
const VOCABULARY: usize = 96;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures")
}

/// The tiny model with a tokenizer in which every token is one character.
fn model_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(fixtures().join("llama3")).expect("the fixture is there") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    let characters = ('!'..='~').chain(['\u{120}', '\u{10a}']);
    let vocabulary: serde_json::Map<String, Value> =
        characters.enumerate().map(|(id, character)| (character.to_string(), json!(id))).collect();
    assert_eq!(vocabulary.len(), VOCABULARY);
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).expect("a file");
    folder
}

/// The tensors of a golden file, as the words that they hold.
fn golden(path: &Path) -> HashMap<String, Vec<[u8; 4]>> {
    let bytes = fs::read(path).expect("the golden file is there");
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).expect("a header");
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    let words = |tensor: &Value| {
        let at = |index: usize| tensor["data_offsets"][index].as_u64().expect("an offset") as usize;
        data[at(0)..at(1)].as_chunks::<4>().0.to_vec()
    };
    tensors.map(|(name, tensor)| (name.clone(), words(tensor))).collect()
}

/// What should follow each prompt: the likeliest token, and its log probability.
fn expected(logits: &[[u8; 4]]) -> (usize, f32) {
    let logits: Vec<f32> = logits.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let last = &logits[logits.len() - VOCABULARY..];
    let best = (0..VOCABULARY).max_by(|a, b| last[*a].total_cmp(&last[*b])).expect("a vocabulary");
    (best, -last.iter().map(|logit| (logit - last[best]).exp()).sum::<f32>().ln())
}

fn config(folder: &Path, wishes: LoraWishes) -> ModelConfig {
    ModelConfig {
        reference: folder.display().to_string(),
        served_names: vec!["base".to_owned()],
        device: DeviceChoice::Cpu,
        task: Default::default(),
        limits: ModelLimits {
            kv_cache_dtype: KvCacheDtype::F32,
            matmul_precision: MatmulPrecision::High,
            kv_cache_memory_bytes: Some(4 << 20),
            ..ModelLimits::default()
        },
        chat_template: None,
        parsers: Default::default(),
        lora: LoraConfig::checked(wishes).expect("a sound wish"),
        loading: Default::default(),
    }
}

struct World {
    launch: Launch,
    app: Router,
    _model: tempfile::TempDir,
}

async fn world(wishes: LoraWishes) -> World {
    let model = model_folder();
    let launch = Launch::plan(&[config(model.path(), wishes)]).expect("a plan");
    let app = router(Arc::clone(&launch.pool), Arc::clone(&launch.metrics), ApiConfig::default());
    launch.load(Arc::new(Silent)).await.expect("it loads");
    World { launch, app, _model: model }
}

fn modules() -> Vec<LoraModule> {
    let folder = fixtures().join("adapters/llama3");
    let module = |name: &str| LoraModule { name: name.to_owned(), path: folder.join(name).display().to_string() };
    ADAPTERS.map(module).into()
}

impl World {
    async fn get(&self, path: &str) -> (StatusCode, String) {
        self.ask(Request::get(path).body(Body::empty()).expect("a request")).await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, String) {
        let request = Request::post(path).header("content-type", "application/json").body(Body::from(body.to_string()));
        self.ask(request.expect("a request")).await
    }

    async fn ask(&self, request: Request<Body>) -> (StatusCode, String) {
        let answer = self.app.clone().oneshot(request).await.expect("infallible");
        let status = answer.status();
        let bytes = answer.into_body().collect().await.expect("a whole body").to_bytes();
        (status, String::from_utf8(bytes.to_vec()).expect("UTF-8"))
    }

    /// The next token of a prompt, with its log probability.
    async fn next(&self, model: &str, prompt: &[u32]) -> (String, f32) {
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1,
            "ignore_eos": true});
        let (status, text) = self.post("/v1/completions", body).await;
        assert_eq!(status, StatusCode::OK, "{model}: {text}");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(answer["model"], model);
        let logprobs = &answer["choices"][0]["logprobs"];
        let token = logprobs["tokens"][0].as_str().expect("a token").to_owned();
        (token, logprobs["token_logprobs"][0].as_f64().expect("a number") as f32)
    }

    /// What a body is refused with: status and parameter.
    async fn refusal(&self, path: &str, body: Value) -> (u16, String) {
        let (status, text) = self.post(path, body).await;
        let answer: Value = serde_json::from_str(&text).expect("an error in JSON");
        (status.as_u16(), answer["error"]["param"].as_str().unwrap_or_default().to_owned())
    }

    async fn stop(self) {
        self.launch.stop(Duration::from_secs(30)).await;
    }
}

/// The text of a token, as the log probabilities name it.
fn text_of(id: usize) -> String {
    let characters: Vec<char> = ('!'..='~').chain([' ', '\n']).collect();
    characters[id].to_string()
}

/// Model, prompt, and what should follow.
fn cases(adapters: &[&str]) -> Vec<(String, Vec<u32>, (usize, f32))> {
    let (plain, adapted) = (
        golden(&fixtures().join("llama3.golden.safetensors")),
        golden(&fixtures().join("adapters/llama3.golden.safetensors")),
    );
    let mut cases = Vec::new();
    for index in 0..3 {
        let prompt: Vec<u32> = plain[&format!("prompt.{index}")].iter().map(|word| u32::from_le_bytes(*word)).collect();
        cases.push(("base".to_owned(), prompt.clone(), expected(&plain[&format!("logits.{index}")])));
        for name in adapters {
            let truth = expected(&adapted[&format!("logits.{name}.{index}")]);
            cases.push(((*name).to_owned(), prompt.clone(), truth));
        }
    }
    cases
}

#[tokio::test]
async fn each_adapter_answers_by_its_name_as_transformers_and_peft_do() {
    let world = world(LoraWishes { modules: modules(), ..LoraWishes::default() }).await;
    // Twice, so that the second time finds prefixes in the cache; all at once, so that they share steps.
    for _ in 0..2 {
        let cases = cases(&ADAPTERS);
        let asked = cases.iter().map(|(model, prompt, _)| world.next(model, prompt));
        let answers = futures_util::future::join_all(asked).await;
        for ((model, prompt, (token, logprob)), (text, found)) in cases.iter().zip(answers) {
            assert_eq!(text, text_of(*token), "{model} after {} tokens", prompt.len());
            assert!((found - logprob).abs() < 2e-3, "{model}: {found} is not {logprob}");
        }
    }
    let (_, list) = world.get("/v1/models").await;
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let models: Vec<(&str, &Value)> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|model| (model["id"].as_str().unwrap(), &model["parent"]))
        .collect();
    let base = json!("base");
    assert_eq!(models, [("base", &Value::Null), ("all", &base), ("patterns", &base), ("second_layer", &base)]);
    assert!(list["data"][1]["root"].as_str().is_some_and(|root| root.ends_with("adapters/llama3/all")));
    let (_, metrics) = world.get("/metrics").await;
    let line = metrics.lines().find(|line| line.starts_with("vllm:lora_requests_info{")).expect("the gauge");
    assert!(line.contains(r#"max_lora="8""#) && line.contains(r#"running_lora_adapters="""#), "{line}");
    let unknown = json!({"model": "none", "prompt": [1]});
    assert_eq!(world.refusal("/v1/completions", unknown).await, (404, "model".to_owned()));
    // Nothing may be loaded that was not named at the start.
    let load = json!({"lora_name": "late", "lora_path": "linear"});
    assert_eq!(world.refusal("/v1/load_lora_adapter", load).await.0, 403);
    assert_eq!(world.refusal("/v1/unload_lora_adapter", json!({"lora_name": "all"})).await.0, 403);
    world.stop().await;
}

#[tokio::test]
async fn adapters_come_and_go_while_the_server_runs() {
    let folder = fixtures().join("adapters/llama3");
    let wishes = LoraWishes { folder: Some(folder.clone()), max_loras: Some(2), ..LoraWishes::default() };
    let world = world(wishes).await;
    let load = |name: &str, path: &str| json!({"lora_name": name, "lora_path": path});
    for (body, refused) in [
        (load("late", "../qwen2/all"), (404, "lora_path")),
        (load("late", folder.parent().unwrap().to_str().unwrap()), (404, "lora_path")),
        (load("late", "nowhere"), (404, "lora_path")),
        (load("base", "all"), (400, "lora_name")),
        (load("", "all"), (400, "lora_name")),
        (load("a b", "all"), (400, "lora_name")),
        (json!({"lora_name": "late"}), (400, "lora_path")),
        (json!({"lora_name": "late", "lora_path": "all", "base_model_name": "other"}), (404, "model")),
    ] {
        let found = world.refusal("/v1/load_lora_adapter", body.clone()).await;
        assert_eq!(found, (refused.0, refused.1.to_owned()), "{body}");
    }
    let (status, said) = world.post("/v1/load_lora_adapter", load("late", "all")).await;
    assert_eq!((status, said.as_str()), (StatusCode::OK, "Success: LoRA adapter 'late' added successfully."));
    let cases = cases(&["all", "patterns"]);
    let truth = |name: &str| cases.iter().find(|(model, ..)| model == name).expect("a case").clone();
    let (_, prompt, (all, _)) = truth("all");
    assert_eq!(world.next("late", &prompt).await.0, text_of(all));
    assert_eq!(world.refusal("/v1/load_lora_adapter", load("late", "patterns")).await, (400, "lora_name".to_owned()));
    let again = json!({"lora_name": "late", "lora_path": "patterns", "load_inplace": true});
    assert_eq!(world.post("/v1/load_lora_adapter", again).await.0, StatusCode::OK);
    assert_eq!(world.next("late", &prompt).await.0, text_of(truth("patterns").2.0), "the new one, and no old prefix");
    assert_eq!(world.post("/v1/load_lora_adapter", load("other", "all")).await.0, StatusCode::OK);
    assert_eq!(world.refusal("/v1/load_lora_adapter", load("third", "all")).await, (400, "lora_name".to_owned()));

    // A request that has begun goes on, a new one does not find it.
    let body = json!({"model": "other", "prompt": prompt, "max_tokens": 80, "temperature": 0, "stream": true,
        "ignore_eos": true, "stream_options": {"include_usage": true}});
    let request = Request::post("/v1/completions").header("content-type", "application/json");
    let request = request.body(Body::from(body.to_string())).expect("a request");
    let running = world.app.clone().oneshot(request).await.expect("infallible");
    let mut events = running.into_body().into_data_stream();
    let first = events.next().await.expect("a first event").expect("no break");
    let (status, said) = world.post("/v1/unload_lora_adapter", json!({"lora_name": "other"})).await;
    assert_eq!((status, said.as_str()), (StatusCode::OK, "Success: LoRA adapter 'other' removed successfully."));
    assert_eq!(world.refusal("/v1/completions", json!({"model": "other", "prompt": [1]})).await.0, 404);
    assert_eq!(world.refusal("/v1/unload_lora_adapter", json!({"lora_name": "other"})).await.0, 404);
    let mut text = String::from_utf8(first.to_vec()).expect("UTF-8");
    while let Some(event) = events.next().await {
        text += std::str::from_utf8(&event.expect("no break")).expect("UTF-8");
    }
    assert!(text.contains(r#""completion_tokens":80"#) && text.contains("[DONE]"), "{text}");
    assert_eq!(world.post("/v1/load_lora_adapter", load("third", "all")).await.0, StatusCode::OK, "its place is free");
    world.stop().await;
}

#[tokio::test]
async fn what_cannot_have_adapters_says_so_before_it_is_loaded() {
    let model = model_folder();
    let path = |path: PathBuf| path.display().to_string();
    for (name, path, names) in [
        ("far", path(fixtures().join("adapters/phi3_short/fused")), "shape"),
        ("gone", path(fixtures().join("nowhere")), "adapter_config.json"),
    ] {
        let modules = vec![LoraModule { name: name.to_owned(), path }];
        let launch = Launch::plan(&[config(model.path(), LoraWishes { modules, ..LoraWishes::default() })]);
        let error = launch.expect("a plan").load(Arc::new(Silent)).await.expect_err(name);
        assert!(error.message.contains(names) && error.message.contains(name), "{error}");
    }
    let sim = ModelConfig {
        reference: "sim".to_owned(),
        ..config(model.path(), LoraWishes { modules: modules(), ..LoraWishes::default() })
    };
    let error = Launch::plan(std::slice::from_ref(&sim))
        .expect("a plan")
        .load(Arc::new(Silent))
        .await
        .expect_err("sim has no weights");
    assert!(error.message.contains("takes no adapters"), "{error}");
    let mut taken = config(model.path(), LoraWishes { modules: modules(), ..LoraWishes::default() });
    taken.served_names.push("all".to_owned());
    let error = Launch::plan(&[taken]).err().expect("two of one name");
    assert!(error.message.contains("'all'"), "{error}");
}
