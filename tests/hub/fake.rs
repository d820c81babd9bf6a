//! A hub on loopback with a CDN on another port, that keeps a record of every request and misbehaves on demand.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use sconce::hub::{HubOptions, Patience, Progress};
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd";

/// What the next request for a file's bytes gets instead of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// So many bytes, then the connection is cut.
    Cut(usize),
    /// So many bytes, then nothing more.
    Stall(usize),
    Status(u16, Option<&'static str>),
    /// All bytes of the right number, one of them wrong.
    Wrong,
    /// The whole file with status 200, whatever range was asked for.
    NoRange,
    /// One byte too many, and no length to warn of it.
    TooLong,
}

#[derive(Debug, Clone)]
pub struct Seen {
    pub host: &'static str,
    pub method: Method,
    pub path: String,
    pub range: Option<String>,
    pub if_range: Option<String>,
    pub authorization: Option<String>,
}

#[derive(Clone)]
struct HubFile {
    content: Bytes,
    is_large: bool,
}

#[derive(Default)]
struct Inner {
    files: HashMap<String, HubFile>,
    faults: HashMap<String, VecDeque<Fault>>,
    /// Answers to questions about the repository itself.
    api_faults: VecDeque<(u16, Option<&'static str>)>,
    seen: Vec<Seen>,
    cdn: String,
}

#[derive(Clone)]
pub struct FakeHub {
    inner: Arc<Mutex<Inner>>,
    pub endpoint: String,
}

/// `length` bytes that differ from position to position.
pub fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl FakeHub {
    /// A hub with the repository `org/m`.
    pub async fn start() -> Self {
        let inner = Arc::new(Mutex::new(Inner::default()));
        let cdn = serve(axum::Router::new().fallback(cdn).with_state(inner.clone())).await;
        inner.lock().unwrap().cdn = cdn;
        let endpoint = serve(axum::Router::new().fallback(hub).with_state(inner.clone())).await;
        Self { inner, endpoint }
    }

    /// A small file, served by the hub itself under its git hash.
    pub fn small(&self, path: &str, content: impl Into<Vec<u8>>) -> &Self {
        self.put(path, content.into(), false)
    }

    /// A large file, served by the CDN and named by its SHA-256.
    pub fn large(&self, path: &str, content: impl Into<Vec<u8>>) -> &Self {
        self.put(path, content.into(), true)
    }

    fn put(&self, path: &str, content: Vec<u8>, is_large: bool) -> &Self {
        let file = HubFile { content: content.into(), is_large };
        self.inner.lock().unwrap().files.insert(path.to_owned(), file);
        self
    }

    pub fn fault(&self, path: &str, fault: Fault) -> &Self {
        self.inner.lock().unwrap().faults.entry(path.to_owned()).or_default().push_back(fault);
        self
    }

    pub fn api_fault(&self, status: u16, code: Option<&'static str>) -> &Self {
        self.inner.lock().unwrap().api_faults.push_back((status, code));
        self
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.inner.lock().unwrap().seen.clone()
    }

    /// The requests for bytes of a file, hub and CDN counted once.
    pub fn gets(&self, path: &str) -> Vec<Seen> {
        let is_wanted = |seen: &Seen| seen.method == Method::GET && seen.host == "hub" && seen.path.ends_with(path);
        self.seen().into_iter().filter(is_wanted).collect()
    }

    pub fn forget(&self) {
        self.inner.lock().unwrap().seen.clear();
    }

    /// Options that find this hub, with a cache of its own and no patience to speak of.
    pub fn options(&self, cache: &Path) -> HubOptions {
        let mut options = HubOptions::new(cache);
        options.endpoint = self.endpoint.clone();
        options.python = vec!["/none/python".into()];
        options.patience = Patience { connect_ms: 5_000, idle_ms: 20_000, tries: 3, backoff_ms: 1, backoff_ms_max: 20 };
        options
    }
}

async fn serve(router: axum::Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}

fn record(inner: &mut Inner, host: &'static str, method: &Method, path: &str, headers: &HeaderMap) {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    inner.seen.push(Seen {
        host,
        method: method.clone(),
        path: path.to_owned(),
        range: text(header::RANGE),
        if_range: text(header::IF_RANGE),
        authorization: text(header::AUTHORIZATION),
    });
}

async fn hub(State(inner): State<Arc<Mutex<Inner>>>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let inner = &mut *inner.lock().unwrap();
    record(inner, "hub", &method, uri.path(), &headers);
    if let Some(rest) = uri.path().strip_prefix("/api/models/org/m/revision/") {
        return api(inner, rest);
    }
    // A repository that was renamed: questions about the old name are sent on.
    if let Some(rest) = uri.path().strip_prefix("/org/old/") {
        return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, format!("/org/m/{rest}"))]).into_response();
    }
    if uri.path().starts_with("/api/models/org/old/") {
        return api(inner, "main");
    }
    let Some(path) = uri.path().strip_prefix(&format!("/org/m/resolve/{COMMIT}/")).map(str::to_owned) else {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RepoNotFound")]).into_response();
    };
    let Some(file) = inner.files.get(&path).cloned() else {
        return (StatusCode::NOT_FOUND, [("x-error-code", "EntryNotFound")]).into_response();
    };
    if method == Method::GET && !file.is_large {
        let etag = format!("\"{}\"", &sha256(&file.content)[..40]);
        let fault = inner.faults.get_mut(&path).and_then(VecDeque::pop_front);
        return content(&file.content, &etag, &headers, fault);
    }
    if method == Method::GET {
        return (StatusCode::FOUND, [(header::LOCATION, format!("{}/{path}?sign=secret", inner.cdn))]).into_response();
    }
    let hash = sha256(&file.content);
    let size = file.content.len().to_string();
    if file.is_large {
        let location = format!("{}/{path}?sign=secret", inner.cdn);
        let etag = format!("\"{hash}\"");
        let headers = [("x-linked-etag", etag), ("x-linked-size", size), ("location", location)];
        return (StatusCode::FOUND, headers).into_response();
    }
    let headers = [("etag", format!("\"{}\"", &hash[..40])), ("content-length", size)];
    (StatusCode::OK, headers).into_response()
}

