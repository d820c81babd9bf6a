//! What is not the same in all layers of a model: sizes of heads, caches that layers share, layers that convolve instead
//! of attending, and what single layers are given beside the hidden state.

use sconce_kernels::DeltaSizes;

use super::Spec;

/// The default is a model whose layers are all alike.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Uneven {
    /// Heads of the layers without a window, where they differ from those of the others.
    pub global_heads: Option<KvHeads>,
    /// Layers without a window have no projection of values: keys as projected are values, too.
    pub global_keys_are_values: bool,
    /// Values pass an RMSNorm without a weight.
    pub value_norm: bool,
    /// So many layers at the end have no K and V of their own and read those of the last layer before them that has the
    /// same kind of attention.
    pub shared_kv_layers: usize,
    /// Feed-forward blocks of those layers are twice as wide.
    pub shared_are_wide: bool,
    /// Width of what each layer gets of a token beside the hidden state; 0 for nothing.
    pub own_input: usize,
    /// What a layer gives is multiplied with a number of its own.
    pub scaled: bool,
    /// Layers that convolve.
    pub convolution: Option<Convolution>,
    /// Layers of the gated delta rule.
    pub delta: Option<DeltaRule>,
    /// What attention has seen is multiplied with sigmoid of a gate, which the queries' matrix has behind each head's rows.
    pub output_gate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvHeads {
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// Short causal convolutions of gated inputs (LFM2) in place of attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Convolution {
    /// Tokens that one result is made of, its own included.
    pub taps: usize,
    pub has_bias: bool,
    /// Whether layer `i` convolves. `[layers]`
    pub layers: Vec<bool>,
}

/// Gated delta-rule linear attention (arXiv 2412.06464) in place of attention: one state a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaRule {
    pub sizes: DeltaSizes,
    /// Whether layer `i` is one. `[layers]`
    pub layers: Vec<bool>,
}

/// What the cache holds of a token in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    KeysAndValues(KvHeads),
    /// One vector: a latent, or the input of a convolution.
    Vector(usize),
    /// Nothing: the layer keeps one state a sequence.
    State(DeltaSizes),
    /// Nothing: the layer reads what this earlier one wrote.
    Shared(usize),
}

impl Spec {
    /// The KV heads of a layer.
    pub fn kv_heads_of(&self, layer: usize) -> KvHeads {
        let usual = KvHeads { kv_heads: self.kv_heads, head_dim: self.head_dim };
        self.uneven.global_heads.filter(|_| self.window(layer).is_none()).unwrap_or(usual)
    }

    pub fn cache_of(&self, layer: usize) -> CacheKind {
        if let Some(latent) = &self.latent {
            return CacheKind::Vector(latent.width());
        }
        if self.convolves(layer) {
            return CacheKind::Vector(self.hidden);
        }
        if let Some(sizes) = self.delta_of(layer) {
            return CacheKind::State(sizes);
        }
        let own = self.layers.saturating_sub(self.uneven.shared_kv_layers);
        let is_like = |other: &usize| self.window(*other).is_some() == self.window(layer).is_some();
        match (0..own).rev().find(is_like).filter(|_| layer >= own) {
            Some(earlier) => CacheKind::Shared(earlier),
            None => CacheKind::KeysAndValues(self.kv_heads_of(layer)),
        }
    }

    /// Whether a layer convolves instead of attending.
    pub fn convolves(&self, layer: usize) -> bool {
        let convolution = self.uneven.convolution.as_ref();
        convolution.is_some_and(|convolution| convolution.layers.get(layer).copied().unwrap_or(false))
    }

    /// The delta rule of a layer, `None` if it attends.
    pub fn delta_of(&self, layer: usize) -> Option<DeltaSizes> {
        let delta = self.uneven.delta.as_ref().filter(|delta| delta.layers.get(layer).copied().unwrap_or(false));
        delta.map(|delta| delta.sizes)
    }

    /// Bytes that a sequence's state takes in all layers, 0 of a model that keeps none.
    pub fn state_bytes(&self) -> u64 {
        let sizes = (0..self.layers).filter_map(|layer| self.delta_of(layer));
        sizes.map(|sizes| sizes.state_bytes()).fold(0, u64::saturating_add)
    }

