//! Models loaded and unloaded by an operator's word, and what is in memory: `/v1/models/load`, `/unload`, `/status`.
//!
//! Only models that the server was configured with can be named: never a path.

mod describe;
mod sleep;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use super::error::{Envelope, Failure};
use super::json::{Wire, fields};
use super::openai::origin::Origin;
use super::sse::write_data;
use super::{AppState, body};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::lifecycle::{Managed, ModelStatus};

pub(super) use describe::operations;
pub(super) use sleep::{is_sleeping, sleep, wake_up};

/// How often a load that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);

fields! {
    /// A model that the server knows.
    #[schemars(rename = "ModelLoadRequest")]
    LoadFields {
        /// Its name, or an alias.
        #[schemars(required)]
        model: String,
        /// Follow the load as events, one whenever something changed.
        stream: bool,
    }
}

fields! {
    /// A model that the server knows.
    #[schemars(rename = "ModelUnloadRequest")]
    UnloadFields {
        /// Its name, or an alias.
        #[schemars(required)]
        model: String,
    }
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelStatusList")]
pub(in crate::api) struct StatusList {
    #[schemars(extend("const" = "list"))]
    object: &'static str,
    data: Vec<StatusWire>,
    /// What all models may take together; null: what the memory holds.
    memory_max_bytes: Option<u64>,
}

/// A model of this server's own, and where it is.
#[derive(Debug, Serialize, JsonSchema, PartialEq)]
#[schemars(rename = "ModelStatus")]
pub(in crate::api) struct StatusWire {
    id: String,
    #[schemars(extend("const" = "model.status"))]
    object: &'static str,
    root: String,
    /// `configured` (never loaded so far), `loading`, `ready`, `draining` (it finishes what it has begun), `sleeping` (its
    /// weights wait in host memory), `unloaded` or `failed`.
    state: &'static str,
    /// Why it failed, or what its load does.
    detail: Option<String>,
    /// Of a load.
    bytes_done: Option<u64>,
    bytes_total: Option<u64>,
    memory: MemoryWire,
    requests_running: u64,
    requests_waiting: u64,
    /// Of those that wait, how many wait for it to be loaded.
    requests_waiting_for_load: u32,
    loads: u64,
    load_failures: u64,
    /// Times that it made room for another.
    evictions: u64,
    /// Times that it went to sleep.
    sleeps: u64,
    /// Times that its engine failed and was started again.
    restarts: u64,
    /// Of its latest load.
    load_time_ms: Option<u64>,
    /// Of the latest time that it woke.
    wake_time_ms: Option<u64>,
    /// Unix time in seconds.
    last_used: Option<u64>,
    /// When it is unloaded if nobody uses it, Unix time in seconds.
    unloads_at: Option<u64>,
    /// It is not loaded at the start.
    on_demand: bool,
    /// It is not unloaded for want of room or use.
    pinned: bool,
    /// Seconds that its engine has been in one step, when that is too long.
    stuck_s: Option<u64>,
}

/// What it takes, as it was planned.
#[derive(Debug, Serialize, JsonSchema, PartialEq)]
#[schemars(rename = "ModelMemory")]
struct MemoryWire {
    weights_bytes: u64,
    kv_bytes: u64,
    /// Activations and logits of the largest step.
    step_bytes: u64,
}

impl From<ModelStatus> for StatusWire {
    fn from(status: ModelStatus) -> Self {
        let memory = status.memory;
        Self {
            id: status.id,
            object: "model.status",
            root: status.root,
            state: status.state.word(),
            detail: status.detail,
            bytes_done: status.bytes_done,
            bytes_total: status.bytes_total,
            memory: MemoryWire {
                weights_bytes: memory.weights_bytes,
                kv_bytes: memory.kv_bytes,
                step_bytes: memory.step_bytes,
            },
            requests_running: status.running,
            requests_waiting: status.waiting,
            requests_waiting_for_load: status.waiting_for_load,
            loads: status.loads,
            load_failures: status.load_failures,
            evictions: status.evictions,
            sleeps: status.sleeps,
            restarts: status.restarts,
            load_time_ms: status.load_time.map(milliseconds),
            wake_time_ms: status.wake_time.map(milliseconds),
            last_used: status.last_used_s,
            unloads_at: status.unloads_at_s,
            on_demand: status.on_demand,
            pinned: status.pinned,
            stuck_s: status.stuck_for.map(|time| time.as_secs()),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Where every model of this server's own is, of those that the key may use.
pub(super) async fn status(State(state): State<AppState>, origin: Origin) -> Json<StatusList> {
    let lifecycle = state.pool.lifecycle();
    let all = lifecycle.all();
    let seen = all.iter().filter(|one| origin.caller.may_use(crate::pool::Model::card(&*one.member)));
    Json(StatusList {
        object: "list",
        data: seen.map(|one| one.status().into()).collect(),
        memory_max_bytes: lifecycle.memory_max_bytes(),
    })
}

/// Loads a model and answers when it is there, or streams how far it is.
pub(super) async fn load(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let wire = body::read::<Wire<LoadFields>>(&headers, body, &state.config).await?.checked("")?;
    let managed = named(&state, &origin, wire.model.as_deref())?;
    let (lifecycle, wanted) = (Arc::clone(state.pool.lifecycle()), managed.clone());
    // It goes on when the client goes away.
    let mut loading = tokio::spawn(async move { lifecycle.bring(wanted).await });
    if wire.stream != Some(true) {
        ended((&mut loading).await)?;
        return Ok(Json(StatusWire::from(managed.status())).into_response());
    }
    let keep_alive = state.config.keep_alive_interval;
    let events = async_stream::stream! {
        let mut told: Option<StatusWire> = None;
        let mut told_at = Instant::now();
        loop {
            let done = tokio::time::timeout(LOOK, &mut loading).await.ok();
            let now = StatusWire::from(managed.status());
            let mut out = Vec::new();
            if let Some(Err(error)) = done.map(ended) {
                write_data(&Envelope::new(&error), &mut out);
            } else if told.as_ref() != Some(&now) {
                write_data(&now, &mut out);
                told = Some(now);
            } else if told_at.elapsed() >= keep_alive {
                out.extend_from_slice(b": keep-alive\n\n");
            }
            let is_over = loading.is_finished();
            if is_over {
                out.extend_from_slice(b"data: [DONE]\n\n");
            }
            if !out.is_empty() {
                told_at = Instant::now();
                yield Ok::<_, Infallible>(Bytes::from(out));
            }
            if is_over {
                break;
            }
        }
    };
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(events)).into_response())
}

fn ended(outcome: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    outcome.map_err(|panic| Error::internal(format!("loading the model failed: {panic}")))?
}

/// Lets a model finish what it has begun and unloads it; answers when its memory is free.
pub(super) async fn unload(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<StatusWire>, Failure> {
    let wire = body::read::<Wire<UnloadFields>>(&headers, body, &state.config).await?.checked("")?;
    let managed = named(&state, &origin, wire.model.as_deref())?;
    let (lifecycle, wanted) = (Arc::clone(state.pool.lifecycle()), managed.clone());
    let unloading = tokio::spawn(async move { lifecycle.unload(&wanted).await });
    unloading.await.map_err(|panic| Error::internal(format!("unloading the model failed: {panic}")))?;
    Ok(Json(managed.status().into()))
}

/// The model that an operator names.
fn named(state: &AppState, origin: &Origin, model: Option<&str>) -> Result<Managed> {
    require_operator(origin)?;
    let model = model.filter(|name| !name.is_empty());
    let model =
        model.ok_or_else(|| Error::invalid("model", "model is missing; name the model, see /v1/models/status"))?;
    origin.log.model(model);
    state.pool.lifecycle().find(model)
}

/// Some things are not for every key.
pub(super) fn require_operator(origin: &Origin) -> Result<()> {
    if origin.caller.is_operator() {
        return Ok(());
    }
    let message = format!("the API key '{}' may not do this; it takes one with admin = true", origin.caller.name());
    Err(Error::new(ErrorKind::Forbidden, message).with_code("not_allowed"))
}
