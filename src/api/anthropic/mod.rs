//! Anthropic's Messages API: `POST /v1/messages` and `POST /v1/messages/count_tokens`.
//!
//! The same pool answers as behind OpenAI's endpoints; only the words differ, those of errors included.

mod blocks;
mod convert;
mod describe;
mod envelope;
mod fold;
mod messages;
mod models;
mod stream;
#[cfg(test)]
mod tests;
mod tools;
mod wire;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use super::error::Failure;
use super::openai::answer::Answer;
use super::openai::chat::require_chat;
use super::openai::origin::Origin;
use super::openai::tokenize::{ready, work};
use super::{AppState, body, sse};
use crate::pool::TokenizeInput;
use crate::request::{Prompt, Request};

pub(super) use describe::{VERSION_MEANS, operations, version_schema};
pub(super) use envelope::{Envelope, check_version, dressed, is_spoken, is_versioned};
pub(super) use models::{ModelInfo, ModelList, Page, list as model_list, one as model_info};

/// What is fixed about an answer before it begins.
#[derive(Debug, Clone)]
struct Head {
    id: String,
    model: String,
    form: convert::Form,
}

pub(super) async fn create(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    check_version(&headers)?;
    let wire = body::read::<wire::MessagesBody>(&headers, body, &state.config).await?;
    let call = convert::checked(wire, &state.config)?;
    let member = origin.caller.member(&state.pool, &call.model)?;
    let card = member.card();
    origin.log.model(&card.id);
    require_chat(&*member)?;
    let id = format!("msg_{}", origin.unique);
    let model = if call.model.is_empty() { card.id.clone() } else { call.model.clone() };
    let head = Head { id: id.clone(), model, form: call.form };
    let request = Request {
        id,
        model: call.model,
        prompt: Prompt::Chat(call.chat),
        params: call.params,
        tenant: origin.caller.tenant(None),
        end_user: call.end_user,
        priority: origin.caller.priority(0),
    };
    let answer = Answer::start(&state, vec![request], (origin.errand, origin.log)).await?;
    if call.stream {
        let writer = stream::MessageWriter::new(head, origin.request_id);
        return sse::respond(answer, writer, state.config.keep_alive_interval).await;
    }
    let mut fold = fold::MessageFold::new(head);
    let usage = answer.fold(|_, event| fold.event(event)).await?;
    Ok(Json(fold.message(usage)).into_response())
}

pub(super) async fn count_tokens(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<wire::TokenCount>, Failure> {
    check_version(&headers)?;
    let wire = body::read::<wire::MessagesBody>(&headers, body, &state.config).await?;
    let (model, chat) = convert::counted(wire, &state.config)?;
    let member = ready(&state, &origin, &model).await?;
    require_chat(&*member)?;
    let count = work(&state, move || member.tokenize(TokenizeInput::Chat(chat))).await?.tokens.len();
    Ok(Json(wire::TokenCount { input_tokens: count }))
}
