//! The HTTP side on a member that only keeps time.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sconce::api::{ApiConfig, ServeOptions, router, serve};
use sconce::error::{Error, ErrorKind, Result};
use sconce::pool::{
    AdmissionLimits, EngineSnapshot, EventStream, Member, MemberState, Model, ModelCard, Pool, Task, TokenizeInput,
    Tokenized,
};
use sconce::request::{Event, Finish, PromptReport, Request, Usage};
use sconce::telemetry::Metrics;
use tokio::sync::mpsc;

pub const STREAMS_MAX: usize = 20_000;
/// As the local engine's.
pub const CHANNEL_EVENTS: usize = 64;
const TICK: Duration = Duration::from_millis(1);

/// Nanoseconds on the clock that all processes of the machine share.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// One stream as the thread sees it.
pub struct Stream {
    events: mpsc::Sender<Event>,
    tokens_left: u32,
    tokens: u32,
}

impl Stream {
    pub fn new(events: mpsc::Sender<Event>, tokens_left: u32) -> Self {
        Self { events, tokens_left, tokens: 0 }
    }
}

struct Timed {
    card: ModelCard,
    arrivals: Mutex<SyncSender<Stream>>,
}

impl Model for Timed {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn state(&self) -> MemberState {
        MemberState::Ready
    }

    fn tokenize(&self, _input: TokenizeInput) -> Result<Tokenized> {
        Err(Error::invalid("prompt", "there is no tokenizer here"))
    }

    fn detokenize(&self, _tokens: &[u32]) -> Result<String> {
        Err(Error::invalid("tokens", "there is no tokenizer here"))
    }
}

impl Member for Timed {
    fn start(&self, request: Request) -> BoxFuture<'_, Result<EventStream>> {
        let (events, mut waiting) = mpsc::channel(CHANNEL_EVENTS);
        let stream = Stream::new(events, request.params.max_tokens.unwrap_or(100));
        let sent = self.arrivals.lock().expect("no panic while sending").try_send(stream);
        Box::pin(async move {
            sent.map_err(|_| Error::new(ErrorKind::QueueFull, "too many streams"))?;
            let events: EventStream = Box::pin(async_stream::stream! {
                yield Event::Prompt(PromptReport { prompt_tokens: 9, ..PromptReport::default() });
                while let Some(event) = waiting.recv().await {
                    yield event;
                }
            });
            Ok(events)
        })
    }

    fn snapshot(&self) -> EngineSnapshot {
        EngineSnapshot::default()
    }
}

/// Gives every stream its tokens: the streams are dealt over the ticks of a period.
pub fn keep_time(arrivals: &Receiver<Stream>, tokens_per_s: f64) {
    let ticks = ((1.0 / tokens_per_s) / TICK.as_secs_f64()).round().max(1.0) as usize;
    let mut slots: Vec<Vec<Stream>> = (0..ticks).map(|_| Vec::new()).collect();
    let (mut dealt, mut tick) = (0_usize, 0_usize);
    let mut next = Instant::now();
    loop {
        while let Ok(stream) = arrivals.try_recv() {
            slots[dealt % ticks].push(stream);
            dealt += 1;
        }
        slots[tick % ticks].retain_mut(|stream| {
            let text = monotonic_ns().to_string();
            let event = Event::Text { choice: 0, text, tokens: Vec::new(), token_ids: Vec::new() };
            stream.tokens_left = stream.tokens_left.saturating_sub(1);
            stream.tokens += 1;
            if stream.events.try_send(event).is_err() {
                return !stream.events.is_closed();
            }
            if stream.tokens_left > 0 {
                return true;
            }
            let usage = Usage { prompt_tokens: 9, completion_tokens: stream.tokens, ..Usage::default() };
            // A stream whose client is gone needs no end.
            let _ = stream.events.try_send(Event::Finished { choice: 0, reason: Finish::Length });
            let _ = stream.events.try_send(Event::Done(usage));
            false
        });
        tick += 1;
        next += TICK;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Inside a runtime.
pub fn listener(port: u16) -> tokio::net::TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option");
    socket.bind(([127, 0, 0, 1], port).into()).expect("a free port");
    let listener = socket.listen(65_535).expect("a queue");
    println!("listening on {} with pid {}", listener.local_addr().expect("bound"), std::process::id());
    listener
}

pub fn run(port: u16, tokens_per_s: f64) {
    let (arrivals, waiting) = sync_channel(STREAMS_MAX);
    std::thread::spawn(move || keep_time(&waiting, tokens_per_s));
    let card = ModelCard {
        id: "timed".to_owned(),
        aliases: Vec::new(),
        root: "timed".to_owned(),
        parent: None,
        max_model_len: 1 << 20,
        created_s: 0,
        chat: true,
        task: Task::Generate,
    };
    let member: Arc<dyn Member> = Arc::new(Timed { card, arrivals: Mutex::new(arrivals) });
    let limits = AdmissionLimits { running_max: STREAMS_MAX as u32, waiting_max: 0 };
    let pool = Arc::new(Pool::new(vec![(member, limits)]));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = listener(port);
        let app = router(Arc::clone(&pool), Arc::new(Metrics::new()), ApiConfig::default());
        let options = ServeOptions { connections_max: STREAMS_MAX, ..ServeOptions::default() };
        serve(listener, app, pool, std::future::pending(), options).await.expect("it serves");
    });
}
