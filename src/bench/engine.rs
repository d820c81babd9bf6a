//! Prefill and decode rates of a model without HTTP, tokenizer or scheduler: what llama-bench and llama-batched-bench
//! measure, and how far from the machine's limit they are.

use std::time::Instant;

use sconce_kernels::cpu;
use sconce_models::timing;
use sconce_models::{BatchInput, KvDtype, LoadOptions, Logits, Precision, Source, Spec};
use serde::Serialize;

use super::breakdown::{self, OperationTime, StepTimes, StepWork, WeightBytes};
use super::limit::{self, Needs, Shape};
use super::steps::{Row, Sampling};
use crate::device::rates::Hardware;
use crate::engine::{Executor, ModelExecutor};
use crate::error::{Error, Result};

pub(super) const BLOCK_TOKENS: usize = 16;
/// As `sconce serve` cuts prompts.
const STEP_TOKENS: usize = 256;
pub const CASES_DEFAULT: [&str; 5] = ["pp512", "tg128", "1x128+128", "4x128+128", "16x128+128"];
/// A case is refused beyond it, before memory for it is asked.
const TOKENS_MAX: usize = 1 << 22;

/// What to run: a prompt, then an answer, for so many sequences at once; either may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub sequences: usize,
    pub prompt: usize,
    /// Context that answers begin with, when there is no prompt.
    pub depth: usize,
    pub answer: usize,
}

impl std::str::FromStr for Case {
    type Err = String;

    /// `ppN` (prefill N), `tgN` or `tgN@DEPTH` (decode N with so much context), `SEQUENCESxPROMPT+ANSWER`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is no case; write ppN, tgN, tgN@DEPTH or SEQUENCESxPROMPT+ANSWER, as 4x128+128");
        let number = |text: &str| text.parse::<usize>().ok().filter(|number| *number <= TOKENS_MAX).ok_or_else(wrong);
        let case = if let Some(tokens) = text.strip_prefix("pp") {
            Self { sequences: 1, prompt: number(tokens)?, depth: 0, answer: 0 }
        } else if let Some(rest) = text.strip_prefix("tg") {
            let (tokens, depth) = rest.split_once('@').unwrap_or((rest, "0"));
            Self { sequences: 1, prompt: 0, depth: number(depth)?, answer: number(tokens)? }
        } else {
            let (sequences, tokens) = text.split_once('x').ok_or_else(wrong)?;
            let (prompt, answer) = tokens.split_once('+').ok_or_else(wrong)?;
            Self { sequences: number(sequences)?, prompt: number(prompt)?, depth: 0, answer: number(answer)? }
        };
        let empty = case.sequences == 0 || case.prompt + case.answer == 0 || case.tokens_each() == 0;
        if empty || case.sequences.saturating_mul(case.tokens_each()) > TOKENS_MAX { Err(wrong()) } else { Ok(case) }
    }
}

impl Case {
    fn tokens_each(self) -> usize {
        self.prompt + self.depth + self.answer
    }

    /// What a token of the answer sees on average.
    fn decode_context(self) -> f64 {
        (self.prompt + self.depth) as f64 + self.answer as f64 / 2.0
    }

    fn blocks_each(self) -> usize {
        self.tokens_each().div_ceil(BLOCK_TOKENS)
    }

    pub fn name(self) -> String {
        match (self.prompt, self.answer) {
            (prompt, 0) if self.sequences == 1 => format!("pp{prompt}"),
            (0, answer) if self.depth > 0 => format!("tg{answer}@{}", self.depth),
            (0, answer) if self.sequences == 1 => format!("tg{answer}"),
            (prompt, answer) => format!("{}x{prompt}+{answer}", self.sequences),
        }
    }
}

