//! A member backed by an engine in this process: request -> tokens -> engine -> text -> events.

mod adapters;
mod choice;
mod chooser;
mod constraint;
mod embed;
mod judge;
mod plan;
mod prepare;
mod replicas;
mod residence;
mod sleep;
mod slot;
mod stream;

use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::engine::stats::STEP_TOKENS_BOUNDS;
use crate::engine::{EngineStats, StepTokens, Submit, SubmitError};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::lifecycle::Lifecycle;
use crate::pool::member::{
    EngineSnapshot, EventStream, Member, MemberState, Model, ModelCard, NewAdapter, TokenizeInput, Tokenized,
    TokenizerInfo,
};
use crate::request::{EmbedRequest, Embedded, Prompt, Request};
use crate::telemetry::ModelMetrics;
use crate::text::{AnswerFormat, ChatTemplate, Tokenizer};
pub use adapters::{AdapterLimits, AdapterLoader};
use adapters::{AdapterUse, Adapters};
pub use constraint::Compiler;
pub use embed::Embedding;
pub use judge::JudgePrompt;
use plan::AnswerPlan;
pub use replicas::Replicas;
use residence::Counted;
pub use residence::{Begun, History};
pub use slot::{Held, Loading, Memory, Slot};

/// Steps that a slow client may lag behind before its sequence is parked.
const PROGRESS_CHANNEL_STEPS: usize = 64;

/// A text shorter than this is rendered and tokenised on the async thread: a hand-over costs more than the work.
const INLINE_PROMPT_BYTES_MAX: usize = 16 * 1024;

/// Longer prompts that are rendered and tokenised at once; more wait.
const PREPARING_MAX: usize = 4;

/// Everything a loaded model needs to answer.
pub struct Loaded {
    pub card: ModelCard,
    pub engines: Replicas,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<ChatTemplate>,
    /// How the model marks reasoning and calls.
    pub answer: AnswerFormat,
    /// Special tokens that the parsers of its answers must see, and those of reasoning alone.
    pub marker_ids: Arc<[u32]>,
    pub reasoning_marker_ids: Arc<[u32]>,
    pub defaults: SamplingDefaults,
    /// Ids that end an answer unless the request ignores them.
    pub eos_ids: Vec<u32>,
    /// Tokens in a KV block.
    pub block_size: u32,
    /// Most tokens drafted at once; 0 where nothing is.
    pub drafts_max: usize,
    /// Rows of the logits; tokenizers may know fewer ids.
    pub vocab_size: usize,
    pub compiler: Compiler,
    /// Host memory that it takes while it sleeps; `None` of a model that cannot.
    pub asleep_bytes: Option<u64>,
    /// What reads adapters for it, if it takes any.
    pub adapters: Option<AdapterLoader>,
}

/// A model's own sampling defaults (generation_config.json), else OpenAI's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingDefaults {
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
}

impl Default for SamplingDefaults {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// A local model from the moment its name is known. Its model may come and go.
pub struct LocalMember {
    provisional: ModelCard,
    /// Of the model when it was first loaded.
    card: OnceLock<ModelCard>,
    slot: watch::Sender<Slot>,
    /// Requests wait for a model that is not in memory. Otherwise it is still loading for the first time.
    is_open: AtomicBool,
    lifecycle: OnceLock<Weak<Lifecycle>>,
    waiting: AtomicU32,
    // Taken once a request.
    history: Mutex<History>,
    counted: Mutex<Counted>,
    /// A step that runs longer is stuck.
    step_timeout: OnceLock<Duration>,
    metrics: Arc<ModelMetrics>,
    /// Turns to prepare a long prompt: each takes a core and memory in proportion to the prompt.
    preparing: Arc<Semaphore>,
    adapters: Adapters,
}

impl LocalMember {
    pub fn loading(card: ModelCard, metrics: Arc<ModelMetrics>) -> Self {
        Self {
            provisional: card,
            card: OnceLock::new(),
            slot: watch::Sender::new(Slot::Empty),
            is_open: AtomicBool::new(false),
            lifecycle: OnceLock::new(),
            waiting: AtomicU32::new(0),
            history: Mutex::default(),
            counted: Mutex::default(),
            step_timeout: OnceLock::new(),
            metrics,
            preparing: Arc::new(Semaphore::new(PREPARING_MAX)),
            adapters: Adapters::default(),
        }
    }

