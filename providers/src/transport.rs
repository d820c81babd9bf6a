//! One exchange with a provider: three patiences and a deadline.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::Method;
use http::header::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sconce_vocabulary::error::{Error, ErrorKind, Result};
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::config::Timeouts;
use crate::connect::{Clients, Response, Unsent};
use crate::failure::Party;

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
pub(crate) async fn send(clients: &Clients, call: Call, party: &Party, patience: Patience) -> Result<Response> {
    let (at, overdue) = patience.until(false, party);
    match timeout_at(at, clients.send(call.method, &call.url, call.headers, call.body)).await {
        Err(_) => Err(overdue),
        Ok(Ok(response)) => Ok(response),
        Ok(Err(why)) => Err(not_sent(why, party)),
    }
}

fn not_sent(why: Unsent, party: &Party) -> Error {
    let name = party.name();
    match why {
        Unsent::Unable(error) => error,
        Unsent::UnreachableInTime => Error::new(ErrorKind::Unavailable, format!("{name} could not be reached in time"))
            .with_code("connect_timeout"),
        Unsent::Unreachable(cause) => {
            let cause = party.words(&cause);
            Error::new(ErrorKind::Unavailable, format!("{name} could not be reached: {cause}"))
                .with_code("connect_failed")
        }
        Unsent::BrokenOff(cause) => {
            let cause = party.words(&cause);
            party
                .upstream(format!("closed the connection before it answered: {cause}"))
                .with_code("upstream_broken_off")
        }
    }
}

/// The next bytes of an answer; `None` at its end.
pub(crate) async fn chunk(incoming: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = incoming.frame().await {
        // Trailers say nothing that is asked for.
        if let Ok(bytes) = frame?.into_data() {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// The bytes of an answer, under the same patience.
pub(crate) struct Body {
    incoming: Incoming,
    party: Party,
    patience: Patience,
    had_byte: bool,
}

impl Body {
    pub fn new(response: Response, party: Party, patience: Patience) -> Self {
        Self { incoming: response.into_body(), party, patience, had_byte: false }
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let (at, overdue) = self.patience.until(self.had_byte, &self.party);
        match timeout_at(at, chunk(&mut self.incoming)).await {
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
        let end = chunk(&mut self.incoming).now_or_never();
        if !matches!(end, Some(Ok(None) | Err(_))) {
            tokio::spawn(self.drained());
        }
    }

    async fn drained(mut self) {
        const DRAIN: Duration = Duration::from_secs(1);
        let until = Instant::now() + DRAIN;
        while let Ok(Ok(Some(_))) = timeout_at(until, chunk(&mut self.incoming)).await {}
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
