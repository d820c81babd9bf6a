//! From a request to the member that answers it: who may be asked, who is next, and what to say when nobody is left.
//!
//! 1. Every attempt passes every filter: residency, allowance, budget and health hold for retries and hedges too.
//! 2. All attempts of a request share one deadline and one sum that they may cost.
//! 3. A member is asked with what is known of it at that moment, so that news of other requests counts.

pub mod ask;
pub mod attempt;
mod branch;
pub mod compare;
mod embed;
mod judge;
mod runner;
pub mod shadow;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sconce_route::cascade::Tracker;
use sconce_route::decide::{Excluded, Exclusion};
use sconce_route::replay::{Logged, LoggedMember};
use sconce_route::{Ask, Decision, Facts, HealthView, MemberView, Nanos, Rule, decide};
use tokio::time::Instant;

use super::errand::Errand;
use super::member::{EventStream, MemberState};
use super::route::{Route, fresh_seed};
use super::shared::Shared;
use crate::calendar::day_of;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::budget::Payer;
use crate::request::Request;
use crate::store::ledger::AttemptOutcome;
use attempt::{Attempt, BARRED, Case, Ending, Passes, passes};
pub use embed::embed;
use judge::Judgement;
pub use judge::judge;
pub use runner::submit;

/// The longest wait for the same member; who asks for more is passed over.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// All pauses of one request together.
const WAITED_MAX: Duration = Duration::from_secs(10);
/// Who waits for the same moment comes within so long after it.
const SPREAD: Duration = Duration::from_millis(100);

/// One request on its way to a member.
pub struct Dispatch {
    pub case: Arc<Case>,
    pub route: Arc<Route>,
    pub ask: Ask,
    pub attempts: u32,
    /// Pauses after which a member that had failed could be asked again.
    retries: u32,
    waited: Duration,
    pub deadline: Option<Instant>,
    /// `None` when they are held already.
    places: Option<u32>,
    /// Members that failed this request and may do better a little later.
    again: Vec<String>,
    /// Who cannot honour the request, in the member's own words.
    unsupported: Option<Error>,
    last: Option<(String, Error)>,
}

/// What to do next.
pub enum Next {
    Ask(Chosen),
    /// Nobody now, but somebody who failed may do better after this.
    Wait(Duration),
}

/// A member to be asked.
pub struct Chosen {
    pub seat: usize,
    pub reason: &'static str,
    pub tier: u32,
    /// What it is expected to cost.
    estimate: Option<Nanos>,
}

/// A member that has begun to answer.
pub struct Started {
    pub seat: usize,
    pub reason: &'static str,
    pub tier: u32,
    pub attempt: Attempt,
    pub events: EventStream,
    /// Follows how sure it is, where a surer one may be asked.
    pub tracker: Option<Tracker>,
}

impl Dispatch {
    pub fn new(
        shared: &Arc<Shared>,
        route: &Arc<Route>,
        errand: Errand,
        (id, ask, places): (String, Ask, Option<u32>),
    ) -> Self {
        let stay = route.stay.clone().and(errand.stay.clone());
        let ask = Ask {
            seed: fresh_seed(),
            stay,
            allowed: errand.members.as_ref().map(|names| names.to_vec()),
            batch: errand.is_batch,
            ..ask
        };
        let payers = vec![Payer::Key(errand.key.clone()), Payer::Route(route.name.clone())];
        let case = Case {
            shared: Arc::clone(shared),
            errand,
            request: id,
            route: route.name.clone(),
            payers,
            is_shadow: false,
            is_answered: false.into(),
        };
        Self {
            case: Arc::new(case),
            route: Arc::clone(route),
            ask,
            attempts: 0,
            retries: 0,
            waited: Duration::ZERO,
            deadline: route.deadline.map(|limit| Instant::now() + limit),
            places,
            again: Vec::new(),
            unsupported: None,
            last: None,
        }
    }