/// Medians over the runs; `None` for a part that the case does not have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    pub model: String,
    pub precision: &'static str,
    pub case: String,
    pub sequences: usize,
    pub threads: usize,
    pub runs: usize,
    pub prefill_tokens_per_s: Option<f64>,
    pub decode_tokens_per_s: Option<f64>,
    pub prefill_limit_tokens_per_s: Option<f64>,
    pub decode_limit_tokens_per_s: Option<f64>,
    /// Where they stand in a roofline.
    pub prefill_roofline: Option<RooflinePoint>,
    pub decode_roofline: Option<RooflinePoint>,
    /// Of one more run.
    pub prefill_operations: Vec<OperationTime>,
    pub decode_operations: Vec<OperationTime>,
}

/// Operations (a multiply-add is two) over bytes that must be read, and those done a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RooflinePoint {
    pub operations_per_byte: f64,
    pub operations_per_s: f64,
    /// What the machine allows for products of this format, if memory did not bound it.
    pub operations_limit_per_s: f64,
}

/// A loaded model, ready to be measured.
pub struct Bench {
    pub(super) name: String,
    precision: Precision,
    pub(super) spec: Spec,
    pub(super) executor: Box<dyn Executor>,
    pub(super) batch: BatchInput,
    pub(super) logits: Logits,
    pub(super) sampling: Sampling,
    pub(super) is_async: bool,
    pub(super) blocks_each: usize,
    step_tokens: usize,
    /// Operations are timed on the CPU only.
    has_times: bool,
    weights: WeightBytes,
    pub(super) times: StepTimes,
}

impl Bench {
    /// On the CPU, with KV memory for all of `cases`.
    pub fn load(name: &str, source: &Source, precision: Precision, cases: &[Case]) -> Result<Self> {
        let broken = |why: &dyn std::fmt::Display| Error::invalid("MODEL", format!("{name}: {why}"));
        let options = LoadOptions { precision, ..LoadOptions::default() };
        let model = sconce_models::load(source, options).map_err(|why| broken(&why))?;
        let spec = model.spec().clone();
        let (sequences, blocks_each) = room(name, &spec, cases)?;
        let (blocks, block_size) = ((sequences * blocks_each) as u32, BLOCK_TOKENS as u32);
        let executor = ModelExecutor::new(model, blocks, block_size, KvDtype::F16)
            .and_then(|executor| executor.with_state_slots(sequences as u32))
            .map_err(|why| broken(&why))?;
        Ok(Self { has_times: true, ..Self::with(name, source, precision, (Box::new(executor), spec, blocks_each)) })
    }

    /// The same on a GPU, or shared out among several.
    #[cfg(feature = "gpu")]
    pub fn load_on(
        devices: &[sconce_cuda::Device],
        name: &str,
        source: &Source,
        precision: Precision,
        cases: &[Case],
    ) -> Result<Self> {
        let mut each = 1;
        let (executor, spec) = super::gpu::executor(devices, source, precision, |spec| {
            let (sequences, blocks_each) = room(name, spec, cases)?;
            each = blocks_each;
            let tokens = cases.iter().map(|case| case.sequences * case.prompt).max().unwrap_or(1);
            Ok(super::gpu::Room {
                sequences,
                tokens_each: blocks_each * BLOCK_TOKENS,
                blocks: sequences * blocks_each,
                block_tokens: BLOCK_TOKENS,
                step_tokens: tokens.clamp(sequences, super::gpu::STEP_TOKENS.max(sequences)),
            })
        })
        .map_err(|why| Error::invalid("MODEL", format!("{name}: {}", why.message)))?;
        let made = Self::with(name, source, precision, (executor, spec, each));
        Ok(Self { step_tokens: super::gpu::STEP_TOKENS, ..made })
    }

    /// Whether steps of decoding are issued before the tokens of those before them are here, where a device takes that.
    #[cfg(feature = "gpu")]
    #[must_use]
    pub fn with_async_scheduling(self, is_async: bool) -> Self {
        Self { is_async, ..self }
    }

