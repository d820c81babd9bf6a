//! One model at one provider: what is asked of it, and how each kind is asked.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Method;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use sconce_vocabulary::error::{Error, ErrorKind, Result};
use sconce_vocabulary::request::{EmbedRequest, Embedded, Request};
use serde_json::{Map, Value};
use tokio::time::Instant;
use url::Url;

use crate::answer::Answer;
use crate::bedrock::role::Role;
use crate::config::{Credentials, Kind, ProviderConfig};
use crate::connect::{Clients, HttpClient, Response};
use crate::exchange;
use crate::failure::Party;
use crate::limits::Takes;
use crate::secret::Secret;
use crate::stream::{Decoder, EventStream, Framing, Reader, events};
use crate::transport::{Body, Call, Patience, accepted, send};
use crate::{anthropic, azure, bedrock, gemini, mistral, openai};

/// One model at one provider. Cheap to clone; every request is one connection's work.
#[derive(Debug, Clone)]
pub struct Provider {
    inner: Arc<Inner>,
}

struct Inner {
    config: ProviderConfig,
    /// Where the API begins, without a slash at the end.
    base: String,
    /// The first path that was asked for, and its address: nearly every request is for the same.
    usual: OnceLock<(String, Url)>,
    /// What every request carries.
    headers: HeaderMap,
    party: Party,
    clients: Clients,
    /// Who lends the keys.
    role: Option<Role>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} of the kind {}", self.config.model, self.base, self.config.kind.name())
    }
}

/// A request in a provider's words, and who reads the answer.
pub(crate) struct Prepared {
    /// Behind the base URL, encoded.
    pub path: String,
    pub body: Map<String, Value>,
    pub framing: Framing,
    pub reader: Box<dyn Reader>,
    /// A call of this tool is the answer's text.
    pub answer_tool: Option<String>,
}

impl Prepared {
    pub fn sse(path: impl Into<String>, body: Map<String, Value>, reader: impl Reader + 'static) -> Self {
        Self { path: path.into(), body, framing: Framing::Sse, reader: Box::new(reader), answer_tool: None }
    }
}

/// Whoever hands out a role's keys is near.
const ROLE_CONNECT: Duration = Duration::from_secs(2);
/// The largest answer that is read as one document: vectors of a full batch.
const DOCUMENT_BYTES_MAX: usize = 256 << 20;

impl Provider {
    /// Checks the configuration. Sends nothing.
    pub fn new(config: ProviderConfig, client: &HttpClient) -> Result<Self> {
        let base = base(&config)?;
        let mut secrets = config.credentials.secrets();
        secrets.extend(config.headers.iter().map(|(_, value)| value.clone()));
        let party = Party { kind: config.kind, secrets };
        let headers = headers(&config)?;
        let role = role(&config.credentials, client)?;
        let clients = client.clients(config.timeouts.connect);
        Ok(Self { inner: Arc::new(Inner { config, base, usual: OnceLock::new(), headers, party, clients, role }) })
    }

    pub fn kind(&self) -> Kind {
        self.inner.config.kind
    }

    /// The model as the provider names it.
    pub fn model(&self) -> &str {
        &self.inner.config.model
    }

    /// Host and port that it is reached at.
    pub fn server(&self) -> Option<(String, u16)> {
        let url = Url::parse(&self.inner.base).ok()?;
        // An address of IPv6 stands in brackets only within a URL.
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        url.port_or_known_default().map(|port| (host, port))
    }

    /// Names the first field that would change the answer and that this provider cannot honour.
    pub fn unsupported(&self, request: &Request) -> Option<Error> {
        self.takes().refused(request)
    }

    #[cfg(test)]
    pub(crate) fn prepared(&self, request: &Request) -> Result<Prepared> {
        self.inner.prepare(request)
    }

    fn takes(&self) -> Takes {
        let config = &self.inner.config;
        match config.kind {
            Kind::OpenAi | Kind::Azure if config.responses => openai::takes_responses(config.kind),
            Kind::OpenAi | Kind::Azure | Kind::Compatible => openai::takes_chat(config.kind),
            Kind::Anthropic => anthropic::takes(),
            Kind::Bedrock => bedrock::takes(&config.model),
            Kind::Gemini => gemini::takes(),
            Kind::Mistral => mistral::takes(),
        }
    }

