//! Every family on a GPU: logits against Transformers, and the same answers from prefill, from chunks and from decoding by
//! graphs.
//!
//! Runs on the stand-in (feature `cuda-host`) and on a GPU (feature `cuda`; with `SCONCE_TEST_CUDA=require` there must be
//! one). Fixtures: `fixtures/make_models.py`.

#[path = "gpu/ahead.rs"]
mod ahead;
#[path = "gpu/fp8.rs"]
mod fp8;
#[path = "gpu/latent.rs"]
mod latent;
#[path = "gpu/ranks.rs"]
mod ranks;
#[path = "gpu/warm.rs"]
mod warm;

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use sconce_cuda::Device;
#[cfg(feature = "cuda-host")]
use sconce_cuda::ElementType;
use sconce_models::cuda::{CudaModel, CudaRunner, CudaSizes, check};
use sconce_models::{
    BatchInput, Error, LoadOptions, Logits, Precision, Sample, SampleRequest, SampleRequests, Source, Want, read_spec,
};

const BLOCK_SIZE: usize = 16;
const CONTEXT: u32 = 128;
const SIZES: CudaSizes = CudaSizes {
    max_num_seqs: 8,
    max_num_batched_tokens: 64,
    max_model_len: CONTEXT,
    blocks: 32,
    block_size: BLOCK_SIZE as u32,
    kv_dtype: None,
};
/// Of models that keep a state a sequence.
const STATE_SLOTS: u32 = 9;
/// Of F32 throughout.
const EXACT: f32 = 2e-3;
/// Of activations in BF16 or F16, and in 8 bits with quantised weights.
const ROUNDED: f32 = 0.1;
/// The same where norms of random weights make hidden states far from one, or attention is sharp.
const SENSITIVE: f32 = 0.3;
/// Of most positions of a model with experts: at some a router's two best change places, and random experts have nothing in
/// common.
const MOSTLY: f32 = 0.2;

struct Golden {
    prompt: Vec<u32>,
    /// `[tokens, vocab]`
    logits: Vec<f32>,
}