    /// With what it may be given of adapters.
    #[must_use]
    pub fn with_adapters(self, limits: AdapterLimits) -> Self {
        Self { adapters: Adapters::new(limits), ..self }
    }

    /// Loading has failed before the server ever was ready.
    pub fn set_failed(&self, why: String) {
        self.fail(why);
    }

    /// A step that runs longer than this is stuck: the member fails until it is over. Set once.
    pub fn set_step_timeout(&self, limit: Duration) {
        let _same = self.step_timeout.set(limit);
    }

    /// Stops the engine, if there is one, for good: what still runs is cancelled after `grace`.
    pub fn shutdown(&self, grace: Duration) {
        if let Some(held) = self.close() {
            held.shutdown(grace);
        }
    }

    /// How long its engine has been in one step, when that is too long.
    pub fn stuck_for(&self) -> Option<Duration> {
        let limit = *self.step_timeout.get()?;
        match &*self.slot.borrow() {
            Slot::Holding { held, .. } => held.in_step_for().filter(|time| *time > limit),
            _ => None,
        }
    }

    fn asleep(&self, why: &str) -> MemberState {
        if self.is_open() { MemberState::Asleep(why.to_owned()) } else { MemberState::Loading(why.to_owned()) }
    }

    fn holding(&self, held: &Held) -> MemberState {
        if let Some(why) = held.failure() {
            return match self.is_open() {
                true => MemberState::Asleep(format!("restarting: {why}")),
                false => MemberState::Failed(format!("{why}; restart the server")),
            };
        }
        match self.step_timeout.get().and_then(|limit| held.in_step_for().filter(|time| time > limit)) {
            None => MemberState::Ready,
            Some(time) => MemberState::Failed(format!("its engine has been in one step for {} s", time.as_secs())),
        }
    }
}

impl Model for LocalMember {
    fn card(&self) -> &ModelCard {
        self.card.get().unwrap_or(&self.provisional)
    }

    fn state(&self) -> MemberState {
        match &*self.slot.borrow() {
            Slot::Empty => self.asleep(if self.is_open() { "not loaded" } else { "loading" }),
            Slot::Loading(loading) => self.asleep(&loading.told()),
            Slot::Sleeping { .. } => self.asleep("sleeping"),
            Slot::Draining(_) => self.asleep("being unloaded"),
            Slot::Holding { held, .. } => self.holding(held),
            Slot::Failed { why, again_at } if Instant::now() < *again_at => MemberState::Failed(why.clone()),
            Slot::Failed { why, .. } if self.is_open() => MemberState::Asleep(format!("failed: {why}")),
            Slot::Failed { why, .. } => MemberState::Failed(why.clone()),
            Slot::Closed => MemberState::Failed("it is not served any more".to_owned()),
        }
    }

    fn tokenize(&self, input: TokenizeInput) -> Result<Tokenized> {
        match self.present()? {
            Held::Embedding(embedding) => embedding.tokenize(&input),
            Held::Generating(loaded) => {
                let tokens = prepare::counted_tokens(&loaded, &input)?;
                let texts = tokens.iter().map(|&id| loaded.tokenizer.token_text(id)).collect();
                Ok(Tokenized { tokens, texts })
            }
        }
    }

    fn tokenizer_info(&self) -> Result<TokenizerInfo> {
        let (tokenizer, chat_template) = match self.present()? {
            Held::Embedding(embedding) => (Arc::clone(&embedding.tokenizer), None),
            Held::Generating(loaded) => {
                (Arc::clone(&loaded.tokenizer), loaded.template.as_ref().map(|template| template.source()))
            }
        };
        let names = tokenizer.special_tokens();
        let [bos, eos, unk, pad] = [&names.bos, &names.eos, &names.unk, &names.pad].map(Clone::clone);
        Ok(TokenizerInfo { bos, eos, unk, pad, chat_template })
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String> {
        match self.present()? {
            Held::Embedding(embedding) => embedding.detokenize(tokens),
            Held::Generating(loaded) => {
                prepare::check_ids(&loaded, tokens, "tokens")?;
                loaded.tokenizer.decode(tokens, false)
            }
        }
    }

    fn awake(&self) -> BoxFuture<'_, Result<()>> {
        async move { self.lease().await.map(drop) }.boxed()
    }
}

impl Member for LocalMember {
    fn start(&self, request: Request) -> BoxFuture<'_, Result<EventStream>> {
        self.start_with(request, None).boxed()
    }

