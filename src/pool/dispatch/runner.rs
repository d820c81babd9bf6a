//! One answer out of as many attempts as it takes.
//!
//! 1. Until the first content (text, reasoning, a call) of one attempt is let through, nothing is: what came is held, and
//!    another member may take over. From then on there is no other member, and a break is told as an error.
//! 2. Exactly one `Done` or `Failed` comes out, and everything that was begun is settled, also when the stream is dropped.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, stream};
use sconce_route::cascade::Verdict;
use tokio::time::{Instant, Sleep};

use super::attempt::Ending;
use super::judge::judge;
use super::{Chosen, Dispatch, Next, Started, ask, shadow};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::errand::Errand;
use crate::pool::member::{EventStream, MemberState};
use crate::pool::route::Route;
use crate::pool::shared::Shared;
use crate::request::{Event, Prompt, Request, Usage};
use crate::store::ledger::AttemptOutcome;

/// Asks the members of a route until one answers. Who may be asked at all is decided before this returns, and a local
/// member that comes first has admitted the request then. `None` places are held already. Dropping the stream cancels.
pub async fn submit(
    shared: &Arc<Shared>,
    route: &Arc<Route>,
    request: Request,
    errand: Errand,
    places: Option<u32>,
) -> Result<EventStream> {
    let facts = (request.id.clone(), ask::of_request(&request), places);
    let mut dispatch = Dispatch::new(shared, route, errand, facts);
    dispatch.rule_out(&request);
    dispatch.look_at(&request).await;
    let first = dispatch.choose()?;
    let ear = shadow::maybe(&dispatch, &request);
    let mut runner = Box::new(Runner::new(dispatch, request));
    match first {
        Next::Wait(wait) => runner.resume_at = Some(Instant::now() + wait),
        Next::Ask(chosen) => {
            let node = &route.seats[chosen.seat].node;
            // Loading a model takes long: the stream is there before, so that its reader can keep the client's line open.
            let is_at_hand = node.is_local() && !matches!(node.member.state(), MemberState::Asleep(_));
            runner.ask(chosen);
            if is_at_hand && let Err(error) = runner.first_opened().await {
                if let Some(ear) = ear {
                    ear.refused(&error);
                }
                return Err(error);
            }
        }
    }
    let events = stream::unfold(runner, |mut runner| async move { runner.next().await.map(|event| (event, runner)) });
    Ok(match ear {
        None => Box::pin(events),
        Some(ear) => Box::pin(ear.over(events)),
    })
}

type Opening = BoxFuture<'static, Result<Started, (usize, Error)>>;

struct Runner {
    dispatch: Dispatch,
    request: Request,
    opening: Vec<Opening>,
    running: Vec<Running>,
    /// A whole answer that was not sure enough, for the case that nobody gives a better one.
    unsure: Option<(Running, Usage)>,
    out: VecDeque<Event>,
    /// Content was let through.
    is_committed: bool,
    is_over: bool,
    hedge_at: Option<Instant>,
    resume_at: Option<Instant>,
    armed: Option<(Instant, Pin<Box<Sleep>>)>,
}

struct Running {
    started: Started,
    /// What came before the first content.
    held: Vec<Event>,
    /// The client asked for the tokens' probabilities itself.
    shows_tokens: bool,
}

enum Step {
    Event(usize, Event),
    Opened(Result<Started, (usize, Error)>),
    Time,
}

impl Runner {
    fn new(dispatch: Dispatch, request: Request) -> Self {
        Self {
            dispatch,
            request,
            opening: Vec::new(),
            running: Vec::new(),
            unsure: None,
            out: VecDeque::new(),
            is_committed: false,
            is_over: false,
            hedge_at: None,
            resume_at: None,
            armed: None,
        }
    }

