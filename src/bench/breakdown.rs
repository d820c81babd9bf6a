//! Where the time of a step goes: the model's operations, sampling and scheduling, each beside the least time that the
//! machine could do it in. Pure but for the scheduler's own time.
//!
//! Limits are of operations that read weights or the cache: their bytes over the bandwidth or their products over the rate,
//! whichever is longer. Bytes of quantised weights are those of the GGUF file tensor by tensor; elsewhere all parameters
//! count alike. A mixture of experts has none: which experts a step reads is up to its tokens.

use std::time::{Duration, Instant};

use sconce_models::timing::{Operation, Times};
use sconce_models::{BatchInput, KvDtype, Source, Spec};
use serde::Serialize;

use crate::device::rates::Hardware;
use crate::engine::scheduler::{Sampled, Scheduler, Step, StepResults};
use crate::engine::sequence::NewSequence;
use crate::engine::{Capabilities, EngineConfig, ItlTarget, SamplingParams, SeqId, Token, batch};

/// One line of a breakdown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OperationTime {
    pub operation: &'static str,
    pub ms_per_step: f64,
    /// Of the whole step, from 0 to 1.
    pub share: f64,
    /// The least time over the measured one, from 0 to 1.
    pub limit_share: Option<f64>,
}

/// What was measured of some steps.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepTimes {
    pub steps: u32,
    pub executing: Duration,
    pub sampling: Duration,
    pub operations: Times,
}

/// What the steps had to do, all together.
#[derive(Debug, Clone, Copy)]
pub struct StepWork {
    pub steps: f64,
    pub tokens: f64,
    /// Context that a token sees on average.
    pub context: f64,
    /// Rows of logits.
    pub samples: f64,
    /// Bytes of K and V that attention reads.
    pub kv_bytes: f64,
}

/// Bytes of the weights that each kind of projection reads once a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightBytes {
    qkv: f64,
    output: f64,
    gate_up: f64,
    down: f64,
    logits: f64,
}

/// Parameters of the projections of a layer, and of the head.
struct Parameters {
    qkv: f64,
    output: f64,
    gate_up: f64,
    down: f64,
    logits: f64,
}

impl Parameters {
    fn of(spec: &Spec) -> Self {
        let (heads, kv_heads) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let wide = if spec.gated { 2 * spec.ffn } else { spec.ffn };
        Self {
            qkv: (spec.hidden * (heads + 2 * kv_heads)) as f64,
            output: (spec.hidden * heads) as f64,
            gate_up: (spec.hidden * wide) as f64,
            down: (spec.hidden * spec.ffn) as f64,
            logits: (spec.hidden * spec.vocab) as f64,
        }
    }
}

impl WeightBytes {
    pub fn of(spec: &Spec, source: &Source) -> Self {
        if let Source::Gguf(path) = source
            && let Ok(header) = sconce_models::gguf::read_header(path)
        {
            let sum = |parts: &[&str]| -> f64 {
                let is_part = |name: &str| parts.iter().any(|part| name.ends_with(&format!(".{part}.weight")));
                header.tensors.iter().filter(|tensor| is_part(&tensor.name)).map(|tensor| tensor.bytes as f64).sum()
            };
            let head = header.tensor("output.weight").or_else(|| header.tensor("token_embd.weight"));
            return Self {
                qkv: sum(&["attn_q", "attn_k", "attn_v", "attn_qkv"]),
                output: sum(&["attn_output"]),
                gate_up: sum(&["ffn_gate", "ffn_up"]),
                down: sum(&["ffn_down"]),
                logits: head.map_or(0.0, |tensor| tensor.bytes as f64),
            };
        }
        let each = spec.weight_bytes as f64 / (spec.parameters as f64).max(1.0);
        let (one, layers) = (Parameters::of(spec), spec.layers as f64);
        Self {
            qkv: one.qkv * layers * each,
            output: one.output * layers * each,
            gate_up: one.gate_up * layers * each,
            down: one.down * layers * each,
            logits: one.logits * each,
        }
    }
}

