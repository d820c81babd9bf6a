//! What the pool asks of whoever can answer: a local engine or a hosted provider.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::future::BoxFuture;

use crate::error::{Error, Result};
use crate::request::{Chat, EmbedInput, EmbedRequest, Embedded, Event, Request};

/// Events of one request. Ends after `Event::Done` or `Event::Failed`; dropping it cancels.
pub type EventStream = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// What stands behind a name that clients use: a member, or a route over several.
pub trait Model: Send + Sync {
    fn card(&self) -> &ModelCard;
    fn state(&self) -> MemberState;
    fn tokenize(&self, input: TokenizeInput) -> Result<Tokenized>;
    fn detokenize(&self, tokens: &[u32]) -> Result<String>;
    /// What a client needs beside ids: the special tokens' texts, and the chat template.
    fn tokenizer_info(&self) -> Result<TokenizerInfo> {
        let message =
            format!("model '{}' has no tokenizer here; send its name to a server that has it", self.card().id);
        Err(Error::invalid("model", message).with_code("no_tokenizer"))
    }
    /// Waits until it is in memory, for what cannot wait itself. Dropping the future gives up.
    fn awake(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// One model at one place that can answer.
pub trait Member: Model {
    /// Starts a request that has been admitted. Errors here are about the request (prompt too long, bad template), or
    /// about the member.
    fn start(&self, request: Request) -> BoxFuture<'_, Result<EventStream>>;
    /// Vectors or scores for inputs that were admitted. Dropping the future cancels.
    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<Embedded>> {
        let error = wrong_task(self.card(), request.inputs.iter().any(|input| matches!(input, EmbedInput::Pair(..))));
        Box::pin(async move { Err(error) })
    }
    /// Why this member cannot honour the request, where that can be told without asking it.
    fn unsupported(&self, _request: &Request) -> Option<Error> {
        None
    }
    /// Whether it answers at all, asked without a word of any request. Free of charge.
    fn probe(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
    /// How it is with its process, where this server supervises one.
    fn worker(&self) -> Option<sconce_worker::Status> {
        None
    }
    /// Has a model that is not in memory loaded, without waiting for it.
    fn wake(&self) {}
    /// How long a request would wait for the model to be loaded.
    fn wake_ms(&self) -> u64 {
        0
    }
    /// Adapters beside it, each a model of its own.
    fn adapters(self: Arc<Self>) -> Vec<Arc<dyn Member>> {
        Vec::new()
    }
    /// Reads an adapter from a folder. Takes a moment: not for the event loop.
    fn load_adapter(&self, _new: &NewAdapter) -> Result<()> {
        let message = format!("model '{}' runs elsewhere and takes no adapters", self.card().id);
        Err(Error::invalid("base_model_name", message))
    }
    /// Its requests go on, new ones do not find it. False when there is none of that name.
    fn unload_adapter(&self, _name: &str) -> Result<bool> {
        Ok(false)
    }
    /// Figures for `/metrics`; taking them must not lock or wait for the engine.
    fn snapshot(&self) -> EngineSnapshot;
}

/// An adapter to be loaded beside a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAdapter {
    pub name: String,
    /// Its folder, in the operator's folder for adapters.
    pub path: String,
    /// One of that name may be there already, and is replaced.
    pub replaces: bool,
    /// Unix time.
    pub created_s: u64,
}

/// Adapters of a model in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdapterFigures {
    pub max: u32,
    pub running: Vec<String>,
    pub waiting: Vec<String>,
}

/// What `/v1/models` says of a member.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// The client-visible name.
    pub id: String,
    /// Other names it answers to (`--served-model-name` may be given several times).
    pub aliases: Vec<String>,
    /// The model reference it was loaded from.
    pub root: String,
    /// Of an adapter: the model that it is added to.
    pub parent: Option<String>,
    pub max_model_len: u32,
    /// Unix time when it was loaded.
    pub created_s: u64,
    /// A chat template exists, so `/v1/chat/completions` works.
    pub chat: bool,
    pub task: Task,
}

/// What a model does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Task {
    #[default]
    Generate,
    /// Vectors of this many values.
    Embed { dimensions: u32 },
    /// One score a pair of texts.
    Score,
}

impl Task {
    /// As `--task` takes it and `/v1/models` tells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Embed { .. } => "embed",
            Self::Score => "score",
        }
    }
}

