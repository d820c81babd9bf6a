//! Runs a load on threads of its own and gives back one record a request.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sconce_vocabulary::error::{Error, Result};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::LocalSet;

use super::pace::{self, Arrivals};
use super::request::{Client, RequestShape, Turn};
use super::{Reads, Record, request};
use crate::http::Endpoint;

/// A load, ready to run.
#[derive(Clone)]
pub struct Load {
    pub endpoint: Endpoint,
    pub shape: RequestShape,
    /// Each a list of requests that follow each other. A closed loop takes them in turn, an open one each at its time.
    pub conversations: Arc<Vec<Vec<Turn>>>,
    pub arrivals: Arrivals,
    /// No request is begun after it.
    pub duration: Option<Duration>,
    /// A closed loop with a duration begins again when the conversations are used up.
    pub cycle: bool,
    pub keep_text: bool,
    /// Threads that send and read; at least one.
    pub workers: usize,
}

/// Counters that a display may read while the load runs.
#[derive(Default)]
pub struct Live {
    pub started: AtomicU64,
    pub done: AtomicU64,
    pub failed: AtomicU64,
    pub output_tokens: AtomicU64,
    /// Sum of the times to the first token, to show a mean.
    pub ttft_us: AtomicU64,
    pub stop: AtomicBool,
}

pub struct LoadOutcome {
    pub records: Vec<Record>,
    /// Until the last answer ended.
    pub duration_s: f64,
    pub in_flight_max: usize,
    pub workers: usize,
    /// Seconds of processor that the generator used, over the duration: of all its threads, and of the busiest. Where
    /// that is near 1, the generator's own speed is what was measured.
    pub processor_share: f64,
    pub processor_share_busiest: f64,
    /// How late the generator's own loops were now and then.
    pub lags_s: Vec<f64>,
    pub reads: Reads,
}

/// What the workers share.
struct Common {
    load: Load,
    live: Arc<Live>,
    clock: Instant,
    next: AtomicUsize,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
    permits: Option<Semaphore>,
}

/// One thread of the load.
struct Worker {
    common: Arc<Common>,
    client: Client,
    records: RefCell<Vec<Record>>,
}

/// What a worker has to do.
enum Work {
    /// So many clients, each beginning after its time.
    Clients(Vec<Duration>),
    /// What the pacer says, when it says it.
    Due(mpsc::Receiver<usize>),
}

struct WorkerOutcome {
    records: Vec<Record>,
    processor_s: f64,
    lags_s: Vec<f64>,
    reads: Reads,
}

/// Arrivals that a worker may be behind before the pacer waits for it.
const DUE_MAX: usize = 1024;

/// Runs it to its end, or until `live.stop`.
pub fn run(mut load: Load, live: &Arc<Live>) -> Result<LoadOutcome> {
    let workers = load.workers.max(1);
    let permits = match &mut load.arrivals {
        Arrivals::Open { in_flight_max, offsets_s } => {
            if let Some(duration) = load.duration {
                offsets_s.retain(|offset| *offset < duration.as_secs_f64());
            }
            in_flight_max.map(Semaphore::new)
        }
        Arrivals::Closed { .. } => None,
    };
    let common = Arc::new(Common {
        live: Arc::clone(live),
        clock: Instant::now(),
        next: AtomicUsize::new(0),
        in_flight: AtomicUsize::new(0),
        in_flight_max: AtomicUsize::new(0),
        permits,
        load,
    });
    let (works, pacer) = works(&common, workers);
    let threads = works.into_iter().map(|work| Worker::start(Arc::clone(&common), work)).collect::<Result<Vec<_>>>()?;
    let mut done = Vec::with_capacity(workers);
    for thread in threads {
        done.push(thread.join().map_err(|_| Error::internal("the load generator failed"))??);
    }
    if let Some(pacer) = pacer {
        // It ends with its last time, or when it finds nobody listening.
        let _ = pacer.join();
    }
    Ok(outcome(&common, done))
}

