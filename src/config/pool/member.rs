//! One `[[member]]`, checked against what its kind needs and takes.

use std::collections::BTreeMap;

use sconce_providers::{Kind, SchemaBy, Timeouts};
use sconce_route::Nanos;
use sconce_route::health::HealthOptions;
use sconce_route::price::TokenPrice;

use super::place::hint;
use super::section::{CapabilitiesSection, MemberSection};
use super::worker::{self, WorkerConfig};
use super::{SecretSource, check_name, dollars, seconds, unit};

/// A checked member.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberConfig {
    pub name: String,
    pub kind: MemberKind,
    pub task: MemberTask,
    pub capabilities: Capabilities,
    pub price: Option<TokenPrice>,
    pub quality: Option<f64>,
    pub health: HealthOptions,
}

#[derive(Debug, Clone, PartialEq)]
pub enum MemberKind {
    /// A model that this server runs, by the name it is served under.
    Local {
        model: String,
        hourly: Option<Nanos>,
    },
    Remote(Box<RemoteConfig>),
    /// Another engine on this machine, which this server starts and watches.
    Worker(Box<WorkerConfig>),
}

impl MemberKind {
    pub fn is_local_of(&self, name: &str) -> bool {
        matches!(self, Self::Local { model, .. } if model == name)
    }
}

/// A model at a hosted provider.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteConfig {
    pub provider: Kind,
    /// OpenAI's and Azure's Responses in place of Chat Completions.
    pub responses: bool,
    pub schema_by: SchemaBy,
    pub max_tokens_default: Option<u32>,
    pub prompt_caching: bool,
    pub model: String,
    pub base_url: Option<String>,
    pub secrets: Secrets,
    /// Lower case; `None` where it is not known.
    pub region: Option<String>,
    pub api_version: Option<String>,
    pub headers: BTreeMap<String, SecretSource>,
    pub timeouts: Timeouts,
    pub max_concurrent: u32,
}

/// Where the secrets are. They are read when the member is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secrets {
    None,
    ApiKey(SecretSource),
    Aws { access_key_id: SecretSource, secret_access_key: SecretSource, session_token: Option<SecretSource> },
    AwsRole(AwsRole),
}

/// Who hands out the keys of an AWS role. Where they are asked stands in the environment, as AWS's own clients read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AwsRole {
    Instance,
    Container,
    WebIdentity,
}

/// What a member makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemberTask {
    #[default]
    Generate,
    Embed,
}

/// `None`: as usual for the kind, or as the local model's card says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub tools: Option<bool>,
    pub json_schema: Option<bool>,
    pub vision: Option<bool>,
    pub logprobs: Option<bool>,
    pub reasoning: Option<bool>,
    pub context_tokens: Option<u32>,
    pub output_tokens_max: Option<u32>,
}

pub const MAX_CONCURRENT_DEFAULT: u32 = 256;

const KINDS: [&str; 9] =
    ["local", "worker", "openai", "openai-compatible", "anthropic", "bedrock", "azure", "gemini", "mistral"];

/// Several members where a worker has replicas.
pub fn checked(section: &MemberSection) -> Result<Vec<MemberConfig>, String> {
    check_name(&section.name)?;
    if section.model.is_empty() {
        return Err("model is empty; name the model".to_owned());
    }
    let kinds = match section.kind.as_str() {
        "worker" => worker::checked(section)?,
        "local" => vec![(section.name.clone(), local(section)?)],
        _ => vec![(section.name.clone(), MemberKind::Remote(Box::new(remote(section)?)))],
    };
    let task = match section.task.as_deref() {
        None | Some("generate") => MemberTask::Generate,
        Some("embed") => MemberTask::Embed,
        Some(other) => return Err(format!("task is '{other}'; it is generate or embed")),
    };
    let quality = section.quality.map(|quality| unit("quality", quality)).transpose()?;
    let member = |(name, kind)| MemberConfig {
        name,
        kind,
        task,
        capabilities: capabilities(&section.capabilities),
        price: section.price.clone(),
        quality,
        health: section.health.clone(),
    };
    Ok(kinds.into_iter().map(member).collect())
}

