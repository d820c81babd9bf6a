//! Members that play a script, for tests of the pool itself.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;

use super::member::{EngineSnapshot, EventStream, Member, MemberState, Model, ModelCard, TokenizeInput, Tokenized};
use crate::error::{Error, Result};
use crate::request::{Event, Finish, PromptReport, Request, Usage};

/// One step of an answer.
#[derive(Clone)]
pub enum Step {
    Event(Event),
    /// Stays silent for ever.
    Hang,
}

type Script = Box<dyn Fn(usize) -> Result<Vec<Step>> + Send + Sync>;

/// Plays a script that may depend on how often it was asked before.
pub struct Scripted {
    card: ModelCard,
    script: Script,
    pub state: Mutex<MemberState>,
    pub asked: AtomicUsize,
    pub probed: AtomicUsize,
    pub unsupported: Mutex<Option<Error>>,
    pub requests: Mutex<Vec<Request>>,
    prompt_tokens: AtomicU64,
    generation_tokens: AtomicU64,
}

impl Scripted {
    pub fn new(name: &str, script: impl Fn(usize) -> Result<Vec<Step>> + Send + Sync + 'static) -> Arc<Self> {
        let card = ModelCard {
            id: name.to_owned(),
            aliases: Vec::new(),
            root: format!("scripted:{name}"),
            parent: None,
            max_model_len: 0,
            created_s: 0,
            chat: true,
            task: super::Task::Generate,
        };
        Arc::new(Self {
            card,
            script: Box::new(script),
            state: Mutex::new(MemberState::Ready),
            asked: AtomicUsize::new(0),
            probed: AtomicUsize::new(0),
            unsupported: Mutex::default(),
            requests: Mutex::default(),
            prompt_tokens: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
        })
    }

    pub fn answering(name: &str, text: &'static str) -> Arc<Self> {
        Self::new(name, move |_| Ok(answer(text)))
    }

    pub fn failing(name: &str, error: Error) -> Arc<Self> {
        Self::new(name, move |_| Err(error.clone()))
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// The engine's counters grow.
    pub fn computed(&self, prompt_tokens: u64, generation_tokens: u64) {
        self.prompt_tokens.fetch_add(prompt_tokens, Ordering::Relaxed);
        self.generation_tokens.fetch_add(generation_tokens, Ordering::Relaxed);
    }
}

pub fn text(text: &str) -> Event {
    Event::Text { choice: 0, text: text.into(), tokens: vec![], token_ids: vec![] }
}

pub fn usage() -> Usage {
    Usage { prompt_tokens: 10, completion_tokens: 2, cached_tokens: 4, ..Usage::default() }
}

/// Ten prompt tokens of which four were cached, two tokens.
pub fn answer(said: &str) -> Vec<Step> {
    let prompt = PromptReport { prompt_tokens: 10, cached_tokens: 4, ..PromptReport::default() };
    let finished = Event::Finished { choice: 0, reason: Finish::Stop(None) };
    [Event::Prompt(prompt), text(said), text("!"), finished, Event::Done(usage())].map(Step::Event).into()
}

impl Model for Scripted {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn state(&self) -> MemberState {
        self.state.lock().expect("no panic in between").clone()
    }

    fn tokenize(&self, _input: TokenizeInput) -> Result<Tokenized> {
        Ok(Tokenized { tokens: vec![1, 2], texts: vec![] })
    }

    fn detokenize(&self, _tokens: &[u32]) -> Result<String> {
        Ok(self.card.id.clone())
    }
}

impl Member for Scripted {
    fn start(&self, request: Request) -> BoxFuture<'_, Result<EventStream>> {
        let steps = (self.script)(self.asked.fetch_add(1, Ordering::Relaxed));
        self.requests.lock().expect("no panic in between").push(request);
        Box::pin(async move {
            let steps = steps?;
            let events: EventStream = Box::pin(async_stream::stream! {
                for step in steps {
                    match step {
                        Step::Event(event) => yield event,
                        Step::Hang => std::future::pending().await,
                    }
                }
            });
            Ok(events)
        })
    }

    fn unsupported(&self, _request: &Request) -> Option<Error> {
        self.unsupported.lock().expect("no panic in between").clone()
    }

    fn probe(&self) -> BoxFuture<'_, Result<()>> {
        self.probed.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(())))
    }

    fn snapshot(&self) -> EngineSnapshot {
        EngineSnapshot {
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
            generation_tokens: self.generation_tokens.load(Ordering::Relaxed),
            ..EngineSnapshot::default()
        }
    }
}
