//! What `/tokenize` and `/detokenize` read and write.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::json::{Wire, fields, policies, refused};
use crate::api::openai::chat::messages::MessageFields;
use crate::api::openai::values::Object;

pub(in crate::api) type TokenizeBody = Wire<TokenizeFields>;
pub(in crate::api) type DetokenizeBody = Wire<DetokenizeFields>;

fields! {
    /// Either `prompt` or `messages`, with what belongs to it.
    #[schemars(rename = "TokenizeRequest")]
    TokenizeFields {
        /// Without it the first model's tokenizer is used.
        model: String,
        prompt: String,
        /// With `prompt`: add what the model expects at the beginning. True unless said otherwise.
        add_special_tokens: bool,
        /// Also return the text of each token.
        return_token_strs: bool,
        #[schemars(length(min = 1, max = 16_384))]
        messages: Vec<Wire<MessageFields>>,
        /// With `messages`, as in chat.
        add_generation_prompt: bool,
        /// With `messages`, as in chat.
        continue_final_message: bool,
        /// With `messages`: values for the chat template.
        chat_template_kwargs: Object,
        /// With `messages`: tools for the chat template.
        tools: Vec<Value>,
    }
    policy = POLICY
}

fields! {
    /// Token ids to be made text.
    #[schemars(rename = "DetokenizeRequest")]
    DetokenizeFields {
        /// Without it the first model's tokenizer is used.
        model: String,
        /// Ids of the model's vocabulary; others are refused.
        #[schemars(required)]
        tokens: Vec<u32>,
    }
}

policies! {
    POLICY {
        "chat_template" => refused(&[], "templates come with the model; leave it out"),
        "mm_processor_kwargs" => refused(&["{}"], "leave it out"),
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TokenizeResponse")]
pub(in crate::api) struct TokenizeAnswer {
    pub count: usize,
    pub max_model_len: u32,
    pub tokens: Vec<u32>,
    pub token_strs: Option<Vec<String>>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DetokenizeResponse")]
pub(in crate::api) struct DetokenizeAnswer {
    pub prompt: String,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct WhichTokenizer {
    /// Without it the first model's tokenizer is described.
    pub model: Option<String>,
}

/// Special tokens by their texts. A client that tokenises by `/tokenize` needs no more.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TokenizerInfoResponse")]
pub(in crate::api) struct TokenizerInfoAnswer {
    pub model: String,
    pub model_max_length: u32,
    pub bos_token: Option<String>,
    pub eos_token: Option<String>,
    pub unk_token: Option<String>,
    pub pad_token: Option<String>,
    /// As the model brings it.
    pub chat_template: Option<String>,
}
