//! Qwen3-Next: three of four layers are the gated delta rule, the others attention with a gate on what it sees and a
//! rotation of a part of each head; experts in all layers, beside one that all tokens share. Norms are stored less one.

use serde_json::Value;

use super::qwen3::QWEN3;
use crate::error::Result;
use crate::family::{Family, FamilyTraits, Switch, WindowRule};
use crate::names::LayerPart;
use crate::spec::fields::Fields;
use crate::spec::keys::Keys;
use crate::spec::{DeltaRule, Spec, experts};
use sconce_kernels::{DeltaSizes, HeadOrder};

/// A layer of attention after so many others, where a file does not say.
const ATTENTION_EVERY: usize = 4;

pub(crate) const QWEN3_NEXT: FamilyTraits = FamilyTraits {
    family: Family::Qwen3Next,
    classes: &["Qwen3NextForCausalLM"],
    model_type: "qwen3_next",
    gguf: Some("qwen3next"),
    rotary_factor: Some(0.25),
    qkv_bias: Switch::Never,
    output_bias: Switch::Never,
    window: WindowRule::None,
    norms_less_one: true,
    is_uneven: true,
    has_extra_layers: true,
    sizes: &[
        ("head_dim", 256),
        ("num_key_value_heads", 2),
        ("moe_intermediate_size", 512),
        ("shared_expert_intermediate_size", 512),
        ("num_experts_per_tok", 10),
        ("num_experts", 512),
        ("intermediate_size", 5632),
        ("max_position_embeddings", 32_768),
    ],
    gguf_names: &[(LayerPart::MlpNorm, "post_attention_norm.weight")],
    gguf_keys: &experts::GGUF_KEYS,
    config: |fields, spec| {
        delta_from_config(fields, spec)?;
        let normalised = fields.bool("norm_topk_prob")?.unwrap_or(true);
        experts_from_config(fields, spec, normalised)
    },
    metadata: |keys, spec| {
        delta_from_metadata(keys, spec, HeadOrder::Grouped)?;
        experts_from_metadata(keys, spec)
    },
    ..QWEN3
};

pub(super) fn experts_from_config(fields: &Fields, spec: &mut Spec, normalised: bool) -> Result<()> {
    let found = experts::from_config(fields, spec, "num_experts")?;
    let shared_ffn = fields.size("shared_expert_intermediate_size")?;
    spec.experts = Some(experts::Experts { shared_ffn, normalised, ..found });
    Ok(())
}

/// Shares sum to one in all published models; the metadata need not say it.
pub(super) fn experts_from_metadata(keys: &Keys, spec: &mut Spec) -> Result<()> {
    let found = experts::from_metadata(keys, spec)?;
    let normalised = keys.bool("expert_weights_norm").unwrap_or(true);
    let shared_ffn = keys.optional_size("expert_shared_feed_forward_length")?.unwrap_or(0);
    spec.experts = Some(experts::Experts { shared_ffn, normalised, ..found });
    Ok(())
}

pub(super) fn delta_from_config(fields: &Fields, spec: &mut Spec) -> Result<()> {
    fields.refuse_if("attention_bias")?;
    let size = |key: &str, usual: usize| Ok::<_, crate::error::Error>(fields.optional_size(key)?.unwrap_or(usual));
    let sizes = DeltaSizes {
        key_heads: size("linear_num_key_heads", 16)?,
        value_heads: size("linear_num_value_heads", 32)?,
        key_dim: size("linear_key_head_dim", 128)?,
        value_dim: size("linear_value_head_dim", 128)?,
        taps: size("linear_conv_kernel_dim", 4)?,
        order: HeadOrder::Grouped,
    };
    let every = size("full_attention_interval", ATTENTION_EVERY)?;
    let layers = match fields.list("layer_types")? {
        None => all_but_every(every, spec.layers_believed()),
        Some(kinds) => {
            let is_delta = |kind: &Value| match kind.as_str() {
                Some("linear_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(fields.wrong("layer_types", "a list of linear_attention and full_attention")),
            };
            kinds.iter().map(is_delta).collect::<Result<_>>()?
        }
    };
    spec.uneven.delta = Some(DeltaRule { sizes, layers });
    spec.uneven.output_gate = true;
    Ok(())
}

pub(super) fn delta_from_metadata(keys: &Keys, spec: &mut Spec, order: HeadOrder) -> Result<()> {
    if let Some(extra) = keys.optional_size("nextn_predict_layers")? {
        spec.layers = spec.layers.saturating_sub(extra);
    }
    let value_heads = keys.size("ssm.time_step_rank")?;
    let values = keys.size("ssm.inner_size")?;
    if value_heads == 0 || !values.is_multiple_of(value_heads) {
        return Err(keys.wrong(format!("{values} values for {value_heads} heads of linear attention")));
    }
    let sizes = DeltaSizes {
        key_heads: keys.size("ssm.group_count")?,
        value_heads,
        key_dim: keys.size("ssm.state_size")?,
        value_dim: values / value_heads,
        taps: keys.size("ssm.conv_kernel")?,
        order,
    };
    let every = keys.optional_size("full_attention_interval")?.unwrap_or(ATTENTION_EVERY);
    spec.uneven.delta = Some(DeltaRule { sizes, layers: all_but_every(every, spec.layers_believed()) });
    spec.uneven.output_gate = true;
    Ok(())
}

fn all_but_every(step: usize, layers: usize) -> Vec<bool> {
    (1..=layers).map(|layer| step == 0 || !layer.is_multiple_of(step)).collect()
}
