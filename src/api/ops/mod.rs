//! Endpoints for operators: probes, metrics, what this server is.

mod openapi;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::AppState;

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where to look next, for a person with a browser.
pub(super) async fn index(State(state): State<AppState>) -> Json<Value> {
    let models: Vec<_> = state.pool.members().map(|member| member.card().id.clone()).collect();
    Json(json!({
        "name": "sconce",
        "version": VERSION,
        "models": models,
        "endpoints": "/openapi.json",
        "chat": "/v1/chat/completions",
    }))
}

/// 200 while the process can answer.
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// 200 while every model can serve; 503 with the reasons while loading, failed or draining.
pub(super) async fn ready(State(state): State<AppState>) -> Response {
    let readiness = state.pool.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Json(json!({"ready": readiness.ready, "reasons": readiness.reasons}));
    if readiness.ready {
        return (status, body).into_response();
    }
    (status, [(header::RETRY_AFTER, "2")], body).into_response()
}

pub(super) async fn metrics(State(state): State<AppState>) -> Response {
    let page = state.metrics.render(&state.pool);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}

pub(super) async fn openapi() -> Json<Value> {
    Json(openapi::document())
}
