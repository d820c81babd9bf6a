//! HTTP: one folder an endpoint family, each with wire, convert and stream.
//!
//! A request is checked completely before it reaches the pool; whatever goes wrong, on any path, is answered with
//! OpenAI's error envelope. Dropping a response drops its events, which cancels the request in the engine.

mod anthropic;
mod auth;
mod body;
mod error;
mod ids;
mod image;
mod json;
mod lifecycle;
mod limits;
mod middleware;
mod openai;
mod openapi;
mod openrouter;
mod ops;
mod orca;
mod routing;
mod schema;
mod serve;
mod sse;
mod trace;
mod web;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

use crate::config::keys::KeyConfig;
use crate::config::listing::Listing;
use crate::config::orca::LoadReports;
use crate::pool::Pool;
use crate::store::ResponseStore;
use crate::store::files::FileStore;
use crate::telemetry::Metrics;

pub use auth::KeyRing;
pub use openai::batches::BatchLimits;
pub use ops::{Reload, ReloadWish, Reloaded};
pub use serve::{ServeOptions, serve};

/// Every limit of the HTTP side. All are applied before a request reaches a model.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Keys that clients may send as `Authorization: Bearer …`. Empty: anyone may ask.
    pub api_keys: Vec<String>,
    /// Keys of which only the hash is known, each with its own limits.
    pub keys: Vec<KeyConfig>,
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Longest time from the head of a request until the end of its body.
    pub body_read_timeout: Duration,
    /// Deepest nesting of arrays and objects in a body.
    pub json_depth_max: usize,
    /// Most values (numbers, strings, objects, …) in a body: bounds the memory that parsing takes.
    pub json_values_max: usize,
    /// Longest time a request may wait and run; `None` means no limit.
    pub request_timeout: Option<Duration>,
    /// A comment is sent on an event stream that was silent for this long, so that proxies keep it open.
    pub keep_alive_interval: Duration,
    /// Most messages of a conversation.
    pub messages_max: usize,
    /// Most tools of a conversation.
    pub tools_max: usize,
    /// Most prompts of one `/v1/completions` request.
    pub prompts_max: usize,
    /// Most inputs of one `/v1/embeddings` request, and most documents of one `/v1/rerank` request.
    pub inputs_max: usize,
    /// Most choices (`n`) a prompt.
    pub choices_max: u32,
    /// Most stop strings, and most stop token ids.
    pub stops_max: usize,
    /// Longest single stop string.
    pub stop_bytes_max: usize,
    /// Most entries of `logit_bias`.
    pub logit_bias_max: usize,
    /// Where responses are kept; `None` keeps none.
    pub responses: Option<ResponseStore>,
    /// Where files and batches are kept; `None` keeps none.
    pub files: Option<FileStore>,
    /// Files that may be uploaded at once; more are refused.
    pub uploads_max: usize,
    pub batches: BatchLimits,
    /// Calls of `/tokenize` and `/detokenize` that run at once; more wait.
    pub tokenize_parallel_max: usize,
    /// Serve the pages for people, at `/` and `/docs`.
    pub web: bool,
    /// When answers carry a load report.
    pub load_reports: LoadReports,
    /// What is on offer at `/openrouter/v1/models`.
    pub listings: Vec<Listing>,
    /// Who reads the configuration file again; `None` where there is none.
    pub reload: Option<Reload>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            keys: Vec::new(),
            body_bytes_max: 32 * 1024 * 1024,
            body_read_timeout: Duration::from_secs(60),
            json_depth_max: 64,
            json_values_max: 1_000_000,
            request_timeout: None,
            keep_alive_interval: Duration::from_secs(15),
            messages_max: 16_384,
            tools_max: 1024,
            prompts_max: 256,
            inputs_max: 2048,
            choices_max: crate::request::CHOICES_MAX,
            stops_max: 128,
            stop_bytes_max: 4096,
            logit_bias_max: 1024,
            responses: None,
            files: None,
            uploads_max: 8,
            batches: BatchLimits::default(),
            tokenize_parallel_max: 4,
            web: true,
            load_reports: LoadReports::default(),
            listings: Vec::new(),
            reload: None,
        }
    }
}

/// What every handler can reach. Cloned by every layer of every request.
#[derive(Clone)]
pub(crate) struct AppState(Arc<Reach>);

impl std::ops::Deref for AppState {
    type Target = Reach;

    fn deref(&self) -> &Reach {
        &self.0
    }
}

#[derive(Clone)]
pub(crate) struct Reach {
    pool: Arc<Pool>,
    metrics: Arc<Metrics>,
    config: Arc<ApiConfig>,
    keys: KeyRing,
    tokenizing: Arc<Semaphore>,
    running: Arc<openai::responses::Running>,
    uploads: Arc<Semaphore>,
    batches: Option<Arc<openai::batches::Batches>>,
    turn: Turn,
}

/// How requests are admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Somebody waits for the answer.
    Live,
    /// Nobody does: in the gaps that live requests leave.
    Spare,
}

