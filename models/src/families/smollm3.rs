//! SmolLM3: Llama in which every fourth layer (or those that the config names) has no rotary embedding.

use sconce_kernels::RopeStyle;
use serde_json::Value;

use crate::error::Result;
use crate::family::{Family, FamilyTraits, LLAMA_LIKE, Switch, WindowRule};
use crate::spec::Spec;
use crate::spec::fields::Fields;

const INTERVAL: usize = 4;

pub(crate) const SMOLLM3: FamilyTraits = FamilyTraits {
    family: Family::SmolLm3,
    classes: &["SmolLM3ForCausalLM"],
    model_type: "smollm3",
    gguf: Some("smollm3"),
    theta: 2e6,
    gguf_rope: RopeStyle::Interleaved,
    qkv_bias: Switch::Configured("attention_bias"),
    output_bias: Switch::Configured("attention_bias"),
    mlp_bias: Switch::Configured("mlp_bias"),
    window: WindowRule::Refused,
    tied: true,
    config: |fields, spec| {
        let Some(named) = fields.list("no_rope_layers")? else {
            let interval = fields.optional_size("no_rope_layer_interval")?.unwrap_or(INTERVAL);
            spec.unrotated = every(interval, spec.layers_believed());
            return Ok(());
        };
        spec.unrotated = named_layers(fields, spec, named)?;
        Ok(())
    },
    metadata: |_, spec| {
        spec.unrotated = every(INTERVAL, spec.layers_believed());
        Ok(())
    },
    ..LLAMA_LIKE
};

pub(super) fn named_layers(fields: &Fields, spec: &Spec, named: &[Value]) -> Result<Vec<bool>> {
    if named.len() != spec.layers {
        return Err(fields.wrong("no_rope_layers", "one entry a layer"));
    }
    // The name says the opposite of the entries: 1 is a layer with rotation.
    Ok(named.iter().map(|entry| entry.as_u64() == Some(0) || entry == &Value::Bool(false)).collect())
}

pub(super) fn every(interval: usize, layers: usize) -> Vec<bool> {
    (1..=layers).map(|layer| interval > 0 && layer.is_multiple_of(interval)).collect()
}
