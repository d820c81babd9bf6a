//! The events of one HTTP request, over all its prompts, under its time limit.
//!
//! Dropping an [`Answer`] drops every stream in it, which cancels what still runs. Exactly one end comes out: the
//! summed usage, or the first error, after which the other prompts are cancelled.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream, StreamExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::error::finish_word;
use crate::api::{AppState, Turn};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::{Errand, Trace};
use crate::request::{Event, Request, Usage};
use crate::telemetry::access::RequestLog;

use super::wire::finish_reason;

/// At most this many events are handled between two writes to the client.
const BATCH_EVENTS_MAX: usize = 128;

/// An event and the index of the prompt it belongs to.
type Indexed = (usize, Event);

/// A running request.
pub(in crate::api) struct Answer {
    batches: Pin<Box<dyn Stream<Item = Vec<Indexed>> + Send>>,
    /// Prompts that have not ended.
    open: usize,
    usage: Usage,
    deadline: Option<(Instant, f32)>,
    /// Ends the answer with an error when notified.
    stop: Option<Stop>,
    trace: Trace,
    log: RequestLog,
    first_token_seen: bool,
    /// What came so far, for an answer that is dropped before its end.
    seen: Usage,
    has_ended: bool,
    finish: &'static str,
}

/// What ends an answer from outside, and with which error.
struct Stop {
    on: Arc<Notify>,
    error: fn() -> Error,
}

/// What was ready at once.
#[derive(Debug)]
pub(in crate::api) struct Batch {
    /// Everything but `Done` and `Failed`.
    pub events: Vec<Indexed>,
    /// Set on the last batch.
    pub end: Option<Result<Usage>>,
}

impl Answer {
    /// Admits every prompt or none: an error drops, and so cancels, those already admitted.
    pub async fn start(state: &AppState, requests: Vec<Request>, origin: (Errand, RequestLog)) -> Result<Self> {
        let (errand, log) = origin;
        let trace = errand.trace.clone();
        let deadline =
            state.config.request_timeout.map(|limit| (Instant::from_std(log.started()) + limit, limit.as_secs_f32()));
        let open = requests.len();
        let submitted = async {
            match state.turn {
                Turn::Live => {
                    let submits = requests.into_iter().map(|request| state.pool.submit_for(request, errand.clone()));
                    futures_util::future::try_join_all(submits).await
                }
                Turn::Spare => state.pool.submit_spare(requests, state.config.batches.concurrency, errand).await,
            }
        };
        let streams = match deadline {
            None => submitted.await?,
            Some((at, limit_s)) => {
                tokio::time::timeout_at(at, submitted).await.unwrap_or_else(|_| Err(too_slow(limit_s)))?
            }
        };
        let indexed = streams.into_iter().enumerate().map(|(prompt, events)| events.map(move |event| (prompt, event)));
        let mut indexed = indexed.fuse();
        let batches: Pin<Box<dyn Stream<Item = Vec<Indexed>> + Send>> = match (indexed.next(), indexed.len()) {
            // Nearly always: there is nothing to merge.
            (Some(only), 0) => Box::pin(only.ready_chunks(BATCH_EVENTS_MAX)),
            (first, _) => Box::pin(stream::select_all(first.into_iter().chain(indexed)).ready_chunks(BATCH_EVENTS_MAX)),
        };
        Ok(Self {
            batches,
            open,
            usage: Usage::default(),
            deadline,
            stop: None,
            trace,
            log,
            first_token_seen: false,
            seen: Usage::default(),
            has_ended: false,
            finish: "done",
        })
    }

    /// Who answers, as far as it is known.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// From now on `stop` ends the answer with this error.
    pub fn end_on(&mut self, stop: Arc<Notify>, error: fn() -> Error) {
        self.stop = Some(Stop { on: stop, error });
    }

