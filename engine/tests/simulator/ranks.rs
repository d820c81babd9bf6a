//! A model on several simulated devices: each rank runs the whole simulated model, and meets the others in every step to
//! compare what it found there. Ranks fail, panic, sleep and do not wake.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use sconce_engine::{
    Capabilities, DeviceExecutor, EngineConfig, EngineHandle, Executor, FinishReason, Link, Rank, RankedExecutor,
    SamplingLimits, SamplingParams, SimExecutor, SimOptions, WakeError,
};
use sconce_models::{BatchInput, Logits, Sample, SampleRequests};

use crate::random::Random;
use crate::threads::{DEVICES, VOCAB, config, drained, read_all, sixty_four_streams, submit};

/// Where ranks meet once a step.
struct Meeting {
    ranks: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    rounds: u64,
    here: Vec<u64>,
    failure: Option<String>,
}

impl Meeting {
    /// All ranks must have found the same.
    fn meet(&self, found: u64) -> Result<(), String> {
        let mut state = self.state.lock().expect("nobody panics with it");
        let round = state.rounds;
        state.here.push(found);
        if state.here.len() == self.ranks {
            assert!(state.here.iter().all(|other| *other == found), "ranks computed different steps");
            state.here.clear();
            state.rounds += 1;
            self.changed.notify_all();
        }
        loop {
            if state.rounds > round {
                return Ok(());
            }
            if let Some(why) = &state.failure {
                return Err(format!("broken: {why}"));
            }
            state = self.changed.wait(state).expect("nobody panics with it");
        }
    }
}

/// What the executor holds of it.
struct Joined(Arc<Meeting>);

impl Link for Joined {
    fn break_off(&self, why: &str) {
        self.0.state.lock().expect("nobody panics with it").failure.get_or_insert_with(|| why.to_owned());
        self.0.changed.notify_all();
    }

    fn failure(&self) -> Option<String> {
        self.0.state.lock().expect("nobody panics with it").failure.clone()
    }
}

/// What happens to a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Error,
    Panic,
    /// When the others have got what they wanted of it.
    ErrorBehind,
    PanicBehind,
    /// The first rank's alone: while it samples.
    Collect,
}

#[derive(Clone, Copy)]
struct Faulty {
    rank: usize,
    /// From 1.
    step: u32,
    fault: Fault,
}

struct Simulated {
    number: usize,
    sim: SimExecutor,
    meeting: Arc<Meeting>,
    faulty: Option<Faulty>,
    step: u32,
    logits: Logits,
    is_asleep: bool,
    /// Answers to being put to sleep and to being woken, the next one last; none is well.
    sleeps: Vec<String>,
    wakes: Vec<WakeError>,
    /// Ranks that there are.
    live: Arc<AtomicUsize>,
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Simulated {
    fn suffer(&self, error: Fault, panic: Fault) -> Result<(), String> {
        let fault = self.faulty.filter(|faulty| (faulty.rank, faulty.step) == (self.number, self.step));
        let fault = fault.map(|faulty| faulty.fault);
        assert!(fault != Some(panic), "a fault of rank {}", self.number);
        if fault == Some(error) { Err(format!("a fault of rank {}", self.number)) } else { Ok(()) }
    }

    fn run(&mut self, batch: &BatchInput) -> Result<(), String> {
        assert!(!self.is_asleep, "a step of a rank that sleeps");
        self.step += 1;
        self.suffer(Fault::Error, Fault::Panic)?;
        let mut logits = std::mem::take(&mut self.logits);
        let done = self.sim.execute(batch, &mut logits);
        self.logits = logits;
        done?;
        let mut hasher = DefaultHasher::new();
        self.logits.values.iter().for_each(|value| value.to_bits().hash(&mut hasher));
        (&batch.tokens, &batch.slots, &batch.block_tables).hash(&mut hasher);
        self.meeting.meet(hasher.finish())?;
        self.suffer(Fault::ErrorBehind, Fault::PanicBehind)
    }
}

impl Rank for Simulated {
    fn follow(&mut self, batch: &BatchInput) -> Result<(), String> {
        self.run(batch)
    }

    fn sleep(&mut self) -> Result<u64, String> {
        if let Some(why) = self.sleeps.pop() {
            return Err(why);
        }
        self.sim.scramble();
        self.is_asleep = true;
        Ok(10)
    }

