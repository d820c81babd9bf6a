//! Dummy models: true shapes, made-up weights, for throughput work on machines without the real ones.
//!
//! The weights are pseudo-random with a fixed seed (the same numbers on every run), about as large as trained ones, and
//! really there: each matrix has memory of its own, so that a step reads what it would read of a real model.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use sconce_kernels::{DeltaSizes, GgmlType, HeadOrder, RopeStyle, Weight};

use crate::error::{Error, Result, shown};
use crate::family::Family;
use crate::names::{LayerPart, Part};
use crate::spec::{Activation, DeltaRule, NormKind, Norms, QkNorm, RopeScaling, RopeSpec, Scales, Spec, Uneven};

/// Standard deviation of the weights.
const SCALE: f32 = 0.02;
/// Matrices are filled from runs of one piece of noise this long.
const NOISE_BYTES: usize = 1 << 20;

/// One built-in shape, as its model's published config gives it.
struct Shape {
    name: &'static str,
    family: Family,
    layers: usize,
    hidden: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    context_max: u32,
    theta: f64,
    /// Factor of llama3 rope scaling, 0 for none.
    llama3_factor: f64,
    tied: bool,
}

#[rustfmt::skip]
const fn shape(
    name: &'static str, family: Family, sizes: [usize; 7], context_max: u32, rope: (f64, f64), tied: bool,
) -> Shape {
    let [layers, hidden, ffn, heads, kv_heads, head_dim, vocab] = sizes;
    let (theta, llama3_factor) = rope;
    Shape {
        name, family, layers, hidden, ffn, heads, kv_heads, head_dim, vocab, context_max, theta, llama3_factor, tied,
    }
}

// name, family, [layers, hidden, ffn, heads, kv heads, head size, vocabulary], context, (theta, llama3 factor), tied
#[rustfmt::skip]
const SHAPES: [Shape; 16] = [
    shape("tiny", Family::Llama, [2, 64, 128, 4, 2, 16, 256], 2048, (1e4, 0.0), true),
    shape("smollm2-135m", Family::Llama, [30, 576, 1536, 9, 3, 64, 49152], 8192, (1e5, 0.0), true),
    shape("smollm2-360m", Family::Llama, [32, 960, 2560, 15, 5, 64, 49152], 8192, (1e5, 0.0), true),
    shape("smollm2-1.7b", Family::Llama, [24, 2048, 8192, 32, 32, 64, 49152], 8192, (1.3e5, 0.0), true),
    shape("llama-3.2-1b", Family::Llama, [16, 2048, 8192, 32, 8, 64, 128256], 131072, (5e5, 32.0), true),
    shape("llama-3.2-3b", Family::Llama, [28, 3072, 8192, 24, 8, 128, 128256], 131072, (5e5, 32.0), true),
    shape("llama-3.1-8b", Family::Llama, [32, 4096, 14336, 32, 8, 128, 128256], 131072, (5e5, 8.0), false),
    shape("mistral-7b", Family::Mistral, [32, 4096, 14336, 32, 8, 128, 32768], 32768, (1e6, 0.0), false),
    shape("qwen2.5-0.5b", Family::Qwen2, [24, 896, 4864, 14, 2, 64, 151936], 32768, (1e6, 0.0), true),
    shape("qwen2.5-1.5b", Family::Qwen2, [28, 1536, 8960, 12, 2, 128, 151936], 32768, (1e6, 0.0), true),
    shape("qwen2.5-7b", Family::Qwen2, [28, 3584, 18944, 28, 4, 128, 152064], 32768, (1e6, 0.0), false),
    shape("qwen3-0.6b", Family::Qwen3, [28, 1024, 3072, 16, 8, 128, 151936], 40960, (1e6, 0.0), true),
    shape("qwen3-1.7b", Family::Qwen3, [28, 2048, 6144, 16, 8, 128, 151936], 40960, (1e6, 0.0), true),
    shape("qwen3-4b", Family::Qwen3, [36, 2560, 9728, 32, 8, 128, 151936], 40960, (1e6, 0.0), true),
    shape("qwen3-8b", Family::Qwen3, [36, 4096, 12288, 32, 8, 128, 151936], 40960, (1e6, 0.0), false),
    shape("qwen3.5-0.8b", Family::Qwen35, [24, 1024, 3584, 8, 2, 256, 248320], 262144, (1e7, 0.0), true),
];