    /// Width of a layer's plain feed-forward block.
    pub fn ffn_of(&self, layer: usize) -> usize {
        let is_wide = self.uneven.shared_are_wide && layer >= self.layers.saturating_sub(self.uneven.shared_kv_layers);
        if is_wide { 2 * self.ffn } else { self.ffn }
    }

    /// Elements that the cache holds of one token in a layer.
    pub(super) fn cache_values(&self, layer: usize) -> u64 {
        match self.cache_of(layer) {
            CacheKind::KeysAndValues(KvHeads { kv_heads, head_dim }) => 2 * kv_heads as u64 * head_dim as u64,
            CacheKind::Vector(width) => width as u64,
            CacheKind::State(_) | CacheKind::Shared(_) => 0,
        }
    }

    /// Elements of the matrices of a layer's attention, or of what stands in its place.
    pub(super) fn mixer_parameters(&self, layer: usize) -> u64 {
        let product = |a: usize, b: usize| (a as u64).saturating_mul(b as u64);
        if let Some(latent) = &self.latent {
            return latent.matrix_parameters(self.hidden, self.heads);
        }
        if self.convolves(layer) {
            return product(self.hidden, 4 * self.hidden);
        }
        if let Some(sizes) = self.delta_of(layer) {
            return product(self.hidden, sizes.projected() + sizes.values());
        }
        let KvHeads { kv_heads, head_dim } = self.kv_heads_of(layer);
        let kvs = if matches!(self.cache_of(layer), CacheKind::Shared(_)) { 0 } else { 2 * kv_heads * head_dim };
        let queries = if self.uneven.output_gate { 3 } else { 2 };
        product(self.hidden, queries * self.heads * head_dim + kvs)
    }

    fn check_delta(&self) -> Result<(), String> {
        const SIZE_MAX: usize = 1 << 12;
        let Some(DeltaRule { sizes, layers }) = &self.uneven.delta else { return Ok(()) };
        for (name, value) in [
            ("key heads", sizes.key_heads),
            ("value heads", sizes.value_heads),
            ("key head size", sizes.key_dim),
            ("value head size", sizes.value_dim),
            ("taps", sizes.taps),
        ] {
            if !(1..=SIZE_MAX).contains(&value) {
                return Err(format!("linear attention with {value} {name}, expected 1 to {SIZE_MAX}"));
            }
        }
        if !sizes.value_heads.is_multiple_of(sizes.key_heads) {
            let DeltaSizes { key_heads, value_heads, .. } = sizes;
            return Err(format!(
                "linear attention: {value_heads} value heads are no multiple of {key_heads} key heads"
            ));
        }
        if layers.len() != self.layers {
            return Err(format!("linear attention is said of {} layers, there are {}", layers.len(), self.layers));
        }
        Ok(())
    }

    pub(super) fn check_uneven(&self) -> Result<(), String> {
        self.check_delta()?;
        const SIZE_MAX: usize = 1 << 16;
        let Uneven { global_heads, shared_kv_layers, own_input, convolution, .. } = &self.uneven;
        if let Some(KvHeads { kv_heads, head_dim }) = *global_heads {
            let is_sound = (1..=SIZE_MAX).contains(&kv_heads) && self.heads.is_multiple_of(kv_heads);
            if !is_sound || !(2..=SIZE_MAX).contains(&head_dim) || !head_dim.is_multiple_of(2) {
                return Err(format!("layers without a window have {kv_heads} kv heads of size {head_dim}"));
            }
        }
        let own = self.layers.saturating_sub(*shared_kv_layers);
        let has_like = |layer: usize| (0..own).any(|own| self.window(own).is_some() == self.window(layer).is_some());
        if let Some(layer) = (own..self.layers).find(|layer| !has_like(*layer)) {
            return Err(format!("layer {layer} shares K and V, and no layer of its kind has any"));
        }
        if *own_input > SIZE_MAX {
            return Err(format!("inputs of {own_input} values a layer, expected 0 to {SIZE_MAX}"));
        }
        match convolution {
            Some(convolution) if !(1..=SIZE_MAX).contains(&convolution.taps) => {
                Err(format!("a convolution over {} tokens, expected 1 to {SIZE_MAX}", convolution.taps))
            }
            Some(convolution) if convolution.layers.len() != self.layers => {
                Err(format!("convolution is said of {} layers, there are {}", convolution.layers.len(), self.layers))
            }
            _ => Ok(()),
        }
    }
}
