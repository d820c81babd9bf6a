//! Models that sleep and wake at an operator's word, by vLLM's paths: `/sleep`, `/wake_up` and `/is_sleeping`.
//!
//! Where vLLM has one model, these take a `model`; it may be left out where the server has one. A model that sleeps need not
//! be woken: its next request does that.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{StatusWire, ended, named};
use crate::api::AppState;
use crate::api::error::Failure;
use crate::api::openai::origin::Origin;
use crate::error::{Error, Result};
use crate::pool::Model;
use crate::pool::lifecycle::{Managed, State as ModelState};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct SleepQuery {
    /// How deep: 1, weights wait in host memory. 2 would be to unload it.
    level: Option<u32>,
    /// Its name, or an alias; may be left out where there is one model.
    model: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct WakeQuery {
    /// Its name, or an alias; may be left out where there is one model.
    model: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(in crate::api) struct IsSleeping {
    is_sleeping: bool,
}

/// Lets a model finish what it has begun and puts it to sleep; answers when its device's memory is free.
pub(in crate::api) async fn sleep(
    State(state): State<AppState>,
    origin: Origin,
    query: Result<Query<SleepQuery>, QueryRejection>,
) -> Result<Json<StatusWire>, Failure> {
    let Query(query) = query.map_err(|why| not_understood(&why))?;
    let managed = meant(&state, &origin, query.model)?;
    if query.level.is_some_and(|level| level != 1) {
        let message = "level must be 1: weights wait in host memory; to discard them, too, use /v1/models/unload";
        return Err(Error::invalid("level", message).into());
    }
    let (lifecycle, wanted) = (Arc::clone(state.pool.lifecycle()), managed.clone());
    // It goes on when the client goes away.
    ended(tokio::spawn(async move { lifecycle.put_to_sleep(&wanted).await }).await)?;
    Ok(Json(managed.status().into()))
}

/// Wakes a model, and answers when it can answer. One that is not in memory is loaded.
pub(in crate::api) async fn wake_up(
    State(state): State<AppState>,
    origin: Origin,
    query: Result<Query<WakeQuery>, QueryRejection>,
) -> Result<Json<StatusWire>, Failure> {
    let Query(query) = query.map_err(|why| not_understood(&why))?;
    let managed = meant(&state, &origin, query.model)?;
    let (lifecycle, wanted) = (Arc::clone(state.pool.lifecycle()), managed.clone());
    ended(tokio::spawn(async move { lifecycle.bring(wanted).await }).await)?;
    Ok(Json(managed.status().into()))
}

pub(in crate::api) async fn is_sleeping(
    State(state): State<AppState>,
    origin: Origin,
    query: Result<Query<WakeQuery>, QueryRejection>,
) -> Result<Json<IsSleeping>, Failure> {
    let Query(query) = query.map_err(|why| not_understood(&why))?;
    let managed = meant(&state, &origin, query.model)?;
    Ok(Json(IsSleeping { is_sleeping: managed.status().state == ModelState::Sleeping }))
}

/// What vLLM's paths take besides is refused by name, not ignored.
fn not_understood(why: &QueryRejection) -> Error {
    Error::invalid(
        "query",
        format!("the query is not understood ({}); leave it out, or send model=NAME", why.body_text()),
    )
}

/// The model that an operator names, or the only one.
fn meant(state: &AppState, origin: &Origin, model: Option<String>) -> Result<Managed> {
    let all = state.pool.lifecycle().all();
    let only = match &*all {
        [only] => Some(only.member.card().id.clone()),
        _ => None,
    };
    named(state, origin, model.or(only).as_deref())
}