    /// The same on the first device of a PJRT plugin.
    #[cfg(feature = "pjrt")]
    pub fn load_on_plugin(
        plugin: &std::path::Path,
        name: &str,
        (source, precision): (&Source, Precision),
        cases: &[Case],
    ) -> Result<Self> {
        use sconce_pjrt::{ElementType, Limits, PjrtDevice, PjrtExecutor, PjrtOptions};

        let broken = |why: &dyn std::fmt::Display| Error::invalid("MODEL", format!("{name}: {why}"));
        let spec = sconce_models::read_spec(source).map_err(|why| broken(&why))?;
        let (sequences, blocks_each) = room(name, &spec, cases)?;
        let limits = Limits {
            max_num_seqs: sequences as u32,
            max_num_batched_tokens: STEP_TOKENS as u32,
            max_model_len: (blocks_each * BLOCK_TOKENS) as u32,
            blocks: (sequences * blocks_each) as u32,
            block_size: BLOCK_TOKENS as u32,
        };
        let element = if precision == Precision::High { ElementType::F32 } else { ElementType::Bf16 };
        let device = PjrtDevice::open(plugin).map_err(|why| broken(&why))?;
        let options = PjrtOptions { element, limits };
        let executor =
            PjrtExecutor::load(device, source, LoadOptions::default(), options).map_err(|why| broken(&why))?;
        Ok(Self::with(name, source, precision, (Box::new(executor), spec, blocks_each)))
    }

    fn with(
        name: &str,
        source: &Source,
        precision: Precision,
        (executor, spec, blocks_each): (Box<dyn Executor>, Spec, usize),
    ) -> Self {
        let (weights, times) = (WeightBytes::of(&spec, source), StepTimes::default());
        Self {
            name: name.to_owned(),
            precision,
            spec,
            executor,
            batch: BatchInput::default(),
            logits: Logits::default(),
            sampling: Sampling::default(),
            is_async: true,
            blocks_each,
            step_tokens: STEP_TOKENS,
            has_times: false,
            weights,
            times,
        }
    }

    /// One run to warm up, then `runs`. With the machine's rates the limits are given too.
    pub fn measure(&mut self, case: Case, runs: usize, hardware: Option<&Hardware>) -> Result<Measured> {
        let mut rates = (Vec::new(), Vec::new());
        for run in 0..=runs {
            let (prefill, decode) = self.run(case)?;
            if run > 0 {
                rates.0.extend(prefill);
                rates.1.extend(decode);
            }
        }
        let median = |rates: &[f64]| (!rates.is_empty()).then(|| sconce_bench::stats::median(rates));
        let (prefill, decode) = (median(&rates.0), median(&rates.1));
        let (prefill_operations, decode_operations) = self.operations(case, hardware)?;
        let sequences = case.sequences as f64;
        let prefill_tokens = sequences * case.prompt as f64;
        let prefill_bound = hardware
            .zip(prefill)
            .map(|(hardware, rate)| self.bound(&self.prefill_needs(case), prefill_tokens, rate, hardware));
        let decode_bound = hardware
            .zip(decode)
            .map(|(hardware, rate)| self.bound(&self.decode_needs(case), sequences, rate, hardware));
        Ok(Measured {
            model: self.name.clone(),
            precision: if self.precision == Precision::High { "high" } else { "fast" },
            case: case.name(),
            sequences: case.sequences,
            threads: cpu::threads(),
            runs,
            prefill_tokens_per_s: prefill,
            decode_tokens_per_s: decode,
            prefill_limit_tokens_per_s: prefill_bound.map(|bound| bound.0),
            decode_limit_tokens_per_s: decode_bound.map(|bound| bound.0),
            prefill_roofline: prefill_bound.map(|bound| bound.1),
            decode_roofline: decode_bound.map(|bound| bound.1),
            prefill_operations,
            decode_operations,
        })
    }

    /// All tokens in one step: what no way of cutting prompts can beat.
    fn prefill_needs(&self, case: Case) -> Needs {
        let (sequences, tokens) = (case.sequences as f64, case.prompt as f64);
        let shape = Shape { sequences, context: tokens / 2.0, tokens_each: tokens, samples: sequences };
        limit::needs(&self.spec, KvDtype::F16, shape)
    }

