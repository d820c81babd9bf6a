//! The fields that chat and text completions share, and their checks.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::json;

use crate::api::ApiConfig;
use crate::api::error::shortened;
use crate::api::json::{Policy, Wire, fields, policies, refused};
use crate::error::{Error, Result};
use crate::request::Params;

use super::structured::Named;
use super::values::{Object, OneOrMany, StreamOptions};

fields! {
    /// What chat and text completions share.
    SamplingFields {
        /// Which model answers: a name from `/v1/models`. Without it the first one does.
        model: String,
        /// Most tokens to generate.
        max_tokens: u32,
        /// No end before this many tokens. At most `max_tokens`.
        min_tokens: u32,
        /// 0 always takes the likeliest token; higher values spread the choice. Without it the model's own default.
        #[schemars(range(min = 0.0, max = 2.0))]
        temperature: f64,
        /// Sample among the likeliest tokens that together have this probability.
        #[schemars(range(min = 0.0, max = 1.0))]
        top_p: f64,
        /// Sample among this many likeliest tokens; 0 and -1 are off.
        #[schemars(range(min = -1, max = 4_294_967_295_i64))]
        top_k: i64,
        /// Leave out tokens less likely than this share of the likeliest one's probability.
        #[schemars(range(min = 0.0, max = 1.0))]
        min_p: f64,
        /// Divides the scores of tokens that were there already; 1 is off. Above 0, also as a 32-bit float.
        #[schemars(range(min = 1.2e-38, max = 100.0))]
        repetition_penalty: f64,
        /// Lowers the scores of generated tokens once.
        #[schemars(range(min = -2.0, max = 2.0))]
        presence_penalty: f64,
        /// Lowers the scores of generated tokens by how often they came.
        #[schemars(range(min = -2.0, max = 2.0))]
        frequency_penalty: f64,
        /// Added to the scores of tokens, by token id of the model's vocabulary.
        #[schemars(schema_with = "logit_bias_schema")]
        logit_bias: Object,
        /// The same seed gives the same answer on the same server.
        seed: i64,
        /// How many answers.
        #[schemars(range(min = 1, max = crate::request::CHOICES_MAX))]
        n: u32,
        /// Texts that end the answer where they appear; they are not part of it.
        #[schemars(schema_with = "stops_schema")]
        stop: OneOrMany,
        /// Tokens that end the answer.
        #[schemars(length(max = 128))]
        stop_token_ids: Vec<u32>,
        /// Go on where the model would end.
        ignore_eos: bool,
        /// Keep the stop text in the answer.
        include_stop_str_in_output: bool,
        /// Leave special tokens out of the text. True unless said otherwise.
        skip_special_tokens: bool,
        /// Report each prompt token's log-probability with this many alternatives. Not when streaming.
        #[schemars(range(min = 0, max = LOGPROBS_MAX))]
        prompt_logprobs: i64,
        /// Send the answer as server-sent events while it is made.
        stream: bool,
        /// Only with `stream`.
        stream_options: Wire<StreamOptions>,
        /// Lower is served earlier.
        priority: i32,
        /// Requests share cached prompt beginnings only within one salt.
        cache_salt: String,
        /// Write tokens in log-probabilities as `token_id:ID`.
        return_tokens_as_token_ids: bool,
        /// The end user that this is for. Hosted providers are told, nothing else changes.
        user: String,
        /// The newer name of `user`, and it wins.
        safety_identifier: String,
    }
    policy = POLICY
}

const LEAVE_OUT: &str = "leave it out";

policies! {
    /// Fields that are known from OpenAI, vLLM and SGLang and not read. What is in neither list is unknown.
    POLICY {
        // About the caller, billing, storage or caching: none of them changes an answer of this server.
        "metadata"
        | "store"
        | "service_tier"
        | "prompt_cache_key"
        | "prompt_cache_retention" => Policy::Inert,
        "use_beam_search" => refused(&["false"], "only sampling is available; leave it out"),
        "length_penalty" => refused(&["1", "1.0"], "it belongs to beam search; leave it out"),
        "spaces_between_special_tokens" => refused(&["true"], LEAVE_OUT),
        "return_token_ids" => refused(&["false"], "set logprobs and return_tokens_as_token_ids to get token ids"),
        "truncate_prompt_tokens" => refused(&[], "prompts are never cut silently; shorten the prompt"),
        // SGLang's, which vllm-router writes into every request that it passes on.
        "no_stop_trim" => refused(&["false"], "use include_stop_str_in_output"),
        "return_hidden_states" => refused(&["false"], LEAVE_OUT),
        "logits_processors" | "allowed_token_ids" | "bad_words" => refused(&["[]"], "use logit_bias"),
        "mm_processor_kwargs" | "kv_transfer_params" | "vllm_xargs" | "lora_path" | "request_id" =>
            refused(&["{}"], LEAVE_OUT),
    }
}

