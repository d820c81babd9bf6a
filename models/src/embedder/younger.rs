//! `config.json` of the encoders with rotation: ModernBERT, and Nomic's BERT in both of its spellings.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Pooling;
use super::config::{Biases, Class, ConfigFile, EncoderConfig, Rotation, Wide};
use crate::error::{Result, shown};
use crate::spec::LAYERS_MAX;

#[derive(Deserialize)]
struct RawModern {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    norm_eps: Option<f64>,
    hidden_activation: Option<String>,
    local_attention: Option<u32>,
    layer_types: Option<Vec<String>>,
    global_attn_every_n_layers: Option<usize>,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Map<String, Value>>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    classifier_bias: bool,
    classifier_pooling: Option<String>,
    classifier_activation: Option<String>,
}

impl ConfigFile {
    pub(super) fn of_modern_bert(&self, class: Class) -> Result<EncoderConfig> {
        let raw: RawModern = self.typed()?;
        self.refuse_shared(class)?;
        let wide = match raw.hidden_activation.as_deref().unwrap_or("gelu") {
            "gelu" => Wide::GatedGelu,
            "silu" => Wide::GatedSilu,
            other => return Err(self.unsupported(format!("hidden_activation {}", shown(other)))),
        };
        if let Some(other) = raw.classifier_activation.as_deref().filter(|name| *name != "gelu" && class.scores) {
            return Err(self.unsupported(format!("classifier_activation {}", shown(other))));
        }
        let score_pooling = match raw.classifier_pooling.as_deref().unwrap_or("cls") {
            "cls" => Pooling::Cls,
            "mean" => Pooling::Mean,
            other => return Err(self.wrong(format!("classifier_pooling is {}, expected cls or mean", shown(other)))),
        };
        let rotation = Rotation {
            theta: self.theta(&raw, "full_attention", raw.global_rope_theta, 160_000.0)?,
            local_theta: self.theta(&raw, "sliding_attention", raw.local_rope_theta, 10_000.0)?,
            reach: raw.local_attention.unwrap_or(128) / 2,
            is_local: self.local_layers(&raw)?,
        };
        let biases = Biases {
            attention: raw.attention_bias,
            ffn: raw.mlp_bias,
            norms: raw.norm_bias,
            head: raw.classifier_bias,
        };
        Ok(EncoderConfig {
            hidden: raw.hidden_size,
            ffn: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            vocab: raw.vocab_size,
            positions: raw.max_position_embeddings,
            types: 0,
            eps: raw.norm_eps.unwrap_or(1e-5) as f32,
            wide,
            biases,
            padding: 0,
            rotation: Some(rotation),
            score_pooling,
            sigmoid: self.sigmoid()?,
        })
    }

    /// The base of the rotation in layers of one type, in the newer spelling or the older one.
    fn theta(&self, raw: &RawModern, layers: &str, older: Option<f64>, usual: f64) -> Result<f64> {
        if raw.rope_scaling.as_ref().is_some_and(|scaling| !scaling.is_null()) {
            return Err(self.unsupported("rope_scaling in an encoder".to_owned()));
        }
        match raw.rope_parameters.as_ref().and_then(|all| all.get(layers)?.as_object()) {
            None => Ok(older.unwrap_or(usual)),
            Some(parameters) => Ok(self.plain_theta(parameters)?.or(older).unwrap_or(usual)),
        }
    }

    fn plain_theta(&self, parameters: &Map<String, Value>) -> Result<Option<f64>> {
        if let Some(kind) = parameters.get("rope_type").and_then(Value::as_str).filter(|kind| *kind != "default") {
            return Err(self.unsupported(format!("rope_type {} in an encoder", shown(kind))));
        }
        Ok(parameters.get("rope_theta").and_then(Value::as_f64))
    }

    fn local_layers(&self, raw: &RawModern) -> Result<Vec<bool>> {
        let layers = raw.num_hidden_layers.min(LAYERS_MAX);
        let Some(types) = &raw.layer_types else {
            let step = raw.global_attn_every_n_layers.unwrap_or(3);
            if step == 0 {
                return Err(self.wrong("global_attn_every_n_layers is 0, expected at least 1".to_owned()));
            }
            return Ok((0..layers).map(|layer| !layer.is_multiple_of(step)).collect());
        };
        if types.len() != raw.num_hidden_layers {
            let (types, layers) = (types.len(), raw.num_hidden_layers);
            return Err(self.wrong(format!("layer_types names {types} layers of {layers}")));
        }
        let is_local = |kind: &String| match kind.as_str() {
            "full_attention" => Ok(false),
            "sliding_attention" => Ok(true),
            other => Err(self.unsupported(format!("layer type {}", shown(other)))),
        };
        types.iter().map(is_local).collect()
    }
}

