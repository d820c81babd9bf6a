//! The scheduler's rules one by one; the seeded simulator (tests/simulator) has them all at once.

use super::*;
use crate::{NgramConfig, SamplingParams, Speculation, Token, TokenLogprobs};

pub(super) fn config() -> EngineConfig {
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

pub(super) struct Bench {
    pub(super) scheduler: Scheduler,
    pub(super) step: Step,
    next_id: u64,
}

impl Bench {
    pub(super) fn new(config: EngineConfig, capabilities: &Capabilities) -> Self {
        let scheduler = Scheduler::new(config, capabilities, 1000).expect("valid");
        Self { scheduler, step: Step::default(), next_id: 0 }
    }

    /// A prompt of `length` tokens that start with `first`.
    pub(super) fn add(&mut self, first: u32, length: usize, max_tokens: u32, priority: i32) -> SeqId {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let prompt = (0..length as u32).map(|place| if place == 0 { first } else { place }).collect();
        let params = SamplingParams::greedy(max_tokens);
        let new = NewSequence { id, prompt, params, priority, salt: [0; 32], adapter: None };
        self.scheduler.add(new).expect("it can run");
        id
    }

    /// A prompt whose tokens are scored.
    fn add_scored(&mut self, first: u32, length: usize) -> SeqId {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let prompt = (0..length as u32).map(|place| if place == 0 { first } else { place }).collect();
        let params = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::greedy(1) };
        let new = NewSequence { id, prompt, params, priority: 0, salt: [0; 32], adapter: None };
        self.scheduler.add(new).expect("it can run");
        id
    }

    /// One step in which every sampling row gets token 1. Returns (id, tokens) of its rows.
    pub(super) fn step(&mut self) -> Vec<(u64, usize)> {
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
        let refused =
            scheduler.add(NewSequence { id: SeqId(0), prompt, params, priority: 0, salt: [0; 32], adapter: None });
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
fn prompts_beside_decodes_get_what_fits_into_the_target_time() {
    // 20 ms for the decode alone, 0.1 ms for a prompt token.
    let cases = [
        ("twice the decode", ItlTarget::Auto, 200),
        ("30 ms", ItlTarget::Milliseconds(30), 100),
        ("less than the decode takes", ItlTarget::Milliseconds(1), 32),
        ("no target", ItlTarget::Off, 252),
    ];
    for (name, itl_target, expected) in cases {
        let config =
            EngineConfig { max_num_batched_tokens: 256, blocks: 1024, max_model_len: 2000, itl_target, ..config() };
        let mut bench = Bench::new(config, &Capabilities::any());
        bench.add(1, 100, 50, 0);
        for (rows, elapsed_us) in [([(0, 100)], 10_000.0), ([(0, 1)], 20_000.0)] {
            assert_eq!(bench.step(), rows, "{name}");
            bench.scheduler.observe(&bench.step, elapsed_us);
        }
        bench.add(2, 1000, 50, 0);
        assert_eq!(bench.step(), [(0, 1), (1, expected)], "{name}");
        // A higher priority makes the prompt the first in order, but does not let it hold up the decode.
        bench.add(3, 1000, 50, -1);
        let first = expected.min(255) / 4 * 4;
        assert!(matches!(bench.step()[..], [(2, tokens), (0, 1), ..] if tokens <= first), "{name}");
        bench.scheduler.cancel(SeqId(0));
        let rows = bench.step();
        assert_eq!(rows.iter().map(|row| row.1).sum::<usize>(), 256, "{name}: nobody decodes, nobody waits");
    }
}

/// The model goes on with `text`, whatever was drafted. Returns (tokens of the row, tokens taken).
fn speak(bench: &mut Bench, text: &[u32]) -> (usize, usize) {
    bench.scheduler.schedule(&mut bench.step);
    let row = &bench.step.rows[0];
    let said = &text[row.start + row.count - row.drafts..];
    let right = bench.scheduler.sequence(row).drafts().iter().zip(said).take_while(|(draft, said)| draft == said);
    let count = 1 + right.count();
    let tokens = said[..count].iter().map(|id| Token { id: *id, logprobs: None }).collect();
    let drafted = row.count;
    let mut results = StepResults { sampled: vec![Sampled::Tokens(count)], tokens, scores: Vec::new() };
    let mut outcomes = Vec::new();
    bench.scheduler.commit(&bench.step, &mut results, &mut outcomes);
    assert_eq!(outcomes[0].tokens.len(), count);
    bench.scheduler.audit().expect("sound");
    (drafted, count)
}

#[test]
fn drafts_that_hold_save_steps_and_others_leave_nothing_behind() {
    let lookup = NgramConfig { num_speculative_tokens: 5, prompt_lookup_max: 3, prompt_lookup_min: 2 };
    let speculation = Some(Speculation::Ngram(lookup));
    let mut bench = Bench::new(EngineConfig { speculation, ..config() }, &Capabilities::any());
    let id = bench.add(0, 6, 12, 0);
    // It begins to repeat the prompt, says something new, and repeats that.
    let text = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 9, 0, 1, 2, 3, 9, 0, 1];
    let mut steps = Vec::new();
    while bench.scheduler.live() > 0 {
        steps.push(speak(&mut bench, &text));
        if bench.scheduler.live() > 0 {
            let sequence = bench.scheduler.sequences().next().expect("it lives");
            assert_eq!((sequence.id, sequence.uncomputed(), sequence.drafts()), (id, 1, &[][..]));
        }
    }
    // Of the first draft two hold. The last one is cut to what may still be generated.
    assert_eq!(steps, [(6, 1), (1, 1), (6, 3), (1, 1), (1, 1), (5, 5)]);
    let stats = bench.scheduler.stats().clone();
    assert_eq!((stats.spec_drafts, stats.spec_draft_tokens, stats.spec_accepted_tokens), (2, 9, 6));
    assert_eq!((stats.generation_tokens, stats.finished_length), (12, 1));
    // What was confirmed may be shared like any other text.
    let again = text[..17].to_vec();
    let new = NewSequence {
        id: SeqId(9),
        prompt: again,
        params: SamplingParams::greedy(1),
        priority: 0,
        salt: [0; 32],
        adapter: None,
    };
    bench.scheduler.add(new).expect("it can run");
    assert_eq!(bench.step(), [(9, 1)]);
}

#[test]
fn a_device_whose_decodes_are_one_token_gets_no_drafts() {
    let speculation = Some(Speculation::Ngram(NgramConfig::default()));
    let single = Capabilities { max_drafts_per_row: 0, ..Capabilities::any() };
    for (capabilities, expected) in [(single, 1), (Capabilities { max_drafts_per_row: 2, ..Capabilities::any() }, 3)] {
        let mut bench = Bench::new(EngineConfig { speculation, ..config() }, &capabilities);
        bench.add(1, 1, 30, 0);
        for _ in 0..4 {
            bench.step();
        }
        assert_eq!(bench.step(), [(0, expected)]);
    }
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

#[test]
fn without_preemption_blocks_for_the_whole_request_are_set_aside() {
    let kept = Capabilities { preemption: false, ..Capabilities::any() };
    // 6 blocks of 4: two sequences of 8 + 8 tokens need 8, so the second waits though its prompt would fit.
    let small = EngineConfig { blocks: 6, enable_prefix_caching: false, ..config() };
    let mut bench = Bench::new(small.clone(), &kept);
    bench.add(1, 8, 8, 0);
    bench.add(2, 8, 8, 0);
    bench.add(3, 4, 4, 0);
    let mut rows = Vec::new();
    while bench.scheduler.live() > 0 {
        rows.push(bench.step());
    }
    assert!(rows[..8].iter().all(|rows| rows.len() == 1 && rows[0].0 == 0), "{rows:?}");
    assert_eq!(rows[8], [(1, 8), (2, 4)], "then both others, which fit together");
    let stats = bench.scheduler.stats();
    assert_eq!((stats.preemptions, stats.recomputed_tokens, stats.finished_length), (0, 0, 3));

    // An urgent one waits for blocks too, and goes first when it has them.
    let mut bench = Bench::new(small.clone(), &kept);
    bench.add(1, 8, 8, 1);
    assert_eq!(bench.step(), [(0, 8)]);
    bench.add(2, 8, 8, 0);
    assert_eq!(bench.step(), [(0, 1)]);

    // One that is parked keeps what it has; nothing runs, and nobody is asked to try again before it is read.
    bench.scheduler.park(SeqId(0));
    assert_eq!(bench.step(), []);
    assert!(!bench.scheduler.has_work());
    bench.scheduler.unpark(SeqId(0));
    assert!(bench.scheduler.has_work());
    assert_eq!(bench.step(), [(0, 1)]);

    // A failed step ends everybody who holds blocks; the others go on.
    bench.scheduler.schedule(&mut bench.step);
    let mut outcomes = Vec::new();
    bench.scheduler.fail_step(&bench.step, "gone", &mut outcomes);
    assert_eq!(outcomes.iter().map(|outcome| outcome.id).collect::<Vec<_>>(), [SeqId(0)]);
    assert_eq!(bench.step(), [(1, 8)]);
}

#[test]
fn prompts_are_cut_to_buckets_that_they_fill() {
    // (tokens of the prompt, the chunks it is computed in, padding)
    let cases: [(usize, &[usize], u64); 6] = [
        (3, &[3], 5),
        (8, &[8], 0),
        // More than half of 32 is theirs.
        (17, &[17], 15),
        // 16 of 32 or fewer would be padding, or more: 8 now, the rest later.
        (12, &[8, 4], 4),
        (32, &[32], 0),
        (45, &[32, 8, 5], 3),
    ];
    for (length, chunks, padding) in cases {
        let mut bench = Bench::new(
            EngineConfig { max_num_batched_tokens: 512, ..config() },
            &Capabilities::compiled(&[2, 8], &[8, 32]),
        );
        bench.add(1, length, 1, 0);
        let mut found = Vec::new();
        while bench.scheduler.live() > 0 {
            found.extend(bench.step().iter().map(|(_, count)| *count));
        }
        assert_eq!((found.as_slice(), bench.scheduler.stats().padding_tokens), (chunks, padding), "{length}");
    }
}