/// Each worker's part, and the thread that paces an open loop.
fn works(common: &Arc<Common>, workers: usize) -> (Vec<Work>, Option<JoinHandle<()>>) {
    match &common.load.arrivals {
        Arrivals::Closed { concurrency, ramp } => {
            let begin = |number: usize| ramp.mul_f64(number as f64 / *concurrency as f64);
            let of = |worker| Work::Clients((worker..*concurrency).step_by(workers).map(begin).collect());
            ((0..workers).map(of).collect(), None)
        }
        Arrivals::Open { .. } => {
            let (due, dues): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::channel(DUE_MAX)).unzip();
            let common = Arc::clone(common);
            let pacer = std::thread::spawn(move || pace::pace(common.clock, common.load.offsets_s(), &due));
            (dues.into_iter().map(Work::Due).collect(), Some(pacer))
        }
    }
}

fn outcome(common: &Common, done: Vec<WorkerOutcome>) -> LoadOutcome {
    let workers = done.len();
    let (mut records, mut lags_s, mut reads) = (Vec::new(), Vec::new(), Reads::default());
    let (mut processor_s, mut busiest_s) = (0.0, 0.0_f64);
    for worker in done {
        records.extend(worker.records);
        lags_s.extend(worker.lags_s);
        reads.add(&worker.reads);
        processor_s += worker.processor_s;
        busiest_s = busiest_s.max(worker.processor_s);
    }
    // As they ended, whoever read them.
    records.sort_by(|left: &Record, right: &Record| left.end_s.total_cmp(&right.end_s));
    let duration_s = records.last().map_or(0.0, |record| record.end_s);
    LoadOutcome {
        records,
        duration_s,
        in_flight_max: common.in_flight_max.load(Ordering::Relaxed),
        workers,
        processor_share: processor_s / duration_s.max(1e-9),
        processor_share_busiest: busiest_s / duration_s.max(1e-9),
        lags_s,
        reads,
    }
}

impl Load {
    fn offsets_s(&self) -> &[f64] {
        match &self.arrivals {
            Arrivals::Open { offsets_s, .. } => offsets_s,
            Arrivals::Closed { .. } => &[],
        }
    }
}

/// Yields to everything that is ready now and then, and notes how long that took.
async fn watch_lag(lags: Rc<RefCell<Vec<f64>>>) {
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let asked = Instant::now();
        tokio::task::yield_now().await;
        lags.borrow_mut().push(asked.elapsed().as_secs_f64());
    }
}

fn processor_time_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

