//! Builds a decoder: every tensor that the spec asks for, found, checked, and put in its place.

use candle_core::{Device, Tensor};
use sconce_kernels::{Arena, AttentionParams, PackedWeight, Precision, RopeTable, Weight};

use crate::decoder::{Decoder, Layer};
use crate::dummy::DummyWeights;
use crate::error::{Error, Result};
use crate::layers::{Attention, Linear, Mlp, Norm};
use crate::load::Progress;
use crate::names::{LayerPart, Part};
use crate::spec::Spec;
use crate::tensors::TensorSet;

/// Where weights come from.
pub(crate) enum WeightSource {
    Files(TensorSet),
    Dummy(DummyWeights),
}

/// Hands out weights and keeps count of what was asked for.
pub(crate) struct Assembler<'a> {
    source: WeightSource,
    device: Device,
    progress: Progress<'a>,
    used: Vec<Part>,
    precision: Precision,
    arena: Arena,
}

/// A projection's two parts.
type Parts = (LayerPart, LayerPart);
const QUERY: Parts = (LayerPart::Query, LayerPart::QueryBias);
const KEY: Parts = (LayerPart::Key, LayerPart::KeyBias);
const VALUE: Parts = (LayerPart::Value, LayerPart::ValueBias);
const OUTPUT: Parts = (LayerPart::Output, LayerPart::OutputBias);
const GATE: Parts = (LayerPart::Gate, LayerPart::GateBias);
const UP: Parts = (LayerPart::Up, LayerPart::UpBias);
const DOWN: Parts = (LayerPart::Down, LayerPart::DownBias);

impl<'a> Assembler<'a> {
    pub fn new(source: WeightSource, device: Device, precision: Precision, progress: Progress<'a>) -> Self {
        Self { source, device, progress, used: Vec::new(), precision, arena: Arena::default() }
    }

    pub fn decoder(mut self, spec: Spec) -> Result<Decoder> {
        let embedding = self.packed(&[(Part::Embedding, spec.vocab)], spec.hidden)?;
        let layers = (0..spec.layers).map(|index| self.layer(&spec, index)).collect::<Result<Vec<_>>>()?;
        let final_norm = self.norm(Part::FinalNorm, &spec)?;
        let head = if spec.tied_embeddings {
            embedding.clone()
        } else {
            self.packed(&[(Part::Head, spec.vocab)], spec.hidden)?
        };
        if let WeightSource::Files(tensors) = &self.source {
            tensors.refuse_unused(&self.used, spec.tied_embeddings)?;
        }
        let frequencies = spec.rope.inverse_frequencies(spec.head_dim);
        let (positions, factor) = (spec.context_max as usize, spec.rope.attention_factor());
        let rope_table = RopeTable::new(&frequencies, positions, factor, &self.device)?;
        let head = Linear { weight: head, bias: None };
        Ok(Decoder { spec, device: self.device, embedding, layers, final_norm, head, rope_table })
    }

    fn layer(&mut self, spec: &Spec, index: usize) -> Result<Layer> {
        let (hidden, ffn, head_dim) = (spec.hidden, spec.ffn, spec.head_dim);
        let (queries, kvs) = (spec.query_width(), spec.kv_width());
        let part = |part| Part::Layer(index, part);
        let head_norms = if spec.qk_norm {
            let query = self.vector(part(LayerPart::QueryNorm), head_dim)?;
            Some((query, self.vector(part(LayerPart::KeyNorm), head_dim)?))
        } else {
            None
        };
        let attention = Attention {
            norm: self.norm(part(LayerPart::AttentionNorm), spec)?,
            qkv: self.linear(index, &[(QUERY, queries), (KEY, kvs), (VALUE, kvs)], hidden, spec.qkv_bias)?,
            output: self.linear(index, &[(OUTPUT, hidden)], queries, spec.output_bias)?,
            head_norms,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim,
            params: AttentionParams {
                scale: (head_dim as f64).sqrt().recip() as f32,
                window: spec.window(index),
                softcap: None,
            },
        };
        let mlp = Mlp {
            norm: self.norm(part(LayerPart::MlpNorm), spec)?,
            gate_up: self.linear(index, &[(GATE, ffn), (UP, ffn)], hidden, spec.mlp_bias)?,
            down: self.linear(index, &[(DOWN, hidden)], ffn, spec.mlp_bias)?,
        };
        Ok(Layer { attention, mlp })
    }

    fn norm(&mut self, part: Part, spec: &Spec) -> Result<Norm> {
        Ok(Norm { weight: self.vector(part, spec.hidden)?, eps: spec.norm_eps })
    }

    /// Projections of one input, each with its number of outputs, as one.
    fn linear(&mut self, index: usize, all: &[(Parts, usize)], input: usize, has_bias: bool) -> Result<Linear> {
        let parts: Vec<_> = all.iter().map(|((weight, _), out)| (Part::Layer(index, *weight), *out)).collect();
        let weight = self.packed(&parts, input)?;
        let mut biases = Vec::new();
        if has_bias {
            for ((_, bias), out) in all {
                biases.push(self.vector(Part::Layer(index, *bias), *out)?);
            }
        }
        let bias = if has_bias { Some(Tensor::cat(&biases, 0)?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// Matrices of one input, packed; what the files had of them in memory is given back.
    fn packed(&mut self, parts: &[(Part, usize)], input: usize) -> Result<PackedWeight> {
        let weights =
            parts.iter().map(|(part, out)| self.matrix(*part, *out, input)).collect::<Result<Vec<_>, Error>>()?;
        let packed = PackedWeight::new(&weights.iter().collect::<Vec<_>>(), self.precision, &mut self.arena)?;
        for (weight, (part, _)) in weights.iter().zip(parts) {
            if let WeightSource::Files(tensors) = &self.source {
                tensors.read_once(*part);
            }
            self.progress.add(weight.bytes().len() as u64);
        }
        Ok(packed)
    }

    fn matrix(&mut self, part: Part, out: usize, input: usize) -> Result<Weight> {
        self.used.push(part);
        match &mut self.source {
            WeightSource::Files(tensors) => tensors.matrix(part, out, input),
            WeightSource::Dummy(dummy) => dummy.matrix(out, input),
        }
    }

    fn vector(&mut self, part: Part, len: usize) -> Result<Tensor> {
        self.used.push(part);
        let (vector, bytes) = match &self.source {
            WeightSource::Files(tensors) => tensors.vector(part, len, &self.device)?,
            WeightSource::Dummy(dummy) => dummy.vector(part, len, &self.device)?,
        };
        self.progress.add(bytes);
        Ok(vector)
    }
}