/// As Transformers writes it; the aliases are the names of the model's first releases.
#[derive(Deserialize)]
struct RawNomic {
    #[serde(alias = "n_embd")]
    hidden_size: usize,
    #[serde(alias = "n_inner")]
    intermediate_size: usize,
    #[serde(alias = "n_layer")]
    num_hidden_layers: usize,
    #[serde(alias = "n_head")]
    num_attention_heads: usize,
    vocab_size: usize,
    #[serde(alias = "n_positions")]
    max_position_embeddings: usize,
    /// Beyond it, the first releases scale the rotation by the length of a text.
    max_trained_positions: Option<usize>,
    type_vocab_size: Option<usize>,
    #[serde(alias = "layer_norm_epsilon")]
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    activation_function: Option<String>,
    rope_parameters: Option<Map<String, Value>>,
    rotary_emb_base: Option<f64>,
    rotary_emb_fraction: Option<f64>,
    head_dim: Option<usize>,
    moe_every_n_layers: Option<usize>,
    qkv_proj_bias: Option<bool>,
    mlp_fc1_bias: Option<bool>,
    mlp_fc2_bias: Option<bool>,
    prenorm: Option<bool>,
    parallel_block: Option<bool>,
    rotary_emb_interleaved: Option<bool>,
    use_rms_norm: Option<bool>,
    causal: Option<bool>,
    rotary_emb_scale_base: Option<f64>,
}

impl ConfigFile {
    pub(super) fn of_nomic_bert(&self, class: Class) -> Result<EncoderConfig> {
        let raw: RawNomic = self.typed()?;
        self.refuse_shared(class)?;
        for (feature, is_on) in [
            ("moe_every_n_layers (a mixture of experts)", raw.moe_every_n_layers.is_some_and(|step| step > 0)),
            ("prenorm", raw.prenorm == Some(true)),
            ("parallel_block", raw.parallel_block == Some(true)),
            ("rotary_emb_interleaved", raw.rotary_emb_interleaved == Some(true)),
            ("use_rms_norm", raw.use_rms_norm == Some(true)),
            ("causal", raw.causal == Some(true)),
            ("qkv_proj_bias", raw.qkv_proj_bias == Some(true)),
            ("mlp_fc1_bias", raw.mlp_fc1_bias == Some(true)),
            ("mlp_fc2_bias", raw.mlp_fc2_bias == Some(true)),
            ("rotary_emb_scale_base", raw.rotary_emb_scale_base.is_some()),
            ("rotary_emb_fraction other than 1", raw.rotary_emb_fraction.is_some_and(|share| share != 1.0)),
            (
                "a head_dim other than hidden_size / num_attention_heads",
                raw.head_dim.is_some_and(|dim| dim.saturating_mul(raw.num_attention_heads) != raw.hidden_size),
            ),
        ] {
            if is_on {
                return Err(self.unsupported(feature.to_owned()));
            }
        }
        let wide = match raw.activation_function.as_deref().or(raw.hidden_act.as_deref()).unwrap_or("silu") {
            "swiglu" | "silu" => Wide::GatedSilu,
            "gelu" if raw.activation_function.is_none() => Wide::GatedGelu,
            other => return Err(self.unsupported(format!("activation_function {}", shown(other)))),
        };
        let newer = raw.rope_parameters.as_ref().map(|parameters| self.plain_theta(parameters)).transpose()?.flatten();
        let theta = newer.or(raw.rotary_emb_base).unwrap_or(1000.0);
        let trained = raw.max_trained_positions.filter(|&trained| trained > 0).unwrap_or(usize::MAX);
        let layers = raw.num_hidden_layers.min(LAYERS_MAX);
        Ok(EncoderConfig {
            hidden: raw.hidden_size,
            ffn: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            vocab: raw.vocab_size,
            positions: raw.max_position_embeddings.min(trained),
            types: raw.type_vocab_size.unwrap_or(2),
            eps: raw.layer_norm_eps.unwrap_or(1e-12) as f32,
            wide,
            biases: Biases { attention: false, ffn: false, norms: true, head: true },
            padding: 0,
            rotation: Some(Rotation { theta, local_theta: theta, reach: 0, is_local: vec![false; layers] }),
            score_pooling: Pooling::Cls,
            sigmoid: self.sigmoid()?,
        })
    }
}