/// The endpoints that answer with what a model computes: for live requests, and for those of batches.
fn answering() -> Router<AppState> {
    Router::new()
        .route("/v1/chat/completions", post(openai::chat::create))
        .route("/v1/completions", post(openai::completions::create))
        .route("/v1/embeddings", post(openai::embeddings::create))
        .route("/rerank", post(openai::rerank::rerank))
        .route("/v1/rerank", post(openai::rerank::rerank))
        .route("/v2/rerank", post(openai::rerank::rerank))
        .route("/score", post(openai::rerank::score))
        .route("/v1/score", post(openai::rerank::score))
        .route("/v1/responses", post(openai::responses::create))
        .route("/v1/messages", post(anthropic::create))
}

/// Models that come and go, by an operator's word.
fn comings_and_goings() -> Router<AppState> {
    Router::new()
        .route("/v1/models/status", get(lifecycle::status))
        .route("/v1/models/load", post(lifecycle::load))
        .route("/v1/models/unload", post(lifecycle::unload))
        .route("/sleep", post(lifecycle::sleep))
        .route("/wake_up", post(lifecycle::wake_up))
        .route("/is_sleeping", get(lifecycle::is_sleeping))
}

/// What runs batches: through the same handlers, admitted in the gaps, without the limits of live requests.
fn batches(store: FileStore, state: &Reach) -> Arc<openai::batches::Batches> {
    let config = ApiConfig { request_timeout: None, ..ApiConfig::clone(&state.config) };
    let state = AppState(Arc::new(Reach { config: Arc::new(config), turn: Turn::Spare, ..Reach::clone(state) }));
    let answering = answering().layer(CatchPanicLayer::custom(error::panicked)).with_state(state.clone());
    openai::batches::Batches::start(store, state, answering)
}

/// Every endpoint of the server. With files it must be called on the async runtime, which runs the batches.
pub fn router(pool: Arc<Pool>, metrics: Arc<Metrics>, config: ApiConfig) -> Router {
    let keys = KeyRing::new(&config.api_keys, &config.keys);
    router_with_keys(pool, metrics, config, keys)
}

/// The same, with keys that can be changed later; those of `config` are not read.
pub fn router_with_keys(pool: Arc<Pool>, metrics: Arc<Metrics>, config: ApiConfig, keys: KeyRing) -> Router {
    let mut state = Reach {
        pool,
        metrics,
        keys,
        tokenizing: Arc::new(Semaphore::new(config.tokenize_parallel_max.max(1))),
        uploads: Arc::new(Semaphore::new(config.uploads_max.max(1))),
        config: Arc::new(config),
        running: Arc::default(),
        batches: None,
        turn: Turn::Live,
    };
    state.batches = state.config.files.clone().map(|store| batches(store, &state));
    let reporter = orca::Reporter::new(state.config.load_reports, Arc::clone(&state.pool));
    let state = AppState(Arc::new(state));
    let generating = answering()
        .route_layer(axum::middleware::from_fn(limits::enforce))
        .route_layer(axum::middleware::from_fn_with_state(reporter, orca::report));
    let guarded = Router::new()
        .route("/v1/responses/{id}", get(openai::responses::retrieve).delete(openai::responses::delete))
        .route("/v1/responses/{id}/cancel", post(openai::responses::cancel))
        .route("/v1/responses/{id}/input_items", get(openai::responses::input_items))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/files", get(openai::files::list).post(openai::files::create))
        .route("/v1/files/{id}", get(openai::files::retrieve).delete(openai::files::delete))
        .route("/v1/files/{id}/content", get(openai::files::content))
        .route("/v1/batches", get(openai::batches::list).post(openai::batches::create))
        .route("/v1/batches/{id}", get(openai::batches::retrieve))
        .route("/v1/batches/{id}/cancel", post(openai::batches::cancel))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*id}", get(openai::models::retrieve))
        .route("/v1/load_lora_adapter", post(openai::lora::load))
        .route("/v1/unload_lora_adapter", post(openai::lora::unload))
        .route("/openrouter/v1/models", get(openrouter::list))
        .route("/v1/log-level", get(ops::log_level).post(ops::set_log_level))
        .route("/v1/reload", post(ops::reload))
        .route("/v1/route/explain", post(routing::explain))
        .route("/v1/usage", get(routing::usage))
        .route("/tokenize", post(openai::tokenize::tokenize))
        .route("/detokenize", post(openai::tokenize::detokenize))
        .route("/tokenizer_info", get(openai::tokenize::tokenizer_info))
        .merge(comings_and_goings())
        .merge(generating)
        .route_layer(axum::middleware::from_fn_with_state(state.clone(), auth::require_key));
    let open = Router::new()
        .route("/", get(ops::index))
        .route("/health", get(ops::health))
        .route("/ready", get(ops::ready))
        .route("/metrics", get(ops::metrics))
        .route("/version", get(ops::version))
        .route("/openapi.json", get(ops::openapi));
    let pages = Router::new()
        .route("/docs", get(web::docs))
        .route("/usage", get(web::usage))
        .route("/web/{file}", get(web::asset));
    let pages = if state.config.web { pages } else { Router::new() };
    guarded
        .merge(open)
        .merge(pages)
        .fallback(error::unknown_path)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(axum::middleware::from_fn_with_state(state.clone(), middleware::observe))
        // Bodies are read by `body::read` under `body_bytes_max`.
        .layer(DefaultBodyLimit::disable())
        .with_state(state)
}