    fn decode_needs(&self, case: Case) -> Needs {
        let sequences = case.sequences as f64;
        let shape = Shape { sequences, context: case.decode_context(), tokens_each: 1.0, samples: sequences };
        limit::needs(&self.spec, KvDtype::F16, shape)
    }

    /// The most tokens a second of a step with these needs, and where it stands at `rate`.
    fn bound(&self, needs: &Needs, tokens: f64, rate: f64, hardware: &Hardware) -> (f64, RooflinePoint) {
        let format = &self.spec.weight_format;
        let point = RooflinePoint {
            operations_per_byte: needs.operations / needs.bytes.max(1.0),
            operations_per_s: needs.operations / tokens * rate,
            operations_limit_per_s: hardware.operations_per_s(format),
        };
        (tokens / limit::least_s(hardware, format, *needs), point)
    }

    /// One more run, with the model's operations timed: of the prompt, and of the answer.
    fn operations(
        &mut self,
        case: Case,
        hardware: Option<&Hardware>,
    ) -> Result<(Vec<OperationTime>, Vec<OperationTime>)> {
        if !self.has_times {
            return Ok((Vec::new(), Vec::new()));
        }
        let (sequences, prompt, answer) = (case.sequences as f64, case.prompt as f64, case.answer as f64);
        let scheduling_s = breakdown::scheduling_s(case.sequences)
            .map_err(|why| Error::internal(format!("{}: the scheduler cannot be measured: {why}", case.name())))?;
        let (mut of_prompt, mut of_answer) = (Vec::new(), Vec::new());
        let mut next = vec![1; case.sequences];
        if case.prompt > 0 {
            let (done, times) = self.timed(|bench| Ok(bench.prefill(case.sequences, case.prompt)?.1))?;
            next = done;
            let steps = f64::from(times.steps);
            let kv_bytes = self.spec.kv_bytes_per_token(KvDtype::F16) as f64 * prompt / 2.0 * steps;
            let work =
                StepWork { steps, tokens: sequences * prompt, context: prompt / 2.0, samples: sequences, kv_bytes };
            of_prompt = breakdown::breakdown(&times, &work, scheduling_s, (&self.spec, &self.weights), hardware);
        }
        if case.answer > 0 {
            let ((), times) =
                self.timed(|bench| bench.decode(next, case.prompt + case.depth, case.answer).map(|_| ()))?;
            let (context, steps) = (case.decode_context(), f64::from(times.steps));
            let kv_bytes = breakdown::decode_kv_bytes(&self.spec, sequences, context, steps);
            let tokens = sequences * answer;
            let work = StepWork { steps, tokens, context, samples: tokens, kv_bytes };
            of_answer = breakdown::breakdown(&times, &work, scheduling_s, (&self.spec, &self.weights), hardware);
        }
        Ok((of_prompt, of_answer))
    }

    fn timed<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, StepTimes)> {
        self.times = StepTimes::default();
        timing::start();
        let done = work(self);
        self.times.operations = timing::take();
        Ok((done?, self.times))
    }

    fn run(&mut self, case: Case) -> Result<(Option<f64>, Option<f64>)> {
        let (mut prefill, mut decode) = (None, None);
        // From an empty context, as llama-bench does; what the cache holds does not matter to the time.
        let mut next = vec![1; case.sequences];
        if case.prompt > 0 {
            let (rate, sampled) = self.prefill(case.sequences, case.prompt)?;
            (prefill, next) = (Some(rate), sampled);
        }
        if case.answer > 0 {
            decode = Some(self.decode(next, case.prompt + case.depth, case.answer)?);
        }
        Ok((prefill, decode))
    }

    fn prefill(&mut self, sequences: usize, tokens: usize) -> Result<(f64, Vec<u32>)> {
        let started = Instant::now();
        let mut next = Vec::with_capacity(sequences);
        let mut rows = Vec::new();
        // Whole and part prompts side by side, up to the step's budget.
        for sequence in 0..sequences {
            let mut done = 0;
            while done < tokens {
                let used: usize = rows.iter().map(|row: &Row| row.tokens.len()).sum();
                let take = (tokens - done).min(self.step_tokens - used);
                let ids = (done..done + take).map(|at| prompt_token(sequence, at, self.spec.vocab)).collect();
                done += take;
                rows.push(Row { sequence, from: done - take, tokens: ids, sample: done == tokens });
                if used + take == self.step_tokens {
                    next.extend(self.step(&rows)?);
                    rows.clear();
                }
            }
        }
        if !rows.is_empty() {
            next.extend(self.step(&rows)?);
        }
        Ok(((sequences * tokens) as f64 / started.elapsed().as_secs_f64(), next))
    }
}

