//! What a proxy adds: a canned upstream, and a load of small requests on kept connections to it or to what stands before it.
//!
//! usage: hop upstream ADDRESS
//!        hop load URL CONNECTIONS SECONDS [RATE] [stream] [NAME:VALUE ...]
//!
//! `upstream` answers every POST at once with the same short chat completion: as events where the request asks for them,
//! as one document otherwise. `load` sends one request after the other on each connection, or RATE a second over all of
//! them, each from a thread of its own that sleeps between, with the headers that are given; it prints one JSON line with times in milliseconds. What a
//! proxy adds is the difference between two loads in the same minute, at the proxy and at the upstream.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use sconce_bench::stats;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DOCUMENT: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Paris is the capital of France."},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":24,"completion_tokens":7,"total_tokens":31}}"#;
const PIECES: [&str; 4] = ["Paris is ", "the capital ", "of ", "France."];
/// Requests before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["upstream", address] => upstream(address),
        ["load", url, connections, seconds, more @ ..] => {
            let number = |text: &str| text.parse::<u64>().expect("a number");
            let load = Load {
                address: address(url),
                request: request(url, more.contains(&"stream"), &headers(more)),
                connections: number(connections),
                seconds: Duration::from_secs(number(seconds)),
            };
            let rate = more.iter().find(|word| **word != "stream" && !word.contains(':')).map(|rate| number(rate));
            println!("{}", rate.map_or_else(|| load.flat_out(), |rate| load.at(rate)));
        }
        _ => {
            eprintln!("usage: hop upstream ADDRESS | hop load URL CONNECTIONS SECONDS [RATE] [stream] [NAME:VALUE ...]")
        }
    }
}

fn address(url: &str) -> SocketAddr {
    let host = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
    host.to_socket_addrs().expect("an address").next().expect("one at least")
}

fn headers(words: &[&str]) -> String {
    words.iter().filter(|word| word.contains(':')).map(|header| format!("{header}\r\n")).collect()
}

fn request(url: &str, stream: bool, headers: &str) -> Vec<u8> {
    let body = json!({
        "model": "r", "stream": stream, "max_tokens": 64, "temperature": 0.2,
        "messages": [
            {"role": "system", "content": "You answer in one sentence."},
            {"role": "user", "content": "What is the capital of France, and why is it where it is?"},
        ],
    })
    .to_string();
    let host = address(url);
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{headers}\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Where a message ends that begins with this, once its head is there.
fn end(message: &[u8]) -> Option<usize> {
    let head = message.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&message[..head]).ok()?.to_ascii_lowercase();
    if text.contains("transfer-encoding: chunked") {
        let last = message.windows(5).rposition(|five| five == b"0\r\n\r\n")?;
        return Some(last + 5);
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let end = head + length.unwrap_or(0);
    (message.len() >= end).then_some(end)
}

fn events() -> Vec<u8> {
    let piece = |delta: serde_json::Value, finish: serde_json::Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        let event = json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m",
            "choices": [choice],
        });
        format!("data: {event}\n\n")
    };
    let mut text = piece(json!({"role": "assistant", "content": ""}), json!(null));
    for words in PIECES {
        text += &piece(json!({"content": words}), json!(null));
    }
    text += &piece(json!({}), json!("stop"));
    let usage = json!({"prompt_tokens": 24, "completion_tokens": 7, "total_tokens": 31});
    let last = json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m", "choices": [],
        "usage": usage,
    });
    text += &format!("data: {last}\n\ndata: [DONE]\n\n");
    let length = text.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{text}\r\n\
         0\r\n\r\n"
    )
    .into_bytes()
}