/// The refusal of a request that this model cannot serve, naming the endpoint that can be asked instead.
pub fn wrong_task(card: &ModelCard, wants_scores: bool) -> Error {
    let id = &card.id;
    let message = match (card.task, wants_scores) {
        (Task::Generate, _) => format!(
            "model '{id}' generates text and makes no vectors; send it to /v1/chat/completions or /v1/completions, or \
             start the server with --task embed"
        ),
        (Task::Embed { .. }, _) => format!("model '{id}' makes vectors and no text; send it to /v1/embeddings"),
        (Task::Score, true) => format!("model '{id}' cannot be asked this; send it to /v1/rerank or /v1/score"),
        (Task::Score, false) => format!("model '{id}' scores pairs of texts; send it to /v1/rerank or /v1/score"),
    };
    Error::invalid("model", message).with_code("wrong_task")
}

impl ModelCard {
    pub fn answers_to(&self, model: &str) -> bool {
        self.id == model || self.aliases.iter().any(|alias| alias == model)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberState {
    /// For the first time: it cannot be asked yet. What is being done, for a person.
    Loading(String),
    /// Not in memory, or on its way in or out: requests wait for it.
    Asleep(String),
    Ready,
    Failed(String),
}

#[derive(Debug, Clone)]
// One a request: boxing the usual case would save nothing.
#[allow(clippy::large_enum_variant)]
pub enum TokenizeInput {
    Text { text: String, add_special_tokens: bool },
    Chat(Chat),
}

/// A tokenizer's names for its special tokens, and the template as the model brings it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerInfo {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
    pub chat_template: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Tokenized {
    pub tokens: Vec<u32>,
    /// Text of each token, when the endpoint asks for it.
    pub texts: Vec<String>,
}

/// A plain copy of an engine's figures. Counters only grow.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineSnapshot {
    pub running: u64,
    pub waiting: u64,
    /// Share of KV blocks owned by live sequences, 0..=1.
    pub kv_usage: f64,
    pub prompt_tokens: u64,
    pub generation_tokens: u64,
    pub cached_prompt_tokens: u64,
    pub recomputed_prompt_tokens: u64,
    /// Tokens that steps were filled up with to a size that the executor has compiled.
    pub padding_tokens: u64,
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    pub preemptions: u64,
    pub steps: u64,
    pub blocks: u64,
    pub block_size: u64,
    /// Tokens a step: how many steps had at most `le` tokens, cumulative, and the sum. (`vllm:iteration_tokens_total`)
    pub step_tokens_buckets: Vec<(f64, u64)>,
    pub step_tokens_sum: f64,
    /// Times that tokens were drafted, how many tokens, and how many of them the model confirmed.
    pub drafts: u64,
    pub draft_tokens: u64,
    pub accepted_tokens: u64,
    /// Texts that were made vectors or scores.
    pub embedded_texts: u64,
    /// Of the confirmed ones, how many stood at each place of their draft; empty where nothing is drafted.
    pub accepted_per_position: Vec<u64>,
    /// Of a model that has adapters or may be given some.
    pub adapters: Option<AdapterFigures>,
    /// Of a model with several engines: each of them, of which all the rest is the sum. Empty where there is one.
    pub replicas: Vec<EngineSnapshot>,
}

impl EngineSnapshot {
    /// Engines of one model as one: counters and sequences are added up, the share of KV blocks is that of all blocks.
    pub fn together(replicas: Vec<Self>) -> Self {
        if replicas.len() < 2 {
            return replicas.into_iter().next().unwrap_or_default();
        }
        let mut all = Self::default();
        for replica in &replicas {
            all.add(replica.clone());
        }
        let sum = |read: fn(&Self) -> u64| replicas.iter().map(read).sum();
        (all.running, all.waiting) = (sum(|one| one.running), sum(|one| one.waiting));
        all.blocks = sum(|one| one.blocks);
        let used: f64 = replicas.iter().map(|one| one.kv_usage * one.blocks as f64).sum();
        all.kv_usage = used / (all.blocks.max(1)) as f64;
        Self { replicas, ..all }
    }

    /// Takes over the counters of `other`, whose engine is gone.
    pub fn add_counters(&mut self, other: &Self) {
        self.add(other.counters());
    }

