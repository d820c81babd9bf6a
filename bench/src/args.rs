//! Flags that the commands share. Those that `vllm bench serve` has carry its names, as aliases where ours are shorter.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use sconce_vocabulary::error::{Error, Result};
use serde_json::{Map, Value};

use crate::load::{ApiKind, RequestShape};
use crate::metrics::{Goal, MeasureOptions, parse_goals};

/// Which server, and how to ask it.
#[derive(Args, Debug, Clone)]
pub struct ServerArgs {
    /// Model name to send [default: the first of /v1/models]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// What to ask: chat, completions, or a path such as /v1/chat/completions
    #[arg(long, default_value = "chat", value_name = "chat|completions|PATH")]
    pub endpoint: String,
    /// Key, sent as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// A header for every request; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub header: Vec<String>,
    /// JSON object whose fields every body gets; null removes one of ours, e.g. '{"temperature": 0}'
    #[arg(long, value_name = "JSON")]
    pub extra_body: Option<String>,
    /// Let answers end where the model ends them [default: synthetic data sets and logs send ignore_eos, so that answers
    /// have the asked length]
    #[arg(long)]
    pub no_ignore_eos: bool,
    /// Send ignore_eos with every data set
    #[arg(long, conflicts_with = "no_ignore_eos")]
    pub ignore_eos: bool,
    /// Name the limit max_completion_tokens instead of max_tokens
    #[arg(long)]
    pub max_completion_tokens: bool,
    /// Count input tokens with this tokenizer.json [default: the server's /tokenize, else its reported usage]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// A request that has no whole answer after so many seconds has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0, value_parser = positive)]
    pub request_timeout: f64,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatasetName {
    /// Random words, exactly as long as asked
    Random,
    /// Random words after prefixes that many prompts share
    #[value(alias = "prefix_repetition")]
    SharedPrefix,
    /// Conversations: each request carries the answers before it
    MultiTurn,
    /// First questions of a ShareGPT file (--dataset-path)
    Sharegpt,
    /// A log of requests, one JSON object a line, at its own times (--dataset-path)
    #[value(alias = "mooncake")]
    Replay,
}

/// What to ask, how often and how fast.
#[derive(Args, Debug, Clone)]
pub struct LoadArgs {
    /// What to ask
    #[arg(long, visible_alias = "dataset-name", value_enum, default_value = "random")]
    pub dataset: DatasetName,
    /// File of the data sets sharegpt and replay. A log has timestamp (milliseconds) or offset_s; input_length and
    /// output_length, or messages, or prompt; hash_ids for shared blocks, as Mooncake's traces have them
    #[arg(long, value_name = "FILE")]
    pub dataset_path: Option<PathBuf>,
    /// Requests (conversations of multi-turn) a run [default: 100; the whole log of replay]
    #[arg(long, visible_alias = "requests", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub num_prompts: Option<u32>,
    /// Tokens of a prompt, without the chat template
    #[arg(long, visible_alias = "random-input-len", value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub input_len: u32,
    /// Tokens of an answer [default: 128; recorded lengths of sharegpt and replay]
    #[arg(long, visible_alias = "random-output-len", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub output_len: Option<u32>,
    /// Spread both lengths evenly over LEN * (1 - RATIO) to LEN * (1 + RATIO)
    #[arg(long, visible_alias = "random-range-ratio", value_name = "RATIO", default_value_t = 0.0, value_parser = ratio)]
    pub range_ratio: f64,
    /// Tokens that prompts share at their beginning (shared-prefix) [default: 512 there]
    #[arg(long, value_name = "TOKENS")]
    pub prefix_len: Option<u32>,
    /// How many different prefixes there are
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub num_prefixes: u32,
    /// Requests a conversation (multi-turn)
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub turns: u32,
    /// Seconds between an answer and the next request of a conversation
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = not_negative)]
    pub think_time: f64,
    /// Play a log so many times as fast
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = positive)]
    pub replay_speed: f64,
    /// Burstiness of the arrivals: 1 is Poisson, smaller is burstier (gamma distributed gaps), inf is a constant rate
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = positive)]
    pub burstiness: f64,
    /// Begin no request after so many seconds; clients without a rate go round the prompts until then
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub duration: Option<f64>,
    /// Requests before the measured ones, not counted [default: one a client, at most 16]
    #[arg(long, visible_alias = "num-warmups", value_name = "N")]
    pub warmup: Option<u32>,
    /// Seconds over which the clients begin
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = not_negative)]
    pub ramp_up: f64,
    /// Threads that send and read [default: one for 250 streams at once, at most one a core and 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub workers: Option<u32>,
    /// Seed of prompts, lengths and arrivals
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Goals in milliseconds, e.g. --goodput ttft:200 tpot:50; keys: ttft, tpot, e2el, itl_max
    #[arg(long, value_name = "KEY:MS", num_args = 1.., value_parser = parse_goals)]
    pub goodput: Vec<Goal>,
    /// Percentiles beside the median
    #[arg(long, visible_alias = "metric-percentiles", value_name = "LIST", value_delimiter = ',', default_value = "90,99", value_parser = percentile)]
    pub percentiles: Vec<f64>,
}

