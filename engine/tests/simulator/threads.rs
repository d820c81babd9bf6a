//! The real engine thread behind its handle: real channels, clients that leave, do not read, or come too many at once.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use sconce_engine::{
    Capabilities, EngineConfig, EngineHandle, EngineStats, Executor, FinishReason, ItlTarget, NgramConfig, Progress,
    PromptDone, SamplingLimits, SamplingParams, SimExecutor, SimOptions, Speculation, Submit, SubmitError, Token,
};
use sconce_models::{BatchInput, Logits};
use tokio::sync::mpsc::{Receiver, channel};

use crate::faulty::{Faulty, Where};
use crate::oracle::{self, Expected};
use crate::random::Random;

pub const VOCAB: u32 = 64;
const LONG: Duration = Duration::from_secs(60);

pub fn config() -> EngineConfig {
    EngineConfig {
        block_size: 16,
        blocks: 256,
        max_num_seqs: 64,
        max_num_batched_tokens: 512,
        max_model_len: 2048,
        enable_prefix_caching: true,
        max_waiting: 64,
        itl_target: ItlTarget::Auto,
        speculation: Some(Speculation::Ngram(NgramConfig::default())),
    }
}

/// The CPU, a device that samples all, and one that gives back what is restricted or wants more than one alternative.
pub const DEVICES: [Option<SamplingLimits>; 3] = [
    None,
    Some(SamplingLimits { top_logprobs_max: 20, masks: true }),
    Some(SamplingLimits { top_logprobs_max: 1, masks: false }),
];

pub fn start(config: EngineConfig) -> EngineHandle {
    start_on(None, config)
}

pub fn start_on(device: Option<SamplingLimits>, config: EngineConfig) -> EngineHandle {
    let options = SimOptions { device, ..SimOptions::new(VOCAB, config.blocks, config.block_size) };
    EngineHandle::start("engine-test", config, move || Ok(Box::new(SimExecutor::new(options))))
        .expect("the engine starts")
}

fn start_with(
    config: EngineConfig,
    wrap: impl FnOnce(SimExecutor) -> Box<dyn Executor> + Send + 'static,
) -> EngineHandle {
    let options = SimOptions::new(VOCAB, config.blocks, config.block_size);
    EngineHandle::start("engine-test", config, move || Ok(wrap(SimExecutor::new(options)))).expect("the engine starts")
}

pub fn submit(prompt: &[u32], params: SamplingParams, capacity: usize) -> (Submit, Receiver<Progress>) {
    let (progress, receiver) = channel(capacity);
    (
        Submit { prompt: prompt.to_vec(), params, filter: None, priority: 0, salt: [0; 32], adapter: None, progress },
        receiver,
    )
}

/// Everything a client got: asserts exactly one terminal progress, as the last.
#[derive(Debug)]
pub struct Got {
    pub prompt: Option<PromptDone>,
    pub tokens: Vec<Token>,
    pub finish: FinishReason,
}

pub fn read_all(mut receiver: Receiver<Progress>) -> Got {
    let mut got = Got { prompt: None, tokens: Vec::new(), finish: FinishReason::Cancelled };
    let mut ended = false;
    while let Some(progress) = receiver.blocking_recv() {
        assert!(!ended, "nothing follows the terminal progress");
        assert!(progress.prompt.is_none() || got.prompt.is_none(), "a prompt is done once");
        got.prompt = got.prompt.or(progress.prompt);
        got.tokens.extend(progress.tokens);
        if let Some(finish) = progress.finish {
            got.finish = finish;
            ended = true;
        }
    }
    assert!(ended, "every sequence ends in a terminal progress");
    got
}

fn alone(prompt: &[u32], params: &SamplingParams) -> Expected {
    oracle::expect(VOCAB as usize, prompt, params, prompt.len() + params.max_tokens as usize)
}

pub fn drained(engine: &EngineHandle) -> EngineStats {
    engine.shutdown(LONG);
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.parked, stats.blocks_owned), (0, 0, 0, 0), "{stats:?}");
    assert_eq!(stats.blocks_free + stats.blocks_cached, stats.blocks_total);
    stats
}

fn tokens(random: &mut Random, count: u32) -> Vec<u32> {
    (0..count).map(|_| random.below(VOCAB)).collect()
}

#[test]
fn sixty_four_streams_with_random_cancels_end_rightly_and_leak_nothing() {
    // A tenth of the blocks that all would need: preemption is part of the test.
    DEVICES
        .into_iter()
        .for_each(|device| sixty_four_streams(&start_on(device, EngineConfig { blocks: 48, ..config() })));
}