    /// Rules out members that are not up, and those that say themselves that they cannot honour the request.
    pub fn rule_out(&mut self, request: &Request) {
        if self.route.is_plain {
            return;
        }
        for node in self.route.nodes() {
            if let Some(error) = node.member.unsupported(request) {
                self.ask.refusals.insert(node.name.clone(), error.message.clone());
                self.unsupported.get_or_insert(error);
            }
        }
    }

    /// How hard it is, where the route goes by that.
    pub async fn look_at(&mut self, request: &Request) {
        if let Some(scorer) = &self.route.scorer {
            self.ask.difficulty = scorer.difficulty(request).await;
        }
    }

    /// Who is asked next, or why nobody is.
    pub fn choose(&mut self) -> Result<Next> {
        if self.attempts >= self.route.attempts_max {
            return Err(self.exhausted());
        }
        let budget = self.budget()?;
        if self.route.is_plain {
            return self.plain(budget);
        }
        self.ask.budget_left = budget;
        self.ask.deadline_left_ms = self
            .deadline
            .map(|at| u64::try_from(at.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX));
        let known = Known::of(&self.route);
        let ask = known.with_states(&self.ask, &self.route);
        let decision = decide(&self.route.policy, &ask, &known.views(&self.route));
        self.log(&ask, &known, &decision);
        self.wake(&known, &decision);
        if let Some(first) = decision.candidates.first() {
            let pricing = &known.facts[first.index].pricing;
            let estimate = pricing.estimate(ask.prompt_tokens, ask.output_tokens_expected(), ask.batch);
            let (seat, reason, tier) = (first.index, first.reason.word(), first.tier);
            let reason = if self.attempts > 0 && self.last.is_some() { "fallback" } else { reason };
            return Ok(Next::Ask(Chosen { seat, reason, tier, estimate }));
        }
        self.wait(&decision)
    }

    /// A model that would have been asked, were it in memory, is loaded for those that come later.
    fn wake(&self, known: &Known, decision: &Decision) {
        let chosen = decision.candidates.first().map(|first| known.facts[first.index].priority);
        for (node, facts) in self.route.nodes().zip(&known.facts) {
            if !matches!(node.member.state(), MemberState::Asleep(_)) {
                continue;
            }
            let is_passed_over = chosen.is_none_or(|chosen| facts.priority < chosen);
            let excluded = decision.excluded.iter().find(|excluded| excluded.member == node.name);
            let is_fit = excluded.is_none_or(|excluded| matches!(excluded.reason, Exclusion::Deadline { .. }));
            if is_passed_over && is_fit {
                node.member.wake();
            }
        }
    }

    /// The only member of a served model's own name. What it cannot do it says itself.
    fn plain(&self, budget: Option<Nanos>) -> Result<Next> {
        let seat = &self.route.seats[0];
        let name = &seat.node.name;
        if self.ask.allowed.as_ref().is_some_and(|names| !names.contains(name)) {
            let message = format!("the API key '{}' may not use the member '{name}'", self.case.errand.key);
            return Err(Error::new(ErrorKind::Forbidden, message).with_param("model").with_code("member_not_allowed"));
        }
        let output_tokens = self.ask.output_tokens_expected();
        let estimate = seat.node.pricing().estimate(self.ask.prompt_tokens, output_tokens, self.ask.batch);
        match (budget, estimate) {
            (Some(left), Some(cost)) if cost > left => Err(over_budget(left)),
            _ => Ok(Next::Ask(Chosen { seat: 0, reason: "only", tier: 0, estimate })),
        }
    }

    /// The least that key, route and request may still spend.
    fn budget(&self) -> Result<Option<Nanos>> {
        let shared = &self.case.shared;
        let limits = [self.case.errand.budget, self.route.budget];
        let payers: Vec<_> = self.case.payers.iter().cloned().zip(limits).collect();
        let allowance = shared.budgets.allowance(today(), &payers)?;
        if let Some(warning) = allowance.warning {
            tracing::warn!(request = %self.case.request, %warning, "a soft budget is passed");
            self.case.errand.trace.change(|traced| traced.budget_warning = Some(warning));
        }
        let spent = self.case.errand.trace.get().cost;
        let own = self.route.cost_max.map(|most| most.saturating_sub(spent));
        Ok(own.into_iter().chain(allowance.left).min())
    }

