//! The state machine under anything that can happen in any order, and the loop around it in a fake world.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use crate::health::{Check, Served};
use crate::state::{Action, Input, Limits, Machine, State, Then};
use crate::status::{Phase, Status};
use crate::supervisor::{Keeper, Order, Pace, Process, World};

fn ready() -> Check {
    Check::Ready(Served { model: "m".into(), max_model_len: None })
}

fn garbage() -> Check {
    Check::Garbage("noise".into())
}

/// Steps with the milliseconds between them, and where they lead.
#[track_caller]
fn leads(steps: &[(u64, Input)], state: fn(&State) -> bool, last: Option<Action>) -> Machine {
    let mut machine = Machine::new(Limits::default(), 1);
    let (mut now_ms, mut action) = (0, machine.step(0, Input::Start));
    for (after_ms, input) in steps {
        now_ms += after_ms;
        action = machine.step(now_ms, input.clone());
    }
    assert!(state(&machine.state()), "{:?}", machine.state());
    assert_eq!(action, last);
    machine
}

#[test]
fn a_life_as_a_table() {
    use Input::{Checked, Drain, Exited, Progress, Stop, Tick};
    let min = |minutes: u64| minutes * 60_000;
    let crash = || Exited("exited with code 1".into());
    let is_restarting = |state: &State| matches!(state, State::Stopping { then: Then::Restart, .. });
    leads(&[], |state| *state == State::Starting, Some(Action::Spawn));
    leads(&[(1, Checked(Check::Closed))], |state| *state == State::Starting, None);
    leads(&[(1, Checked(Check::Silent))], |state| *state == State::Warming, None);
    let machine =
        leads(&[(1, Checked(Check::NotYet("503".into()))), (5, Checked(ready()))], |s| *s == State::Ready, None);
    assert_eq!((machine.start_took_ms(), machine.restarts(), machine.note()), (Some(6), 0, None));
    // Twenty minutes of compiling with a line now and then are normal; ten without one are not; two hours are not.
    let compile: Vec<_> = (0..20).map(|_| (min(1), Progress)).chain([(1, Checked(ready()))]).collect();
    leads(&compile, |state| *state == State::Ready, None);
    leads(&[(min(1), Progress), (min(10) - 1, Tick)], |state| *state == State::Starting, None);
    let hung = leads(&[(min(1), Progress), (min(10), Tick)], is_restarting, Some(Action::Terminate));
    assert!(hung.next_ms() == Some(min(11) + 30_000));
    let long: Vec<_> = (0..60).flat_map(|_| [(min(1), Progress), (0, Tick)]).collect();
    leads(&long, is_restarting, Some(Action::Terminate));
    // Politely, then not, then again.
    let ignored = [(1, Stop), (29_999, Tick)];
    leads(&ignored, |state| matches!(state, State::Stopping { killed_ms: None, .. }), None);
    leads(
        &[(1, Stop), (30_000, Tick)],
        |s| matches!(s, State::Stopping { killed_ms: Some(_), .. }),
        Some(Action::Kill),
    );
    leads(&[(1, Stop), (30_000, Tick), (5000, Tick)], |s| matches!(s, State::Stopping { .. }), Some(Action::Kill));
    leads(&[(1, Stop), (30_000, Tick), (1, crash())], |state| *state == State::Stopped, None);
    // Garbage gets half a minute, and an answer in between starts it anew.
    let noise = [(1, Checked(garbage())), (29_999, Checked(garbage()))];
    leads(&noise, |state| *state == State::Warming, None);
    leads(&[(1, Checked(garbage())), (30_000, Checked(garbage()))], is_restarting, Some(Action::Terminate));
    let better = [(1, Checked(garbage())), (9, Checked(Check::Silent)), (30_000, Checked(garbage()))];
    leads(&better, |state| *state == State::Warming, None);
    // A ready worker misses three checks before it gets no more requests, and comes back with one.
    let miss = || (5000, Checked(Check::Silent));
    leads(&[(1, Checked(ready())), miss(), miss()], |state| *state == State::Ready, None);
    leads(&[(1, Checked(ready())), miss(), miss(), miss()], |state| *state == State::Unresponsive, None);
    let back = [(1, Checked(ready())), miss(), miss(), miss(), (1, Checked(ready()))];
    leads(&back, |state| *state == State::Ready, None);
    let busy = [(1, Checked(ready())), miss(), miss(), miss(), (min(10), Progress), (1, Tick)];
    let stuck = leads(&busy, is_restarting, Some(Action::Terminate));
    assert!(stuck.restarts() == 0);
    // Ends.
    leads(&[(1, crash())], |state| matches!(state, State::Backoff { .. }), None);
    leads(&[(1, crash()), (1000, Tick)], |state| *state == State::Starting, Some(Action::Spawn));
    leads(&[(1, crash()), (1, Input::Retry)], |state| *state == State::Starting, Some(Action::Spawn));
    leads(&[(1, crash()), (1, Stop)], |state| *state == State::Stopped, None);
    leads(&[(1, crash()), (1, Stop), (90_000, Tick)], |state| *state == State::Stopped, None);
    leads(&[(1, Checked(ready())), (1, Drain)], |state| *state == State::Draining, None);
    leads(&[(1, Checked(ready())), (1, Drain), (1, crash())], |state| *state == State::Stopped, None);
    leads(
        &[(1, Checked(ready())), (1, Drain), (1, Stop)],
        |s| matches!(s, State::Stopping { .. }),
        Some(Action::Terminate),
    );
    leads(&[(1, Drain)], |s| matches!(s, State::Stopping { then: Then::Stay, .. }), Some(Action::Terminate));
}