    /// Sends the request. Comes back when the provider has accepted it; its answer follows as events. Dropping the
    /// future or the stream closes the connection.
    pub async fn start(&self, request: &Request, deadline: Instant) -> Result<EventStream> {
        exchange::asks(self);
        if let Some(error) = self.unsupported(request) {
            return Err(error);
        }
        let inner = &*self.inner;
        let prepared = inner.prepare(request)?;
        let patience = Patience::new(inner.config.timeouts, deadline);
        let accept = match prepared.framing {
            Framing::Sse => "text/event-stream",
            Framing::Amazon => "application/vnd.amazon.eventstream",
        };
        let (call, party) = inner.call(Method::POST, &prepared.path, Some(&prepared.body), accept).await?;
        let response = inner.answered(call, &party, patience).await?;
        let answer = Answer::new(&request.id, request.params.n, prepared.answer_tool);
        let mut decoder = Decoder::new(prepared.framing, prepared.reader, party.clone(), answer);
        decoder.expect(&response)?;
        Ok(events(response, decoder, party, patience))
    }

    /// Vectors for texts.
    pub async fn embed(&self, request: &EmbedRequest, deadline: Instant) -> Result<Embedded> {
        exchange::asks(self);
        let inner = &*self.inner;
        let (config, party) = (&inner.config, &inner.party);
        let count = request.inputs.len();
        let refused = |takes_tokens| openai::embed::refused(config.kind, request, takes_tokens);
        let refuse = |error: Option<Error>| error.map_or(Ok(()), Err);
        match config.kind {
            Kind::OpenAi | Kind::Azure | Kind::Compatible => {
                refuse(refused(true))?;
                let body = openai::embed::body(&config.model, request, "dimensions");
                let path =
                    if config.kind == Kind::Azure { azure::path(config, "embeddings") } else { "/embeddings".into() };
                openai::embed::read(&inner.document(&path, &body, deadline).await?, count, party)
            }
            Kind::Mistral => {
                refuse(refused(false))?;
                let body = openai::embed::body(&config.model, request, "output_dimension");
                openai::embed::read(&inner.document("/embeddings", &body, deadline).await?, count, party)
            }
            Kind::Gemini => {
                refuse(refused(false))?;
                let (path, body) = gemini::embed::request(&config.model, request);
                gemini::embed::read(&inner.document(&path, &body, deadline).await?, count, party)
            }
            Kind::Bedrock => {
                refuse(refused(false))?;
                let mut rows = Vec::with_capacity(count);
                let mut prompt_tokens = 0_u32;
                for (path, body) in bedrock::embed::requests(&config.model, request)? {
                    let document = inner.document(&path, &body, deadline).await?;
                    bedrock::embed::read(&document, &mut rows, &mut prompt_tokens, party)?;
                }
                openai::embed::rectangle(rows, count, prompt_tokens, party)
            }
            Kind::Anthropic => {
                let message = "providers of the kind anthropic have no embeddings; use another member";
                Err(Error::invalid("model", message).with_code("unsupported_parameter"))
            }
        }
    }

    /// Asks something that costs nothing: whether the provider is there and takes our credentials.
    pub async fn probe(&self, deadline: Instant) -> Result<()> {
        let inner = &*self.inner;
        let path = match inner.config.kind {
            Kind::OpenAi | Kind::Compatible | Kind::Mistral => "/models".to_owned(),
            Kind::Azure => azure::models_path(&inner.config),
            Kind::Anthropic => "/v1/models?limit=1".to_owned(),
            Kind::Gemini => "/models?pageSize=1".to_owned(),
            Kind::Bedrock => return inner.probe_bedrock(deadline).await,
        };
        match inner.get(&path, deadline).await {
            // Many servers list no models. They have answered.
            Err(error) if error.code == Some("upstream_not_found") => Ok(()),
            result => result.map(drop),
        }
    }
}