    /// Lets an attempt in, or says why not. Where another request was faster than the decision, it was no attempt.
    pub fn admit(&mut self, seat: usize, reason: &'static str) -> Result<Passes> {
        let node = &self.route.seats[seat].node;
        let passes = ready(&node.member.state(), &node.name, self.route.is_plain)
            .and_then(|()| passes(node, self.places, self.route.is_plain));
        if passes.as_ref().err().is_none_or(|error| error.code != Some(BARRED)) {
            self.attempts += 1;
            self.case.errand.trace.attempt(&node.name, reason);
        }
        passes
    }

    /// Starts an attempt that was let in. Dropping the future ends it.
    pub fn begin(
        &mut self,
        chosen: Chosen,
        passes: Passes,
        request: Request,
    ) -> BoxFuture<'static, Result<Started, (usize, Error)>> {
        let Chosen { seat, reason, tier, estimate } = chosen;
        let node = Arc::clone(&self.route.seats[seat].node);
        let hold = estimate
            .filter(|_| self.has_budget())
            .map(|amount| self.case.shared.budgets.hold(today(), self.case.payers.clone(), amount));
        let attempt = Attempt::new(&self.case, &node, self.attempts, passes, hold);
        let attempt = attempt.in_trace(&self.case.errand.trace, reason);
        let tracker = self.tracker(tier, &request);
        let request = logprobs_for(request, tracker.is_some());
        async move {
            match attempt.asks(node.member.start(request)).await {
                Ok(events) => Ok(Started { seat, reason, tier, attempt, events, tracker }),
                Err(error) => {
                    let Judgement { health, .. } = judge(&error, node.is_local());
                    let kind = Some(error.kind);
                    attempt.end(Ending { outcome: AttemptOutcome::Failed, health, error: kind });
                    Err((seat, error))
                }
            }
        }
        .boxed()
    }

    fn has_budget(&self) -> bool {
        !self.case.errand.budget.is_none() || !self.route.budget.is_none()
    }

    /// In a cascade every answer is watched but those of the highest tier.
    fn tracker(&self, tier: u32, request: &Request) -> Option<Tracker> {
        let Rule::Cascade { confidence } = &self.route.policy.rule else { return None };
        let highest = self.route.seats.iter().map(|seat| seat.facts().tier).max()?;
        let is_watched = tier < highest && request.params.n <= 1;
        is_watched.then(|| Tracker::new(confidence.clone(), request.params.max_tokens))
    }

    /// An attempt has failed before the client got anything of it.
    pub fn failed(&mut self, seat: usize, error: Error) {
        let node = &self.route.seats[seat].node;
        let Judgement { elsewhere, again, .. } = judge(&error, node.is_local());
        let name = node.name.clone();
        if error.code == Some(BARRED) {
            self.ask.refusals.insert(name.clone(), error.message);
            self.again.push(name);
            return;
        }
        self.ask.refusals.insert(name.clone(), format!("failed: {}", error.message));
        if !elsewhere {
            // It would fail anywhere.
            self.attempts = self.route.attempts_max;
        }
        let wants_long = error.retry_after_s.is_some_and(|wait| Duration::from_secs(wait.into()) > RETRY_WAIT_MAX);
        if again && !wants_long && !self.again.contains(&name) {
            self.again.push(name.clone());
        }
        self.last = Some((name, error));
    }

    /// Nobody can be asked now: the wait after which somebody can, when it is short. Who failed gets time, too.
    fn wait(&mut self, decision: &Decision) -> Result<Next> {
        // Clients that failed together do not come back together.
        let permille = (fresh_seed() % 500) as u32;
        let backoff = BACKOFF_FIRST.saturating_mul(1 << self.retries.min(4)).min(RETRY_WAIT_MAX);
        let pause = backoff * (500 + permille) / 1000;
        let of = |excluded: &Excluded| match &excluded.reason {
            Exclusion::Refused { .. } if self.again.contains(&excluded.member) => Some(pause),
            Exclusion::Refused { .. } => None,
            reason => reason.retry_after_ms().map(Duration::from_millis),
        };
        let wait = decision.excluded.iter().filter_map(of).min().filter(|wait| *wait <= RETRY_WAIT_MAX);
        let wait = wait.map(|wait| wait + SPREAD * permille / 500);
        let is_late = |wait: &Duration| {
            self.waited + *wait > WAITED_MAX || self.deadline.is_some_and(|at| Instant::now() + *wait >= at)
        };
        let Some(wait) = wait.filter(|wait| !is_late(wait)) else {
            return Err(if self.has_failed() { self.exhausted() } else { self.nobody(decision) });
        };
        self.waited += wait;
        self.retries += u32::from(!self.again.is_empty());
        for name in self.again.drain(..) {
            self.ask.refusals.remove(&name);
        }
        Ok(Next::Wait(wait))
    }

    /// Every attempt has failed.
    pub fn exhausted(&mut self) -> Error {
        match self.last.take() {
            Some((member, error)) => self.blamed(&member, error),
            None => Error::internal("a request has no attempts left and no error"),
        }
    }

    pub fn has_failed(&self) -> bool {
        self.last.is_some()
    }

    /// Says whose error it is.
    pub fn blamed(&self, member: &str, mut error: Error) -> Error {
        if !self.route.is_plain {
            error.message += &format!(" (member '{member}', attempt {})", self.attempts);
        }
        error
    }

    /// Nobody may be asked at all.
    fn nobody(&self, decision: &Decision) -> Error {
        let route = &self.route.name;
        let why = decision.why_nobody();
        let of =
            |kind, code| Error::new(kind, format!("no member of '{route}' can answer this: {why}")).with_code(code);
        let mut kinds = decision.excluded.iter().map(|excluded| &excluded.reason);
        let retry_after_s =
            decision.retry_after_ms().map(|ms| u32::try_from(ms.div_ceil(1000)).unwrap_or(u32::MAX).max(1));
        if let Some(seconds) = retry_after_s {
            let all_limited = kinds
                .clone()
                .all(|reason| reason.retry_after_ms().is_none() || matches!(reason, Exclusion::RateLimited { .. }));
            let kind = if all_limited { ErrorKind::RateLimited } else { ErrorKind::Unavailable };
            return of(kind, "no_member_available").with_retry_after_s(seconds);
        }
        let has = |wanted: fn(&Exclusion) -> bool| decision.excluded.iter().any(|excluded| wanted(&excluded.reason));
        let budget = |reason: &Exclusion| matches!(reason, Exclusion::Budget { .. });
        let unpriced = |reason: &Exclusion| matches!(reason, Exclusion::PriceUnknown);
        if has(budget) || (self.ask.budget_left.is_some() && has(unpriced)) {
            return of(ErrorKind::RateLimited, "budget_exceeded");
        }
        if has(|reason| {
            matches!(reason, Exclusion::Deadline { .. } | Exclusion::Drained | Exclusion::NotInCanary { .. })
        }) {
            return of(ErrorKind::Unavailable, "no_member_available");
        }
        if let Some(error) =
            self.unsupported.clone().filter(|_| has(|reason| matches!(reason, Exclusion::Refused { .. })))
        {
            return error;
        }
        if has(|reason| matches!(reason, Exclusion::ContextTooShort { .. })) {
            return of(ErrorKind::InvalidRequest, "context_length_exceeded");
        }
        let is_permission = |reason: &Exclusion| {
            matches!(reason, Exclusion::NotAllowed | Exclusion::Residency { .. } | Exclusion::ResidencyUnknown)
        };
        if kinds.all(is_permission) {
            return of(ErrorKind::Forbidden, "no_member_allowed");
        }
        if has(|reason| matches!(reason, Exclusion::Refused { .. })) {
            return of(ErrorKind::Unavailable, "no_member_available").with_retry_after_s(2);
        }
        of(ErrorKind::InvalidRequest, "unsupported_by_members")
    }

    fn log(&self, ask: &Ask, known: &Known, decision: &Decision) {
        let Some(log) = self.case.shared.decisions.as_ref().filter(|log| self.attempts == 0 && log.draws()) else {
            return;
        };
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        log.write(Logged {
            at_ms: u64::try_from(at_ms).unwrap_or(u64::MAX),
            route: self.route.name.clone(),
            policy: self.route.policy.clone(),
            ask: ask.clone(),
            members: known.views(&self.route).iter().map(LoggedMember::new).collect(),
            decision: decision.clone(),
            completion_tokens: None,
        });
    }

    /// What would be decided now, without sending anything.
    pub fn explained(&self) -> (Ask, Decision, Option<Error>) {
        let known = Known::of(&self.route);
        let mut ask = known.with_states(&self.ask, &self.route);
        let budget = self.budget();
        ask.budget_left = budget.as_ref().ok().copied().flatten();
        let decision = decide(&self.route.policy, &ask, &known.views(&self.route));
        let nobody = decision.candidates.is_empty().then(|| self.nobody(&decision));
        (ask, decision, budget.err().or(nobody))
    }
}