    fn counters(&self) -> Self {
        let replicas = self.replicas.iter().map(Self::counters).collect();
        Self { running: 0, waiting: 0, kv_usage: 0.0, blocks: 0, block_size: 0, replicas, ..self.clone() }
    }

    /// The sum of what was counted; gauges are those of `other`.
    pub fn add(&mut self, other: Self) {
        let before = std::mem::replace(self, other);
        for (counter, before) in [
            (&mut self.prompt_tokens, before.prompt_tokens),
            (&mut self.generation_tokens, before.generation_tokens),
            (&mut self.cached_prompt_tokens, before.cached_prompt_tokens),
            (&mut self.recomputed_prompt_tokens, before.recomputed_prompt_tokens),
            (&mut self.padding_tokens, before.padding_tokens),
            (&mut self.prefix_queries, before.prefix_queries),
            (&mut self.prefix_hits, before.prefix_hits),
            (&mut self.preemptions, before.preemptions),
            (&mut self.steps, before.steps),
            (&mut self.drafts, before.drafts),
            (&mut self.draft_tokens, before.draft_tokens),
            (&mut self.accepted_tokens, before.accepted_tokens),
            (&mut self.embedded_texts, before.embedded_texts),
        ] {
            *counter += before;
        }
        self.step_tokens_sum += before.step_tokens_sum;
        if self.step_tokens_buckets.is_empty() {
            self.step_tokens_buckets = before.step_tokens_buckets;
        } else {
            for ((_, count), (_, before)) in self.step_tokens_buckets.iter_mut().zip(before.step_tokens_buckets) {
                *count += before;
            }
        }
        if self.accepted_per_position.len() < before.accepted_per_position.len() {
            self.accepted_per_position.resize(before.accepted_per_position.len(), 0);
        }
        for (count, before) in self.accepted_per_position.iter_mut().zip(before.accepted_per_position) {
            *count += before;
        }
        if self.replicas.is_empty() {
            self.replicas = before.replicas.iter().map(Self::counters).collect();
        } else {
            for (replica, before) in self.replicas.iter_mut().zip(before.replicas) {
                let now = std::mem::replace(replica, before);
                replica.add(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_go_on_when_an_engine_is_replaced() {
        let engine = EngineSnapshot {
            running: 2,
            prompt_tokens: 10,
            steps: 3,
            step_tokens_buckets: vec![(1.0, 1), (f64::INFINITY, 3)],
            accepted_per_position: vec![4, 1],
            ..EngineSnapshot::default()
        };
        let mut all = EngineSnapshot::default();
        all.add_counters(&engine);
        assert_eq!((all.running, all.prompt_tokens, all.steps), (0, 10, 3));
        all.add(EngineSnapshot { accepted_per_position: vec![1], ..engine });
        assert_eq!((all.running, all.prompt_tokens, all.steps), (2, 20, 6));
        assert_eq!(all.step_tokens_buckets, [(1.0, 2), (f64::INFINITY, 6)]);
        assert_eq!(all.accepted_per_position, [5, 1]);
    }

    #[test]
    fn replicas_are_summed_and_counted_on_each_for_itself() {
        let replica = |running, tokens, kv_usage| EngineSnapshot {
            running,
            generation_tokens: tokens,
            kv_usage,
            blocks: 10,
            ..EngineSnapshot::default()
        };
        let now = EngineSnapshot::together(vec![replica(1, 5, 0.5), replica(3, 7, 0.0)]);
        assert_eq!((now.running, now.generation_tokens, now.blocks, now.kv_usage), (4, 12, 20, 0.25));
        let mut all = EngineSnapshot::default();
        all.add_counters(&now);
        assert_eq!((all.running, all.replicas[1].running, all.replicas[1].generation_tokens), (0, 0, 7));
        all.add(EngineSnapshot::together(vec![replica(2, 1, 0.0), replica(0, 2, 0.0)]));
        let of_each: Vec<_> = all.replicas.iter().map(|one| (one.running, one.generation_tokens)).collect();
        assert_eq!((all.running, all.generation_tokens, of_each), (2, 15, vec![(2, 6), (0, 9)]));
        assert_eq!(EngineSnapshot::together(vec![replica(1, 5, 0.5)]), replica(1, 5, 0.5));
    }
}
