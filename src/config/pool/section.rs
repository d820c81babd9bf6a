//! The pool's tables of `sconce.toml` as typed: `[[member]]`, `[[route]]`, `[prices]`, `[ledger]`, budgets.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sconce_route::cascade::Confidence;
use sconce_route::health::HealthOptions;
use sconce_route::price::TokenPrice;
use serde::Deserialize;
use toml::Spanned;

use crate::config::secret::SecretSource;

/// One model at one place that can answer: a local one, or one at a hosted provider.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberSection {
    /// What routes, logs, metrics and the ledger call it.
    pub name: String,
    /// `local`, `worker`, `openai`, `openai-compatible`, `anthropic`, `bedrock`, `azure`, `gemini` or `mistral`.
    pub kind: String,
    /// The provider's name of the model (at Azure the deployment); of a local member the name of a served model.
    pub model: String,
    /// `generate` (the default) or `embed`.
    pub task: Option<String>,
    pub base_url: Option<String>,
    pub api_key: Option<SecretSource>,
    /// Bedrock without an API key: signed requests.
    pub access_key_id: Option<SecretSource>,
    pub secret_access_key: Option<SecretSource>,
    pub session_token: Option<SecretSource>,
    /// Bedrock with keys of a role: `instance`, `container` or `web_identity`.
    pub aws_role: Option<String>,
    /// Where requests are worked on, as `stay` names it; for Bedrock the AWS region too.
    pub region: Option<String>,
    pub api_version: Option<String>,
    /// OpenAI's endpoint to use: `chat` (the default) or `responses`.
    pub api: Option<String>,
    /// `native` (the default) or `forced_tool`, for Anthropic and Bedrock models without structured outputs.
    pub schema_by: Option<String>,
    /// `max_tokens` for requests that name none, where the provider wants a number.
    pub max_tokens_default: Option<u32>,
    /// Let the provider cache prompts, where that has a price of its own.
    pub prompt_caching: Option<bool>,
    /// More headers for every request; their values are not shown anywhere.
    #[serde(default)]
    pub headers: BTreeMap<String, SecretSource>,
    pub connect_timeout_s: Option<f64>,
    pub first_byte_timeout_s: Option<f64>,
    pub idle_timeout_s: Option<f64>,
    /// Requests that run at once, beyond which the next member is asked.
    pub max_concurrent: Option<u32>,
    #[serde(default)]
    pub capabilities: CapabilitiesSection,
    /// USD for a million tokens; the price table's where it is left out.
    pub price: Option<TokenPrice>,
    /// What the machine of a local member or a worker costs an hour.
    pub hourly_usd: Option<f64>,
    /// How good its answers are, from 0 to 1, as far as the operator knows.
    pub quality: Option<f64>,
    /// When its circuit opens and how its rate is learnt.
    #[serde(default)]
    pub health: HealthOptions,
    /// Of a worker: the program and its arguments, with placeholders.
    pub command: Option<Vec<String>>,
    /// A command that is known: `vllm-neuron`, `optimum-neuron`, `llama-server` or `vllm`.
    pub engine: Option<String>,
    /// More arguments for the engine.
    pub args: Option<Vec<String>>,
    /// `neuron:0-1`: the cores that it may use.
    pub device: Option<String>,
    /// So many of it, which share its cores.
    pub replicas: Option<u32>,
    pub port: Option<u16>,
    pub ready_timeout_s: Option<f64>,
    pub hang_timeout_s: Option<f64>,
    pub grace_s: Option<f64>,
    pub restart: Option<RestartSection>,
    /// Variables for it; it gets few others.
    pub env: Option<BTreeMap<String, String>>,
    /// Names of the server's own variables that it gets, too.
    pub pass_env: Option<Vec<String>>,
    pub user: Option<String>,
    /// Where it keeps what it compiled.
    pub cache: Option<PathBuf>,
}

/// When a worker that ends is started again.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartSection {
    /// This many ends within the window are a crash loop.
    pub crashes_max: Option<u32>,
    pub window_s: Option<f64>,
    /// How often a worker in a crash loop is tried.
    pub retry_s: Option<f64>,
    pub backoff_first_s: Option<f64>,
    pub backoff_max_s: Option<f64>,
}

