//! Logits against Transformers on tiny random models of every family, and bit for bit between all shapes of batch.
//!
//! Fixtures: `fixtures/make_models.py`.

mod adapters;
mod packed;
mod quantise;
mod ragged;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use ragged::{Ragged, Sample};
use safetensors::SafeTensors;
use sconce_models::{Family, KvDtype, LoadOptions, Model, Precision, Source, load, read_spec};
use serde_json::{Value, json};

const TOLERANCE: f32 = 1e-3;
/// With [`Precision::Fast`], block-quantised weights are multiplied with activations of 8 bits, as in ggml, and BF16 ones
/// with BF16. On hidden states of 64 values that is some percent.
const FAST_TOLERANCE: f32 = 6e-2;
/// Also with [`Precision::Fast`]: a router that is a little off may choose another expert, and norms of up to 2.5
/// (Gemma), behind every block (EXAONE) or to length one (Qwen3.5) make random weights sensitive.
const LOOSE_TOLERANCE: f32 = 0.3;
/// What a state keeps goes by the exponential of an activation: with random weights nothing evens that out.
const STATE_TOLERANCE: f32 = 0.5;

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

/// What Transformers chose behind the first prompt.
fn greedy(name: &str) -> Vec<u32> {
    let bytes = fs::read(fixtures().join(format!("{name}.golden.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = tensors.tensor("greedy").unwrap().data().as_chunks::<4>().0.to_vec();
    words.into_iter().map(u32::from_le_bytes).collect()
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

fn options(name: &str, precision: Precision) -> LoadOptions {
    // A context within the original length: LongRoPE's short factors.
    let max_model_len = (name == "phi3_short").then_some(96);
    LoadOptions { precision, max_model_len, ..LoadOptions::default() }
}

fn check(name: &str, family: Family) {
    check_precision(name, family, Precision::High, TOLERANCE);
    check_precision(name, family, Precision::Fast, FAST_TOLERANCE);
}

fn check_precision(name: &str, family: Family, precision: Precision, tolerance: f32) {
    let source = source(name);
    let model = load(&source, options(name, precision)).unwrap();
    assert_eq!(model.spec(), &read_spec(&source).unwrap(), "{name}");
    assert_eq!(model.spec().family, family, "{name}");
    let plain = matches!(model.spec().weight_format.as_str(), "F32" | "F16") && !name.contains("mxfp4");
    let is_sensitive = matches!(
        family,
        Family::Gemma2 | Family::Gemma3 | Family::Gemma4 | Family::Exaone4 | Family::Lfm2 | Family::Qwen35
    );
    let sensitive = model.spec().experts.is_some() || is_sensitive;
    let has_states = matches!(family, Family::Qwen3Next | Family::Qwen35 | Family::Qwen35Moe);
    let tolerance = match precision {
        _ if plain => TOLERANCE,
        Precision::Fast if has_states => STATE_TOLERANCE,
        Precision::Fast if sensitive => LOOSE_TOLERANCE,
        // The product of zero and scale, which Q4_1 holds in 16 bits, is rounded.
        Precision::High if name == "awq" => 5.0 * TOLERANCE,
        _ => tolerance,
    };
    let truths = check_logits(name, &*model, tolerance);
    let prompts: Vec<Vec<u32>> = goldens(name).into_iter().map(|golden| golden.prompt).collect();
    for (prompt, truth) in prompts.iter().zip(&truths).filter(|(prompt, _)| prompt.len() > 1) {
        check_chunks(name, &*model, prompt, truth);
    }
    check_crowd(name, &*model, &prompts, &truths);
}

/// The logits of every prompt, computed whole and alone, after holding them against Transformers.
fn check_logits(name: &str, model: &dyn Model, tolerance: f32) -> Vec<Vec<(usize, Vec<f32>)>> {
    let one = |golden: Golden| {
        let truth = whole(model, &golden.prompt);
        assert_eq!(truth.len(), golden.prompt.len());
        for ((position, row), expected) in truth.iter().zip(golden.logits.chunks(model.spec().vocab)) {
            let error = relative_error(row, expected);
            assert!(error < tolerance, "{name}: position {position} is off by {error}");
        }
        truth
    };
    goldens(name).into_iter().map(one).collect()
}

/// One test a fixture, and the list of all of them.
macro_rules! fixtures {
    ($($name:ident: $family:ident, $format:literal;)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name), Family::$family);
        })*

        const FIXTURES: &[(&str, Family, &str)] = &[$((stringify!($name), Family::$family, $format)),*];
    };
}