/// Formats that a name may ask for after a colon; the first is the default.
const FORMATS: [(&str, GgmlType); 6] = [
    ("bf16", GgmlType::Bf16),
    ("f16", GgmlType::F16),
    ("f32", GgmlType::F32),
    ("q8_0", GgmlType::Q8_0),
    ("q4_0", GgmlType::Q4_0),
    ("q4_1", GgmlType::Q4_1),
];

/// Names that [`crate::Source::Dummy`] takes, without the optional `:FORMAT`.
pub fn dummy_shapes() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// The spec and the weights of `NAME` or `NAME:FORMAT`.
pub(crate) fn open(name: &str) -> Result<(Spec, DummyWeights)> {
    let (shape_name, format_name) = name.split_once(':').unwrap_or((name, FORMATS[0].0));
    let refused = |detail: String| Error::Dummy {
        name: shown(name),
        detail,
        known: dummy_shapes().collect::<Vec<_>>().join(", "),
    };
    let shape = SHAPES
        .iter()
        .find(|shape| shape.name.eq_ignore_ascii_case(shape_name))
        .ok_or_else(|| refused("there is no such shape".to_owned()))?;
    let known_formats = || FORMATS.map(|(name, _)| name).join(", ");
    let &(_, format) = FORMATS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(format_name))
        .ok_or_else(|| refused(format!("format {} is none of {}", shown(format_name), known_formats())))?;
    Ok((spec(shape, format), DummyWeights::new(format)))
}

fn spec(shape: &Shape, format: GgmlType) -> Spec {
    let scaling = if shape.llama3_factor > 0.0 {
        RopeScaling::Llama3 {
            factor: shape.llama3_factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        }
    } else {
        RopeScaling::None
    };
    let mut spec = Spec {
        architecture: format!("dummy:{}", shape.name),
        family: shape.family,
        layers: shape.layers,
        hidden: shape.hidden,
        ffn: shape.ffn,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        vocab: shape.vocab,
        context_max: shape.context_max,
        norm_eps: if matches!(shape.family, Family::Llama | Family::Mistral) { 1e-5 } else { 1e-6 },
        rope: RopeSpec { theta: shape.theta, style: RopeStyle::Halves, rotated: rotated(shape), scaling },
        local_rope: None,
        unrotated: Vec::new(),
        tied_embeddings: shape.tied,
        qkv_bias: shape.family == Family::Qwen2,
        output_bias: false,
        mlp_bias: false,
        qk_norm: match shape.family {
            Family::Qwen3 | Family::Qwen35 => QkNorm::Heads,
            _ => QkNorm::None,
        },
        norm: NormKind::Rms,
        norms: Norms::Before,
        activation: Activation::Silu,
        gated: true,
        scales: Scales::plain(shape.head_dim),
        sinks: false,
        sliding_window: None,
        experts: None,
        latent: None,
        uneven: uneven(shape),
        notes: Vec::new(),
        weight_format: format.name().to_owned(),
        parameters: 0,
        weight_bytes: 0,
        fp8_bytes: 0,
    };
    let matrices = spec.matrix_parameters();
    let vectors = spec.vector_parameters();
    spec.parameters = matrices + vectors;
    // Matrices in their format, vectors in f32.
    spec.weight_bytes =
        matrices / format.block_elements() as u64 * format.block_bytes() as u64 + vectors * size_of::<f32>() as u64;
    spec
}

/// A quarter of each head in models with the delta rule.
fn rotated(shape: &Shape) -> usize {
    if shape.family == Family::Qwen35 { shape.head_dim / 4 } else { shape.head_dim }
}

