//! From the bytes of an answer to events, with exactly one end.

use std::pin::Pin;

use futures_util::Stream;
use http::header::CONTENT_TYPE;
use sconce_vocabulary::error::{Error, ErrorKind, Result};
use sconce_vocabulary::request::Event;

use crate::answer::{Answer, Interleaved};
use crate::bedrock::frames::{FrameFault, FrameParser};
use crate::connect::Response;
use crate::failure::{Party, Told};
use crate::sse::{SseEvent, SseFault, SseParser};
use crate::transport::{Body, Patience};

/// Events of one request. Ends after `Event::Done` or `Event::Failed`; dropping it closes the connection.
pub type EventStream = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// One message of a stream: an SSE event, or one of Amazon's frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub name: &'a str,
    pub data: &'a str,
    /// A frame that tells an exception.
    pub is_exception: bool,
}

/// Reads one provider's messages.
pub(crate) trait Reader: Send {
    fn read(&mut self, message: Message<'_>, answer: &mut Answer) -> Result<(), Fault>;

    /// The whole answer as one document, from servers that do not stream when they are asked to.
    fn whole(&mut self, _document: &str, _answer: &mut Answer) -> Result<(), Fault> {
        Err(Fault::Garbled("one document in place of a stream".to_owned()))
    }

    /// The bytes have ended. Whether the answer had, by this provider's rules, although nothing said so.
    fn is_complete(&self, answer: &Answer) -> bool {
        answer.is_finished()
    }
}

/// Why an answer cannot go on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    Garbled(String),
    /// The provider says so, with a status that it would have had before the stream.
    Told(u16, Told),
}

impl From<Interleaved> for Fault {
    fn from(_: Interleaved) -> Self {
        Self::Garbled("parts of one function call between those of another".to_owned())
    }
}

impl From<serde_json::Error> for Fault {
    fn from(why: serde_json::Error) -> Self {
        Self::Garbled(format!("JSON that is none, or of another shape, at column {}", why.column()))
    }
}

impl Fault {
    fn error(self, party: &Party) -> Error {
        match self {
            Self::Garbled(what) => party.garbled(&what),
            Self::Told(status, told) => {
                let error = party.told(status, &told);
                match told.retry_after_s {
                    Some(seconds) if error.kind == ErrorKind::RateLimited => error.with_retry_after_s(seconds),
                    _ => error,
                }
            }
        }
    }
}

/// How messages are parted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Sse,
    Amazon,
}

/// Parts bytes into messages and has them read.
pub(crate) struct Decoder {
    splitter: Splitter,
    reader: Box<dyn Reader>,
    party: Party,
    pub answer: Answer,
}

enum Splitter {
    Sse(SseParser, Vec<SseEvent>),
    Amazon(FrameParser),
    /// No stream but one document.
    Whole(Vec<u8>),
}

impl Decoder {
    pub fn new(framing: Framing, reader: Box<dyn Reader>, party: Party, answer: Answer) -> Self {
        let splitter = match framing {
            Framing::Sse => Splitter::Sse(SseParser::default(), Vec::new()),
            Framing::Amazon => Splitter::Amazon(FrameParser::default()),
        };
        Self { splitter, reader, party, answer }
    }

    /// Servers that do not stream when asked to send JSON. Anything else that is no stream is not an answer.
    pub fn expect(&mut self, response: &Response) -> Result<()> {
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match (&self.splitter, kind.as_str()) {
            (Splitter::Sse(..), "text/event-stream" | "")
            | (Splitter::Amazon(_), "application/vnd.amazon.eventstream") => Ok(()),
            (Splitter::Sse(..), "application/json") => {
                self.splitter = Splitter::Whole(Vec::new());
                Ok(())
            }
            (_, other) => Err(self.party.garbled(&format!("an answer of the type '{}'", self.party.words(other)))),
        }
    }

