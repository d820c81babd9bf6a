//! Chat templates: a conversation becomes the prompt text, exactly as transformers renders it.

use super::tokenizer::SpecialTokens;
use crate::error::Result;
use crate::request::Chat;

/// One template of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTemplate {
    /// `default`, `tool_use`, …
    pub name: String,
    /// Jinja source.
    pub source: String,
}

/// Everything that a model brings to its chat template.
#[derive(Debug, Clone, Default)]
pub struct TemplateSource {
    pub templates: Vec<NamedTemplate>,
    /// `bos_token`, `eos_token`, … of the template (`Tokenizer::special_tokens`).
    pub special: SpecialTokens,
}

impl TemplateSource {
    /// One template: `chat_template.jinja`, GGUF's `tokenizer.chat_template` or `--chat-template`.
    pub fn new(source: impl Into<String>, special: SpecialTokens) -> Self {
        let templates = vec![NamedTemplate { name: "default".to_owned(), source: source.into() }];
        Self { templates, special }
    }

    /// The `chat_template` field of `tokenizer_config.json` or `chat_template.json`: a string, or a list of named
    /// templates. `None` when the file has no such field.
    pub fn from_json(file: &[u8], special: SpecialTokens) -> Result<Option<Self>> {
        let _ = (file, special);
        unimplemented!()
    }
}

/// The caller's clock, for templates that print the date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Seconds since 1970-01-01 UTC.
    pub unix_s: i64,
    /// Local time minus UTC.
    pub utc_offset_s: i32,
}

/// A compiled chat template. Immutable; shared by all requests of a model.
pub struct ChatTemplate {}

impl ChatTemplate {
    /// Once a model.
    pub fn compile(source: TemplateSource) -> Result<Self> {
        let _ = source;
        unimplemented!()
    }

    /// Once a request. What the template refuses is an invalid request naming `messages`.
    pub fn render(&self, chat: &Chat, now: Now) -> Result<String> {
        let _ = (chat, now);
        unimplemented!()
    }
}
