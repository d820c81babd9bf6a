//! Credentials of a role that AWS hands out: to an instance, to a container, or for a token of somebody who vouches.
//!
//! 1. They are fetched when they are first needed and again some time before they expire, by one request at a time: the
//!    others go on with those that are still good, or wait.
//! 2. A fetch that fails is not repeated at once, and costs nobody anything while the old ones are good.
//! 3. Only the configured address is asked, redirects are not followed, and no part of a key gets into a message.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use sconce_vocabulary::calendar::parse_rfc3339;
use sconce_vocabulary::error::{Error, ErrorKind, Result};
use serde_json::Value;
use tokio::sync::Mutex as Turn;
use url::Url;

use crate::connect::{Clients, Unsent};
use crate::secret::Secret;
use crate::transport::chunk;

/// Who hands the credentials out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleSource {
    /// The instance's metadata service, version 2.
    Instance { endpoint: String },
    /// What ECS and EKS give to containers. The token is sent along.
    Container { uri: String, token: Option<RoleToken> },
    /// STS, for a token.
    WebIdentity { endpoint: String, role_arn: String, session_name: String, token: RoleToken },
}

/// Reads a token, anew each time that it is needed: what is in its place changes.
#[derive(Clone)]
pub struct RoleToken {
    /// Where it is, for messages.
    place: String,
    read: Arc<dyn Fn() -> std::io::Result<String> + Send + Sync>,
}

impl RoleToken {
    pub fn new(place: impl Into<String>, read: impl Fn() -> std::io::Result<String> + Send + Sync + 'static) -> Self {
        Self { place: place.into(), read: Arc::new(read) }
    }
}

impl fmt::Debug for RoleToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

impl PartialEq for RoleToken {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for RoleToken {}

/// All of a fetch.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// No answer that is meant is longer.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// New ones are fetched so long before the old ones expire, or after half their time where that is later.
const AHEAD: Duration = Duration::from_secs(600);
/// After a failure nothing is fetched for so long: with keys that are still good, and without.
const PAUSE_WITH_KEYS: Duration = Duration::from_secs(30);
const PAUSE_WITHOUT: Duration = Duration::from_secs(1);

/// Keys for a while.
pub(crate) struct Lent {
    pub access_key_id: Secret,
    pub secret_access_key: Secret,
    pub session_token: Option<Secret>,
    /// From then on others are wanted.
    renew_at: SystemTime,
    expires_at: SystemTime,
}

impl Lent {
    pub fn secrets(&self) -> impl Iterator<Item = Secret> {
        [&self.access_key_id, &self.secret_access_key].into_iter().chain(&self.session_token).cloned()
    }
}

pub(crate) struct Role {
    source: RoleSource,
    clients: Clients,
    state: Mutex<State>,
    /// Who holds it fetches.
    turn: Turn<()>,
}

#[derive(Default)]
struct State {
    lent: Option<Arc<Lent>>,
    failed: Option<(Instant, Error)>,
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.source)
    }
}

