//! A decoder's weights as they are, for back ends that compile programs of their own: the matrices in their files' formats,
//! vectors in F32, found and checked by the same assembler as everywhere.
//!
//! Only decoders that are plain: RMSNorm before attention and before a gated SiLU block, rotary positions in all layers,
//! nothing scaled. What else a model asks for is refused by name before weights are read.

use candle_core::{Device, Tensor};
use sconce_kernels::Weight;

use crate::assemble::{Assembler, Place};
use crate::batch::BatchInput;
use crate::check::{self, CacheSizes};
use crate::decoder::{Decoder, FeedForward, Layer};
use crate::error::{Error, Result};
use crate::family::Family;
use crate::layers::{Linear, Mixer, Norm};
use crate::load::{LoadOptions, Progress, Source, open_any};
use crate::spec::{Activation, NormKind, Norms, QkNorm, Scales, Spec, Uneven};

/// Matrices of one input, one below the other: `[out, input]`. Clones share their bytes.
#[derive(Clone)]
pub struct PlainMatrix {
    parts: Vec<Weight>,
}

/// `x W^T + bias`
pub struct PlainLinear {
    pub weight: PlainMatrix,
    /// `[out]`
    pub bias: Option<Vec<f32>>,
}

/// One layer; norms have the weights `[hidden]`, or `[head_dim]` where they are of heads.
pub struct PlainLayer {
    pub attention_norm: Vec<f32>,
    /// Query above key above value, `[(heads + 2 * kv_heads) * head_dim, hidden]`
    pub qkv: PlainLinear,
    /// Of query and key, where they are normed before the rotation.
    pub head_norms: Option<(Vec<f32>, Vec<f32>)>,
    pub output: PlainLinear,
    pub mlp_norm: Vec<f32>,
    /// Gate above up, `[2 * ffn, hidden]`
    pub gate_up: PlainLinear,
    pub down: PlainLinear,
}

pub struct PlainDecoder {
    pub spec: Spec,
    /// `[vocab, hidden]`
    pub embedding: PlainMatrix,
    pub layers: Vec<PlainLayer>,
    pub final_norm: Vec<f32>,
    /// `[vocab, hidden]`; `None` where it is the embedding.
    pub head: Option<PlainMatrix>,
    /// The longest context that will be served.
    context: u32,
}

impl PlainMatrix {
    pub fn out(&self) -> usize {
        self.parts.iter().map(Weight::out).sum()
    }

    pub fn input(&self) -> usize {
        self.parts[0].input()
    }

    /// Hands out the rows in order, in F32.
    pub fn each_row(&self, mut take: impl FnMut(&[f32])) {
        let mut row = vec![0.0; self.input()];
        for part in &self.parts {
            for index in 0..part.out() {
                part.row_f32(index, &mut row);
                take(&row);
            }
        }
    }
}

/// Weights stay where they are.
struct AsTheyAre;

impl Place for AsTheyAre {
    type Matrix = PlainMatrix;

    fn matrix(&mut self, weights: &[&Weight]) -> Result<PlainMatrix> {
        Ok(PlainMatrix { parts: weights.iter().map(|weight| (*weight).clone()).collect() })
    }
}

impl PlainDecoder {
    /// Finds and checks every tensor of a model; matrices are read when they are asked for.
    pub fn load(source: &Source, options: LoadOptions) -> Result<Self> {
        let report = options.progress.as_ref();
        let (spec, weights) = open_any(source, options.quantize.as_ref(), report)?;
        check_spec(&spec, source)?;
        let context = options.max_model_len.unwrap_or(spec.context_max);
        let progress = Progress::new(spec.weight_bytes, report);
        let decoder = Assembler::new(weights, Device::Cpu, AsTheyAre, progress).decoder(spec, context)?;
        Progress::new(decoder.spec.weight_bytes, report).finish();
        let Decoder { spec, embedding, layers, final_norm, head, .. } = decoder;
        let head = if spec.tied_embeddings { None } else { Some(head.weight) };
        let layers = layers.into_iter().map(plain).collect::<Result<_>>()?;
        Ok(Self { spec, embedding, layers, final_norm: norm(&final_norm)?, head, context })
    }