    fn adapters(self: Arc<Self>) -> Vec<Arc<dyn Member>> {
        self.adapter_members()
    }

    fn load_adapter(&self, new: &NewAdapter) -> Result<()> {
        self.add_adapter(new)
    }

    fn unload_adapter(&self, name: &str) -> Result<bool> {
        self.remove_adapter(name)
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<Embedded>> {
        async move {
            let model = self.embedding().await?;
            embed::embed(&model, request, &self.preparing, &self.metrics).await
        }
        .boxed()
    }

    fn wake(&self) {
        // Without a lifecycle there is nobody to bring it in.
        let _ = self.call();
    }

    fn wake_ms(&self) -> u64 {
        u64::try_from(self.predicted_load().as_millis()).unwrap_or(u64::MAX)
    }

    fn snapshot(&self) -> EngineSnapshot {
        // Both are looked at together, as a model leaves the one when it enters the other.
        let slot = self.slot.borrow();
        let counted = self.counted();
        let mut all = counted.gone.clone();
        if let Some(departing) = &counted.departing {
            all.add_counters(departing);
        }
        if let Slot::Holding { held, .. } | Slot::Sleeping { held, .. } = &*slot {
            all.add(held.snapshot());
        }
        all.adapters = self.adapters.figures();
        all
    }
}

impl Loaded {
    pub(super) fn snapshot(&self) -> EngineSnapshot {
        EngineSnapshot::together(self.engines.stats().map(|stats| self.snapshot_of(&stats)).collect())
    }

    fn snapshot_of(&self, stats: &EngineStats) -> EngineSnapshot {
        EngineSnapshot {
            running: stats.running,
            waiting: stats.waiting + stats.parked,
            kv_usage: stats.blocks_owned as f64 / (stats.blocks_total.max(1)) as f64,
            prompt_tokens: stats.prompt_tokens,
            generation_tokens: stats.generation_tokens,
            cached_prompt_tokens: stats.cached_prompt_tokens,
            recomputed_prompt_tokens: stats.recomputed_tokens,
            padding_tokens: stats.padding_tokens,
            prefix_queries: stats.prefix_queries,
            prefix_hits: stats.prefix_hits,
            preemptions: stats.preemptions,
            steps: stats.steps,
            blocks: stats.blocks_total,
            block_size: u64::from(self.block_size),
            step_tokens_buckets: cumulative(&stats.step_tokens),
            step_tokens_sum: stats.step_tokens.sum as f64,
            drafts: stats.spec_drafts,
            draft_tokens: stats.spec_draft_tokens,
            accepted_tokens: stats.spec_accepted_tokens,
            embedded_texts: 0,
            adapters: None,
            replicas: Vec::new(),
            accepted_per_position: stats.spec_accepted_per_position[..self.drafts_max].to_vec(),
        }
    }
}

/// A request on its way into the engine.
struct Prepared {
    request: Request,
    prompt: Vec<u32>,
    plan: AnswerPlan,
    constraint: Option<constraint::Ready>,
    arrived: Instant,
    adapter: Option<AdapterUse>,
}

impl LocalMember {
    /// With an adapter, or as the base model.
    async fn start_with(&self, request: Request, adapter: Option<AdapterUse>) -> Result<EventStream> {
        let arrived = Instant::now();
        let loaded = self.generating().await?;
        let adapter = match adapter {
            Some(adapter) => Some(adapter.on(&loaded).await?),
            None => None,
        };
        let (mut request, prompt, plan) = self.prepared(&loaded, request).await?;
        let constraint = match plan.wanted(&request.params) {
            Some(wanted) => Some(loaded.compiler.ready(&loaded, wanted, &request).await?),
            None => None,
        };
        if !request.params.echo {
            // The ids are all that is needed from here on; the text of a queued request would only take memory.
            request.prompt = Prompt::Tokens(Vec::new());
        }
        self.submit(&loaded, Prepared { request, prompt, plan, constraint, arrived, adapter })
    }