/// A checked request without its prompt.
#[derive(Debug, Clone)]
pub(in crate::api) struct Call {
    /// As the client wrote it; empty where it left it out.
    pub model: String,
    pub params: Params,
    pub priority: i32,
    pub cache_salt: Option<String>,
    pub end_user: Option<String>,
    pub delivery: Delivery,
    /// The client wants to see logprobs; the engine may be asked for them also to count tokens.
    pub logprobs_wanted: bool,
    /// vLLM's `prompt_logprobs` as the client asked for it; the engine may be asked for more to serve `echo`.
    pub prompt_logprobs_wanted: Option<u32>,
}

/// How the answer is to be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::api) struct Delivery {
    pub stream: bool,
    /// A last chunk with the token counts.
    pub include_usage: bool,
    /// Counts so far in every chunk (vLLM).
    pub continuous_usage: bool,
    /// Tokens in logprobs are written as `token_id:123` (vLLM).
    pub tokens_as_ids: bool,
}

/// Most alternatives in `prompt_logprobs` and `top_logprobs`.
pub(in crate::api) const LOGPROBS_MAX: u32 = 20;

fn logit_bias_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["object", "null"],
        "maxProperties": 1024,
        "patternProperties": {"^[0-9]{1,9}$": {"type": "number", "minimum": -100, "maximum": 100}},
        "additionalProperties": false,
    })
}

pub(in crate::api) fn stops_schema(_: &mut SchemaGenerator) -> Schema {
    let text = json!({"type": "string", "minLength": 1, "maxLength": 4096});
    json_schema!({"anyOf": [text, {"type": "array", "items": text, "maxItems": 128}, {"type": "null"}]})
}

/// vLLM takes any positive factor; beyond this the arithmetic overflows.
const REPETITION_PENALTY_MAX: f64 = 100.0;