    /// The next events, waiting until there are some. Not to be called again after an end. May be dropped and called
    /// again without losing an event.
    pub async fn next(&mut self) -> Batch {
        let next = tokio::select! {
            biased;
            error = stopped(self.stop.as_ref()) => return self.ended(Vec::new(), Err(error)),
            error = overdue(self.deadline) => return self.ended(Vec::new(), Err(error)),
            next = self.batches.next() => next,
        };
        let Some(ready) = next else {
            let error = Error::internal("the answer broke off without a final event");
            return self.ended(Vec::new(), Err(error));
        };
        let mut events = Vec::with_capacity(ready.len());
        for (prompt, event) in ready {
            match event {
                Event::Failed(error) => return self.ended(events, Err(error)),
                Event::Done(usage) => {
                    self.usage = self.usage.plus(usage);
                    self.open = self.open.saturating_sub(1);
                }
                event => {
                    self.note(&event);
                    events.push((prompt, event));
                }
            }
        }
        self.log.running(self.seen);
        if self.open == 0 {
            return self.ended(events, Ok(self.usage));
        }
        Batch { events, end: None }
    }

    /// Gives every event to `take` and returns the usage, for answers that are sent as one document.
    pub async fn fold(mut self, mut take: impl FnMut(usize, Event)) -> Result<Usage> {
        loop {
            let batch = self.next().await;
            for (prompt, event) in batch.events {
                take(prompt, event);
            }
            if let Some(end) = batch.end {
                return end;
            }
        }
    }

    fn note(&mut self, event: &Event) {
        self.count(event);
        match event {
            Event::Text { .. } | Event::Reasoning { .. } | Event::Refusal { .. } | Event::ToolCall { .. }
                if !self.first_token_seen =>
            {
                self.first_token_seen = true;
                self.log.first_token();
            }
            Event::Finished { reason, .. } => self.finish = finish_reason(reason),
            _ => {}
        }
    }

    /// An event of text is a token at least; where token ids were asked for it says how many.
    fn count(&mut self, event: &Event) {
        let tokens = match event {
            Event::Prompt(report) => {
                self.seen.prompt_tokens = self.seen.prompt_tokens.saturating_add(report.prompt_tokens);
                self.seen.cached_tokens = self.seen.cached_tokens.saturating_add(report.cached_tokens);
                return;
            }
            Event::Text { tokens, token_ids, .. } | Event::Reasoning { tokens, token_ids, .. } => {
                tokens.len().max(token_ids.len())
            }
            Event::ToolCall { part, .. } => part.tokens.len().max(part.token_ids.len()),
            Event::Refusal { .. } => 1,
            Event::ReasoningSeal { .. } | Event::Finished { .. } | Event::Done(_) | Event::Failed(_) => return,
        };
        let tokens = u32::try_from(tokens.max(1)).unwrap_or(u32::MAX);
        self.seen.completion_tokens = self.seen.completion_tokens.saturating_add(tokens);
    }

    fn ended(&mut self, events: Vec<Indexed>, end: Result<Usage>) -> Batch {
        let word = end.as_ref().map_or_else(|error| finish_word(error.kind), |_| self.finish);
        // After an error what was generated was still generated.
        let usage = if end.is_ok() { self.usage } else { self.seen };
        self.has_ended = true;
        self.log.finish(word, usage);
        // Whatever still runs is cancelled now, not when the client has read the error.
        self.batches = Box::pin(stream::empty());
        Batch { events, end: Some(end) }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.has_ended {
            self.log.took(self.seen);
        }
    }
}

async fn stopped(stop: Option<&Stop>) -> Error {
    match stop {
        None => std::future::pending().await,
        Some(Stop { on, error }) => {
            on.notified().await;
            error()
        }
    }
}

async fn overdue(deadline: Option<(Instant, f32)>) -> Error {
    match deadline {
        None => std::future::pending().await,
        Some((at, limit_s)) => {
            tokio::time::sleep_until(at).await;
            too_slow(limit_s)
        }
    }
}

pub(super) fn too_slow(limit_s: f32) -> Error {
    let message = format!("the request took longer than its limit of {limit_s} s; ask for fewer tokens or retry later");
    Error::new(ErrorKind::Timeout, message).with_code("request_timeout")
}
