//! Latent attention with the heads of published models, whose tensor-core kernel the fixtures are too narrow for.

use std::fs;
use std::path::Path;

use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use sconce_models::{LoadOptions, Logits, Precision, Source};

use super::{BLOCK_SIZE, EXACT, Part, ROUNDED, batch, devices, fixtures, relative_error, runner_of};

const RANK: usize = 512;
const ROTATED: usize = 64;
const HEADS: usize = 4;

/// Numbers in -1..1 that are the same in every run.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // xorshift64 (Marsaglia 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The first layer of a fixture with wider latents and rotated keys.
fn widened(to: &Path) {
    let folder = fixtures().join("deepseek2");
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut written: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (at, (name, view)) in tensors.tensors().into_iter().enumerate() {
        if name.contains("layers.1.") || name.contains("layers.2.") {
            continue;
        }
        let shape = match name.rsplit('.').nth(1).unwrap() {
            "q_proj" => vec![HEADS * (32 + ROTATED), 32],
            "kv_a_proj_with_mqa" => vec![RANK + ROTATED, 32],
            "kv_b_proj" => vec![HEADS * (32 + 16), RANK],
            "kv_a_layernorm" => vec![RANK],
            _ => {
                written.push((name, view.shape().to_vec(), view.data().to_vec()));
                continue;
            }
        };
        let size = (3.0 / *shape.last().unwrap() as f32).sqrt();
        let is_norm = shape.len() == 1;
        let value = |x: f32| f16::from_f32(if is_norm { 1.0 + 0.3 * x } else { size * x });
        let values = noise(at as u64 + 1, shape.iter().product());
        written.push((name, shape, values.into_iter().flat_map(|x| value(x).to_le_bytes()).collect()));
    }
    let views = written
        .iter()
        .map(|(name, shape, bytes)| (name.clone(), TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap()));
    fs::write(to.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    for (key, value) in [
        ("kv_lora_rank", RANK),
        ("qk_rope_head_dim", ROTATED),
        ("qk_head_dim", 32 + ROTATED),
        ("head_dim", ROTATED),
        ("num_hidden_layers", 1),
    ] {
        config[key] = value.into();
    }
    fs::write(to.join("config.json"), config.to_string()).unwrap();
}

/// Prompts, pieces of them and decoding give what the CPU gives, which is held to Transformers with narrow heads.
#[test]
fn wide_latents_are_those_of_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    widened(folder.path());
    let source = Source::Folder(folder.path().to_owned());
    let tokens: Vec<u32> = (0..50).map(|at| (at * 37 + 11) % 96).collect();
    let sequences = [tokens.clone(), tokens.iter().rev().copied().collect::<Vec<_>>()];
    // Both prompts, of which one ends early; then its rest beside a token of the other; then tokens one by one.
    let first = [Part { sequence: 0, start: 0, count: 20 }, Part { sequence: 1, start: 0, count: 7 }];
    let second = [Part { sequence: 0, start: 20, count: 1 }, Part { sequence: 1, start: 7, count: 30 }];
    let alone =
        (37..42).map(|at| [Part { sequence: 0, start: at - 16, count: 1 }, Part { sequence: 1, start: at, count: 1 }]);
    let steps: Vec<[Part; 2]> = [first, second].into_iter().chain(alone).collect();
    let options = LoadOptions { precision: Precision::High, max_model_len: Some(128), ..LoadOptions::default() };
    let model = sconce_models::load(&source, options).unwrap();
    let mut cache = model.new_kv_cache(32, BLOCK_SIZE as u32, sconce_models::KvDtype::F32).unwrap();
    let mut wanted = Vec::new();
    for parts in &steps {
        let mut logits = Logits::default();
        model.forward(&batch(&sequences, parts, true), &mut cache, &mut logits).unwrap();
        wanted.push(logits);
    }
    for device in devices() {
        for (precision, tolerance) in [(Precision::High, EXACT), (Precision::Fast, ROUNDED)] {
            let mut runner = runner_of(&source, &device, precision).unwrap();
            let mut logits = Logits::default();
            for (step, (parts, wanted)) in steps.iter().zip(&wanted).enumerate() {
                runner.forward(&batch(&sequences, parts, true), &mut logits).unwrap();
                for row in 0..wanted.values.len() / wanted.vocab {
                    let error = relative_error(logits.row(row), wanted.row(row));
                    assert!(error < tolerance, "{precision:?}: row {row} of step {step} is off by {error}");
                }
            }
            assert!(runner.take_warning().is_none(), "a step was not recorded");
        }
    }
}
