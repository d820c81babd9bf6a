//! Events become output items, and what a stream says while they do. One way for both, so that both are equal.

use serde::Serialize;
use serde_json::{Value, json};

use crate::api::openai::logprobs::{ChatLogprobs, TokenStyle};
use crate::api::sse::write_event;
use crate::request::{Event, Finish, TokenReport, ToolCallPart};

/// The output so far.
pub(super) struct Assembler {
    /// The unique part of the response's id; the items' ids are made from it.
    unique: String,
    /// Write the events of a stream.
    emit: bool,
    sequence: u64,
    /// Report logprobs.
    logprobs: Option<TokenStyle>,
    items: Vec<Value>,
    open: Option<Open>,
    finish: Option<Finish>,
}

/// The item that is being written.
struct Open {
    kind: Kind,
    id: String,
    text: String,
    logprobs: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    Call { call_id: String, name: String },
}

/// More text of an item.
#[derive(Serialize)]
struct DeltaEvent<'a> {
    r#type: &'static str,
    sequence_number: u64,
    item_id: &'a str,
    output_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_index: Option<u32>,
    delta: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<&'a [Value]>,
}

impl Kind {
    fn prefix(&self) -> &'static str {
        match self {
            Self::Reasoning => "rs",
            Self::Message => "msg",
            Self::Call { .. } => "fc",
        }
    }

    fn delta(&self) -> &'static str {
        match self {
            Self::Reasoning => "response.reasoning_text.delta",
            Self::Message => "response.output_text.delta",
            Self::Call { .. } => "response.function_call_arguments.delta",
        }
    }
}

impl Open {
    /// The item as it is now, or as it was when nothing was in it.
    fn item(&self, status: &str, parts: &[Value]) -> Value {
        let id = &self.id;
        match &self.kind {
            Kind::Reasoning => {
                json!({"id": id, "type": "reasoning", "summary": [], "content": parts, "encrypted_content": null, "status": status})
            }
            Kind::Message => {
                json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": parts})
            }
            Kind::Call { call_id, name } => {
                let arguments = if status == "in_progress" { "" } else { &self.text };
                json!({"id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": arguments})
            }
        }
    }

    fn part(&self) -> Value {
        match &self.kind {
            Kind::Reasoning => json!({"type": "reasoning_text", "text": self.text}),
            _ => json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}),
        }
    }
}

impl Assembler {
    pub fn new(unique: String, emit: bool, logprobs: Option<TokenStyle>) -> Self {
        Self { unique, emit, sequence: 0, logprobs, items: Vec::new(), open: None, finish: None }
    }

    pub fn items(&self) -> &[Value] {
        &self.items
    }

    pub fn finish(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }

    pub fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Text { text, tokens, .. } if !text.is_empty() || !tokens.is_empty() => {
                let logprobs = self.reports(tokens);
                if text.is_empty() && logprobs.is_empty() {
                    return;
                }
                self.within(Kind::Message, out);
                self.delta(&text, logprobs, out);
            }
            Event::Reasoning { text, .. } if !text.is_empty() => {
                self.within(Kind::Reasoning, out);
                self.delta(&text, Vec::new(), out);
            }
            Event::ToolCall { part, .. } => self.call(part, out),
            Event::Finished { reason, .. } => self.finish = Some(reason),
            Event::Text { .. } | Event::Reasoning { .. } | Event::Prompt(_) | Event::Done(_) | Event::Failed(_) => {}
        }
    }

    fn reports(&self, tokens: Vec<TokenReport>) -> Vec<Value> {
        let Some(style) = self.logprobs else { return Vec::new() };
        let mut logprobs = ChatLogprobs::default();
        logprobs.extend(tokens, style);
        logprobs.into_values()
    }

    fn call(&mut self, part: ToolCallPart, out: &mut Vec<u8>) {
        if let Some(start) = part.start {
            self.close("completed", out);
            self.open(Kind::Call { call_id: start.id, name: start.name }, out);
        }
        let in_call = self.open.as_ref().is_some_and(|open| matches!(open.kind, Kind::Call { .. }));
        if in_call && !part.arguments.is_empty() {
            self.delta(&part.arguments, Vec::new(), out);
        }
    }

    /// Makes sure that the open item is of this kind.
    fn within(&mut self, kind: Kind, out: &mut Vec<u8>) {
        if self.open.as_ref().is_some_and(|open| open.kind == kind) {
            return;
        }
        self.close("completed", out);
        self.open(kind, out);
    }

    fn open(&mut self, kind: Kind, out: &mut Vec<u8>) {
        let index = self.items.len();
        let id = format!("{}_{}{index:04x}", kind.prefix(), self.unique);
        let open = Open { kind, id, text: String::new(), logprobs: Vec::new() };
        self.say(
            out,
            "response.output_item.added",
            || json!({"output_index": index, "item": open.item("in_progress", &[])}),
        );
        if !matches!(open.kind, Kind::Call { .. }) {
            self.say(
                out,
                "response.content_part.added",
                || json!({"item_id": open.id, "output_index": index, "content_index": 0, "part": open.part()}),
            );
        }
        self.open = Some(open);
    }

    fn delta(&mut self, text: &str, logprobs: Vec<Value>, out: &mut Vec<u8>) {
        let output_index = self.items.len();
        let Some(open) = self.open.as_mut() else { return };
        open.text.push_str(text);
        if self.emit {
            let (content_index, shown) = match open.kind {
                Kind::Reasoning => (Some(0), None),
                Kind::Message => (Some(0), Some(logprobs.as_slice())),
                Kind::Call { .. } => (None, None),
            };
            let kind = open.kind.delta();
            let event = DeltaEvent {
                r#type: kind,
                sequence_number: self.sequence,
                item_id: &open.id,
                output_index,
                content_index,
                delta: text,
                logprobs: shown,
            };
            write_event(kind, &event, out);
            self.sequence += 1;
        }
        open.logprobs.extend(logprobs);
    }

    fn close(&mut self, status: &str, out: &mut Vec<u8>) {
        let Some(open) = self.open.take() else { return };
        let index = self.items.len();
        let (id, text) = (&open.id, &open.text);
        match &open.kind {
            Kind::Reasoning => self.say(
                out,
                "response.reasoning_text.done",
                || json!({"item_id": id, "output_index": index, "content_index": 0, "text": text}),
            ),
            Kind::Message => self.say(out, "response.output_text.done", || {
                json!({"item_id": id, "output_index": index, "content_index": 0, "text": text, "logprobs": open.logprobs})
            }),
            Kind::Call { name, .. } => self.say(
                out,
                "response.function_call_arguments.done",
                || json!({"item_id": id, "output_index": index, "name": name, "arguments": text}),
            ),
        }
        let part = open.part();
        if !matches!(open.kind, Kind::Call { .. }) {
            self.say(
                out,
                "response.content_part.done",
                || json!({"item_id": id, "output_index": index, "content_index": 0, "part": part}),
            );
        }
        let item = open.item(status, &[part]);
        self.say(out, "response.output_item.done", || json!({"output_index": index, "item": item}));
        self.items.push(item);
    }

    /// Closes what is open. An answer without a word is an empty message, as long as it was an answer.
    pub fn end(&mut self, whole: bool, out: &mut Vec<u8>) {
        if whole && self.items.is_empty() && self.open.is_none() {
            self.open(Kind::Message, out);
        }
        self.close(if whole { "completed" } else { "incomplete" }, out);
    }

    /// Writes an event of the stream, when there is one; its fields are made only then.
    pub fn say(&mut self, out: &mut Vec<u8>, kind: &'static str, fields: impl FnOnce() -> Value) {
        if !self.emit {
            return;
        }
        let mut event = json!({"type": kind, "sequence_number": self.sequence});
        if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields()) {
            event.extend(fields);
        }
        write_event(kind, &event, out);
        self.sequence += 1;
    }
}
