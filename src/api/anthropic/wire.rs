//! What `/v1/messages` reads and writes.

use serde::Serialize;
use serde_json::Value;

use crate::api::json::{Policy, Wire, fields};
use crate::api::openai::values::{Object, TextOrList};
use crate::request::{PromptReport, Usage};

/// A request's body.
pub(in crate::api) type MessagesBody = Wire<MessagesFields>;

fields! {
    /// `/v1/messages`, and `/v1/messages/count_tokens` with what of it changes the prompt.
    MessagesFields {
        model: String,
        messages: Vec<Wire<MessageFields>>,
        system: TextOrList<Wire<BlockFields>>,
        max_tokens: u32,
        stop_sequences: Vec<String>,
        temperature: f64,
        top_p: f64,
        top_k: u32,
        stream: bool,
        tools: Vec<Wire<ToolFields>>,
        tool_choice: Wire<ToolChoiceFields>,
        thinking: Wire<ThinkingFields>,
        output_config: Wire<OutputConfigFields>,
        output_format: Wire<OutputFormatFields>,
        metadata: Wire<MetadataFields>,
        service_tier: String,
    }
    policy = messages_policy
}

fn messages_policy(key: &str) -> Policy {
    let refused = |neutral, instead| Policy::Refused { neutral, instead };
    match key {
        // Prefixes are cached here in any case; whom a request is for changes nothing.
        "cache_control" | "user_profile_id" => Policy::Inert,
        "speed" => refused(&[r#""standard""#], "there is one speed; leave it out"),
        "mcp_servers" => refused(&["[]"], "connect to them from the client and pass their tools as tools"),
        "context_management" => refused(&["{}", r#"{"edits":[]}"#], "edit the messages in the client"),
        "container" => refused(&[], "nothing is run on this server; leave it out"),
        "inference_geo" => refused(&[r#""not_available""#, r#""global""#], "it runs where this server stands"),
        "diagnostics" => refused(&[], "leave it out"),
        _ => Policy::Unknown,
    }
}

fields! {
    /// One message as the client sent it.
    MessageFields {
        role: String,
        content: TextOrList<Wire<BlockFields>>,
    }
}

fields! {
    /// One block of a message's content, whatever its type.
    BlockFields {
        r#type: String,
        text: String,
        id: String,
        name: String,
        input: Object,
        tool_use_id: String,
        content: TextOrList<Wire<BlockFields>>,
        is_error: bool,
        thinking: String,
        signature: String,
        data: String,
    }
    policy = block_policy
}

fn block_policy(key: &str) -> Policy {
    let refused = |neutral, instead| Policy::Refused { neutral, instead };
    match key {
        // A hint about caching; citations and parsed output of an earlier answer, which no template reads.
        "cache_control" | "citations" | "parsed_output" => Policy::Inert,
        "caller" => refused(&[r#"{"type":"direct"}"#], "only the model itself calls tools here"),
        "source" | "title" | "context" | "toolset_name" => refused(&[], "only text is understood"),
        _ => Policy::Unknown,
    }
}

fields! {
    /// A tool that the client runs.
    ToolFields {
        r#type: String,
        name: String,
        description: String,
        input_schema: Object,
        strict: bool,
    }
    policy = tool_policy
}

fn tool_policy(key: &str) -> Policy {
    let refused = |neutral, instead| Policy::Refused { neutral, instead };
    match key {
        "cache_control" | "eager_input_streaming" => Policy::Inert,
        "defer_loading" => refused(&["false"], "every tool is shown to the model"),
        "allowed_callers" => refused(&[r#"["direct"]"#], "only the model itself calls tools here"),
        "input_examples" => refused(&["[]"], "put examples into the description"),
        _ => Policy::Unknown,
    }
}

fields! {
    /// `tool_choice`
    ToolChoiceFields {
        r#type: String,
        name: String,
        disable_parallel_tool_use: bool,
    }
}

fields! {
    /// `thinking`
    ThinkingFields {
        r#type: String,
        budget_tokens: u32,
        display: String,
    }
}

fields! {
    /// `output_config`
    OutputConfigFields {
        effort: String,
        format: Wire<OutputFormatFields>,
    }
}

fields! {
    /// `output_config.format`, or `output_format` as it was called at first.
    OutputFormatFields {
        r#type: String,
        schema: Object,
    }
    policy = output_format_policy
}

fn output_format_policy(key: &str) -> Policy {
    match key {
        "name" => Policy::Inert,
        _ => Policy::Unknown,
    }
}

fields! {
    /// `metadata`: about the caller's caller; read for its type only.
    MetadataFields {
        user_id: String,
    }
}

#[derive(Serialize)]
pub(in crate::api) struct TokenCount {
    pub input_tokens: usize,
}

#[derive(Serialize)]
pub(super) struct Message<'a> {
    pub id: &'a str,
    pub r#type: &'static str,
    pub role: &'static str,
    pub model: &'a str,
    pub content: &'a [Block],
    pub stop_reason: Option<&'static str>,
    pub stop_sequence: Option<&'a str>,
    pub usage: UsageWire,
}

#[derive(Debug, Serialize, PartialEq)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block {
    Text { text: String },
    Thinking { thinking: String, signature: String },
    ToolUse { id: String, name: String, input: Value },
}

#[derive(Debug, Clone, Copy, Serialize, PartialEq, Eq)]
pub(super) struct UsageWire {
    /// What had to be computed: the cached part is counted apart.
    input_tokens: u32,
    cache_creation_input_tokens: u32,
    cache_read_input_tokens: u32,
    output_tokens: u32,
    output_tokens_details: OutputDetails,
    /// Only where a whole message is described.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, Serialize, PartialEq, Eq)]
struct OutputDetails {
    thinking_tokens: u32,
}

impl UsageWire {
    pub fn of_message(usage: Usage) -> Self {
        Self { service_tier: Some("standard"), ..Self::cumulative(usage) }
    }

    /// For `message_delta`.
    pub fn cumulative(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(usage.cached_tokens),
            // Writing to the cache costs nothing here, so nothing is counted for it.
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: usage.cached_tokens,
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputDetails { thinking_tokens: usage.reasoning_tokens },
            service_tier: None,
        }
    }

    pub fn at_start(report: &PromptReport) -> Self {
        Self::of_message(Usage {
            prompt_tokens: report.prompt_tokens,
            cached_tokens: report.cached_tokens,
            ..Usage::default()
        })
    }
}

/// One server-sent event's data; its name is its type.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum StreamEvent<'a> {
    MessageStart { message: Message<'a> },
    ContentBlockStart { index: u32, content_block: &'a Block },
    ContentBlockDelta { index: u32, delta: Delta<'a> },
    ContentBlockStop { index: u32 },
    MessageDelta { delta: MessageDelta<'a>, usage: UsageWire },
    MessageStop,
}

impl StreamEvent<'_> {
    pub fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type")]
pub(super) enum Delta<'a> {
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    #[serde(rename = "signature_delta")]
    Signature { signature: &'a str },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: &'a str },
}

#[derive(Serialize)]
pub(super) struct MessageDelta<'a> {
    pub stop_reason: &'static str,
    pub stop_sequence: Option<&'a str>,
}
