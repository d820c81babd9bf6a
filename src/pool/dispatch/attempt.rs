//! One attempt at one member, from the moment it may start until it is settled, exactly once.
//!
//! Settling tells the member's health, the ledger, the budgets, the metrics and the trace. An attempt that is dropped
//! settles as cancelled with what was seen of it, so that no token and no place is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use sconce_route::{Billed, Outcome};

use super::branch::{Branch, told};
use super::judge::kind_word;
use crate::calendar::day_of;
use crate::error::{ErrorKind, Result};
use crate::pool::admission::Permit;
use crate::pool::budget::{Hold, Payer};
use crate::pool::errand::{Errand, Trace};
use crate::pool::node::Node;
use crate::pool::shared::Shared;
use crate::request::{Event, Usage};
use crate::store::ledger::{AttemptOutcome, LedgerEntry};

/// What all attempts of a request have in common.
pub struct Case {
    pub shared: Arc<Shared>,
    pub errand: Errand,
    /// The request's id.
    pub request: String,
    pub route: String,
    pub payers: Vec<Payer>,
    pub is_shadow: bool,
    /// A member's answer is being let through: whatever else still runs is not needed.
    pub is_answered: AtomicBool,
}

pub struct Attempt {
    case: Arc<Case>,
    pub node: Arc<Node>,
    /// From 1.
    number: u32,
    health: Option<sconce_route::health::Attempt>,
    permit: Option<Permit>,
    hold: Option<Hold>,
    started: Instant,
    started_ms: u64,
    first_token_ms: Option<u64>,
    seen: Usage,
    /// Of the request's trace, where it is exported and the member is elsewhere.
    branch: Option<Box<Branch>>,
    /// The client gets this one.
    is_the_answer: bool,
    is_settled: bool,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    pub outcome: AttemptOutcome,
    pub health: Outcome,
    pub error: Option<ErrorKind>,
}

impl Ending {
    pub const CANCELLED: Self =
        Self { outcome: AttemptOutcome::Cancelled, health: Outcome::Cancelled, error: Some(ErrorKind::Cancelled) };
    /// Another attempt was faster or surer.
    pub const DISCARDED: Self = Self { outcome: AttemptOutcome::Discarded, health: Outcome::Cancelled, error: None };
}

impl Attempt {
    pub fn new(case: &Arc<Case>, node: &Arc<Node>, number: u32, passes: Passes, hold: Option<Hold>) -> Self {
        Self {
            case: Arc::clone(case),
            node: Arc::clone(node),
            number,
            health: passes.0,
            permit: passes.1,
            hold,
            started: Instant::now(),
            started_ms: node.now_ms(),
            first_token_ms: None,
            seen: Usage::default(),
            branch: None,
            is_the_answer: false,
            is_settled: false,
        }
    }

    /// It is a part of this trace, begun for this reason.
    #[must_use]
    pub fn in_trace(mut self, trace: &Trace, reason: &'static str) -> Self {
        self.branch = Branch::of(trace, &self.node, reason).map(Box::new);
        self
    }

    /// What is asked of the member, which is told of the attempt's place in the trace.
    pub async fn asks<T>(&self, asked: impl Future<Output = T>) -> T {
        told(self.branch.as_deref(), asked).await
    }

    /// Counts what comes, for an attempt that never says what it took. An event of text is a token at least.
    pub fn note(&mut self, event: &Event) {
        let tokens = match event {
            Event::Prompt(report) => {
                self.seen.prompt_tokens = report.prompt_tokens;
                self.seen.cached_tokens = report.cached_tokens;
                return;
            }
            Event::Text { tokens, token_ids, .. } | Event::Reasoning { tokens, token_ids, .. } => {
                tokens.len().max(token_ids.len())
            }
            Event::ToolCall { part, .. } => part.tokens.len().max(part.token_ids.len()),
            Event::Refusal { .. } => 1,
            Event::Done(_) | Event::Failed(_) => return self.branch.iter_mut().for_each(|branch| branch.stop()),
            Event::ReasoningSeal { .. } | Event::Finished { .. } => return,
        };
        if self.first_token_ms.is_none() {
            let now_ms = self.node.now_ms();
            self.first_token_ms = Some(now_ms);
            if let Some(health) = &mut self.health {
                self.node.health().first_token(now_ms, health);
            }
        }
        self.seen.completion_tokens += u32::try_from(tokens.max(1)).unwrap_or(u32::MAX);
    }

    /// The client gets this one, and no other.
    pub fn answers(&mut self) {
        self.is_the_answer = true;
        self.case.is_answered.store(true, Ordering::Relaxed);
    }