/// Facts and measurements of a route's members at one moment.
struct Known {
    facts: Vec<Arc<Facts>>,
    health: Vec<HealthView>,
}

impl Known {
    fn of(route: &Route) -> Self {
        Self {
            facts: route.seats.iter().map(super::route::Seat::facts).collect(),
            health: route.nodes().map(|node| node.view()).collect(),
        }
    }

    fn views<'a>(&'a self, route: &'a Route) -> Vec<MemberView<'a>> {
        let known = self.facts.iter().zip(&self.health);
        let views = route.nodes().zip(known);
        views.map(|(node, (facts, health))| MemberView { name: &node.name, facts, health }).collect()
    }

    /// Those that are loading or have failed are ruled out as long as they are.
    fn with_states(&self, ask: &Ask, route: &Route) -> Ask {
        let mut ask = ask.clone();
        for node in route.nodes() {
            match node.member.state() {
                MemberState::Ready | MemberState::Asleep(_) => {}
                MemberState::Loading(what) => {
                    drop(ask.refusals.insert(node.name.clone(), format!("not ready: {what}")))
                }
                MemberState::Failed(why) => drop(ask.refusals.insert(node.name.clone(), format!("failed: {why}"))),
            }
        }
        ask
    }
}

/// Whether a member can be asked at all.
fn ready(state: &MemberState, name: &str, is_plain: bool) -> Result<()> {
    let what = if is_plain { "model" } else { "member" };
    let unavailable = |message: String| Error::new(ErrorKind::Unavailable, message);
    match state {
        MemberState::Ready | MemberState::Asleep(_) => Ok(()),
        MemberState::Loading(doing) => Err(unavailable(format!("{what} '{name}' is not ready yet: {doing}"))
            .with_code("model_not_ready")
            .with_retry_after_s(2)),
        MemberState::Failed(why) => {
            Err(unavailable(format!("{what} '{name}' has failed: {why}")).with_code("model_failed"))
        }
    }
}

/// A cascade looks at the probabilities of tokens, whether or not the client wants to.
fn logprobs_for(mut request: Request, is_watched: bool) -> Request {
    if is_watched {
        request.params.logprobs.get_or_insert(0);
    }
    request
}

fn over_budget(left: Nanos) -> Error {
    let message = format!("this would cost more than the {left} that are left of the budget; ask for fewer tokens");
    Error::new(ErrorKind::RateLimited, message).with_code("budget_exceeded")
}

pub fn today() -> u32 {
    day_of(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
