//! The scheduler's rules one by one; the seeded simulator (tests/simulator) has them all at once.

use super::*;
use crate::engine::{SamplingParams, Token, TokenLogprobs};

fn config() -> EngineConfig {
    EngineConfig {
        block_size: 4,
        blocks: 64,
        max_num_seqs: 8,
        max_num_batched_tokens: 32,
        max_model_len: 512,
        enable_prefix_caching: true,
        max_waiting: 8,
        itl_target: ItlTarget::Auto,
        speculation: None,
    }
}

struct Bench {
    scheduler: Scheduler,
    step: Step,
    next_id: u64,
}

impl Bench {
    fn new(config: EngineConfig, capabilities: &Capabilities) -> Self {
        let scheduler = Scheduler::new(config, capabilities, 1000).expect("valid");
        Self { scheduler, step: Step::default(), next_id: 0 }
    }

    /// A prompt of `length` tokens that start with `first`.
    fn add(&mut self, first: u32, length: usize, max_tokens: u32, priority: i32) -> SeqId {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let prompt = (0..length as u32).map(|place| if place == 0 { first } else { place }).collect();
        let params = SamplingParams::greedy(max_tokens);
        let new = NewSequence { id, prompt, params, priority, salt: [0; 32] };
        self.scheduler.add(new).expect("it can run");
        id
    }

    /// A prompt whose tokens are scored.
    fn add_scored(&mut self, first: u32, length: usize) -> SeqId {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let prompt = (0..length as u32).map(|place| if place == 0 { first } else { place }).collect();
        let params = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::greedy(1) };
        let new = NewSequence { id, prompt, params, priority: 0, salt: [0; 32] };
        self.scheduler.add(new).expect("it can run");
        id
    }

    /// One step in which every sampling row gets token 1. Returns (id, tokens) of its rows.
    fn step(&mut self) -> Vec<(u64, usize)> {
        self.scheduler.schedule(&mut self.step);
        let sampled = self.step.rows.iter().map(|row| match row.sample {
            true => Sampled::Tokens(1),
            false => Sampled::Nothing,
        });
        let scored = self.step.rows.iter().map(|row| row.scored().len()).sum();
        assert!(scored <= SCORED_PER_STEP_MAX, "{scored} rows of logits for scores alone");
        let score = TokenLogprobs { logprob: 0.0, rank: 1, top: Vec::new() };
        let tokens = self.step.rows.iter().filter(|row| row.sample).map(|_| Token { id: 1, logprobs: None });
        let (sampled, tokens) = (sampled.collect(), tokens.collect());
        let mut results = StepResults { sampled, tokens, scores: vec![score; scored] };
        self.scheduler.commit(&self.step, &mut results, &mut Vec::new());
        self.scheduler.audit().expect("sound");
        self.step.rows.iter().map(|row| (row.id.0, row.count)).collect()
    }
}

#[test]
fn a_long_prompt_gets_most_of_a_step_and_short_ones_move_on_beside_it() {
    let mut bench = Bench::new(config(), &Capabilities::any());
    bench.add(1, 100, 4, 0);
    bench.add(2, 6, 4, 0);
    // A quarter at most is left, and no more than is needed: 32 - 6 is 26, and 24 ends at a block's border.
    assert_eq!(bench.step(), [(0, 24), (1, 6)]);
    // The decode has its token first; nobody else needs the rest, which ends at a border again.
    assert_eq!(bench.step(), [(0, 28), (1, 1)]);
}

#[test]
fn decodes_come_before_all_prefills_but_the_first_in_order() {
    let mut bench = Bench::new(EngineConfig { max_num_batched_tokens: 8, ..config() }, &Capabilities::any());
    for first in 0..3 {
        bench.add(first, 1, 50, 0);
    }
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 1)]);
    bench.add(9, 40, 1, 0);
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 1), (3, 4)]);
}