    fn ask(&mut self, chosen: Chosen) {
        let seat = chosen.seat;
        let opening = match self.dispatch.admit(seat, chosen.reason) {
            Ok(passes) => {
                let request = self.request_for_attempt();
                self.dispatch.begin(chosen, passes, request)
            }
            Err(error) => std::future::ready(Err((seat, error))).boxed(),
        };
        self.opening.push(opening);
        let hedge_after = self.dispatch.route.hedge_after.filter(|_| self.opening.len() + self.running.len() == 1);
        self.hedge_at = hedge_after.map(|after| Instant::now() + after);
    }

    /// A prompt may be megabytes: the last attempt that there can be takes it along, others have a copy.
    fn request_for_attempt(&mut self) -> Request {
        if self.dispatch.attempts < self.dispatch.route.attempts_max {
            return self.request.clone();
        }
        let prompt = self.take_prompt();
        Request { prompt, ..self.request.clone() }
    }

    fn take_prompt(&mut self) -> Prompt {
        std::mem::replace(&mut self.request.prompt, Prompt::Tokens(Vec::new()))
    }

    /// The first attempt has begun, or failed; then others may have been begun.
    async fn first_opened(&mut self) -> Result<()> {
        let Some(opening) = self.opening.pop() else { return Ok(()) };
        let opened = match self.dispatch.deadline {
            None => opening.await,
            Some(at) => match tokio::time::timeout_at(at, opening).await {
                Ok(opened) => opened,
                Err(_) => return Err(self.too_late()),
            },
        };
        self.opened(opened);
        match self.out.pop_front() {
            Some(Event::Failed(error)) => Err(error),
            other => {
                self.out.extend(other);
                Ok(())
            }
        }
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.out.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            match std::future::poll_fn(|context| self.poll(context)).await {
                Step::Event(at, event) => self.came(at, event),
                Step::Opened(opened) => self.opened(opened),
                Step::Time => self.on_time(),
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        for at in 0..self.running.len() {
            match self.running[at].started.events.as_mut().poll_next(context) {
                Poll::Ready(Some(event)) => return Poll::Ready(Step::Event(at, event)),
                Poll::Ready(None) => {
                    let is_local = self.running[at].started.attempt.node.is_local();
                    let kind = if is_local { ErrorKind::Internal } else { ErrorKind::Upstream };
                    let error = Error::new(kind, "the answer broke off without a final event");
                    return Poll::Ready(Step::Event(at, Event::Failed(error)));
                }
                Poll::Pending => {}
            }
        }
        for at in 0..self.opening.len() {
            if let Poll::Ready(opened) = self.opening[at].as_mut().poll(context) {
                drop(self.opening.swap_remove(at));
                return Poll::Ready(Step::Opened(opened));
            }
        }
        self.poll_timer(context)
    }

    /// One timer for whatever comes first.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        let next = [self.dispatch.deadline, self.hedge_at, self.resume_at].into_iter().flatten().min();
        let Some(next) = next else { return Poll::Pending };
        if self.armed.as_ref().is_none_or(|(at, _)| *at != next) {
            self.armed = Some((next, Box::pin(tokio::time::sleep_until(next))));
        }
        let (_, timer) = self.armed.as_mut().expect("it was armed a line above");
        match timer.as_mut().poll(context) {
            Poll::Ready(()) => {
                self.armed = None;
                Poll::Ready(Step::Time)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if self.dispatch.deadline.is_some_and(|at| at <= now) {
            let error = self.too_late();
            for running in self.running.drain(..) {
                running.started.attempt.end(Ending {
                    outcome: AttemptOutcome::Failed,
                    health: sconce_route::Outcome::Failure,
                    error: Some(ErrorKind::Timeout),
                });
            }
            self.fail(error);
        } else if self.resume_at.is_some_and(|at| at <= now) {
            self.resume_at = None;
            self.proceed();
        } else if self.hedge_at.take().is_some() {
            self.hedge();
        }
    }

    /// A second member is asked beside the silent one; whoever speaks first is heard.
    fn hedge(&mut self) {
        let silent: Vec<String> = self.running.iter().map(|running| self.name(running.started.seat)).collect();
        let asked =
            if silent.is_empty() { self.dispatch.case.errand.trace.get().member.into_iter().collect() } else { silent };
        for name in &asked {
            self.dispatch.ask.refusals.insert(name.clone(), "was asked already and is silent".to_owned());
        }
        if let Ok(Next::Ask(chosen)) = self.dispatch.choose() {
            let chosen = Chosen { reason: "hedge", ..chosen };
            self.ask(chosen);
        }
        self.hedge_at = None;
        for name in &asked {
            self.dispatch.ask.refusals.remove(name);
        }
    }

    fn opened(&mut self, opened: Result<Started, (usize, Error)>) {
        match opened {
            Ok(started) => {
                let shows_tokens = self.request.params.logprobs.is_some();
                self.running.push(Running { started, held: Vec::new(), shows_tokens });
            }
            Err((seat, error)) => self.failed(seat, error),
        }
    }

    fn came(&mut self, at: usize, event: Event) {
        let running = &mut self.running[at];
        running.started.attempt.note(&event);
        match event {
            Event::Failed(error) => {
                let running = self.running.swap_remove(at);
                let node = &running.started.attempt.node;
                let health = judge(&error, node.is_local()).health;
                let (seat, kind) = (running.started.seat, Some(error.kind));
                running.started.attempt.end(Ending { outcome: AttemptOutcome::Failed, health, error: kind });
                self.failed(seat, error);
            }
            Event::Done(usage) => self.done(at, usage),
            event if self.is_committed => self.out.push_back(event),
            event if running.started.tracker.is_some() => self.watch(at, event),
            event if is_content(&event) => {
                self.commit(at);
                self.out.push_back(event);
            }
            // Nobody else could take over: there is nothing to wait for.
            event if self.dispatch.route.is_plain => self.out.push_back(event),
            event => running.held.push(event),
        }
    }

    /// In a cascade the answer is held until its confidence is known.
    fn watch(&mut self, at: usize, mut event: Event) {
        let running = &mut self.running[at];
        let Some(tracker) = &mut running.started.tracker else { return };
        for token in tokens_of(&mut event, running.shows_tokens) {
            tracker.push(token);
        }
        let verdict = tracker.early();
        running.held.push(event);
        match verdict {
            None => {}
            Some(Verdict::Keep) => self.commit(at),
            Some(Verdict::Escalate) => self.escalate(at, None),
        }
    }

    fn done(&mut self, at: usize, usage: Usage) {
        let is_unsure = |running: &Running| {
            let tracker = running.started.tracker.as_ref();
            tracker.is_some_and(|tracker| tracker.at_end() == Verdict::Escalate)
        };
        if !self.is_committed {
            if is_unsure(&self.running[at]) {
                return self.escalate(at, Some(usage));
            }
            self.commit(at);
        }
        let running = self.running.remove(0);
        running.started.attempt.done(usage, AttemptOutcome::Answered);
        self.finish(Event::Done(usage));
    }

    /// A higher tier is asked. A whole answer is kept for the case that nobody there can answer.
    fn escalate(&mut self, at: usize, whole: Option<Usage>) {
        let running = self.running.swap_remove(at);
        let tier = running.started.tier;
        for seat in &self.dispatch.route.seats {
            if seat.facts().tier <= tier {
                let why = "its tier was not sure enough".to_owned();
                self.dispatch.ask.refusals.insert(seat.node.name.clone(), why);
            }
        }
        match whole {
            Some(usage) => self.unsure = Some((running, usage)),
            None => running.started.attempt.end(Ending { health: sconce_route::Outcome::Success, ..Ending::DISCARDED }),
        }
        match self.dispatch.choose() {
            Ok(Next::Ask(chosen)) => self.ask(Chosen { reason: "escalation", ..chosen }),
            Ok(Next::Wait(wait)) => self.resume_at = Some(Instant::now() + wait),
            Err(error) => self.fail(error),
        }
    }

    /// This attempt is the answer: what is held of it is let through, the others are given up.
    fn commit(&mut self, at: usize) {
        self.is_committed = true;
        self.hedge_at = None;
        // Nobody else is asked.
        drop(self.take_prompt());
        self.running.swap(0, at);
        self.running[0].started.attempt.answers();
        self.opening.clear();
        for other in self.running.drain(1..) {
            other.started.attempt.end(Ending::DISCARDED);
        }
        if let Some((unsure, usage)) = self.unsure.take() {
            unsure.started.attempt.done(usage, AttemptOutcome::Discarded);
        }
        let started = &self.running[0].started;
        let (name, reason) = (started.attempt.node.name.clone(), started.reason);
        self.dispatch.case.errand.trace.answers(&name, reason);
        let held = std::mem::take(&mut self.running[0].held);
        self.out.extend(held);
    }

    /// An attempt has failed.
    fn failed(&mut self, seat: usize, error: Error) {
        let name = self.name(seat);
        if self.is_committed {
            let error = self.dispatch.blamed(&name, error);
            return self.fail(error);
        }
        self.dispatch.failed(seat, error);
        if self.running.is_empty() && self.opening.is_empty() {
            self.proceed();
        }
    }

    fn proceed(&mut self) {
        match self.dispatch.choose() {
            Ok(Next::Ask(chosen)) => self.ask(chosen),
            Ok(Next::Wait(wait)) => self.resume_at = Some(Instant::now() + wait),
            Err(error) => {
                // A refusal of the next attempt says less than what went wrong before.
                let error = if error.code == Some("budget_exceeded") { error } else { self.last_error(error) };
                self.fail(error);
            }
        }
    }

    fn last_error(&mut self, otherwise: Error) -> Error {
        match self.dispatch.has_failed() {
            true => self.dispatch.exhausted(),
            false => otherwise,
        }
    }

    /// The end without an answer, unless there is one that was only not sure enough.
    fn fail(&mut self, error: Error) {
        if let Some((unsure, usage)) = self.unsure.take() {
            let name = unsure.started.attempt.node.name.clone();
            self.dispatch.case.errand.trace.answers(&name, "unsure");
            self.out.extend(unsure.held);
            unsure.started.attempt.done(usage, AttemptOutcome::Answered);
            return self.finish(Event::Done(usage));
        }
        self.finish(Event::Failed(error));
    }

    fn finish(&mut self, last: Event) {
        self.running.clear();
        self.opening.clear();
        self.resume_at = None;
        self.is_over = true;
        self.dispatch.case.errand.trace.ended();
        self.out.push_back(last);
    }

    fn too_late(&self) -> Error {
        let limit = self.dispatch.route.deadline.unwrap_or(Duration::ZERO);
        let message = format!(
            "the request took longer than the {} s that the route '{}' allows all its attempts; ask for fewer tokens or \
             retry later",
            limit.as_secs_f32(),
            self.dispatch.route.name
        );
        Error::new(ErrorKind::Timeout, message).with_code("deadline_exceeded")
    }

    fn name(&self, seat: usize) -> String {
        self.dispatch.route.seats[seat].node.name.clone()
    }
}

/// After this the client has something that no other member can take back.
fn is_content(event: &Event) -> bool {
    match event {
        Event::Text { text, .. } | Event::Reasoning { text, .. } | Event::Refusal { text, .. } => !text.is_empty(),
        Event::ToolCall { .. } | Event::ReasoningSeal { .. } => true,
        Event::Prompt(_) | Event::Finished { .. } | Event::Done(_) | Event::Failed(_) => false,
    }
}

/// The probabilities of an event's tokens, which are taken out where the client did not ask for them.
fn tokens_of(event: &mut Event, shown: bool) -> Vec<f32> {
    let tokens = match event {
        Event::Text { tokens, .. } | Event::Reasoning { tokens, .. } => tokens,
        Event::ToolCall { part, .. } => &mut part.tokens,
        _ => return Vec::new(),
    };
    let logprobs = tokens.iter().map(|report| report.token.logprob).collect();
    if !shown {
        tokens.clear();
    }
    logprobs
}
