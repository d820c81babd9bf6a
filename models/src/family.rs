//! The model families by name, and the switches in which they differ; each family's file fills in its own.

use sconce_kernels::RopeStyle;

use crate::error::Result;
use crate::families::{
    cohere, deepseek, ernie4_5, exaone4, gemma, gemma4, glm4, gpt_oss, granite, lfm2, llama, llama4, mixtral, olmo2,
    olmoe, phi3, qwen2, qwen3, qwen3_5, qwen3_next, seed_oss, smollm3, stablelm, starcoder2,
};
use crate::names::LayerPart;
use crate::spec::fields::Fields;
use crate::spec::keys::Keys;
use crate::spec::{Activation, NormKind, Norms, QkNorm, Spec};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    Cohere,
    Cohere2,
    DeepseekV2,
    DeepseekV3,
    Ernie45,
    Exaone4,
    Gemma,
    Gemma2,
    Gemma3,
    Gemma4,
    Glm,
    Glm4,
    Glm4MoeLite,
    GptOss,
    Granite,
    GraniteMoe,
    Lfm2,
    Lfm2Moe,
    Llama,
    Llama4,
    Ministral,
    Ministral3,
    Mistral,
    Mixtral,
    Olmo2,
    Olmo3,
    Olmoe,
    Phi3,
    Qwen2,
    Qwen2Moe,
    Qwen3,
    Qwen3Moe,
    Qwen3Next,
    Qwen35,
    Qwen35Moe,
    SeedOss,
    SmolLm3,
    StableLm,
    Starcoder2,
}

/// A part of the network that some files have and others lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switch {
    Never,
    Always,
    /// `config.json` says so under this key (absent means no); in a GGUF the tensors' presence says it.
    Configured(&'static str),
    /// As `Configured`, but absent means yes.
    UnlessConfigured(&'static str),
}

/// Which layers a `sliding_window` in `config.json` binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WindowRule {
    /// The family has none: a key of that name is not read, as in Transformers.
    None,
    /// Every layer, whenever the key holds a number.
    EveryLayer,
    /// Only with `use_sliding_window`, and only the layers that `layer_types` or `max_window_layers` name.
    LateLayers,
    /// The layers that `layer_types` names; without it all but every n-th, n being `sliding_window_pattern` or this.
    AllButEvery(usize),
    /// None so far: a config with `use_sliding_window` is refused.
    Refused,
}

/// What one family's files look like.
#[derive(Clone, Copy)]
pub(crate) struct FamilyTraits {
    pub family: Family,
    /// Class names in `architectures`.
    pub classes: &'static [&'static str],
    /// `model_type`, for a config without `architectures`.
    pub model_type: &'static str,
    /// `general.architecture`, if the family has its own.
    pub gguf: Option<&'static str>,
    /// How safetensors of the family lay out rotated pairs.
    pub rope: RopeStyle,
    /// How a GGUF of the family lays them out.
    pub gguf_rope: RopeStyle,
    /// Share of a head that is rotated where the config is silent; `None` if the family always rotates all of it.
    pub rotary_factor: Option<f64>,
    /// Base of the rotation that Transformers takes where the config is silent.
    pub theta: f64,
    pub qkv_bias: Switch,
    pub output_bias: Switch,
    pub mlp_bias: Switch,
    pub qk_norm: QkNorm,
    pub window: WindowRule,
    pub norm: NormKind,
    pub norms: Norms,
    /// Key of the norms' epsilon in `config.json`, and what Transformers takes without it.
    pub norm_eps: (&'static str, f64),
    /// Safetensors hold the norms' weights less one.
    pub norms_less_one: bool,
    /// Keys in `config.json` that may name the activation, and what a file without them has.
    pub activation: (&'static [&'static str], Activation),
    /// The activation gates a second projection.
    pub gated: bool,
    /// Whether head and embedding are one where the config is silent.
    pub tied: bool,
    /// One tensor holds q, k and v.
    pub fused_qkv: bool,
    /// One tensor holds gate and up.
    pub fused_gate_up: bool,
    /// Safetensors hold all experts of a layer in one tensor, the rows of gate and up in turn.
    pub interleaved_experts: bool,
    /// Safetensors hold all experts of a layer in one tensor, gate beside up, inputs in rows and outputs in columns.
    pub transposed_experts: bool,
    /// Layers differ in their sizes: metadata may list them, and what a head is called says little.
    pub is_uneven: bool,
    /// Files may have layers behind the last, which are left out.
    pub has_extra_layers: bool,
    /// Tensors outside the layers that the family calls otherwise, and their usual names.
    pub renamed: &'static [(&'static str, &'static str)],
    /// Sizes that Transformers takes where `config.json` is silent.
    pub sizes: &'static [(&'static str, usize)],
    /// Names in safetensors that differ from the usual ones.
    pub names: &'static [(LayerPart, &'static str)],
    /// The same of files that hold all experts of a layer in one tensor, where the family has both forms.
    pub names_in_one: &'static [(LayerPart, &'static str)],
    /// Names in GGUF files that differ from the usual ones.
    pub gguf_names: &'static [(LayerPart, &'static str)],
    /// Metadata keys that the family reads and others refuse.
    pub gguf_keys: &'static [&'static str],
    /// Reads what only this family's `config.json` has.
    pub config: fn(&Fields, &mut Spec) -> Result<()>,
    /// Reads what only this family's metadata has.
    pub metadata: fn(&Keys, &mut Spec) -> Result<()>,
}