#[test]
fn many_that_score_their_prompts_share_the_rows_of_logits() {
    let config = EngineConfig { max_num_batched_tokens: 256, blocks: 256, ..config() };
    let mut bench = Bench::new(config, &Capabilities::any());
    for first in 0..6 {
        bench.add_scored(first, 101);
    }
    bench.add(9, 8, 4, 0);
    // The first in order takes all the scores of the step; whoever needs none goes on beside it.
    assert_eq!(bench.step(), [(0, 64), (6, 8)]);
    assert_eq!(bench.step(), [(0, 37), (6, 1), (1, 28)]);
    let steps = (0..).take_while(|_| !bench.step().is_empty()).count();
    assert!(steps <= 6 * 100 / SCORED_PER_STEP_MAX + 6, "{steps} steps");
}

#[test]
fn two_that_arrive_together_share_in_the_same_step() {
    let mut bench = Bench::new(config(), &Capabilities::any());
    bench.add(1, 12, 2, 0);
    bench.add(1, 13, 2, 0);
    // Of the second, the first 12 tokens are in blocks that the first fills in this very step.
    assert_eq!(bench.step(), [(0, 12), (1, 1)]);
    assert_eq!(bench.scheduler.stats().prefix_hits, 12);
}

#[test]
fn a_cached_prompt_still_runs_its_last_token_in_a_block_of_its_own() {
    let mut bench = Bench::new(config(), &Capabilities::any());
    bench.add(1, 8, 1, 0);
    bench.step();
    bench.add(1, 8, 1, 0);
    assert_eq!(bench.step(), [(1, 4)], "the last whole block is computed again, not written into");
}

#[test]
fn a_higher_priority_goes_first_and_may_take_the_place_of_a_lower_one() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 1, ..config() }, &Capabilities::any());
    bench.add(1, 4, 50, 1);
    bench.step();
    bench.add(2, 4, 2, 0);
    assert_eq!(bench.step(), [(1, 4)]);
    assert_eq!(bench.step(), [(1, 1)]);
    assert_eq!(bench.step(), [(0, 1)], "the one it displaced resumes from its cached prompt");
    assert_eq!(bench.scheduler.stats().preemptions, 1);
}

#[test]
fn a_low_priority_is_overtaken_only_for_its_head_start() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 1, ..config() }, &Capabilities::any());
    let mut next_urgent = 0;
    bench.add(7, 4, 1, 1);
    // Urgent ones arrive without end.
    for step in 0.. {
        bench.add(100 + next_urgent, 4, 1, 0);
        next_urgent = (next_urgent + 1) % 800;
        if bench.step()[0].0 == 0 {
            assert!(step >= PRIORITY_HEAD_START_STEPS, "overtaken for {step} steps only");
            break;
        }
        assert!(step <= PRIORITY_HEAD_START_STEPS + 1, "it starves");
    }
}

#[test]
fn without_blocks_the_last_in_order_gives_way_and_recomputes() {
    // 6 blocks of 4: two sequences of 8 + 8 tokens need 8.
    let mut bench =
        Bench::new(EngineConfig { blocks: 6, enable_prefix_caching: false, ..config() }, &Capabilities::any());
    bench.add(1, 8, 8, 0);
    bench.add(2, 8, 8, 0);
    let mut together = 0;
    while bench.scheduler.live() > 0 {
        let first_in_order = if bench.scheduler.live() == 2 { 0 } else { 1 };
        let rows = bench.step();
        assert_eq!(rows[0].0, first_in_order, "the first in order never gives way");
        together += usize::from(rows.len() == 2);
    }
    let stats = bench.scheduler.stats();
    assert!(stats.preemptions == 1 && stats.recomputed_tokens > 0 && together > 0, "{stats:?}");
    assert_eq!(stats.finished_length, 2);
}

#[test]
fn a_parked_sequence_gives_way_first() {
    let mut bench =
        Bench::new(EngineConfig { blocks: 6, enable_prefix_caching: false, ..config() }, &Capabilities::any());
    let parked = bench.add(1, 12, 8, 0);
    bench.step();
    bench.scheduler.park(parked);
    bench.add(2, 16, 4, 0);
    assert_eq!(bench.step(), [(1, 16)], "its blocks were needed, though it is first in order");
    bench.scheduler.unpark(parked);
    while bench.scheduler.live() > 0 {
        bench.step();
    }
    assert_eq!(bench.scheduler.stats().finished_length, 2);
}

