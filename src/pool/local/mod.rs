//! A member backed by an engine in this process: request -> tokens -> engine -> text -> events.

mod adapters;
mod choice;
mod constraint;
mod embed;
mod plan;
mod prepare;
mod stream;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};

use crate::engine::stats::STEP_TOKENS_BOUNDS;
use crate::engine::{EngineHandle, LoadedAdapter, StepTokens, Submit, SubmitError};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::member::{
    EngineSnapshot, EventStream, Member, MemberState, Model, ModelCard, NewAdapter, TokenizeInput, Tokenized,
    wrong_task,
};
use crate::request::{EmbedRequest, Embedded, Prompt, Request};
use crate::telemetry::ModelMetrics;
use crate::text::{AnswerFormat, ChatTemplate, Tokenizer};
pub use adapters::{AdapterLimits, AdapterLoader};
use adapters::{AdapterUse, Adapters};
pub use embed::Embedding;
use plan::AnswerPlan;

/// Steps that a slow client may lag behind before its sequence is parked.
const PROGRESS_CHANNEL_STEPS: usize = 64;

/// A text shorter than this is rendered and tokenised on the async thread: a hand-over costs more than the work.
const INLINE_PROMPT_BYTES_MAX: usize = 16 * 1024;

/// Longer prompts that are rendered and tokenised at once; more wait.
const PREPARING_MAX: usize = 4;

/// Everything a loaded model needs to answer.
pub struct Loaded {
    pub card: ModelCard,
    pub engine: EngineHandle,
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

/// A local model from the moment its name is known: loading, then ready or failed.
pub struct LocalMember {
    provisional: ModelCard,
    loaded: OnceLock<Arc<Loaded>>,
    /// Set instead of `loaded` for a model that makes vectors or scores.
    embedding: OnceLock<Arc<Embedding>>,
    failed: OnceLock<String>,
    metrics: Arc<ModelMetrics>,
    /// Turns to prepare a long prompt: each takes a core and memory in proportion to the prompt.
    preparing: Arc<Semaphore>,
    compiler: constraint::Compiler,
    adapters: Adapters,
}

impl LocalMember {
    pub fn loading(card: ModelCard, metrics: Arc<ModelMetrics>) -> Self {
        Self {
            provisional: card,
            loaded: OnceLock::new(),
            embedding: OnceLock::new(),
            failed: OnceLock::new(),
            metrics,
            preparing: Arc::new(Semaphore::new(PREPARING_MAX)),
            compiler: constraint::Compiler::default(),
            adapters: Adapters::default(),
        }
    }

    /// With what it may be given of adapters.
    #[must_use]
    pub fn with_adapters(self, limits: AdapterLimits) -> Self {
        Self { adapters: Adapters::new(limits), ..self }
    }

    /// Called once, when the model can serve.
    pub fn set_loaded(&self, loaded: Loaded) {
        let first = self.loaded.set(Arc::new(loaded)).is_ok();
        debug_assert!(first, "a member is loaded once");
    }

    /// Called once, instead of [`Self::set_loaded`].
    pub fn set_embedding(&self, embedding: Embedding) {
        let first = self.embedding.set(Arc::new(embedding)).is_ok();
        debug_assert!(first, "a member is loaded once");
    }

    pub fn set_failed(&self, why: String) {
        // The first reason is the true one; later ones follow from it.
        let _ = self.failed.set(why);
    }

    /// Stops the engine, if there is one: what still runs is cancelled after `grace`.
    pub fn shutdown(&self, grace: Duration) {
        if let Some(loaded) = self.loaded.get() {
            loaded.engine.shutdown(grace);
        }
        if let Some(embedding) = self.embedding.get() {
            embedding.engine.shutdown(grace);
        }
    }