impl Inner {
    fn prepare(&self, request: &Request) -> Result<Prepared> {
        let config = &self.config;
        Ok(match config.kind {
            Kind::OpenAi if config.responses => {
                let reader = openai::responses_stream::ResponsesReader::default();
                Prepared::sse("/responses", openai::responses::body(&config.model, request), reader)
            }
            Kind::OpenAi | Kind::Compatible => {
                let (body, is_completion) = openai::chat::body(config.kind, &config.model, request);
                let path = if is_completion { "/completions" } else { "/chat/completions" };
                Prepared::sse(path, body, openai::stream::ChatReader::default())
            }
            Kind::Azure => azure::prepare(config, request),
            Kind::Anthropic => anthropic::prepare(config, request)?,
            Kind::Bedrock => bedrock::prepare(config, request)?,
            Kind::Gemini => gemini::prepare(config, request)?,
            Kind::Mistral => mistral::prepare(config, request),
        })
    }

    /// A request as it is sent, and to whom: what is told of it must not have the secrets in it.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Map<String, Value>>,
        accept: &str,
    ) -> Result<(Call, Party)> {
        let url = self.url(path)?;
        let mut headers = self.headers.clone();
        let body = match body {
            None => Vec::new(),
            Some(body) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                serde_json::to_vec(body).map_err(|why| Error::internal(format!("cannot write a request: {why}")))?
            }
        };
        if let Ok(accept) = HeaderValue::from_str(accept) {
            headers.insert(ACCEPT, accept);
        }
        let mut call = Call { method, url, headers, body };
        let mut party = self.party.clone();
        let lent = match &self.role {
            None => None,
            Some(role) => Some(role.keys().await?),
        };
        let keys = match (&self.config.credentials, &lent) {
            (_, Some(lent)) => {
                party.secrets.extend(lent.secrets());
                Some((&lent.access_key_id, &lent.secret_access_key, lent.session_token.as_ref()))
            }
            (Credentials::Aws { access_key_id, secret_access_key, session_token }, None) => {
                Some((access_key_id, secret_access_key, session_token.as_ref()))
            }
            _ => None,
        };
        if let Some((access_key_id, secret_access_key, session_token)) = keys {
            let region = self.config.region.as_deref().unwrap_or_default();
            let keys = bedrock::sign::Keys { access_key_id, secret_access_key, session_token };
            bedrock::sign::sign(&mut call, &keys, region, std::time::SystemTime::now())?;
        }
        if let Some(traceparent) = exchange::traceparent() {
            call.headers.insert("traceparent", traceparent);
        }
        Ok((call, party))
    }

    fn url(&self, path: &str) -> Result<Url> {
        if let Some((_, url)) = self.usual.get().filter(|(usual, _)| usual == path) {
            return Ok(url.clone());
        }
        let address = format!("{}{path}", self.base);
        let url = Url::parse(&address).map_err(|why| Error::internal(format!("cannot make an address: {why}")))?;
        // Of two that were first one is remembered.
        let _ = self.usual.set((path.to_owned(), url.clone()));
        Ok(url)
    }

    async fn document(&self, path: &str, body: &Map<String, Value>, deadline: Instant) -> Result<Vec<u8>> {
        self.whole(self.call(Method::POST, path, Some(body), "application/json").await?, deadline).await
    }

    async fn get(&self, path: &str, deadline: Instant) -> Result<Vec<u8>> {
        self.whole(self.call(Method::GET, path, None, "application/json").await?, deadline).await
    }

    /// The answer, if it is a success.
    async fn answered(&self, call: Call, party: &Party, patience: Patience) -> Result<Response> {
        let response = send(&self.clients, call, party, patience).await?;
        exchange::answered(response.status());
        accepted(response, party, patience).await
    }

    async fn whole(&self, (call, party): (Call, Party), deadline: Instant) -> Result<Vec<u8>> {
        let patience = Patience::new(self.config.timeouts, deadline);
        let response = self.answered(call, &party, patience).await?;
        Body::new(response, party, patience).whole(DOCUMENT_BYTES_MAX).await
    }

    /// Bedrock has nothing to list on this host. A request without messages is checked for its signature first, and
    /// refused as invalid after that.
    async fn probe_bedrock(&self, deadline: Instant) -> Result<()> {
        let path = format!("/model/{}/converse", encoded(&self.config.model));
        let body = Map::from_iter([("messages".to_owned(), Value::Array(Vec::new()))]);
        match self.document(&path, &body, deadline).await {
            Err(error) if error.kind == ErrorKind::InvalidRequest => Ok(()),
            result => result.map(drop),
        }
    }
}