impl Worker {
    fn start(common: Arc<Common>, work: Work) -> Result<JoinHandle<Result<WorkerOutcome>>> {
        let failed = |why: std::io::Error| Error::internal(format!("cannot start the load: {why}"));
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
            Ok(LocalSet::new().block_on(&runtime, Self::drive(common, work)))
        };
        std::thread::Builder::new().name("load".into()).spawn(run).map_err(failed)
    }

    async fn drive(common: Arc<Common>, work: Work) -> WorkerOutcome {
        let cpu_before = processor_time_s();
        let client = Client::new(common.load.endpoint.clone());
        let worker = Rc::new(Self { common, client, records: RefCell::default() });
        let lags = Rc::new(RefCell::new(Vec::new()));
        let watch = tokio::task::spawn_local(watch_lag(Rc::clone(&lags)));
        match work {
            Work::Clients(begins) => worker.closed(begins).await,
            Work::Due(dues) => worker.open(dues).await,
        }
        watch.abort();
        WorkerOutcome {
            records: worker.records.take(),
            processor_s: processor_time_s() - cpu_before,
            lags_s: lags.take(),
            reads: worker.client.reads(),
        }
    }

    async fn closed(self: &Rc<Self>, begins: Vec<Duration>) {
        let clients: Vec<_> = begins
            .into_iter()
            .map(|begin| {
                let worker = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(begin).await;
                    while let Some(at) = worker.common.take_next() {
                        worker.converse(at, None).await;
                    }
                })
            })
            .collect();
        for client in clients {
            // A panic of one client would otherwise look like a short run.
            client.await.expect("a client does not panic");
        }
    }

    async fn open(self: &Rc<Self>, mut dues: mpsc::Receiver<usize>) {
        let mut running = Vec::new();
        while let Some(at) = dues.recv().await {
            if self.common.live.stop.load(Ordering::Relaxed) {
                break;
            }
            let worker = Rc::clone(self);
            let intended = self.common.load.offsets_s()[at];
            running.push(tokio::task::spawn_local(async move { worker.converse(at, Some(intended)).await }));
        }
        drop(dues);
        for conversation in running {
            conversation.await.expect("a conversation does not panic");
        }
    }

    /// All requests of one conversation, each after the answer before it.
    async fn converse(&self, at: usize, intended_s: Option<f64>) {
        let turns = &self.common.load.conversations[at];
        let mut messages: Vec<(String, String)> = Vec::new();
        let mut due_s = intended_s;
        for (number, turn) in turns.iter().enumerate() {
            if number > 0 {
                if turn.think_s > 0.0 {
                    tokio::time::sleep(Duration::from_secs_f64(turn.think_s)).await;
                }
                if self.common.over() {
                    return;
                }
                due_s = None;
            }
            messages.extend(turn.messages.iter().cloned());
            let body = self.common.load.shape.body(&messages, turn.output_tokens);
            let bytes = self.common.load.endpoint.request("POST", &self.common.load.shape.path, &body);
            let more = number + 1 < turns.len();
            let mut record = Record {
                conversation: at as u32,
                turn: number as u32,
                intended_s: due_s.unwrap_or_else(|| self.common.clock.elapsed().as_secs_f64()),
                input_wanted: turn.input_tokens,
                output_wanted: turn.output_tokens,
                ..Record::default()
            };
            self.ask(&bytes, more, &mut record).await;
            let failed = !record.is_good();
            if more {
                messages.push(("assistant".to_owned(), record.text.clone()));
            }
            if !self.common.load.keep_text {
                record.text = String::new();
            }
            self.records.borrow_mut().push(record);
            // Nothing to go on from.
            if failed {
                return;
            }
        }
    }

    async fn ask(&self, bytes: &[u8], more: bool, record: &mut Record) {
        let permit = match &self.common.permits {
            Some(permits) => Some(permits.acquire().await.expect("the semaphore is never closed")),
            None => None,
        };
        self.common.live.started.fetch_add(1, Ordering::Relaxed);
        let in_flight = self.common.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.common.in_flight_max.fetch_max(in_flight, Ordering::Relaxed);
        self.client
            .stream(&self.common.load.shape, bytes, self.common.clock, more || self.common.load.keep_text, record)
            .await;
        self.common.in_flight.fetch_sub(1, Ordering::Relaxed);
        drop(permit);
        self.common.live.done.fetch_add(1, Ordering::Relaxed);
        match &record.failure {
            Some(_) => self.common.live.failed.fetch_add(1, Ordering::Relaxed),
            None => {
                let ttft_us = record.ttft_s().unwrap_or_default() * 1e6;
                self.common.live.ttft_us.fetch_add(ttft_us as u64, Ordering::Relaxed);
                self.common.live.output_tokens.fetch_add(u64::from(record.tokens_out()), Ordering::Relaxed)
            }
        };
    }
}

impl Common {
    fn over(&self) -> bool {
        self.live.stop.load(Ordering::Relaxed)
            || self.load.duration.is_some_and(|duration| self.clock.elapsed() >= duration)
    }

    fn take_next(&self) -> Option<usize> {
        let count = self.load.conversations.len();
        if self.over() {
            return None;
        }
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        (at < count || self.load.cycle).then(|| at % count)
    }
}

/// Runs something that is not measured on a runtime of its own.
pub fn control<T>(endpoint: &Endpoint, work: impl AsyncFnOnce(&Client) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|why| Error::internal(format!("cannot start a runtime: {why}")))?;
    let client = request::Client::new(endpoint.clone());
    runtime.block_on(work(&client))
}