#[test]
fn a_crash_loop_is_called_one_until_it_is_none() {
    let crash = |machine: &mut Machine, now_ms: &mut u64, after_ms: u64| {
        *now_ms += after_ms;
        machine.step(*now_ms, Input::Exited("exited with code 3".into()));
        let until = machine.next_ms().expect("it waits");
        let state = machine.state();
        let pause_ms = until - *now_ms;
        *now_ms = until;
        assert_eq!(machine.step(*now_ms, Input::Tick), Some(Action::Spawn));
        (matches!(state, State::Failed { .. }), pause_ms)
    };
    let mut machine = Machine::new(Limits::default(), 7);
    let mut now_ms = 0;
    machine.step(0, Input::Start);
    for nth in 0..4_u32 {
        let (is_failed, pause_ms) = crash(&mut machine, &mut now_ms, 10);
        let whole = 1000 << nth;
        assert!(!is_failed && (whole / 2..=whole).contains(&pause_ms), "{nth}: {pause_ms}");
    }
    assert_eq!(crash(&mut machine, &mut now_ms, 10), (true, 300_000), "the fifth");
    assert_eq!(crash(&mut machine, &mut now_ms, 3_600_000), (true, 300_000), "an hour of starting is no success");
    assert_eq!(machine.restarts(), 6);
    machine.step(now_ms, Input::Checked(ready()));
    assert_eq!(crash(&mut machine, &mut now_ms, 299_999), (true, 300_000), "ready, but not for long");
    machine.step(now_ms, Input::Checked(ready()));
    let (is_failed, pause_ms) = crash(&mut machine, &mut now_ms, 300_000);
    assert!(!is_failed && pause_ms <= 1000, "long enough: {pause_ms}");
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        1 => Just(Input::Start),
        1 => Just(Input::Drain),
        1 => Just(Input::Stop),
        1 => Just(Input::Retry),
        4 => Just(Input::Progress),
        3 => Just(Input::Checked(Check::Closed)),
        2 => Just(Input::Checked(Check::Silent)),
        2 => Just(Input::Checked(garbage())),
        2 => Just(Input::Checked(Check::NotYet("503".into()))),
        6 => Just(Input::Checked(ready())),
        4 => Just(Input::Exited("exited with code 1".into())),
        6 => Just(Input::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_rules_hold(
        seed in any::<u64>(),
        steps in prop::collection::vec((prop_oneof![0_u64..100, 0_u64..100_000, 0_u64..4_000_000], any_input()), 1..80),
    ) {
        let limits = Limits::default();
        let mut machine = Machine::new(limits.clone(), seed);
        let (mut now_ms, mut is_alive, mut is_stopped, mut spawned_ms) = (0, false, false, 0);
        let mut terminated_ms: Option<u64> = None;
        for (after_ms, input) in steps {
            now_ms += after_ms;
            let is_first = input == Input::Start && machine.state() == State::Stopped;
            if is_first { is_stopped = false; }
            if matches!(input, Input::Stop) { is_stopped = true; }
            // The world says so only of a process that lives.
            if matches!(input, Input::Exited(_)) && !is_alive { continue; }
            let before = machine.state();
            let has_ended = matches!(input, Input::Exited(_));
            let was_due = machine.next_ms().is_some_and(|at| at <= now_ms) && input == Input::Tick;
            let action = machine.step(now_ms, input);
            if has_ended { is_alive = false; terminated_ms = None; }
            match action {
                Some(Action::Spawn) => {
                    prop_assert!(!is_alive, "one process at a time");
                    prop_assert!(!is_stopped, "nothing is started after the stop");
                    if let State::Backoff { until_ms } | State::Failed { until_ms } = before {
                        prop_assert!(until_ms <= now_ms || !was_due);
                    }
                    is_alive = true;
                    spawned_ms = now_ms;
                }
                Some(Action::Terminate) => {
                    prop_assert!(is_alive && terminated_ms.is_none(), "asked once");
                    terminated_ms = Some(now_ms);
                }
                Some(Action::Kill) => {
                    let asked_ms = terminated_ms.expect("asked first");
                    prop_assert!(is_alive && now_ms - asked_ms >= limits.grace_ms);
                }
                None => {}
            }
            prop_assert_eq!(machine.is_alive(), is_alive);
            prop_assert!(!(is_stopped && machine.state() == State::Ready));
            if was_due {
                let starts = matches!(machine.state(), State::Starting | State::Warming);
                prop_assert!(!starts || now_ms - spawned_ms < limits.ready_ms, "no start is longer than its time");
                prop_assert!(machine.next_ms().is_none_or(|at| at > now_ms), "what is due is done: {:?}", machine.state());
            }
            if let State::Backoff { until_ms } = machine.state() {
                prop_assert!(until_ms - machine.since_ms() <= limits.backoff_max_ms);
                prop_assert!(until_ms - machine.since_ms() >= limits.backoff_first_ms / 2);
            }
        }
    }
}

/// What a fake process does with its life, in seconds since its start.
#[derive(Debug, Clone, Default)]
struct Plan {
    /// It ends by itself.
    ends_s: Option<f64>,
    /// It writes a line every second until then.
    writes_until_s: f64,
    /// It computes until then.
    computes_until_s: f64,
    listens_s: f64,
    garbage: bool,
    ready_s: f64,
    /// It stops answering.
    dies_inside_s: Option<f64>,
    ignores_term: bool,
}

struct FakeWorld {
    plans: Mutex<VecDeque<Plan>>,
    now: Arc<Mutex<Option<(Plan, Instant)>>>,
    alive: Arc<AtomicU64>,
    spawned: Arc<AtomicU64>,
}

struct FakeProcess {
    plan: Plan,
    born: Instant,
    told: watch::Sender<&'static str>,
    alive: Arc<AtomicU64>,
}

impl World for FakeWorld {
    type Process = FakeProcess;

    fn spawn(&self) -> Result<(FakeProcess, u16), String> {
        let plan = {
            let mut plans = self.plans.lock().expect("no panic");
            if plans.len() > 1 { plans.pop_front().expect("some") } else { plans[0].clone() }
        };
        let born = Instant::now();
        *self.now.lock().expect("no panic") = Some((plan.clone(), born));
        assert_eq!(self.alive.fetch_add(1, Ordering::SeqCst), 0, "one process at a time");
        self.spawned.fetch_add(1, Ordering::SeqCst);
        Ok((FakeProcess { plan, born, told: watch::Sender::new(""), alive: Arc::clone(&self.alive) }, 1))
    }

    fn check(&self, _port: u16) -> impl Future<Output = Check> + Send + 'static {
        let (plan, born) = self.now.lock().expect("no panic").clone().expect("it runs");
        async move {
            let age_s = born.elapsed().as_secs_f64();
            if plan.dies_inside_s.is_some_and(|at| age_s >= at) {
                sleep(Duration::from_secs(5)).await;
                return Check::Silent;
            }
            match age_s {
                age_s if age_s < plan.listens_s => Check::Closed,
                _ if plan.garbage => garbage(),
                age_s if age_s < plan.ready_s => Check::NotYet("/health answers 503".into()),
                _ => ready(),
            }
        }
    }
}