/// Seconds that an operation of these steps needs at least.
fn least_s(
    operation: Operation,
    work: &StepWork,
    (spec, weights): (&Spec, &WeightBytes),
    hardware: &Hardware,
) -> Option<f64> {
    let (one, layers) = (Parameters::of(spec), spec.layers as f64);
    // Behind the last layer's attention only sampled tokens go on.
    let on_the_way = (layers - 1.0) * work.tokens + work.samples;
    let rate = hardware.operations_per_s(&spec.weight_format);
    let (bytes, operations, rate) = match operation {
        Operation::Qkv => (weights.qkv, 2.0 * one.qkv * layers * work.tokens, rate),
        Operation::Output => (weights.output, 2.0 * one.output * on_the_way, rate),
        Operation::GateUp if spec.experts.is_none() => (weights.gate_up, 2.0 * one.gate_up * on_the_way, rate),
        Operation::Down if spec.experts.is_none() => (weights.down, 2.0 * one.down * on_the_way, rate),
        Operation::Logits => (weights.logits, 2.0 * one.logits * work.samples, rate),
        Operation::Attention => {
            let products = 4.0 * layers * (spec.heads * spec.head_dim) as f64 * work.context * work.tokens;
            // Queries and probabilities are not quantised.
            let rate = hardware.bf16_per_s.unwrap_or(0.0).max(hardware.f32_per_s);
            (work.kv_bytes / work.steps.max(1.0), products, rate)
        }
        _ => return None,
    };
    let reading = work.steps * bytes / hardware.read_bytes_per_s.max(1.0);
    Some(reading.max(operations / rate.max(1.0)))
}

/// The lines of a breakdown in the order of a step, without those that took no time.
pub fn breakdown(
    times: &StepTimes,
    work: &StepWork,
    scheduling_s: f64,
    model: (&Spec, &WeightBytes),
    hardware: Option<&Hardware>,
) -> Vec<OperationTime> {
    let steps = f64::from(times.steps.max(1));
    let operations: Duration = times.operations.iter().sum();
    let rest = times.executing.saturating_sub(operations);
    let whole_s = times.executing.as_secs_f64() + times.sampling.as_secs_f64() + scheduling_s * steps;
    let line = |operation, seconds: f64, least_s: Option<f64>| OperationTime {
        operation,
        ms_per_step: seconds / steps * 1000.0,
        share: seconds / whole_s.max(1e-12),
        limit_share: least_s.filter(|_| seconds > 0.0).map(|least| least / seconds),
    };
    let mut lines: Vec<OperationTime> = Operation::ALL
        .into_iter()
        .map(|operation| {
            let seconds = times.operations[operation as usize].as_secs_f64();
            let least = hardware.and_then(|hardware| least_s(operation, work, model, hardware));
            line(operation.name(), seconds, least)
        })
        .collect();
    lines.push(line("sampling", times.sampling.as_secs_f64(), None));
    lines.push(line("scheduling", scheduling_s * steps, None));
    lines.push(line("rest of the step", rest.as_secs_f64(), None));
    lines.retain(|line| line.ms_per_step > 0.0);
    lines
}

/// Bytes of K and V that decoding reads: each sequence its context, every step.
pub fn decode_kv_bytes(spec: &Spec, sequences: f64, context: f64, steps: f64) -> f64 {
    spec.kv_bytes_per_token(KvDtype::F16) as f64 * sequences * context * steps
}

const SCHEDULED_STEPS: u32 = 64;
const SCHEDULED_CONTEXT: usize = 128;
const BLOCK_TOKENS: u32 = 16;