    pub fn read(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.splitter {
            Splitter::Sse(parser, events) => {
                let parsed = parser.read(bytes, events);
                self.read_sse()?;
                parsed.map_err(|fault| self.sse_fault(fault))
            }
            Splitter::Amazon(parser) => {
                parser.push(bytes);
                self.read_frames()
            }
            Splitter::Whole(all) => {
                const DOCUMENT_BYTES_MAX: usize = 32 << 20;
                if all.len() + bytes.len() > DOCUMENT_BYTES_MAX {
                    return Err(self.party.garbled("an answer that does not end"));
                }
                all.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn read_sse(&mut self) -> Result<()> {
        let Splitter::Sse(_, events) = &mut self.splitter else { return Ok(()) };
        for event in std::mem::take(events) {
            if self.answer.has_ended() {
                break;
            }
            let message = Message { name: &event.name, data: &event.data, is_exception: false };
            self.reader.read(message, &mut self.answer).map_err(|fault| fault.error(&self.party))?;
        }
        Ok(())
    }

    fn read_frames(&mut self) -> Result<()> {
        let Splitter::Amazon(parser) = &mut self.splitter else { return Ok(()) };
        while let Some(frame) = parser.next().map_err(|fault| frame_fault(&self.party, fault))? {
            if self.answer.has_ended() {
                break;
            }
            let data = std::str::from_utf8(&frame.payload)
                .map_err(|_| self.party.garbled("a frame whose payload is not UTF-8"))?;
            let message = Message { name: &frame.name, data, is_exception: frame.is_exception };
            self.reader.read(message, &mut self.answer).map_err(|fault| fault.error(&self.party))?;
        }
        Ok(())
    }

    /// The bytes have ended.
    pub fn end(&mut self) -> Result<()> {
        match &mut self.splitter {
            Splitter::Sse(parser, events) => {
                // The rest of an event that did not come is no garbage.
                if parser.end(events).is_err() {
                    return Err(self.party.broken_off());
                }
                self.read_sse().map_err(|error| match error.code {
                    Some("upstream_garbled") => self.party.broken_off(),
                    _ => error,
                })?;
            }
            Splitter::Amazon(parser) if !parser.is_empty() && !self.answer.has_ended() => {
                return Err(self.party.broken_off());
            }
            Splitter::Amazon(_) => {}
            Splitter::Whole(all) => {
                let all = std::mem::take(all);
                let document = std::str::from_utf8(&all).map_err(|_| self.party.garbled("text that is not UTF-8"))?;
                self.reader.whole(document, &mut self.answer).map_err(|fault| fault.error(&self.party))?;
            }
        }
        if !self.answer.has_ended() {
            if !self.reader.is_complete(&self.answer) {
                return Err(self.party.broken_off());
            }
            self.answer.done();
        }
        Ok(())
    }

    fn sse_fault(&self, fault: SseFault) -> Error {
        self.party.garbled(match fault {
            SseFault::NotUtf8 => "text that is not UTF-8",
            SseFault::TooLong => "an event that does not end",
        })
    }
}

fn frame_fault(party: &Party, fault: FrameFault) -> Error {
    party.garbled(match fault {
        FrameFault::Checksum => "a frame with a wrong checksum",
        FrameFault::Length => "a frame of an impossible length",
        FrameFault::Headers => "a frame with damaged headers",
    })
}

/// The events of an accepted answer.
pub(crate) fn events(response: Response, mut decoder: Decoder, party: Party, patience: Patience) -> EventStream {
    let mut body = Body::new(response, party, patience);
    Box::pin(async_stream::stream! {
        loop {
            let read = match body.next().await {
                Ok(Some(bytes)) => decoder.read(&bytes),
                Ok(None) => decoder.end(),
                // A connection that breaks after the last word has cost nothing.
                Err(error) => match error.code {
                    Some("upstream_broken_off") => decoder.end().map_err(|_| error),
                    _ => Err(error),
                },
            };
            let (ready, has_ended) = (decoder.answer.take(), decoder.answer.has_ended());
            if has_ended {
                body.drain();
                for event in ready {
                    yield event;
                }
                return;
            }
            for event in ready {
                yield event;
            }
            if let Err(error) = read {
                yield Event::Failed(error);
                return;
            }
        }
    })
}
