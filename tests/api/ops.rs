//! Probes, metrics, models, tokenize, and what is said of unknown paths.

use std::time::Instant;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use sconce::api::{ApiConfig, router};
use sconce::config::orca::LoadReports;
use sconce::pool::{MemberState, ModelCard, Task};
use sconce::telemetry::{FinishLabel, Metrics, RequestTimes};
use serde_json::json;

use crate::fake::*;

#[tokio::test]
async fn models_are_listed_with_their_aliases() {
    let app = app(&Fake::hello());
    let list = get(&app, "/v1/models").await.json();
    let ids: Vec<_> = list["data"].as_array().expect("a list").iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["org/tiny:q4", "tiny"]);
    assert_eq!(
        list["data"][0],
        json!({
            "id": "org/tiny:q4", "object": "model", "created": 1_700_000_000, "owned_by": "sconce",
            "root": "tiny.gguf", "parent": null, "max_model_len": 2048, "task": "generate",
            "status": {"value": "loaded"},
        })
    );
    for path in ["/v1/models/org/tiny:q4", "/v1/models/org%2Ftiny%3Aq4", "/v1/models/tiny"] {
        let answer = get(&app, path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        assert_eq!(answer.json()["max_model_len"], 2048);
    }
    for (query, param) in [("limit=5", "limit"), ("limit=x", "limit"), ("after_id=tiny", "after_id")] {
        let answer = get(&app, &format!("/v1/models?{query}")).await;
        assert_eq!((answer.status.as_u16(), error(&answer).2.as_deref()), (400, Some(param)), "{query}");
    }
    assert_eq!(get(&app, "/v1/models?other=1").await.status, StatusCode::OK);
    let answer = get(&app, "/v1/models/org/other").await;
    assert_eq!((answer.status.as_u16(), error(&answer).3.as_deref()), (404, Some("model_not_found")));
    assert_eq!(get(&app, "/v1/models/%ff").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn tokenize_and_back() {
    let app = app(&Fake::hello());
    let answer = post(&app, "/tokenize", r#"{"model": "tiny", "prompt": "hi"}"#).await;
    let expected = json!({"count": 3, "max_model_len": 2048, "tokens": [94, 104, 105], "token_strs": null});
    assert_eq!(answer.json(), expected);
    let request = r#"{"prompt": "hi", "add_special_tokens": false, "return_token_strs": true}"#;
    let answer = post(&app, "/tokenize", request).await;
    assert_eq!(answer.json()["token_strs"], json!(["h", "i"]));
    let answer = post(&app, "/tokenize", r#"{"messages": [{"role": "user", "content": "a"}]}"#).await;
    assert_eq!(answer.json()["count"], "1 messages".len());
    let answer = post(&app, "/detokenize", r#"{"model": "tiny", "tokens": [104, 105]}"#).await;
    assert_eq!(answer.json(), json!({"prompt": "hi"}));
    let answer = post(&app, "/detokenize", r#"{"tokens": [4294967295]}"#).await;
    assert_eq!((answer.status.as_u16(), error(&answer).2.as_deref()), (400, Some("tokens")));
    let answer = post(&app, "/detokenize", r#"{"tokens": [-1]}"#).await;
    assert_eq!((answer.status.as_u16(), error(&answer).2.as_deref()), (400, Some("tokens[0]")));
    let expected = json!({
        "model": "org/tiny:q4", "model_max_length": 2048, "bos_token": null, "eos_token": "</s>", "unk_token": null,
        "pad_token": null, "chat_template": null,
    });
    for path in ["/tokenizer_info", "/tokenizer_info?model=tiny"] {
        assert_eq!(get(&app, path).await.json(), expected, "{path}");
    }
    let answer = get(&app, "/tokenizer_info?model=other").await;
    assert_eq!((answer.status.as_u16(), error(&answer).2.as_deref()), (404, Some("model")));
    let answer = get(&app, "/tokenizer_info?name=tiny").await;
    assert_eq!((answer.status.as_u16(), error(&answer).2.as_deref()), (400, Some("query")));
}

#[tokio::test]
async fn ready_says_why_not() {
    let fake = Fake::hello();
    let pool = pool(&fake);
    let app = router(pool.clone(), std::sync::Arc::new(Metrics::new()), Default::default());
    assert_eq!(get(&app, "/ready").await.json(), json!({"ready": true, "reasons": []}));
    *fake.state.lock().unwrap() = MemberState::Loading("reading weights".into());
    let answer = get(&app, "/ready").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json()["reasons"], json!(["org/tiny:q4: reading weights"]));
    assert!(answer.header("retry-after").parse::<u32>().is_ok());
    let answer = post(&app, "/v1/completions", r#"{"prompt": "a"}"#).await;
    assert_eq!((answer.status.as_u16(), error(&answer).3.as_deref()), (503, Some("model_not_ready")));
    assert!(error(&answer).0.contains("'org/tiny:q4'"), "{}", answer.text);
    let answer = post(&app, "/tokenize", r#"{"prompt": "a"}"#).await;
    assert_eq!((answer.status.as_u16(), error(&answer).3.as_deref()), (503, Some("model_not_ready")));
    assert_eq!(get(&app, "/health").await.status, StatusCode::OK);
    *fake.state.lock().unwrap() = MemberState::Ready;
    pool.drain();
    assert_eq!(get(&app, "/ready").await.json()["reasons"], json!(["draining"]));
    let answer = post(&app, "/v1/completions", r#"{"prompt": "a"}"#).await;
    assert_eq!((answer.status.as_u16(), error(&answer).3.as_deref()), (503, Some("server_draining")));
    assert_eq!(answer.header("retry-after"), "1");
}

#[tokio::test]
async fn a_model_that_is_loading_is_not_said_to_lack_a_template() {
    let fake = Fake::with_card(ModelCard { chat: false, ..card() }, |_| Ok(vec![]));
    let app = app(&fake);
    let chat = r#"{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}"#;
    let ask = async |path: &str, body: &'static str| error(&post(&app, path, body).await).3.expect("a code");
    assert_eq!(ask("/v1/chat/completions", chat).await, "no_chat_template");
    *fake.state.lock().unwrap() = MemberState::Loading("reading weights".into());
    assert_eq!(ask("/v1/chat/completions", chat).await, "model_not_ready");
    assert_eq!(ask("/v1/responses", r#"{"input": "a"}"#).await, "model_not_ready");
    assert_eq!(post(&app, "/v1/messages", chat).await.status.as_u16(), 529);
}

#[tokio::test]
async fn unknown_paths_and_methods_get_the_envelope() {
    let app = app(&Fake::hello());
    let answer = get(&app, "/v1/nothing").await;
    assert_eq!((answer.status.as_u16(), error(&answer).3.as_deref()), (404, Some("unknown_url")));
    let answer = get(&app, "/v1/chat/completions").await;
    assert_eq!((answer.status.as_u16(), error(&answer).3.as_deref()), (405, Some("method_not_allowed")));
    assert_eq!(answer.header("allow"), "POST");
    let request = Request::builder().method(Method::DELETE).uri("/health").body(Body::empty()).unwrap();
    assert_eq!(ask(&app, request).await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_server_goes_on() {
    let fake = Fake::new(|_| Ok(vec![Step::Panic]));
    let app = app(&fake);
    let answer = post(&app, "/v1/completions", r#"{"prompt": "a"}"#).await;
    let (message, kind, _, _) = error(&answer);
    assert_eq!((answer.status.as_u16(), kind.as_str()), (500, "server_error"));
    assert!(!message.contains("script"), "the inside stays inside: {message}");
    assert!(answer.header("x-request-id").starts_with("req-"));
    assert_eq!(get(&app, "/health").await.status, StatusCode::OK);
    fake.live(0).await;
}

#[tokio::test]
async fn request_ids_are_repeated_when_sane() {
    let app = app(&Fake::hello());
    let ask_with = |id: &'static [u8]| {
        let request = Request::get("/health").header("x-request-id", axum::http::HeaderValue::from_bytes(id).unwrap());
        ask(&app, request.body(Body::empty()).unwrap())
    };
    assert_eq!(ask_with(b"my-id_1.2").await.header("x-request-id"), "my-id_1.2");
    assert!(ask_with(b"not sane \xff").await.header("x-request-id").starts_with("req-"));
}

#[tokio::test]
async fn metrics_carry_the_known_names() {
    let fake = Fake::hello();
    let metrics = std::sync::Arc::new(Metrics::new());
    let app = router(pool(&fake), metrics.clone(), Default::default());
    let model = metrics.model("org/tiny:q4");
    assert!(std::sync::Arc::ptr_eq(&model, &metrics.model("org/tiny:q4")), "registered once");
    model.time_to_first_token(0.03);
    model.inter_token(0.02);
    let times = RequestTimes {
        queue_s: 0.1,
        prefill_s: 0.2,
        decode_s: 0.9,
        e2e_s: 1.2,
        prompt_tokens: 9,
        generation_tokens: 10,
        generation_tokens_longest: 10,
        max_tokens: Some(16),
        n: 1,
    };
    model.finished(FinishLabel::Length, times);
    model.finished(FinishLabel::Abort, times);
    get(&app, "/v1/nothing").await;
    get(&app, "/health").await;
    let answer = get(&app, "/metrics").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let labels = r#"model_name="org/tiny:q4",engine="0""#;
    let model = r#"model_name="org/tiny:q4""#;
    let sorted = r#"engine="0",model_name="org/tiny:q4""#;
    for line in [
        format!("vllm:num_requests_running{{{labels}}} 2"),
        format!("vllm:num_requests_waiting{{{labels}}} 3"),
        format!("vllm:kv_cache_usage_perc{{{labels}}} 0.25"),
        format!("vllm:gpu_cache_usage_perc{{{labels}}} 0.25"),
        format!("vllm:generation_tokens_total{{{labels}}} 42"),
        format!("vllm:iteration_tokens_total_bucket{{{labels},le=\"+Inf\"}} 7"),
        format!("vllm:spec_decode_num_drafts_total{{{labels}}} 4"),
        format!("vllm:spec_decode_num_draft_tokens_total{{{labels}}} 9"),
        format!("vllm:spec_decode_num_accepted_tokens_total{{{labels}}} 5"),
        format!("vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels},position=\"1\"}} 2"),
        format!("vllm:cache_config_info{{{labels},block_size=\"16\",num_gpu_blocks=\"100\"}} 1"),
        format!("vllm:time_to_first_token_seconds_bucket{{{sorted},le=\"0.04\"}} 1"),
        format!("vllm:time_to_first_token_seconds_bucket{{{sorted},le=\"0.02\"}} 0"),
        format!("vllm:request_time_per_output_token_seconds_bucket{{{sorted},le=\"0.1\"}} 1"),
        format!("vllm:e2e_request_latency_seconds_count{{{sorted}}} 1"),
        format!("vllm:request_success_total{{engine=\"0\",finished_reason=\"length\",{model}}} 1"),
        format!("vllm:request_success_total{{engine=\"0\",finished_reason=\"abort\",{model}}} 1"),
        "sconce_http_requests_total{endpoint=\"/health\",status=\"200\"} 1".to_owned(),
        "sconce_http_requests_total{endpoint=\"unknown\",status=\"404\"} 1".to_owned(),
        "sconce_ready 1".to_owned(),
    ] {
        assert!(answer.text.lines().any(|found| found == line), "no line: {line}\n{}", answer.text);
    }
    for (name, least) in [
        ("process_resident_memory_bytes", 1e6),
        ("process_open_fds", 3.0),
        ("process_start_time_seconds", 1e9),
        // A young process may have used less than one tick.
        ("process_cpu_seconds_total", 0.0),
    ] {
        let line = answer.text.lines().find(|line| line.starts_with(&format!("{name} "))).expect(name);
        let value: f64 = line.split(' ').nth(1).and_then(|value| value.parse().ok()).expect("a number");
        assert!(value >= least, "{line}");
    }
    // Every metric is described once, and every sample has a number.
    let helps: Vec<_> = answer.text.lines().filter(|line| line.starts_with("# HELP")).collect();
    let unique: std::collections::HashSet<_> = helps.iter().map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(helps.len(), unique.len());
    for line in answer.text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.rsplit(' ').next().is_some_and(|value| value.parse::<f64>().is_ok()), "{line}");
    }
}

/// The limit of 1 ms a scrape is for a release build; this prints what it is here.
#[tokio::test]
async fn a_scrape_is_cheap() {
    let pool = pool(&Fake::hello());
    let metrics = Metrics::new();
    let model = metrics.model("org/tiny:q4");
    (0..10_000).for_each(|_| model.inter_token(0.02));
    let bytes = metrics.render(&pool).len();
    let started = Instant::now();
    (0..20).for_each(|_| assert!(!metrics.render(&pool).is_empty()));
    println!("a scrape of {bytes} bytes takes {:?}", started.elapsed() / 20);
}

/// (when the server reports, what the client asks for, how the answer's report begins)
#[tokio::test]
async fn load_reports_come_when_wanted() {
    let asks = async |when: LoadReports, path: &'static str, asked: Option<&'static str>| {
        let app = app_with(&Fake::hello(), ApiConfig { load_reports: when, ..ApiConfig::default() });
        let mut request = Request::post(path).header("content-type", "application/json");
        if let Some(format) = asked {
            request = request.header("endpoint-load-metrics-format", format);
        }
        let body = r#"{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}"#;
        let answer = ask(&app, request.body(Body::from(body)).unwrap()).await;
        answer.header("endpoint-load-metrics").to_owned()
    };
    let (chat, messages) = ("/v1/chat/completions", "/v1/messages");
    for (when, path, asked, begins) in [
        (LoadReports::Asked, chat, None, ""),
        (LoadReports::Asked, chat, Some("bin"), ""),
        (LoadReports::Asked, chat, Some("text"), "TEXT application_utilization:0.25,rps_fractional:1,eps:0,"),
        (LoadReports::Asked, messages, Some("JSON"), "JSON {\"application_utilization\":0.25,\"rps_fractional\":1.0,"),
        (LoadReports::Always, chat, None, "JSON {\"application_utilization\":0.25,"),
        (LoadReports::Always, chat, Some("TEXT"), "TEXT "),
        (LoadReports::Off, chat, Some("TEXT"), ""),
    ] {
        let report = asks(when, path, asked).await;
        assert!(report.starts_with(begins) && report.is_empty() == begins.is_empty(), "{when:?} {asked:?}: {report}");
    }
    let app = app_with(&Fake::hello(), ApiConfig { load_reports: LoadReports::Always, ..ApiConfig::default() });
    let refused = post(&app, chat, r#"{"messages": 1}"#).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.header("endpoint-load-metrics").contains("num_requests_waiting"), "errors carry one as well");
    assert_eq!(get(&app, "/v1/models").await.header("endpoint-load-metrics"), "", "nothing was computed");
}

#[tokio::test]
async fn a_server_that_leaves_is_not_ready_and_still_answers() {
    let pool = pool(&Fake::hello());
    let app = router(pool.clone(), std::sync::Arc::new(Metrics::new()), Default::default());
    pool.leave();
    let answer = get(&app, "/ready").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["reasons"]), (503, &json!(["draining"])));
    assert_eq!(get(&app, "/health").await.status, StatusCode::OK);
    assert_eq!(post(&app, "/v1/completions", r#"{"prompt": "a"}"#).await.status, StatusCode::OK);
    pool.drain();
    assert_eq!(post(&app, "/v1/completions", r#"{"prompt": "a"}"#).await.status.as_u16(), 503);
}

#[tokio::test]
async fn what_is_on_offer_is_listed_as_openrouter_reads_it() {
    let written = r#"
        [[listing]]
        model = "tiny"
        name = "Tiny"
        hugging_face_id = "org/tiny"
        quantization = "int4"
        price = { input = 0.02, output = 0.08, cached_input = 0.01 }
        output_tokens_max = 512
        slug = "org/tiny"
        datacenters = [{ country_code = "DE" }]
        [[listing]]
        model = "gone"
        name = "Gone"
        price = { input = 1 }
    "#;
    let listings = toml::from_str::<sconce::config::file::FileConfig>(written).expect("a file").listing;
    let list = async |task: Task| {
        let fake = Fake::with_card(ModelCard { task, ..card() }, |_| Ok(vec![]));
        let app = app_with(&fake, ApiConfig { listings: listings.clone(), ..ApiConfig::default() });
        get(&app, "/openrouter/v1/models").await.json()["data"].clone()
    };
    let offers = list(Task::Generate).await;
    assert_eq!(offers.as_array().map(Vec::len), Some(1), "there is nothing to sell of what is gone: {offers}");
    let (offer, output) = (&offers[0], &offers[0]["output_modalities"][0]);
    for (pointer, value) in [
        ("/schema_version", json!("2.4")),
        ("/id", json!("tiny")),
        ("/quantization", json!("int4")),
        ("/openrouter/slug", json!("org/tiny")),
        ("/datacenters", json!([{"country_code": "DE"}])),
        ("/input_modalities/0/supported_inputs/max_context_length", json!({"value": 2048, "unit": "token"})),
        (
            "/input_modalities/0/pricing",
            json!([
                {"type": "prompt", "unit": "token", "cost_usd": "0.00000002"},
                {"type": "cached_prompt", "unit": "token", "cost_usd": "0.00000001", "implicit": true},
            ]),
        ),
    ] {
        assert_eq!(offer.pointer(pointer), Some(&value), "{pointer}: {offer}");
    }
    assert_eq!(output["pricing"], json!([{"type": "completion", "unit": "token", "cost_usd": "0.00000008"}]));
    assert_eq!(output["max_length"], json!({"value": 512, "unit": "token"}));
    assert!(
        output["supported_parameters"]["tools"].is_object() && output["supported_parameters"]["reasoning"].is_null()
    );
    assert!(offer["is_ready"].is_null(), "a directory hides what says no, so nothing is said unasked");
    assert_eq!(list(Task::Embed { dimensions: 8 }).await[0]["output_modalities"][0]["type"], "embeddings");
    assert_eq!(list(Task::Score).await[0]["output_modalities"][0]["type"], "rerank");
    let none = get(&app(&Fake::hello()), "/openrouter/v1/models").await;
    assert_eq!(none.json(), json!({"data": []}));
}

#[tokio::test]
async fn the_configuration_is_read_again_by_who_has_it() {
    const PATH: &str = "/v1/reload";
    let (message, _, _, code) = error(&post(&app(&Fake::hello()), PATH, "{}").await);
    assert_eq!(code.as_deref(), Some("no_configuration_file"), "{message}");
    let (reload, mut wishes) = sconce::api::Reload::new();
    let app = app_with(&Fake::hello(), ApiConfig { reload: Some(reload), ..ApiConfig::default() });
    // A page elsewhere cannot ask for it without being asked about itself first.
    assert_eq!(post(&app, PATH, r#"{"dry_run": true}"#).await.status, StatusCode::BAD_REQUEST);
    let plain = Request::post(PATH).body(Body::from("{}")).expect("a request");
    assert_eq!(ask(&app, plain).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let told = sconce::api::Reloaded { added: vec!["route a".to_owned()], keys: 2, ..Default::default() };
    let (answer, ()) = tokio::join!(post(&app, PATH, "{}"), async {
        wishes.recv().await.expect("a wish").send(Ok(told)).expect("somebody waits");
    });
    assert_eq!((answer.status, &answer.json()["added"]), (StatusCode::OK, &json!(["route a"])), "{}", answer.text);
    let fault = sconce::error::Error::invalid("routes", "sconce.toml, line 3: name is a number");
    let (answer, ()) = tokio::join!(post(&app, PATH, "{}"), async {
        wishes.recv().await.expect("a wish").send(Err(fault)).expect("somebody waits");
    });
    assert!(answer.status == StatusCode::BAD_REQUEST && answer.text.contains("line 3"), "{}", answer.text);
    drop(wishes);
    assert_eq!(post(&app, PATH, "{}").await.status, StatusCode::SERVICE_UNAVAILABLE);
}