impl Process for FakeProcess {
    async fn ended(&mut self) -> String {
        let mut told = self.told.subscribe();
        let ignores = self.plan.ignores_term;
        let by_itself = self.plan.ends_s.map(|at| self.born + Duration::from_secs_f64(at));
        let how = tokio::select! {
            _ = told.wait_for(|told| *told == "kill" || (*told == "term" && !ignores)) => "was ended",
            () = async { match by_itself { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } =>
                "exited with code 3: no cores",
        };
        self.alive.fetch_sub(1, Ordering::SeqCst);
        how.to_owned()
    }

    fn terminate(&mut self) {
        self.told.send_replace("term");
    }

    fn kill(&mut self) {
        self.told.send_replace("kill");
    }

    fn lines(&self) -> u64 {
        self.born.elapsed().as_secs_f64().min(self.plan.writes_until_s) as u64
    }

    fn cpu_ms(&self) -> u64 {
        (1000.0 * self.born.elapsed().as_secs_f64().min(self.plan.computes_until_s)) as u64
    }

    fn doing(&self) -> Option<&'static str> {
        Some("compiling")
    }

    fn tail(&self) -> Vec<String> {
        vec!["no cores".into()]
    }
}

/// A supervised fake worker under a paused clock.
struct Stage {
    status: watch::Receiver<Status>,
    orders: mpsc::Sender<Order>,
    over: oneshot::Receiver<()>,
    alive: Arc<AtomicU64>,
    spawned: Arc<AtomicU64>,
    origin: Instant,
}

