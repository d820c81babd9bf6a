//! A member that plays a script, and short ways to ask a server built on it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request as HttpRequest, StatusCode};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use sconce::api::{ApiConfig, router};
use sconce::error::{Error, Result};
use sconce::pool::{
    AdmissionLimits, EngineSnapshot, EventStream, Member, MemberState, Model, ModelCard, Pool, Task, TokenizeInput,
    Tokenized, TokenizerInfo,
};
use sconce::request::{
    EmbedInput, EmbedRequest, Embedded, Event, Finish, PromptReport, Request, TokenLogprob, TokenReport, Usage,
};
use sconce::telemetry::Metrics;
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

use crate::judge::{self, Exchange};

/// One step of a script.
pub enum Step {
    Event(Event),
    /// Waits until the test opens the gate once more.
    Gate,
    /// Never goes on.
    Hang,
    Panic,
}

type Script = Box<dyn Fn(&Request) -> Result<Vec<Step>> + Send + Sync>;

pub struct Fake {
    card: ModelCard,
    script: Script,
    pub state: Mutex<MemberState>,
    pub requests: Mutex<Vec<Request>>,
    pub embed_requests: Mutex<Vec<EmbedRequest>>,
    pub gate: Arc<Semaphore>,
    live: Arc<watch::Sender<usize>>,
}

/// Counts a stream as live until it is dropped.
struct Live(Arc<watch::Sender<usize>>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.send_modify(|live| *live -= 1);
    }
}

impl Fake {
    pub fn new(script: impl Fn(&Request) -> Result<Vec<Step>> + Send + Sync + 'static) -> Arc<Self> {
        Self::with_card(card(), script)
    }

    pub fn with_card(
        card: ModelCard,
        script: impl Fn(&Request) -> Result<Vec<Step>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            card,
            script: Box::new(script),
            state: Mutex::new(MemberState::Ready),
            requests: Mutex::default(),
            embed_requests: Mutex::default(),
            gate: Arc::new(Semaphore::new(0)),
            live: Arc::new(watch::Sender::new(0)),
        })
    }

    /// Plays these events to every request.
    pub fn saying(events: Vec<Event>) -> Arc<Self> {
        Self::new(move |_| Ok(events.iter().cloned().map(Step::Event).collect()))
    }

    /// Says "Hello world" in two pieces.
    pub fn hello() -> Arc<Self> {
        Self::saying(hello())
    }

    /// Makes vectors or scores; see `Member::embed` below.
    pub fn embedding(task: Task) -> Arc<Self> {
        Self::with_card(ModelCard { task, chat: false, ..card() }, |_| Err(Error::internal("it generates nothing")))
    }

    pub fn last_request(&self) -> Request {
        self.requests.lock().unwrap().last().cloned().expect("a request was started")
    }

    /// Waits until `count` streams are live; fails after ten seconds.
    pub async fn live(&self, count: usize) {
        let mut live = self.live.subscribe();
        let reached = tokio::time::timeout(Duration::from_secs(10), live.wait_for(|live| *live == count)).await;
        assert!(reached.is_ok(), "{} streams are live, not {count}", *self.live.borrow());
    }
}

impl Model for Fake {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn state(&self) -> MemberState {
        self.state.lock().unwrap().clone()
    }

    /// One token a character: its code point.
    fn tokenize(&self, input: TokenizeInput) -> Result<Tokenized> {
        let text = match input {
            TokenizeInput::Text { text, add_special_tokens: true } => format!("^{text}"),
            TokenizeInput::Text { text, .. } => text,
            TokenizeInput::Chat(chat) => format!("{} messages", chat.messages.len()),
        };
        Ok(Tokenized { tokens: text.chars().map(u32::from).collect(), texts: text.chars().map(String::from).collect() })
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String> {
        let character = |&token| {
            char::from_u32(token).ok_or_else(|| Error::invalid("tokens", format!("{token} is not in the vocabulary")))
        };
        tokens.iter().map(character).collect()
    }

    fn tokenizer_info(&self) -> Result<TokenizerInfo> {
        Ok(TokenizerInfo { eos: Some("</s>".to_owned()), ..TokenizerInfo::default() })
    }
}

impl Member for Fake {
    fn start(&self, request: Request) -> BoxFuture<'_, Result<EventStream>> {
        let steps = (self.script)(&request);
        self.requests.lock().unwrap().push(request);
        let gate = Arc::clone(&self.gate);
        let live = Arc::clone(&self.live);
        Box::pin(async move {
            let steps = steps?;
            live.send_modify(|live| *live += 1);
            let guard = Live(live);
            let events: EventStream = Box::pin(async_stream::stream! {
                let _guard = guard;
                for step in steps {
                    match step {
                        Step::Event(event) => yield event,
                        Step::Gate => gate.acquire().await.expect("the gate is never closed").forget(),
                        Step::Hang => std::future::pending().await,
                        Step::Panic => panic!("the script says so"),
                    }
                }
            });
            Ok(events)
        })
    }

    /// A text's vector is `[characters, place, 0.5]`, a pair's score a tenth of the characters of its second text; "hang"
    /// never ends, and every input has seven tokens.
    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<Embedded>> {
        self.embed_requests.lock().unwrap().push(request.clone());
        let live = Arc::clone(&self.live);
        Box::pin(async move {
            live.send_modify(|live| *live += 1);
            let _guard = Live(live);
            let mut values = Vec::new();
            let width = if self.card.task == Task::Score { 1 } else { request.finish.dimensions.unwrap_or(3) as usize };
            for (place, input) in request.inputs.iter().enumerate() {
                let characters = match input {
                    EmbedInput::Text(text) if text == "hang" => std::future::pending().await,
                    EmbedInput::Text(text) | EmbedInput::Pair(_, text) => text.chars().count(),
                    EmbedInput::Tokens(ids) => ids.len(),
                };
                let vector = match self.card.task {
                    Task::Generate => return Err(sconce::pool::member::wrong_task(&self.card, false)),
                    Task::Embed { .. } => vec![characters as f32, place as f32, 0.5],
                    Task::Score => vec![characters as f32 / 10.0],
                };
                values.extend(&vector[..width]);
            }
            Ok(Embedded { values, width, prompt_tokens: 7 * request.inputs.len() as u32 })
        })
    }

