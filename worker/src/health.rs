//! What a worker's port answers: nothing, garbage, not yet, or a list of models.
//!
//! Reads no more than a limit and waits no longer than one, whatever is at the other end.

use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What came of one look at the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Nobody listens.
    Closed,
    /// Somebody listens and says nothing.
    Silent,
    /// Somebody says what no engine says.
    Garbage(String),
    /// An engine says that it cannot serve.
    NotYet(String),
    Ready(Served),
}

/// What the worker says that it serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// The name to ask for.
    pub model: String,
    /// Longest prompt plus answer, where it says so.
    pub max_model_len: Option<u32>,
}

impl Check {
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready(_))
    }

    pub fn is_garbage(&self) -> bool {
        matches!(self, Self::Garbage(_))
    }

    /// Whether somebody listens.
    pub fn is_answer(&self) -> bool {
        !matches!(self, Self::Closed)
    }

    /// For people.
    pub fn note(&self) -> Option<String> {
        match self {
            Self::Closed => Some("its port is closed".to_owned()),
            Self::Silent => Some("its port does not answer".to_owned()),
            Self::Garbage(what) | Self::NotYet(what) => Some(what.clone()),
            Self::Ready(_) => None,
        }
    }
}

/// Looks whether the worker on this port of this machine can serve `model`.
pub async fn check(port: u16, model: &str) -> Check {
    match get(port, "/health").await {
        Answer::Whole { status: 200..300, .. } => {}
        // Engines without such a page.
        Answer::Whole { status: 404 | 405 | 501, .. } => {}
        Answer::Whole { status, .. } => return Check::NotYet(format!("/health answers {status}")),
        Answer::None(check) => return check,
    }
    match get(port, "/v1/models").await {
        Answer::Whole { status: 200, body } => served(&body, model),
        Answer::Whole { status: status @ (401 | 403), .. } => {
            Check::NotYet(format!("/v1/models answers {status}: start it without an API key, it listens on 127.0.0.1"))
        }
        Answer::Whole { status, .. } => Check::NotYet(format!("/v1/models answers {status}")),
        Answer::None(check) => check,
    }
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    max_model_len: Option<u32>,
}

/// The wanted model where it is listed, or the only one under whatever name.
fn served(body: &[u8], wanted: &str) -> Check {
    let Ok(Models { data }) = serde_json::from_slice::<Models>(body) else {
        return Check::Garbage("/v1/models is no list of models".to_owned());
    };
    let named = data.iter().find(|listed| listed.id == wanted);
    let found = match (named, data.as_slice()) {
        (Some(named), _) => Some(named),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    match found {
        Some(found) => Check::Ready(Served { model: found.id.clone(), max_model_len: found.max_model_len }),
        None if data.is_empty() => Check::NotYet("/v1/models lists no model yet".to_owned()),
        None => {
            let names: Vec<&str> = data.iter().map(|listed| listed.id.as_str()).take(5).collect();
            Check::NotYet(format!("it serves {}, and not '{wanted}'", names.join(", ")))
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Whole { status: u16, body: Vec<u8> },
    None(Check),
}

async fn get(port: u16, path: &str) -> Answer {
    match timeout(ANSWER_MAX, asked(port, path)).await {
        Ok(answer) => answer,
        Err(_) => Answer::None(Check::Silent),
    }
}

async fn asked(port: u16, path: &str) -> Answer {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return Answer::None(Check::Closed) };
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    let mut bytes = Vec::new();
    let mut piece = vec![0; 16 << 10];
    // Who sends before it was asked may close before it reads.
    let _ = stream.write_all(request.as_bytes()).await;
    loop {
        let read = stream.read(&mut piece).await.unwrap_or(0);
        bytes.extend_from_slice(&piece[..read]);
        match parsed(&bytes, read == 0) {
            Parsed::More if bytes.len() > ANSWER_BYTES_MAX => {
                return Answer::None(Check::Garbage(format!("{path} answers without end")));
            }
            Parsed::More => {}
            Parsed::Nothing => return Answer::None(Check::Garbage(format!("{path} is answered with nothing"))),
            Parsed::Garbage => {
                return Answer::None(Check::Garbage(format!("{path} is answered with {}", shown(&bytes))));
            }
            Parsed::Whole { status, body } => return Answer::Whole { status, body },
        }
    }
}

/// The beginning of what is no answer.
fn shown(bytes: &[u8]) -> String {
    let text: String =
        bytes.iter().take(40).flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect();
    format!("'{text}'")
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    More,
    Nothing,
    Garbage,
    Whole { status: u16, body: Vec<u8> },
}

/// A response of HTTP/1, as far as it has come.
fn parsed(bytes: &[u8], is_end: bool) -> Parsed {
    const START: &[u8] = b"HTTP/1.";
    if bytes.is_empty() {
        return if is_end { Parsed::Nothing } else { Parsed::More };
    }
    let shown = bytes.len().min(START.len());
    if bytes[..shown] != START[..shown] {
        return Parsed::Garbage;
    }
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if is_end { Parsed::Garbage } else { Parsed::More };
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let status = head.get(9..12).and_then(|digits| digits.parse::<u16>().ok());
    let Some(status) = status.filter(|status| (100..600).contains(status)) else { return Parsed::Garbage };
    let header = |name: &str| {
        head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
        })
    };
    let body = &bytes[end + 4..];
    if header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        return match (dechunked(body), is_end) {
            (Some(body), _) => Parsed::Whole { status, body },
            (None, false) => Parsed::More,
            (None, true) => Parsed::Garbage,
        };
    }
    match header("content-length").map(|value| value.parse::<usize>()) {
        Some(Err(_)) => Parsed::Garbage,
        Some(Ok(length)) if body.len() >= length => Parsed::Whole { status, body: body[..length].to_vec() },
        Some(Ok(_)) if is_end => Parsed::Garbage,
        None if is_end || status == 204 => Parsed::Whole { status, body: body.to_vec() },
        _ => Parsed::More,
    }
}

