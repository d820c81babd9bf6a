//! The loop of one worker: what happens goes into the state machine, what it says is done.
//!
//! The world is a trait, so that tests put a fake one under a paused clock. All waiting is in one place; nothing that a
//! worker does or leaves undone holds the loop up.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::health::{Check, Served};
use crate::process::{Launcher, WorkerSpec};
use crate::state::{Action, Input, Limits, Machine, State};
use crate::status::{Phase, Status};

/// Where workers run.
pub trait World: Send + Sync + 'static {
    type Process: Process;

    /// A new process, and the port that it was told to listen on.
    fn spawn(&self) -> Result<(Self::Process, u16), String>;
    /// What its port answers.
    fn check(&self, port: u16) -> impl Future<Output = Check> + Send + 'static;
}

/// A process that was started. Dropping it ends it.
pub trait Process: Send + 'static {
    /// Waits until it and all that came of it have ended: why. May be dropped and asked again until it has answered.
    fn ended(&mut self) -> impl Future<Output = String> + Send;
    /// Asks it to end.
    fn terminate(&mut self);
    fn kill(&mut self);
    /// Lines that it has written.
    fn lines(&self) -> u64;
    /// CPU time that it has taken.
    fn cpu_ms(&self) -> u64;
    fn doing(&self) -> Option<&'static str>;
    fn tail(&self) -> Vec<String>;
}

/// How often is looked.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// At the port of a worker that is starting.
    pub starting: Duration,
    /// At the port of a worker that is ready.
    pub ready: Duration,
    /// At its CPU time.
    pub cpu: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { starting: s(1), ready: s(5), cpu: s(5) }
    }
}

/// A process that uses less than this share of a core does nothing: threads that wait wake up now and then.
const BUSY_PERCENT: u64 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Drain,
    Stop,
    Retry,
}

/// One worker, from outside.
pub struct Supervisor {
    spec: WorkerSpec,
    limits: Limits,
    tell: watch::Sender<Status>,
    // Taken at the start, the end, and to give an order.
    running: Mutex<Option<Running>>,
}

struct Running {
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Starts nothing yet.
    pub fn new(spec: WorkerSpec, limits: Limits) -> Self {
        Self { spec, limits, tell: watch::Sender::new(Status::default()), running: Mutex::new(None) }
    }

    pub fn spec(&self) -> &WorkerSpec {
        &self.spec
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn status(&self) -> Status {
        self.tell.borrow().clone()
    }

    pub fn is_ready(&self) -> bool {
        self.tell.borrow().phase == Phase::Ready
    }

    pub fn watch(&self) -> watch::Receiver<Status> {
        self.tell.subscribe()
    }

    /// Starts the worker and keeps it running. Once.
    pub fn start(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_some() {
            return;
        }
        let (orders, taken) = mpsc::channel(8);
        let world = Launcher { spec: self.spec.clone() };
        let seed = self.spec.name.bytes().fold(u64::from(std::process::id()), |seed, byte| seed * 31 + u64::from(byte));
        let keeper = Keeper::new(&self.spec.name, world, Machine::new(self.limits.clone(), seed), self.tell.clone());
        let task = tokio::spawn(keeper.run(Pace::default(), taken));
        *running = Some(Running { orders, task });
    }

    fn order(&self, order: Order) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*running {
            // A full queue of orders has this one in it, or a worker that has ended.
            let _ = running.orders.try_send(order);
        }
    }

    /// Takes no new requests from now on.
    pub fn drain(&self) {
        self.order(Order::Drain);
    }

    /// Does not wait any longer before the next start.
    pub fn retry(&self) {
        self.order(Order::Retry);
    }

    /// Ends the worker, politely at first, and comes back when nothing of it is left.
    pub async fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { orders, task }) = running else { return };
        // Without a listener it has stopped.
        let _ = orders.send(Order::Stop).await;
        if let Err(panic) = task.await {
            tracing::error!(worker = %self.spec.name, %panic, "the supervision of a worker failed");
        }
    }
}

/// The loop and what it knows.
pub(crate) struct Keeper<W: World> {
    name: String,
    world: Arc<W>,
    machine: Machine,
    tell: watch::Sender<Status>,
    origin: Instant,
    alive: Option<Alive<W::Process>>,
    /// A look at the port that is not answered yet.
    checking: Option<Pin<Box<dyn Future<Output = Check> + Send>>>,
    served: Option<Served>,
    generation: u64,
    /// The last lines of the last process.
    tail: Vec<String>,
}

/// A process and what was seen of it.
struct Alive<P> {
    process: P,
    port: u16,
    lines: u64,
    cpu_ms: u64,
    cpu_at: Instant,
    next_check: Instant,
}

