//! Endpoints for operators: probes, metrics, what this server is.

mod describe;
mod reload;

use std::sync::OnceLock;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::Failure;
use super::json::{Wire, fields};
use super::lifecycle::require_operator;
use super::openai::origin::Origin;
use super::{AppState, body, openapi, web};
use crate::error::Error;
use crate::pool::Model;
use crate::pool::lifecycle::Managed;
use crate::telemetry;

pub(super) use describe::operations;
pub(super) use reload::reload;
pub use reload::{Reload, ReloadWish, Reloaded};

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What this server is and where to look next.
#[derive(Serialize, JsonSchema)]
pub(super) struct Index {
    name: &'static str,
    version: &'static str,
    models: Vec<String>,
    endpoints: &'static str,
    chat: &'static str,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Health {
    /// `ok` or `stuck`: an engine does not come back from a step, and the process must be restarted.
    status: &'static str,
    /// The models whose engines are stuck.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stuck: Vec<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(super) struct WhichModel {
    /// Ask about this model alone: it is ready while it is in memory and can answer.
    model: Option<String>,
}

fields! {
    /// What is to be logged from now on.
    #[schemars(rename = "LogLevelRequest")]
    LogLevelFields {
        /// As `--log` takes it: `debug`, or `sconce=debug,info`.
        #[schemars(required)]
        filter: String,
    }
}

/// What is logged.
#[derive(Serialize, JsonSchema)]
pub(super) struct LogLevel {
    /// As `--log` takes it; null where another program decides.
    filter: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Readiness {
    ready: bool,
    /// Why not; empty when it is.
    reasons: Vec<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Version {
    version: &'static str,
}

/// A page for browsers, where to look next for everyone else.
pub(super) async fn index(State(state): State<AppState>, headers: HeaderMap) -> Response {
    if state.config.web && web::wants_page(&headers) {
        return web::page(&headers);
    }
    let models = state.pool.models().iter().map(|model| model.card().id.clone()).collect();
    let (endpoints, chat) = ("/openapi.json", "/v1/chat/completions");
    let index = Json(Index { name: "sconce", version: VERSION, models, endpoints, chat });
    ([(header::VARY, "accept")], index).into_response()
}

/// 200 while the process can answer; 503 when only a restart helps.
pub(super) async fn health(State(state): State<AppState>) -> Response {
    let models = state.pool.lifecycle().all();
    let is_stuck = |one: &&Managed| one.member.stuck_for().is_some();
    let stuck: Vec<_> = models.iter().filter(is_stuck).map(|one| one.member.card().id.clone()).collect();
    if stuck.is_empty() {
        return Json(Health { status: "ok", stuck }).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(Health { status: "stuck", stuck })).into_response()
}

/// 200 while every model can serve; 503 with the reasons while loading, failed or draining.
pub(super) async fn ready(State(state): State<AppState>, which: Query<WhichModel>) -> Result<Response, Failure> {
    let readiness = match &which.model {
        None => state.pool.readiness(),
        Some(model) => state.pool.readiness_of(model)?,
    };
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Json(Readiness { ready: readiness.ready, reasons: readiness.reasons });
    if readiness.ready {
        return Ok((status, body).into_response());
    }
    Ok((status, [(header::RETRY_AFTER, "2")], body).into_response())
}

pub(super) async fn log_level(origin: Origin) -> Result<Json<LogLevel>, Failure> {
    require_operator(&origin)?;
    Ok(Json(LogLevel { filter: telemetry::log_filter() }))
}

pub(super) async fn set_log_level(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<LogLevel>, Failure> {
    let wire = body::read::<Wire<LogLevelFields>>(&headers, body, &state.config).await?.checked("")?;
    require_operator(&origin)?;
    let filter =
        wire.filter.ok_or_else(|| Error::invalid("filter", "filter is missing; send e.g. 'sconce=debug,info'"))?;
    telemetry::set_log_filter(&filter)?;
    tracing::info!(filter, key = origin.caller.name(), "what is logged was changed");
    Ok(Json(LogLevel { filter: telemetry::log_filter() }))
}

pub(super) async fn metrics(State(state): State<AppState>) -> Response {
    let page = state.metrics.render(&state.pool);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

pub(super) async fn version() -> Json<Version> {
    Json(Version { version: VERSION })
}

pub(super) async fn openapi(headers: HeaderMap) -> Response {
    static TEXT: OnceLock<(Bytes, String)> = OnceLock::new();
    let (text, tag) = TEXT.get_or_init(|| {
        let mut text = format!("{:#}", openapi::document());
        text.push('\n');
        let tag = web::tag_of(&text);
        (text.into(), tag)
    });
    web::tagged(text.clone(), "application/json", tag, &headers)
}