impl SamplingFields {
    /// Checks everything but what only one of the endpoints has (`logprobs`, `echo`).
    /// `constraint` is what the fields beside these ask of the answer's form.
    pub fn checked(self, config: &ApiConfig, constraint: Option<Named>) -> Result<Call> {
        let delivery = self.delivery()?;
        let n = self.n.unwrap_or(1);
        if n == 0 || n > config.choices_max {
            return Err(Error::invalid("n", format!("n is {n}; it must be from 1 to {}", config.choices_max)));
        }
        let min_tokens = self.min_tokens.unwrap_or(0);
        if self.max_tokens.is_some_and(|max_tokens| min_tokens > max_tokens) {
            return Err(Error::invalid(
                "min_tokens",
                "min_tokens is larger than max_tokens; lower one or raise the other",
            ));
        }
        let params = Params {
            max_tokens: self.max_tokens,
            context_may_cut: false,
            min_tokens,
            temperature: within("temperature", self.temperature, 0.0, 2.0)?,
            top_k: top_k(self.top_k)?,
            top_p: within("top_p", self.top_p, 0.0, 1.0)?,
            min_p: within("min_p", self.min_p, 0.0, 1.0)?,
            repetition_penalty: above_zero("repetition_penalty", self.repetition_penalty, REPETITION_PENALTY_MAX)?,
            presence_penalty: within("presence_penalty", self.presence_penalty, -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?.unwrap_or(0.0),
            logit_bias: logit_bias(self.logit_bias.unwrap_or_default(), config.logit_bias_max)?,
            seed: self.seed.map(i64::cast_unsigned),
            stop: stops("stop", self.stop, config)?,
            stop_token_ids: stop_token_ids(self.stop_token_ids.unwrap_or_default(), config.stops_max)?,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            include_stop_str_in_output: self.include_stop_str_in_output.unwrap_or(false),
            skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
            n,
            constraint_param: constraint.as_ref().map(|named| named.param),
            schema_strict: constraint.as_ref().and_then(|named| named.strict),
            constraint: constraint.map(|named| named.constraint),
            verbosity: None,
            logprobs: None,
            count_tokens: delivery.continuous_usage,
            prompt_logprobs: prompt_logprobs(self.prompt_logprobs, delivery.stream)?,
            echo: false,
        };
        Ok(Call {
            model: self.model.unwrap_or_default(),
            prompt_logprobs_wanted: params.prompt_logprobs,
            params,
            priority: self.priority.unwrap_or(0),
            cache_salt: self.cache_salt,
            end_user: self.safety_identifier.or(self.user),
            delivery,
            logprobs_wanted: false,
        })
    }

    fn delivery(&self) -> Result<Delivery> {
        let stream = self.stream.unwrap_or(false);
        let tokens_as_ids = self.return_tokens_as_token_ids.unwrap_or(false);
        let Some(options) = self.stream_options.clone() else {
            return Ok(Delivery { stream, tokens_as_ids, ..Delivery::default() });
        };
        if !stream {
            let message = "stream_options is only allowed when stream is true; leave it out";
            return Err(Error::invalid("stream_options", message));
        }
        let options = options.checked("stream_options")?;
        let include_usage = options.include_usage.unwrap_or(false);
        // vLLM's rule: without include_usage there are no counts at all.
        let continuous_usage = include_usage && options.continuous_usage_stats.unwrap_or(false);
        Ok(Delivery { stream, include_usage, continuous_usage, tokens_as_ids })
    }
}

pub(in crate::api) fn within(param: &str, value: Option<f64>, low: f64, high: f64) -> Result<Option<f32>> {
    match value {
        Some(value) if !(low..=high).contains(&value) => {
            Err(Error::invalid(param, format!("{param} is {value}; it must be from {low} to {high}")))
        }
        value => Ok(value.map(|value| value as f32)),
    }
}

/// For values that are divided by or that empty a set at zero, also after rounding to f32.
fn above_zero(param: &str, value: Option<f64>, high: f64) -> Result<Option<f32>> {
    match within(param, value, 0.0, high)? {
        Some(rounded) if rounded < f32::MIN_POSITIVE => {
            Err(Error::invalid(param, format!("{param} is 0; it must be above 0 and at most {high}")))
        }
        rounded => Ok(rounded),
    }
}

/// -1 and 0 both mean off, as in vLLM.
fn top_k(value: Option<i64>) -> Result<Option<u32>> {
    match value {
        None => Ok(None),
        Some(-1) => Ok(Some(0)),
        Some(value) => u32::try_from(value).map(Some).map_err(|_| {
            Error::invalid("top_k", format!("top_k is {value}; it must be -1 or 0 for off, or a number of tokens"))
        }),
    }
}

fn prompt_logprobs(value: Option<i64>, stream: bool) -> Result<Option<u32>> {
    let Some(value) = value else { return Ok(None) };
    let count = u32::try_from(value).ok().filter(|&count| count <= LOGPROBS_MAX).ok_or_else(|| {
        let message = format!("prompt_logprobs is {value}; it must be from 0 to {LOGPROBS_MAX}");
        Error::invalid("prompt_logprobs", message)
    })?;
    if stream {
        let message = "prompt_logprobs is not available when stream is true; set stream to false";
        return Err(Error::invalid("prompt_logprobs", message));
    }
    Ok(Some(count))
}

/// Stop strings, as the field `name`.
pub(in crate::api) fn stops(name: &str, value: Option<OneOrMany>, config: &ApiConfig) -> Result<Vec<String>> {
    let stops = value.map(OneOrMany::into_vec).unwrap_or_default();
    if stops.len() > config.stops_max {
        let message = format!("{name} has {} strings, the limit is {}; send fewer", stops.len(), config.stops_max);
        return Err(Error::invalid(name, message));
    }
    for (index, stop) in stops.iter().enumerate() {
        let param = format!("{name}[{index}]");
        if stop.is_empty() {
            let message = format!("{param} is an empty string, which would stop at once; leave it out");
            return Err(Error::invalid(param, message));
        }
        if stop.len() > config.stop_bytes_max {
            let message = format!("{param} has {} bytes, the limit is {}", stop.len(), config.stop_bytes_max);
            return Err(Error::invalid(param, message));
        }
    }
    Ok(stops)
}

fn stop_token_ids(ids: Vec<u32>, stops_max: usize) -> Result<Vec<u32>> {
    if ids.len() > stops_max {
        let message = format!("stop_token_ids has {} ids, the limit is {stops_max}; send fewer", ids.len());
        return Err(Error::invalid("stop_token_ids", message));
    }
    Ok(ids)
}

fn logit_bias(entries: Object, entries_max: usize) -> Result<Vec<(u32, f32)>> {
    if entries.len() > entries_max {
        let message = format!("logit_bias has {} entries, the limit is {entries_max}; send fewer", entries.len());
        return Err(Error::invalid("logit_bias", message));
    }
    entries
        .into_iter()
        .map(|(key, bias)| {
            let param = format!("logit_bias.{}", shortened(&key));
            let id = key.parse::<u32>().map_err(|_| {
                Error::invalid(&param, format!("logit_bias has the key '{}'; keys must be token ids", shortened(&key)))
            })?;
            let number = bias.as_f64().filter(|number| (-100.0..=100.0).contains(number)).ok_or_else(|| {
                Error::invalid(&param, format!("the bias of token {id} must be a number from -100 to 100"))
            })?;
            Ok((id, number as f32))
        })
        .collect()
}
