//! Repeats a share of requests at a candidate, for comparison: no client sees it, pays for it or waits for it.

use std::sync::Arc;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::attempt::{Attempt, Case, Ending, passes};
use super::compare::{Comparison, Ear, Heard, asked, now_ms, took_ms};
use super::judge::judge;
use super::{Dispatch, ready};
use crate::error::Error;
use crate::pool::SPARE_PRIORITY;
use crate::pool::errand::Errand;
use crate::pool::route::fresh_seed;
use crate::request::{Event, Request};
use crate::store::ledger::AttemptOutcome;

/// Sends it unseen, when it is one of the share and may go there. What keeps the request from a place keeps its shadow
/// from it. Where both answers are to be compared, the client's is to be listened to.
pub fn maybe(dispatch: &Dispatch, request: &Request) -> Option<Ear> {
    let shadow = dispatch.route.shadow.as_ref()?;
    if fresh_seed() % 1000 >= u64::from(shadow.share_permille) {
        return None;
    }
    let node = Arc::clone(&shadow.node);
    let is_allowed = dispatch.ask.allowed.as_ref().is_none_or(|names| names.contains(&node.name));
    if !is_allowed || !dispatch.ask.stay.allows(node.residency()) || node.member.unsupported(request).is_some() {
        return None;
    }
    // It takes no place that a client's request would need.
    let is_free = !node.is_local() || node.view().wait_ms == Some(0);
    let turn = Arc::clone(&dispatch.case.shared.shadows).try_acquire_owned().ok()?;
    if !is_free || ready(&node.member.state(), &node.name, false).is_err() {
        return None;
    }
    let passed = passes(&node, Some(request.params.n.max(1)), false).ok()?;
    let case = Case {
        shared: Arc::clone(&dispatch.case.shared),
        errand: Errand::default(),
        request: request.id.clone(),
        route: dispatch.route.name.clone(),
        payers: Vec::new(),
        is_shadow: true,
        is_answered: false.into(),
    };
    let attempt = Attempt::new(&Arc::new(case), &node, 1, passed, None);
    // It may end long after the request, and is still a part of what became of it.
    let attempt = attempt.in_trace(&dispatch.case.errand.trace, "shadow");
    let compared = shadow.answers.as_ref().map(|(_, log)| {
        let (ear, answer) = Ear::new(dispatch.case.errand.trace.clone());
        let line = Comparison {
            at_ms: now_ms(),
            request: request.id.clone(),
            route: dispatch.route.name.clone(),
            asked: asked(request),
            answer: None,
            shadow: Heard { member: node.name.clone(), ..Heard::default() },
        };
        (ear, (Arc::clone(log), line, answer))
    });
    let (ear, line) = compared.unzip();
    let mut request = request.clone();
    request.priority = SPARE_PRIORITY;
    tokio::spawn(async move {
        let heard = asked_unseen(attempt, request).await;
        // Others may be repeated while the client's answer goes on.
        drop(turn);
        if let Some((log, line, answer)) = line {
            let shadow = Heard { member: line.shadow.member, ..heard };
            log.write(Comparison { answer: answer.await.ok(), shadow, ..line });
        }
    });
    ear
}

/// The whole answer, or what there is of it.
async fn asked_unseen(mut attempt: Attempt, request: Request) -> Heard {
    let (node, since, mut heard) = (Arc::clone(&attempt.node), Instant::now(), Heard::default());
    let ended = |error: &Error| Ending {
        outcome: AttemptOutcome::Failed,
        health: judge(error, node.is_local()).health,
        error: Some(error.kind),
    };
    match attempt.asks(node.member.start(request)).await {
        Err(error) => {
            attempt.end(ended(&error));
            heard.note(&Event::Failed(error));
        }
        Ok(mut events) => {
            while let Some(event) = events.next().await {
                attempt.note(&event);
                heard.note(&event);
                match event {
                    Event::Done(usage) => {
                        attempt.done(usage, AttemptOutcome::Shadow);
                        break;
                    }
                    Event::Failed(error) => {
                        attempt.end(ended(&error));
                        break;
                    }
                    _ => {}
                }
            }
        }
    }
    heard.took_ms = took_ms(since);
    heard
}