    fn snapshot(&self) -> EngineSnapshot {
        EngineSnapshot {
            running: 2,
            waiting: 3,
            kv_usage: 0.25,
            generation_tokens: 42,
            steps: 7,
            blocks: 100,
            block_size: 16,
            step_tokens_buckets: vec![(1.0, 3), (8.0, 7)],
            step_tokens_sum: 30.0,
            drafts: 4,
            draft_tokens: 9,
            accepted_tokens: 5,
            accepted_per_position: vec![3, 2],
            ..EngineSnapshot::default()
        }
    }
}

pub fn card() -> ModelCard {
    ModelCard {
        id: "org/tiny:q4".into(),
        aliases: vec!["tiny".into()],
        root: "tiny.gguf".into(),
        parent: None,
        max_model_len: 2048,
        created_s: 1_700_000_000,
        chat: true,
        task: Task::Generate,
    }
}

pub fn prompt() -> Event {
    Event::Prompt(PromptReport { prompt_tokens: 9, cached_tokens: 4, ..PromptReport::default() })
}

pub fn text(choice: u32, text: &str) -> Event {
    Event::Text { choice, text: text.into(), tokens: vec![], token_ids: vec![] }
}

pub fn finished(choice: u32) -> Event {
    Event::Finished { choice, reason: Finish::Stop(None) }
}

pub fn done(completion_tokens: u32) -> Event {
    Event::Done(Usage {
        prompt_tokens: 9,
        completion_tokens,
        cached_tokens: 4,
        reasoning_tokens: 0,
        ..Usage::default()
    })
}

pub fn hello() -> Vec<Event> {
    vec![prompt(), text(0, "Hello"), text(0, " world"), finished(0), done(2)]
}

/// A report on `own`, with `own` itself and " no" as the alternatives.
pub fn report(id: u32, own: &str) -> TokenReport {
    let token =
        |id, text: &str, logprob| TokenLogprob { id, text: text.into(), bytes: text.as_bytes().to_vec(), logprob };
    TokenReport { token: token(id, own, -0.25), rank: 1, top: vec![token(id, own, -0.25), token(99, " no", -2.5)] }
}

pub fn pool(fake: &Arc<Fake>) -> Arc<Pool> {
    let member: Arc<dyn Member> = Arc::clone(fake) as _;
    Arc::new(Pool::new(vec![(member, AdmissionLimits { running_max: 64, waiting_max: 64 })]))
}

pub fn app(fake: &Arc<Fake>) -> Router {
    app_with(fake, ApiConfig::default())
}

pub fn app_with(fake: &Arc<Fake>, config: ApiConfig) -> Router {
    router(pool(fake), Arc::new(Metrics::new()), config)
}

/// What came back.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("ASCII"))
    }

    /// The `data:` payloads of an event stream; the last must be `[DONE]` and is left out.
    pub fn events(&self) -> Vec<Value> {
        assert!(self.header("content-type").starts_with("text/event-stream"), "{}", self.text);
        let mut data: Vec<&str> = self
            .text
            .split("\n\n")
            .filter(|block| !block.is_empty() && !block.starts_with(':'))
            .map(|block| block.strip_prefix("data: ").unwrap_or_else(|| panic!("not an event: {block}")))
            .collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|data| serde_json::from_str(data).expect("JSON")).collect()
    }
}

pub async fn get(app: &Router, path: &str) -> Answer {
    ask(app, HttpRequest::get(path).body(Body::empty()).unwrap()).await
}

pub async fn post(app: &Router, path: &str, body: impl Into<Body>) -> Answer {
    let request = HttpRequest::post(path).header("content-type", "application/json").body(body.into());
    ask(app, request.unwrap()).await
}

/// Asks, and checks what comes against the document of endpoints.
pub async fn ask(app: &Router, request: HttpRequest<Body>) -> Answer {
    let (parts, body) = request.into_parts();
    let (method, path, headers) = (parts.method.clone(), parts.uri.path().to_owned(), parts.headers.clone());
    let is_whole = axum::body::HttpBody::size_hint(&body).exact().is_some();
    let (known, body) = match is_whole {
        true => {
            let bytes = body.collect().await.expect("a body in memory").to_bytes();
            (Some(bytes.clone()), Body::from(bytes))
        }
        false => (None, body),
    };
    let request = HttpRequest::from_parts(parts, body);
    let answer = whole(app.clone().oneshot(request).await.expect("infallible")).await;
    judge::check(&Exchange { method, path: &path, headers: &headers, body: known.as_deref() }, &answer);
    answer
}

/// Reads a response to its end.
pub async fn whole(response: axum::response::Response) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
    Answer { status: parts.status, headers: parts.headers, text }
}

/// The error's message, type, param and code.
#[track_caller]
pub fn error(answer: &Answer) -> (String, String, Option<String>, Option<String>) {
    assert!(answer.header("content-type").starts_with("application/json"), "{}", answer.text);
    let value = answer.json();
    let field = |name: &str| value["error"][name].as_str().map(str::to_owned);
    assert_eq!(value.as_object().map(serde_json::Map::len), Some(1), "{value}");
    (field("message").expect("a message"), field("type").expect("a type"), field("param"), field("code"))
}