impl Role {
    /// Checks the address.
    pub fn new(source: RoleSource, clients: Clients) -> Result<Self> {
        let (RoleSource::Instance { endpoint: address }
        | RoleSource::Container { uri: address, .. }
        | RoleSource::WebIdentity { endpoint: address, .. }) = &source;
        let url = checked(address)?;
        if matches!(source, RoleSource::Container { .. }) && url.scheme() == "http" && !is_beside_us(&url) {
            let message = format!(
                "the container's credentials would go over plain HTTP to {}; only https, this machine and the addresses of \
                 ECS and EKS are asked",
                url.host_str().unwrap_or_default()
            );
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        Ok(Self { source, clients, state: Mutex::default(), turn: Turn::default() })
    }

    /// Keys that are good now.
    pub async fn keys(&self) -> Result<Arc<Lent>> {
        let good = match self.known()? {
            Known::Fresh(lent) => return Ok(lent),
            Known::Ageing(lent) => Some(lent),
            Known::Nothing => None,
        };
        let _turn = match (self.turn.try_lock(), good) {
            (Ok(turn), _) => turn,
            (Err(_), Some(lent)) => return Ok(lent),
            (Err(_), None) => self.turn.lock().await,
        };
        // Whoever had the turn before may have fetched them.
        let good = match self.known()? {
            Known::Fresh(lent) => return Ok(lent),
            Known::Ageing(lent) => Some(lent),
            Known::Nothing => None,
        };
        let fetched = tokio::time::timeout(FETCH_MAX, self.fetch()).await;
        let fetched = fetched.unwrap_or_else(|_| Err(self.failed("no answer in five seconds")));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match fetched {
            Ok(lent) => {
                let lent = Arc::new(lent);
                *state = State { lent: Some(Arc::clone(&lent)), failed: None };
                Ok(lent)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                good.ok_or(error)
            }
        }
    }

    fn known(&self) -> Result<Known> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        let lent = state.lent.as_ref().filter(|lent| now < lent.expires_at);
        let failed = state
            .failed
            .as_ref()
            .filter(|(at, _)| at.elapsed() < if lent.is_some() { PAUSE_WITH_KEYS } else { PAUSE_WITHOUT });
        match (lent, failed) {
            (Some(lent), _) if now < lent.renew_at => Ok(Known::Fresh(Arc::clone(lent))),
            (Some(lent), Some(_)) => Ok(Known::Fresh(Arc::clone(lent))),
            (Some(lent), None) => Ok(Known::Ageing(Arc::clone(lent))),
            (None, Some((_, error))) => Err(error.clone()),
            (None, None) => Ok(Known::Nothing),
        }
    }

    async fn fetch(&self) -> Result<Lent> {
        match &self.source {
            RoleSource::Instance { endpoint } => self.of_instance(endpoint.trim_end_matches('/')).await,
            RoleSource::Container { uri, token } => {
                let mut headers = HeaderMap::new();
                if let Some(token) = token {
                    self.set(&mut headers, "authorization", &self.read(token)?)?;
                }
                self.read_json(&self.asked(Method::GET, uri, headers, String::new()).await?)
            }
            RoleSource::WebIdentity { endpoint, role_arn, session_name, token } => {
                let token = self.read(token)?;
                let form = [
                    ("Action", "AssumeRoleWithWebIdentity"),
                    ("Version", "2011-06-15"),
                    ("RoleArn", role_arn),
                    ("RoleSessionName", session_name),
                    ("WebIdentityToken", &token),
                ];
                let form = form.map(|(name, value)| format!("{name}={}", crate::provider::encoded(value))).join("&");
                let mut headers = HeaderMap::new();
                self.set(&mut headers, "content-type", "application/x-www-form-urlencoded; charset=utf-8")?;
                self.read_xml(&self.asked(Method::POST, endpoint, headers, form).await?)
            }
        }
    }

    /// A session token first: a service that only knows the old way of asking is not asked.
    async fn of_instance(&self, endpoint: &str) -> Result<Lent> {
        let mut headers = HeaderMap::new();
        self.set(&mut headers, "x-aws-ec2-metadata-token-ttl-seconds", "300")?;
        let token = self.asked(Method::PUT, &format!("{endpoint}/latest/api/token"), headers, String::new()).await?;
        let mut headers = HeaderMap::new();
        self.set(&mut headers, "x-aws-ec2-metadata-token", token.trim())?;
        let list = format!("{endpoint}/latest/meta-data/iam/security-credentials/");
        let roles = self.asked(Method::GET, &list, headers.clone(), String::new()).await?;
        let Some(role) = roles.lines().map(str::trim).find(|role| !role.is_empty()) else {
            return Err(self.failed("the instance has no role; attach an instance profile"));
        };
        let path = format!("{list}{}", crate::provider::encoded(role));
        self.read_json(&self.asked(Method::GET, &path, headers, String::new()).await?)
    }

    async fn asked(&self, method: Method, address: &str, headers: HeaderMap, body: String) -> Result<String> {
        let unreachable = |why: &dyn fmt::Display| self.failed(&format!("it cannot be reached: {why}"));
        // What the transport says may hold addresses, never keys: those are in headers and bodies.
        let response = self.clients.send(method, &checked(address)?, headers, body.into_bytes()).await;
        let response = response.map_err(|why| match why {
            Unsent::Unable(error) => error,
            Unsent::UnreachableInTime => unreachable(&"connecting took too long"),
            Unsent::Unreachable(why) | Unsent::BrokenOff(why) => unreachable(&why),
        })?;
        let (head, mut incoming) = response.into_parts();
        let status = head.status;
        let mut text = Vec::new();
        while let Some(piece) = chunk(&mut incoming).await.map_err(|why| unreachable(&why))? {
            text.extend_from_slice(&piece);
            if text.len() > ANSWER_BYTES_MAX {
                return Err(self.failed("its answer does not end"));
            }
        }
        if !status.is_success() {
            return Err(self.failed(&format!("it answered {}", status.as_u16())));
        }
        String::from_utf8(text).map_err(|_| self.failed("its answer is not UTF-8"))
    }

