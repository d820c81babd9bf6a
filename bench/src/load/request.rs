//! One request: its body, its way over a kept connection, and the record of its answer.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{Failure, Reads, Record};
use crate::answer::{Answer, Seen};
use crate::http::{Connection, Endpoint, Events, Fault};

/// Which of the two streaming endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiKind {
    Chat,
    Completions,
}

/// What all requests of a load share.
#[derive(Debug, Clone)]
pub struct RequestShape {
    pub kind: ApiKind,
    pub path: String,
    pub model: String,
    pub ignore_eos: bool,
    /// The name of the field: `max_tokens`, or `max_completion_tokens` for servers that insist.
    pub max_tokens_field: &'static str,
    /// Fields that every body gets; they win over ours.
    pub extra: Map<String, Value>,
    pub timeout: Duration,
}

/// One request of a conversation: what is added to it before it is sent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Turn {
    /// (role, text); of the completions API only the texts.
    pub messages: Vec<(String, String)>,
    /// Tokens of the texts, where they were counted.
    pub input_tokens: Option<u32>,
    pub output_tokens: Option<u32>,
    /// Wait after the previous answer.
    pub think_s: f64,
}

impl RequestShape {
    /// The body for what a conversation has become.
    pub fn body(&self, messages: &[(String, String)], output_tokens: Option<u32>) -> Vec<u8> {
        let mut body = Map::new();
        body.insert("model".into(), json!(self.model));
        match self.kind {
            ApiKind::Chat => {
                let list: Vec<Value> =
                    messages.iter().map(|(role, text)| json!({"role": role, "content": text})).collect();
                body.insert("messages".into(), list.into());
            }
            ApiKind::Completions => {
                let prompt: String = messages.iter().map(|(_, text)| text.as_str()).collect();
                body.insert("prompt".into(), prompt.into());
            }
        }
        body.insert("stream".into(), true.into());
        body.insert("stream_options".into(), json!({"include_usage": true}));
        if let Some(tokens) = output_tokens {
            body.insert(self.max_tokens_field.into(), tokens.into());
            if self.ignore_eos {
                body.insert("ignore_eos".into(), true.into());
            }
        }
        for (name, value) in &self.extra {
            match value {
                Value::Null => body.remove(name),
                value => body.insert(name.clone(), value.clone()),
            };
        }
        serde_json::to_vec(&body).expect("JSON values can be written")
    }
}

/// Sends requests; keeps connections that are free.
pub struct Client {
    pub endpoint: Endpoint,
    free: RefCell<Vec<Connection>>,
    reads: RefCell<Reads>,
}

/// Many events, so that streams do not grow their buffers while they are measured.
const EVENT_BYTES: usize = 4 * 1024;
/// Gaps to make room for before an answer comes; one that is longer grows its list.
const GAPS_MAX: u32 = 16 * 1024;