impl<W: World> Keeper<W> {
    pub fn new(name: &str, world: W, machine: Machine, tell: watch::Sender<Status>) -> Self {
        Self {
            name: name.to_owned(),
            world: Arc::new(world),
            machine,
            tell,
            origin: Instant::now(),
            alive: None,
            checking: None,
            served: None,
            generation: 0,
            tail: Vec::new(),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub async fn run(mut self, pace: Pace, mut orders: mpsc::Receiver<Order>) {
        self.take(Input::Start);
        while self.machine.state() != State::Stopped {
            let wake = self.wake(pace);
            let input = tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Order::Drain) => Input::Drain,
                    Some(Order::Retry) => Input::Retry,
                    Some(Order::Stop) | None => Input::Stop,
                },
                why = ended(&mut self.alive) => {
                    self.bury();
                    Input::Exited(why)
                }
                check = checked(&mut self.checking) => {
                    self.checking = None;
                    if let Check::Ready(served) = &check {
                        self.served = Some(served.clone());
                    }
                    Input::Checked(check)
                }
                () = sleep_until(wake) => {
                    self.look(pace);
                    Input::Tick
                }
            };
            self.take(input);
        }
    }

    /// When there is something to do without anything happening.
    fn wake(&self, pace: Pace) -> Instant {
        let due = self.machine.next_ms().map(|ms| self.origin + Duration::from_millis(ms));
        let look = self.alive.as_ref().filter(|_| self.machine.wants_checks()).map(|alive| {
            let cpu = alive.cpu_at + pace.cpu;
            if self.checking.is_none() { alive.next_check.min(cpu) } else { cpu }
        });
        let far = || Instant::now() + Duration::from_secs(3600);
        due.into_iter().chain(look).min().unwrap_or_else(far)
    }

    /// Looks at the port and at signs of progress.
    fn look(&mut self, pace: Pace) {
        if !self.machine.wants_checks() {
            return;
        }
        let Some(alive) = &mut self.alive else { return };
        let now = Instant::now();
        let mut has_moved = false;
        let lines = alive.process.lines();
        has_moved |= lines > std::mem::replace(&mut alive.lines, lines);
        let took = now - alive.cpu_at;
        if took >= pace.cpu {
            alive.cpu_at = now;
            // Only while it starts does that count, and looking costs a walk over all processes.
            if matches!(self.machine.state(), State::Starting | State::Warming) {
                let cpu_ms = alive.process.cpu_ms();
                let used_ms = cpu_ms.saturating_sub(std::mem::replace(&mut alive.cpu_ms, cpu_ms));
                has_moved |= u128::from(used_ms) * 100 >= took.as_millis() * u128::from(BUSY_PERCENT);
            }
        }
        if self.checking.is_none() && now >= alive.next_check {
            let is_ready = self.machine.state() == State::Ready;
            alive.next_check = now + if is_ready { pace.ready } else { pace.starting };
            self.checking = Some(Box::pin(self.world.check(alive.port)));
        }
        if has_moved {
            let now_ms = self.now_ms();
            self.machine.step(now_ms, Input::Progress);
        }
    }

    fn take(&mut self, input: Input) {
        let mut input = Some(input);
        while let Some(next) = input.take() {
            let before = self.machine.state();
            let now_ms = self.now_ms();
            let action = self.machine.step(now_ms, next);
            match action {
                None => {}
                Some(Action::Spawn) => input = self.spawn().err().map(Input::Exited),
                Some(Action::Terminate) => {
                    self.checking = None;
                    if let Some(alive) = &mut self.alive {
                        alive.process.terminate();
                    }
                }
                Some(Action::Kill) => {
                    if let Some(alive) = &mut self.alive {
                        tracing::warn!(worker = %self.name, "a worker does not end when asked, and is killed");
                        alive.process.kill();
                    }
                }
            }
            if Phase::from(self.machine.state()) != Phase::Ready {
                self.served = None;
            }
            self.publish();
            if Phase::from(before) != Phase::from(self.machine.state()) {
                self.say();
            }
        }
    }

    fn spawn(&mut self) -> Result<(), String> {
        let (process, port) = self.world.spawn()?;
        let now = Instant::now();
        self.generation += 1;
        self.alive = Some(Alive { process, port, lines: 0, cpu_ms: 0, cpu_at: now, next_check: now });
        Ok(())
    }

    fn bury(&mut self) {
        self.checking = None;
        if let Some(alive) = self.alive.take() {
            self.tail = alive.process.tail();
        }
    }

    fn publish(&self) {
        let mut status = Status::of(&self.machine, self.origin);
        status.port = self.alive.as_ref().map(|alive| alive.port);
        status.doing = self.alive.as_ref().and_then(|alive| alive.process.doing());
        status.generation = self.generation;
        status.served.clone_from(&self.served);
        self.tell.send_if_modified(|told| {
            let differs = *told != status;
            *told = status;
            differs
        });
    }

    /// Every change of state is a line in the server's log.
    fn say(&self) {
        let (worker, status) = (self.name.as_str(), self.tell.borrow().clone());
        let says = status.says(Instant::now());
        match status.phase {
            Phase::Ready => {
                tracing::info!(worker, start_s = status.start_took_s, port = status.port, "a worker is ready");
            }
            Phase::Failed => tracing::error!(worker, "{says}\nits last lines:\n{}", self.tail.join("\n")),
            Phase::Backoff | Phase::Unresponsive => tracing::warn!(worker, "{says}"),
            phase => tracing::info!(worker, state = phase.word(), "{says}"),
        }
    }
}

async fn ended<P: Process>(alive: &mut Option<Alive<P>>) -> String {
    match alive {
        Some(alive) => alive.process.ended().await,
        None => pending().await,
    }
}

async fn checked(checking: &mut Option<Pin<Box<dyn Future<Output = Check> + Send>>>) -> Check {
    match checking {
        Some(checking) => checking.await,
        None => pending().await,
    }
}