    fn read_json(&self, text: &str) -> Result<Lent> {
        let wrong = || self.failed("its answer has no credentials");
        let answer: Value = serde_json::from_str(text).map_err(|_| wrong())?;
        if let Some(code) = answer["Code"].as_str().filter(|code| *code != "Success") {
            return Err(self.failed(&format!("it answered {}", code.chars().take(80).collect::<String>())));
        }
        let part = |name: &str| answer[name].as_str();
        self.lent(part("AccessKeyId"), part("SecretAccessKey"), part("Token"), part("Expiration"))
    }

    fn read_xml(&self, text: &str) -> Result<Lent> {
        // Keys, tokens and dates have no character that XML would write otherwise.
        let part = |name: &str| {
            let (_, after) = text.split_once(&format!("<{name}>"))?;
            after.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
        };
        self.lent(part("AccessKeyId"), part("SecretAccessKey"), part("SessionToken"), part("Expiration"))
    }

    fn lent(&self, id: Option<&str>, key: Option<&str>, token: Option<&str>, expires: Option<&str>) -> Result<Lent> {
        let whole = id
            .zip(key)
            .zip(expires.and_then(parse_rfc3339))
            .filter(|((id, key), _)| !id.trim().is_empty() && !key.trim().is_empty());
        let Some(((id, key), expires_s)) = whole else {
            return Err(self.failed("its answer has no credentials with an expiration"));
        };
        let (now, expires_at) = (SystemTime::now(), UNIX_EPOCH + Duration::from_secs(expires_s));
        let Ok(left) = expires_at.duration_since(now) else {
            return Err(self.failed("its credentials have expired already; check this machine's clock"));
        };
        Ok(Lent {
            access_key_id: Secret::new(id),
            secret_access_key: Secret::new(key),
            session_token: token.map(Secret::new),
            renew_at: now + left.saturating_sub(AHEAD).max(left / 2),
            expires_at,
        })
    }

    fn read(&self, token: &RoleToken) -> Result<String> {
        let text = (token.read)();
        let text = text.map_err(|why| self.failed(&format!("its token in {} cannot be read: {why}", token.place)))?;
        Ok(text.trim().to_owned())
    }

    fn set(&self, headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<()> {
        let mut value = HeaderValue::from_str(value).map_err(|_| self.failed("its token is no header's value"))?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(name), value);
        Ok(())
    }

    /// Another member may do better; a moment later this one may, too.
    fn failed(&self, what: &str) -> Error {
        let who = match &self.source {
            RoleSource::Instance { endpoint } => format!("the instance's metadata service ({endpoint})"),
            RoleSource::Container { uri, .. } => format!("the container's credentials ({uri})"),
            RoleSource::WebIdentity { endpoint, .. } => format!("STS ({endpoint})"),
        };
        Error::new(ErrorKind::Unavailable, format!("no keys of the AWS role from {who}: {what}"))
            .with_code("upstream_role")
    }
}

enum Known {
    Fresh(Arc<Lent>),
    /// Good, but others are wanted.
    Ageing(Arc<Lent>),
    Nothing,
}

fn checked(address: &str) -> Result<Url> {
    let wrong = || {
        let message = "the address of the AWS role's credentials is no http or https address; check the environment";
        Error::new(ErrorKind::InvalidRequest, message)
    };
    let url = Url::parse(address).map_err(|_| wrong())?;
    let is_plain = url.username().is_empty() && url.password().is_none();
    if is_plain && matches!(url.scheme(), "http" | "https") && url.has_host() { Ok(url) } else { Err(wrong()) }
}

/// This machine, and the two link-local addresses at which ECS and EKS answer.
fn is_beside_us(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback || matches!(host, "localhost" | "169.254.170.2" | "169.254.170.23" | "fd00:ec2::23")
}