/// What most families share: Llama without biases.
pub(crate) const LLAMA_LIKE: FamilyTraits = FamilyTraits {
    family: Family::Llama,
    classes: &[],
    model_type: "",
    gguf: None,
    rope: RopeStyle::Halves,
    gguf_rope: RopeStyle::Halves,
    rotary_factor: None,
    theta: 10_000.0,
    qkv_bias: Switch::Never,
    output_bias: Switch::Never,
    mlp_bias: Switch::Never,
    qk_norm: QkNorm::None,
    window: WindowRule::None,
    norm: NormKind::Rms,
    norms: Norms::Before,
    norm_eps: ("rms_norm_eps", 1e-6),
    norms_less_one: false,
    activation: (&["hidden_act"], Activation::Silu),
    gated: true,
    tied: false,
    fused_qkv: false,
    fused_gate_up: false,
    interleaved_experts: false,
    transposed_experts: false,
    is_uneven: false,
    has_extra_layers: false,
    renamed: &[],
    sizes: &[],
    names: &[],
    names_in_one: &[],
    gguf_names: &[],
    gguf_keys: &[],
    config: |_, _| Ok(()),
    metadata: |_, _| Ok(()),
};

pub(crate) const FAMILIES: [&FamilyTraits; 39] = [
    &llama::LLAMA,
    &llama4::LLAMA4,
    &llama::MISTRAL,
    &llama::MINISTRAL,
    &llama::MINISTRAL3,
    &mixtral::MIXTRAL,
    &qwen2::QWEN2,
    &qwen2::QWEN2_MOE,
    &qwen3::QWEN3,
    &qwen3::QWEN3_MOE,
    &qwen3_next::QWEN3_NEXT,
    &qwen3_5::QWEN3_5,
    &qwen3_5::QWEN3_5_MOE,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gemma4::GEMMA4,
    &deepseek::DEEPSEEK_V2,
    &deepseek::DEEPSEEK_V3,
    &deepseek::GLM4_MOE_LITE,
    &lfm2::LFM2,
    &lfm2::LFM2_MOE,
    &phi3::PHI3,
    &smollm3::SMOLLM3,
    &granite::GRANITE,
    &granite::GRANITE_MOE,
    &olmo2::OLMO2,
    &olmo2::OLMO3,
    &olmoe::OLMOE,
    &seed_oss::SEED_OSS,
    &ernie4_5::ERNIE4_5,
    &exaone4::EXAONE4,
    &gpt_oss::GPT_OSS,
    &starcoder2::STARCODER2,
    &stablelm::STABLELM,
    &glm4::GLM,
    &glm4::GLM4,
    &cohere::COHERE,
    &cohere::COHERE2,
];

impl Family {
    pub(crate) fn traits(self) -> &'static FamilyTraits {
        let mut all = FAMILIES.into_iter();
        all.find(|traits| traits.family == self).expect("every family is in the list, as its fixtures show")
    }
}

pub(crate) fn by_class(class: &str) -> Option<&'static FamilyTraits> {
    FAMILIES.into_iter().find(|family| family.classes.contains(&class))
}

pub(crate) fn by_model_type(model_type: &str) -> Option<&'static FamilyTraits> {
    FAMILIES.into_iter().find(|family| family.model_type == model_type)
}

pub(crate) fn by_gguf(architecture: &str) -> Option<&'static FamilyTraits> {
    FAMILIES.into_iter().find(|family| family.gguf == Some(architecture))
}

/// For the message that refuses an unknown class.
pub(crate) fn supported_classes() -> String {
    let classes: Vec<&str> = FAMILIES.iter().flat_map(|family| family.classes).copied().collect();
    classes.join(", ")
}

/// For the message that refuses an unknown GGUF architecture.
pub(crate) fn supported_gguf() -> String {
    let names: Vec<&str> = FAMILIES.iter().filter_map(|family| family.gguf).collect();
    names.join(", ")
}