/// Beside the sources, or where a bundle has them.
fn fixtures() -> PathBuf {
    if let Ok(folder) = std::env::var("SCONCE_TEST_FIXTURES") {
        return PathBuf::from(folder);
    }
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn words(name: &str, tensor: &str) -> Vec<u32> {
    let bytes = fs::read(fixtures().join(format!("{name}.golden.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors.tensor(tensor).unwrap().data().as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

fn goldens(name: &str) -> Vec<Golden> {
    let logits = |index| words(name, &format!("logits.{index}")).into_iter().map(f32::from_bits).collect();
    (0..3).map(|index| Golden { prompt: words(name, &format!("prompt.{index}")), logits: logits(index) }).collect()
}

/// All fixtures that have logits.
fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(fixtures())
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".golden.safetensors")?.to_owned()))
        .collect();
    names.sort();
    names
}

fn source(name: &str) -> Source {
    let file = fixtures().join(format!("{name}.gguf"));
    if file.exists() { Source::Gguf(file) } else { Source::Folder(fixtures().join(name)) }
}

fn devices() -> Vec<Device> {
    let mut devices = Vec::new();
    #[cfg(feature = "cuda-host")]
    devices.extend([Device::host()]);
    #[cfg(feature = "cuda")]
    match Device::open(0) {
        Ok(device) => devices.push(device),
        Err(error) => {
            assert!(std::env::var("SCONCE_TEST_CUDA").as_deref() != Ok("require"), "no GPU: {error}");
            eprintln!("skipped on a GPU: {error}");
        }
    }
    devices
}

fn options(name: &str, precision: Precision) -> LoadOptions {
    let max_model_len = Some(if name == "phi3_short" { 96 } else { CONTEXT });
    LoadOptions { precision, max_model_len, ..LoadOptions::default() }
}

/// The model ready to step, or `None` where it is refused by name.
fn runner(name: &str, device: &Device, precision: Precision) -> Option<CudaRunner> {
    runner_of(&source(name), device, precision)
}

fn runner_of(source: &Source, device: &Device, precision: Precision) -> Option<CudaRunner> {
    let is_short = matches!(source, Source::Folder(path) if path.ends_with("phi3_short"));
    let name = if is_short { "phi3_short" } else { "" };
    let model = match CudaModel::load(source, device, options(name, precision)) {
        Ok(model) => model,
        Err(Error::Unsupported { feature, .. }) if feature.contains("on a GPU") => return None,
        Err(error) => panic!("{source:?}: {error}"),
    };
    Some(CudaRunner::new(model, SIZES).unwrap().with_state_slots(STATE_SLOTS).unwrap())
}

/// A model that steps: on one device, or shared out among several.
trait Steps {
    fn forward(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), Error>;
    /// Why a step was not recorded.
    fn warning(&mut self) -> Option<String>;
    /// As [`CudaRunner::state_slots`].
    fn state_slots(&self) -> u32 {
        0
    }
}

impl Steps for CudaRunner {
    fn forward(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), Error> {
        Self::forward(self, batch, logits)
    }

    fn warning(&mut self) -> Option<String> {
        self.take_warning()
    }

    fn state_slots(&self) -> u32 {
        Self::state_slots(self)
    }
}

/// The first block of a row says which state is its own, where the model keeps one a sequence.
fn with_states(runner: &dyn Steps, mut batch: BatchInput) -> BatchInput {
    if runner.state_slots() > 0 {
        let starts = std::iter::once(0).chain(batch.block_table_ends.iter().copied());
        batch.states = starts.take(batch.rows()).map(|start| batch.block_tables[start as usize]).collect();
    }
    batch
}

fn forward(runner: &mut dyn Steps, batch: BatchInput, logits: &mut Logits) {
    let batch = with_states(runner, batch);
    runner.forward(&batch, logits).unwrap();
}

/// A row of a batch: of which sequence, from which position, how many tokens.
#[derive(Clone, Copy)]
struct Part {
    sequence: usize,
    start: usize,
    count: usize,
}

/// Sequence `s` has the blocks `s`, `s + 3`, `s + 6` and so on.
fn batch(sequences: &[Vec<u32>], parts: &[Part], every: bool) -> BatchInput {
    let mut batch = BatchInput::default();
    for &Part { sequence, start, count } in parts {
        let end = start + count;
        let blocks: Vec<u32> = (0..end.div_ceil(BLOCK_SIZE)).map(|at| (sequence + 3 * at) as u32).collect();
        for position in start..end {
            batch.tokens.push(sequences[sequence][position]);
            batch.positions.push(position as u32);
            let block = blocks[position / BLOCK_SIZE] as usize;
            batch.slots.push((block * BLOCK_SIZE + position % BLOCK_SIZE) as u32);
            if every || position + 1 == end {
                batch.sample_rows.push(batch.tokens.len() as u32 - 1);
            }
        }
        batch.row_ends.push(batch.tokens.len() as u32);
        batch.context_lens.push(end as u32);
        batch.block_tables.extend(blocks);
        batch.block_table_ends.push(batch.block_tables.len() as u32);
    }
    batch
}

/// The largest difference, relative to the largest logit of its row.
fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    let scale = expected.iter().fold(0_f32, |max, value| max.max(value.abs()));
    let error = found.iter().zip(expected).fold(0_f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(found.len() == expected.len() && scale > 0.0 && error.is_finite(), "{error} of {scale}");
    error / scale
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).unwrap() as u32
}