/// Seconds that the scheduler takes for a step in which so many sequences decode: choosing, the batch, and taking the
/// tokens in.
pub fn scheduling_s(sequences: usize) -> Result<f64, String> {
    let blocks_each = (SCHEDULED_CONTEXT as u32 + SCHEDULED_STEPS).div_ceil(BLOCK_TOKENS) + 1;
    let config = EngineConfig {
        block_size: BLOCK_TOKENS,
        blocks: (sequences as u32 + 2) * blocks_each,
        max_num_seqs: sequences as u32,
        max_num_batched_tokens: (sequences as u32).max(2048),
        max_model_len: blocks_each * BLOCK_TOKENS,
        enable_prefix_caching: true,
        max_waiting: sequences as u32,
        itl_target: ItlTarget::Auto,
        speculation: None,
    };
    const VOCAB: usize = 32_000;
    let mut scheduler = Scheduler::new(config, &Capabilities::any(), VOCAB)?;
    for number in 0..sequences {
        let prompt = (0..SCHEDULED_CONTEXT).map(|at| ((number * 7919 + at * 31) % VOCAB) as u32).collect();
        let params = SamplingParams::greedy(SCHEDULED_STEPS);
        let new = NewSequence { id: SeqId(number as u64), prompt, params, priority: 0, salt: [0; 32], adapter: None };
        scheduler.add(new).map_err(|reason| format!("{reason:?}"))?;
    }
    let (mut step, mut input, mut outcomes) = (Step::default(), BatchInput::default(), Vec::new());
    let (mut spent, mut steps) = (Duration::ZERO, 0);
    while scheduler.has_work() {
        let started = Instant::now();
        scheduler.schedule(&mut step);
        batch::fill(&scheduler, &step, &mut input);
        let planned = started.elapsed();
        let sampled = |sample| if sample { Sampled::Tokens(1) } else { Sampled::Nothing };
        let mut results = StepResults {
            sampled: step.rows.iter().map(|row| sampled(row.sample)).collect(),
            tokens: step.rows.iter().filter(|row| row.sample).map(|_| Token { id: 1, logprobs: None }).collect(),
            scores: Vec::new(),
        };
        let is_decode = step.rows.len() == sequences && step.rows.iter().all(|row| row.decode);
        let started = Instant::now();
        scheduler.commit(&step, &mut results, &mut outcomes);
        if is_decode {
            spent += planned + started.elapsed();
            steps += 1;
        }
        outcomes.clear();
    }
    Ok(spent.as_secs_f64() / f64::from(steps.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware() -> Hardware {
        Hardware {
            processor: String::new(),
            threads: 2,
            read_bytes_per_s: 30e9,
            f32_per_s: 230e9,
            bf16_per_s: Some(454e9),
            int8_per_s: Some(910e9),
        }
    }

    #[test]
    fn a_breakdown_is_the_whole_step_and_reading_bounds_one_stream() {
        let source = Source::Dummy("smollm2-135m".to_owned());
        let spec = sconce_models::read_spec(&source).expect("a shape");
        let weights = WeightBytes::of(&spec, &source);
        let body = weights.qkv + weights.output + weights.gate_up + weights.down + weights.logits;
        assert!((body / spec.weight_bytes as f64 - 1.0).abs() < 0.01, "{weights:?}");
        let mut operations = Times::default();
        operations[Operation::GateUp as usize] = Duration::from_millis(60);
        operations[Operation::Attention as usize] = Duration::from_millis(10);
        let times = StepTimes {
            steps: 10,
            executing: Duration::from_millis(80),
            sampling: Duration::from_millis(15),
            operations,
        };
        let work = StepWork { steps: 10.0, tokens: 10.0, context: 100.0, samples: 10.0, kv_bytes: 0.0 };
        let lines = breakdown(&times, &work, 0.0005, (&spec, &weights), Some(&hardware()));
        let share: f64 = lines.iter().map(|line| line.share).sum();
        assert!((share - 1.0).abs() < 1e-9, "{lines:?}");
        let names: Vec<&str> = lines.iter().map(|line| line.operation).collect();
        assert_eq!(names, ["attention", "gate-up", "sampling", "scheduling", "rest of the step"]);
        assert!((lines[1].ms_per_step - 6.0).abs() < 1e-9);
        let reading_s = 10.0 * weights.gate_up / 30e9;
        assert!(lines[1].limit_share.is_some_and(|share| (share - reading_s / 0.06).abs() < 1e-9), "{lines:?}");
        assert!(lines[0].limit_share.is_some() && lines[2].limit_share.is_none());
    }

    #[test]
    fn scheduling_is_measured_for_any_batch() {
        for sequences in [1, 16] {
            let seconds = scheduling_s(sequences).expect("it can run");
            assert!(seconds > 0.0 && seconds < 0.1, "{sequences}: {seconds}");
        }
    }
}
