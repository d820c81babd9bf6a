// performance-critical: no allocation per token, no lock; formats only a failure
//! One model on several devices: the first rank works on the engine thread and samples, each other one has a thread of its
//! own, which gets every batch.
//!
//! Invariants: at most one order is under way at a rank; a rank that fails or panics breaks the [`Link`], so that no rank
//! waits for another that does not come; a step has succeeded only when all ranks say so; a broken link is never mended, and
//! the executor says so ([`Executor::broken`]): what helps is loading the model again.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use sconce_models::{BatchInput, Logits, Sample, SampleRequests};

use super::executor::{DeviceExecutor, Executor, SamplingLimits, WakeError};
use super::run::fenced;
use super::sampler::Workers;
use super::scheduler::Capabilities;

/// A rank that does not sample. Made anywhere, used by one thread.
pub trait Rank: Send {
    /// As [`Executor::warm_up`], beside the first rank's.
    fn warm_up(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Its part of the step of `batch`; returns when that is over, and with an error when the link was broken meanwhile.
    fn follow(&mut self, batch: &BatchInput) -> Result<(), String>;

    /// As [`Executor::sleep`]; one that sleeps already says the same again.
    fn sleep(&mut self) -> Result<u64, String>;

    /// As [`Executor::wake`]; one that is awake stays so.
    fn wake(&mut self) -> Result<(), WakeError>;
}

/// What joins ranks. Where it is broken, every rank's step ends with an error, also one that is under way.
pub trait Link: Send + Sync {
    /// For good. The first reason lasts.
    fn break_off(&self, why: &str);

    /// Why it is broken.
    fn failure(&self) -> Option<String>;
}

/// All ranks of a model.
pub struct RankedExecutor {
    first: Box<dyn Executor>,
    /// Of the first rank's device; `None` without one.
    limits: Option<SamplingLimits>,
    others: Vec<Other>,
    link: Arc<dyn Link>,
    /// The other ranks' copy of the step's batch.
    batch: Arc<BatchInput>,
}

/// The engine thread's end of another rank.
struct Other {
    /// `None` while it is being taken down.
    orders: Option<SyncSender<Order>>,
    /// Bytes of one that went to sleep, 0 of everything else.
    answers: Receiver<Result<u64, WakeError>>,
    is_awaited: bool,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    WarmUp,
    Step(Arc<BatchInput>),
    Sleep,
    Wake,
}

impl RankedExecutor {
    /// `others` are those behind the first, in their order, with threads named after `name`.
    pub fn start(
        name: &str,
        mut first: Box<dyn Executor>,
        others: Vec<Box<dyn Rank>>,
        link: Arc<dyn Link>,
    ) -> Result<Self, String> {
        let limits = first.device().map(|device| device.limits());
        let mut executor = Self { first, limits, others: Vec::new(), link: Arc::clone(&link), batch: Arc::default() };
        for (number, rank) in (1..).zip(others) {
            let (orders, inbox) = sync_channel(1);
            let (outbox, answers) = sync_channel(1);
            let link = Arc::clone(&link);
            let thread = std::thread::Builder::new().name(format!("{name}:{number}"));
            let thread = thread.spawn(move || serve(number, rank, &*link, &inbox, &outbox));
            let thread = thread.map_err(|error| format!("no thread for rank {number}: {error}"))?;
            executor.others.push(Other { orders: Some(orders), answers, is_awaited: false, thread: Some(thread) });
        }
        Ok(executor)
    }

    /// Has the other ranks begin the step.
    fn begin(&mut self, batch: &BatchInput) -> Result<(), String> {
        // Of a step that was never collected.
        let _ = self.settle();
        if let Some(why) = self.link.failure() {
            return Err(broken(&why));
        }
        match Arc::get_mut(&mut self.batch) {
            Some(own) => own.copy_from(batch),
            None => self.batch = Arc::new(batch.clone()),
        }
        let batch = &self.batch;
        self.others.iter_mut().for_each(|other| other.order(Order::Step(Arc::clone(batch)), &*self.link));
        Ok(())
    }

    /// Runs the first rank's part. Where it fails, nobody waits for it.
    fn run_first<T>(&mut self, run: impl FnOnce(&mut dyn Executor) -> Result<T, String>) -> Result<T, String> {
        fenced(|| run(&mut *self.first)).inspect_err(|why| self.link.break_off(&format!("rank 0: {why}")))
    }

    /// Waits for the answers of all other ranks to what they were told last. Bytes of those that went to sleep.
    fn settle(&mut self) -> Result<u64, WakeError> {
        let mut all = Ok(0);
        for other in &mut self.others {
            all = match (all, other.answer()) {
                (Ok(bytes), Ok(more)) => Ok(bytes + more),
                (Err(WakeError::Memory(_)), Err(error @ WakeError::Failed(_))) | (Ok(_), Err(error)) => Err(error),
                (Err(error), _) => Err(error),
            };
        }
        all
    }

    /// The step is over when all ranks' parts are.
    fn finish<T>(&mut self, first: Result<T, String>) -> Result<T, String> {
        let others = self.settle();
        // The first reason says more than what each rank saw of it.
        match (self.link.failure(), first, others) {
            (Some(why), _, _) => Err(broken(&why)),
            (None, Ok(_), Err(error)) => Err(error.to_string()),
            (None, first, _) => first,
        }
    }

    fn order_all(&mut self, order: impl Fn() -> Order) {
        let _ = self.settle();
        self.others.iter_mut().for_each(|other| other.order(order(), &*self.link));
    }

    fn sleep_all(&mut self) -> Result<u64, String> {
        self.order_all(|| Order::Sleep);
        let first = fenced(|| self.first.sleep());
        let others = self.settle().map_err(|error| error.to_string());
        Ok(first? + others?)
    }