impl Client {
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, free: RefCell::default(), reads: RefCell::default() }
    }

    /// Of all streams so far.
    pub fn reads(&self) -> Reads {
        self.reads.borrow().clone()
    }

    fn keep(&self, mut connection: Connection) {
        connection.reused = true;
        self.free.borrow_mut().push(connection);
    }

    /// One question, one JSON answer, for what is not measured.
    pub async fn json(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value), Failure> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = self.endpoint.request(method, path, body.as_bytes());
        let (mut connection, mut head) = self.ask(&request).await.map_err(failure)?;
        let mut bytes = Vec::new();
        while connection.next(&mut head.body, &mut bytes).await.map_err(failure)? {}
        if head.body.keeps_connection() {
            self.keep(connection);
        }
        Ok((head.status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// Sends on a kept connection, or a new one where there is none or it turns out to be closed.
    async fn ask(&self, request: &[u8]) -> Result<(Connection, crate::http::Head), Fault> {
        loop {
            let kept = self.free.borrow_mut().pop();
            let (mut connection, sent) = match kept {
                Some(connection) => (connection, 0),
                None => Connection::open(&self.endpoint, request).await?,
            };
            let answered = match connection.send(&request[sent..]).await {
                Ok(()) => connection.head().await,
                Err(fault) => Err(fault),
            };
            match answered {
                Ok(head) => return Ok((connection, head)),
                Err(Fault::Broken { unanswered: true, .. }) if connection.reused => {}
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Streams one answer. `record` has its intended time; the rest is filled in.
    pub async fn stream(
        &self,
        shape: &RequestShape,
        request: &[u8],
        clock: Instant,
        keep_text: bool,
        record: &mut Record,
    ) {
        record.gaps_s.reserve_exact(record.output_wanted.unwrap_or(0).min(GAPS_MAX) as usize);
        record.sent_s = clock.elapsed().as_secs_f64();
        let mut answer = Answer::default();
        let outcome = match tokio::time::timeout(
            shape.timeout,
            self.read_stream(request, clock, keep_text, (&mut *record, &mut answer)),
        )
        .await
        {
            Ok(outcome) => outcome,
            Err(_) => {
                let message = format!("no whole answer within {} s (--request-timeout)", shape.timeout.as_secs_f64());
                Err(Failure { kind: "timeout".into(), message })
            }
        };
        record.end_s = clock.elapsed().as_secs_f64();
        record.input_tokens = answer.usage.map(|usage| usage.prompt_tokens).filter(|tokens| *tokens > 0);
        record.output_tokens = answer.usage.map(|usage| usage.completion_tokens);
        record.chunks = answer.chunks;
        record.text = answer.text;
        record.failure = outcome.err();
    }

    async fn read_stream(
        &self,
        request: &[u8],
        clock: Instant,
        keep_text: bool,
        (record, answer): (&mut Record, &mut Answer),
    ) -> Result<(), Failure> {
        let (mut connection, mut head) = self.ask(request).await.map_err(failure)?;
        let mut events = Events::with_capacity(EVENT_BYTES);
        if head.status != 200 {
            while connection.next(&mut head.body, &mut events.bytes).await.map_err(failure)? {}
            let text: String = String::from_utf8_lossy(&events.bytes).chars().take(300).collect();
            if head.body.keeps_connection() {
                self.keep(connection);
            }
            return Err(Failure { kind: format!("http_{}", head.status), message: text.trim().to_owned() });
        }
        let mut ended = false;
        let mut last_text_s = 0.0;
        while connection.next(&mut head.body, &mut events.bytes).await.map_err(failure)? {
            let stamp = connection.stamp();
            let now_s = (stamp.came_at - clock).as_secs_f64();
            let chunks_before = answer.chunks;
            while let Some(data) = events.next_data() {
                let seen =
                    answer.take(data, keep_text).map_err(|message| Failure { kind: "stream_error".into(), message })?;
                ended |= seen == Seen::End;
                if seen == Seen::Text {
                    match record.first_s {
                        None => record.first_s = Some(now_s),
                        Some(_) => record.gaps_s.push((now_s - last_text_s) as f32),
                    }
                    last_text_s = now_s;
                }
                if matches!(seen, Seen::Text | Seen::Other) {
                    record.last_s = Some(now_s);
                }
            }
            self.reads.borrow_mut().count(stamp, answer.chunks - chunks_before);
        }
        if head.body.keeps_connection() {
            self.keep(connection);
        }
        if !(ended || answer.finished) {
            let start = String::from_utf8_lossy(events.rest()).chars().take(200).collect::<String>();
            let message = format!("the stream ended without a reason or [DONE] {start}");
            return Err(Failure { kind: "cut".into(), message: message.trim().to_owned() });
        }
        Ok(())
    }
}

fn failure(fault: Fault) -> Failure {
    let (kind, message) = match fault {
        Fault::Connect(why) => ("connect", format!("cannot connect: {why}")),
        Fault::Broken { why, .. } => ("cut", format!("the connection broke: {why}")),
        Fault::Protocol(why) => ("protocol", why.to_owned()),
    };
    Failure { kind: kind.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_what_was_asked() {
        let mut shape = RequestShape {
            kind: ApiKind::Chat,
            path: "/v1/chat/completions".into(),
            model: "m".into(),
            ignore_eos: true,
            max_tokens_field: "max_tokens",
            extra: Map::new(),
            timeout: Duration::from_secs(1),
        };
        let messages = [("user".to_owned(), "a\"b".to_owned()), ("assistant".to_owned(), "c".to_owned())];
        let body = |shape: &RequestShape, tokens| {
            serde_json::from_slice::<Value>(&shape.body(&messages, tokens)).expect("JSON")
        };
        let chat = body(&shape, Some(7));
        assert_eq!(chat["messages"][0], json!({"role": "user", "content": "a\"b"}));
        assert_eq!((&chat["max_tokens"], &chat["ignore_eos"]), (&json!(7), &json!(true)));
        shape.kind = ApiKind::Completions;
        shape.extra = json!({"temperature": 0, "stream_options": null}).as_object().expect("an object").clone();
        let text = body(&shape, None);
        assert_eq!((&text["prompt"], &text["temperature"]), (&json!("a\"bc"), &json!(0)));
        assert!(text.get("stream_options").is_none() && text.get("max_tokens").is_none());
    }
}
