//! HTTP to one provider: no redirects, no proxies that nobody configured, three patiences and a deadline.

use std::collections::HashMap;
use std::error::Error as _;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, Proxy, Response, Url, redirect};
use sconce_vocabulary::error::{Error, ErrorKind, Result};
use tokio::time::{Instant, timeout_at};

use crate::config::Timeouts;
use crate::failure::Party;

/// Connections of all providers. Clients with the same patience for connecting share them.
#[derive(Default)]
pub struct HttpClient {
    proxy: Option<Proxy>,
    clients: Mutex<HashMap<Duration, Client>>,
}

impl fmt::Debug for HttpClient {
    /// A proxy's address may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}

impl HttpClient {
    /// Goes straight to the providers, whatever proxies the environment names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes through this proxy, `http://host:port`.
    pub fn through(proxy: &str) -> Result<Self> {
        let proxy = Proxy::all(proxy).map_err(|_| {
            Error::new(ErrorKind::InvalidRequest, "the proxy's address cannot be read; give it as http://host:port")
        })?;
        Ok(Self { proxy: Some(proxy), clients: Mutex::default() })
    }

    pub(crate) fn client(&self, connect: Duration) -> Result<Client> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&connect) {
            return Ok(client.clone());
        }
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(connect)
            .pool_idle_timeout(Duration::from_secs(60))
            .tcp_nodelay(true)
            .user_agent(concat!("sconce/", env!("CARGO_PKG_VERSION")))
            .no_proxy();
        if let Some(proxy) = &self.proxy {
            builder = builder.proxy(proxy.clone());
        }
        let client = builder.build().map_err(|why| Error::internal(format!("cannot set up an HTTP client: {why}")))?;
        clients.insert(connect, client.clone());
        Ok(client)
    }
}

/// A request, ready to be sent.
#[derive(Debug)]
pub(crate) struct Call {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// When to give up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    timeouts: Timeouts,
    /// When the first byte is overdue.
    first_byte: Instant,
    deadline: Instant,
}

impl Patience {
    pub fn new(timeouts: Timeouts, deadline: Instant) -> Self {
        let now = Instant::now();
        Self { timeouts, first_byte: now.checked_add(timeouts.first_byte).unwrap_or(deadline), deadline }
    }

    /// Until when, and the error when it is then.
    fn until(&self, had_byte: bool, party: &Party) -> (Instant, Error) {
        let idle = Instant::now().checked_add(self.timeouts.idle).unwrap_or(self.deadline);
        let (at, limit, what, code) = match had_byte {
            false => (self.first_byte, self.timeouts.first_byte, "sent no byte of an answer in", "first_byte_timeout"),
            true => (idle, self.timeouts.idle, "fell silent in its answer for", "idle_timeout"),
        };
        if self.deadline <= at {
            let message = format!("{} did not finish before the request's deadline", party.name());
            return (self.deadline, Error::new(ErrorKind::Timeout, message).with_code("request_timeout"));
        }
        let message = format!("{} {what} {} s", party.name(), limit.as_secs_f32());
        (at, Error::new(ErrorKind::Timeout, message).with_code(code))
    }
}

/// The answer to a call, once its head is there.
pub(crate) async fn send(client: &Client, call: Call, party: &Party, patience: Patience) -> Result<Response> {
    let request = client.request(call.method, call.url).headers(call.headers).body(call.body).build();
    let request = request.map_err(|why| Error::internal(format!("cannot make a request: {}", deepest(&why))))?;
    let (at, overdue) = patience.until(false, party);
    match timeout_at(at, client.execute(request)).await {
        Err(_) => Err(overdue),
        Ok(Ok(response)) => Ok(response),
        Ok(Err(why)) => Err(not_sent(&why, party)),
    }
}

fn not_sent(why: &reqwest::Error, party: &Party) -> Error {
    let (name, cause) = (party.name(), party.words(&deepest(why)));
    match (why.is_connect(), why.is_timeout()) {
        (true, true) => Error::new(ErrorKind::Unavailable, format!("{name} could not be reached in time"))
            .with_code("connect_timeout"),
        (true, false) => Error::new(ErrorKind::Unavailable, format!("{name} could not be reached: {cause}"))
            .with_code("connect_failed"),
        _ => party
            .upstream(format!("closed the connection before it answered: {cause}"))
            .with_code("upstream_broken_off"),
    }
}

/// The cause of the causes: what lies above it says only where it happened.
fn deepest(why: &reqwest::Error) -> String {
    let mut text = why.to_string();
    let mut source = why.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    text
}

/// The bytes of an answer, under the same patience.
pub(crate) struct Body {
    response: Response,
    party: Party,
    patience: Patience,
    had_byte: bool,
}

impl Body {
    pub fn new(response: Response, party: Party, patience: Patience) -> Self {
        Self { response, party, patience, had_byte: false }
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let (at, overdue) = self.patience.until(self.had_byte, &self.party);
        match timeout_at(at, self.response.chunk()).await {
            Err(_) => Err(overdue),
            Ok(Ok(piece)) => {
                self.had_byte = true;
                Ok(piece)
            }
            Ok(Err(_)) => Err(self.party.broken_off()),
        }
    }

    /// Reads what is left of an answer that has said its last word, so that its connection is good for the next request.
    /// Mostly the end has come with the word; otherwise a task waits for it, but not for long.
    pub fn drain(mut self) {
        let end = self.response.chunk().now_or_never();
        if !matches!(end, Some(Ok(None) | Err(_))) {
            tokio::spawn(self.drained());
        }
    }

    async fn drained(mut self) {
        const DRAIN: Duration = Duration::from_secs(1);
        let until = Instant::now() + DRAIN;
        while let Ok(Ok(Some(_))) = timeout_at(until, self.response.chunk()).await {}
    }

    /// Everything, but no more than `bytes_max`.
    pub async fn whole(mut self, bytes_max: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            if all.len() + piece.len() > bytes_max {
                return Err(self.party.garbled("an answer that does not end"));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}

/// Of an error's body this much is read.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Nobody waits long for an explanation.
const ERROR_WAIT: Duration = Duration::from_secs(5);

/// The response if it is a success, otherwise what its status and body mean.
pub(crate) async fn accepted(response: Response, party: &Party, patience: Patience) -> Result<Response> {
    let status = response.status().as_u16();
    if (200..300).contains(&status) {
        return Ok(response);
    }
    let headers = response.headers().clone();
    let short = patience.deadline.min(Instant::now() + ERROR_WAIT);
    let mut body = Body::new(response, party.clone(), Patience { first_byte: short, deadline: short, ..patience });
    let mut said = Vec::new();
    while let Ok(Some(piece)) = body.next().await {
        said.extend_from_slice(&piece);
        if said.len() > ERROR_BYTES_MAX {
            break;
        }
    }
    Err(party.refused(status, &headers, &said))
}