/// What a member can do, where the defaults of its kind are wrong.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapabilitiesSection {
    pub tools: Option<bool>,
    pub json_schema: Option<bool>,
    pub vision: Option<bool>,
    pub logprobs: Option<bool>,
    pub reasoning: Option<bool>,
    /// Longest prompt plus answer.
    pub context_tokens: Option<u32>,
    pub output_tokens_max: Option<u32>,
}

/// A name that clients use, over several members.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSection {
    pub name: String,
    #[serde(default)]
    pub aliases: Vec<String>,
    /// `priority` (the default), `weighted`, `least_wait`, `cheapest`, `cascade` or `score`.
    pub policy: Option<String>,
    pub members: Vec<RouteMemberSection>,
    /// `"local"` or a list of regions.
    pub stay: Option<StaySection>,
    /// Of a request with all its attempts.
    pub deadline_s: Option<f64>,
    pub attempts_max: Option<u32>,
    /// Of a request with all its attempts.
    pub cost_max_usd: Option<f64>,
    /// A member whose predicted wait is longer is asked after the others.
    pub spill_wait_ms: Option<u64>,
    /// A second member is asked when the first was silent for this long.
    pub hedge_after_ms: Option<u32>,
    /// `cascade`: when an answer is sure enough to be kept.
    pub confidence: Option<Confidence>,
    /// `cascade`: judge an answer by its beginning, and show it from then on.
    pub speculative: Option<bool>,
    /// `score`: between each tier and the next, the difficulty from which prompts go to the higher, from 0 to 1.
    pub thresholds: Option<Vec<f64>>,
    /// `score`: what `sconce route fit` wrote; a built-in one otherwise.
    pub fitted: Option<PathBuf>,
    pub shadow: Option<ShadowSection>,
    pub budget: Option<BudgetSection>,
}

/// A member's name, or a table with its part in the route.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a member is its name, or a table of name, weight, priority, tier and canary")]
pub enum RouteMemberSection {
    Name(String),
    Table(RouteMemberTable),
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteMemberTable {
    pub name: String,
    /// Its part of the requests, against the weights of those that stand alike.
    pub weight: Option<u32>,
    /// `priority`: lower is asked first; members of the same are equal.
    pub priority: Option<u32>,
    /// `cascade` and `score`: 0 is the cheapest.
    pub tier: Option<u32>,
    /// On trial: this share of requests goes to it, and no other, from 0 to 1.
    pub canary: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "stay is \"local\" or a list of regions")]
pub enum StaySection {
    Word(String),
    Regions(Vec<String>),
}

/// A share of requests is also sent to a candidate, of which no client sees anything.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowSection {
    pub member: String,
    /// From 0 to 1.
    pub share: f64,
    /// A file for both answers, to be compared later: with what was asked, word for word.
    pub answers: Option<PathBuf>,
}

/// What may be spent. Soft limits warn, hard ones refuse.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetSection {
    pub day_soft_usd: Option<f64>,
    pub day_hard_usd: Option<f64>,
    pub month_soft_usd: Option<f64>,
    pub month_hard_usd: Option<f64>,
}

/// `[prices]`: a table of prices beside the built-in one.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PricesSection {
    pub file: Option<PathBuf>,
}

/// `[ledger]`: who used what, and what it cost.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerSection {
    /// A path or `off`.
    pub file: Option<String>,
    /// Single requests are kept this long; their sums by day for ever.
    pub entries_age_days: Option<u32>,
    /// A file of routing decisions, one JSON line each.
    pub decisions: Option<PathBuf>,
    /// The share of decisions that is written, from 0 to 1.
    pub decisions_share: Option<f64>,
}

/// All of the pool's tables, with the places of those that faults are told of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolSections {
    pub members: Vec<Spanned<MemberSection>>,
    pub routes: Vec<Spanned<RouteSection>>,
    pub prices: PricesSection,
    pub ledger: LedgerSection,
}