/// Sequences and blocks of each that all cases have room with.
fn room(name: &str, spec: &Spec, cases: &[Case]) -> Result<(usize, usize)> {
    let longest = cases.iter().map(|case| case.tokens_each()).max().unwrap_or(0);
    if longest > spec.context_max as usize {
        let why = format!("{name}: a case of {longest} tokens is over the model's context of {}", spec.context_max);
        return Err(Error::invalid("MODEL", why));
    }
    let blocks_each = cases.iter().map(|case| case.blocks_each()).max().unwrap_or(1);
    Ok((cases.iter().map(|case| case.sequences).max().unwrap_or(1), blocks_each))
}

/// Any ids do: the arithmetic is the same.
fn prompt_token(sequence: usize, at: usize, vocab: usize) -> u32 {
    ((sequence * 7919 + at * 31) % 1000 + 3).min(vocab - 1) as u32
}

/// One line a case, with the share of the limit.
pub fn render(measured: &[Measured]) -> String {
    let mut rows =
        vec![["case", "prefill tok/s", "% of limit", "decode tok/s", "% of limit"].map(str::to_owned).to_vec()];
    for one in measured {
        let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
        let share = |rate: Option<f64>, limit: Option<f64>| match (rate, limit) {
            (Some(rate), Some(limit)) => format!("{:.0}", rate / limit * 100.0),
            _ => "-".to_owned(),
        };
        rows.push(vec![
            one.case.clone(),
            rate(one.prefill_tokens_per_s),
            share(one.prefill_tokens_per_s, one.prefill_limit_tokens_per_s),
            rate(one.decode_tokens_per_s),
            share(one.decode_tokens_per_s, one.decode_limit_tokens_per_s),
        ]);
    }
    let mut text = sconce_bench::report::table::align(&rows);
    for one in measured {
        text.push_str(&operations(&format!("prefill of {}", one.case), &one.prefill_operations));
        text.push_str(&operations(&format!("decode of {}", one.case), &one.decode_operations));
    }
    text
}

/// One line an operation.
fn operations(what: &str, lines: &[OperationTime]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut rows = vec![[what, "ms a step", "% of step", "% of limit"].map(str::to_owned).to_vec()];
    for line in lines {
        let limit = line.limit_share.map_or("-".to_owned(), |share| format!("{:.0}", share * 100.0));
        let cells = [
            line.operation.to_owned(),
            format!("{:.3}", line.ms_per_step),
            format!("{:.1}", line.share * 100.0),
            limit,
        ];
        rows.push(cells.to_vec());
    }
    format!("\n{}", sconce_bench::report::table::align(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_parsed_and_named() {
        for text in ["pp512", "tg128", "tg16@1000", "4x128+128", "16x64+0"] {
            assert_eq!(text.parse::<Case>().map(Case::name).as_deref(), Ok(text));
        }
        for wrong in ["", "pp", "tg", "pp0", "0x1+1", "x", "4x4", "tg1@x", "99999999x9999+1"] {
            assert!(wrong.parse::<Case>().is_err(), "{wrong}");
        }
    }
}