#[test]
fn a_sequence_ends_at_its_first_limit() {
    let cases = [
        ("max_tokens", config(), 4, 3, 3),
        ("the context", EngineConfig { max_model_len: 10, ..config() }, 4, 50, 6),
        ("the whole pool", EngineConfig { blocks: 2, ..config() }, 4, 50, 4),
        ("nothing to generate", config(), 4, 0, 0),
    ];
    for (name, config, prompt, max_tokens, generated) in cases {
        let mut bench = Bench::new(config, &Capabilities::any());
        bench.add(1, prompt, max_tokens, 0);
        while bench.scheduler.live() > 0 {
            bench.step();
        }
        let stats = bench.scheduler.stats();
        assert_eq!((stats.generation_tokens, stats.finished_length), (generated, 1), "{name}");
        assert_eq!(stats.preemptions, 0, "{name}");
    }
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    let small = EngineConfig { blocks: 4, max_model_len: 100, ..config() };
    let mut scheduler = Scheduler::new(small, &Capabilities::any(), 10).expect("valid");
    let cases = [
        (vec![1; 17], 0, "17 tokens and the KV cache holds 16"),
        (vec![1; 16], 1, "16 tokens and the KV cache holds 16"),
        (vec![], 1, "no tokens"),
        (vec![10], 1, "token id 10 is outside the vocabulary of 10"),
    ];
    for (prompt, max_tokens, wanted) in cases {
        let params = SamplingParams::greedy(max_tokens);
        let refused = scheduler.add(NewSequence { id: SeqId(0), prompt, params, priority: 0, salt: [0; 32] });
        assert!(matches!(&refused, Err(FinishReason::Failed(reason)) if reason.contains(wanted)), "{refused:?}");
    }
    assert_eq!((scheduler.live(), scheduler.stats().finished_failed), (0, 4));
}

#[test]
fn an_executors_limits_are_kept() {
    let any = Capabilities::any();
    let cases = [
        ("one prefill a step", Capabilities { max_prefills_per_step: 1, ..any.clone() }, vec![(0, 6)]),
        ("buckets of at most 2 rows", Capabilities { static_buckets: vec![1, 2], ..any.clone() }, vec![(0, 6), (1, 6)]),
        ("8 tokens a step", Capabilities { max_tokens_per_step: 8, ..any.clone() }, vec![(0, 6)]),
        ("none", any, vec![(0, 6), (1, 6), (2, 6)]),
    ];
    for (name, capabilities, rows) in cases {
        let mut bench = Bench::new(config(), &capabilities);
        for first in 0..3 {
            bench.add(first, 6, 4, 0);
        }
        assert_eq!(bench.step(), rows, "{name}");
    }
}

#[test]
fn kinds_take_turns_where_they_may_not_mix() {
    let apart = Capabilities { mixed_batch: false, ..Capabilities::any() };
    let mut bench = Bench::new(config(), &apart);
    bench.add(1, 4, 9, 0);
    assert_eq!(bench.step(), [(0, 4)]);
    bench.add(2, 60, 9, 0);
    assert_eq!(bench.step(), [(0, 1)]);
    assert_eq!(bench.step(), [(1, 32)]);
    assert_eq!(bench.step(), [(0, 1)]);
    assert_eq!(bench.step(), [(1, 28)]);
    assert_eq!(bench.step(), [(0, 1), (1, 1)]);
}

#[test]
fn a_failed_step_frees_every_block_and_the_others_recompute() {
    let mut bench = Bench::new(EngineConfig { max_num_batched_tokens: 4, ..config() }, &Capabilities::any());
    bench.add(1, 8, 4, 0);
    bench.step();
    bench.scheduler.park(SeqId(0));
    bench.add(2, 4, 4, 0);
    bench.scheduler.schedule(&mut bench.step);
    let mut outcomes = Vec::new();
    bench.scheduler.fail_step(&bench.step, "gone", &mut outcomes);
    assert_eq!(outcomes.iter().map(|outcome| outcome.id.0).collect::<Vec<_>>(), [1]);
    bench.scheduler.audit().expect("sound");
    assert_eq!(bench.scheduler.stats().blocks_free, 64);
    bench.scheduler.unpark(SeqId(0));
    assert_eq!(bench.step(), [(0, 4)], "from the start again");
    assert_eq!(bench.scheduler.stats().recomputed_tokens, 4);
}
