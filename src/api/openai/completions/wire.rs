//! What `/v1/completions` reads and writes.

use serde::Serialize;
use serde_json::Value;

use crate::api::json::{Policy, Wire, fields};
use crate::api::openai::logprobs::{CompletionLogprobs, TokenStyle};
use crate::api::openai::sampling::SamplingFields;
use crate::api::openai::structured::StructuredFields;
use crate::api::openai::values::PromptValue;
use crate::api::openai::wire::{Head, SYSTEM_FINGERPRINT, UsageWire};

/// A request's body.
pub(in crate::api) type CompletionBody = Wire<(CompletionFields, (StructuredFields, SamplingFields))>;

fields! {
    /// The fields that only text completions have.
    CompletionFields {
        prompt: PromptValue,
        echo: bool,
        logprobs: i64,
        best_of: u32,
    }
    policy = policy
}

fn policy(key: &str) -> Policy {
    let refused = |neutral, instead| Policy::Refused { neutral, instead };
    match key {
        "suffix" => refused(&[r#""""#], "text is only continued at its end; leave it out"),
        "prompt_embeds" => refused(&[], "send prompt as text or token ids"),
        "add_special_tokens" => refused(&["true"], "send token ids to decide about special tokens yourself"),
        _ => Policy::Unknown,
    }
}

/// The shape the client asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub logprobs: bool,
    pub style: TokenStyle,
    pub echo: bool,
    pub prompts: usize,
    pub n: u32,
    pub prompt_top: Option<u32>,
}

#[derive(Serialize)]
pub(super) struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: &'a [Choice<'a>],
    /// Absent where the client did not ask for it; null until it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageWire>>,
}

impl<'a> Completion<'a> {
    /// A whole answer or, streaming, one chunk of it: both have the same shape.
    pub fn new(head: &'a Head, choices: &'a [Choice<'a>], usage: Option<Option<UsageWire>>) -> Self {
        Self {
            id: &head.id,
            object: "text_completion",
            created: head.created,
            model: &head.model,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage,
        }
    }
}

#[derive(Serialize)]
pub(super) struct Choice<'a> {
    pub index: u32,
    pub text: &'a str,
    pub logprobs: Option<&'a CompletionLogprobs>,
    pub finish_reason: Option<&'static str>,
    pub stop_reason: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Value>,
}
