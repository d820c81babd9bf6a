//! A decoder's layers as the GPU computes them: made once from what the assembler built, vectors uploaded.

use std::sync::Arc;

use candle_core::Tensor;
use sconce_cuda::ops::activate::{Active, Gate};
use sconce_cuda::ops::rope::Rotation;
use sconce_cuda::{Buffer, Device};
use sconce_kernels::{Activation, Prologue, RopeStyle};

use super::convolution::GpuConvolution;
use super::delta::GpuDelta;
use super::experts::GpuExperts;
use super::latent::GpuLatent;
use super::mixer::GpuMixer;
use super::place::{Matrix, OnGpu};
use super::uneven::{GpuOwnInput, GpuOwnInputs};
use crate::decoder::{Decoder, FeedForward, Layer};
use crate::error::{Error, Result};
use crate::layers::{self, Join, Mixer, Norm};
use crate::spec::{CacheKind, RopeSpec, Spec};

pub(super) struct Parts {
    pub embedding: Matrix,
    pub own_inputs: Option<GpuOwnInputs>,
    pub layers: Vec<GpuLayer>,
    pub final_norm: GpuNorm,
    pub head: Matrix,
}

pub(super) struct GpuLayer {
    pub mixer: GpuMixer,
    /// Before the feed-forward block.
    pub norm: GpuNorm,
    pub feed_forward: GpuFeedForward,
    pub is_parallel: bool,
    pub own_input: Option<GpuOwnInput>,
    /// On what the layer gives.
    pub scale: f32,
}

pub(super) enum GpuFeedForward {
    Dense(GpuMlp),
    Experts(Box<GpuExperts>),
}

pub(super) enum GpuNorm {
    None,
    Rms { weight: Buffer, eps: f32 },
    Layer { weight: Buffer, bias: Option<Buffer>, eps: f32 },
}

pub(super) struct GpuLinear {
    pub weight: Matrix,
    /// `[out]`
    pub bias: Option<Buffer>,
}

/// What happens to a block's result on its way into the hidden state.
pub(super) struct GpuJoin {
    pub norm: Option<(Buffer, f32)>,
    pub scale: f32,
}

pub(super) struct GpuAttention {
    pub norm: GpuNorm,
    pub qkv: GpuLinear,
    /// Sigmoid of it is a factor on what is seen. `[heads * head_dim, hidden]`
    pub gate: Option<GpuLinear>,
    pub output: GpuLinear,
    pub join: Option<GpuJoin>,
    pub head_norms: Option<GpuHeadNorms>,
    pub turning: Arc<Turning>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub window: Option<u32>,
    pub softcap: Option<f32>,
    pub sinks: Option<Buffer>,
    /// The layer whose cache is read, and whether that is another one, which has filled it.
    pub cache_layer: usize,
    pub reads_only: bool,
}

pub(super) struct GpuHeadNorms {
    pub query: Buffer,
    pub key: Buffer,
    pub value: Option<Buffer>,
    pub eps: f32,
}

/// Cosines and sines of every position that will be served.
pub(super) struct Turning {
    /// `[positions, 2, pairs]`
    angles: Buffer,
    pairs: usize,
    interleaved: bool,
}

pub(super) struct GpuMlp {
    pub gate_up: GpuLinear,
    pub down: GpuLinear,
    pub between: Between,
    pub join: Option<GpuJoin>,
}

/// What stands between the two projections of a feed-forward block.
#[derive(Debug, Clone, Copy)]
pub(super) enum Between {
    Gated(Gate),
    Active(Active),
}

impl Turning {
    pub fn rotation(&self) -> Rotation<'_> {
        Rotation { angles: self.angles.all(), pairs: self.pairs, interleaved: self.interleaved }
    }

    fn new(device: &Device, rope: Option<&RopeSpec>, style: RopeStyle, context: u32) -> Result<Self> {
        let frequencies = rope.map(|rope| rope.inverse_frequencies(context)).unwrap_or_default();
        let factor = rope.map_or(1.0, RopeSpec::attention_factor);
        let mut angles = Vec::with_capacity(2 * frequencies.len() * context as usize);
        for position in 0..context {
            // As on the CPU: the product in f32, its cosine in f64.
            let turned = frequencies.iter().map(|frequency| f64::from(position as f32 * frequency));
            angles.extend(turned.clone().map(|angle| angle.cos() as f32 * factor));
            angles.extend(turned.map(|angle| angle.sin() as f32 * factor));
        }
        let interleaved = matches!(style, RopeStyle::Interleaved);
        Ok(Self { angles: device.upload(&angles)?, pairs: frequencies.len(), interleaved })
    }
}

