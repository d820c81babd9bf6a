//! Models that come and go: on demand, within a budget, by an operator's word, and swapped under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use sconce::api::{ApiConfig, router};
use sconce::config::env::Variable;
use sconce::config::keys::{KeySection, checked, hash_text};
use sconce::config::pool::PoolConfig;
use sconce::config::{DeviceChoice, LoadPolicy, ModelConfig, ModelLimits};
use sconce::hub::progress::Silent;
use sconce::launch::Launch;
use sconce::pool::Shared;
use sconce::pool::lifecycle::{ModelStatus, State};
use serde_json::{Value, json};
use tower::ServiceExt;

const CHURN: Variable = Variable { name: "SCONCE_TEST_CHURN_REQUESTS", help: "requests of the churn test" };
const SWAPS: Variable = Variable { name: "SCONCE_TEST_SWAP_REQUESTS", help: "requests of the hot-swap test" };
/// What the KV cache of a test's model takes; it has no weights.
const KV_BYTES: u64 = 8 * 4096;

fn model(name: &str, loading: LoadPolicy) -> ModelConfig {
    ModelConfig {
        reference: "sim".to_owned(),
        served_names: vec![name.to_owned()],
        device: DeviceChoice::Cpu,
        task: Default::default(),
        limits: ModelLimits {
            max_model_len: Some(1024),
            max_num_seqs: 8,
            kv_cache_memory_bytes: Some(KV_BYTES),
            ..ModelLimits::default()
        },
        chat_template: None,
        parsers: Default::default(),
        lora: Default::default(),
        loading,
    }
}

fn on_demand(name: &str) -> ModelConfig {
    model(name, LoadPolicy { on_demand: true, ..LoadPolicy::default() })
}

struct Server {
    app: Router,
    launch: Arc<Launch>,
}

struct Answer {
    status: StatusCode,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("JSON")
    }
}

impl Server {
    fn new(models: &[ModelConfig], memory_max: Option<u64>) -> Self {
        Self::with(models, memory_max, ApiConfig::default())
    }

    fn with(models: &[ModelConfig], memory_max: Option<u64>, api: ApiConfig) -> Self {
        let config = PoolConfig { models_memory_bytes: memory_max, ..PoolConfig::default() };
        let launch = Arc::new(Launch::plan_pool(models, &config, Shared::default()).expect("good models"));
        let app = router(Arc::clone(&launch.pool), Arc::clone(&launch.metrics), api);
        Self { app, launch }
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.app.clone().oneshot(request).await.expect("infallible");
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("a whole body").to_bytes();
        Answer { status, text: String::from_utf8(bytes.to_vec()).expect("UTF-8") }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Request::get(path).body(Body::empty()).expect("a request")).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_as("", path, body).await
    }

    async fn post_as(&self, key: &str, path: &str, body: Value) -> Answer {
        let request = Request::post(path).header("content-type", "application/json");
        let request = request.header("authorization", format!("Bearer {key}"));
        self.ask(request.body(Body::from(body.to_string())).expect("a request")).await
    }

    async fn chat(&self, model: &str, tokens: u32, stream: bool) -> Answer {
        self.post("/v1/completions", question(model, tokens, stream)).await
    }

    fn status(&self, model: &str) -> ModelStatus {
        self.launch.pool.lifecycle().find(model).expect("it is known").status()
    }
}

fn question(model: &str, tokens: u32, stream: bool) -> Value {
    json!({"model": model, "prompt": "hi", "max_tokens": tokens, "ignore_eos": true, "stream": stream})
}

#[tokio::test]
async fn a_request_waits_for_its_model_and_one_load_serves_all() {
    let server = Server::new(&[on_demand("a"), on_demand("b")], Some(KV_BYTES * 3 / 2));
    assert!(server.launch.load(Arc::new(Silent)).await.expect("nothing to load").is_empty());
    assert_eq!(server.get("/ready").await.status, StatusCode::OK, "requests wait, none fails");
    assert_eq!(server.get("/ready?model=a").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.get("/ready?model=x").await.status, StatusCode::NOT_FOUND);
    assert_eq!((server.status("a").state, server.status("a").loads), (State::Configured, 0));
    let asked = (0..8).map(|at| server.chat("a", 3, at % 2 == 0));
    for answer in futures_util::future::join_all(asked).await {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        assert!(!answer.text.contains("\"error\""), "{}", answer.text);
    }
    let a = server.status("a");
    assert_eq!((a.state, a.loads, a.memory.kv_bytes), (State::Ready, 1, KV_BYTES));
    assert_eq!(server.get("/ready?model=a").await.status, StatusCode::OK);
    // There is room for one and a half.
    assert_eq!(server.chat("b", 3, false).await.status, StatusCode::OK);
    let (a, b) = (server.status("a"), server.status("b"));
    assert_eq!((a.state, a.evictions, b.state), (State::Unloaded, 1, State::Ready));
    let list = server.get("/v1/models").await.json();
    let words: Vec<_> = list["data"].as_array().expect("a list").iter().map(|one| &one["status"]["value"]).collect();
    assert_eq!(words, ["unloaded", "loaded"]);
    // The tokens that the first engine had counted are not forgotten.
    assert_eq!(server.status("a").loads, 1);
    assert!(
        server.get("/metrics").await.text.contains("vllm:generation_tokens_total{model_name=\"a\",engine=\"0\"} 24")
    );
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("broken.gguf");
    std::fs::write(&path, b"not a model").expect("written");
    let broken = ModelConfig { reference: path.display().to_string(), ..on_demand("broken") };
    let server = Server::new(&[broken, on_demand("a")], None);
    for _ in 0..2 {
        let answer = server.chat("broken", 1, false).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
        assert!(answer.text.contains("broken.gguf") && answer.text.contains("model_failed"), "{}", answer.text);
    }
    let status = server.status("broken");
    assert_eq!((status.state, status.load_failures), (State::Failed, 1), "it is not tried again at once");
    let answer = server.post("/v1/models/load", json!({"model": "broken"})).await;
    assert!(answer.text.contains("broken.gguf"), "{}", answer.text);
    assert_eq!(server.chat("a", 1, false).await.status, StatusCode::OK);
}