/// Who lends the keys, where somebody does.
fn role(credentials: &Credentials, client: &HttpClient) -> Result<Option<Role>> {
    let Credentials::AwsRole(source) = credentials else { return Ok(None) };
    Role::new(source.clone(), client.clients(ROLE_CONNECT)).map(Some)
}

/// A text as one segment of a path.
pub(crate) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidRequest, what)
}

/// Where the API begins.
fn base(config: &ProviderConfig) -> Result<String> {
    let kind = config.kind.name();
    if config.model.is_empty() {
        return Err(wrong(format!("a provider of the kind {kind} has no model; name one")));
    }
    let has_aws_keys = matches!(config.credentials, Credentials::Aws { .. } | Credentials::AwsRole(_));
    if config.kind == Kind::Bedrock && has_aws_keys && config.region.is_none() {
        return Err(wrong("a provider of the kind bedrock needs a region to sign for; set region"));
    }
    if config.kind != Kind::Bedrock && has_aws_keys {
        return Err(wrong(format!("a provider of the kind {kind} takes no AWS keys; give an api key")));
    }
    let own = match (config.kind, &config.region) {
        (Kind::OpenAi, _) => Some("https://api.openai.com/v1".to_owned()),
        (Kind::Anthropic, _) => Some("https://api.anthropic.com".to_owned()),
        (Kind::Gemini, _) => Some("https://generativelanguage.googleapis.com/v1beta".to_owned()),
        (Kind::Mistral, _) => Some("https://api.mistral.ai/v1".to_owned()),
        (Kind::Bedrock, Some(region)) => Some(bedrock::host(region)?),
        (Kind::Bedrock | Kind::Compatible | Kind::Azure, _) => None,
    };
    let Some(base) = config.base_url.clone().or(own) else {
        let field = if config.kind == Kind::Bedrock { "region" } else { "base_url" };
        return Err(wrong(format!("a provider of the kind {kind} has no address of its own; set {field}")));
    };
    let base = checked_base(base, kind)?;
    // Both ways of writing it are common.
    Ok(match config.kind {
        Kind::Anthropic => base.strip_suffix("/v1").unwrap_or(&base).to_owned(),
        _ => base,
    })
}

fn checked_base(base: String, kind: &str) -> Result<String> {
    let bad =
        |why: &str| wrong(format!("base_url of a provider of the kind {kind} {why}; give it as https://host/path"));
    let url = Url::parse(&base).map_err(|_| bad("cannot be read"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(bad("is no http or https address"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("holds credentials, which belong elsewhere"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("has a query or fragment"));
    }
    Ok(base.trim_end_matches('/').to_owned())
}

/// What every request carries: credentials, versions, and what the configuration adds.
fn headers(config: &ProviderConfig) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let mut set = |name: &str, value: &str, is_secret: bool| -> Result<()> {
        let kind = config.kind.name();
        let name = HeaderName::try_from(name).map_err(|_| {
            wrong(format!("'{name}' is no name of a header, in headers of a provider of the kind {kind}"))
        })?;
        let mut value = HeaderValue::from_str(value).map_err(|_| {
            wrong(format!("the value of {name} for a provider of the kind {kind} has bytes that no header may have"))
        })?;
        value.set_sensitive(is_secret);
        headers.insert(name, value);
        Ok(())
    };
    let key_header = match config.kind {
        Kind::Anthropic => "x-api-key",
        Kind::Azure => "api-key",
        Kind::Gemini => "x-goog-api-key",
        Kind::OpenAi | Kind::Compatible | Kind::Mistral | Kind::Bedrock => AUTHORIZATION.as_str(),
    };
    let bearer = |secret: &Secret| format!("Bearer {}", secret.expose());
    match &config.credentials {
        Credentials::ApiKey(secret) if key_header == AUTHORIZATION.as_str() => set(key_header, &bearer(secret), true)?,
        Credentials::ApiKey(secret) => set(key_header, secret.expose(), true)?,
        Credentials::Bearer(secret) => set(AUTHORIZATION.as_str(), &bearer(secret), true)?,
        Credentials::None | Credentials::Aws { .. } | Credentials::AwsRole(_) => {}
    }
    if config.kind == Kind::Anthropic {
        set("anthropic-version", config.api_version.as_deref().unwrap_or("2023-06-01"), false)?;
    }
    for (name, value) in &config.headers {
        set(name, value.expose(), true)?;
    }
    Ok(headers)
}
