//! Vectors and scores: the same rules as for answers, one whole result instead of a stream.

use std::sync::Arc;

use super::attempt::{Attempt, Ending};
use super::judge::judge;
use super::{Dispatch, Next, ask};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::errand::Errand;
use crate::pool::route::Route;
use crate::pool::shared::Shared;
use crate::request::{EmbedRequest, Embedded, Usage};
use crate::store::ledger::AttemptOutcome;

/// Asks one member after the other. Dropping the future cancels. `None` places are held already. The vectors of different models cannot be compared:
/// the members of such a route are to be the same model at different places.
pub async fn embed(
    shared: &Arc<Shared>,
    route: &Arc<Route>,
    request: EmbedRequest,
    errand: Errand,
    places: Option<u32>,
) -> Result<Embedded> {
    let trace = errand.trace.clone();
    let id = format!("embed-{:016x}", super::fresh_seed());
    let mut dispatch = Dispatch::new(shared, route, errand, (id, ask::of_embedding(&request), places));
    let deadline = dispatch.deadline;
    let attempts = async move {
        loop {
            match dispatch.choose()? {
                Next::Wait(wait) => tokio::time::sleep(wait).await,
                Next::Ask(chosen) => {
                    let seat = chosen.seat;
                    match at(&mut dispatch, (seat, chosen.reason), request.clone()).await {
                        Ok(embedded) => return Ok(embedded),
                        Err(error) => {
                            dispatch.failed(seat, error);
                            if dispatch.attempts >= dispatch.route.attempts_max {
                                return Err(dispatch.exhausted());
                            }
                        }
                    }
                }
            }
        }
    };
    let late =
        |_| Err(Error::new(ErrorKind::Timeout, "the route's deadline has passed").with_code("deadline_exceeded"));
    let embedded = match deadline {
        None => attempts.await,
        Some(deadline) => tokio::time::timeout_at(deadline, attempts).await.unwrap_or_else(late),
    };
    trace.ended();
    embedded
}

async fn at(dispatch: &mut Dispatch, (seat, reason): (usize, &'static str), request: EmbedRequest) -> Result<Embedded> {
    let passed = dispatch.admit(seat, reason)?;
    let node = Arc::clone(&dispatch.route.seats[seat].node);
    let attempt = Attempt::new(&dispatch.case, &node, dispatch.attempts, passed, None);
    let attempt = attempt.in_trace(&dispatch.case.errand.trace, reason);
    match attempt.asks(node.member.embed(request)).await {
        Ok(embedded) => {
            let usage = Usage { prompt_tokens: embedded.prompt_tokens, ..Usage::default() };
            attempt.done(usage, AttemptOutcome::Answered);
            Ok(embedded)
        }
        Err(error) => {
            let health = judge(&error, node.is_local()).health;
            attempt.end(Ending { outcome: AttemptOutcome::Failed, health, error: Some(error.kind) });
            Err(error)
        }
    }
}