/// Makes layers, and remembers which rotations there are already.
pub(super) struct Maker<'a> {
    device: &'a Device,
    pub(super) on: &'a OnGpu,
    spec: &'a Spec,
    context: u32,
    turnings: Vec<(Option<RopeSpec>, Arc<Turning>)>,
}

impl Parts {
    /// All matrices of the layers.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let own = self.own_inputs.iter().map(GpuOwnInputs::matrix);
        let layers = self.layers.iter().flat_map(|GpuLayer { mixer, feed_forward, own_input, .. }| {
            let (dense, experts) = match feed_forward {
                GpuFeedForward::Dense(mlp) => (Some(mlp), None),
                GpuFeedForward::Experts(experts) => (None, Some(&**experts)),
            };
            let dense = dense.into_iter().flat_map(|mlp| [&mlp.gate_up.weight, &mlp.down.weight]);
            let experts = experts.into_iter().flat_map(GpuExperts::matrices);
            let own = own_input.iter().flat_map(GpuOwnInput::matrices);
            mixer.matrices().into_iter().chain(dense).chain(experts).chain(own)
        });
        layers.chain(own)
    }

    /// All layers of latent attention.
    pub fn latents(&self) -> impl Iterator<Item = &GpuLatent> {
        self.layers.iter().filter_map(|layer| match &layer.mixer {
            GpuMixer::Latent(latent) => Some(&**latent),
            GpuMixer::Attention(_) | GpuMixer::Convolution(_) | GpuMixer::Delta(_) => None,
        })
    }

    /// All layers' experts.
    pub fn experts(&self) -> impl Iterator<Item = &GpuExperts> {
        self.layers.iter().filter_map(|layer| match &layer.feed_forward {
            GpuFeedForward::Dense(_) => None,
            GpuFeedForward::Experts(experts) => Some(&**experts),
        })
    }

    pub fn new(decoder: &Decoder<Matrix>, on: &OnGpu, context: u32) -> Result<Self> {
        let mut maker = Maker { device: &on.device, on, spec: &decoder.spec, context, turnings: Vec::new() };
        let layers = decoder.layers.iter().enumerate();
        Ok(Self {
            embedding: decoder.embedding.clone(),
            own_inputs: decoder.own_inputs.as_ref().map(|inputs| GpuOwnInputs::new(&maker, inputs)).transpose()?,
            layers: layers.map(|(index, layer)| maker.layer(index, layer)).collect::<Result<_>>()?,
            final_norm: maker.norm(&decoder.final_norm)?,
            head: decoder.head.weight.clone(),
        })
    }
}