    /// Rendering and tokenising a long prompt takes milliseconds: that is done where it delays no other stream.
    async fn prepared(&self, loaded: &Arc<Loaded>, request: Request) -> Result<(Request, Vec<u32>, AnswerPlan)> {
        if prompt_bytes(&request.prompt) <= INLINE_PROMPT_BYTES_MAX {
            let (prompt, plan) = prepare::prompt_tokens(loaded, &request)?;
            return Ok((request, prompt, plan));
        }
        let turn = Arc::clone(&self.preparing).acquire_owned().await;
        let turn = turn.map_err(|_| Error::internal("the turns to prepare prompts were closed"))?;
        let loaded = Arc::clone(loaded);
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let (prompt, plan) = prepare::prompt_tokens(&loaded, &request)?;
            Ok((request, prompt, plan))
        })
        .await
        .map_err(|panic| Error::internal(format!("preparing the prompt failed: {panic}")))?
    }

    fn submit(&self, loaded: &Arc<Loaded>, prepared: Prepared) -> Result<EventStream> {
        let Prepared { request, prompt, plan, constraint, arrived, adapter } = prepared;
        let adapter_id = adapter.as_ref().and_then(AdapterUse::id);
        let engine = loaded.engines.for_prompt(&prompt, &request.tenant.salt);
        let mut receivers = Vec::with_capacity(request.params.n as usize);
        for choice in 0..request.params.n.max(1) {
            let (progress, receiver) = mpsc::channel(PROGRESS_CHANNEL_STEPS);
            let mut params = prepare::sampling(loaded, &request.params, prompt.len(), choice);
            if constraint.is_some() && request.params.ignore_eos {
                // Its filter holds the end back as long as anything else may come, and then the answer must end.
                params.stop_token_ids.extend(&loaded.eos_ids);
            }
            let submit = Submit {
                prompt: prompt.clone(),
                params,
                filter: constraint.as_ref().map(constraint::Ready::filter),
                priority: request.priority,
                salt: request.tenant.salt,
                adapter: adapter_id,
                progress,
            };
            // Choices that were submitted before a refusal are cancelled by dropping their receivers.
            engine.submit(submit).map_err(refused)?;
            receivers.push(receiver);
        }
        let submitted = stream::Submitted { request, prompt, plan, arrived, receivers, adapter };
        Ok(stream::events(Arc::clone(loaded), Arc::clone(&self.metrics), submitted))
    }
}

/// Prometheus buckets count everything up to their bound; the last, unbounded one is the number of steps.
fn cumulative(steps: &StepTokens) -> Vec<(f64, u64)> {
    let bounds = STEP_TOKENS_BOUNDS.iter().map(|&bound| f64::from(bound)).chain([f64::INFINITY]);
    let mut total = 0;
    bounds
        .zip(steps.counts)
        .map(|(bound, count)| {
            total += count;
            (bound, total)
        })
        .collect()
}

fn refused(refusal: SubmitError) -> Error {
    match refusal {
        SubmitError::Full => Error::new(ErrorKind::QueueFull, "the engine's queue is full; retry in about 1 s")
            .with_code("queue_full")
            .with_retry_after_s(1),
        SubmitError::Stopped => Error::new(ErrorKind::Unavailable, "the engine has stopped and takes no new requests")
            .with_code("engine_stopped"),
    }
}

fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(ids) => ids.len(),
        // Tools are JSON of any size, and rendering writes all of it: not worth measuring.
        Prompt::Chat(chat) if !chat.tools.is_empty() => usize::MAX,
        Prompt::Chat(chat) => chat.messages.iter().map(|message| message.content.bytes()).sum(),
    }
}
