//! The model families by name, and the switches in which they differ; each family's file fills in its own.

use sconce_kernels::RopeStyle;

use crate::{llama, qwen2, qwen3};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// A part of the network that some files have and others lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switch {
    Never,
    Always,
    /// `config.json` says so under this key (absent means no); in a GGUF the tensors' presence says it.
    Configured(&'static str),
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
}

/// What one family's files look like.
pub(crate) struct FamilyTraits {
    pub family: Family,
    /// Class names in `architectures`.
    pub classes: &'static [&'static str],
    /// `model_type`, for a config without `architectures`.
    pub model_type: &'static str,
    /// `general.architecture`, if the family has its own.
    pub gguf: Option<&'static str>,
    /// How a GGUF of the family lays out rotated pairs; safetensors always use halves.
    pub gguf_rope: RopeStyle,
    pub qkv_bias: Switch,
    pub output_bias: Switch,
    pub mlp_bias: Switch,
    pub qk_norm: bool,
    pub window: WindowRule,
}

pub(crate) const FAMILIES: [&FamilyTraits; 4] = [&llama::LLAMA, &llama::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3];

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
