//! A member at a hosted provider.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sconce_providers::{Credentials, HttpClient, Provider, ProviderConfig, RoleSource, RoleToken, Secret};
use sconce_route::price::PriceTable;
use sconce_route::{Capabilities, Kind, Pricing, Residency};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::member::{
    EngineSnapshot, EventStream, Member, MemberState, Model, ModelCard, Task, TokenizeInput, Tokenized,
};
use super::node::Declared;
use crate::config::env;
use crate::config::pool::{AwsRole, MemberConfig, MemberTask, RemoteConfig, Secrets};
use crate::config::secret::SecretSource;
use crate::error::{Error, ErrorKind, Result};
use crate::request::{EmbedRequest, Embedded, Request};

/// Where no route's deadline ends a request, this does: a day is longer than any answer.
const DEADLINE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

pub struct RemoteMember {
    card: ModelCard,
    provider: Provider,
    tag: [u8; 32],
}

impl RemoteMember {
    /// Reads its secrets, and sends nothing.
    pub fn new(config: &MemberConfig, remote: &RemoteConfig, client: &HttpClient) -> Result<Self> {
        let named = |error: Error| {
            let message = format!("member '{}': {}", config.name, error.message);
            Error { message, ..error }
        };
        let mut hash = Sha256::new();
        let provider = Provider::new(provider_config(remote, &mut hash).map_err(named)?, client).map_err(named)?;
        let card = ModelCard {
            id: config.name.clone(),
            aliases: Vec::new(),
            root: format!("{}:{}", remote.provider.name(), remote.model),
            parent: None,
            max_model_len: config.capabilities.context_tokens.unwrap_or(0),
            created_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            chat: config.task == MemberTask::Generate,
            task: match config.task {
                MemberTask::Generate => Task::Generate,
                MemberTask::Embed => Task::Embed { dimensions: 0 },
            },
        };
        Ok(Self { card, provider, tag: hash.finalize().into() })
    }

    /// Changes with its configuration and secrets, and tells nothing of them.
    pub fn tag(&self) -> [u8; 32] {
        self.tag
    }

    fn no_tokenizer(&self) -> Error {
        let message =
            format!("'{}' runs elsewhere, and its tokens are not known here; ask for a local model", self.card.id);
        Error::invalid("model", message).with_code("no_tokenizer")
    }
}

/// With the secrets in it, which `hash` takes in as well.
fn provider_config(remote: &RemoteConfig, hash: &mut Sha256) -> Result<ProviderConfig> {
    hash.update(format!("{remote:?}"));
    let mut read = |source: &SecretSource| -> Result<Secret> {
        let text = source.load()?;
        hash.update(text.as_bytes());
        hash.update([0]);
        Ok(Secret::new(&text))
    };
    let mut config = ProviderConfig::new(remote.provider, remote.model.clone());
    config.base_url.clone_from(&remote.base_url);
    config.credentials = match &remote.secrets {
        Secrets::None => Credentials::None,
        Secrets::ApiKey(source) => Credentials::ApiKey(read(source)?),
        Secrets::Aws { access_key_id, secret_access_key, session_token } => Credentials::Aws {
            access_key_id: read(access_key_id)?,
            secret_access_key: read(secret_access_key)?,
            session_token: session_token.as_ref().map(&mut read).transpose()?,
        },
        Secrets::AwsRole(role) => {
            Credentials::AwsRole(role_source(*role, remote.region.as_deref().unwrap_or_default())?)
        }
    };
    config.region.clone_from(&remote.region);
    config.api_version.clone_from(&remote.api_version);
    config.responses = remote.responses;
    config.schema_by = remote.schema_by;
    config.max_tokens_default = remote.max_tokens_default.unwrap_or(config.max_tokens_default);
    config.prompt_caching = remote.prompt_caching;
    for (name, source) in &remote.headers {
        config.headers.push((name.clone(), read(source)?));
    }
    config.timeouts = remote.timeouts;
    Ok(config)
}