pub fn sixty_four_streams(engine: &EngineHandle) {
    let mut random = Random::new(1);
    let shared = tokens(&mut random, 48);
    let clients: Vec<_> = (0..64)
        .map(|index| {
            let mut prompt = if index % 2 == 0 { shared.clone() } else { Vec::new() };
            let own = 1 + random.below(60);
            prompt.extend(tokens(&mut random, own));
            let mut params = SamplingParams::greedy(20 + random.below(60));
            if index % 4 == 3 {
                params = SamplingParams { temperature: 1.0, top_p: 0.9, seed: index, ..params };
            }
            let leaves_after = random.chance(40).then(|| random.below(20) as usize);
            let (submit, receiver) = submit(&prompt, params.clone(), 8);
            engine.submit(submit).expect("there is room");
            std::thread::spawn(move || read_until(receiver, &prompt, &params, leaves_after))
        })
        .collect();
    let left = clients.into_iter().map(|client| client.join().expect("the client is content")).filter(|left| *left);
    let left = left.count() as u64;
    let stats = drained(engine);
    assert_eq!(stats.finished_cancelled + stats.finished_length, 64, "{stats:?}");
    assert!(left > 10 && stats.finished_cancelled >= 10, "{left} left, {stats:?}");
    assert!(stats.preemptions > 0, "the pool was meant to be too small: {stats:?}");
}

/// Reads until the end, or leaves after some tokens; what it got is what the sequence gives alone. True if it left.
fn read_until(
    mut receiver: Receiver<Progress>,
    prompt: &[u32],
    params: &SamplingParams,
    leaves_after: Option<usize>,
) -> bool {
    let expected = alone(prompt, params);
    if let Some(leaves_after) = leaves_after {
        let mut got = Vec::new();
        while got.len() < leaves_after {
            let progress = receiver.blocking_recv().expect("it is not over yet");
            got.extend(progress.tokens);
        }
        assert_eq!(got, expected.tokens[..got.len()]);
        return true;
    }
    let got = read_all(receiver);
    assert_eq!((got.tokens, got.finish), (expected.tokens, expected.finish));
    false
}

#[test]
fn a_shared_prefix_of_1000_tokens_is_computed_once() {
    for all_at_once in [false, true] {
        let engine = start(config());
        let mut random = Random::new(2);
        let shared = tokens(&mut random, 1000);
        let mut receivers = Vec::new();
        for index in 0..8 {
            let mut prompt = shared.clone();
            prompt.extend([index, index + 1, index + 2]);
            let (submit, receiver) = submit(&prompt, SamplingParams::greedy(4), 8);
            engine.submit(submit).expect("there is room");
            if all_at_once {
                receivers.push((prompt, receiver));
            } else {
                let got = read_all(receiver);
                assert_eq!(got.tokens, alone(&prompt, &SamplingParams::greedy(4)).tokens);
                // 62 whole blocks of 16 are shared; the rest of the prompt is each one's own.
                let cached = got.prompt.expect("the prompt was done").cached_tokens;
                assert_eq!(cached, if index == 0 { 0 } else { 992 });
            }
        }
        for (prompt, receiver) in receivers {
            assert_eq!(read_all(receiver).tokens, alone(&prompt, &SamplingParams::greedy(4)).tokens);
        }
        let stats = drained(&engine);
        // 992 shared once, and for each of the 8: 11 own prompt tokens and 3 generated ones that are fed back.
        assert_eq!(stats.step_tokens.sum, 992 + 8 * (11 + 3), "at once: {all_at_once}");
        assert_eq!(stats.prefix_hits, 7 * 992);
    }
}

#[test]
fn other_salts_do_not_see_a_prefix() {
    let engine = start(config());
    let prompt = tokens(&mut Random::new(3), 100);
    for (salt, cached) in [(1, 0), (2, 0), (1, 96)] {
        let (mut submit, receiver) = submit(&prompt, SamplingParams::greedy(1), 2);
        submit.salt = [salt; 32];
        engine.submit(submit).expect("there is room");
        assert_eq!(read_all(receiver).prompt.expect("the prompt was done").cached_tokens, cached);
    }
    drained(&engine);
}

#[test]
fn a_client_that_does_not_read_parks_only_itself() {
    DEVICES.into_iter().for_each(one_that_does_not_read);
}

fn one_that_does_not_read(device: Option<SamplingLimits>) {
    let engine = start_on(device, config());
    let slow_params = SamplingParams::greedy(200);
    let (slow, slow_receiver) = submit(&[1, 2, 3], slow_params.clone(), 2);
    engine.submit(slow).expect("there is room");
    wait_until(|| engine.stats().parked == 1);
    for _ in 0..3 {
        let (quick, receiver) = submit(&[4, 5], SamplingParams::greedy(50), 64);
        engine.submit(quick).expect("there is room");
        assert_eq!(read_all(receiver).finish, FinishReason::Length);
    }
    assert_eq!(engine.stats().parked, 1);
    let got = read_all(slow_receiver);
    assert_eq!(got.tokens, alone(&[1, 2, 3], &slow_params).tokens, "no token of a parked sequence is lost");
    drained(&engine);
}

