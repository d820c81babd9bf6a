//! Connections to providers: kept, shared, and of the runtime that opened them.
//!
//! 1. Bytes go to the address that was asked for: no proxy of the environment is used, no redirect is followed, and no
//!    request is sent twice after a byte of it went out.
//! 2. Certificates are checked as the system does it.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{HeaderMap, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;
use sconce_vocabulary::error::{Error, Result};
use tokio::runtime::{Handle, Id};
use tower_service::Service;
use url::Url;

/// A connection that nobody uses is closed after this.
const IDLE: Duration = Duration::from_secs(60);
/// How often a silent connection is asked whether its other end is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;

type HyperClient = Client<Timed<HttpsConnector<HttpConnector>>, Full<Bytes>>;
type BoxError = Box<dyn StdError + Send + Sync>;

/// The answer to a request, once its head is there.
pub(crate) type Response = http::Response<Incoming>;

/// Connections of all providers. Providers with the same patience for connecting share them, within one runtime: a
/// connection is driven by the runtime that opened it, and another one would have to wake that for every byte.
#[derive(Default)]
pub struct HttpClient {
    tls: Arc<OnceLock<ClientConfig>>,
    clients: Mutex<HashMap<Duration, Clients>>,
}

/// One client a runtime, made when that has its first request.
#[derive(Clone)]
pub(crate) struct Clients(Arc<RuntimeClients>);

struct RuntimeClients {
    tls: Arc<OnceLock<ClientConfig>>,
    connect: Duration,
    made: RwLock<Vec<(Id, HyperClient)>>,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clients that connect within {:?}", self.0.connect)
    }
}

impl HttpClient {
    /// Connects to nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn clients(&self, connect: Duration) -> Clients {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || RuntimeClients { tls: Arc::clone(&self.tls), connect, made: RwLock::default() };
        clients.entry(connect).or_insert_with(|| Clients(Arc::new(fresh()))).clone()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// Nothing could be sent: the reason lies here.
    Unable(Error),
    Unreachable(String),
    UnreachableInTime,
    /// The connection broke before there was an answer.
    BrokenOff(String),
}

impl Clients {
    /// Sends a request and waits for the head of the answer, however long that takes.
    pub async fn send(&self, method: Method, url: &Url, headers: HeaderMap, body: Vec<u8>) -> Result<Response, Unsent> {
        let unable = |why: &dyn fmt::Display| Unsent::Unable(Error::internal(format!("cannot make a request: {why}")));
        let client = self.here().map_err(Unsent::Unable)?;
        let uri = Uri::try_from(url.as_str()).map_err(|why| unable(&why))?;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let own = HeaderValue::from_static(concat!("sconce/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().entry(USER_AGENT).or_insert(own);
        client.request(request).await.map_err(|why| Unsent::of(&why))
    }

    /// The one of the runtime that asks.
    fn here(&self) -> Result<HyperClient> {
        let here = Handle::current().id();
        let of = |made: &[(Id, HyperClient)]| made.iter().find(|(id, _)| *id == here).map(|(_, client)| client.clone());
        if let Some(client) = of(&self.0.made.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(client);
        }
        let client = self.0.make()?;
        let mut made = self.0.made.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = of(&made) {
            return Ok(other);
        }
        made.push((here, client.clone()));
        Ok(client)
    }
}

impl RuntimeClients {
    fn make(&self) -> Result<HyperClient> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.connect));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        let https = HttpsConnectorBuilder::new().with_tls_config(self.tls()?).https_or_http();
        let connector = Timed { inner: https.enable_all_versions().wrap_connector(tcp), limit: self.connect };
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Ok(client)
    }

    /// The roots of the system are read once.
    fn tls(&self) -> Result<ClientConfig> {
        if let Some(config) = self.tls.get() {
            return Ok(config.clone());
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_platform_verifier())
            .map_err(|why| Error::internal(format!("cannot set up TLS with the system's certificates: {why}")))?
            .with_no_client_auth();
        Ok(self.tls.get_or_init(|| config).clone())
    }
}

impl Unsent {
    fn of(why: &ClientError) -> Self {
        let mut is_late = false;
        let mut text = why.to_string();
        let mut source = why.source();
        while let Some(cause) = source {
            let io = cause.downcast_ref::<std::io::Error>();
            is_late |= cause.is::<Late>() || io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut);
            // The cause of the causes: what lies above it says only where it happened.
            text = cause.to_string();
            source = cause.source();
        }
        match (why.is_connect(), is_late) {
            (true, true) => Self::UnreachableInTime,
            (true, false) => Self::Unreachable(text),
            (false, _) => Self::BrokenOff(text),
        }
    }
}

/// A connector whose patience covers all of connecting: the name, the connection and TLS.
#[derive(Clone)]
struct Timed<C> {
    inner: C,
    limit: Duration,
}

#[derive(Debug)]
struct Late;

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connecting took too long")
    }
}

impl StdError for Late {}

impl<C> Service<Uri> for Timed<C>
where
    C: Service<Uri, Error = BoxError>,
    C::Future: Send + 'static,
    C::Response: 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<C::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(self.limit, self.inner.call(to));
        connecting.map(|connected| connected.unwrap_or_else(|_| Err(Late.into()))).boxed()
    }
}