/// Whole prompts, all in one step, and then in pieces.
///
/// Every position is within `tolerance`, or, of experts that are not exact, two of three.
fn check_prompts(name: &str, runner: &mut dyn Steps, tolerance: f32) {
    let goldens = goldens(name);
    let sequences: Vec<Vec<u32>> = goldens.iter().map(|golden| golden.prompt.clone()).collect();
    let all: Vec<Part> = sequences
        .iter()
        .enumerate()
        .map(|(sequence, tokens)| Part { sequence, start: 0, count: tokens.len() })
        .collect();
    let mut logits = Logits::default();
    let mut errors = Vec::new();
    let mut check = |parts: &[Part], runner: &mut dyn Steps| {
        forward(runner, batch(&sequences, parts, true), &mut logits);
        let mut row = 0;
        for &Part { sequence, start, count } in parts {
            for position in start..start + count {
                let expected = &goldens[sequence].logits[position * logits.vocab..(position + 1) * logits.vocab];
                let error = relative_error(logits.row(row), expected);
                let is_rerouted = tolerance == MOSTLY;
                assert!(
                    error < tolerance || is_rerouted,
                    "{name}: position {position} of prompt {sequence} is off by {error}"
                );
                errors.push(error);
                row += 1;
            }
        }
    };
    check(&all, runner);
    // First tokens alone, then the middle of one beside the end of another, then the rest.
    let first: Vec<Part> = all.iter().map(|part| Part { count: 1, ..*part }).collect();
    check(&first, runner);
    let rest = all.iter().filter(|part| part.count > 1);
    let rest: Vec<Part> = rest.map(|part| Part { start: 1, count: part.count - 1, ..*part }).collect();
    check(&rest, runner);
    let within = errors.iter().filter(|error| **error < tolerance).count();
    assert!(3 * within >= 2 * errors.len(), "{name}: {within} of {} positions are within {tolerance}", errors.len());
}

/// Decoding one token at a time: the first step kernel by kernel, the second recorded, the others replayed.
fn check_decoding(name: &str, runner: &mut dyn Steps) {
    let prompt = goldens(name).remove(0).prompt;
    let wanted = words(name, "greedy");
    let mut tokens = prompt.clone();
    let mut logits = Logits::default();
    let whole = Part { sequence: 0, start: 0, count: prompt.len() };
    forward(runner, batch(&[tokens.clone()], &[whole], false), &mut logits);
    for wanted in wanted.iter().take(12) {
        assert_eq!(argmax(logits.row(0)), *wanted, "{name}: token {} behind the prompt", tokens.len() - prompt.len());
        tokens.push(*wanted);
        let part = Part { sequence: 0, start: tokens.len() - 1, count: 1 };
        forward(runner, batch(&[tokens.clone()], &[part], false), &mut logits);
    }
    assert_eq!(runner.warning(), None, "{name}: a step was not recorded");
}

/// Of products that are not exact.
fn rounded_tolerance(name: &str) -> f32 {
    let is = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if is(&["moe", "mixtral", "gpt_oss", "qwen3_next", "qwen3_5"]) {
        MOSTLY
    } else if is(&["gemma", "exaone", "glm", "olmo", "stablelm", "phi3", "cohere"]) {
        SENSITIVE
    } else {
        ROUNDED
    }
}

/// What a GPU does not do is said by name, and nothing else is refused.
#[test]
fn refusals_are_known() {
    for name in names() {
        let source = source(&name);
        check(&read_spec(&source).unwrap(), &source).unwrap();
    }
    let source = source("qwen3_next");
    let mut spec = read_spec(&source).unwrap();
    spec.uneven.delta.as_mut().unwrap().sizes.key_dim = 512;
    let refused = check(&spec, &source).unwrap_err().to_string();
    assert!(refused.contains("keys of 512") && refused.contains("on a GPU"), "{refused}");
}

/// Every fourth fixture from `first` on, so that tests run side by side.
fn check_share(first: usize) {
    let mut checked = 0;
    for device in devices() {
        for name in names().iter().skip(first).step_by(4) {
            let Some(mut exact) = runner(name, &device, Precision::High) else { continue };
            // The product of zero and scale, which Q4_1 holds in 16 bits, is rounded.
            check_prompts(name, &mut exact, if name == "awq" { 5.0 * EXACT } else { EXACT });
            if name != "awq" && name != "exaone4_q4_0" {
                check_decoding(name, &mut exact);
            }
            let mut rounded = runner(name, &device, Precision::Fast).unwrap();
            check_prompts(name, &mut rounded, rounded_tolerance(name));
            checked += 1;
        }
    }
    assert!(checked > 8 || devices().is_empty(), "only {checked} fixtures were checked");
}

