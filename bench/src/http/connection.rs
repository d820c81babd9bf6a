// performance-critical: no allocation per token, no lock, no log, no format
//! A connection: sends a request, reads the head of the answer, then hands out its body with the time of each read.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::body::{Body, Framing};
use super::endpoint::{Endpoint, Security};
use super::stamped::{Stamp, StampedStream};

/// Many events of a stream; thousands of connections have it each.
const READ_BYTES: usize = 4 * 1024;
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 100;

/// Why there was no whole answer, as far as HTTP knows.
#[derive(Debug)]
pub enum Fault {
    Connect(io::Error),
    /// The connection broke, or ended before the answer did. `unanswered`: not one byte had come.
    Broken {
        why: io::Error,
        unanswered: bool,
    },
    /// What came is not HTTP.
    Protocol(&'static str),
}

enum Stream {
    Plain(StampedStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::client::TlsStream<StampedStream>>),
}

/// Of an answer.
pub struct Head {
    pub status: u16,
    pub body: Body,
}

pub struct Connection {
    stream: Stream,
    /// Bytes that were read stand from `from` to `to`; all of it is initialised, so that reads need not do it.
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    /// An answer was read to its end before: the server may have closed it since.
    pub reused: bool,
}

impl Connection {
    /// Connects; `request` goes out with the connection as far as it can. How many of its bytes did.
    pub async fn open(endpoint: &Endpoint, request: &[u8]) -> Result<(Self, usize), Fault> {
        let first = if endpoint.is_secure() { &[] } else { request };
        let mut last = io::Error::other("no address");
        for address in &endpoint.addresses {
            match StampedStream::connect(*address, first).await {
                Ok((stream, sent)) => return Ok((Self::over(stream, endpoint).await?, sent)),
                Err(why) => last = why,
            }
        }
        Err(Fault::Connect(last))
    }

    async fn over(stream: StampedStream, endpoint: &Endpoint) -> Result<Self, Fault> {
        let stream = match &endpoint.security {
            Security::None => Stream::Plain(stream),
            #[cfg(feature = "tls")]
            Security::Tls { connector, name } => {
                Stream::Tls(Box::new(connector.connect(name.clone(), stream).await.map_err(Fault::Connect)?))
            }
        };
        Ok(Self { stream, buffer: vec![0; READ_BYTES], from: 0, to: 0, reused: false })
    }

    /// Of the latest bytes.
    pub fn stamp(&self) -> Stamp {
        match &self.stream {
            Stream::Plain(stream) => stream.stamp,
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.get_ref().0.stamp,
        }
    }

    /// Sends a whole request.
    pub async fn send(&mut self, request: &[u8]) -> Result<(), Fault> {
        let sent = match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(request).await,
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => match stream.write_all(request).await {
                Ok(()) => stream.flush().await,
                Err(why) => Err(why),
            },
        };
        sent.map_err(|why| Fault::Broken { why, unanswered: true })
    }

    /// Reads up to the body.
    pub async fn head(&mut self) -> Result<Head, Fault> {
        let mut unanswered = true;
        loop {
            if self.from < self.to {
                unanswered = false;
                if let Some((used, head)) = parse_head(&self.buffer[self.from..self.to])? {
                    self.from += used;
                    // 1xx says nothing yet.
                    if head.status >= 200 {
                        return Ok(head);
                    }
                    continue;
                }
                if self.to - self.from > HEAD_BYTES_MAX {
                    return Err(Fault::Protocol("the head of the answer is over 64 KiB"));
                }
            }
            if self.fill().await.map_err(|why| Fault::Broken { why, unanswered })? == 0 {
                return Err(Fault::Broken { why: io::ErrorKind::UnexpectedEof.into(), unanswered });
            }
        }
    }

    /// Appends the next bytes of the body to `out`; false when there are no more.
    pub async fn next(&mut self, body: &mut Body, out: &mut Vec<u8>) -> Result<bool, Fault> {
        let before = out.len();
        loop {
            let used = body.decode(&self.buffer[self.from..self.to], out).map_err(Fault::Protocol)?;
            self.from += used;
            if out.len() > before || body.is_done() {
                return Ok(out.len() > before);
            }
            if self.fill().await.map_err(|why| Fault::Broken { why, unanswered: false })? == 0 {
                return match body.end_of_connection() {
                    true => Ok(false),
                    false => Err(Fault::Broken { why: io::ErrorKind::UnexpectedEof.into(), unanswered: false }),
                };
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        } else if self.to == self.buffer.len() {
            if self.from > 0 {
                self.buffer.copy_within(self.from..self.to, 0);
                (self.from, self.to) = (0, self.to - self.from);
            } else {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
        }
        let room = &mut self.buffer[self.to..];
        let count = match &mut self.stream {
            Stream::Plain(stream) => stream.read(room).await,
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.read(room).await,
        }?;
        self.to += count;
        Ok(count)
    }
}

/// The length of the head and what it says, once it is whole.
fn parse_head(bytes: &[u8]) -> Result<Option<(usize, Head)>, Fault> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let used = match response.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Fault::Protocol("the answer is not HTTP/1.1")),
    };
    let status = response.code.unwrap_or_default();
    let mut framing = Framing::UntilClose;
    let mut keeps = response.version == Some(1);
    for header in response.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            framing = Framing::chunked();
        } else if header.name.eq_ignore_ascii_case("content-length") && matches!(framing, Framing::UntilClose) {
            let length = value.parse().map_err(|_| Fault::Protocol("the content length is no number"))?;
            framing = Framing::Length(length);
        } else if header.name.eq_ignore_ascii_case("connection") {
            keeps = !value.eq_ignore_ascii_case("close") && (keeps || value.eq_ignore_ascii_case("keep-alive"));
        }
    }
    if status < 200 || status == 204 || status == 304 {
        framing = Framing::Length(0);
    }
    Ok(Some((used, Head { status, body: Body::new(framing, keeps) })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_how_the_body_ends() {
        let cases: [(&str, u16, bool, bool); 5] = [
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, false, true),
            ("HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n", 429, true, true),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\n", 200, false, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", 200, true, false),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, true, true),
        ];
        for (text, status, done, keeps) in cases {
            let (used, head) = parse_head(text.as_bytes()).expect("HTTP").expect("whole");
            assert_eq!((used, head.status, head.body.is_done()), (text.len(), status, done), "{text}");
            assert_eq!(head.body.keeps_connection(), keeps, "{text}");
        }
        assert!(parse_head(b"HTTP/1.1 200 OK\r\nA: b").expect("no fault").is_none());
        assert!(parse_head(b"SSH-2.0-OpenSSH\r\n\r\n").is_err());
    }
}
