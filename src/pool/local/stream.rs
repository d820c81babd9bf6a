//! One event stream from the progress of all choices of a request.

use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tokio::sync::mpsc::Receiver;

use super::Loaded;
use super::adapters::AdapterUse;
use super::choice::{Advance, Choice, report};
use super::plan::AnswerPlan;
use crate::engine::{Progress, PromptDone};
use crate::error::{Error, Result};
use crate::pool::member::EventStream;
use crate::request::{Event, Finish, Prompt, PromptReport, PromptToken, Request, Usage};
use crate::telemetry::{FinishLabel, ModelMetrics, RequestTimes};

struct Running {
    loaded: Arc<Loaded>,
    metrics: Arc<ModelMetrics>,
    request: Request,
    prompt: Vec<u32>,
    receivers: Vec<Option<Receiver<Progress>>>,
    choices: Vec<Choice>,
    /// Who is asked first for progress: each in turn, so that no choice waits behind another's backlog.
    turn: usize,
    usage: Usage,
    clock: Clock,
    last: Option<FinishLabel>,
    recorded: bool,
    /// Held until all sequences have ended or were cancelled.
    adapter: Option<AdapterUse>,
}

/// When things happened, for the histograms.
struct Clock {
    arrived: Instant,
    queue_s: f64,
    prefill_s: f64,
    first_token: Option<Instant>,
    last_token: Vec<Option<Instant>>,
}

/// A request whose choices are all in the engine.
pub struct Submitted {
    pub request: Request,
    pub prompt: Vec<u32>,
    pub plan: AnswerPlan,
    /// Before rendering and tokenising: the client has been waiting since then.
    pub arrived: Instant,
    /// `[choices]`
    pub receivers: Vec<Receiver<Progress>>,
    pub adapter: Option<AdapterUse>,
}

/// Dropping the stream drops every receiver, by which the engine frees the sequences at its next step.
pub fn events(loaded: Arc<Loaded>, metrics: Arc<ModelMetrics>, submitted: Submitted) -> EventStream {
    let Submitted { request, prompt, plan, arrived, receivers, adapter } = submitted;
    let choice = |index| Choice::new(&loaded, &request.params, &plan, &prompt, index);
    let choices: Vec<_> = (0..receivers.len() as u32).map(choice).collect();
    let clock =
        Clock { arrived, queue_s: 0.0, prefill_s: 0.0, first_token: None, last_token: vec![None; choices.len()] };
    let usage = Usage { prompt_tokens: prompt.len() as u32, ..Usage::default() };
    let receivers = receivers.into_iter().map(Some).collect();
    let (turn, last, recorded) = (0, None, false);
    let mut running =
        Running { loaded, metrics, request, prompt, receivers, choices, turn, usage, clock, last, recorded, adapter };
    Box::pin(async_stream::stream! {
        let mut next = running.first_progress().await;
        if let Some(adapter) = &mut running.adapter {
            adapter.begin();
        }
        loop {
            let (choice, progress) = match next {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(error) => {
                    running.finished(FinishLabel::Error);
                    yield Event::Failed(error);
                    return;
                }
            };
            for event in running.advance(choice, progress) {
                let failed = matches!(event, Event::Failed(_));
                if failed {
                    // Before the event: whoever gets it may drop the stream.
                    running.finished(FinishLabel::Error);
                }
                yield event;
                if failed {
                    return;
                }
            }
            next = running.next_progress().await;
        }
        let last = running.last.unwrap_or(FinishLabel::Stop);
        running.finished(last);
        yield Event::Done(running.usage);
    })
}

impl Running {
    /// The first choice's progress comes first: it carries the report on the prompt.
    async fn first_progress(&mut self) -> Result<Option<(usize, Progress)>> {
        let Some(receiver) = self.receivers[0].as_mut() else { return Ok(None) };
        let progress = receiver.recv().await;
        progress.map(|progress| Some((0, progress))).ok_or_else(engine_gone)
    }

