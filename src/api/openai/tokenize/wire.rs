//! What `/tokenize` and `/detokenize` read and write.

use serde::Serialize;
use serde_json::Value;

use crate::api::json::{Policy, Wire, fields};
use crate::api::openai::chat::messages::MessageFields;
use crate::api::openai::values::Object;

pub(in crate::api) type TokenizeBody = Wire<TokenizeFields>;
pub(in crate::api) type DetokenizeBody = Wire<DetokenizeFields>;

fields! {
    /// Either `prompt` or `messages`.
    TokenizeFields {
        model: String,
        prompt: String,
        add_special_tokens: bool,
        return_token_strs: bool,
        messages: Vec<Wire<MessageFields>>,
        add_generation_prompt: bool,
        continue_final_message: bool,
        chat_template_kwargs: Object,
        tools: Vec<Value>,
    }
    policy = policy
}

fields! {
    /// Token ids to be made text.
    DetokenizeFields {
        model: String,
        tokens: Vec<u32>,
    }
}

fn policy(key: &str) -> Policy {
    match key {
        "chat_template" => Policy::Refused { neutral: &[], instead: "templates come with the model; leave it out" },
        "mm_processor_kwargs" => Policy::Refused { neutral: &["{}"], instead: "leave it out" },
        _ => Policy::Unknown,
    }
}

#[derive(Debug, Serialize)]
pub(in crate::api) struct TokenizeAnswer {
    pub count: usize,
    pub max_model_len: u32,
    pub tokens: Vec<u32>,
    pub token_strs: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
pub(in crate::api) struct DetokenizeAnswer {
    pub prompt: String,
}
