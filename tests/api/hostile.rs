//! The same bad input at every endpoint that reads a body: a 4xx that names what is wrong, within a second, with
//! everyone else unaffected.

use std::time::{Duration, Instant};

use sconce::api::ServeOptions;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::connections::{CHAT, Server, to_end};
use crate::fake::*;

/// Every endpoint that reads a body, with one that is good.
fn endpoints() -> [(&'static str, Value); 7] {
    let messages = json!([{"role": "user", "content": "a"}]);
    [
        ("/v1/chat/completions", json!({"messages": messages})),
        ("/v1/completions", json!({"prompt": "a"})),
        ("/v1/responses", json!({"input": "a", "store": false})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 5})),
        ("/v1/messages/count_tokens", json!({"messages": messages})),
        ("/tokenize", json!({"prompt": "a"})),
        ("/detokenize", json!({"tokens": [97]})),
    ]
}

/// A refusal that is quick, short and in one line.
async fn refused(app: &axum::Router, path: &str, body: impl Into<axum::body::Body>) -> String {
    let started = Instant::now();
    let answer = post(app, path, body).await;
    assert!(started.elapsed() < Duration::from_secs(1), "{path} took {:?}", started.elapsed());
    assert!(answer.status.is_client_error(), "{path}: {} {}", answer.status, answer.text);
    let message = answer.json()["error"]["message"].as_str().expect("a message").to_owned();
    assert!(!message.contains('\n') && answer.text.len() < 1000, "{path}: {message}");
    message
}

#[tokio::test]
async fn what_is_not_json_is_refused_everywhere() {
    let fake = Fake::hello();
    let app = app(&fake);
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    for (path, good) in endpoints() {
        assert_eq!(post(&app, path, good.to_string()).await.status, 200, "{path}");
        let field = good.as_object().expect("an object").keys().next().expect("a field").clone();
        for (body, part) in [
            (Vec::new(), "empty"),
            (b"   ".to_vec(), "empty"),
            (b"{".to_vec(), "line 1"),
            (b"null".to_vec(), "expected an object"),
            (b"[]".to_vec(), "expected an object"),
            (b"\"text\"".to_vec(), "expected an object"),
            (format!("{{\"{field}\": NaN}}").into_bytes(), "line 1"),
            (format!("{{\"{field}\": 1e999}}").into_bytes(), "out of range"),
            (format!("{{\"{field}\": {deep}}}").into_bytes(), "deeper than 64"),
            ([b"{\"model\": \"", &[0xff_u8, 0xfe][..], b"\"}"].concat(), "not UTF-8"),
            (format!("{good} {good}").into_bytes(), "trailing"),
        ] {
            let message = refused(&app, path, body).await;
            assert!(message.contains(part), "{path}: {message}");
        }
    }
}

#[tokio::test]
async fn wrong_types_and_unknown_fields_are_named_everywhere() {
    let app = app(&Fake::hello());
    for (path, good) in endpoints() {
        let fields: Vec<_> = good.as_object().expect("an object").keys().cloned().collect();
        for field in &fields {
            for wrong in [json!({"x": 1}), json!(-1.5), json!([[[1]]]), json!([{"role": 1}])] {
                let mut body = good.clone();
                body[field] = wrong;
                let message = refused(&app, path, body.to_string()).await;
                assert!(message.contains(field.as_str()), "{path}: {message}");
            }
        }
        let mut body = good.clone();
        body["colour"] = json!(1);
        let message = refused(&app, path, body.to_string()).await;
        assert!(message.contains("colour"), "{path}: {message}");
        // A name of a megabyte is not repeated.
        let long = "x".repeat(1 << 20);
        body[&long] = json!(1);
        body.as_object_mut().expect("an object").shift_remove("colour");
        refused(&app, path, body.to_string()).await;
    }
}

#[tokio::test]
async fn impossible_combinations_name_a_field() {
    let app = app(&Fake::hello());
    let chat = |extra: Value| with(json!({"messages": [{"role": "user", "content": "a"}]}), extra);
    let text = |extra: Value| with(json!({"prompt": "a"}), extra);
    let messages = |extra: Value| with(json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 5}), extra);
    for (path, body, part) in [
        ("/v1/chat/completions", chat(json!({"messages": [{"role": "wizard", "content": "a"}]})), "messages[0].role"),
        ("/v1/chat/completions", chat(json!({"tool_choice": "required"})), "tool_choice"),
        ("/v1/chat/completions", chat(json!({"top_logprobs": 3})), "top_logprobs"),
        ("/v1/chat/completions", chat(json!({"stream_options": {}})), "stream_options"),
        ("/v1/chat/completions", chat(json!({"min_tokens": 9, "max_tokens": 3})), "min_tokens"),
        ("/v1/chat/completions", chat(json!({"guided_regex": "a", "guided_choice": ["a"]})), "guided_choice"),
        (
            "/v1/chat/completions",
            chat(json!({"add_generation_prompt": true, "continue_final_message": true})),
            "continue_final_message",
        ),
        ("/v1/completions", text(json!({"stream": true, "prompt_logprobs": 1})), "prompt_logprobs"),
        ("/v1/completions", text(json!({"best_of": 3, "n": 2})), "best_of"),
        ("/v1/completions", json!({"prompt": ["a", 1]}), "prompt"),
        ("/v1/responses", json!({"input": [{"role": "wizard", "content": "a"}]}), "input[0].role"),
        ("/v1/responses", json!({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}), "input"),
        ("/v1/messages", messages(json!({"messages": [{"role": "tool", "content": "a"}]})), "messages[0].role"),
        ("/v1/messages", messages(json!({"thinking": {"type": "enabled", "budget_tokens": 4096}})), "budget_tokens"),
        ("/v1/messages", messages(json!({"tool_choice": {"type": "any"}})), "tool_choice"),
        ("/tokenize", json!({"prompt": "a", "messages": []}), "prompt"),
    ] {
        let message = refused(&app, path, body.to_string()).await;
        assert!(message.contains(part), "{path}: {message}");
    }
}

fn with(mut body: Value, extra: Value) -> Value {
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// A hundred clients that send slowly, fall silent or read nothing, and one that only wants an answer.
#[tokio::test]
async fn slow_and_half_open_clients_hold_up_nobody() {
    let server = Server::start(&Fake::hello(), ServeOptions::default()).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n";
    let mut slow = Vec::new();
    for number in 0..100 {
        let mut stream = server.connect().await;
        let part = match number % 4 {
            0 => "",
            1 => "POST /v1/chat",
            2 => head,
            _ => &format!("{head}{{\"messages\""),
        };
        stream.write_all(part.as_bytes()).await.expect("sent");
        slow.push(stream);
    }
    let started = Instant::now();
    let mut stream = server.send(CHAT).await;
    let mut first = [0; 15];
    stream.read_exact(&mut first).await.expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    // Who says that nothing more will come, in the middle of a body, is told or cut off at once.
    let mut half = slow.pop().expect("one that sent half a body");
    half.shutdown().await.expect("half closed");
    let told = to_end(half).await;
    assert!(!told.contains("200 OK"), "{told}");
    // Who has sent everything and closed that half cannot be told from who has gone: what is not answered by then is given
    // up, and the connection ends at once.
    let mut stream = server.send(CHAT).await;
    stream.shutdown().await.expect("half closed");
    let told = to_end(stream).await;
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 200 OK"), "{told}");
}
