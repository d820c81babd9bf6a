//! What strangers may send and how much of it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use bytes::Bytes;
use sconce::api::ApiConfig;
use serde_json::json;

use crate::fake::*;

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn bodies_that_are_not_good_json() {
    let fake = Fake::hello();
    let app = app(&fake);
    let deep = |open: &str, close: &str| open.repeat(10_000) + &close.repeat(10_000);
    let message = r#"{"role":"user","content":"a"}"#;
    for (body, code, part) in [
        (Vec::new(), "invalid_json", "empty"),
        (b"{".to_vec(), "invalid_json", "line 1 column 1"),
        (b"{\"n\": NaN}".to_vec(), "invalid_json", "line 1 column"),
        (b"{\"n\": 1e999}".to_vec(), "invalid_json", "number out of range"),
        (b"{\"model\": \"\xff\"}".to_vec(), "invalid_json", "not UTF-8: byte 11"),
        (b"{\"model\": \"\\ud800\"}".to_vec(), "invalid_json", "line 1"),
        (deep("[", "]").into_bytes(), "json_too_deep", "deeper than 64"),
        (deep("{\"a\":", "}").into_bytes(), "json_too_deep", "deeper than 64"),
        (format!("{{\"messages\": [{message}]}} trailing").into_bytes(), "invalid_json", "trailing"),
    ] {
        let answer = post(&app, PATH, body).await;
        let (message, kind, _, got) = error(&answer);
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{message}");
        assert_eq!((kind.as_str(), got.as_deref()), ("invalid_request_error", Some(code)), "{message}");
        assert!(message.contains(part), "{message}");
        assert!(!message.contains('\n'), "one line: {message}");
    }
    assert!(fake.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn ten_thousand_stops_and_other_long_lists() {
    let app = app(&Fake::hello());
    let messages = json!([{"role": "user", "content": "a"}]);
    let many_messages: Vec<_> = (0..16_385).map(|_| json!({"role": "user", "content": "a"})).collect();
    let biases: serde_json::Map<_, _> = (0..1025).map(|id| (id.to_string(), json!(1))).collect();
    for (body, param) in [
        (json!({"messages": messages, "stop": vec!["x"; 10_000]}), "stop"),
        (json!({"messages": messages, "stop": ["a", ""]}), "stop[1]"),
        (json!({"messages": messages, "stop": "x".repeat(4097)}), "stop[0]"),
        (json!({"messages": messages, "stop_token_ids": vec![1; 129]}), "stop_token_ids"),
        (json!({"messages": messages, "logit_bias": biases}), "logit_bias"),
        (json!({"messages": messages, "n": 129}), "n"),
        (json!({"messages": many_messages}), "messages"),
    ] {
        let answer = post(&app, PATH, body.to_string()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{param}: {}", answer.text);
        assert_eq!(error(&answer).2.as_deref(), Some(param), "{}", answer.text);
        assert!(answer.text.len() < 600, "an answer is short: {} bytes", answer.text.len());
    }
}

#[tokio::test]
async fn large_bodies() {
    let fake = Fake::hello();
    let app = app(&fake);
    let body = |bytes: usize| {
        let text = "x".repeat(bytes);
        format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#)
    };
    // Larger than what is parsed on the event loop, and fine.
    let answer = post(&app, PATH, body(1024 * 1024)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    // Larger than allowed, with and without saying so beforehand.
    let too_large = Bytes::from(body(32 * 1024 * 1024));
    let request = Request::post(PATH).header("content-type", "application/json");
    let declared = request.header("content-length", too_large.len()).body(Body::empty()).unwrap();
    assert_eq!(ask(&app, declared).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let pieces: Vec<_> =
        too_large.chunks(64 * 1024).map(|piece| Ok::<_, Infallible>(too_large.slice_ref(piece))).collect();
    let answer = post(&app, PATH, Body::from_stream(futures_util::stream::iter(pieces))).await;
    let (message, kind, _, code) = error(&answer);
    assert_eq!(
        (answer.status.as_u16(), kind.as_str(), code.as_deref()),
        (413, "invalid_request_error", Some("request_too_large"))
    );
    assert!(message.contains("33554432"), "{message}");
    // Small in bytes, large in memory.
    let values = format!("{{\"messages\": [{}1]}}", "1,".repeat(1_000_001));
    assert_eq!(post(&app, PATH, values).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(fake.requests.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let config = ApiConfig { body_read_timeout: Duration::from_secs(5), ..ApiConfig::default() };
    let drip = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), ()))
    });
    let answer = post(&app_with(&Fake::hello(), config), PATH, Body::from_stream(drip)).await;
    assert_eq!((answer.status.as_u16(), error(&answer).3.as_deref()), (408, Some("body_timeout")));
}

#[tokio::test]
async fn only_json_is_read() {
    let app = app(&Fake::hello());
    let body = r#"{"messages":[{"role":"user","content":"a"}]}"#;
    for (kind, status) in [
        (None, 415),
        (Some("text/plain"), 415),
        (Some("application/x-www-form-urlencoded"), 415),
        (Some("multipart/form-data; boundary=x"), 415),
        (Some("application/json"), 200),
        (Some("Application/JSON; charset=utf-8"), 200),
        (Some("application/vnd.x+json"), 200),
    ] {
        let mut request = Request::post(PATH);
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let answer = ask(&app, request.body(Body::from(body)).unwrap()).await;
        assert_eq!(answer.status.as_u16(), status, "{kind:?}: {}", answer.text);
        if status == 415 {
            assert_eq!(error(&answer).3.as_deref(), Some("unsupported_media_type"));
        }
    }
}

#[tokio::test]
async fn compressed_bodies_are_refused_by_name() {
    let app = app(&Fake::hello());
    let body = r#"{"messages":[{"role":"user","content":"a"}]}"#;
    for (encoding, status) in [("gzip", 415), ("br, gzip", 415), ("identity", 200), ("", 200)] {
        let request = Request::post(PATH).header("content-type", "application/json");
        let request = request.header("content-encoding", encoding).body(Body::from(body)).unwrap();
        let answer = ask(&app, request).await;
        assert_eq!(answer.status.as_u16(), status, "{encoding}: {}", answer.text);
        if status == 415 {
            assert_eq!(error(&answer).3.as_deref(), Some("unsupported_content_encoding"));
        }
    }
}

#[tokio::test]
async fn keys() {
    let fake = Fake::hello();
    let config = ApiConfig { api_keys: vec!["secret-one".into(), "secret-two".into()], ..ApiConfig::default() };
    let app = app_with(&fake, config);
    let body = r#"{"messages":[{"role":"user","content":"a"}], "cache_salt": "s"}"#;
    let with_key = |key: Option<&str>| {
        let mut request = Request::post(PATH).header("content-type", "application/json");
        if let Some(key) = key {
            request = request.header("authorization", key);
        }
        ask(&app, request.body(Body::from(body)).unwrap())
    };
    for key in [None, Some("Bearer wrong"), Some("secret-one"), Some("Bearer "), Some("Basic secret-one")] {
        let answer = with_key(key).await;
        let (message, kind, _, code) = error(&answer);
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{key:?}");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
        assert_eq!((kind.as_str(), code.as_deref()), ("authentication_error", Some("invalid_api_key")));
        assert!(!message.contains("secret") && !message.contains("wrong"), "{message}");
    }
    assert_eq!(with_key(Some("Bearer secret-one")).await.status, StatusCode::OK);
    let one = fake.last_request().tenant;
    assert_eq!(with_key(Some("Bearer secret-two")).await.status, StatusCode::OK);
    let two = fake.last_request().tenant;
    assert_eq!((one.name.as_str(), two.name.as_str()), ("key-1", "key-2"));
    assert_ne!(one.salt, two.salt);

    // Probes and metrics need no key; everything about models does.
    for path in ["/health", "/ready", "/metrics", "/version", "/openapi.json", "/"] {
        assert_eq!(get(&app, path).await.status, StatusCode::OK, "{path}");
    }
    for path in ["/v1/models", "/v1/models/tiny"] {
        assert_eq!(get(&app, path).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for path in ["/v1/completions", "/v1/responses", "/v1/messages", "/tokenize", "/detokenize"] {
        assert_eq!(post(&app, path, "{}").await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
}
