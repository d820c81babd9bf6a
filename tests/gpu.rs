//! Models on GPUs through the whole server, on the stand-in: several replicas, models on several cards, and models that take
//! turns.
//!
//! A process has four stand-ins, whose memory is counted: tests run one at a time.

#[path = "gpu/bench.rs"]
mod bench;
#[path = "gpu/ranks.rs"]
mod ranks;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use sconce::api::{ApiConfig, router};
use sconce::config::pool::PoolConfig;
use sconce::config::{DeviceChoice, LoadPolicy, ModelConfig, ModelLimits};
use sconce::hub::progress::Silent;
use sconce::launch::Launch;
use sconce::pool::Shared;
use sconce::pool::lifecycle::{ModelStatus, State};
use sconce_cuda::Device;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use tower::ServiceExt;

fn model(device: u32, replicas: u32) -> ModelConfig {
    ModelConfig {
        reference: "dummy:tiny".to_owned(),
        served_names: vec!["m".to_owned()],
        device: DeviceChoice::Cuda(device),
        task: Default::default(),
        limits: ModelLimits {
            max_model_len: Some(128),
            max_num_seqs: 4,
            max_num_batched_tokens: Some(64),
            data_parallel_size: replicas,
            ..ModelLimits::default()
        },
        chat_template: None,
        parsers: Default::default(),
        lora: Default::default(),
        loading: Default::default(),
    }
}

async fn one_at_a_time() -> MutexGuard<'static, ()> {
    static CARDS: Mutex<()> = Mutex::const_new(());
    CARDS.lock().await
}

struct Server {
    app: Router,
    launch: Launch,
}

impl Server {
    async fn start(models: &[ModelConfig]) -> Self {
        Self::with_sleep_memory(models, None).await
    }

    async fn with_sleep_memory(models: &[ModelConfig], sleep_memory_bytes: Option<u64>) -> Self {
        let config = PoolConfig { sleep_memory_bytes, ..PoolConfig::default() };
        let launch = Launch::plan_pool(models, &config, Shared::default()).expect("good models");
        let app = router(Arc::clone(&launch.pool), Arc::clone(&launch.metrics), ApiConfig::default());
        launch.load(Arc::new(Silent)).await.expect("they load");
        Self { app, launch }
    }

    async fn ask(&self, request: Request<Body>) -> (StatusCode, String) {
        let response = self.app.clone().oneshot(request).await.expect("infallible");
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("a whole body").to_bytes();
        (status, String::from_utf8(bytes.to_vec()).expect("UTF-8"))
    }

    async fn get(&self, path: &str) -> String {
        self.ask(Request::get(path).body(Body::empty()).expect("a request")).await.1
    }

    /// The answer, which is none of an error.
    async fn post(&self, path: &str, body: Value) -> String {
        let request = Request::post(path).header("content-type", "application/json");
        let (status, text) = self.ask(request.body(Body::from(body.to_string())).expect("a request")).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        text
    }

    async fn refused(&self, path: &str) -> String {
        let request = Request::post(path).body(Body::empty()).expect("a request");
        let (status, text) = self.ask(request).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
        text
    }

    /// Tokens that an engine says it has generated.
    async fn tokens(&self, model: &str, engine: u32) -> u32 {
        let page = self.get("/metrics").await;
        let name = format!("vllm:generation_tokens_total{{model_name=\"{model}\",engine=\"{engine}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name}\n{page}")).parse().expect("a number")
    }

    /// An engine publishes its figures just after the answers of a step.
    async fn counted(&self, count: impl AsyncFn() -> u32, wanted: u32) {
        for _ in 0..400 {
            if count().await == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(count().await, wanted);
    }

    fn status(&self, model: &str) -> ModelStatus {
        self.launch.pool.lifecycle().find(model).expect("it is known").status()
    }

    async fn complete(&self, body: Value) -> Value {
        serde_json::from_str(&self.post("/v1/completions", body).await).expect("JSON")
    }
}

fn free(device: u32) -> u64 {
    Device::host_numbered(device).expect("there are four").memory_free().expect("it can be asked")
}