/// Where results go beside the table.
#[derive(Args, Debug, Clone, Default)]
pub struct OutputArgs {
    /// Write the result as JSON, with vLLM's keys where they mean the same
    #[arg(long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
    /// Write one line of figures a result as CSV
    #[arg(long, value_name = "FILE")]
    pub output_csv: Option<PathBuf>,
    /// Write a page with plots that needs nothing from elsewhere
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// What to call this result in tables and reports [default: the model's name]
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Keep every request's own figures in the JSON
    #[arg(long)]
    pub save_detailed: bool,
    /// Show nothing while it runs
    #[arg(long, visible_alias = "disable-tqdm")]
    pub no_progress: bool,
}

pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 => Ok(value),
        _ => Err(format!("'{text}' is no number above 0")),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err(format!("'{text}' is no number of 0 or more")),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err(format!("'{text}' is no number from 0 to 1")),
    }
}

fn percentile(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value > 0.0 && value < 100.0 => Ok(value),
        _ => Err(format!("'{text}' is no percentile between 0 and 100")),
    }
}

impl ServerArgs {
    pub fn headers(&self) -> Result<Vec<(String, String)>> {
        let mut headers = Vec::new();
        if let Some(key) = &self.api_key {
            headers.push(("Authorization".to_owned(), format!("Bearer {key}")));
        }
        for header in &self.header {
            let (name, value) = header
                .split_once('=')
                .ok_or_else(|| Error::invalid("--header", format!("--header: '{header}' has no '='")))?;
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        Ok(headers)
    }

    /// All but the model, which may have to be asked for.
    pub fn shape(&self, dataset: DatasetName) -> Result<RequestShape> {
        let (kind, path) = match self.endpoint.as_str() {
            "chat" => (ApiKind::Chat, "/v1/chat/completions"),
            "completions" => (ApiKind::Completions, "/v1/completions"),
            path if path.starts_with('/') && path.ends_with("/chat/completions") => (ApiKind::Chat, path),
            path if path.starts_with('/') && path.ends_with("/completions") => (ApiKind::Completions, path),
            other => {
                let why =
                    format!("--endpoint: '{other}' is not supported; use chat, completions or a path that ends so");
                return Err(Error::invalid("--endpoint", why));
            }
        };
        let extra = match &self.extra_body {
            Some(text) => serde_json::from_str::<Map<String, Value>>(text)
                .map_err(|why| Error::invalid("--extra-body", format!("--extra-body: no JSON object: {why}")))?,
            None => Map::new(),
        };
        Ok(RequestShape {
            kind,
            path: path.to_owned(),
            model: self.model.clone().unwrap_or_default(),
            ignore_eos: self.ignore_eos || (!self.no_ignore_eos && dataset != DatasetName::Sharegpt),
            max_tokens_field: if self.max_completion_tokens { "max_completion_tokens" } else { "max_tokens" },
            extra,
            timeout: Duration::from_secs_f64(self.request_timeout.min(1e9)),
        })
    }
}

impl LoadArgs {
    pub fn measure_options(&self, detailed: bool) -> MeasureOptions {
        MeasureOptions { percentiles: self.percentiles.clone(), goals: self.goodput.clone(), detailed, seed: self.seed }
    }
}
