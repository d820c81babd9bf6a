//! One request as a span, in OTLP's JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::context::TraceContext;

/// What is known of a request when it ends. Nothing of what was asked or answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ended {
    /// `chat`, `text_completion`, `embeddings`; see `gen_ai.operation.name`.
    pub operation: &'static str,
    pub model: String,
    /// Who answered, where somebody did.
    pub member: Option<String>,
    /// Our name for the request.
    pub id: String,
    pub route: String,
    pub status: u16,
    /// `stop`, `length`, ... or the word for an error.
    pub finish: &'static str,
    pub input_tokens: u32,
    pub cached_tokens: u32,
    pub output_tokens: u32,
    pub time_to_first_token_s: Option<f64>,
    pub duration_s: f64,
}

impl Ended {
    /// What went wrong, if something did.
    pub(crate) fn error_type(&self) -> Option<String> {
        match (self.status, self.finish) {
            (400.., _) => Some(self.status.to_string()),
            (_, word @ ("error" | "cancelled" | "timeout" | "abort")) => Some(word.to_owned()),
            _ => None,
        }
    }
}

/// A span's place in its trace, and its time.
pub(crate) struct Place {
    pub context: TraceContext,
    pub parent_id: Option<u64>,
    pub started: SystemTime,
    pub took_ns: u64,
}

impl Place {
    pub fn json(&self, name: &str, kind: u32, attributes: Vec<Value>, is_failure: bool) -> Value {
        let started_ns = nanoseconds(self.started);
        let mut span = json!({
            "traceId": format!("{:032x}", self.context.trace_id),
            "spanId": format!("{:016x}", self.context.span_id),
            "name": name,
            "kind": kind,
            "startTimeUnixNano": started_ns.to_string(),
            "endTimeUnixNano": started_ns.saturating_add(self.took_ns).to_string(),
            "attributes": attributes,
            "status": if is_failure { json!({"code": 2}) } else { json!({}) },
        });
        if let Some(parent) = self.parent_id {
            span["parentSpanId"] = format!("{parent:016x}").into();
        }
        span
    }
}

/// OTLP's number for spans of those who are asked.
const SERVER: u32 = 2;

pub(crate) struct SpanRecord {
    pub place: Place,
    pub ended: Ended,
}

impl SpanRecord {
    pub fn json(&self, server: Option<&(String, u16)>) -> Value {
        let ended = &self.ended;
        let mut attributes = vec![
            text("gen_ai.operation.name", ended.operation),
            text("gen_ai.provider.name", "sconce"),
            text("gen_ai.request.model", &ended.model),
            text("gen_ai.response.model", ended.member.as_deref().unwrap_or(&ended.model)),
            text("gen_ai.response.id", &ended.id),
            text("http.route", &ended.route),
            number("http.response.status_code", ended.status.into()),
            number("gen_ai.usage.input_tokens", ended.input_tokens.into()),
            number("gen_ai.usage.cache_read.input_tokens", ended.cached_tokens.into()),
            number("gen_ai.usage.output_tokens", ended.output_tokens.into()),
        ];
        if let Some((address, port)) = server {
            attributes.push(text("server.address", address));
            attributes.push(number("server.port", (*port).into()));
        }
        let error = ended.error_type();
        match &error {
            Some(error) => attributes.push(text("error.type", error)),
            None => attributes.push(json!({
                "key": "gen_ai.response.finish_reasons",
                "value": {"arrayValue": {"values": [{"stringValue": ended.finish}]}},
            })),
        }
        if let Some(seconds) = ended.time_to_first_token_s {
            attributes.push(json!({"key": "gen_ai.response.time_to_first_chunk", "value": {"doubleValue": seconds}}));
        }
        // Whoever asked for something impossible is not our failure.
        let is_failure = error.is_some() && !(400..500).contains(&ended.status) && ended.finish != "cancelled";
        self.place.json(&format!("{} {}", ended.operation, ended.model), SERVER, attributes, is_failure)
    }
}

pub(crate) fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// Integers of 64 bits are text in OTLP's JSON.
pub(crate) fn number(key: &str, value: u64) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

/// Who sends.
pub(crate) fn resource(pairs: &[(String, String)]) -> Value {
    let attributes: Vec<Value> = pairs.iter().map(|(key, value)| text(key, value)).collect();
    json!({"attributes": attributes})
}

pub(crate) fn scope() -> Value {
    json!({"name": "sconce", "version": env!("CARGO_PKG_VERSION")})
}

pub(crate) fn nanoseconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