#[tokio::test]
async fn pinned_models_stay_and_what_never_fits_is_refused() {
    let pinned = model("a", LoadPolicy { pinned: true, ..LoadPolicy::default() });
    let idle = model("c", LoadPolicy { on_demand: true, idle_unload: Some(Duration::from_millis(1)), pinned: false });
    let server = Server::new(&[pinned, on_demand("b"), idle], Some(KV_BYTES * 5 / 2));
    server.launch.load(Arc::new(Silent)).await.expect("it fits");
    for name in ["b", "c", "b"] {
        assert_eq!(server.chat(name, 1, false).await.status, StatusCode::OK);
    }
    assert_eq!((server.status("a").state, server.status("a").evictions), (State::Ready, 0));
    assert_eq!((server.status("b").loads, server.status("c").evictions), (2, 1));
    assert_eq!(server.chat("c", 1, false).await.status, StatusCode::OK);
    while server.status("c").state == State::Ready {
        server.launch.pool.lifecycle().tick().await;
        tokio::task::yield_now().await;
    }
    assert_eq!((server.status("c").state, server.status("a").state), (State::Unloaded, State::Ready));
    let small = Server::new(&[on_demand("b")], Some(KV_BYTES / 2));
    let answer = small.chat("b", 1, false).await;
    assert!(
        answer.status == StatusCode::SERVICE_UNAVAILABLE && answer.text.contains("--models-memory"),
        "{}",
        answer.text
    );
    let two = [model("a", LoadPolicy::default()), model("b", LoadPolicy::default())];
    let error = Server::new(&two, Some(KV_BYTES * 3 / 2)).launch.load(Arc::new(Silent)).await.expect_err("too much");
    assert!(error.message.contains("--models-memory"), "{error}");
}

#[tokio::test]
async fn an_operator_loads_and_unloads() {
    let section = |name: &str, admin| KeySection {
        name: name.to_owned(),
        hash: hash_text(&format!("key-of-{name}")),
        admin,
        ..KeySection::default()
    };
    let keys = checked(&[section("ann", false), section("root", true)]).expect("good keys");
    let server = Server::with(&[on_demand("a")], None, ApiConfig { keys, ..ApiConfig::default() });
    let body = json!({"model": "a"});
    for path in ["/v1/models/load", "/v1/models/unload", "/v1/log-level", "/v1/reload"] {
        let body = match path {
            "/v1/log-level" => json!({"filter": "info"}),
            "/v1/reload" => json!({}),
            _ => body.clone(),
        };
        assert_eq!(server.post_as("key-of-ann", path, body).await.status, StatusCode::FORBIDDEN, "{path}");
    }
    let root = async |path: &str, body: Value| server.post_as("key-of-root", path, body).await;
    assert_eq!(root("/v1/models/load", json!({"model": "/etc/passwd"})).await.status, StatusCode::NOT_FOUND);
    assert_eq!(root("/v1/models/load", json!({})).await.status, StatusCode::BAD_REQUEST);
    let events = root("/v1/models/load", json!({"model": "a", "stream": true})).await;
    assert!(events.text.trim_end().ends_with("data: [DONE]"), "{}", events.text);
    let last = events.text.lines().rfind(|line| line.starts_with("data: {")).expect("an event");
    let last: Value = serde_json::from_str(last.trim_start_matches("data: ")).expect("JSON");
    assert_eq!((&last["state"], &last["memory"]["kv_bytes"]), (&json!("ready"), &json!(KV_BYTES)));
    // What has begun is finished; what comes meanwhile waits and has it loaded again.
    let running = server.post_as("key-of-ann", "/v1/completions", question("a", 40, true));
    let (streamed, unloaded) = tokio::join!(running, async {
        while server.status("a").running == 0 {
            tokio::task::yield_now().await;
        }
        root("/v1/models/unload", body.clone()).await
    });
    assert!(streamed.text.contains("\"length\"") && !streamed.text.contains("\"error\""), "{}", streamed.text);
    assert_eq!(unloaded.json()["state"], "unloaded", "{}", unloaded.text);
    assert_eq!(root("/v1/models/unload", body.clone()).await.json()["state"], "unloaded");
    let again = server.post_as("key-of-ann", "/v1/completions", question("a", 1, false)).await;
    assert_eq!((again.status, server.status("a").loads), (StatusCode::OK, 2), "{}", again.text);
}