#[tokio::test]
async fn replicas_have_their_own_cards_and_answer_alike() {
    let _cards = one_at_a_time().await;
    let before = [free(0), free(1)];
    let server = Server::start(&[model(0, 2)]).await;
    let taken = [before[0] - free(0), before[1] - free(1)];
    assert!(taken[0] > 1 << 20 && taken[0] == taken[1], "weights and caches on both: {taken:?}");
    let prompt: Vec<u32> = (40..90).collect();
    let ask = |own: u32, extra: Value| {
        let mut body =
            json!({"model": "m", "prompt": [own, own, own], "max_tokens": 6, "temperature": 0, "ignore_eos": true});
        let fields = body.as_object_mut().expect("an object");
        fields.extend(extra.as_object().expect("an object").clone());
        body
    };
    // The first goes to one card and the second to the other: the same weights give the same answer.
    let extra = json!({"prompt": prompt, "logprobs": 2});
    let first = server.complete(ask(1, extra.clone())).await;
    let other = server.complete(ask(1, json!({"prompt": [5, 6, 7]}))).await;
    assert_eq!(other["usage"]["completion_tokens"], 6);
    let again = server.complete(ask(1, extra)).await;
    assert_eq!(first["choices"][0]["logprobs"]["token_logprobs"].as_array().map(Vec::len), Some(6));
    assert_eq!(first["choices"][0]["text"], again["choices"][0]["text"]);
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() >= Some(32), "{}", again["usage"]);
    let several = server.complete(ask(9, json!({"n": 3, "temperature": 1, "seed": 3}))).await;
    assert_eq!(several["choices"].as_array().map(Vec::len), Some(3));
    let streamed = server.post("/v1/completions", ask(11, json!({"stream": true}))).await;
    assert!(streamed.trim_end().ends_with("[DONE]"), "{streamed}");
    let tokens = async |engine| server.tokens("m", engine).await;
    server.counted(async || tokens(0).await + tokens(1).await, 6 + 6 + 6 + 18 + 6).await;
    assert!(tokens(0).await >= 12 && tokens(1).await >= 6, "{} and {}", tokens(0).await, tokens(1).await);
    server.launch.stop(Duration::from_secs(10)).await;
    drop(server);
    assert_eq!([free(0), free(1)], before, "all memory was given back");
}

#[tokio::test]
async fn more_replicas_than_cards_are_refused() {
    let error = Launch::plan(&[model(2, 3)]).err().expect("there are four cards");
    let said = ["--data-parallel-size 3", "cuda:2", "cuda:4", "there are 4"];
    assert!(said.iter().all(|part| error.message.contains(part)), "{error}");
    let error = Launch::plan(&[model(7, 1)]).err().expect("there are four cards");
    assert!(error.message.contains("cuda:7") && error.message.contains('4'), "{error}");
}

/// What the cache of a large model takes. One fits on a card of 1400 MiB beside what is kept for graphs, two do not at all.
const KV_BYTES: u64 = 700 << 20;

/// Leaves 1400 MiB of the card to us.
fn occupy(device: u32) {
    Device::host_occupy(device, free(device) - (1400 << 20));
}

fn large(name: &str, device: u32) -> ModelConfig {
    let model = model(device, 1);
    let limits =
        ModelLimits { memory_share_permille: 1000, kv_cache_memory_bytes: Some(KV_BYTES), ..model.limits.clone() };
    let loading = LoadPolicy { on_demand: true, ..LoadPolicy::default() };
    ModelConfig { served_names: vec![name.to_owned()], limits, loading, ..model }
}

