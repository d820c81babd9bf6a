//! The document of endpoints: committed, complete, and as narrow as the checks are.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use crate::fake::*;
use crate::judge::committed;

/// Not by `ask`, which reads the committed one.
async fn served() -> String {
    let request = Request::get("/openapi.json").body(Body::empty()).unwrap();
    whole(tower::ServiceExt::oneshot(app(&Fake::hello()), request).await.expect("infallible")).await.text
}

/// (path, method), as the document has them.
fn documented(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().expect("paths").iter();
    paths
        .flat_map(|(path, methods)| methods.as_object().expect("methods").keys().map(|m| (path.clone(), m.clone())))
        .collect()
}

#[tokio::test]
async fn the_committed_document_is_the_served_one() {
    let served = served().await;
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(committed(), &served).expect("openapi.json is written");
    }
    let committed = std::fs::read_to_string(committed()).expect("openapi.json is committed");
    let differs = served.lines().zip(committed.lines()).position(|(served, committed)| served != committed);
    assert!(
        served == committed,
        "openapi.json is not what the types say, from line {}; update it: UPDATE_OPENAPI=1 cargo test --test api committed",
        differs.unwrap_or_else(|| served.lines().count().min(committed.lines().count())) + 1,
    );
}

/// The routes as the source has them: `.route("PATH", METHOD(…).METHOD(…))`.
#[tokio::test]
async fn every_route_has_an_operation() {
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/mod.rs")).expect("the source");
    let mut routes = BTreeSet::new();
    for route in source.split(".route(\"").skip(1) {
        let (path, rest) = route.split_once('"').expect("a path");
        let methods = rest.split(".route").next().expect("something");
        let before = routes.len();
        for method in ["get", "post", "put", "delete", "patch"] {
            let calls = [format!(", {method}("), format!(").{method}(")];
            if calls.iter().any(|call| methods.contains(call)) {
                routes.insert((path.replace("{*", "{"), method.to_owned()));
            }
        }
        assert!(routes.len() > before, "no method of {path} was found");
    }
    assert!(routes.len() > 15, "{routes:?}");
    let document = serde_json::from_str(&served().await).expect("JSON");
    assert_eq!(routes, documented(&document));
}

#[tokio::test]
async fn every_operation_has_a_route() {
    let app = app(&Fake::hello());
    let document = serde_json::from_str(&served().await).expect("JSON");
    for (path, method) in documented(&document) {
        let uri = path.replace("{id}", "tiny").replace("{file}", "chat.js");
        let method: Method = method.to_uppercase().parse().expect("a method");
        let answer = ask(&app, Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()).await;
        // A response of this name does not exist, but its path does.
        let is_known = ![404, 405].contains(&answer.status.as_u16()) || answer.text.contains("response_not_found");
        assert!(is_known, "{path} does not exist");
    }
}

/// Each example is a request that works.
#[tokio::test]
async fn examples_work() {
    let document: Value = serde_json::from_str(&served().await).expect("JSON");
    let app = app(&Fake::hello());
    let mut count = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let Some(examples) = methods["post"]["requestBody"]["content"]["application/json"]["examples"].as_object()
        else {
            continue;
        };
        // These need a model of another kind, one that comes and goes, a file, or the process to themselves.
        let others = [
            "/embeddings",
            "/rerank",
            "/score",
            "/batches",
            "/load",
            "/unload",
            "_lora_adapter",
            "/log-level",
            "/reload",
        ];
        if others.iter().any(|end| path.ends_with(end)) {
            continue;
        }
        for (name, example) in examples {
            let mut body = example["value"].clone();
            if body.get("model").is_some() {
                body["model"] = json!("tiny");
            }
            let answer = post(&app, path, body.to_string()).await;
            assert_eq!(answer.status, 200, "{path}, {name}: {}", answer.text);
            count += 1;
        }
    }
    assert!(count >= 12, "{count} examples");
}

/// What a schema bounds is refused beyond its bounds and taken at them.
#[tokio::test]
async fn bounds_are_those_of_the_checks() {
    let document: Value = serde_json::from_str(&served().await).expect("JSON");
    let app = app(&Fake::hello());
    let chat = json!({"messages": [{"role": "user", "content": "a"}]});
    let cases = [
        ("/v1/chat/completions", "ChatCompletionRequest", chat.clone()),
        ("/v1/completions", "CompletionRequest", json!({"prompt": "a"})),
        ("/v1/responses", "ResponseRequest", json!({"input": "a"})),
        ("/v1/messages", "MessagesRequest", json!({"messages": chat["messages"], "max_tokens": 5})),
    ];
    let mut count = 0;
    for (path, name, base) in cases {
        for (field, schema) in document["components"]["schemas"][name]["properties"].as_object().expect("properties") {
            let (good, bad) = beside_bounds(schema);
            for (value, expected) in good.into_iter().map(|v| (v, 200)).chain(bad.into_iter().map(|v| (v, 400))) {
                let mut body = base.clone();
                body[field] = value.clone();
                if field == "top_logprobs" && path.contains("chat") {
                    body["logprobs"] = json!(true);
                }
                // These depend on another field, or on the work that they make.
                if (field == "best_of" || field == "min_tokens") && expected == 200 {
                    continue;
                }
                let answer = post(&app, path, body.to_string()).await;
                assert_eq!(answer.status, expected, "{path}: {field} = {value}: {}", answer.text);
                count += 1;
            }
        }
    }
    assert!(count > 100, "{count} values");
}

/// Values at the bounds of a number, and just beyond them.
fn beside_bounds(schema: &Value) -> (Vec<Value>, Vec<Value>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let is_integer = schema["type"].as_array().is_some_and(|types| types.contains(&json!("integer")));
    for (key, step) in [("minimum", -1.0), ("maximum", 1.0)] {
        let bound = &schema[key];
        match (bound.as_i64().or(bound.as_u64().and_then(|bound| i64::try_from(bound).ok())), bound.as_f64()) {
            (Some(bound), _) if is_integer => {
                good.push(json!(bound));
                bad.extend(bound.checked_add(step as i64).map(|beyond| json!(beyond)));
            }
            (_, Some(bound)) if !is_integer => {
                good.push(json!(bound));
                bad.push(json!(bound + step * 0.001));
            }
            _ => {}
        }
    }
    (good, bad)
}