#[test]
fn families_first_share() {
    check_share(0);
}

#[test]
fn families_second_share() {
    check_share(1);
}

#[test]
fn families_third_share() {
    check_share(2);
}

#[test]
fn families_fourth_share() {
    check_share(3);
}

/// Rows that pad a graph's batch touch nothing, and sizes of batches take turns.
#[test]
fn batches_of_every_size_decode_alike() {
    for device in devices() {
        let name = "llama3";
        let goldens = goldens(name);
        let prompt = &goldens[0].prompt;
        let mut runner = runner(name, &device, Precision::High).unwrap();
        // Eight times the same prompt in blocks of its own, all but its last token computed before.
        let sequences = vec![prompt.clone(); 8];
        let count = prompt.len() - 1;
        let before: Vec<Part> = (0..8).map(|sequence| Part { sequence, start: 0, count }).collect();
        assert!(prompt.len() <= BLOCK_SIZE, "one block a sequence");
        let mut logits = Logits::default();
        for parts in before.chunks(64 / count) {
            runner.forward(&batch(&sequences, parts, false), &mut logits).unwrap();
        }
        for rows in [1, 5, 6, 8, 2, 7, 5, 5, 1, 1, 8, 3, 4] {
            let parts: Vec<Part> = (0..rows).map(|sequence| Part { sequence, start: count, count: 1 }).collect();
            runner.forward(&batch(&sequences, &parts, false), &mut logits).unwrap();
            let vocab = logits.vocab;
            assert_eq!(logits.values.len(), rows * vocab);
            for row in 0..rows {
                let error = relative_error(logits.row(row), &goldens[0].logits[count * vocab..(count + 1) * vocab]);
                assert!(error < EXACT, "row {row} of {rows} is off by {error}");
            }
        }
    }
}

/// What was asked of a step comes back as tokens, with log probabilities where they are wanted, or as logits.
#[test]
fn steps_are_sampled_where_they_are_computed() {
    for device in devices() {
        let goldens = goldens("qwen3");
        let mut runner = runner("qwen3", &device, Precision::High).unwrap();
        let sequences: Vec<Vec<u32>> = goldens.iter().map(|golden| golden.prompt.clone()).collect();
        let parts: Vec<Part> = sequences
            .iter()
            .enumerate()
            .map(|(sequence, tokens)| Part { sequence, start: 0, count: tokens.len() })
            .collect();
        let last = |sequence: usize| {
            let golden: &Golden = &goldens[sequence];
            let vocab = golden.logits.len() / golden.prompt.len();
            &golden.logits[golden.logits.len() - vocab..]
        };
        let mut wanted = SampleRequests::default();
        wanted.rows.push(SampleRequest { logprobs: Some(2), ..SampleRequest::new(Want::Token) });
        wanted.rows.push(SampleRequest::new(Want::Logits));
        // Anything but the likeliest.
        wanted.forbidden.push(argmax(last(2)));
        wanted.rows.push(SampleRequest { forbidden: 0..1, ..SampleRequest::new(Want::Token) });
        let (mut samples, mut logits) = (Vec::new(), Logits::default());
        runner.issue(&batch(&sequences, &parts, false)).unwrap();
        assert!(!runner.choose(&wanted).unwrap(), "a row's logits come back");
        runner.collect(&wanted, &mut samples, &mut logits).unwrap();
        let Sample::Token { id, scores: Some(scores) } = &samples[0] else { panic!("{samples:?}") };
        assert_eq!((*id, scores.rank, scores.top.len()), (argmax(last(0)), 1, 2), "{scores:?}");
        assert!(scores.logprob < 0.0 && scores.top[0] == (*id, scores.logprob), "{scores:?}");
        assert_eq!(samples[1], Sample::Logits(0));
        assert!(relative_error(logits.row(0), last(1)) < EXACT);
        let mut others = last(2).to_vec();
        others[wanted.forbidden[0] as usize] = f32::NEG_INFINITY;
        assert_eq!(samples[2], Sample::Token { id: argmax(&others), scores: None });
        assert!(runner.collect(&wanted, &mut samples, &mut logits).is_err(), "a step is sampled once");
    }
}

