//! What `/v1/responses` reads.

use serde_json::Value;

use crate::api::json::{Policy, Wire, fields};
use crate::api::openai::values::{Object, OneOrMany, TextOrList};

/// A request's body.
pub(in crate::api) type ResponsesBody = Wire<ResponsesFields>;

fields! {
    /// OpenAI's fields, and vLLM's for sampling.
    ResponsesFields {
        model: String,
        input: TextOrList<Wire<ItemFields>>,
        instructions: String,
        previous_response_id: String,
        store: bool,
        stream: bool,
        stream_options: Wire<StreamFields>,
        text: Wire<TextFields>,
        tools: Vec<Wire<ToolFields>>,
        tool_choice: Value,
        parallel_tool_calls: bool,
        max_output_tokens: u32,
        max_tool_calls: u32,
        temperature: f64,
        top_p: f64,
        top_k: i64,
        min_p: f64,
        repetition_penalty: f64,
        presence_penalty: f64,
        frequency_penalty: f64,
        seed: i64,
        stop: OneOrMany,
        priority: i32,
        cache_salt: String,
        chat_template_kwargs: Object,
        metadata: Object,
        user: String,
        safety_identifier: String,
        prompt_cache_key: String,
        service_tier: String,
        reasoning: Wire<ReasoningFields>,
        include: Vec<String>,
        top_logprobs: u32,
    }
    policy = responses_policy
}

fn responses_policy(key: &str) -> Policy {
    let refused = |neutral, instead| Policy::Refused { neutral, instead };
    match key {
        // Prefixes are cached here in any case, and there is one kind of access.
        "prompt_cache_retention" | "prompt_cache_options" | "access_programs" => Policy::Inert,
        "truncation" => refused(&[r#""disabled""#], "prompts are never cut silently; send fewer items"),
        "background" => refused(&["false"], "keep the connection open, with stream true for a long answer"),
        "background_options" => refused(&[], "leave it out"),
        "conversation" => refused(&[], "use previous_response_id"),
        "prompt" => refused(&[], "prompts are not kept here; send instructions and input"),
        "context_management" => refused(&["[]"], "send fewer items"),
        "moderation" => refused(&[], "nothing is moderated here; leave it out"),
        "image" => refused(&[], "only text is understood"),
        _ => Policy::Unknown,
    }
}

fields! {
    /// One item of the input, whatever its type.
    ItemFields {
        r#type: String,
        id: String,
        role: String,
        content: TextOrList<Wire<PartFields>>,
        call_id: String,
        name: String,
        arguments: String,
        output: TextOrList<Wire<PartFields>>,
        summary: Vec<Wire<PartFields>>,
    }
    policy = item_policy
}

fn item_policy(key: &str) -> Policy {
    let refused = |neutral, instead| Policy::Refused { neutral, instead };
    match key {
        // What an earlier answer said of itself. Only who encrypted reasoning can read it; here it is sent in the clear.
        "status" | "phase" | "encrypted_content" => Policy::Inert,
        "caller" => refused(&[r#"{"type":"direct"}"#], "only the model itself calls functions here"),
        "namespace" => refused(&[], "leave it out"),
        "async" => refused(&["false"], "leave it out"),
        _ => Policy::Unknown,
    }
}

fields! {
    /// One part of a message, of an output or of reasoning.
    PartFields {
        r#type: String,
        text: String,
        refusal: String,
    }
    policy = part_policy
}

fn part_policy(key: &str) -> Policy {
    match key {
        "annotations" | "logprobs" | "prompt_cache_breakpoint" | "parsed" => Policy::Inert,
        "image_url" | "file_id" | "detail" | "file_data" | "file_url" | "filename" | "input_audio" => {
            Policy::Refused { neutral: &[], instead: "only text is understood" }
        }
        _ => Policy::Unknown,
    }
}

fields! {
    /// A function that the client runs.
    ToolFields {
        r#type: String,
        name: String,
        description: String,
        parameters: Object,
        strict: bool,
    }
    policy = tool_policy
}

fn tool_policy(key: &str) -> Policy {
    let refused = |neutral, instead| Policy::Refused { neutral, instead };
    match key {
        "defer_loading" => refused(&["false"], "every function is shown to the model"),
        "allowed_callers" => refused(&[r#"["direct"]"#], "only the model itself calls functions here"),
        "async" => refused(&["false"], "leave it out"),
        // What the function returns; no template reads it.
        "output_schema" => Policy::Inert,
        _ => Policy::Unknown,
    }
}

fields! {
    /// `text`
    TextFields {
        format: Wire<FormatFields>,
        verbosity: String,
    }
}

fields! {
    /// `text.format`
    FormatFields {
        r#type: String,
        name: String,
        schema: Object,
        strict: bool,
        description: String,
    }
}

fields! {
    /// `reasoning`
    ReasoningFields {
        effort: String,
        summary: String,
        generate_summary: String,
    }
    policy = reasoning_policy
}

fn reasoning_policy(key: &str) -> Policy {
    let refused = |neutral, instead| Policy::Refused { neutral, instead };
    match key {
        "context" => refused(&[r#""auto""#], "the model's template decides which reasoning it reads"),
        "mode" => refused(&[r#""standard""#], "leave it out"),
        _ => Policy::Unknown,
    }
}

fields! {
    /// `stream_options`
    StreamFields {
        include_obfuscation: bool,
    }
}
