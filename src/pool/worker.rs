//! A member that is another engine on this machine: an OpenAI-compatible server, started and watched by this one.
//!
//! While it is not ready it is not asked, and says why. Each of its processes is reached anew: port and model name are
//! what that process was told and says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use sconce_providers::{HttpClient, Kind as ProviderKind, Provider, ProviderConfig};
use sconce_route::{Kind, Pricing, Residency};
use sconce_worker::{Phase, Served, Status, Supervisor};
use tokio::time::Instant;

use super::member::{
    EngineSnapshot, EventStream, Member, MemberState, Model, ModelCard, Task, TokenizeInput, Tokenized,
};
use super::node::Declared;
use crate::config::pool::{MemberConfig, MemberTask, WorkerConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::request::{EmbedRequest, Embedded, Event, Request, Usage};

/// Where no route's deadline ends a request, this does.
const DEADLINE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

pub struct WorkerMember {
    config: WorkerConfig,
    supervisor: Supervisor,
    client: HttpClient,
    provisional: ModelCard,
    /// With what its first process said of itself.
    learnt: OnceLock<ModelCard>,
    // Taken once a request.
    reached: Mutex<Option<(u64, Provider)>>,
    counted: Arc<Counted>,
}

/// Tokens of its answers, from which its speed and price follow.
#[derive(Default)]
struct Counted {
    prompt: AtomicU64,
    cached: AtomicU64,
    generated: AtomicU64,
}

impl Counted {
    fn add(&self, usage: &Usage) {
        self.prompt.fetch_add(usage.prompt_tokens.into(), Ordering::Relaxed);
        self.cached.fetch_add(usage.cached_tokens.into(), Ordering::Relaxed);
        self.generated.fetch_add(usage.completion_tokens.into(), Ordering::Relaxed);
    }
}

impl WorkerMember {
    /// Starts nothing.
    pub fn new(config: &MemberConfig, worker: &WorkerConfig) -> Self {
        let generates = config.task == MemberTask::Generate;
        let provisional = ModelCard {
            id: config.name.clone(),
            aliases: Vec::new(),
            root: format!("worker:{}", worker.spec.model),
            parent: None,
            max_model_len: config.capabilities.context_tokens.unwrap_or(0),
            created_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            chat: generates,
            task: if generates { Task::Generate } else { Task::Embed { dimensions: 0 } },
        };
        Self {
            config: worker.clone(),
            supervisor: Supervisor::new(worker.spec.clone(), worker.limits.clone()),
            client: HttpClient::new(),
            provisional,
            learnt: OnceLock::new(),
            reached: Mutex::default(),
            counted: Arc::default(),
        }
    }

    pub fn config(&self) -> &WorkerConfig {
        &self.config
    }

    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// The process that is ready now.
    fn provider(&self) -> Result<Provider> {
        let status = self.supervisor.status();
        let (Phase::Ready, Some(port), Some(served)) = (status.phase, status.port, &status.served) else {
            let message = format!("worker '{}' is not ready: {}", self.provisional.id, status.says(Instant::now()));
            let error = Error::new(ErrorKind::Unavailable, message);
            return Err(error.with_code("model_not_ready").with_retry_after_s(2));
        };
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, provider)) = reached.as_ref().filter(|(generation, _)| *generation == status.generation) {
            return Ok(provider.clone());
        }
        let mut config = ProviderConfig::new(ProviderKind::Compatible, served.model.clone());
        config.base_url = Some(format!("http://127.0.0.1:{port}/v1"));
        config.timeouts = self.config.timeouts;
        let provider = Provider::new(config, &self.client)?;
        *reached = Some((status.generation, provider.clone()));
        Ok(provider)
    }

    fn no_tokenizer(&self) -> Error {
        let id = &self.provisional.id;
        let message = format!("'{id}' is another engine, and its tokens are not known here; ask for a local model");
        Error::invalid("model", message).with_code("no_tokenizer")
    }
}

/// What is declared of it: a machine of our own, reached as a server elsewhere is.
pub fn declared(config: &MemberConfig, worker: &WorkerConfig) -> Declared {
    let cores = worker.spec.cores.as_ref().map(|cores| format!(" neuron:{cores}")).unwrap_or_default();
    Declared {
        kind: Kind::Remote,
        endpoint: format!("worker {}{cores}", worker.spec.model),
        residency: Residency::Local,
        // As the process says.
        capabilities: None,
        overrides: config.capabilities,
        pricing: config.price.clone().map_or(Pricing::Unknown, Pricing::Tokens),
        hourly: worker.hourly,
        quality: config.quality,
        health: config.health.clone(),
    }
}

impl Model for WorkerMember {
    fn card(&self) -> &ModelCard {
        if let Some(card) = self.learnt.get() {
            return card;
        }
        if !self.supervisor.is_ready() || self.provisional.max_model_len > 0 {
            return &self.provisional;
        }
        let Some(Served { max_model_len: Some(tokens), .. }) = self.supervisor.status().served else {
            return &self.provisional;
        };
        self.learnt.get_or_init(|| ModelCard { max_model_len: tokens, ..self.provisional.clone() })
    }

    fn state(&self) -> MemberState {
        if self.supervisor.is_ready() {
            return MemberState::Ready;
        }
        let status = self.supervisor.status();
        let says = status.says(Instant::now());
        if status.phase == Phase::Failed { MemberState::Failed(says) } else { MemberState::Loading(says) }
    }

    fn tokenize(&self, _input: TokenizeInput) -> Result<Tokenized> {
        Err(self.no_tokenizer())
    }

    fn detokenize(&self, _tokens: &[u32]) -> Result<String> {
        Err(self.no_tokenizer())
    }
}

impl Member for WorkerMember {
    fn start(&self, request: Request) -> BoxFuture<'_, Result<EventStream>> {
        async move {
            let events = self.provider()?.start(&request, Instant::now() + DEADLINE_MAX).await?;
            let counted = Arc::clone(&self.counted);
            let events = events.inspect(move |event| {
                if let Event::Done(usage) = event {
                    counted.add(usage);
                }
            });
            Ok(events.boxed() as EventStream)
        }
        .boxed()
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<Embedded>> {
        async move {
            let embedded = self.provider()?.embed(&request, Instant::now() + DEADLINE_MAX).await?;
            self.counted.prompt.fetch_add(embedded.prompt_tokens.into(), Ordering::Relaxed);
            Ok(embedded)
        }
        .boxed()
    }

    fn unsupported(&self, request: &Request) -> Option<Error> {
        self.provider().ok()?.unsupported(request)
    }

    fn probe(&self) -> BoxFuture<'_, Result<()>> {
        async move { self.provider()?.probe(Instant::now() + DEADLINE_MAX).await }.boxed()
    }

    /// What can be told from outside: the tokens of its answers.
    fn snapshot(&self) -> EngineSnapshot {
        let counted = &self.counted;
        EngineSnapshot {
            prompt_tokens: counted.prompt.load(Ordering::Relaxed),
            cached_prompt_tokens: counted.cached.load(Ordering::Relaxed),
            generation_tokens: counted.generated.load(Ordering::Relaxed),
            ..EngineSnapshot::default()
        }
    }

    fn worker(&self) -> Option<Status> {
        Some(self.supervisor.status())
    }
}