/// Device memory is free while a model sleeps, and it computes the same when it is awake again, graphs included.
#[test]
fn a_model_that_slept_computes_the_same() {
    for device in devices() {
        // Others may use a real card meanwhile.
        let is_counted = device.info().name.contains("stand-in");
        let before = device.memory_free().unwrap();
        for (name, precision) in [
            ("llama3", Precision::High),
            ("gemma2_q8_0", Precision::Fast),
            ("gpt_oss_mxfp4", Precision::Fast),
            ("gpt_oss_gguf", Precision::Fast),
            ("deepseek3", Precision::High),
            ("qwen3_next", Precision::High),
        ] {
            let mut runner = runner(name, &device, precision).unwrap();
            let awake = device.memory_free().unwrap();
            let first = steps(name, &mut runner);
            for _ in 0..2 {
                let bytes = runner.sleep().unwrap();
                assert!(bytes > 0 && runner.sleep().unwrap() == bytes, "{name}: it sleeps already");
                if is_counted {
                    assert_eq!(device.memory_free().unwrap(), before, "{name}: all of it was given back");
                }
                let step = batch(&[vec![1]], &[Part { sequence: 0, start: 0, count: 1 }], false);
                let step = with_states(&runner, step);
                let error = runner.forward(&step, &mut Logits::default()).unwrap_err();
                assert!(error.to_string().contains("sleeps"), "{error}");
                runner.wake().unwrap();
                if is_counted {
                    assert_eq!(device.memory_free().unwrap(), awake, "{name}: as much as before");
                }
                let error = relative_error(&steps(name, &mut runner), &first);
                assert!(error < 1e-5, "{name}: awake again it is off by {error}");
            }
            runner.sleep().unwrap();
        }
        if is_counted {
            assert_eq!(device.memory_free().unwrap(), before, "what ended asleep left nothing behind");
        }
    }
}

/// Logits of a prompt, and of the steps of decoding behind it: kernel by kernel, recorded, and replayed.
fn steps(name: &str, runner: &mut dyn Steps) -> Vec<f32> {
    let mut tokens = goldens(name).remove(0).prompt;
    let (mut logits, mut all) = (Logits::default(), Vec::new());
    let mut start = 0;
    for next in [3, 5, 7, 2, 1] {
        let part = Part { sequence: 0, start, count: tokens.len() - start };
        forward(runner, batch(&[tokens.clone()], &[part], false), &mut logits);
        all.extend_from_slice(logits.row(0));
        start = tokens.len();
        tokens.push(next);
    }
    assert_eq!(runner.warning(), None, "{name}: a step was not recorded");
    all
}

/// A model whose memory others have taken sleeps on, and wakes when they are gone.
#[cfg(feature = "cuda-host")]
#[test]
fn a_model_wakes_when_there_is_room() {
    let device = Device::host_sized(256 << 20);
    let mut runner = runner("llama3", &device, Precision::High).unwrap();
    let first = steps("llama3", &mut runner);
    runner.sleep().unwrap();
    let taken = device.alloc((256 << 20) - (64 << 10), ElementType::U8).unwrap();
    for _ in 0..2 {
        let error = runner.wake().unwrap_err();
        assert!(error.lacks_device_memory(), "{error}");
        assert_eq!(device.memory_free().unwrap(), 64 << 10, "what it got for a moment was given back");
    }
    drop(taken);
    runner.wake().unwrap();
    assert!(relative_error(&steps("llama3", &mut runner), &first) < 1e-5);
}