impl Stage {
    fn start(plans: Vec<Plan>) -> Self {
        let (alive, spawned) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let world = FakeWorld {
            plans: Mutex::new(plans.into()),
            now: Arc::default(),
            alive: Arc::clone(&alive),
            spawned: Arc::clone(&spawned),
        };
        let tell = watch::Sender::new(Status::default());
        let status = tell.subscribe();
        let (orders, taken) = mpsc::channel(8);
        let (done, over) = oneshot::channel();
        let origin = Instant::now();
        let keeper = Keeper::new("w", world, Machine::new(Limits::default(), 3), tell);
        tokio::spawn(async move {
            keeper.run(Pace::default(), taken).await;
            let _ = done.send(());
        });
        Self { status, orders, over, alive, spawned, origin }
    }

    /// Waits for a phase; the clock runs as fast as nothing happens.
    async fn until(&mut self, phase: Phase) -> (f64, String) {
        let status = self.status.wait_for(|status| status.phase == phase).await.expect("it runs").clone();
        (self.origin.elapsed().as_secs_f64(), status.says(Instant::now()))
    }

    async fn stop(self) -> f64 {
        self.orders.send(Order::Stop).await.expect("it runs");
        let asked = Instant::now();
        self.over.await.expect("it ends");
        assert_eq!(self.alive.load(Ordering::SeqCst), 0, "nothing is left");
        asked.elapsed().as_secs_f64()
    }
}

