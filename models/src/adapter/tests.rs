//! Configs that must be read as PEFT reads them, and those that must be refused by name.

use std::path::Path;

use serde_json::{Value, json};

use super::config::{AdapterConfig, parse};
use crate::error::Result;

fn config(changes: &[(&str, Value)]) -> Result<AdapterConfig> {
    let mut object = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16,
        "target_modules": ["q_proj", "mlp.down_proj"], "megatron_core": "megatron.core", "qalora_group_size": 16,
        "peft_version": "0.18.0", "bias": "none", "lora_dropout": 0.1, "loftq_config": {}, "use_dora": false});
    for (key, value) in changes {
        object[*key] = value.clone();
    }
    parse(&object.to_string(), Path::new("adapter_config.json"))
}

/// A field of the configuration that is set.
type Field = (&'static str, Value);

const Q: &str = "model.layers.3.self_attn.q_proj";
const DOWN: &str = "model.layers.12.mlp.down_proj";

#[test]
fn ranks_and_scales_are_pefts() {
    let cases: [(&[Field], &str, (usize, f32)); 9] = [
        (&[], Q, (8, 2.0)),
        (&[("use_rslora", json!(true))], Q, (8, 16.0 / 8_f32.sqrt())),
        (&[("lora_alpha", json!(0.5))], Q, (8, 0.0625)),
        (&[("rank_pattern", json!({"q_proj": 4}))], Q, (4, 4.0)),
        (&[("rank_pattern", json!({"q_proj": 4}))], DOWN, (8, 2.0)),
        // A pattern is a whole part of the name, and the first that matches counts.
        (
            &[("rank_pattern", json!({"_proj": 4, "proj": 2, r"layers\.\d+\.self_attn\.q_proj": 16, "q_proj": 1}))],
            Q,
            (16, 1.0),
        ),
        (&[("rank_pattern", json!({r"^model\.layers\.3\..*": 2}))], Q, (2, 8.0)),
        (&[("alpha_pattern", json!({"down_proj": 32})), ("rank_pattern", json!({"down_proj": 2}))], DOWN, (2, 16.0)),
        (
            &[("alpha_pattern", json!({"down_proj": 32})), ("use_rslora", json!(true)), ("r", json!(16))],
            DOWN,
            (16, 8.0),
        ),
    ];
    for (changes, module, expected) in cases {
        let found = config(changes).unwrap().rank_and_scale(module);
        assert_eq!(found, expected, "{changes:?} for {module}");
    }
}

#[test]
fn modules_are_named_as_peft_names_them() {
    let list = |names: &[&str]| ("target_modules", json!(names));
    let cases: [(&[Field], (&str, usize), bool); 16] = [
        (&[], (Q, 3), true),
        (&[], (DOWN, 12), true),
        (&[], ("model.layers.3.self_attn.k_proj", 3), false),
        // The end of a name counts only behind a dot.
        (&[list(&["proj"])], (Q, 3), false),
        (&[list(&[Q])], (Q, 3), true),
        (&[("target_modules", json!("all-linear"))], (DOWN, 12), true),
        (&[("target_modules", json!("ALL-LINEAR"))], (DOWN, 12), true),
        (&[("target_modules", json!(r".*\.(q|v)_proj"))], (Q, 3), true),
        (&[("target_modules", json!(r".*\.(q|v)_pro"))], (Q, 3), false),
        (&[("target_modules", json!(r"(?!.*\.3\.).*q_proj"))], (Q, 3), false),
        (&[("exclude_modules", json!(["q_proj"]))], (Q, 3), false),
        (&[("exclude_modules", json!(r".*mlp.*"))], (DOWN, 12), false),
        (&[("layers_to_transform", json!([3]))], (Q, 3), true),
        (&[("layers_to_transform", json!(3))], (DOWN, 12), false),
        (&[("layers_to_transform", json!([12])), ("layers_pattern", json!(["h", "layers"]))], (DOWN, 12), true),
        (&[("layers_to_transform", json!([12])), ("layers_pattern", json!("blocks"))], (DOWN, 12), false),
    ];
    for (changes, (module, layer), expected) in cases {
        let found = config(changes).unwrap().check_target(module, layer);
        assert_eq!(found.is_ok(), expected, "{changes:?} for {module}: {found:?}");
    }
}

#[test]
fn more_than_lora_is_refused_by_name() {
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("task_type", json!("SEQ_CLS")),
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("trainable_token_indices", json!([1, 2])),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("alora_invocation_tokens", json!([5])),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("OLoRA")),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("a_way_of_the_future", json!({"power": 11})),
        ("r", json!("eight")),
        ("r", Value::Null),
        ("target_modules", Value::Null),
        ("target_modules", json!("(unclosed")),
        ("target_modules", json!([1])),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!(["q_proj"])),
        ("alpha_pattern", json!({"q_proj": "much"})),
        ("layers_to_transform", json!([-1])),
        ("layers_pattern", json!({"layers": 1})),
    ] {
        let error = config(&[(key, value.clone())]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(key) && !error.contains('\n'), "{key} {value}: {error}");
    }
    for harmless in
        [("init_lora_weights", json!("gaussian")), ("runtime_config", json!({"ephemeral_gpu_offload": false}))]
    {
        assert!(config(&[harmless]).is_ok());
    }
    for text in ["", "[]", "{", "null"] {
        assert!(parse(text, Path::new("adapter_config.json")).is_err(), "{text:?}");
    }
}