#[test]
fn a_parked_client_that_leaves_is_cancelled() {
    DEVICES.into_iter().for_each(one_that_leaves);
}

fn one_that_leaves(device: Option<SamplingLimits>) {
    let engine = start_on(device, config());
    let (slow, receiver) = submit(&[1, 2, 3], SamplingParams::greedy(200), 2);
    engine.submit(slow).expect("there is room");
    wait_until(|| engine.stats().parked == 1);
    drop(receiver);
    wait_until(|| engine.stats().finished_cancelled == 1);
    assert_eq!(drained(&engine).blocks_owned, 0);
}

#[test]
fn a_failed_step_fails_its_sequences_and_the_engine_goes_on() {
    for (step, reason, place) in [
        (3, "panic: a kernel panicked", Where::Execute),
        (4, "a kernel failed", Where::Execute),
        (3, "panic: a kernel panicked", Where::Issue),
        (4, "a kernel failed", Where::Issue),
        (3, "panic: a kernel panicked", Where::Collect),
        (4, "a kernel failed", Where::Collect),
    ] {
        let fails: fn(u32) -> bool = if step == 3 { |step| step == 3 } else { |step| step == 4 };
        let engine = start_with(config(), move |sim| Box::new(Faulty::new(sim, fails).failing_in(place)));
        let prompt = tokens(&mut Random::new(4), 40);
        let (doomed, receiver) = submit(&prompt, SamplingParams::greedy(50), 64);
        engine.submit(doomed).expect("there is room");
        let got = read_all(receiver);
        assert_eq!(got.finish, FinishReason::Failed(reason.into()));
        assert_eq!(got.tokens.len() as u32, step - 1, "what was generated before is delivered");
        let (next, receiver) = submit(&prompt, SamplingParams::greedy(50), 64);
        engine.submit(next).expect("the engine goes on");
        let got = read_all(receiver);
        assert_eq!(got.prompt.expect("the prompt was done").cached_tokens, 0, "the cache is not trusted any more");
        assert_eq!(got.tokens, alone(&prompt, &SamplingParams::greedy(50)).tokens);
        assert_eq!(engine.failure(), None);
        assert_eq!(drained(&engine).failed_steps, 1);
    }
}

#[test]
fn an_executor_that_keeps_failing_stops_the_engine_and_nobody_hangs() {
    let engine = start_with(config(), |sim| Box::new(Faulty::new(sim, |step| step > 2)));
    let mut receivers = Vec::new();
    let refused = loop {
        let (submit, receiver) = submit(&[1, 2, 3], SamplingParams::greedy(1000), 4096);
        match engine.submit(submit) {
            Ok(_) => receivers.push(receiver),
            Err(SubmitError::Full) => std::thread::yield_now(),
            Err(SubmitError::Stopped) => break SubmitError::Stopped,
        }
    };
    assert_eq!(refused, SubmitError::Stopped);
    assert!(!receivers.is_empty());
    for receiver in receivers {
        assert!(matches!(read_all(receiver).finish, FinishReason::Failed(reason) if reason.contains("a kernel")));
    }
    // Three times it started over before it gave up.
    assert_eq!(engine.stats().failed_steps, 4 * 3);
    assert!(engine.failure().expect("it says why").contains("3 steps failed"));
    drained(&engine);
}

#[test]
fn an_engine_that_failed_starts_over_with_what_it_has() {
    // Three steps in a row fail, twice; then all is well again.
    let fails: fn(u32) -> bool = |step| matches!(step, 2..=4 | 6..=8);
    let engine = start_with(config(), move |sim| Box::new(Faulty::new(sim, fails)));
    let prompt = tokens(&mut Random::new(4), 20);
    let mut failed = 0;
    let got = loop {
        let (one, receiver) = submit(&prompt, SamplingParams::greedy(5), 64);
        engine.submit(one).expect("it never stops taking work");
        let got = read_all(receiver);
        match &got.finish {
            FinishReason::Failed(reason) => assert!(reason.contains("a kernel"), "{reason}"),
            _ => break got,
        }
        failed += 1;
    };
    assert_eq!(failed, 6);
    assert_eq!(got.tokens, alone(&prompt, &SamplingParams::greedy(5)).tokens, "nothing of before is left");
    assert_eq!((engine.failure(), engine.in_step_for()), (None, None));
    assert_eq!(drained(&engine).failed_steps, 6);
}

