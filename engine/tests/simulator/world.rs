//! One scenario: an engine of random size under random load, with a virtual clock that counts steps.

mod behind;
mod checks;
mod sampling;

use std::collections::BTreeMap;

use sconce_engine::executor::Executor;
use sconce_engine::sampler::{StepSampler, Workers};
use sconce_engine::scheduler::{Outcome, Scheduler, Step, StepResults};
use sconce_engine::sequence::{NewSequence, OrderKey, State};
use sconce_engine::{
    Capabilities, EngineConfig, FinishReason, PaddedExecutor, SamplingLimits, SamplingParams, SeqId, SimExecutor,
    SimOptions, Token, TokenLogprobs, batch, scratch_blocks,
};
use sconce_models::{AdapterId, BatchInput, Logits};

use crate::oracle;
use crate::puzzle::Puzzle;
use crate::random::Random;
use crate::scenario;
use crate::tally::Tally;

use behind::Behind;

/// One request as its client sees it.
struct Client {
    prompt: Vec<u32>,
    params: SamplingParams,
    salt: [u8; 32],
    adapter: Option<AdapterId>,
    key: OrderKey,
    puzzle: Option<Puzzle>,
    tokens: Vec<Token>,
    /// Cached tokens and scores, once the prompt is done.
    prompt_done: Option<Vec<TokenLogprobs>>,
    state: State,
    /// Steps in a row that it was the first in order of those running and computed nothing.
    stalled: u64,
    /// Steps it was alive and not parked.
    age: u64,
    /// The most that `age` may become: tokens of everybody before it, each at one a step.
    age_max: u64,
}

impl Client {
    fn work(&self) -> u64 {
        self.prompt.len() as u64 + u64::from(self.params.max_tokens)
    }
}