/// Closed-loop clients, each asking for another model each time.
async fn clients(server: &Arc<Server>, requests: usize, pick: fn(usize) -> String) {
    let asked = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let (server, asked) = (Arc::clone(server), Arc::clone(&asked));
            tokio::spawn(async move {
                loop {
                    let turn = asked.fetch_add(1, Ordering::Relaxed);
                    if turn >= requests {
                        return;
                    }
                    let answer = server.chat(&pick(turn), 2, turn % 3 == 0).await;
                    let is_whole = !answer.text.contains("\"error\"") && answer.text.contains("\"length\"");
                    assert!(answer.status == StatusCode::OK && is_whole, "request {turn}: {}", answer.text);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("no client saw a fault");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_take_turns_in_a_budget_and_nobody_is_refused() {
    let requests = CHURN.get().and_then(|text| text.parse().ok()).unwrap_or(120);
    let names = ["m0", "m1", "m2", "m3", "m4", "m5"];
    let budget = KV_BYTES * 5 / 2;
    let server = Arc::new(Server::new(&names.map(on_demand), Some(budget)));
    let watched = Arc::clone(&server);
    let watch = tokio::spawn(async move {
        loop {
            // A list is not of one instant: one model may have gone after it was read and made room for the next. Those that
            // stand in two lists unchanged were there together between them.
            let [first, second] = [(); 2].map(|()| watched.launch.pool.lifecycle().statuses());
            let stayed = first.iter().zip(&second).filter(|(a, b)| (a.loads, a.evictions) == (b.loads, b.evictions));
            let used: u64 = stayed.map(|(a, b)| a.memory.total_bytes().min(b.memory.total_bytes())).sum();
            assert!(used <= budget, "{used} bytes of {budget}");
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    clients(&server, requests, |turn| format!("m{}", turn * 7 / 3 % 6)).await;
    assert!(!watch.is_finished(), "the budget was never passed");
    watch.abort();
    let all = server.launch.pool.lifecycle().statuses();
    assert!(all.iter().all(|status| status.loads > 0 && status.load_failures == 0), "{all:?}");
    let evictions: u64 = all.iter().map(|status| status.evictions).sum();
    assert!(evictions >= 4, "{evictions} evictions");
    println!("{requests} requests, {} loads", all.iter().map(|status| status.loads).sum::<u64>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_swapped_under_load_and_no_request_fails() {
    let requests = SWAPS.get().and_then(|text| text.parse().ok()).unwrap_or(300);
    let of = |seqs| {
        let plain = model("m", LoadPolicy::default());
        ModelConfig { limits: ModelLimits { max_num_seqs: seqs, ..plain.limits.clone() }, ..plain }
    };
    let server = Arc::new(Server::new(&[of(16)], None));
    server.launch.load(Arc::new(Silent)).await.expect("it loads");
    let (launch, is_over) = (Arc::clone(&server.launch), Arc::new(AtomicUsize::new(0)));
    let ended = Arc::clone(&is_over);
    let swapping = tokio::spawn(async move {
        let mut swaps = 0_u32;
        while ended.load(Ordering::Relaxed) == 0 {
            swaps += 1;
            let models = [of(16 + swaps % 2)];
            let change = launch.reload(&models, &PoolConfig::default(), Arc::new(Silent)).await.expect("a good file");
            assert_eq!(change.changed, ["member m"]);
        }
        swaps
    });
    clients(&server, requests, |_| "m".to_owned()).await;
    is_over.store(1, Ordering::Relaxed);
    let swaps = swapping.await.expect("every reload was taken over");
    assert!(swaps > 1, "{swaps} swaps");
    println!("{requests} requests, {swaps} swaps");
    // The old ones are gone, and with them their memory.
    let gone = async {
        while server.launch.pool.lifecycle().all().len() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the old ones are unloaded");
    // One that cannot be loaded leaves all as it was.
    let bad = ModelConfig { reference: "/nowhere/x.gguf".to_owned(), ..of(16) };
    server.launch.reload(&[bad], &PoolConfig::default(), Arc::new(Silent)).await.expect_err("no such file");
    assert_eq!(server.chat("m", 1, false).await.status, StatusCode::OK);
}
