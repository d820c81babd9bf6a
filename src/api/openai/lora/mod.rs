//! `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, in vLLM's shapes.

mod describe;
mod wire;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;

use super::origin::Origin;
use crate::api::error::Failure;
use crate::api::{AppState, body};
use crate::config::lora::check_name;
use crate::error::{Error, Result};
use crate::pool::{Member, NewAdapter};

pub(in crate::api) use describe::operations;

pub(in crate::api) async fn load(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<String, Failure> {
    let fields = body::read::<wire::LoadBody>(&headers, body, &state.config).await?.checked("")?;
    let name = needed("lora_name", fields.lora_name)?;
    check_name(&name).map_err(|why| Error::invalid("lora_name", why))?;
    let path = needed("lora_path", fields.lora_path)?;
    let base = base(&state, &origin, fields.base_model_name.as_deref())?;
    let created_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let new = NewAdapter { name: name.clone(), path, replaces: fields.load_inplace.unwrap_or(false), created_s };
    state.pool.load_adapter(base, new).await?;
    tracing::info!(adapter = %name, key = %origin.caller.name(), "an adapter was loaded");
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

pub(in crate::api) async fn unload(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<String, Failure> {
    let fields = body::read::<wire::UnloadBody>(&headers, body, &state.config).await?.checked("")?;
    let name = needed("lora_name", fields.lora_name)?;
    let base = base(&state, &origin, fields.base_model_name.as_deref())?;
    state.pool.unload_adapter(&base, &name).await?;
    tracing::info!(adapter = %name, key = %origin.caller.name(), "an adapter was unloaded");
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}

fn needed(field: &'static str, value: Option<String>) -> Result<String> {
    let value = value.filter(|value| !value.is_empty());
    value.ok_or_else(|| Error::invalid(field, format!("{field} is missing; send the adapter's")))
}

/// The model that the adapter is for, which the caller must be allowed to ask.
fn base(state: &AppState, origin: &Origin, name: Option<&str>) -> Result<Arc<dyn Member>> {
    let base = state.pool.adapter_base(name)?;
    origin.caller.member(&state.pool, &base.card().id)?;
    origin.log.model(&base.card().id);
    Ok(base)
}