#[test]
fn a_full_queue_refuses_at_once_and_frees_its_places() {
    let small = EngineConfig { max_num_seqs: 2, max_waiting: 3, ..config() };
    let (go, gate) = mpsc::channel();
    let engine = start_with(small, move |sim| Box::new(Gated { sim, gate }));
    let mut receivers = Vec::new();
    for _ in 0..5 {
        let (submit, receiver) = submit(&[1], SamplingParams::greedy(2), 8);
        engine.submit(submit).expect("five places");
        receivers.push(receiver);
    }
    let (late, _receiver) = submit(&[1], SamplingParams::greedy(2), 8);
    assert_eq!(engine.submit(late), Err(SubmitError::Full));
    drop(go);
    for receiver in receivers {
        assert_eq!(read_all(receiver).finish, FinishReason::Length);
    }
    wait_until(|| {
        let (again, _receiver) = submit(&[1], SamplingParams::greedy(2), 8);
        engine.submit(again).is_ok()
    });
    drained(&engine);
}

/// Runs a step for each message; freely once the sender is gone.
struct Gated {
    sim: SimExecutor,
    gate: mpsc::Receiver<()>,
}

impl Executor for Gated {
    fn capabilities(&self) -> Capabilities {
        self.sim.capabilities()
    }

    fn vocab(&self) -> usize {
        self.sim.vocab()
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        let _ = self.gate.recv();
        self.sim.execute(batch, logits)
    }
}

#[test]
fn a_shutdown_finishes_what_is_live_or_cancels_it_at_the_deadline() {
    for (deadline, finish) in [(LONG, FinishReason::Length), (Duration::ZERO, FinishReason::Cancelled)] {
        let (go, gate) = mpsc::channel();
        let engine = start_with(EngineConfig { max_num_seqs: 3, ..config() }, move |sim| Box::new(Gated { sim, gate }));
        let receivers: Vec<_> = (0..6)
            .map(|_| {
                let (submit, receiver) = submit(&[1, 2], SamplingParams::greedy(30), 64);
                engine.submit(submit).expect("there is room");
                receiver
            })
            .collect();
        let stopping = engine.clone();
        let stopper = std::thread::spawn(move || stopping.shutdown(deadline));
        wait_until(|| {
            let (late, _receiver) = submit(&[1], SamplingParams::greedy(1), 8);
            engine.submit(late) == Err(SubmitError::Stopped)
        });
        drop(go);
        for receiver in receivers {
            assert_eq!(read_all(receiver).finish, finish);
        }
        stopper.join().expect("the shutdown returns");
        drained(&engine);
    }
}

#[test]
fn dropping_the_last_handle_ends_the_thread_after_its_work() {
    let engine = start(config());
    let (submit, receiver) = submit(&[1, 2, 3], SamplingParams::greedy(20), 64);
    engine.submit(submit).expect("there is room");
    drop(engine);
    assert_eq!(read_all(receiver).tokens.len(), 20);
}

#[test]
fn what_can_never_run_is_refused_with_its_reason() {
    let engine = start(config());
    let cases =
        [(vec![], "no tokens"), (vec![VOCAB], "outside the vocabulary"), (vec![1; 2048], "the context is 2048")];
    for (prompt, reason) in cases {
        let (submit, receiver) = submit(&prompt, SamplingParams::greedy(1), 2);
        engine.submit(submit).expect("there is room");
        let finish = read_all(receiver).finish;
        assert!(matches!(&finish, FinishReason::Failed(text) if text.contains(reason)), "{finish:?}");
    }
    drained(&engine);
}

#[test]
fn a_build_that_fails_or_panics_is_an_error_of_start() {
    let failed = EngineHandle::start("engine-test", config(), || Err("no such device".into()));
    assert_eq!(failed.err().as_deref(), Some("no such device"));
    let panicked = EngineHandle::start("engine-test", config(), || panic!("driver"));
    assert_eq!(panicked.err().as_deref(), Some("panic: driver"));
    let invalid = EngineHandle::start("engine-test", EngineConfig { blocks: 0, ..config() }, || Err(String::new()));
    assert!(invalid.err().expect("no blocks").contains("`blocks`"));
}

#[test]
fn an_idle_engine_runs_no_step() {
    DEVICES.into_iter().for_each(idle_engine);
}

fn idle_engine(device: Option<SamplingLimits>) {
    let engine = start_on(device, config());
    let (submit, receiver) = submit(&[1], SamplingParams::greedy(3), 8);
    engine.submit(submit).expect("there is room");
    let generated = read_all(receiver).tokens.len() as u64;
    assert_eq!(drained(&engine).steps, generated, "one step a token, and none without work");
}

/// Yields until `done`; a minute is taken for never.
fn wait_until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "it never came");
        std::thread::yield_now();
    }
}