    fn wake(&mut self) -> Result<(), WakeError> {
        self.wakes.pop().map_or(Ok(()), Err)?;
        self.is_asleep = false;
        Ok(())
    }
}

impl Executor for Simulated {
    fn capabilities(&self) -> Capabilities {
        self.sim.capabilities()
    }

    fn vocab(&self) -> usize {
        self.sim.vocab()
    }

    fn device(&mut self) -> Option<&mut dyn DeviceExecutor> {
        if self.sim.device().is_some() { Some(self) } else { None }
    }

    fn sleep(&mut self) -> Result<u64, String> {
        Rank::sleep(self)
    }

    fn wake(&mut self) -> Result<(), WakeError> {
        Rank::wake(self)
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        self.run(batch)?;
        logits.clone_from(&self.logits);
        Ok(())
    }
}

impl DeviceExecutor for Simulated {
    fn limits(&self) -> SamplingLimits {
        self.sim.limits()
    }

    fn issue(&mut self, batch: &BatchInput) -> Result<(), String> {
        self.run(batch)?;
        self.sim.issue(batch)
    }

    fn choose(&mut self, wanted: &SampleRequests) -> Result<bool, String> {
        self.sim.choose(wanted)
    }

    fn collect(
        &mut self,
        wanted: &SampleRequests,
        samples: &mut Vec<Sample>,
        logits: &mut Logits,
    ) -> Result<(), String> {
        self.suffer(Fault::Collect, Fault::Collect)?;
        self.sim.collect(wanted, samples, logits)
    }
}

/// As many ranks, changed by `alter`, and how many of them are left.
fn ranks(
    count: usize,
    device: Option<SamplingLimits>,
    config: &EngineConfig,
    faulty: Option<Faulty>,
    alter: impl Fn(&mut Simulated),
) -> (RankedExecutor, Arc<AtomicUsize>) {
    let options = SimOptions { device, ..SimOptions::new(VOCAB, config.blocks, config.block_size) };
    let live = Arc::new(AtomicUsize::new(count));
    let meeting = Arc::new(Meeting { ranks: count, state: Mutex::default(), changed: Condvar::new() });
    let made = (0..count).map(|number| {
        let mut rank = Simulated {
            number,
            sim: SimExecutor::new(options.clone()),
            meeting: Arc::clone(&meeting),
            faulty,
            step: 0,
            logits: Logits::default(),
            is_asleep: false,
            sleeps: Vec::new(),
            wakes: Vec::new(),
            live: Arc::clone(&live),
        };
        alter(&mut rank);
        rank
    });
    let mut made: Vec<Simulated> = made.collect();
    let first = Box::new(made.remove(0));
    let others = made.into_iter().map(|rank| Box::new(rank) as Box<dyn Rank>).collect();
    let link = Arc::new(Joined(Arc::clone(&meeting)));
    (RankedExecutor::start("ranks", first, others, link).expect("threads"), live)
}

fn start(executor: RankedExecutor, config: EngineConfig) -> EngineHandle {
    EngineHandle::start("engine-ranks", config, move || Ok(Box::new(executor))).expect("the engine starts")
}

#[test]
fn ranks_answer_as_one_does() {
    for count in [1, 2, 4] {
        for device in DEVICES {
            let config = EngineConfig { blocks: 48, ..config() };
            let (executor, live) = ranks(count, device, &config, None, |_| ());
            let engine = start(executor, config);
            sixty_four_streams(&engine);
            assert_eq!(engine.failure(), None);
            drop(engine);
            gone(&live);
        }
    }
}

/// Threads end with their engine.
fn gone(live: &AtomicUsize) {
    for _ in 0..10_000 {
        if live.load(Ordering::Relaxed) == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{} ranks are left", live.load(Ordering::Relaxed));
}

const FAULTS: [Fault; 5] = [Fault::Error, Fault::Panic, Fault::ErrorBehind, Fault::PanicBehind, Fault::Collect];

/// Whatever happens to which rank: the step fails, everybody is told, and the engine is done for.
#[test]
fn a_rank_that_fails_ends_the_engine_and_nobody_hangs() {
    let mut met = [0; FAULTS.len()];
    for seed in 0..120 {
        let mut random = Random::new(seed);
        let count = 2 + random.below(3) as usize;
        let device = random.pick(&DEVICES);
        let kind = random.below(if device.is_some() { 5 } else { 4 }) as usize;
        let fault = FAULTS[kind];
        let rank = if fault == Fault::Collect { 0 } else { random.below(count as u32) as usize };
        let faulty = Faulty { rank, step: 1 + random.below(30), fault };
        let (executor, live) = ranks(count, device, &config(), Some(faulty), |_| ());
        let engine = start(executor, config());
        let mut receivers = Vec::new();
        for _ in 0..1 + random.below(8) {
            let prompt: Vec<u32> = (0..1 + random.below(40)).map(|_| random.below(VOCAB)).collect();
            let (submit, receiver) = submit(&prompt, SamplingParams::greedy(64), 128);
            if engine.submit(submit).is_ok() {
                receivers.push(receiver);
            }
        }
        for receiver in receivers {
            let finish = read_all(receiver).finish;
            let why = format!("a fault of rank {rank}");
            assert!(matches!(&finish, FinishReason::Failed(text) if text.contains(&why)), "{seed}: {finish:?}");
        }
        let why = engine.failure().map(str::to_owned);
        let stats = drained(&engine);
        let why = why.or_else(|| engine.failure().map(str::to_owned)).expect("it has failed for good");
        assert!(why.contains(&format!("a fault of rank {rank}")), "{seed}: {why}");
        assert_eq!(stats.failed_steps, 1, "{seed}: no second try");
        drop(engine);
        gone(&live);
        met[kind] += 1;
    }
    assert!(met.iter().all(|times| *times > 3), "{met:?}");
}

/// A step that was begun and never collected is over before the next begins.
#[test]
fn a_step_that_was_not_collected_is_forgotten() {
    let (mut executor, live) = ranks(3, DEVICES[1], &config(), None, |_| ());
    let batch = BatchInput {
        tokens: vec![3, 4],
        positions: vec![0, 1],
        slots: vec![16, 17],
        row_ends: vec![2],
        context_lens: vec![2],
        block_tables: vec![1],
        block_table_ends: vec![1],
        sample_rows: vec![1],
        ..BatchInput::default()
    };
    for _ in 0..3 {
        executor.issue(&batch).expect("it is begun");
    }
    let mut wanted = SampleRequests::default();
    wanted.rows.push(sconce_models::SampleRequest::new(sconce_models::Want::Token));
    let (mut samples, mut logits) = (Vec::new(), Logits::default());
    assert_eq!(executor.choose(&wanted), Ok(true));
    executor.collect(&wanted, &mut samples, &mut logits).expect("the last one is there");
    assert!(matches!(samples[..], [Sample::Token { .. }]), "{samples:?}");
    executor.issue(&batch).expect("it is begun");
    drop(executor);
    gone(&live);
}

#[test]
fn all_ranks_sleep_or_none_does() {
    let well = |_: &mut Simulated| ();
    let (mut executor, _) = ranks(3, None, &config(), None, well);
    assert_eq!((executor.sleep(), executor.sleep()), (Ok(30), Ok(30)));
    assert_eq!(executor.wake(), Ok(()));
    // One that does not fall asleep: the others wake again, and steps go on.
    for which in 0..3 {
        let (mut executor, _) = ranks(3, None, &config(), None, |rank| {
            if rank.number == which {
                rank.sleeps.push("no host memory".to_owned());
            }
        });
        let error = executor.sleep().expect_err("one does not");
        assert!(error.contains("no host memory"), "{error}");
        executor.execute(&BatchInput::default(), &mut Logits::default()).expect("all are awake");
        assert_eq!((executor.sleep(), executor.broken()), (Ok(30), None));
    }
    // One that finds no memory sleeps on, and the others with it, until there is some.
    for which in 0..3 {
        let (mut executor, _) = ranks(3, None, &config(), None, |rank| {
            if rank.number == which {
                rank.wakes.push(WakeError::Memory("others have it".to_owned()));
            }
        });
        assert_eq!(executor.sleep(), Ok(30));
        assert!(matches!(executor.wake(), Err(WakeError::Memory(_))), "rank {which}");
        assert_eq!((executor.wake(), executor.broken()), (Ok(()), None));
        executor.execute(&BatchInput::default(), &mut Logits::default()).expect("all are awake");
    }
    // One that neither sleeps nor wakes leaves nothing to go on with.
    let (mut executor, _) = ranks(2, None, &config(), None, |rank| {
        if rank.number == 1 {
            rank.sleeps.push("no host memory".to_owned());
        } else {
            rank.wakes.push(WakeError::Failed("its device is gone".to_owned()));
        }
    });
    assert!(executor.sleep().is_err());
    assert!(executor.broken().is_some_and(|why| why.contains("its device is gone")));
    assert!(executor.execute(&BatchInput::default(), &mut Logits::default()).is_err());
}
