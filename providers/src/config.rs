//! What a hosted member is: which kind, where, which model, with which credentials and patience.

use std::time::Duration;

use crate::bedrock::role::RoleSource;
use crate::secret::Secret;

/// The wire format that a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// OpenAI's own API: Chat Completions, or Responses where [`ProviderConfig::responses`] says so; embeddings.
    OpenAi,
    /// Any server with OpenAI's Chat Completions: vLLM, llama-server, another Sconce. Knows more sampling parameters.
    Compatible,
    /// Anthropic's Messages.
    Anthropic,
    /// Amazon Bedrock's Converse.
    Bedrock,
    /// OpenAI's models on Azure.
    Azure,
    /// Google's Gemini API.
    Gemini,
    /// Mistral's own API.
    Mistral,
}

impl Kind {
    pub const ALL: [Self; 7] =
        [Self::OpenAi, Self::Compatible, Self::Anthropic, Self::Bedrock, Self::Azure, Self::Gemini, Self::Mistral];

    /// As the configuration file and messages spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Compatible => "compatible",
            Self::Anthropic => "anthropic",
            Self::Bedrock => "bedrock",
            Self::Azure => "azure",
            Self::Gemini => "gemini",
            Self::Mistral => "mistral",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// How a provider knows who pays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    #[default]
    None,
    /// In the header that the kind has for it (`authorization`, `x-api-key`, `api-key`, `x-goog-api-key`).
    ApiKey(Secret),
    /// In `authorization: Bearer`, whatever the kind: OAuth and Entra tokens, Bedrock API keys.
    Bearer(Secret),
    /// Signs every request (SigV4). Only for Bedrock.
    Aws { access_key_id: Secret, secret_access_key: Secret, session_token: Option<Secret> },
    /// The same with keys that a role lends, fetched and renewed.
    AwsRole(RoleSource),
}

impl Credentials {
    pub(crate) fn secrets(&self) -> Vec<Secret> {
        match self {
            Self::None | Self::AwsRole(_) => Vec::new(),
            Self::ApiKey(secret) | Self::Bearer(secret) => vec![secret.clone()],
            Self::Aws { access_key_id, secret_access_key, session_token } => {
                let pair = [access_key_id.clone(), secret_access_key.clone()];
                pair.into_iter().chain(session_token.clone()).collect()
            }
        }
    }
}

/// How long a silence is borne. The request's own deadline holds besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the connection stands, TLS included.
    pub connect: Duration,
    /// From sending the request to the first byte of the answer's body.
    pub first_byte: Duration,
    /// Between two pieces of the answer, comments and pings included.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { connect: s(5), first_byte: s(120), idle: s(60) }
    }
}

/// How a JSON schema is enforced by providers that have more than one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SchemaBy {
    /// By the provider's field for it.
    #[default]
    Native,
    /// By a tool that the model is made to call, for models without that field (Anthropic and Bedrock). Its arguments
    /// become the answer's text.
    ForcedTool,
}

/// One model at one provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderConfig {
    pub kind: Kind,
    /// The model as the provider names it; at Azure the deployment; at Bedrock a model id, an inference profile or an ARN.
    pub model: String,
    /// Where the API begins, for example `https://api.openai.com/v1`. `None` is the provider's own address; Azure and
    /// compatible servers have none.
    pub base_url: Option<String>,
    pub credentials: Credentials,
    /// Of Bedrock: `us-east-1`.
    pub region: Option<String>,
    /// Of Azure: `2024-10-21` and the like; without it the newer `/openai/v1` paths are used. Of Anthropic: the version
    /// header, `2023-06-01` without it.
    pub api_version: Option<String>,
    /// Of OpenAI and Azure: speak Responses in place of Chat Completions.
    pub responses: bool,
    pub schema_by: SchemaBy,
    /// `max_tokens` for requests that name none, where the provider wants a number (Anthropic).
    pub max_tokens_default: u32,
    /// Let the provider cache prompts, where that has a price of its own (Anthropic, Claude on Bedrock).
    pub prompt_caching: bool,
    /// More headers for every request. Their values are kept out of messages as credentials are.
    pub headers: Vec<(String, Secret)>,
    pub timeouts: Timeouts,
}

impl ProviderConfig {
    pub fn new(kind: Kind, model: impl Into<String>) -> Self {
        Self {
            kind,
            model: model.into(),
            base_url: None,
            credentials: Credentials::None,
            region: None,
            api_version: None,
            responses: false,
            schema_by: SchemaBy::Native,
            max_tokens_default: 8192,
            prompt_caching: false,
            headers: Vec::new(),
            timeouts: Timeouts::default(),
        }
    }
}