    /// The model as one that generates.
    fn ready(&self) -> Result<&Arc<Loaded>> {
        self.loaded.get().ok_or_else(|| {
            if let Some(embedding) = self.embedding.get() {
                return wrong_task(&embedding.card, false);
            }
            Error::new(ErrorKind::Unavailable, format!("model '{}' is still loading", self.provisional.id))
                .with_code("model_not_ready")
                .with_retry_after_s(2)
        })
    }
}

impl Model for LocalMember {
    fn card(&self) -> &ModelCard {
        match (self.loaded.get(), self.embedding.get()) {
            (Some(loaded), _) => &loaded.card,
            (None, Some(embedding)) => &embedding.card,
            (None, None) => &self.provisional,
        }
    }

    fn state(&self) -> MemberState {
        if let Some(why) = self.failed.get() {
            return MemberState::Failed(why.clone());
        }
        let failure = match (self.loaded.get(), self.embedding.get()) {
            (Some(loaded), _) => loaded.engine.failure(),
            (None, Some(embedding)) => embedding.engine.failure(),
            (None, None) => return MemberState::Loading("loading".to_owned()),
        };
        match failure {
            None => MemberState::Ready,
            Some(why) => MemberState::Failed(format!("{why}; restart the server")),
        }
    }

    fn tokenize(&self, input: TokenizeInput) -> Result<Tokenized> {
        if let Some(embedding) = self.embedding.get() {
            return embedding.tokenize(&input);
        }
        let loaded = self.ready()?;
        let tokens = prepare::counted_tokens(loaded, &input)?;
        let texts = tokens.iter().map(|&id| loaded.tokenizer.token_text(id)).collect();
        Ok(Tokenized { tokens, texts })
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String> {
        if let Some(embedding) = self.embedding.get() {
            return embedding.detokenize(tokens);
        }
        let loaded = self.ready()?;
        prepare::check_ids(loaded, tokens, "tokens")?;
        loaded.tokenizer.decode(tokens, false)
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
            match self.embedding.get() {
                Some(model) => embed::embed(model, request, &self.preparing, &self.metrics).await,
                // Either it generates, or it is still loading.
                None => Err(self.ready().map_or_else(|error| error, |loaded| wrong_task(&loaded.card, false))),
            }
        }
        .boxed()
    }

    fn snapshot(&self) -> EngineSnapshot {
        if let Some(embedding) = self.embedding.get() {
            return embedding.snapshot();
        }
        let Some(loaded) = self.loaded.get() else { return EngineSnapshot::default() };
        let stats = loaded.engine.stats();
        EngineSnapshot {
            running: stats.running,
            waiting: stats.waiting + stats.parked,
            kv_usage: stats.blocks_owned as f64 / (stats.blocks_total.max(1)) as f64,
            prompt_tokens: stats.prompt_tokens,
            generation_tokens: stats.generation_tokens,
            cached_prompt_tokens: stats.cached_prompt_tokens,
            recomputed_prompt_tokens: stats.recomputed_tokens,
            prefix_queries: stats.prefix_queries,
            prefix_hits: stats.prefix_hits,
            preemptions: stats.preemptions,
            steps: stats.steps,
            blocks: stats.blocks_total,
            block_size: u64::from(loaded.block_size),
            step_tokens_buckets: cumulative(&stats.step_tokens),
            step_tokens_sum: stats.step_tokens.sum as f64,
            drafts: stats.spec_drafts,
            draft_tokens: stats.spec_draft_tokens,
            accepted_tokens: stats.spec_accepted_tokens,
            embedded_texts: 0,
            adapters: self.adapters.figures(),
            accepted_per_position: stats.spec_accepted_per_position[..loaded.drafts_max].to_vec(),
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
        let loaded = Arc::clone(self.ready()?);
        let (mut request, prompt, plan) = self.prepared(&loaded, request).await?;
        let constraint = match plan.wanted(&request.params) {
            Some(wanted) => Some(self.compiler.ready(&loaded, wanted, &request).await?),
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
        let adapter_id = adapter.as_ref().map(AdapterUse::loaded).transpose()?.map(LoadedAdapter::id);
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
            loaded.engine.submit(submit).map_err(refused)?;
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
