//! `GET /v1/models` and `GET /v1/models/{id}`, in Anthropic's shape for who sends `anthropic-version`.

mod describe;

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::origin::Origin;
use crate::api::error::{Failure, shortened};
use crate::api::{AppState, anthropic};
use crate::error::{Error, ErrorKind};
use crate::pool::{MemberState, Model, Task};

pub(in crate::api) use describe::operations;

#[derive(Serialize, JsonSchema)]
pub(in crate::api) struct ModelList {
    #[schemars(extend("const" = "list"))]
    object: &'static str,
    data: Vec<ModelWire>,
}

/// A model, under its own name or an alias.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Model")]
pub(in crate::api) struct ModelWire {
    id: String,
    #[schemars(extend("const" = "model"))]
    object: &'static str,
    /// When it was loaded, Unix time in seconds.
    created: u64,
    owned_by: &'static str,
    /// What it was loaded from.
    root: String,
    /// Of an alias: the name it stands for. Of an adapter: the model that it is added to.
    parent: Option<String>,
    /// Longest prompt plus answer, in tokens.
    max_model_len: u32,
    /// `generate`, `embed` or `score`.
    task: &'static str,
    status: StatusWire,
    /// Values of a vector, of a model that makes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding_size: Option<u32>,
}

/// Where it is between the disk and its requests.
#[derive(Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "ModelListStatus")]
struct StatusWire {
    /// `loaded`, `loading`, `unloaded` (a request loads it) or `failed`. More is in `/v1/models/status`.
    value: &'static str,
}

impl From<MemberState> for StatusWire {
    fn from(state: MemberState) -> Self {
        let value = match state {
            MemberState::Ready => "loaded",
            MemberState::Loading(_) => "loading",
            MemberState::Asleep(_) => "unloaded",
            MemberState::Failed(_) => "failed",
        };
        Self { value }
    }
}

impl ModelWire {
    /// `id` is the name it is listed under: its own or an alias.
    fn new(id: &str, model: &dyn Model) -> Self {
        let card = model.card();
        Self {
            status: model.state().into(),
            id: id.to_owned(),
            object: "model",
            created: card.created_s,
            owned_by: "sconce",
            root: card.root.clone(),
            // An alias points to the name it stands for.
            parent: if id == card.id { card.parent.clone() } else { Some(card.id.clone()) },
            max_model_len: card.max_model_len,
            task: card.task.name(),
            embedding_size: match card.task {
                Task::Embed { dimensions } => Some(dimensions),
                Task::Generate | Task::Score => None,
            },
        }
    }
}

pub(in crate::api) async fn list(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    page: Result<Query<anthropic::Page>, QueryRejection>,
) -> Result<Response, Failure> {
    let models = state.pool.models();
    let members: Vec<_> = models.iter().map(Arc::as_ref).filter(|model| origin.caller.may_use(model.card())).collect();
    let Query(page) = page.map_err(|error| Error::invalid("limit", plain_query_error(&error)))?;
    if anthropic::is_versioned(&headers) {
        anthropic::check_version(&headers)?;
        let list = anthropic::model_list(named(&members, |id, model| anthropic::model_info(id, model.card())), &page)?;
        return Ok(Json(list).into_response());
    }
    if let Some(name) = page.sent() {
        let message = format!("{name} needs the header anthropic-version; without it the whole list is sent");
        return Err(Error::invalid(name, message).into());
    }
    Ok(Json(ModelList { object: "list", data: named(&members, ModelWire::new) }).into_response())
}

/// One entry a name: its own and its aliases.
fn named<T>(members: &[&dyn Model], entry: impl Fn(&str, &dyn Model) -> T) -> Vec<T> {
    let mut data = Vec::new();
    for member in members {
        let card = member.card();
        data.push(entry(&card.id, *member));
        data.extend(card.aliases.iter().filter(|alias| **alias != card.id).map(|alias| entry(alias, *member)));
    }
    data
}

fn plain_query_error(error: &QueryRejection) -> String {
    format!("the query is not understood ({}); send limit, after_id or before_id", shortened(&error.body_text()))
}

/// Ids may hold slashes and colons (`org/name:file.gguf`).
pub(in crate::api) async fn retrieve(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Failure> {
    let Path(id) = id.map_err(|_| {
        Error::new(ErrorKind::NotFound, "the model id in the path is not UTF-8; see /v1/models")
            .with_param("model")
            .with_code("model_not_found")
    })?;
    let member = origin.caller.member(&state.pool, &id)?;
    origin.log.model(&member.card().id);
    if anthropic::is_versioned(&headers) {
        anthropic::check_version(&headers)?;
        return Ok(Json(anthropic::model_info(&id, member.card())).into_response());
    }
    Ok(Json(ModelWire::new(&id, &*member)).into_response())
}
