//! A server on a configuration file, and short ways to ask it.

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use sconce::api::{ApiConfig, router};
use sconce::config::file;
use sconce::config::keys;
use sconce::config::pool::{MemberKind, PoolConfig, checked};
use sconce::launch::{Launch, shared};
use serde_json::{Value, json};
use tower::ServiceExt;

pub struct World {
    pub app: Router,
    pub launch: Arc<Launch>,
    pub folder: tempfile::TempDir,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("ASCII"))
    }
}

/// A member of each kind needs these.
pub fn member(name: &str, kind: &str, url: &str) -> String {
    let region = if kind == "bedrock" { "region = \"eu-central-1\"\n" } else { "" };
    format!(
        "[[member]]\nname = \"{name}\"\nkind = \"{kind}\"\nmodel = \"m\"\nbase_url = \"{url}\"\n{region}\
         api_key = {{ file = \"KEYFILE\" }}\nfirst_byte_timeout_s = 2\nidle_timeout_s = 2\n\
         price = {{ input = 1.0, output = 10.0 }}\n"
    )
}

pub fn read(folder: &Path, text: &str) -> (PoolConfig, Vec<keys::KeyConfig>) {
    let key = folder.join("key");
    std::fs::write(&key, "sk-secret-of-the-provider\n").expect("written");
    let ledger = format!("\n[ledger]\nfile = \"{}\"\n", folder.join("ledger.db").display());
    let text = text.replace("KEYFILE", &key.display().to_string()) + &ledger;
    let path = folder.join("sconce.toml");
    std::fs::write(&path, &text).expect("written");
    let file = file::read(&path).expect("a good file");
    let mut pool = checked(&file.pool(), &file.text, &[]).expect("a good pool");
    for member in &mut pool.members {
        // This program has no guard in it.
        if let MemberKind::Worker(worker) = &mut member.kind {
            worker.spec.guard = env!("CARGO_BIN_EXE_sconce").into();
        }
    }
    (pool, keys::checked(&file.keys).expect("good keys"))
}

impl World {
    pub async fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (config, keys) = read(folder.path(), text);
        let shared = shared(&config).await.expect("a ledger");
        let launch = Arc::new(Launch::plan_pool(&[], &config, shared).expect("a pool"));
        let api = ApiConfig { keys, ..ApiConfig::default() };
        let app = router(Arc::clone(&launch.pool), Arc::clone(&launch.metrics), api);
        Self { app, launch, folder }
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let mut request = Request::post(path).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.ask(request.body(Body::from(body.to_string())).expect("a request")).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(Request::get(path).body(Body::empty()).expect("a request")).await
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.app.clone().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).expect("UTF-8") }
    }
}

/// The three APIs of clients.
pub const APIS: [&str; 3] = ["/v1/chat/completions", "/v1/responses", "/v1/messages"];

/// The same question in an API's words.
pub fn question(api: &str, stream: bool, tools: bool, schema: bool) -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let form = json!({
        "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false,
    });
    let mut body = json!({"model": "r", "stream": stream});
    match api {
        "/v1/responses" => {
            body["input"] = json!("What is the weather in Paris?");
            body["store"] = json!(false);
            body["max_output_tokens"] = json!(100);
            if tools {
                body["tools"] = json!([{"type": "function", "name": "weather", "parameters": parameters}]);
            }
            if schema {
                body["text"] = json!({"format": {"type": "json_schema", "name": "n", "schema": form}});
            }
        }
        _ => {
            body["messages"] = json!([{"role": "user", "content": "What is the weather in Paris?"}]);
            body["max_tokens"] = json!(100);
            match api {
                "/v1/messages" => {
                    if tools {
                        body["tools"] = json!([{"name": "weather", "input_schema": parameters}]);
                    }
                    if schema {
                        body["output_config"] = json!({"format": {"type": "json_schema", "schema": form}});
                    }
                }
                _ => {
                    if tools {
                        let function = json!({"name": "weather", "parameters": parameters});
                        body["tools"] = json!([{"type": "function", "function": function}]);
                    }
                    if schema {
                        let named = json!({"name": "n", "schema": form});
                        body["response_format"] = json!({"type": "json_schema", "json_schema": named});
                    }
                }
            }
        }
    }
    body
}

pub fn headers(api: &str) -> &'static [(&'static str, &'static str)] {
    if api == "/v1/messages" { &[("anthropic-version", "2023-06-01")] } else { &[] }
}
