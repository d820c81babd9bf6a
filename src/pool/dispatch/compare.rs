//! The client's answer beside a shadow's, for a file that somebody compares later. Only where a route asks for it.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::pool::errand::Trace;
use crate::pool::lines::LineLog;
use crate::request::{Content, Event, Finish, Part, Prompt, Request};

/// Of a text this much is kept.
const TEXT_BYTES_MAX: usize = 256 << 10;

pub type Comparisons = LineLog<Comparison>;

/// One line.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub at_ms: u64,
    pub request: String,
    pub route: String,
    pub asked: Vec<Said>,
    /// Null where the client went away.
    pub answer: Option<Heard>,
    pub shadow: Heard,
}

/// One message of the conversation.
#[derive(Debug, Serialize)]
pub struct Said {
    role: String,
    text: String,
}

/// An answer, its first choice where there are several.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Heard {
    pub member: String,
    pub text: String,
    pub calls: Vec<HeardCall>,
    pub finish: Option<&'static str>,
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub took_ms: u64,
    pub error: Option<String>,
    /// There was more.
    pub is_cut: bool,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct HeardCall {
    pub name: String,
    pub arguments: String,
}

impl Heard {
    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Text { choice: 0, text, .. } | Event::Refusal { choice: 0, text } => {
                self.is_cut |= add(&mut self.text, text)
            }
            Event::ToolCall { choice: 0, part } => {
                if let Some(start) = &part.start {
                    self.calls.push(HeardCall { name: start.name.clone(), ..HeardCall::default() });
                }
                if let Some(call) = self.calls.last_mut() {
                    self.is_cut |= add(&mut call.arguments, &part.arguments);
                }
            }
            Event::Finished { choice: 0, reason } => {
                self.finish = Some(match reason {
                    Finish::Stop(_) => "stop",
                    Finish::Length => "length",
                    Finish::ToolCalls => "tool_calls",
                    Finish::ContentFilter => "content_filter",
                });
            }
            Event::Done(usage) => {
                self.prompt_tokens = usage.prompt_tokens;
                self.completion_tokens = usage.completion_tokens;
            }
            Event::Failed(error) => self.error = Some(error.message.clone()),
            _ => {}
        }
    }
}

/// Whether something had to be left out.
fn add(text: &mut String, more: &str) -> bool {
    let room = TEXT_BYTES_MAX.saturating_sub(text.len());
    let kept = more.floor_char_boundary(room.min(more.len()));
    text.push_str(&more[..kept]);
    kept < more.len()
}

/// Listens to the client's answer and hands it on when it has ended.
pub struct Ear {
    heard: Heard,
    since: Instant,
    trace: Trace,
    told: Option<oneshot::Sender<Heard>>,
}

impl Ear {
    pub fn new(trace: Trace) -> (Self, oneshot::Receiver<Heard>) {
        let (told, receiver) = oneshot::channel();
        (Self { heard: Heard::default(), since: Instant::now(), trace, told: Some(told) }, receiver)
    }

    /// The same events. Dropping the stream says that the client has gone.
    pub fn over(
        self,
        events: impl Stream<Item = Event> + Send + 'static,
    ) -> impl Stream<Item = Event> + Send + 'static {
        stream::unfold((Box::pin(events), self), |(mut events, mut ear)| async move {
            let event = events.next().await?;
            ear.hear(&event);
            Some((event, (events, ear)))
        })
    }

    /// The request failed before there was a stream.
    pub fn refused(mut self, error: &crate::error::Error) {
        self.hear(&Event::Failed(error.clone()));
    }

    fn hear(&mut self, event: &Event) {
        self.heard.note(event);
        if matches!(event, Event::Done(_) | Event::Failed(_))
            && let Some(told) = self.told.take()
        {
            let mut heard = std::mem::take(&mut self.heard);
            heard.member = self.trace.get().member.unwrap_or_default();
            heard.took_ms = took_ms(self.since);
            // The shadow may have been given up.
            let _ = told.send(heard);
        }
    }
}

pub fn took_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What was asked, without pictures.
pub fn asked(request: &Request) -> Vec<Said> {
    let bounded = |text: &str| {
        let mut kept = String::new();
        add(&mut kept, text);
        kept
    };
    match &request.prompt {
        Prompt::Chat(chat) => chat
            .messages
            .iter()
            .map(|message| {
                let text = match &message.content {
                    Content::None => String::new(),
                    Content::Text(text) => bounded(text),
                    Content::Parts(parts) => {
                        let texts = parts.iter().filter_map(|part| match part {
                            Part::Text(text) => Some(bounded(text)),
                            Part::Image(_) => None,
                        });
                        texts.collect::<Vec<_>>().join("\n")
                    }
                };
                Said { role: message.role.clone(), text }
            })
            .collect(),
        Prompt::Text(text) => vec![Said { role: "prompt".to_owned(), text: bounded(text) }],
        Prompt::Tokens(_) => Vec::new(),
    }
}