    fn wake_all(&mut self) -> Result<(), WakeError> {
        self.order_all(|| Order::Wake);
        let mut first = Err(WakeError::Failed("it was not tried".to_owned()));
        let tried = fenced(|| {
            first = self.first.wake();
            Ok(())
        });
        let first = tried.map_err(WakeError::Failed).and(first);
        match (first, self.settle()) {
            (Ok(()), others) => others.map(|_| ()),
            (Err(WakeError::Memory(_)), Err(error @ WakeError::Failed(_))) => Err(error),
            (first, _) => first,
        }
    }
}

impl Other {
    fn order(&mut self, order: Order, link: &dyn Link) {
        let is_sent = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        self.is_awaited = is_sent;
        if !is_sent {
            link.break_off("the thread of a rank has ended");
        }
    }

    fn answer(&mut self) -> Result<u64, WakeError> {
        if !std::mem::take(&mut self.is_awaited) {
            return Ok(0);
        }
        self.answers.recv().unwrap_or_else(|_| Err(WakeError::Failed("the thread of a rank has ended".to_owned())))
    }
}

/// The life of another rank's thread.
fn serve(
    number: usize,
    mut rank: Box<dyn Rank>,
    link: &dyn Link,
    inbox: &Receiver<Order>,
    outbox: &SyncSender<Result<u64, WakeError>>,
) {
    let named = |why: String| format!("rank {number}: {why}");
    while let Ok(order) = inbox.recv() {
        let mut step = |run: &dyn Fn(&mut dyn Rank) -> Result<(), String>| {
            let done = fenced(|| run(&mut *rank)).map_err(named).inspect_err(|why| link.break_off(why));
            done.map(|()| 0).map_err(WakeError::Failed)
        };
        let answer = match order {
            Order::WarmUp => step(&|rank| rank.warm_up()),
            Order::Step(batch) => step(&|rank| rank.follow(&batch)),
            Order::Sleep => fenced(|| rank.sleep()).map_err(named).map_err(WakeError::Failed),
            Order::Wake => {
                let mut woken = Err(WakeError::Failed(String::new()));
                let tried = fenced(|| {
                    woken = rank.wake();
                    Ok(())
                });
                tried.map_err(named).map_err(WakeError::Failed).and(woken).map(|()| 0)
            }
        };
        if outbox.send(answer).is_err() {
            return;
        }
    }
}

#[cold]
fn broken(why: &str) -> String {
    format!("the ranks of the model do not work together any more: {why}")
}

impl Drop for RankedExecutor {
    fn drop(&mut self) {
        if self.others.iter().any(|other| other.is_awaited) {
            self.link.break_off("the model is taken down");
        }
        self.others.iter_mut().for_each(|other| other.orders = None);
        for thread in self.others.iter_mut().filter_map(|other| other.thread.take()) {
            // What its last order came to was an answer to it.
            let _ = thread.join();
        }
    }
}

impl Executor for RankedExecutor {
    fn capabilities(&self) -> Capabilities {
        self.first.capabilities()
    }

    fn vocab(&self) -> usize {
        self.first.vocab()
    }

    fn device(&mut self) -> Option<&mut dyn DeviceExecutor> {
        if self.limits.is_some() { Some(self) } else { None }
    }

    fn workers(&self) -> Workers {
        self.first.workers()
    }

    fn warm_up(&mut self, report: &mut dyn FnMut(usize, usize)) -> Result<(), String> {
        self.order_all(|| Order::WarmUp);
        let done = self.run_first(|first| first.warm_up(report));
        self.finish(done)
    }

    fn broken(&self) -> Option<String> {
        self.link.failure().map(|why| broken(&why))
    }

    /// All ranks sleep, or none does.
    fn sleep(&mut self) -> Result<u64, String> {
        self.sleep_all().inspect_err(|_| {
            if let Err(error) = self.wake_all() {
                self.link.break_off(&format!("a rank fell asleep and does not wake: {error}"));
            }
        })
    }

    /// All ranks are awake, or sleep on.
    fn wake(&mut self) -> Result<(), WakeError> {
        self.wake_all().inspect_err(|_| {
            if let Err(error) = self.sleep_all() {
                self.link.break_off(&format!("a rank woke and does not sleep again: {error}"));
            }
        })
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        self.begin(batch)?;
        let done = self.run_first(|first| first.execute(batch, logits));
        self.finish(done)
    }
}

impl DeviceExecutor for RankedExecutor {
    /// Asked only where the first rank has a device.
    fn limits(&self) -> SamplingLimits {
        self.limits.unwrap_or(SamplingLimits { top_logprobs_max: 0, masks: false })
    }

    fn issue(&mut self, batch: &BatchInput) -> Result<(), String> {
        self.begin(batch)?;
        let issued = self.run_first(|first| device(first)?.issue(batch));
        if issued.is_err() { self.finish(issued) } else { issued }
    }

    fn choose(&mut self, wanted: &SampleRequests) -> Result<bool, String> {
        let chosen = self.run_first(|first| device(first)?.choose(wanted));
        if chosen.is_err() { self.finish(chosen) } else { chosen }
    }

    fn collect(
        &mut self,
        wanted: &SampleRequests,
        samples: &mut Vec<Sample>,
        logits: &mut Logits,
    ) -> Result<(), String> {
        let collected = self.run_first(|first| device(first)?.collect(wanted, samples, logits));
        self.finish(collected)
    }
}

fn device(executor: &mut dyn Executor) -> Result<&mut dyn DeviceExecutor, String> {
    executor.device().ok_or_else(|| "the first rank has no device".to_owned())
}
