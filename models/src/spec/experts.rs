//! Mixture-of-experts blocks: how many experts there are, how many see a token, and in which layers.

use super::Spec;
use super::fields::Fields;
use super::keys::Keys;
use crate::error::Result;
use crate::names::{LayerPart, Part};

#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    pub count: usize,
    /// Experts that see a token.
    pub per_token: usize,
    /// Width of one expert.
    pub ffn: usize,
    /// Width of the expert that every token sees, beside the others; 0 for none.
    pub shared_ffn: usize,
    /// The chosen experts' shares sum to one.
    pub normalised: bool,
    /// Experts and router have biases.
    pub has_bias: bool,
    pub routing: Routing,
    /// Whether layer `i` has experts; the others have a plain block. `[layers]`
    pub layers: Vec<bool>,
}

/// How a token's experts follow from its router's scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    pub scoring: Scoring,
    /// Only experts of the best groups are chosen.
    pub groups: Option<Groups>,
    /// Factor on all shares.
    pub scale: f32,
    /// Each expert has a number that is added to its weight while experts are chosen, and not to its share.
    pub corrected: bool,
    /// A token takes a share of the shared expert that a router of its own says; otherwise all of it.
    pub gates_shared: bool,
    /// A token's share is a factor on what the expert sees, not on what it gives.
    pub scales_input: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    Softmax,
    Sigmoid,
}

/// Neighbouring experts, all groups of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    pub count: usize,
    pub used: usize,
    pub score: GroupScore,
}

/// By what groups are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScore {
    /// Their best expert.
    Best,
    /// The sum of their best two.
    BestTwo,
}

impl Routing {
    /// A softmax over all scores, and nothing else.
    pub(crate) const PLAIN: Self = Self {
        scoring: Scoring::Softmax,
        groups: None,
        scale: 1.0,
        corrected: false,
        gates_shared: true,
        scales_input: false,
    };
    pub(crate) const GROUPS_MAX: usize = 64;

    fn check(&self, experts: &Experts) -> Result<(), String> {
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            return Err(format!("factor on experts' shares is {}, expected > 0", self.scale));
        }
        let Some(Groups { count, used, .. }) = self.groups else { return Ok(()) };
        let is_sound = (1..=Self::GROUPS_MAX).contains(&count) && experts.count.is_multiple_of(count);
        if !is_sound || !(1..=count).contains(&used) || experts.count / count * used < experts.per_token {
            let Experts { count: all, per_token, .. } = experts;
            return Err(format!("{used} of {count} groups of experts for {per_token} of {all} experts a token"));
        }
        Ok(())
    }
}

/// Metadata keys that families with experts read.
pub(crate) const GGUF_KEYS: [&str; 2] = ["expert_count", "attention.sliding_window_pattern"];

/// The keys of the Qwen families; the count goes by several names.
pub(crate) fn from_config(fields: &Fields, spec: &Spec, count_key: &str) -> Result<Experts> {
    let count = fields.size(count_key)?;
    let step = fields.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let mut plain = Vec::new();
    for layer in fields.list("mlp_only_layers")?.into_iter().flatten() {
        plain.push(layer.as_u64().ok_or_else(|| fields.wrong("mlp_only_layers", "a list of layer numbers"))?);
    }
    let has_experts = |layer: usize| !plain.contains(&(layer as u64)) && step > 0 && (layer + 1).is_multiple_of(step);
    Ok(Experts {
        count,
        per_token: fields.size("num_experts_per_tok")?,
        ffn: fields.optional_size("moe_intermediate_size")?.unwrap_or(spec.ffn),
        shared_ffn: 0,
        normalised: fields.bool("norm_topk_prob")?.unwrap_or(false),
        has_bias: false,
        routing: Routing::PLAIN,
        layers: (0..spec.layers_believed()).map(has_experts).collect(),
    })
}

pub(crate) fn from_metadata(keys: &Keys, spec: &Spec) -> Result<Experts> {
    let has_experts = |layer: usize| keys.tensors.has(Part::Layer(layer, LayerPart::Router));
    Ok(Experts {
        count: keys.size("expert_count")?,
        per_token: keys.size("expert_used_count")?,
        ffn: keys.optional_size("expert_feed_forward_length")?.unwrap_or(spec.ffn),
        shared_ffn: 0,
        normalised: keys.bool("expert_weights_norm").unwrap_or(false),
        has_bias: false,
        routing: Routing::PLAIN,
        layers: (0..spec.layers_believed()).map(has_experts).collect(),
    })
}

impl Experts {
    pub(super) fn check(&self) -> Result<(), String> {
        const COUNT_MAX: usize = 1 << 16;
        const WIDTH_MAX: usize = 1 << 24;
        for (name, value, max) in [
            ("number of experts", self.count, COUNT_MAX),
            ("number of experts a token", self.per_token, self.count),
            ("feed-forward size of an expert", self.ffn, WIDTH_MAX),
        ] {
            if value == 0 || value > max {
                return Err(format!("{name} is {value}, expected 1 to {max}"));
            }
        }
        if self.shared_ffn > WIDTH_MAX {
            return Err(format!(
                "feed-forward size of the shared expert is {}, expected 0 to {WIDTH_MAX}",
                self.shared_ffn
            ));
        }
        self.routing.check(self)
    }
}
