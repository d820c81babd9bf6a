//! The engine's own part of a step: choosing what runs, and sampling it.
//!
//! usage: cargo bench -p sconce-engine --bench step

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sconce_engine::sampler::{LANE_LOGITS_MIN, StepSampler, Workers};
use sconce_engine::scheduler::{Sampled, Scheduler, Step, StepResults};
use sconce_engine::sequence::NewSequence;
use sconce_engine::{Capabilities, EngineConfig, ItlTarget, SamplingParams, SeqId, Token, batch};
use sconce_models::{BatchInput, Logits};

const PROMPT: usize = 128;
const ANSWER: u32 = 512;
const VOCAB: usize = 49_152;
const BLOCK: u32 = 16;

fn scheduler(sequences: usize, params: &SamplingParams) -> Scheduler {
    let blocks_each = (PROMPT as u32 + ANSWER) / BLOCK + 1;
    let config = EngineConfig {
        block_size: BLOCK,
        blocks: (sequences as u32 + 2) * blocks_each,
        max_num_seqs: sequences as u32,
        max_num_batched_tokens: 2048,
        max_model_len: blocks_each * BLOCK,
        enable_prefix_caching: true,
        max_waiting: sequences as u32,
        itl_target: ItlTarget::Auto,
        speculation: None,
    };
    let mut scheduler = Scheduler::new(config, &Capabilities::any(), VOCAB).expect("it can run");
    for number in 0..sequences {
        let prompt = (0..PROMPT).map(|at| ((number * 7919 + at * 31) % VOCAB) as u32).collect();
        let new = NewSequence {
            id: SeqId(number as u64),
            prompt,
            params: params.clone(),
            priority: 0,
            salt: [0; 32],
            adapter: None,
        };
        scheduler.add(new).expect("it can run");
    }
    scheduler
}

/// Every row that samples gets the same token.
fn results(step: &Step) -> StepResults {
    let sampled = |sample| if sample { Sampled::Tokens(1) } else { Sampled::Nothing };
    StepResults {
        sampled: step.rows.iter().map(|row| sampled(row.sample)).collect(),
        tokens: step.rows.iter().filter(|row| row.sample).map(|_| Token { id: 1, logprobs: None }).collect(),
        scores: Vec::new(),
    }
}

/// `steps` steps, and the time in the scheduler alone: of those that prefill, or of those in which all decode.
fn schedule(sequences: usize, steps: u64, decode: bool) -> Duration {
    let (mut spent, mut done) = (Duration::ZERO, 0);
    let (mut step, mut input, mut outcomes) = (Step::default(), BatchInput::default(), Vec::new());
    let params = SamplingParams::greedy(ANSWER);
    while done < steps {
        let mut scheduler = scheduler(sequences, &params);
        while scheduler.has_work() && done < steps {
            let started = Instant::now();
            scheduler.schedule(&mut step);
            batch::fill(&scheduler, &step, &mut input);
            let planned = started.elapsed();
            let mut results = results(&step);
            let is_decode = step.rows.len() == sequences && step.rows.iter().all(|row| row.decode);
            let started = Instant::now();
            scheduler.commit(&step, &mut results, &mut outcomes);
            if is_decode == decode {
                spent += planned + started.elapsed();
                done += 1;
            }
            outcomes.clear();
            // A prompt is soon over: what follows it is not asked for.
            if is_decode && !decode {
                break;
            }
        }
    }
    spent
}

fn scheduling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler");
    for sequences in [1, 16, 256] {
        group.throughput(Throughput::Elements(sequences as u64));
        group.bench_function(format!("a step of {sequences} decodes"), |bencher| {
            bencher.iter_custom(|steps| schedule(sequences, steps, true));
        });
    }
    group.throughput(Throughput::Elements(2048));
    group.bench_function("a step of prompts, 2048 tokens", |bencher| {
        bencher.iter_custom(|steps| schedule(64, steps, false));
    });
    group.finish();
}

fn sampling(criterion: &mut Criterion) {
    let greedy = SamplingParams::greedy(ANSWER);
    let warm = SamplingParams { temperature: 0.7, seed: 1, ..greedy.clone() };
    let kinds = [
        ("greedy", greedy.clone()),
        ("temperature", warm.clone()),
        ("top-k 40, top-p 0.9", SamplingParams { top_k: 40, top_p: 0.9, ..warm.clone() }),
        ("top-p 0.95", SamplingParams { top_p: 0.95, ..warm.clone() }),
        ("penalties", SamplingParams { repetition_penalty: 1.1, frequency_penalty: 0.2, ..warm }),
        ("greedy, 20 logprobs", SamplingParams { logprobs: Some(20), ..greedy }),
    ];
    let mut group = criterion.benchmark_group("sampler");
    for (name, params) in kinds {
        for sequences in [1, 16] {
            let mut scheduler = scheduler(sequences, &params);
            let mut step = Step::default();
            // The first steps compute prompts; the first in which all sample is measured over and over.
            loop {
                scheduler.schedule(&mut step);
                if step.rows.len() == sequences && step.rows.iter().all(|row| row.sample) {
                    break;
                }
                scheduler.commit(&step, &mut results(&step), &mut Vec::new());
            }
            let values =
                (0..sequences * VOCAB).map(|at| ((at as u32).wrapping_mul(2_654_435_761) >> 20) as f32 / 512.0);
            let logits = Logits { vocab: VOCAB, values: values.collect() };
            let (mut sampler, mut out) = (StepSampler::new(LANE_LOGITS_MIN), StepResults::default());
            group.throughput(Throughput::Elements(sequences as u64));
            group.bench_function(format!("{name}, {sequences} rows"), |bencher| {
                bencher.iter(|| sampler.sample(&scheduler, black_box(&step), &logits, &mut out, Workers::NONE));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, scheduling, sampling);
criterion_main!(benches);
