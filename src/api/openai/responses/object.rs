//! The response object: what was asked, what came of it, and where it stands.

use serde_json::{Value, json};

use crate::error::{Error, ErrorKind};
use crate::request::Usage;

use super::convert::Shown;
use super::tools::Tools;

/// Everything of a response object that is known before it is answered.
#[derive(Debug, Clone)]
pub(super) struct Outline {
    pub id: String,
    pub created_s: u64,
    pub model: String,
    pub instructions: Option<String>,
    pub previous: Option<String>,
    pub store: bool,
    pub parallel_tool_calls: bool,
    pub tools: Tools,
    pub top_logprobs: u32,
    pub shown: Shown,
}

/// How far a response is.
#[derive(Debug, Clone, Copy)]
pub(super) enum State<'a> {
    Running,
    Completed {
        usage: Usage,
        at_s: u64,
    },
    /// Its limit of tokens was reached.
    Incomplete {
        usage: Usage,
    },
    Cancelled,
    Failed(&'a Error),
}

impl State<'_> {
    pub fn status(self) -> &'static str {
        match self {
            Self::Running => "in_progress",
            Self::Completed { .. } => "completed",
            Self::Incomplete { .. } => "incomplete",
            Self::Cancelled => "cancelled",
            Self::Failed(_) => "failed",
        }
    }

    /// The last event of a stream. Of a cancelled response there is less than was asked for.
    pub fn event(self) -> &'static str {
        match self {
            Self::Running => "response.in_progress",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } | Self::Cancelled => "response.incomplete",
            Self::Failed(_) => "response.failed",
        }
    }
}

impl Outline {
    pub fn object(&self, state: State<'_>, output: &[Value]) -> Value {
        let (usage, completed_at) = match state {
            State::Completed { usage, at_s } => (Some(usage), Some(at_s)),
            State::Incomplete { usage } => (Some(usage), None),
            State::Running | State::Cancelled | State::Failed(_) => (None, None),
        };
        let error = match state {
            State::Failed(error) => json!({"code": error_code(error.kind), "message": error.message}),
            _ => Value::Null,
        };
        let incomplete = match state {
            State::Incomplete { .. } => json!({"reason": "max_output_tokens"}),
            _ => Value::Null,
        };
        let shown = &self.shown;
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created_s,
            "status": state.status(),
            "background": false,
            "completed_at": completed_at,
            "error": error,
            "incomplete_details": incomplete,
            "instructions": self.instructions,
            "max_output_tokens": shown.max_output_tokens,
            "max_tool_calls": shown.max_tool_calls,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": self.parallel_tool_calls,
            "previous_response_id": self.previous,
            "prompt_cache_key": shown.prompt_cache_key,
            "reasoning": {"effort": shown.effort, "summary": shown.summary},
            "safety_identifier": shown.safety_identifier,
            "service_tier": "default",
            "store": self.store,
            "temperature": shown.temperature,
            "text": {"format": shown.format, "verbosity": shown.verbosity},
            "tool_choice": self.tools.choice_shown,
            "tools": self.tools.shown,
            "top_logprobs": self.top_logprobs,
            "top_p": shown.top_p,
            "truncation": "disabled",
            "usage": usage.map(usage_object),
            "user": shown.user,
            "metadata": shown.metadata,
        })
    }
}

fn usage_object(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
    })
}

/// Of the words that OpenAI's API has for it.
fn error_code(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidRequest => "invalid_prompt",
        ErrorKind::QueueFull | ErrorKind::RateLimited => "rate_limit_exceeded",
        _ => "server_error",
    }
}