/// The body in chunks as one piece, when all of it is there.
fn dechunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let digits = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let length = usize::from_str_radix(digits, 16).ok()?;
        if length == 0 {
            return Some(whole);
        }
        let after = end.checked_add(2)?.checked_add(length)?;
        whole.extend_from_slice(rest.get(end + 2..after)?);
        rest = rest.get(after.checked_add(2)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_garbage() {
        let whole = |status, body: &str| Parsed::Whole { status, body: body.as_bytes().to_vec() };
        for (bytes, is_end, meant) in [
            ("", false, Parsed::More),
            ("", true, Parsed::Nothing),
            ("HTT", false, Parsed::More),
            ("SSH-2.0-x\r\n", false, Parsed::Garbage),
            ("\0\0\0\0", false, Parsed::Garbage),
            ("HTTP/1.1 200 OK\r\n", false, Parsed::More),
            ("HTTP/1.1 200 OK\r\n", true, Parsed::Garbage),
            ("HTTP/1.1 abc OK\r\n\r\n", false, Parsed::Garbage),
            ("HTTP/1.1 200 OK\r\n\r\nab", false, Parsed::More),
            ("HTTP/1.1 200 OK\r\n\r\nab", true, whole(200, "ab")),
            ("HTTP/1.0 503 No\r\nContent-Length: 2\r\n\r\nabc", false, whole(503, "ab")),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", false, Parsed::More),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", true, Parsed::Garbage),
            ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nab", true, Parsed::Garbage),
            ("HTTP/1.1 204 None\r\n\r\n", false, whole(204, "")),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n", false, Parsed::More),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n",
                false,
                whole(200, "abc"),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab", true, Parsed::Garbage),
        ] {
            assert_eq!(parsed(bytes.as_bytes(), is_end), meant, "{bytes:?} {is_end}");
        }
    }

    #[test]
    fn a_worker_serves_what_it_lists() {
        let ready = |model: &str, max_model_len| Check::Ready(Served { model: model.into(), max_model_len });
        for (body, meant) in [
            (r#"{"data": [{"id": "a"}, {"id": "m", "max_model_len": 8}]}"#, ready("m", Some(8))),
            (r#"{"data": [{"id": "/path/of/m.gguf"}]}"#, ready("/path/of/m.gguf", None)),
            (r#"{"data": []}"#, Check::NotYet("/v1/models lists no model yet".into())),
            (r#"{"data": [{"id": "a"}, {"id": "b"}]}"#, Check::NotYet("it serves a, b, and not 'm'".into())),
            ("<html>", Check::Garbage("/v1/models is no list of models".into())),
        ] {
            assert_eq!(served(body.as_bytes(), "m"), meant, "{body}");
        }
    }
}
