//! `GET /v1/models` and `GET /v1/models/{id}`

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;

use super::origin::Origin;
use crate::api::AppState;
use crate::api::error::Failure;
use crate::error::{Error, ErrorKind};
use crate::pool::ModelCard;

#[derive(Serialize)]
pub(in crate::api) struct ModelList {
    object: &'static str,
    data: Vec<ModelWire>,
}

#[derive(Serialize)]
pub(in crate::api) struct ModelWire {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: String,
    parent: Option<String>,
    max_model_len: u32,
}

impl ModelWire {
    /// `id` is the name it is listed under: its own or an alias.
    fn new(id: &str, card: &ModelCard) -> Self {
        Self {
            id: id.to_owned(),
            object: "model",
            created: card.created_s,
            owned_by: "sconce",
            root: card.root.clone(),
            // An alias points to the name it stands for.
            parent: (id != card.id).then(|| card.id.clone()),
            max_model_len: card.max_model_len,
        }
    }
}

pub(in crate::api) async fn list(State(state): State<AppState>) -> Json<ModelList> {
    let mut data = Vec::new();
    for member in state.pool.members() {
        let card = member.card();
        data.push(ModelWire::new(&card.id, card));
        data.extend(card.aliases.iter().filter(|alias| **alias != card.id).map(|alias| ModelWire::new(alias, card)));
    }
    Json(ModelList { object: "list", data })
}

/// Ids may hold slashes and colons (`org/name:file.gguf`).
pub(in crate::api) async fn retrieve(
    State(state): State<AppState>,
    origin: Origin,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelWire>, Failure> {
    let Path(id) = id.map_err(|_| {
        Error::new(ErrorKind::NotFound, "the model id in the path is not UTF-8; see /v1/models")
            .with_param("model")
            .with_code("model_not_found")
    })?;
    let member = state.pool.member(&id)?;
    origin.log.model(&member.card().id);
    Ok(Json(ModelWire::new(&id, member.card())))
}
