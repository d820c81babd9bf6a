//! `POST /rerank`, `/v1/rerank` and `/v2/rerank` in Jina's and Cohere's shape, `POST /score` and `/v1/score` in vLLM's.
//!
//! A cross-encoder reads each pair of texts together; an embedding model makes a vector of each text, and the score is
//! the cosine between the two.

mod convert;
mod describe;
mod wire;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::origin::Origin;
use super::vectors::{self, Common, VectorUsage};
use crate::api::error::Failure;
use crate::api::{AppState, body, ids};
use crate::error::{Error, Result};
use crate::pool::{MemberState, Task};
use crate::request::{EmbedFinish, Embedded};
pub(in crate::api) use describe::operations;

use convert::Pairs;

pub(in crate::api) async fn rerank(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let wire = body::read::<wire::RerankBody>(&headers, body, &state.config).await?;
    let call = convert::rerank(wire, &state.config)?;
    let (model, scored) = scores(&state, &origin, &call.common, &call.pairs, call.activate).await?;
    let mut results: Vec<_> = scored
        .values
        .iter()
        .zip(0..)
        .map(|(score, index)| wire::RerankResult { index, document: None, relevance_score: *score })
        .collect();
    // Best first; equal ones, and those that are no numbers, in the order they came.
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score).then(a.index.cmp(&b.index)));
    results.truncate(call.top_n);
    if call.return_documents {
        let mut documents = call.pairs.into_documents();
        for result in &mut results {
            let text = documents.get_mut(result.index).map(std::mem::take).unwrap_or_default();
            result.document = Some(wire::DocumentWire { text });
        }
    }
    let id = format!("rerank-{}", origin.unique);
    let answer = wire::RerankAnswer::new(id, model, scored.prompt_tokens, results);
    let values = scored.values.len();
    Ok(vectors::written(answer, values).await?)
}

pub(in crate::api) async fn score(
    State(state): State<AppState>,
    origin: Origin,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let wire = body::read::<wire::ScoreBody>(&headers, body, &state.config).await?;
    let call = convert::score(wire, &state.config)?;
    let (model, scored) = scores(&state, &origin, &call.common, &call.pairs, call.activate).await?;
    let data = scored.values.iter().enumerate();
    let answer = wire::ScoreAnswer {
        id: format!("score-{}", origin.unique),
        object: "list",
        created: ids::unix_time_s(),
        model,
        data: data.map(|(index, score)| wire::ScoreResult { index, object: "score", score: *score }).collect(),
        usage: VectorUsage::new(scored.prompt_tokens),
    };
    Ok(vectors::written(answer, scored.values.len()).await?)
}

/// One score a pair, and the name of the model.
async fn scores(
    state: &AppState,
    origin: &Origin,
    common: &Common,
    pairs: &Pairs,
    activate: Option<bool>,
) -> Result<(String, Embedded)> {
    let (member, model) = vectors::member(state, origin, &common.model)?;
    if matches!(member.state(), MemberState::Asleep(_)) {
        // What it does is known when it is loaded.
        member.awake().await?;
    }
    if member.card().task == Task::Score {
        let inputs = pairs.inputs();
        let finish = EmbedFinish { dimensions: None, activate };
        let scored = vectors::ask(state, origin, common, (inputs, pairs.label()), finish).await?;
        return Ok((model, scored));
    }
    if activate.is_some() {
        let message =
            format!("model '{}' makes vectors, whose cosine needs no activation; leave use_activation out", model);
        return Err(Error::invalid("use_activation", message));
    }
    let texts = pairs.texts();
    let finish = EmbedFinish { dimensions: None, activate: Some(true) };
    let embedded = vectors::ask(state, origin, common, (texts, pairs.text_label()), finish).await?;
    let rows: Vec<&[f32]> = embedded.rows().collect();
    let cosine = |place| {
        let (first, second) = pairs.places(place);
        let products = rows[first].iter().zip(rows[second]).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum::<f64>() as f32
    };
    let values = (0..pairs.len()).map(cosine).collect();
    Ok((model, Embedded { values, width: 1, prompt_tokens: embedded.prompt_tokens }))
}