pub struct World {
    seed: u64,
    random: Random,
    config: EngineConfig,
    capabilities: Capabilities,
    vocab: u32,
    scheduler: Scheduler,
    executor: PaddedExecutor<SimExecutor>,
    sampler: StepSampler,
    workers: Workers,
    device: Option<SamplingLimits>,
    is_plain: bool,
    clients: BTreeMap<SeqId, Client>,
    next_id: u64,
    prefixes: Vec<Vec<u32>>,
    /// Who wrote each block last.
    writers: Vec<Option<([u8; 32], Option<AdapterId>)>>,
    step: Step,
    behind: Behind,
    batch: BatchInput,
    logits: Logits,
    results: StepResults,
    outcomes: Vec<Outcome>,
    tally: Tally,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the scenario that failed: SCONCE_SIM_SEED={} at step {}", self.seed, self.tally.steps);
            eprintln!("{:?} {:?}", self.config, self.capabilities);
        }
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let config = scenario::config(&mut random);
        let capabilities = scenario::capabilities(&mut random);
        let capabilities = scenario::with_states(&mut Random::new(!seed), capabilities);
        // One of three is a device that takes any batch, and clients that let it run ahead.
        let is_plain = seed % 3 == 2;
        let capabilities = if is_plain { Capabilities::any() } else { capabilities };
        let vocab = 8 + random.below(24);
        // What the capabilities allow is checked step by step; what comes out of the padding is for the executor.
        let scratch = scratch_blocks(&capabilities, config.block_size);
        let mut options = SimOptions::new(vocab, config.blocks + scratch, config.block_size);
        options.capabilities.state_slots = capabilities.state_slots;
        let sim = SimExecutor::new(options);
        let prefixes = (0..3).map(|_| (0..4 + random.below(60)).map(|_| random.below(vocab)).collect()).collect();
        Self {
            scheduler: Scheduler::new(config.clone(), &capabilities, vocab as usize).expect("a scenario is valid"),
            executor: PaddedExecutor::new(sim, capabilities.clone(), config.blocks, config.block_size),
            sampler: StepSampler::new(1),
            // Whoever comes first, the results are the same.
            workers: Workers { count: 1 + random.below(4) as usize, run: |count, run| (0..count).rev().for_each(run) },
            device: scenario::sampling(&mut random),
            is_plain,
            clients: BTreeMap::new(),
            next_id: 0,
            prefixes,
            writers: vec![None; config.blocks as usize],
            step: Step::default(),
            behind: Behind::default(),
            batch: BatchInput::default(),
            logits: Logits::default(),
            results: StepResults::default(),
            outcomes: Vec::new(),
            tally: Tally::default(),
            seed,
            random,
            config,
            capabilities,
            vocab,
        }
    }

    /// `steps` steps under load, then as many as the rest needs.
    pub fn run(mut self, steps: u64) -> Tally {
        let load = self.random.pick(&[5, 20, 60]);
        for _ in 0..steps {
            while self.clients.len() < 40 && self.random.chance(load) {
                self.arrive();
            }
            self.disturb();
            self.step();
        }
        while !self.clients.is_empty() {
            if self.clients.values().all(|client| client.state == State::Parked) || self.random.chance(20) {
                self.unpark_all();
            }
            self.step();
        }
        let stats = self.scheduler.stats().clone();
        assert_eq!((stats.running, stats.waiting, stats.parked, stats.blocks_owned), (0, 0, 0, 0), "all is free again");
        self.tally.preemptions = stats.preemptions;
        self.tally.recomputed = stats.recomputed_tokens;
        self.tally.prefix_hits = stats.prefix_hits;
        self.tally.drafted = stats.spec_draft_tokens;
        self.tally.accepted = stats.spec_accepted_tokens;
        self.tally.padding = stats.padding_tokens;
        if !self.capabilities.preemption {
            self.tally.kept_steps = self.tally.steps;
            assert_eq!((stats.preemptions, stats.recomputed_tokens), (0, 0), "nobody starts over");
        }
        let by_position = stats.spec_accepted_per_position;
        assert_eq!(stats.spec_accepted_tokens, by_position.iter().sum::<u64>(), "every accepted draft has a position");
        assert!(by_position.is_sorted_by(|left, right| left >= right), "a draft is accepted after those before it");
        assert_eq!(stats.steps, stats.step_tokens.counts.iter().sum::<u64>(), "every step is in the histogram");
        std::mem::take(&mut self.tally)
    }

    fn tokens_max(&self, client: &Client) -> usize {
        let slots = (self.config.blocks * self.config.block_size) as usize;
        (client.work() as usize).min(slots).min(self.config.max_model_len as usize)
    }

    fn arrive(&mut self) {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let (prompt, mut params) = (self.prompt(), scenario::params(&mut self.random, self.vocab));
        if self.is_plain {
            params = scenario::without_history(params);
        }
        let salt = [self.random.below(2) as u8; 32];
        let adapter = self.random.chance(30).then(|| AdapterId(self.random.below(2)));
        let priority = self.random.pick(&[0, 0, 0, 1, -1]);
        let new = NewSequence { id, prompt: prompt.clone(), params: params.clone(), priority, salt, adapter };
        let needed = prompt.len() + usize::from(params.max_tokens > 0);
        let room = (self.config.blocks * self.config.block_size).min(self.config.max_model_len) as usize;
        let possible = !prompt.is_empty() && needed <= room && prompt.iter().all(|token| *token < self.vocab);
        match self.scheduler.add(new) {
            Ok(()) => assert!(possible, "a sequence that cannot run was accepted"),
            Err(FinishReason::Failed(reason)) => {
                assert!(!possible && !reason.is_empty(), "a sequence that can run was refused: {reason}");
                self.tally.refused += 1;
                return;
            }
            Err(other) => panic!("refused as {other:?}"),
        }
        let key = self.scheduler.sequences().find(|sequence| sequence.id == id).expect("it was added").key;
        let puzzle =
            (self.random.chance(30) && !self.is_plain).then(|| Puzzle { seed: self.random.next(), vocab: self.vocab });
        if puzzle.is_some() {
            self.scheduler.never_draft(id);
        }
        let client = Client {
            prompt,
            params,
            salt,
            adapter,
            key,
            puzzle,
            tokens: Vec::new(),
            prompt_done: None,
            state: State::Waiting,
            stalled: 0,
            age: 0,
            age_max: 0,
        };
        self.clients.insert(id, client);
        self.defer(id);
    }

    /// `id` takes its place in the order (again): it may wait for all that is live, and those behind it wait for it.
    fn defer(&mut self, id: SeqId) {
        let all: u64 = self.clients.values().map(Client::work).sum();
        let (key, work) = (self.clients[&id].key, self.clients[&id].work());
        // Where prefills and decodes take turns, the first in order computes in every other step.
        let turns = if self.capabilities.mixed_batch { 1 } else { 2 };
        for (other, client) in &mut self.clients {
            if *other == id {
                client.age_max += turns * (all + 1);
            } else if client.key > key {
                client.age_max += turns * work;
            }
        }
    }

    fn prompt(&mut self) -> Vec<u32> {
        let mut prompt = Vec::new();
        if self.random.chance(70) {
            let prefix = &self.prefixes[self.random.below(3) as usize];
            let length = 1 + self.random.below(prefix.len() as u32) as usize;
            prompt.extend_from_slice(&prefix[..length]);
        }
        for _ in 0..self.random.below(12) {
            prompt.push(self.random.below(self.vocab));
        }
        if self.random.chance(1) {
            prompt.push(self.vocab);
        }
        prompt
    }

    /// Cancels, parks and unparks some.
    fn disturb(&mut self) {
        let ids: Vec<SeqId> = self.clients.keys().copied().collect();
        for id in ids {
            let state = self.clients[&id].state;
            if self.random.below(400) == 0 {
                assert!(self.scheduler.cancel(id), "a live sequence can be cancelled");
                assert!(!self.scheduler.cancel(id), "and only once");
                self.end(id, &FinishReason::Cancelled);
                self.tally.cancelled += 1;
            } else if state != State::Parked && self.random.below(60) == 0 {
                self.scheduler.park(id);
                self.tally.parked += 1;
            } else if state == State::Parked && self.random.chance(10) {
                self.unpark(id);
            }
        }
        self.look_at_states();
    }

    fn unpark(&mut self, id: SeqId) {
        self.scheduler.unpark(id);
        self.defer(id);
    }

    fn unpark_all(&mut self) {
        let parked = self.clients.iter().filter(|(_, client)| client.state == State::Parked);
        let ids: Vec<SeqId> = parked.map(|(id, _)| *id).collect();
        for id in ids {
            self.unpark(id);
        }
        self.look_at_states();
    }

    fn step(&mut self) {
        let first = self.first_running();
        self.scheduler.schedule(&mut self.step);
        self.tally.steps += 1;
        self.check_step();
        self.check_progress(first);
        if self.step.rows.is_empty() {
            let idle = self.clients.values().all(|client| client.state == State::Parked);
            assert!(idle || self.is_held_up(), "somebody could run and the step is empty");
            assert!(!self.scheduler.has_work(), "nothing changes before somebody reads");
            self.tally.held_up += u64::from(!idle);
            return;
        }
        batch::fill(&self.scheduler, &self.step, &mut self.batch);
        self.check_salts();
        self.executor.execute(&self.batch, &mut self.logits).expect("the batch is sound");
        while self.finish_step() {
            self.tally.steps += 1;
            self.execute_behind();
        }
    }

    /// From what the executor left to what the clients get. True when a step was planned behind this one.
    fn finish_step(&mut self) -> bool {
        self.restrict();
        let mut goes_on = self.plan_behind();
        if self.random.below(400) == 0 {
            self.fail_step();
            goes_on = false;
        } else {
            let broken = self.break_logits();
            self.sample();
            let broken = self.check_failed(broken);
            if goes_on {
                self.note_tokens();
            }
            self.scheduler.commit(&self.step, &mut self.results, &mut self.outcomes);
            self.take_outcomes(broken);
        }
        if self.random.chance(50) {
            // Some machine: slow or fast, and never the same twice.
            let token_us = self.random.pick(&[1.0, 40.0, 900.0]);
            let step_us = self.random.pick(&[50.0, 20_000.0]);
            self.scheduler.observe(&self.step, step_us + token_us * self.step.tokens as f32);
        }
        self.look_at_states();
        self.check_between_steps();
        goes_on
    }

    fn fail_step(&mut self) {
        self.executor.inner().scramble();
        self.writers.fill(None);
        self.scheduler.fail_step(&self.step, "the device is gone", &mut self.outcomes);
        let also = self.outcomes.len() - self.step.rows.len();
        assert!(also == 0 || !self.capabilities.preemption, "every row of a failed step ends");
        for outcome in std::mem::take(&mut self.outcomes) {
            assert_eq!(outcome.finish, Some(FinishReason::Failed("the device is gone".into())));
            self.end(outcome.id, &FinishReason::Failed(String::new()));
        }
        self.tally.failed_steps += 1;
    }

    fn take_outcomes(&mut self, broken: Option<SeqId>) {
        for outcome in std::mem::take(&mut self.outcomes) {
            let client = self.clients.get_mut(&outcome.id).expect("news only of live sequences");
            if let Some(prompt) = outcome.prompt {
                assert!(client.prompt_done.is_none(), "a prompt is done once");
                assert!((prompt.cached_tokens as usize) < client.prompt.len(), "the last token always runs");
                assert!(self.config.enable_prefix_caching || prompt.cached_tokens == 0);
                self.tally.prompt_scores += prompt.logprobs.len() as u64;
                client.prompt_done = Some(prompt.logprobs);
            }
            assert!(outcome.tokens.is_empty() || client.prompt_done.is_some(), "no token before the prompt is done");
            let count = outcome.tokens.len() as u64;
            self.tally.tokens += count;
            if client.puzzle.is_some() {
                self.tally.filtered += count;
                self.tally.forced += count.saturating_sub(1);
            }
            client.tokens.extend(outcome.tokens);
            if let Some(finish) = outcome.finish {
                let failed = matches!(finish, FinishReason::Failed(_));
                assert_eq!(failed, broken == Some(outcome.id), "{finish:?}");
                self.end(outcome.id, &finish);
            }
        }
    }

    /// The one terminal event of a client: what it got is what the oracle says, up to where it was cut off.
    fn end(&mut self, id: SeqId, finish: &FinishReason) {
        let client = self.clients.remove(&id).expect("a sequence ends once");
        let tokens_max = self.tokens_max(&client);
        let vocab = self.vocab as usize;
        let expected = oracle::expect_filtered(vocab, &client.prompt, &client.params, tokens_max, client.puzzle);
        let whole = match finish {
            FinishReason::StopToken(_) | FinishReason::Length => {
                assert_eq!(*finish, expected.finish, "{id:?}");
                assert!(client.prompt_done.is_some(), "{id:?} ended well without its prompt");
                true
            }
            _ => false,
        };
        self.tally.stopped += u64::from(matches!(finish, FinishReason::StopToken(_)));
        self.tally.length += u64::from(*finish == FinishReason::Length);
        assert!(!whole || client.tokens.len() == expected.tokens.len(), "{id:?} has a wrong number of tokens");
        assert_eq!(client.tokens, expected.tokens[..client.tokens.len()], "{id:?}");
        if let Some(scores) = client.prompt_done {
            assert_eq!(scores, expected.prompt_scores, "{id:?}");
        }
    }

    /// Somebody may have to wait for what a parked sequence keeps.
    fn is_held_up(&self) -> bool {
        !self.capabilities.preemption && self.clients.values().any(|client| client.state == State::Parked)
    }

    /// A prompt stopped inside, beside decodes, though the budget had room for another block of it.
    fn is_bounded(&self) -> bool {
        let room = self.config.max_num_batched_tokens.min(self.capabilities.max_tokens_per_step) as usize;
        let decodes = self.step.rows.iter().any(|row| row.decode);
        let cut = self.step.rows.iter().any(|row| !row.decode && !row.sample && row.scored().is_empty());
        let blocks_left = self.config.blocks as usize > self.step.rows.len() * 4;
        decodes && cut && blocks_left && self.step.tokens + 2 * self.config.block_size as usize <= room
    }

    fn first_running(&self) -> Option<SeqId> {
        let running = self.clients.iter().filter(|(_, client)| client.state == State::Running);
        running.min_by_key(|(_, client)| client.key).map(|(id, _)| *id)
    }

    /// Notes what became of each client's sequence: a preempted one may wait again.
    fn look_at_states(&mut self) {
        let mut preempted = Vec::new();
        for sequence in self.scheduler.sequences() {
            let client = self.clients.get_mut(&sequence.id).expect("every live sequence has a client");
            if client.state == State::Running && sequence.state() == State::Waiting {
                preempted.push(sequence.id);
            }
            client.state = sequence.state();
        }
        for id in preempted {
            self.defer(id);
        }
    }
}