fn upstream(address: &str) {
    let length = DOCUMENT.len();
    let document =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{DOCUMENT}");
    let answers: &'static (Vec<u8>, Vec<u8>) = Box::leak(Box::new((document.into_bytes(), events())));
    runtime().block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await.expect("a free port");
        eprintln!("listening on {}", listener.local_addr().expect("bound"));
        loop {
            let (mut connection, _) = listener.accept().await.expect("a connection");
            connection.set_nodelay(true).expect("an option");
            tokio::spawn(async move {
                let mut buffer = Vec::with_capacity(4096);
                while matches!(connection.read_buf(&mut buffer).await, Ok(1..)) {
                    while let Some(end) = end(&buffer) {
                        let wants_events = buffer[..end].windows(13).any(|bytes| bytes == b"\"stream\":true");
                        buffer.drain(..end);
                        let answer = if wants_events { &answers.1 } else { &answers.0 };
                        if connection.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
}

struct Load {
    address: SocketAddr,
    request: Vec<u8>,
    connections: u64,
    seconds: Duration,
}

/// Whether it is a whole answer, and a good one.
fn is_good(answer: &[u8]) -> bool {
    answer.starts_with(b"HTTP/1.1 200") && answer.windows(6).any(|bytes| bytes == b"France")
}

impl Load {
    fn flat_out(&self) -> serde_json::Value {
        let measured = runtime().block_on(async {
            let started = Instant::now();
            let (from, until) = (started + WARM_UP, started + WARM_UP + self.seconds);
            let clients = (0..self.connections).map(|_| {
                let (address, request) = (self.address, self.request.clone());
                tokio::spawn(async move {
                    let mut connection = tokio::net::TcpStream::connect(address).await.expect("it listens");
                    connection.set_nodelay(true).expect("an option");
                    let (mut took, mut bad) = (Vec::new(), 0_u64);
                    let mut answer = Vec::with_capacity(8192);
                    while Instant::now() < until {
                        let sent = Instant::now();
                        connection.write_all(&request).await.expect("it is open");
                        answer.clear();
                        while end(&answer).is_none() {
                            assert_ne!(connection.read_buf(&mut answer).await.expect("it is open"), 0, "it was closed");
                        }
                        if sent >= from {
                            took.push(sent.elapsed().as_secs_f64() * 1000.0);
                            bad += u64::from(!is_good(&answer));
                        }
                    }
                    (took, bad)
                })
            });
            let mut all = Vec::new();
            for client in clients.collect::<Vec<_>>() {
                all.push(client.await.expect("no client panics"));
            }
            all
        });
        self.told(measured)
    }

    fn at(&self, rate: u64) -> serde_json::Value {
        let pause = Duration::from_secs_f64(self.connections as f64 / rate as f64);
        let started = Instant::now() + Duration::from_millis(50);
        let measured = std::thread::scope(|scope| {
            let clients = (0..self.connections).map(|number| {
                let first = started + pause.mul_f64(number as f64 / self.connections as f64);
                scope.spawn(move || self.paced(first, pause))
            });
            clients.collect::<Vec<_>>().into_iter().map(|client| client.join().expect("no client panics")).collect()
        });
        self.told(measured)
    }

    /// One connection's requests, each measured from its own sending: a late one delays no other.
    fn paced(&self, first: Instant, pause: Duration) -> (Vec<f64>, u64) {
        let mut connection = TcpStream::connect(self.address).expect("it listens");
        connection.set_nodelay(true).expect("an option");
        let (mut took, mut bad) = (Vec::new(), 0_u64);
        let (mut answer, mut piece) = (Vec::with_capacity(8192), [0; 8192]);
        let mut due = first;
        while due < first + WARM_UP + self.seconds {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let sent = Instant::now();
            connection.write_all(&self.request).expect("it is open");
            answer.clear();
            while end(&answer).is_none() {
                let length = connection.read(&mut piece).expect("it is open");
                assert_ne!(length, 0, "it was closed");
                answer.extend_from_slice(&piece[..length]);
            }
            if due >= first + WARM_UP {
                took.push(sent.elapsed().as_secs_f64() * 1000.0);
                bad += u64::from(!is_good(&answer));
            }
            due += pause;
        }
        (took, bad)
    }

    fn told(&self, measured: Vec<(Vec<f64>, u64)>) -> serde_json::Value {
        let bad: u64 = measured.iter().map(|(_, bad)| bad).sum();
        let mut took: Vec<f64> = measured.into_iter().flat_map(|(took, _)| took).collect();
        took.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| (stats::quantile(&took, share) * 1000.0).round() / 1000.0;
        json!({
            "requests": took.len(), "bad": bad,
            "per_s": (took.len() as f64 / self.seconds.as_secs_f64()).round(),
            "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "max_ms": at(1.0),
        })
    }
}