    /// The next progress of any choice that still runs; `None` when all have ended.
    async fn next_progress(&mut self) -> Result<Option<(usize, Progress)>> {
        if self.receivers.iter().all(Option::is_none) {
            return Ok(None);
        }
        let (receivers, turn) = (&mut self.receivers, self.turn);
        let (choice, progress) = std::future::poll_fn(|context| {
            for place in 0..receivers.len() {
                let choice = (turn + place) % receivers.len();
                let Some(open) = &mut receivers[choice] else { continue };
                if let Poll::Ready(progress) = open.poll_recv(context) {
                    return Poll::Ready((choice, progress));
                }
            }
            Poll::Pending
        })
        .await;
        self.turn = choice + 1;
        progress.map(|progress| Some((choice, progress))).ok_or_else(engine_gone)
    }

    fn advance(&mut self, choice: usize, mut progress: Progress) -> Vec<Event> {
        let mut events = Vec::with_capacity(2);
        if let Some(done) = progress.prompt.take()
            && choice == 0
        {
            events.push(Event::Prompt(self.prompt_report(done)));
        }
        self.observe_tokens(choice, progress.tokens.len());
        let of = &mut self.choices[choice];
        let (generated, reasoned) = (of.generated, of.reasoned);
        let Advance { events: told, end } = of.advance(progress);
        self.usage.completion_tokens += of.generated - generated;
        self.usage.reasoning_tokens += of.reasoned - reasoned;
        events.extend(told);
        let index = choice as u32;
        match end {
            None => {}
            Some(Ok(reason)) => {
                // A stop string ends the choice before the engine knows: dropping the receiver tells it.
                self.receivers[choice] = None;
                self.last = Some(match reason {
                    // No local model filters.
                    Finish::Stop(_) | Finish::ToolCalls | Finish::ContentFilter => FinishLabel::Stop,
                    Finish::Length => FinishLabel::Length,
                });
                events.push(Event::Finished { choice: index, reason });
            }
            Some(Err(error)) => events.push(Event::Failed(error)),
        }
        events
    }

    fn prompt_report(&mut self, done: PromptDone) -> PromptReport {
        self.usage.cached_tokens = done.cached_tokens;
        self.clock.queue_s = done.queue_time.as_secs_f64();
        self.clock.prefill_s = done.prefill_time.as_secs_f64();
        let params = &self.request.params;
        let tokenizer = &self.loaded.tokenizer;
        let mut reports = done.logprobs.into_iter();
        let tokens = if params.echo || params.prompt_logprobs.is_some() {
            let described = self.prompt.iter().enumerate().map(|(at, &id)| PromptToken {
                id,
                text: tokenizer.token_text(id),
                report: if at == 0 { None } else { reports.next().map(|logprobs| report(tokenizer, id, &logprobs)) },
            });
            described.collect()
        } else {
            Vec::new()
        };
        let text = params.echo.then(|| match &self.request.prompt {
            // Clients cut the answer off behind what they sent, so it must come back as it was.
            Prompt::Text(text) => text.clone(),
            // Every token counts, as in the offsets.
            _ => tokenizer.decode(&self.prompt, false).unwrap_or_default(),
        });
        PromptReport { prompt_tokens: self.prompt.len() as u32, cached_tokens: done.cached_tokens, text, tokens }
    }

    fn observe_tokens(&mut self, choice: usize, tokens: usize) {
        if tokens == 0 {
            return;
        }
        let now = Instant::now();
        if self.clock.first_token.is_none() {
            self.clock.first_token = Some(now);
            self.metrics.time_to_first_token((now - self.clock.arrived).as_secs_f64());
        }
        if let Some(last) = self.clock.last_token[choice].replace(now) {
            self.metrics.inter_token((now - last).as_secs_f64() / tokens as f64);
        }
    }

    fn finished(&mut self, label: FinishLabel) {
        self.recorded = true;
        let now = Instant::now();
        let decode_s = self.clock.first_token.map_or(0.0, |first| (now - first).as_secs_f64());
        self.metrics.finished(
            label,
            RequestTimes {
                queue_s: self.clock.queue_s,
                prefill_s: self.clock.prefill_s,
                decode_s,
                e2e_s: (now - self.clock.arrived).as_secs_f64(),
                prompt_tokens: self.usage.prompt_tokens,
                generation_tokens: self.usage.completion_tokens,
                generation_tokens_longest: self.choices.iter().map(|choice| choice.generated).max().unwrap_or(0),
                max_tokens: self.request.params.max_tokens,
                n: self.request.params.n,
            },
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.recorded {
            self.finished(FinishLabel::Abort);
        }
    }
}

fn engine_gone() -> Error {
    Error::internal("the engine stopped before the answer was complete; send the request again")
}
