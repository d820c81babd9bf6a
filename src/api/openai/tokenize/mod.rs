//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, in vLLM's shapes.

mod convert;
mod describe;
mod wire;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;

use super::origin::Origin;
use crate::api::error::Failure;
use crate::api::{AppState, body};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::{MemberState, Model};

pub(in crate::api) use describe::operations;

pub(in crate::api) async fn tokenize(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<wire::TokenizeAnswer>, Failure> {
    let wire = body::read::<wire::TokenizeBody>(&headers, body, &state.config).await?;
    let call = convert::tokenize(wire, &state.config)?;
    let member = ready(&state, &origin, &call.model).await?;
    let max_model_len = member.card().max_model_len;
    let answer = work(&state, move || {
        let tokenized = member.tokenize(call.input)?;
        let token_strs =
            if call.want_texts { Some(texts(&*member, &tokenized.tokens, tokenized.texts)?) } else { None };
        Ok(wire::TokenizeAnswer { count: tokenized.tokens.len(), max_model_len, tokens: tokenized.tokens, token_strs })
    });
    Ok(Json(answer.await?))
}

pub(in crate::api) async fn detokenize(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<wire::DetokenizeAnswer>, Failure> {
    let wire = body::read::<wire::DetokenizeBody>(&headers, body, &state.config).await?;
    let call = convert::detokenize(wire)?;
    let member = ready(&state, &origin, &call.model).await?;
    let answer = work(&state, move || Ok(wire::DetokenizeAnswer { prompt: member.detokenize(&call.tokens)? }));
    Ok(Json(answer.await?))
}

/// With these three endpoints a client needs no tokenizer of its own.
pub(in crate::api) async fn tokenizer_info(
    State(state): State<AppState>,
    origin: Origin,
    which: Result<Query<wire::WhichTokenizer>, QueryRejection>,
) -> Result<Json<wire::TokenizerInfoAnswer>, Failure> {
    let Query(which) =
        which.map_err(|_| Error::invalid("query", "the query is not understood; send model or nothing"))?;
    let member = ready(&state, &origin, which.model.as_deref().unwrap_or_default()).await?;
    let (info, card) = (member.tokenizer_info()?, member.card());
    Ok(Json(wire::TokenizerInfoAnswer {
        model: card.id.clone(),
        model_max_length: card.max_model_len,
        bos_token: info.bos,
        eos_token: info.eos,
        unk_token: info.unk,
        pad_token: info.pad,
        chat_template: info.chat_template,
    }))
}

/// The text of each token; a member that gives none is asked token by token.
fn texts(member: &dyn Model, tokens: &[u32], texts: Vec<String>) -> Result<Vec<String>> {
    if texts.len() == tokens.len() {
        return Ok(texts);
    }
    tokens.iter().map(|token| member.detokenize(&[*token])).collect()
}

/// The member, in memory by then.
pub(in crate::api) async fn ready(state: &AppState, origin: &Origin, model: &str) -> Result<Arc<dyn Model>> {
    let member = origin.caller.member(&state.pool, model)?;
    origin.log.model(&member.card().id);
    let unavailable = |why: String| {
        let message = format!("model '{}' cannot tokenize now: {why}", member.card().id);
        Error::new(ErrorKind::Unavailable, message)
    };
    match member.state() {
        MemberState::Ready => Ok(member),
        MemberState::Asleep(_) => {
            member.awake().await?;
            Ok(member)
        }
        MemberState::Loading(what) => Err(unavailable(what).with_code("model_not_ready").with_retry_after_s(2)),
        MemberState::Failed(why) => Err(unavailable(why).with_code("model_failed")),
    }
}

/// Runs CPU work beside the event loop, a few at a time.
pub(in crate::api) async fn work<T: Send + 'static>(
    state: &AppState,
    task: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let turn = Arc::clone(&state.tokenizing).acquire_owned().await;
    let turn = turn.map_err(|_| Error::internal("the tokenizing turn was closed"))?;
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        task()
    });
    done.await.map_err(|error| Error::internal(format!("tokenizing failed: {error}")))?
}
