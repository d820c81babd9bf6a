//! The engine thread on a device that takes steps behind steps: when it uses that, and what ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sconce_engine::{
    Capabilities, DeviceExecutor, EngineConfig, EngineHandle, Executor, SamplingLimits, SamplingParams, SimExecutor,
    SimOptions,
};
use sconce_models::{BatchInput, Logits, Sample, SampleRequests};

use crate::oracle;
use crate::threads::{VOCAB, config, drained, read_all, submit};

/// Counts how steps were issued.
struct Counted {
    sim: SimExecutor,
    issued: Arc<AtomicU64>,
    behind: Arc<AtomicU64>,
}

impl Executor for Counted {
    fn capabilities(&self) -> Capabilities {
        self.sim.capabilities()
    }

    fn vocab(&self) -> usize {
        self.sim.vocab()
    }

    fn device(&mut self) -> Option<&mut dyn DeviceExecutor> {
        Some(self)
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        self.sim.execute(batch, logits)
    }
}

impl DeviceExecutor for Counted {
    fn limits(&self) -> SamplingLimits {
        self.sim.limits()
    }

    fn issue(&mut self, batch: &BatchInput) -> Result<(), String> {
        self.issued.fetch_add(1, Relaxed);
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
        self.sim.collect(wanted, samples, logits)
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn issue_behind(&mut self, batch: &BatchInput, sources: &[u32]) -> Result<(), String> {
        self.behind.fetch_add(1, Relaxed);
        self.sim.issue_behind(batch, sources)
    }
}

/// Runs these requests, the first of which waits in its first step until all are there; says how many steps were issued, and how many behind others.
fn run(config: EngineConfig, requests: &[(Vec<u32>, SamplingParams)]) -> (u64, u64) {
    let (issued, behind) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let device = Some(SamplingLimits { top_logprobs_max: 20, masks: true });
    let sim = SimOptions { device, ..SimOptions::new(VOCAB, config.blocks, config.block_size) };
    let (context, counters) = (config.max_model_len as usize, (Arc::clone(&issued), Arc::clone(&behind)));
    let (go, all_are_there) = std::sync::mpsc::channel();
    let engine = EngineHandle::start("engine-test", config, move || {
        let (issued, behind) = counters;
        Ok(Box::new(Waiting { executor: Counted { sim: SimExecutor::new(sim), issued, behind }, all_are_there }))
    });
    let engine = engine.expect("the engine starts");
    let mut receivers = Vec::new();
    for (prompt, params) in requests {
        let (submit, receiver) = submit(prompt, params.clone(), 4096);
        engine.submit(submit).expect("there is room");
        receivers.push(receiver);
    }
    drop(go);
    for ((prompt, params), receiver) in requests.iter().zip(receivers) {
        let got = read_all(receiver);
        let most = context.min(prompt.len() + params.max_tokens as usize);
        let expected = oracle::expect(VOCAB as usize, prompt, params, most);
        assert_eq!((got.tokens, got.finish), (expected.tokens, expected.finish));
    }
    drained(&engine);
    (issued.load(Relaxed), behind.load(Relaxed))
}

/// Its first step begins when the other end of the channel is gone.
struct Waiting {
    executor: Counted,
    all_are_there: std::sync::mpsc::Receiver<()>,
}

impl Executor for Waiting {
    fn capabilities(&self) -> Capabilities {
        self.executor.capabilities()
    }

    fn vocab(&self) -> usize {
        self.executor.vocab()
    }

    fn device(&mut self) -> Option<&mut dyn DeviceExecutor> {
        let _ = self.all_are_there.recv();
        self.executor.device()
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        self.executor.execute(batch, logits)
    }
}

fn requests(count: u32, params: &SamplingParams) -> Vec<(Vec<u32>, SamplingParams)> {
    (0..count).map(|index| ((0..5 + index % 7).map(|at| (at * 11 + index) % VOCAB).collect(), params.clone())).collect()
}

fn plain() -> EngineConfig {
    EngineConfig { speculation: None, ..config() }
}

#[test]
fn decoding_goes_on_without_waiting_for_the_engine() {
    // All end at the same step: after the prompts every step but the first of each run goes behind another.
    let (issued, behind) = run(plain(), &requests(8, &SamplingParams::greedy(100)));
    assert!(behind >= 95 && issued <= 6, "{issued} issued, {behind} behind others");
    let drawn =
        SamplingParams { temperature: 1.0, top_p: 0.9, seed: 3, logprobs: Some(2), ..SamplingParams::greedy(100) };
    let (issued, behind) = run(plain(), &requests(8, &drawn));
    assert!(behind >= 95 && issued <= 6, "{issued} issued, {behind} behind others");
}

#[test]
fn sequences_that_end_do_not_end_it_for_others() {
    let params = |index: u32| SamplingParams {
        stop_token_ids: (0..VOCAB / 16).map(|id| id * 16 + index % 16).collect(),
        temperature: 1.0,
        seed: u64::from(index),
        ..SamplingParams::greedy(200)
    };
    let requests: Vec<_> = (0..24).flat_map(|index| requests(1, &params(index))).collect();
    let (issued, behind) = run(plain(), &requests);
    assert!(behind > 3 * issued, "{issued} issued, {behind} behind others");
}

/// Whoever waits for a seat gets it at the step after the one that freed it, or the one after that.
#[test]
fn who_waits_comes_in_when_there_is_room() {
    let config = EngineConfig { max_num_seqs: 4, ..plain() };
    let (issued, behind) = run(config, &requests(16, &SamplingParams::greedy(50)));
    // Four crowds of 50 tokens each, and no step in which a seat is free.
    assert!(issued + behind <= 4 * 50 + 16, "{issued} issued, {behind} behind others");
    assert!(behind > 150, "{issued} issued, {behind} behind others");
}

#[test]
fn what_hangs_on_the_token_before_waits_for_it() {
    let penalised = SamplingParams { repetition_penalty: 1.3, ..SamplingParams::greedy(40) };
    assert_eq!(run(plain(), &requests(3, &penalised)).1, 0);
    let mut mixed = requests(3, &SamplingParams::greedy(40));
    mixed.extend(requests(1, &penalised));
    assert_eq!(run(plain(), &mixed).1, 0, "all wait for one");
}

#[test]
fn a_model_that_repeats_itself_is_guessed_ahead_all_the_same() {
    // One token is always the likeliest: every draft is right.
    let params = SamplingParams { logit_bias: vec![(7, 100.0)], ..SamplingParams::greedy(300) };
    let prompt = vec![7; 20];
    let (issued, behind) = run(config(), &[(prompt, params)]);
    assert!(issued + behind < 150, "{issued} issued, {behind} behind others, for 300 tokens");
}

#[test]
fn a_short_answer_is_not_overtaken() {
    let (issued, behind) = run(plain(), &requests(1, &SamplingParams::greedy(1)));
    assert_eq!((issued, behind), (1, 0), "its only token comes from the prompt's step");
    let (issued, behind) = run(plain(), &requests(1, &SamplingParams::greedy(2)));
    assert_eq!((issued, behind), (1, 1), "and the second from one behind it");
}