    /// The whole answer was made. It is not necessarily the one that the client gets.
    pub fn done(mut self, usage: Usage, outcome: AttemptOutcome) {
        if let Some(first_ms) = self.first_token_ms {
            let now_ms = self.node.now_ms();
            self.node.health().tokens(now_ms, usage.completion_tokens, now_ms.saturating_sub(first_ms));
        }
        if let Some(permit) = &mut self.permit {
            permit.complete();
        }
        self.settle(usage, Ending { outcome, health: Outcome::Success, error: None });
    }

    /// It ended otherwise.
    pub fn end(mut self, ending: Ending) {
        let seen = self.seen;
        self.settle(seen, ending);
    }

    fn settle(&mut self, usage: Usage, ending: Ending) {
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        let case = &self.case;
        let now_ms = self.node.now_ms();
        if let Some(health) = self.health.take() {
            self.node.health().finish(now_ms, health, ending.health);
        }
        let outcome = if case.is_shadow { AttemptOutcome::Shadow } else { ending.outcome };
        let is_nothing = usage.prompt_tokens == 0 && usage.completion_tokens == 0 && self.first_token_ms.is_none();
        // An answer of which nobody said what it took has an unknown price, not none.
        let is_known = usage.prompt_tokens > 0;
        let billed = Billed { usage, cache_write_tokens: usage.cache_write_tokens, batch: case.errand.is_batch };
        let cost = match (is_nothing, is_known) {
            // What was refused before anything was computed costs nothing at anyone's price.
            (true, _) => Some(sconce_route::Nanos::ZERO),
            (false, true) => self.node.pricing().cost(&billed),
            (false, false) => None,
        };
        self.hold = None;
        let at_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if let Some(cost) = cost.filter(|_| !case.is_shadow) {
            case.shared.budgets.spend(day_of(at_s), &case.payers, cost);
        }
        if !case.is_shadow {
            case.errand.trace.cost(cost);
        }
        let word = ending.error.map(kind_word);
        self.node.metrics.attempt(outcome.word(), word, &usage, cost.map(|cost| cost.0));
        if let Some(branch) = self.branch.take() {
            branch.end((&self.node.name, self.number), (outcome.word(), word));
        }
        if let Some(ledger) = &case.shared.ledger {
            ledger.record(LedgerEntry {
                at_s,
                request: case.request.clone(),
                key: if case.is_shadow { String::new() } else { case.errand.key.clone() },
                route: case.route.clone(),
                member: self.node.name.clone(),
                outcome,
                attempt: self.number,
                usage,
                cost_nano_usd: cost.map(|cost| cost.0),
                latency_ms: now_ms.saturating_sub(self.started_ms),
            });
        }
        tracing::debug!(
            request = %case.request, route = %case.route, member = %self.node.name, attempt = self.number,
            outcome = outcome.word(), error = word, took_ms = self.started.elapsed().as_millis() as u64, "attempt"
        );
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let seen = self.seen;
        let is_other = !self.is_the_answer && self.case.is_answered.load(Ordering::Relaxed);
        self.settle(seen, if is_other { Ending::DISCARDED } else { Ending::CANCELLED });
    }
}

/// The code of an error that only says that another request was faster than the decision.
pub const BARRED: &str = "member_unavailable";

/// A place in the member's queue, and its health's leave.
pub type Passes = (Option<sconce_route::health::Attempt>, Option<Permit>);

/// A place in the member's queue and its health's leave, or why not.
///
/// The only member of a plain route is asked whatever its health: there is nobody else. `None` places are held already.
pub fn passes(node: &Node, places: Option<u32>, is_plain: bool) -> Result<Passes> {
    use crate::error::Error;
    use sconce_route::health::Barred;
    let permit = places.map(|places| node.admission.admit(places)).transpose()?;
    let now_ms = node.now_ms();
    let started = node.health().try_start(now_ms);
    if is_plain {
        return Ok((started.ok(), permit));
    }
    let health = started.map_err(|barred| {
        let (what, retry_after_ms) = match barred {
            Barred::CircuitOpen { retry_after_ms } => ("is left alone after failures", retry_after_ms),
            Barred::Probing => ("is being probed after failures", 1000),
            Barred::RateLimited { retry_after_ms } => ("asked for a pause", retry_after_ms),
        };
        let seconds = u32::try_from(retry_after_ms.div_ceil(1000)).unwrap_or(u32::MAX).max(1);
        Error::new(ErrorKind::QueueFull, format!("member '{}' {what}; retry in about {seconds} s", node.name))
            .with_code(BARRED)
            .with_retry_after_s(seconds)
    })?;
    Ok((Some(health), permit))
}