fixtures! {
    llama2: Llama, "safetensors F32, config of Transformers 4";
    llama3: Llama, "safetensors F32 in shards, llama3 RoPE";
    llama4: Llama4, "safetensors F16";
    llama4_text_part: Llama4, "safetensors F16, text part of Llama4ForConditionalGeneration, no norms of heads";
    llama_biased: Llama, "safetensors F16, biases, linear RoPE";
    smollm2: Llama, "safetensors BF16, tied";
    llama3_f32: Llama, "GGUF F32, llama3 RoPE";
    llama3_q8_0: Llama, "GGUF Q8_0, llama3 RoPE";
    mistral: Mistral, "safetensors F32, window";
    ministral: Ministral, "safetensors F16, window on some layers";
    ministral3_text_part: Ministral3, "safetensors F16, text part of Mistral3ForConditionalGeneration";
    mixtral: Mixtral, "safetensors F16, window";
    mixtral_q8_0: Mixtral, "GGUF Q8_0";
    qwen2: Qwen2, "safetensors F32, tied";
    qwen2_window: Qwen2, "safetensors F32, window on late layers";
    qwen2_f16: Qwen2, "GGUF F16";
    qwen2_moe: Qwen2Moe, "safetensors F16";
    qwen2_moe_q4_0: Qwen2Moe, "GGUF Q4_0";
    qwen3: Qwen3, "safetensors F32";
    qwen3_q4_0: Qwen3, "GGUF Q4_0";
    qwen3_moe: Qwen3Moe, "safetensors F16, one plain layer";
    qwen3_moe_q8_0: Qwen3Moe, "GGUF Q8_0";
    qwen3_next: Qwen3Next, "safetensors F16, one plain layer";
    qwen3_next_q8_0: Qwen3Next, "GGUF Q8_0";
    qwen3_5: Qwen35, "safetensors F16";
    qwen3_5_q8_0: Qwen35, "GGUF Q8_0";
    qwen3_5_moe: Qwen35Moe, "safetensors F16";
    qwen3_5_text_part: Qwen35Moe, "safetensors F16, text part of Qwen3_5MoeForConditionalGeneration, experts in one";
    qwen3_5_moe_q8_0: Qwen35Moe, "GGUF Q8_0";
    gemma: Gemma, "safetensors F16";
    gemma_q8_0: Gemma, "GGUF Q8_0";
    gemma2: Gemma2, "safetensors F16";
    gemma2_q8_0: Gemma2, "GGUF Q8_0";
    gemma3: Gemma3, "safetensors F16";
    gemma3_q4_0: Gemma3, "GGUF Q4_0";
    gemma3_text_part: Gemma3, "safetensors F16, text part of Gemma3ForConditionalGeneration";
    phi3_short: Phi3, "safetensors F16, LongRoPE within the original context";
    phi3_long: Phi3, "safetensors F16, LongRoPE beyond it, window";
    phi3_q8_0: Phi3, "GGUF Q8_0, LongRoPE";
    smollm3: SmolLm3, "safetensors F16";
    smollm3_q4_0: SmolLm3, "GGUF Q4_0";
    granite: Granite, "safetensors F16";
    granite_q8_0: Granite, "GGUF Q8_0";
    granite_moe: GraniteMoe, "safetensors F16";
    granite_moe_q8_0: GraniteMoe, "GGUF Q8_0";
    olmo2: Olmo2, "safetensors F16";
    olmo2_q8_0: Olmo2, "GGUF Q8_0";
    olmo3: Olmo3, "safetensors F16, YaRN";
    olmoe: Olmoe, "safetensors F16";
    olmoe_q8_0: Olmoe, "GGUF Q8_0";
    seed_oss: SeedOss, "safetensors F16";
    seed_oss_q8_0: SeedOss, "GGUF Q8_0";
    ernie4_5: Ernie45, "safetensors F16";
    ernie4_5_q8_0: Ernie45, "GGUF Q8_0";
    exaone4: Exaone4, "safetensors F16, window";
    exaone4_q4_0: Exaone4, "GGUF Q4_0, window";
    deepseek2: DeepseekV2, "safetensors F16, YaRN";
    deepseek2_groups: DeepseekV2, "safetensors F16, narrow queries, groups of experts";
    deepseek2_q8_0: DeepseekV2, "GGUF Q8_0, YaRN, matrices of heads in one";
    deepseek3: DeepseekV3, "safetensors F16, YaRN, groups of experts";
    deepseek3_q8_0: DeepseekV3, "GGUF Q8_0, YaRN, groups of experts";
    glm4_moe_lite: Glm4MoeLite, "safetensors F16";
    gemma4: Gemma4, "safetensors F16, inputs of layers, shared K and V";
    gemma4_q8_0: Gemma4, "GGUF Q8_0, inputs of layers, shared K and V";
    gemma4_alike_q8_0: Gemma4, "GGUF Q8_0, keys that are values";
    gemma4_text_part: Gemma4, "safetensors F16, text part of Gemma4ForConditionalGeneration, keys that are values";
    lfm2: Lfm2, "safetensors F16, biases";
    lfm2_q8_0: Lfm2, "GGUF Q8_0";
    lfm2_moe: Lfm2Moe, "safetensors F16";
    glm: Glm, "safetensors F16";
    starcoder2: Starcoder2, "safetensors F16, window";
    starcoder2_q8_0: Starcoder2, "GGUF Q8_0, window";
    stablelm: StableLm, "safetensors F16";
    stablelm_parallel: StableLm, "safetensors F16, attention and feed-forward side by side";
    stablelm_q8_0: StableLm, "GGUF Q8_0";
    glm4: Glm4, "safetensors F16";
    glm4_q8_0: Glm4, "GGUF Q8_0";
    cohere: Cohere, "safetensors F16";
    cohere_q8_0: Cohere, "GGUF Q8_0";
    cohere2: Cohere2, "safetensors F16";
    cohere2_q4_0: Cohere2, "GGUF Q4_0";
    gpt_oss_bf16: GptOss, "safetensors BF16";
    gpt_oss_mxfp4: GptOss, "safetensors, experts MXFP4";
    gpt_oss_gguf: GptOss, "GGUF Q8_0, experts MXFP4";
    gptq_sym: Llama, "GPTQ 4-bit";
    gptq_8bit: Llama, "GPTQ 8-bit";
    gptq_desc_act: Llama, "GPTQ 4-bit, asymmetric, reordered inputs";
    awq: Llama, "AWQ 4-bit";
    compressed_int4: Llama, "compressed-tensors INT4";
    compressed_fp8: Llama, "compressed-tensors FP8, a scale a row";
    fp8_blocks: Llama, "FP8, a scale a block";
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
        ("ministral", "layer_types", json!(null)),
        ("mixtral", "num_experts_per_tok", json!(1)),
        ("qwen2_moe", "norm_topk_prob", json!(true)),
        ("qwen3_moe", "norm_topk_prob", json!(false)),
        ("qwen3_next", "norm_topk_prob", json!(false)),
        ("qwen3_next", "rope_parameters", json!({"rope_type": "default", "rope_theta": 1000.0})),
        ("qwen3_5", "rope_parameters", json!({"rope_theta": 9.0, "partial_rotary_factor": 0.5})),
        ("gemma", "hidden_activation", json!("silu")),
        ("gemma2", "attn_logit_softcapping", json!(null)),
        ("gemma2", "final_logit_softcapping", json!(null)),
        ("gemma2", "query_pre_attn_scalar", json!(16)),
        ("gemma2", "layer_types", json!(["full_attention", "sliding_attention", "full_attention"])),
        ("gemma3", "rope_parameters", json!({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})),
        ("exaone4", "layer_types", json!(["full_attention", "full_attention", "full_attention", "full_attention"])),
        ("seed_oss", "rope_parameters", json!({"rope_theta": 100.0})),
        ("phi3_long", "original_max_position_embeddings", json!(500)),
        ("phi3_long", "sliding_window", json!(null)),
        ("smollm3", "no_rope_layers", json!([1, 1, 1, 1])),
        ("granite", "embedding_multiplier", json!(1.0)),
        ("granite", "residual_multiplier", json!(1.0)),
        ("granite", "attention_multiplier", json!(1.0)),
        ("granite", "logits_scaling", json!(1.0)),
        ("olmo3", "sliding_window", json!(null)),
        ("olmo3", "rope_parameters", json!({"rope_type": "default", "rope_theta": 1000.0})),
        ("starcoder2", "sliding_window", json!(null)),
        ("stablelm_parallel", "layer_norm_eps", json!(0.1)),
        ("cohere", "logit_scale", json!(1.0)),
        ("deepseek2", "routed_scaling_factor", json!(1.0)),
        ("deepseek2", "rope_parameters", json!({"rope_type": "default", "rope_theta": 1000.0})),
        ("deepseek2_groups", "topk_group", json!(1)),
        ("deepseek3", "n_group", json!(1)),
        ("deepseek3", "norm_topk_prob", json!(false)),
        ("deepseek3", "rope_interleave", json!(false)),
        ("deepseek3", "routed_scaling_factor", json!(1.0)),
        ("gemma4", "final_logit_softcapping", json!(null)),
        ("gemma4", "sliding_window", json!(100)),
        ("gemma4", "rope_parameters", json!(null)),
        ("cohere2", "layer_types", json!(["full_attention", "full_attention", "full_attention", "full_attention"])),
        ("llama4", "use_qk_norm", json!(false)),
        ("llama4", "no_rope_layers", json!([1, 1, 1, 1])),
        ("llama4", "num_experts_per_tok", json!(1)),
        ("lfm2_moe", "routed_scaling_factor", json!(1.0)),
        ("lfm2_moe", "norm_topk_prob", json!(false)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(fixtures().join(name)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        if name == "phi3_long" && key.starts_with("original") {
            config["rope_parameters"][key] = value.clone();
        }
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

/// Chunks and scores that grow are not built in, so no context reaches them.
#[test]
fn contexts_of_llama_4_end_where_its_chunks_do() {
    let text = fs::read_to_string(fixtures().join("llama4/config.json")).unwrap();
    for (changes, expected) in [
        (json!({}), 128),
        (json!({"max_position_embeddings": 1_000_000}), 8191),
        (json!({"max_position_embeddings": 1_000_000, "attn_temperature_tuning": false}), 8192),
        (json!({"attention_chunk_size": 40}), 40),
        (json!({"floor_scale": 30}), 29),
        (json!({"attention_chunk_size": null, "attn_temperature_tuning": false}), 128),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(fixtures().join("llama4/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let spec = read_spec(&Source::Folder(folder.path().to_owned())).unwrap();
        assert_eq!((spec.context_max, spec.notes.len()), (expected, usize::from(expected != 128)), "{changes}");
    }
}

#[test]
fn narrow_kv_caches_err_by_their_precision() {
    for name in ["llama3", "qwen3", "gemma3"] {
        let model = load(&source(name), options(name, Precision::High)).unwrap();
        let golden = &goldens(name)[0];
        let error = |dtype| {
            let mut ragged = Ragged::with_kv(&*model, dtype, 16, std::slice::from_ref(&golden.prompt), 0);
            ragged.step(&[(0, golden.prompt.len())], Sample::Every);
            let logits: Vec<f32> = ragged.sequences[0].sampled.iter().flat_map(|(_, row)| row.clone()).collect();
            relative_error(&logits, &golden.logits)
        };
        for (dtype, most) in [(KvDtype::F32, 1e-3), (KvDtype::F16, 5e-3), (KvDtype::Bf16, 4e-2), (KvDtype::Fp8, 0.4)] {
            let error = error(dtype);
            assert!(error < most, "{name} {dtype:?}: {error}");
        }
    }
}