    /// Cosines and sines of the positions from 0 on, each `[positions, pairs]`.
    pub fn angles(&self, positions: u32) -> (Vec<f32>, Vec<f32>) {
        let rope = &self.spec.rope;
        let (frequencies, factor) = (rope.inverse_frequencies(self.context), rope.attention_factor());
        let angle = |position: u32, frequency: &f32| f64::from(position as f32 * frequency);
        let all = || (0..positions).flat_map(|position| frequencies.iter().map(move |one| angle(position, one)));
        // As on the CPU: the product in f32, its cosine in f64.
        (
            all().map(|angle| angle.cos() as f32 * factor).collect(),
            all().map(|angle| angle.sin() as f32 * factor).collect(),
        )
    }
}

/// Refuses a batch that contradicts itself or a cache of `blocks` blocks of `block_size` tokens.
pub fn check_batch(batch: &BatchInput, spec: &Spec, blocks: u32, block_size: u32) -> Result<()> {
    check::check_batch(batch, spec, CacheSizes { layers: spec.layers, state_slots: 0, blocks, block_size })
}

/// Refuses a model that is not plain, by the first thing that it asks for.
pub fn check_spec(spec: &Spec, source: &Source) -> Result<()> {
    let Some(feature) = beyond_plain(spec) else { return Ok(()) };
    let file = match source {
        Source::Gguf(path) | Source::Folder(path) => path.clone(),
        Source::Dummy(name) => format!("dummy:{name}").into(),
    };
    let feature = format!("{} ({feature}) through a pjrt plugin", spec.architecture);
    Err(Error::Unsupported { file, feature, next: "use --device cpu" })
}

fn beyond_plain(spec: &Spec) -> Option<&'static str> {
    let is_known = matches!(spec.family, Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3);
    let plain = [
        (spec.experts.is_none(), "experts"),
        (spec.latent.is_none(), "latent attention"),
        (spec.uneven == Uneven::default(), "layers that differ from each other"),
        (!spec.sinks, "attention sinks"),
        (spec.norm == NormKind::Rms && spec.norms == Norms::Before, "norms in other places"),
        (spec.qk_norm != QkNorm::Width, "a norm over all heads"),
        (spec.activation == Activation::Silu && spec.gated, "another activation"),
        (spec.scales == Scales::plain(spec.head_dim), "scaled activations"),
        (spec.local_rope.is_none() && !spec.unrotated.contains(&true), "rotations that differ by layer"),
        (is_known, "a family that was not tried there"),
    ];
    plain.iter().find(|(is_plain, _)| !is_plain).map(|(_, feature)| *feature)
}

fn plain(layer: Layer<PlainMatrix>) -> Result<PlainLayer> {
    let (Mixer::Attention(attention), FeedForward::Dense(mlp)) = (layer.attention, layer.mlp) else {
        unreachable!("refused before weights were read");
    };
    let head_norms =
        attention.head_norms.as_ref().map(|norms| Ok::<_, Error>((vector(&norms.query)?, vector(&norms.key)?)));
    Ok(PlainLayer {
        attention_norm: norm(&attention.norm)?,
        qkv: linear(attention.qkv)?,
        head_norms: head_norms.transpose()?,
        output: linear(attention.output)?,
        mlp_norm: norm(&mlp.norm)?,
        gate_up: linear(mlp.gate_up)?,
        down: linear(mlp.down)?,
    })
}

fn norm(norm: &Norm) -> Result<Vec<f32>> {
    let Norm::Rms(norm) = norm else { unreachable!("refused before weights were read") };
    vector(&norm.weight)
}

fn linear(linear: Linear<PlainMatrix>) -> Result<PlainLinear> {
    let bias = linear.bias.as_ref().map(vector).transpose()?;
    Ok(PlainLinear { weight: linear.weight, bias })
}

fn vector(vector: &Tensor) -> Result<Vec<f32>> {
    Ok(vector.to_vec1()?)
}