#[tokio::test(start_paused = true)]
async fn twenty_minutes_of_compiling_are_normal() {
    for (writes_until_s, computes_until_s) in [(1200.0, 0.0), (0.0, 1200.0)] {
        let plan = Plan { writes_until_s, computes_until_s, listens_s: 1190.0, ready_s: 1200.0, ..Plan::default() };
        let mut stage = Stage::start(vec![plan]);
        stage.until(Phase::Starting).await;
        sleep(Duration::from_secs(240)).await;
        assert_eq!(stage.status.borrow().says(Instant::now()), "starting for 4 min: compiling");
        let (at_s, says) = stage.until(Phase::Warming).await;
        assert!((1190.0..1192.0).contains(&at_s), "{at_s}");
        assert_eq!(says, "starting for 19 min, its port answers: /health answers 503");
        let (at_s, _) = stage.until(Phase::Ready).await;
        assert!((1200.0..1202.0).contains(&at_s), "{at_s}");
        let status = stage.status.borrow().clone();
        assert_eq!((status.restarts, status.served.map(|served| served.model)), (0, Some("m".to_owned())));
        assert!(stage.stop().await < 0.1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hang_is_not_normal_and_a_stubborn_process_is_killed() {
    let hang = Plan { writes_until_s: 100.0, listens_s: f64::MAX, ignores_term: true, ..Plan::default() };
    let well = Plan { ready_s: 10.0, ..Plan::default() };
    let mut stage = Stage::start(vec![hang, well]);
    let (at_s, _) = stage.until(Phase::Stopping).await;
    assert!((700.0..705.0).contains(&at_s), "ten minutes after its last line: {at_s}");
    let (at_s, says) = stage.until(Phase::Backoff).await;
    assert!((730.0..736.0).contains(&at_s), "killed after the grace period: {at_s}");
    assert!(says.contains("hung: no line of log and no CPU time for 600 s (hang_timeout_s)"), "{says}");
    let (at_s, _) = stage.until(Phase::Ready).await;
    assert!(at_s < 750.0, "{at_s}");
    assert_eq!(stage.spawned.load(Ordering::SeqCst), 2);
    stage.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_said_plainly_and_tried_rarely() {
    let crash = Plan { ends_s: Some(2.0), listens_s: f64::MAX, ..Plan::default() };
    let well = Plan { ready_s: 10.0, ..Plan::default() };
    let mut stage = Stage::start([vec![crash; 7], vec![well]].concat());
    let (at_s, says) = stage.until(Phase::Failed).await;
    assert!(at_s < 60.0, "{at_s}");
    assert_eq!(says, "crash loop (5 ends in a row); tried again in 5 min; the last: exited with code 3: no cores");
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(stage.spawned.load(Ordering::SeqCst), 8, "every five minutes, until it was well");
    assert_eq!(stage.status.borrow().phase, Phase::Ready);
    stage.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_need_not_wait_for_the_next_try() {
    let crash = Plan { ends_s: Some(1.0), listens_s: f64::MAX, ..Plan::default() };
    let mut stage = Stage::start([vec![crash; 5], vec![Plan { ready_s: 1.0, ..Plan::default() }]].concat());
    let (failed_s, _) = stage.until(Phase::Failed).await;
    stage.orders.send(Order::Retry).await.expect("it runs");
    let (ready_s, _) = stage.until(Phase::Ready).await;
    assert!(ready_s - failed_s < 3.0, "{failed_s} {ready_s}");
    stage.orders.send(Order::Drain).await.expect("it runs");
    stage.until(Phase::Draining).await;
    stage.stop().await;
}

#[tokio::test(start_paused = true)]
async fn garbage_on_the_port_ends_a_worker() {
    let noise = Plan { garbage: true, listens_s: 5.0, ready_s: 5.0, writes_until_s: f64::MAX, ..Plan::default() };
    let mut stage = Stage::start(vec![noise]);
    stage.until(Phase::Warming).await;
    let (at_s, says) = stage.until(Phase::Backoff).await;
    assert!((35.0..38.0).contains(&at_s), "{at_s}");
    assert!(says.contains("garbage on its port for 30 s: noise"), "{says}");
    stage.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_inside_gets_no_requests_and_is_replaced() {
    let dies = Plan { dies_inside_s: Some(100.0), computes_until_s: f64::MAX, ..Plan::default() };
    let mut stage = Stage::start(vec![dies, Plan::default()]);
    stage.until(Phase::Ready).await;
    let (at_s, _) = stage.until(Phase::Unresponsive).await;
    assert!((110.0..125.0).contains(&at_s), "after three checks: {at_s}");
    assert_eq!(stage.status.borrow().served, None);
    let (at_s, says) = stage.until(Phase::Backoff).await;
    assert!((695.0..720.0).contains(&at_s), "{at_s}");
    assert!(says.contains("no good check for 600 s (its port does not answer)"), "{says}");
    stage.until(Phase::Ready).await;
    stage.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_any_state_leaves_nothing() {
    let crash = Plan { ends_s: Some(1.0), listens_s: f64::MAX, ..Plan::default() };
    let stubborn = Plan { ignores_term: true, listens_s: 5.0, ready_s: 9.0, ..Plan::default() };
    for (plan, phase, most_s) in [
        (crash.clone(), Phase::Starting, 0.1),
        (crash.clone(), Phase::Backoff, 0.1),
        (crash, Phase::Failed, 0.1),
        (stubborn.clone(), Phase::Starting, 30.1),
        (stubborn.clone(), Phase::Warming, 30.1),
        (stubborn, Phase::Ready, 30.1),
    ] {
        let mut stage = Stage::start(vec![plan]);
        stage.until(phase).await;
        let took_s = stage.stop().await;
        assert!(took_s <= most_s, "{phase:?}: {took_s}");
    }
}