impl Maker<'_> {
    fn layer(&mut self, index: usize, layer: &Layer<Matrix>) -> Result<GpuLayer> {
        let mixer = match &layer.attention {
            Mixer::Attention(attention) => GpuMixer::Attention(Box::new(self.attention(index, attention)?)),
            Mixer::Latent(latent) => GpuMixer::Latent(Box::new(GpuLatent::new(self, index, latent)?)),
            Mixer::Convolution(convolution) => GpuMixer::Convolution(Box::new(GpuConvolution::new(self, convolution)?)),
            Mixer::Delta(delta) => {
                let sizes = self.spec.delta_of(index).expect("the spec says which layers have the delta rule");
                GpuMixer::Delta(Box::new(GpuDelta::new(self, delta, &sizes)?))
            }
        };
        let (norm, feed_forward) = match &layer.mlp {
            FeedForward::Dense(mlp) => {
                let dense = GpuMlp {
                    gate_up: self.linear(&mlp.gate_up)?,
                    down: self.summed(&mlp.down, mlp.join.is_some())?,
                    between: between(mlp.activation)?,
                    join: self.join(mlp.join.as_ref())?,
                };
                (self.norm(&mlp.norm)?, GpuFeedForward::Dense(dense))
            }
            FeedForward::Experts(moe) => {
                let norm = GpuNorm::Rms { weight: self.vector(&moe.norm.weight)?, eps: moe.norm.eps };
                (norm, GpuFeedForward::Experts(Box::new(GpuExperts::new(self, self.on, moe)?)))
            }
        };
        Ok(GpuLayer {
            mixer,
            norm,
            feed_forward,
            is_parallel: layer.is_parallel,
            own_input: layer.own_input.as_ref().map(|own| GpuOwnInput::new(self, own)).transpose()?,
            scale: layer.scale as f32,
        })
    }

    fn attention(&mut self, index: usize, attention: &layers::Attention<Matrix>) -> Result<GpuAttention> {
        let head_norms = attention.head_norms.as_ref().map(|norms| {
            Ok::<_, Error>(GpuHeadNorms {
                query: self.vector(&norms.query)?,
                key: self.vector(&norms.key)?,
                value: norms.value.as_ref().map(|value| self.vector(value)).transpose()?,
                eps: norms.eps,
            })
        });
        Ok(GpuAttention {
            norm: self.norm(&attention.norm)?,
            qkv: self.linear(&attention.qkv)?,
            gate: attention.gate.as_ref().map(|gate| self.linear(gate)).transpose()?,
            output: self.summed(&attention.output, attention.join.is_some())?,
            join: self.join(attention.join.as_ref())?,
            head_norms: head_norms.transpose()?,
            turning: self.turning(index)?,
            heads: self.on.cut.heads(attention.heads),
            kv_heads: self.on.cut.kv_heads(attention.kv_heads),
            head_dim: attention.head_dim,
            scale: attention.scale,
            window: attention.window,
            softcap: attention.softcap,
            sinks: attention.sinks.as_ref().map(|sinks| self.device.upload(sinks)).transpose()?,
            cache_layer: match self.spec.cache_of(index) {
                CacheKind::Shared(earlier) => earlier,
                _ => index,
            },
            reads_only: attention.reads_only,
        })
    }

    pub(super) fn turning(&mut self, index: usize) -> Result<Arc<Turning>> {
        let rope = self.spec.rope_of(index);
        if let Some((_, known)) = self.turnings.iter().find(|(known, _)| known.as_ref() == rope) {
            return Ok(Arc::clone(known));
        }
        let turning = Arc::new(Turning::new(self.device, rope, self.spec.rope.style, self.context)?);
        self.turnings.push((rope.cloned(), Arc::clone(&turning)));
        Ok(turning)
    }

    pub(super) fn vector(&self, vector: &Tensor) -> Result<Buffer> {
        Ok(self.device.upload(&vector.to_vec1::<f32>()?)?)
    }

    /// Those of all experts, one below the other; all have one or none has.
    pub(super) fn biases<'l>(
        &self,
        experts: impl Iterator<Item = &'l layers::Linear<Matrix>>,
    ) -> Result<Option<Buffer>> {
        let mut all = Vec::new();
        for bias in experts.filter_map(|linear| linear.bias.as_ref()) {
            all.extend(bias.to_vec1::<f32>()?);
        }
        Ok(if all.is_empty() { None } else { Some(self.device.upload(&all)?) })
    }

    pub(super) fn linear(&self, linear: &layers::Linear<Matrix>) -> Result<GpuLinear> {
        let bias = linear.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        Ok(GpuLinear { weight: linear.weight.clone(), bias })
    }

    /// The same of one whose products are summed over the ranks: its bias is added to the sum, or by one rank alone.
    fn summed(&self, linear: &layers::Linear<Matrix>, to_sum: bool) -> Result<GpuLinear> {
        let GpuLinear { weight, bias } = self.linear(linear)?;
        Ok(GpuLinear { weight, bias: bias.filter(|_| to_sum || self.on.cut.share.rank == 0) })
    }

    pub(super) fn norm(&self, norm: &Norm) -> Result<GpuNorm> {
        Ok(match norm {
            Norm::None => GpuNorm::None,
            Norm::Rms(norm) => GpuNorm::Rms { weight: self.vector(&norm.weight)?, eps: norm.eps },
            Norm::Layer { weight, bias, eps } => GpuNorm::Layer {
                weight: self.vector(weight)?,
                bias: bias.as_ref().map(|bias| self.vector(bias)).transpose()?,
                eps: *eps,
            },
        })
    }

    pub(super) fn join(&self, join: Option<&Join>) -> Result<Option<GpuJoin>> {
        let Some(Join { norm, scale }) = join else { return Ok(None) };
        let norm = norm.as_ref().map(|norm| Ok::<_, Error>((self.vector(&norm.weight)?, norm.eps))).transpose()?;
        Ok(Some(GpuJoin { norm, scale: *scale }))
    }
}

pub(super) fn between(activation: Prologue) -> Result<Between> {
    Ok(match activation {
        Prologue::SiluMul => Between::Gated(Gate::Silu),
        Prologue::GeluTanhMul => Between::Gated(Gate::GeluTanh),
        Prologue::ClampedSwigluMul => Between::Gated(Gate::ClampedSwiglu),
        Prologue::GeluTanh | Prologue::Activation(Activation::GeluTanh) => Between::Active(Active::GeluTanh),
        Prologue::Activation(Activation::Gelu) => Between::Active(Active::Gelu),
        Prologue::Activation(Activation::Relu) => Between::Active(Active::Relu),
        Prologue::None | Prologue::RmsNorm { .. } | Prologue::LayerNorm { .. } | Prologue::GeluMul => {
            return Err(Error::Batch("a feed-forward block without an activation that GPUs have".to_owned()));
        }
    })
}