fn question(model: &str) -> Value {
    json!({"model": model, "prompt": [40, 41, 42, 43], "max_tokens": 5, "temperature": 0, "ignore_eos": true})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_that_do_not_fit_together_take_turns_asleep() {
    let _cards = one_at_a_time().await;
    occupy(2);
    let before = free(2);
    let server = Server::with_sleep_memory(&[large("a", 2), large("b", 2)], Some(1 << 30)).await;
    let first = server.complete(question("a")).await;
    let taken = before - free(2);
    assert!(taken > KV_BYTES, "{taken} bytes for one");
    server.complete(question("b")).await;
    let (a, b) = (server.status("a"), server.status("b"));
    assert_eq!((a.state, a.evictions, a.sleeps, b.state), (State::Sleeping, 1, 1, State::Ready));
    assert!(a.memory.total_bytes() > 0 && b.memory.total_bytes() == 0, "{:?}", a.memory);
    assert_eq!(before - free(2), taken, "the other one, and nothing of this one");
    let again = server.complete(question("a")).await;
    assert_eq!(again["choices"], first["choices"], "the same weights");
    let (a, b) = (server.status("a"), server.status("b"));
    assert_eq!((a.state, a.loads, b.state), (State::Ready, 1, State::Sleeping));
    assert!(a.wake_time.is_some());
    // Whoever is asked while the other one runs waits for its turn, and nobody is cut.
    let asked = (0..10).map(|at| {
        let mut body = question(if at % 2 == 0 { "a" } else { "b" });
        body["stream"] = json!(true);
        server.post("/v1/completions", body)
    });
    for answer in futures_util::future::join_all(asked).await {
        assert!(answer.contains("\"length\"") && !answer.contains("\"error\""), "{answer}");
    }
    for name in ["a", "b"] {
        let status = server.status(name);
        assert_eq!((status.loads, status.load_failures), (1, 0), "{status:?}");
        let answers = if name == "a" { 7 } else { 6 };
        server.counted(async || server.tokens(name, 0).await, 5 * answers).await;
    }
    operators_words(&server, before).await;
    server.launch.stop(Duration::from_secs(10)).await;
    drop(server);
    assert_eq!(free(2), before, "all memory was given back");
}

async fn operators_words(server: &Server, before: u64) {
    for name in ["a", "b"] {
        let path = format!("/sleep?level=1&model={name}");
        if server.status(name).state == State::Ready {
            assert!(server.post(&path, json!({})).await.contains("\"sleeping\""));
        }
        assert!(server.post(&path, json!({})).await.contains("\"sleeping\""), "it sleeps already");
        assert!(server.get(&format!("/is_sleeping?model={name}")).await.contains("true"));
    }
    assert_eq!(free(2), before, "nobody is there");
    assert!(server.post("/wake_up?model=b", json!({})).await.contains("\"ready\""));
    assert!(server.get("/is_sleeping?model=b").await.contains("false"));
    assert!(server.refused("/sleep?model=a&level=2").await.contains("level"));
    assert!(server.refused("/wake_up?model=a&tags=weights").await.contains("tags"));
    assert!(server.refused("/sleep").await.contains("model"), "which of the two");
    server.post("/v1/models/unload", json!({"model": "a"})).await;
    assert_eq!(server.status("a").state, State::Unloaded, "one that sleeps can be unloaded");
    assert!(server.refused("/sleep?model=a").await.contains("not in memory"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_host_memory_for_it_no_model_sleeps() {
    let _cards = one_at_a_time().await;
    occupy(3);
    let sim = ModelConfig { reference: "sim".to_owned(), device: DeviceChoice::Cpu, ..large("sim", 3) };
    let server = Server::with_sleep_memory(&[large("a", 3), large("b", 3), sim], Some(0)).await;
    for (round, (name, other)) in [("a", "b"), ("b", "a"), ("a", "b")].into_iter().enumerate() {
        server.complete(question(name)).await;
        let (there, gone) = (server.status(name), server.status(other));
        assert_eq!((there.state, gone.sleeps), (State::Ready, 0), "round {round}");
        assert!(matches!(gone.state, State::Configured | State::Unloaded), "{gone:?}");
    }
    assert_eq!(server.status("a").loads, 2);
    assert!(server.refused("/sleep?model=a").await.contains("--sleep-memory"));
    server.complete(question("sim")).await;
    assert!(server.refused("/sleep?model=sim").await.contains("unload"));
    server.launch.stop(Duration::from_secs(10)).await;
}
