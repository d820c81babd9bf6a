//! Specs from both kinds of file: rope against Transformers, refusals by name.

use std::path::Path;

use serde_json::{Value, json};

use super::{RopeScaling, Spec, config_json};
use crate::family::Family;

fn config(changes: &[(&str, Value)]) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
    });
    for (key, value) in changes {
        config[key] = value.clone();
    }
    config
}

fn parse(changes: &[(&str, Value)]) -> Result<Spec, String> {
    config_json::parse(&config(changes).to_string(), Path::new("config.json")).map_err(|error| error.to_string())
}

#[test]
fn rope_frequencies_equal_those_of_transformers() {
    let fixture: Value = serde_json::from_str(include_str!("../../tests/fixtures/rope.json")).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let sizes = ["head_dim", "hidden_size", "num_attention_heads", "max_position_embeddings"];
        let mut changes: Vec<_> = sizes.iter().map(|&key| (key, fixture[key].clone())).collect();
        changes.push(("rope_parameters", case["rope_parameters"].clone()));
        let spec = parse(&changes).unwrap();
        let found = spec.rope.inverse_frequencies(spec.head_dim);
        let expected: Vec<f64> = case["inv_freq"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 1e-5, "{case}: {found} against {expected}");
        }
        let factor = case["attention_factor"].as_f64().unwrap();
        assert!((f64::from(spec.rope.attention_factor()) - factor).abs() < 1e-6, "{case}");
    }
}

#[test]
fn both_forms_of_the_config_mean_the_same() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500000.0);
    let old = parse(&[("rope_theta", json!(500000.0)), ("rope_scaling", scaling)]).unwrap();
    let new = parse(&[("rope_theta", Value::Null), ("rope_parameters", parameters)]).unwrap();
    assert_eq!(old, new);
    assert!(matches!(old.rope.scaling, RopeScaling::Llama3 { factor: 8.0, .. }) && old.rope.theta == 500000.0);
    let plain = parse(&[("rope_scaling", Value::Null)]).unwrap();
    assert_eq!(plain.rope.scaling, RopeScaling::None);
}

#[test]
fn switches_follow_the_family() {
    let class = |name: &str| ("architectures", json!([name]));
    let llama = parse(&[("sliding_window", json!(8)), ("attention_bias", json!(true))]).unwrap();
    assert!(llama.qkv_bias && llama.output_bias && !llama.mlp_bias && llama.sliding_window.is_none());
    let mistral = parse(&[class("MistralForCausalLM"), ("sliding_window", json!(8))]).unwrap();
    assert_eq!((mistral.family, mistral.window(0), mistral.window(2)), (Family::Mistral, Some(8), Some(8)));
    let unset = parse(&[class("MistralForCausalLM"), ("sliding_window", Value::Null)]).unwrap();
    assert_eq!(unset.window(0), None);
    let window = [class("Qwen2ForCausalLM"), ("sliding_window", json!(8)), ("max_window_layers", json!(2))];
    let off = parse(&window).unwrap();
    assert!(off.qkv_bias && !off.output_bias && off.sliding_window.is_none());
    let on = parse(&[&window[..], &[("use_sliding_window", json!(true))]].concat()).unwrap();
    assert_eq!([on.window(0), on.window(1), on.window(2)], [None, None, Some(8)]);
    let kinds = json!(["sliding_attention", "full_attention", "full_attention"]);
    let named = [&window[..], &[("use_sliding_window", json!(true)), ("layer_types", kinds)]].concat();
    assert_eq!(parse(&named).unwrap().window(0), Some(8));
    let qwen3 = parse(&[class("Qwen3ForCausalLM"), ("head_dim", json!(128))]).unwrap();
    assert!(qwen3.qk_norm && !qwen3.qkv_bias && qwen3.query_width() == 512);
    assert_eq!(qwen3.kv_bytes_per_token(), 2 * 3 * 2 * 128 * 4);
    let by_type = parse(&[("architectures", Value::Null), ("model_type", json!("qwen3"))]).unwrap();
    assert_eq!(by_type.family, Family::Qwen3);
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let rope = |kind: &str| ("rope_scaling", json!({"type": kind, "factor": 2.0}));
    let cases: Vec<(Vec<(&str, Value)>, &str)> = vec![
        (vec![("architectures", json!(["GPT2LMHeadModel"]))], "architecture GPT2LMHeadModel is not supported; use a"),
        (vec![("architectures", json!(["a\nb"]))], "architecture a\\nb is not supported"),
        (vec![("architectures", Value::Null)], "architectures is null, expected a list of class names"),
        (vec![("quantization_config", json!({"quant_method": "gptq"}))], "quantization_config with quant_method gptq"),
        (vec![("hidden_act", json!("gelu"))], "hidden_act gelu is not supported"),
        (vec![rope("dynamic")], "rope type dynamic is not supported"),
        (vec![rope("longrope")], "rope type longrope is not supported"),
        (vec![rope("llama3")], "low_freq_factor is nothing, expected a number"),
        (vec![("rope_scaling", json!({"type": "linear", "factor": -2.0}))], "rope scaling factor is -2, expected > 0"),
        (vec![("partial_rotary_factor", json!(0.5))], "partial_rotary_factor is not supported"),
        (vec![("hidden_size", json!("big"))], "hidden_size is \\\"big\\\", expected a whole number"),
        (vec![("hidden_size", json!(-4))], "hidden_size is -4, expected a whole number"),
        (vec![("hidden_size", json!(255))], "hidden_size 255 is not a multiple of 4 attention heads"),
        (vec![("num_attention_heads", json!(0))], "hidden_size 256 is not a multiple of 0 attention heads"),
        (vec![("num_hidden_layers", json!(u64::MAX))], "layers is 18446744073709551615, expected 1 to 4096"),
        (vec![("vocab_size", json!(0))], "vocabulary size is 0"),
        (vec![("num_key_value_heads", json!(3))], "4 attention heads are not a multiple of 3 kv heads"),
        (vec![("head_dim", json!(63))], "head size 63 is odd"),
        (vec![("rms_norm_eps", json!(0))], "norm epsilon is 0"),
        (
            vec![("architectures", json!(["MistralForCausalLM"])), ("sliding_window", json!(0))],
            "sliding window is 0 tokens",
        ),
    ];
    for (changes, expected) in cases {
        let message = parse(&changes).expect_err(expected);
        assert!(message.contains(expected), "expected {expected:?} in {message:?}");
        assert!(message.starts_with("config.json: ") && !message.contains('\n'), "{message:?}");
    }
}