/// Where the keys of a role are asked for: AWS's own variables, as its clients read them.
fn role_source(role: AwsRole, region: &str) -> Result<RoleSource> {
    let needed = |variable: &env::Variable| {
        let message = format!("the environment variable {} is not set, which aws_role needs", variable.name);
        variable.get().ok_or_else(|| Error::new(ErrorKind::InvalidRequest, message))
    };
    Ok(match role {
        AwsRole::Instance => {
            let endpoint = env::AWS_EC2_METADATA_SERVICE_ENDPOINT.get();
            RoleSource::Instance { endpoint: endpoint.unwrap_or_else(|| "http://169.254.169.254".to_owned()) }
        }
        AwsRole::Container => RoleSource::Container {
            uri: match env::AWS_CONTAINER_CREDENTIALS_RELATIVE_URI.get() {
                Some(path) => format!("http://169.254.170.2{path}"),
                None => needed(&env::AWS_CONTAINER_CREDENTIALS_FULL_URI)?,
            },
            token: match (
                env::AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE.path(),
                env::AWS_CONTAINER_AUTHORIZATION_TOKEN.get(),
            ) {
                (Some(path), _) => Some(token_in(path)),
                (None, Some(token)) => {
                    let token = RoleToken::new(env::AWS_CONTAINER_AUTHORIZATION_TOKEN.name, move || Ok(token.clone()));
                    Some(token)
                }
                (None, None) => None,
            },
        },
        AwsRole::WebIdentity => RoleSource::WebIdentity {
            endpoint: env::AWS_ENDPOINT_URL_STS.get().unwrap_or_else(|| {
                let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
                format!("https://sts.{region}.{suffix}")
            }),
            role_arn: needed(&env::AWS_ROLE_ARN)?,
            session_name: env::AWS_ROLE_SESSION_NAME.get().unwrap_or_else(|| "sconce".to_owned()),
            token: token_in(needed(&env::AWS_WEB_IDENTITY_TOKEN_FILE)?.into()),
        },
    })
}

/// Whoever rotates the token writes the file again.
fn token_in(path: PathBuf) -> RoleToken {
    RoleToken::new(path.display().to_string(), move || std::fs::read_to_string(&path))
}

/// What the operator declared, else what is usual for the kind and known of the model's price.
pub fn declared(config: &MemberConfig, remote: &RemoteConfig, prices: &PriceTable) -> Declared {
    let own = &config.capabilities;
    let generates = config.task == MemberTask::Generate;
    let is_compatible = remote.provider == sconce_providers::Kind::Compatible;
    let capabilities = Capabilities {
        chat: generates,
        // The older endpoint: only servers of open models still have it.
        completion: generates && is_compatible,
        tools: generates && own.tools.unwrap_or(true),
        json_schema: generates && own.json_schema.unwrap_or(true),
        vision: generates && own.vision.unwrap_or(!is_compatible),
        // Where a provider has none for a request, it says so itself.
        logprobs: generates && own.logprobs.unwrap_or(true),
        reasoning: generates && own.reasoning.unwrap_or(true),
        embeddings: !generates,
        grammar: generates && is_compatible,
        context_tokens: own.context_tokens,
        output_tokens: own.output_tokens_max,
    };
    let pricing = match &config.price {
        Some(price) => Pricing::Tokens(price.clone()),
        None => prices.pricing(remote.provider.name(), &remote.model),
    };
    Declared {
        kind: Kind::Remote,
        endpoint: format!(
            "{} {} {}",
            remote.provider.name(),
            remote.base_url.as_deref().unwrap_or_default(),
            remote.model
        ),
        residency: remote.region.clone().map_or(Residency::Unknown, Residency::Region),
        capabilities: Some(capabilities),
        overrides: *own,
        pricing,
        hourly: None,
        quality: config.quality,
        health: config.health.clone(),
    }
}

impl Model for RemoteMember {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Whether it answers is a matter of its health.
    fn state(&self) -> MemberState {
        MemberState::Ready
    }

    fn tokenize(&self, _input: TokenizeInput) -> Result<Tokenized> {
        Err(self.no_tokenizer())
    }

    fn detokenize(&self, _tokens: &[u32]) -> Result<String> {
        Err(self.no_tokenizer())
    }
}

impl Member for RemoteMember {
    fn start(&self, request: Request) -> BoxFuture<'_, Result<EventStream>> {
        async move { self.provider.start(&request, Instant::now() + DEADLINE_MAX).await }.boxed()
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<Embedded>> {
        async move { self.provider.embed(&request, Instant::now() + DEADLINE_MAX).await }.boxed()
    }

    fn unsupported(&self, request: &Request) -> Option<Error> {
        self.provider.unsupported(request)
    }

    fn probe(&self) -> BoxFuture<'_, Result<()>> {
        async move { self.provider.probe(Instant::now() + DEADLINE_MAX).await }.boxed()
    }

    /// No engine of ours.
    fn snapshot(&self) -> EngineSnapshot {
        EngineSnapshot::default()
    }
}
