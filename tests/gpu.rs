//! Models on GPUs through the whole server, on the stand-in: several replicas.
//!
//! Each test takes stand-ins of its own, as a process has four and their memory is counted.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use sconce::api::{ApiConfig, router};
use sconce::config::{DeviceChoice, ModelConfig, ModelLimits};
use sconce::hub::progress::Silent;
use sconce::launch::Launch;
use serde_json::{Value, json};
use sconce_cuda::Device;
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

struct Server {
    app: Router,
    launch: Launch,
}

impl Server {
    async fn start(models: &[ModelConfig]) -> Self {
        let launch = Launch::plan(models).expect("good models");
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

    async fn complete(&self, body: Value) -> Value {
        serde_json::from_str(&self.post("/v1/completions", body).await).expect("JSON")
    }
}

fn free(device: u32) -> u64 {
    Device::host_numbered(device).expect("there are four").memory_free().expect("it can be asked")
}

#[tokio::test]
async fn replicas_have_their_own_cards_and_answer_alike() {
    let before = [free(0), free(1)];
    let server = Server::start(&[model(0, 2)]).await;
    let taken = [before[0] - free(0), before[1] - free(1)];
    assert!(taken[0] > 1 << 20 && taken[0] == taken[1], "weights and caches on both: {taken:?}");
    let prompt: Vec<u32> = (40..90).collect();
    let ask = |own: u32, extra: Value| {
        let mut body = json!({"model": "m", "prompt": [own, own, own], "max_tokens": 6, "temperature": 0, "ignore_eos": true});
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
    let page = server.get("/metrics").await;
    let tokens = |engine: u32| {
        let name = format!("vllm:generation_tokens_total{{model_name=\"m\",engine=\"{engine}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("no {name}\n{page}"));
        line.parse::<u32>().expect("a number")
    };
    assert!(tokens(0) >= 12 && tokens(1) >= 6, "{} and {}", tokens(0), tokens(1));
    assert_eq!(tokens(0) + tokens(1), 6 + 6 + 6 + 18 + 6);
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
