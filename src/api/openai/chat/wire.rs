//! What `/v1/chat/completions` reads and writes.

use serde::Serialize;
use serde_json::Value;

use crate::api::json::{Policy, Wire, fields};
use crate::api::openai::logprobs::{ChatLogprobs, TokenStyle};
use crate::api::openai::sampling::SamplingFields;
use crate::api::openai::structured::StructuredFields;
use crate::api::openai::values::Object;
use crate::api::openai::wire::{Head, SYSTEM_FINGERPRINT, UsageWire};

use super::messages::MessageFields;

/// A request's body.
pub(in crate::api) type ChatBody = Wire<(ChatFields, (StructuredFields, SamplingFields))>;

fields! {
    /// The fields that only chat has.
    ChatFields {
        messages: Vec<Wire<MessageFields>>,
        max_completion_tokens: u32,
        logprobs: bool,
        top_logprobs: i64,
        add_generation_prompt: bool,
        continue_final_message: bool,
        chat_template_kwargs: Object,
    }
    policy = policy
}

fn policy(key: &str) -> Policy {
    const LEAVE_OUT: &str = "leave it out";
    const NO_TOOLS: &str = "calling tools is not built in yet; leave it out";
    let refused = |neutral, instead| Policy::Refused { neutral, instead };
    match key {
        // Without tools there is nothing to call in parallel.
        "parallel_tool_calls" => Policy::Inert,
        "tools" | "functions" => refused(&["[]"], NO_TOOLS),
        "tool_choice" | "function_call" => refused(&[r#""none""#, r#""auto""#], NO_TOOLS),
        "modalities" => refused(&[r#"["text"]"#], "only text is generated"),
        "audio" | "prediction" | "web_search_options" | "moderation" => refused(&[], LEAVE_OUT),
        "reasoning_effort" => refused(&[], "set what the model's template reads through chat_template_kwargs"),
        "verbosity" => refused(&[r#""medium""#], "ask for a length in the prompt"),
        "best_of" => refused(&["1"], "use n"),
        "echo" => refused(&["false"], "use /v1/completions"),
        "add_special_tokens" => refused(&["false"], "the chat template writes special tokens itself"),
        "chat_template" => refused(&[], "templates come with the model; leave it out"),
        "documents" => refused(&["[]"], "pass them through chat_template_kwargs"),
        "include_reasoning" => refused(&["true"], LEAVE_OUT),
        "separate_reasoning" | "stream_reasoning" => refused(&["false"], LEAVE_OUT),
        _ => Policy::Unknown,
    }
}

/// The shape the client asked for.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Form {
    pub logprobs: bool,
    pub style: TokenStyle,
    pub n: u32,
}

#[derive(Serialize)]
pub(super) struct Completion<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<Choice>,
    pub usage: UsageWire,
    pub system_fingerprint: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Value>,
}

#[derive(Serialize)]
pub(super) struct Choice {
    pub index: u32,
    pub message: AssistantMessage,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: &'static str,
    pub stop_reason: Value,
}

#[derive(Serialize)]
pub(super) struct AssistantMessage {
    pub role: &'static str,
    pub content: String,
    pub refusal: Option<()>,
}

#[derive(Serialize)]
pub(super) struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: &'a [ChunkChoice<'a>],
    /// Absent unless asked for; null until it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageWire>>,
}

impl<'a> Chunk<'a> {
    pub fn new(head: &'a Head, choices: &'a [ChunkChoice<'a>], usage: Option<Option<UsageWire>>) -> Self {
        Self {
            id: &head.id,
            object: "chat.completion.chunk",
            created: head.created,
            model: &head.model,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage,
        }
    }
}

#[derive(Serialize, Default)]
pub(super) struct ChunkChoice<'a> {
    pub index: u32,
    pub delta: Delta<'a>,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub stop_reason: Value,
}

#[derive(Serialize, Default)]
pub(super) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
}
