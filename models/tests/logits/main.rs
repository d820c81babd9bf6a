//! Logits against Transformers on tiny random models of every family, and bit for bit between all shapes of batch.
//!
//! Fixtures: `fixtures/make_models.py`.

mod ragged;

use std::fs;
use std::path::{Path, PathBuf};

use ragged::{Ragged, Sample};
use safetensors::SafeTensors;
use sconce_models::{Family, LoadOptions, Model, Precision, Source, load, read_spec};
use serde_json::{Value, json};

const TOLERANCE: f32 = 1e-3;
/// With [`Precision::Fast`], block-quantised weights are multiplied with activations of 8 bits, as in ggml, and BF16 ones
/// with BF16. On hidden states of 64 values that is some percent.
const FAST_TOLERANCE: f32 = 6e-2;

struct Golden {
    prompt: Vec<u32>,
    /// `[tokens, vocab]`
    logits: Vec<f32>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn source(name: &str) -> Source {
    let file = fixtures().join(format!("{name}.gguf"));
    if file.exists() { Source::Gguf(file) } else { Source::Folder(fixtures().join(name)) }
}

fn goldens(name: &str) -> Vec<Golden> {
    let bytes = fs::read(fixtures().join(format!("{name}.golden.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words =
        |tensor: String| -> Vec<[u8; 4]> { tensors.tensor(&tensor).unwrap().data().as_chunks::<4>().0.to_vec() };
    (0..3)
        .map(|index| Golden {
            prompt: words(format!("prompt.{index}")).into_iter().map(u32::from_le_bytes).collect(),
            logits: words(format!("logits.{index}")).into_iter().map(f32::from_le_bytes).collect(),
        })
        .collect()
}

/// The largest difference, relative to the largest logit of its row.
fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    let scale = expected.iter().fold(0_f32, |max, value| max.max(value.abs()));
    let error = found.iter().zip(expected).fold(0_f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(found.len() == expected.len() && scale > 0.0 && error.is_finite());
    error / scale
}

fn bits(sampled: &[(usize, Vec<f32>)]) -> Vec<(usize, Vec<u32>)> {
    sampled.iter().map(|(at, row)| (*at, row.iter().map(|value| value.to_bits()).collect())).collect()
}

/// Whole prompts alone in a batch: the truth that other shapes are held against.
fn whole(model: &dyn Model, prompt: &[u32]) -> Vec<(usize, Vec<f32>)> {
    let mut ragged = Ragged::new(model, 16, &[prompt.to_vec()], 0);
    ragged.step(&[(0, prompt.len())], Sample::Every);
    ragged.sequences.remove(0).sampled
}

fn check_chunks(name: &str, model: &dyn Model, prompt: &[u32], truth: &[(usize, Vec<f32>)]) {
    for block_size in [1, 4, 16] {
        for chunk in [1, 3, prompt.len()] {
            let mut ragged = Ragged::new(model, block_size, &[prompt.to_vec()], 0);
            while ragged.sequences[0].done < prompt.len() {
                let count = chunk.min(prompt.len() - ragged.sequences[0].done);
                ragged.step(&[(0, count)], Sample::Every);
            }
            let found = bits(&ragged.sequences[0].sampled);
            assert!(found == bits(truth), "{name}: chunks of {chunk}, blocks of {block_size}");
        }
        let mut ragged = Ragged::new(model, block_size, &[prompt.to_vec()], 0);
        ragged.step(&[(0, prompt.len() - 1)], Sample::Nothing);
        assert!(ragged.sequences[0].sampled.is_empty());
        ragged.step(&[(0, 1)], Sample::Last);
        let last = &truth[truth.len() - 1..];
        assert!(bits(&ragged.sequences[0].sampled) == bits(last), "{name}: last row alone, blocks of {block_size}");
    }
}

/// Prefill and decode of all prompts side by side, rows in changing order.
fn check_crowd(name: &str, model: &dyn Model, prompts: &[Vec<u32>], truths: &[Vec<(usize, Vec<f32>)>]) {
    for block_size in [1, 4, 16] {
        let mut ragged = Ragged::new(model, block_size, prompts, 0);
        ragged.step(&[(1, 4), (0, 7)], Sample::Every);
        ragged.step(&[(0, 1), (2, 1), (1, 1)], Sample::Every);
        ragged.step(&[(1, 1), (0, 4)], Sample::Every);
        ragged.step(&[(0, 1)], Sample::Every);
        for (sequence, truth) in ragged.sequences.iter().zip(truths) {
            assert!(bits(&sequence.sampled) == bits(truth), "{name}: crowd, blocks of {block_size}");
        }
        let mut ragged = Ragged::new(model, block_size, prompts, 0);
        ragged.step(&[(2, 1), (0, 13), (1, 6)], Sample::Last);
        for (sequence, truth) in ragged.sequences.iter().zip(truths) {
            let last = &truth[truth.len() - 1..];
            assert!(bits(&sequence.sampled) == bits(last), "{name}: last rows of a crowd, blocks of {block_size}");
        }
    }
}

fn check(name: &str, family: Family) {
    check_precision(name, family, Precision::High, TOLERANCE);
    check_precision(name, family, Precision::Fast, FAST_TOLERANCE);
}

fn check_precision(name: &str, family: Family, precision: Precision, tolerance: f32) {
    let source = source(name);
    let model = load(&source, LoadOptions { precision, ..LoadOptions::default() }).unwrap();
    assert_eq!(model.spec(), &read_spec(&source).unwrap(), "{name}");
    assert_eq!(model.spec().family, family, "{name}");
    let goldens = goldens(name);
    let plain = matches!(model.spec().weight_format.as_str(), "F32" | "F16");
    let tolerance = if plain { TOLERANCE } else { tolerance };
    let mut truths = Vec::new();
    for golden in &goldens {
        let truth = whole(&*model, &golden.prompt);
        assert_eq!(truth.len(), golden.prompt.len());
        for ((position, row), expected) in truth.iter().zip(golden.logits.chunks(model.spec().vocab)) {
            let error = relative_error(row, expected);
            assert!(error < tolerance, "{name} {precision:?}: position {position} is off by {error}");
        }
        if golden.prompt.len() > 1 {
            check_chunks(name, &*model, &golden.prompt, &truth);
        }
        truths.push(truth);
    }
    let prompts: Vec<Vec<u32>> = goldens.into_iter().map(|golden| golden.prompt).collect();
    check_crowd(name, &*model, &prompts, &truths);
}

#[test]
fn llama2_with_a_transformers_4_config() {
    check("llama2", Family::Llama);
}

#[test]
fn llama3_with_scaled_rope_in_two_shards() {
    check("llama3", Family::Llama);
}

#[test]
fn llama_with_biases_and_linear_rope_in_f16() {
    check("llama_biased", Family::Llama);
}

#[test]
fn smollm2_tied_in_bf16() {
    check("smollm2", Family::Llama);
}

#[test]
fn mistral_with_a_window_shorter_than_the_prompt() {
    check("mistral", Family::Mistral);
}

#[test]
fn qwen2_tied_with_biases() {
    check("qwen2", Family::Qwen2);
}

#[test]
fn qwen2_with_a_window_on_late_layers() {
    check("qwen2_window", Family::Qwen2);
}

#[test]
fn qwen3_with_normed_heads_of_their_own_size() {
    check("qwen3", Family::Qwen3);
}

#[test]
fn gguf_llama3_with_rope_factors_and_permuted_heads() {
    check("llama3_f32", Family::Llama);
}

#[test]
fn gguf_llama3_in_q8_0() {
    check("llama3_q8_0", Family::Llama);
}

#[test]
fn gguf_qwen2_in_f16() {
    check("qwen2_f16", Family::Qwen2);
}

#[test]
fn gguf_qwen3_in_q4_0() {
    check("qwen3_q4_0", Family::Qwen3);
}

/// The comparison must be able to fail: another model's truth is far outside the tolerance.
#[test]
fn the_tolerance_tells_models_apart() {
    let model = load(&source("llama3"), LoadOptions::default()).unwrap();
    for other in ["llama2", "mistral", "qwen2"] {
        let golden = &goldens(other)[0];
        let truth = whole(&*model, &golden.prompt);
        let last = golden.logits.chunks(model.spec().vocab).last().unwrap();
        assert!(relative_error(&truth.last().unwrap().1, last) > 0.1, "{other}");
    }
}

/// Each feature must show in the fixture that is there for it: without it the truth is missed.
#[test]
fn every_switch_changes_the_answer() {
    for (name, key, value) in [
        ("mistral", "sliding_window", json!(null)),
        ("qwen2_window", "use_sliding_window", json!(false)),
        ("qwen2_window", "max_window_layers", json!(0)),
        ("llama3", "rope_parameters", json!({"rope_theta": 1000.0})),
        ("llama_biased", "rope_scaling", json!(null)),
        ("llama2", "rms_norm_eps", json!(0.01)),
        ("smollm2", "rope_parameters", json!({"rope_theta": 10000.0})),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(fixtures().join(name)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        let model = load(&Source::Folder(folder.path().to_owned()), LoadOptions::default()).unwrap();
        let golden = &goldens(name)[0];
        let found = whole(&*model, &golden.prompt).pop().unwrap().1;
        let last = golden.logits.chunks(model.spec().vocab).last().unwrap();
        let error = relative_error(&found, last);
        assert!(error > 3.0 * TOLERANCE, "{name} without {key} is off by {error} only");
    }
}