fn api(inner: &mut Inner, revision: &str) -> Response {
    match inner.api_faults.pop_front() {
        Some((status, Some(code))) => {
            return (StatusCode::from_u16(status).unwrap(), [("x-error-code", code)]).into_response();
        }
        Some((status, None)) => return StatusCode::from_u16(status).unwrap().into_response(),
        None => {}
    }
    if revision != "main" && revision != COMMIT {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RevisionNotFound")]).into_response();
    }
    let siblings: Vec<_> = inner.files.keys().map(|path| serde_json::json!({ "rfilename": path })).collect();
    axum::Json(serde_json::json!({ "id": "org/m", "sha": COMMIT, "siblings": siblings })).into_response()
}

async fn cdn(State(inner): State<Arc<Mutex<Inner>>>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let inner = &mut *inner.lock().unwrap();
    record(inner, "cdn", &method, uri.path(), &headers);
    let path = uri.path().trim_start_matches('/').to_owned();
    let Some(file) = inner.files.get(&path).cloned() else { return StatusCode::NOT_FOUND.into_response() };
    let fault = inner.faults.get_mut(&path).and_then(VecDeque::pop_front);
    content(&file.content, "\"of-the-cdn\"", &headers, fault)
}

/// The bytes, or the range that was asked for, or what the fault makes of them.
fn content(content: &Bytes, etag: &str, headers: &HeaderMap, fault: Option<Fault>) -> Response {
    let asked = headers.get(header::RANGE).and_then(|range| range.to_str().unwrap().strip_prefix("bytes="));
    let start: Option<usize> = asked.and_then(|range| range.trim_end_matches('-').parse().ok());
    let is_same = headers.get(header::IF_RANGE).is_none_or(|condition| condition == etag);
    let start = start.filter(|_| is_same && fault != Some(Fault::NoRange));
    let total = content.len();
    if start.is_some_and(|start| start >= total) {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let rest = content.slice(start.unwrap_or(0)..);
    let length = rest.len();
    let builder = Response::builder().header(header::ETAG, etag);
    let builder = match start {
        Some(start) => builder
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{total}", total - 1)),
        None => builder,
    };
    let sized = |builder: axum::http::response::Builder, body| {
        builder.header(header::CONTENT_LENGTH, length).body(body).unwrap()
    };
    match fault {
        Some(Fault::Status(status, retry_after)) => {
            let builder = Response::builder().status(status);
            let builder = match retry_after {
                Some(seconds) => builder.header(header::RETRY_AFTER, seconds),
                None => builder,
            };
            builder.body(Body::empty()).unwrap()
        }
        Some(Fault::Cut(count)) => {
            let sent = stream::iter([Ok(rest.slice(..count.min(length)))]);
            // The pause lets the bytes leave before the connection is torn down.
            let cut = stream::once(async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(std::io::Error::other("cut"))
            });
            sized(builder, Body::from_stream(sent.chain(cut)))
        }
        Some(Fault::Stall(count)) => {
            let sent = stream::iter([Ok::<_, std::io::Error>(rest.slice(..count.min(length)))]);
            sized(builder, Body::from_stream(sent.chain(stream::pending())))
        }
        Some(Fault::Wrong) => {
            let mut wrong = rest.to_vec();
            wrong[length / 2] ^= 1;
            sized(builder, Body::from(wrong))
        }
        Some(Fault::TooLong) => {
            let parts = [Ok::<_, std::io::Error>(rest), Ok(Bytes::from_static(b"x"))];
            builder.body(Body::from_stream(stream::iter(parts))).unwrap()
        }
        Some(Fault::NoRange) | None => sized(builder, Body::from(rest)),
    }
}

/// Keeps what a download told.
#[derive(Default)]
pub struct Record {
    pub started: Mutex<Vec<(String, u64, Option<u64>)>>,
    pub finished: Mutex<Vec<String>>,
    pub notes: Mutex<Vec<String>>,
    /// Woken by every `advanced`.
    pub advanced: tokio::sync::Notify,
}

impl Record {
    pub fn notes(&self) -> String {
        self.notes.lock().unwrap().join("\n")
    }

    pub fn started(&self) -> Vec<(String, u64, Option<u64>)> {
        self.started.lock().unwrap().clone()
    }
}

impl Progress for Record {
    fn started(&self, file: &str, bytes_done: u64, bytes_total: Option<u64>) {
        self.started.lock().unwrap().push((file.to_owned(), bytes_done, bytes_total));
    }

    fn advanced(&self, _file: &str, _bytes_done: u64) {
        self.advanced.notify_one();
    }

    fn finished(&self, file: &str) {
        self.finished.lock().unwrap().push(file.to_owned());
    }

    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.to_owned());
    }
}

/// Paths of all files and links below a folder, relative to it, sorted.
pub fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}