/// Three of four layers are the delta rule in Qwen3.5.
fn uneven(shape: &Shape) -> Uneven {
    if shape.family != Family::Qwen35 {
        return Uneven::default();
    }
    let order = HeadOrder::Grouped;
    let sizes = DeltaSizes { key_heads: 16, value_heads: 16, key_dim: 128, value_dim: 128, taps: 4, order };
    let layers = (1..=shape.layers).map(|layer| layer % 4 != 0).collect();
    Uneven { delta: Some(DeltaRule { sizes, layers }), output_gate: true, ..Uneven::default() }
}

pub(crate) struct DummyWeights {
    format: GgmlType,
    /// Whole blocks of noise.
    noise: Vec<u8>,
    random: Random,
}

impl DummyWeights {
    fn new(format: GgmlType) -> Self {
        let mut random = Random(0x5c0_9ce5_eed0_2026);
        let mut noise = Vec::with_capacity(NOISE_BYTES + format.block_bytes());
        while noise.len() < NOISE_BYTES {
            push_block(&mut noise, format, &mut random);
        }
        Self { format, noise, random }
    }

    /// Of the format of all matrices.
    #[cfg(feature = "gpu")]
    pub fn block_elements(&self) -> usize {
        self.format.block_elements()
    }

    pub fn matrix(&mut self, out: usize, input: usize) -> Result<Weight> {
        let block_bytes = self.format.block_bytes();
        let total = out * input / self.format.block_elements() * block_bytes;
        let blocks = self.noise.len() / block_bytes;
        let mut bytes = Vec::with_capacity(total);
        while bytes.len() < total {
            // A run from a random block on, so that no two rows are alike.
            let start = self.random.below(blocks / 2) * block_bytes;
            let run = (self.noise.len() - start).min(total - bytes.len());
            bytes.extend_from_slice(&self.noise[start..start + run]);
        }
        Ok(Weight::new(self.format, out, input, Arc::new(bytes), 0)?)
    }

    /// Norms are ones, biases small. The tensor and its bytes.
    pub fn vector(&self, part: Part, len: usize, device: &Device) -> Result<(Tensor, u64)> {
        use LayerPart::{DownBias, GateBias, KeyBias, OutputBias, QueryBias, UpBias, ValueBias};
        let is_bias =
            matches!(part, Part::Layer(_, QueryBias | KeyBias | ValueBias | OutputBias | GateBias | UpBias | DownBias));
        let value = if is_bias { SCALE } else { 1.0 };
        Ok((Tensor::full(value, len, device)?, (len * size_of::<f32>()) as u64))
    }
}

/// Appends one block whose values have mean 0 (about) and standard deviation [`SCALE`].
fn push_block(noise: &mut Vec<u8>, format: GgmlType, random: &mut Random) {
    // Deviation of a uniform byte in -127..=127, and of a uniform nibble.
    const BYTE_DEVIATION: f32 = 73.6;
    const NIBBLE_DEVIATION: f32 = 4.61;
    match format {
        GgmlType::F16 => noise.extend_from_slice(&f16::from_f32(random.weight()).to_le_bytes()),
        GgmlType::Bf16 => noise.extend_from_slice(&bf16::from_f32(random.weight()).to_le_bytes()),
        GgmlType::Q8_0 => {
            noise.extend_from_slice(&f16::from_f32(SCALE / BYTE_DEVIATION).to_le_bytes());
            noise.extend((0..32).map(|_| (random.below(255) as i32 - 127) as i8 as u8));
        }
        GgmlType::Q4_0 | GgmlType::Q4_1 => {
            let step = SCALE / NIBBLE_DEVIATION;
            noise.extend_from_slice(&f16::from_f32(step).to_le_bytes());
            if format == GgmlType::Q4_1 {
                noise.extend_from_slice(&f16::from_f32(-7.5 * step).to_le_bytes());
            }
            noise.extend((0..16).map(|_| random.below(256) as u8));
        }
        _ => noise.extend_from_slice(&random.weight().to_le_bytes()),
    }
}

/// xorshift64* (Vigna, arXiv 1402.6246).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    /// Uniform with standard deviation [`SCALE`].
    fn weight(&mut self) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1_u32 << 24) as f32;
        (2.0 * unit - 1.0) * SCALE * 3_f32.sqrt()
    }
}