fn local(section: &MemberSection) -> Result<MemberKind, String> {
    let remote_only = [
        ("connect_timeout_s", section.connect_timeout_s.is_some()),
        ("first_byte_timeout_s", section.first_byte_timeout_s.is_some()),
        ("idle_timeout_s", section.idle_timeout_s.is_some()),
        ("max_concurrent", section.max_concurrent.is_some()),
        ("task", section.task.is_some()),
    ];
    refuse(&hosted_keys(section), "a local member has no")?;
    refuse(&remote_only, "a local member has no")?;
    refuse(&worker::keys(section), "a local member has no")?;
    Ok(MemberKind::Local { model: section.model.clone(), hourly: hourly(section)? })
}

/// What only hosted members have.
pub(super) fn hosted_keys(section: &MemberSection) -> [(&'static str, bool); 13] {
    [
        ("base_url", section.base_url.is_some()),
        ("api_key", section.api_key.is_some()),
        ("access_key_id", section.access_key_id.is_some()),
        ("secret_access_key", section.secret_access_key.is_some()),
        ("session_token", section.session_token.is_some()),
        ("aws_role", section.aws_role.is_some()),
        ("region", section.region.is_some()),
        ("api", section.api.is_some()),
        ("api_version", section.api_version.is_some()),
        ("schema_by", section.schema_by.is_some()),
        ("max_tokens_default", section.max_tokens_default.is_some()),
        ("prompt_caching", section.prompt_caching.is_some()),
        ("headers", !section.headers.is_empty()),
    ]
}

/// What the machine costs, which is not a price of tokens.
pub(super) fn hourly(section: &MemberSection) -> Result<Option<Nanos>, String> {
    if section.hourly_usd.is_some() && section.price.is_some() {
        return Err("price and hourly_usd exclude each other; leave one out".to_owned());
    }
    section.hourly_usd.map(|usd| dollars("hourly_usd", usd)).transpose()
}

fn remote(section: &MemberSection) -> Result<RemoteConfig, String> {
    let provider = match section.kind.as_str() {
        "openai-compatible" => Kind::Compatible,
        word => Kind::from_name(word).ok_or_else(|| format!("kind '{word}' is not known{}", hint(word, KINDS)))?,
    };
    let has_responses = matches!(provider, Kind::OpenAi | Kind::Azure);
    let wants_tokens = matches!(provider, Kind::Anthropic | Kind::Bedrock);
    let has_version = matches!(provider, Kind::Anthropic | Kind::Azure);
    let foreign = [
        ("hourly_usd", section.hourly_usd.is_some()),
        ("api", section.api.is_some() && !has_responses),
        ("api_version", section.api_version.is_some() && !has_version),
        ("schema_by", section.schema_by.is_some() && !wants_tokens),
        ("max_tokens_default", section.max_tokens_default.is_some() && !wants_tokens),
        ("prompt_caching", section.prompt_caching.is_some() && !wants_tokens),
    ];
    refuse(&foreign, &format!("kind {} takes no", section.kind))?;
    refuse(&worker::keys(section), &format!("kind {} takes no", section.kind))?;
    if section.base_url.is_none() && matches!(provider, Kind::Compatible | Kind::Azure) {
        return Err(format!("base_url is missing; kind {} needs the address of the server", section.kind));
    }
    if let Some(url) = &section.base_url
        && !url.starts_with("https://")
        && !url.starts_with("http://")
    {
        return Err("base_url does not begin with https:// or http://".to_owned());
    }
    if provider == Kind::Bedrock && section.region.is_none() {
        return Err("region is missing; Bedrock needs the AWS region, e.g. eu-central-1".to_owned());
    }
    if section.max_concurrent == Some(0) {
        return Err("max_concurrent is 0; leave the member out instead".to_owned());
    }
    Ok(RemoteConfig {
        provider,
        responses: endpoint(section.api.as_deref())?,
        schema_by: match section.schema_by.as_deref() {
            None | Some("native") => SchemaBy::Native,
            Some("forced_tool") => SchemaBy::ForcedTool,
            Some(other) => return Err(format!("schema_by is '{other}'; it is native or forced_tool")),
        },
        max_tokens_default: section.max_tokens_default,
        prompt_caching: section.prompt_caching.unwrap_or(false),
        model: section.model.clone(),
        base_url: section.base_url.clone(),
        secrets: secrets(section, provider)?,
        region: section.region.as_ref().map(|region| region.to_ascii_lowercase()),
        api_version: section.api_version.clone(),
        headers: section.headers.clone(),
        timeouts: timeouts(section)?,
        max_concurrent: section.max_concurrent.unwrap_or(MAX_CONCURRENT_DEFAULT),
    })
}

pub(super) fn timeouts(section: &MemberSection) -> Result<Timeouts, String> {
    let defaults = Timeouts::default();
    let time = |key, value: Option<f64>, default| value.map_or(Ok(default), |value| seconds(key, value));
    Ok(Timeouts {
        connect: time("connect_timeout_s", section.connect_timeout_s, defaults.connect)?,
        first_byte: time("first_byte_timeout_s", section.first_byte_timeout_s, defaults.first_byte)?,
        idle: time("idle_timeout_s", section.idle_timeout_s, defaults.idle)?,
    })
}

/// Whether it is the Responses endpoint.
fn endpoint(api: Option<&str>) -> Result<bool, String> {
    match api {
        None | Some("chat") => Ok(false),
        Some("responses") => Ok(true),
        Some(other) => Err(format!("api is '{other}'; it is chat or responses")),
    }
}

fn secrets(section: &MemberSection, provider: Kind) -> Result<Secrets, String> {
    let aws = (&section.access_key_id, &section.secret_access_key, &section.session_token);
    let is_bedrock = provider == Kind::Bedrock;
    if let Some(word) = &section.aws_role {
        if !is_bedrock || section.api_key.is_some() || aws != (&None, &None, &None) {
            return Err("aws_role belongs to kind bedrock, without api_key and access_key_id; leave one out".to_owned());
        }
        return Ok(Secrets::AwsRole(match word.as_str() {
            "instance" => AwsRole::Instance,
            "container" => AwsRole::Container,
            "web_identity" => AwsRole::WebIdentity,
            other => return Err(format!("aws_role is '{other}'; it is instance, container or web_identity")),
        }));
    }
    match (&section.api_key, aws) {
        (_, (None, None, None)) => {}
        _ if !is_bedrock => return Err("access_key_id and its fellows belong to kind bedrock; use api_key".to_owned()),
        (Some(_), _) => return Err("api_key and access_key_id exclude each other; leave one out".to_owned()),
        (None, (Some(id), Some(secret), token)) => {
            let (access_key_id, secret_access_key, session_token) = (id.clone(), secret.clone(), token.clone());
            return Ok(Secrets::Aws { access_key_id, secret_access_key, session_token });
        }
        (None, _) => return Err("access_key_id and secret_access_key go together; give both".to_owned()),
    }
    match &section.api_key {
        Some(source) => Ok(Secrets::ApiKey(source.clone())),
        None if provider == Kind::Compatible => Ok(Secrets::None),
        None if is_bedrock => {
            Err("no secret: give api_key, access_key_id and secret_access_key, or aws_role".to_owned())
        }
        None => Err("api_key is missing; write api_key = { env = \"NAME\" } or { file = \"PATH\" }".to_owned()),
    }
}

fn capabilities(section: &CapabilitiesSection) -> Capabilities {
    Capabilities {
        tools: section.tools,
        json_schema: section.json_schema,
        vision: section.vision,
        logprobs: section.logprobs,
        reasoning: section.reasoning,
        context_tokens: section.context_tokens,
        output_tokens_max: section.output_tokens_max,
    }
}

/// Keys that would be ignored.
pub(super) fn refuse(keys: &[(&str, bool)], why: &str) -> Result<(), String> {
    match keys.iter().find(|(_, is_set)| *is_set) {
        Some((key, _)) => Err(format!("{why} {key}; leave it out")),
        None => Ok(()),
    }
}
