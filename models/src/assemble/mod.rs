//! Builds a decoder: every tensor that the spec asks for, found, checked, and put in its place.

mod delta;
mod experts;
mod latent;
mod layer;
mod uneven;

use candle_core::{Device, Tensor};
use sconce_kernels::{Arena, PackedWeight, Precision, Prologue, RopeTable, Weight};

use crate::adapter::AdapterSet;
use crate::decoder::Decoder;
use crate::dummy::DummyWeights;
use crate::error::{Error, Result};
use crate::family::FamilyTraits;
use crate::layers::{Join, Linear, Norm, RmsNorm};
use crate::load::Progress;
use crate::names::{LayerPart, Part};
use crate::packed::Shelf;
use crate::quantised::Fp8Matrix;
use crate::spec::{Activation, NormKind, RopeSpec, Spec};
use crate::tensors::TensorSet;

/// Where weights come from.
pub(crate) enum WeightSource {
    Files(TensorSet),
    Dummy(DummyWeights),
}

/// Hands out weights and keeps count of what was asked for.
pub(crate) struct Assembler<'a, P> {
    source: WeightSource,
    device: Device,
    progress: Progress<'a>,
    used: Vec<Part>,
    place: P,
}

/// Where matrices are multiplied with, and the form that they have there.
pub(crate) trait Place {
    type Matrix: Clone;

    /// Whether it may take matrices as FP8.
    const KEEPS_FP8: bool = false;

    /// Matrices of one input, one below the other. Nothing of `weights` is needed afterwards.
    fn matrix(&mut self, weights: &[&Weight]) -> Result<Self::Matrix>;

    /// The same for one of a layer's experts, which a place may want to lay together.
    fn expert(&mut self, weights: &[&Weight]) -> Result<Self::Matrix> {
        self.matrix(weights)
    }

    /// Matrices of one input that their file has in FP8, where this place keeps them so; `None` wants them plain.
    fn fp8(&mut self, _matrices: &[Fp8Matrix], _role: Role) -> Result<Option<Self::Matrix>> {
        Ok(None)
    }

    /// What this place takes of a matrix: all of it, or its own part where places share a model.
    fn share(&self, _part: Part, weight: &Weight) -> Result<Weight> {
        Ok(weight.clone())
    }

    /// The same of a vector.
    fn share_vector(&self, _part: Part, vector: Tensor) -> Result<Tensor> {
        Ok(vector)
    }

    /// The matrix of these parts, each with its rows, if it is there without their weights.
    fn ready(&mut self, _parts: &[(Part, usize)], _input: usize) -> Option<Self::Matrix> {
        None
    }

    /// These parts were laid down as this matrix.
    fn laid(&mut self, _parts: &[(Part, usize)], _matrix: &Self::Matrix) {}

    /// All matrices are there.
    fn close(self)
    where
        Self: Sized,
    {
    }
}

/// What a matrix is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Product,
    /// Products of one of a layer's experts.
    Expert,
    /// Rows are looked up.
    Table,
}

/// Packed for the CPU.
pub(crate) struct OnCpu {
    precision: Precision,
    arena: Arena,
    shelf: Option<Shelf>,
}

impl OnCpu {
    pub fn new(precision: Precision) -> Self {
        Self::with(precision, None)
    }

    /// With what earlier loads packed, and a place for what this one does.
    pub fn with(precision: Precision, shelf: Option<Shelf>) -> Self {
        Self { precision, arena: Arena::default(), shelf }
    }
}

impl Place for OnCpu {
    type Matrix = PackedWeight;

    fn matrix(&mut self, weights: &[&Weight]) -> Result<PackedWeight> {
        Ok(PackedWeight::new(weights, self.precision, &mut self.arena)?)
    }

    fn ready(&mut self, parts: &[(Part, usize)], input: usize) -> Option<PackedWeight> {
        self.shelf.as_mut()?.take(parts, input, self.precision)
    }

    fn laid(&mut self, parts: &[(Part, usize)], matrix: &PackedWeight) {
        if let Some(shelf) = &mut self.shelf {
            shelf.lay(parts, matrix);
        }
    }

    fn close(self) {
        if let Some(shelf) = self.shelf {
            shelf.close();
        }
    }
}

/// What the layers of one decoder share while they are built.
struct Plan<'a> {
    spec: &'a Spec,
    traits: &'static FamilyTraits,
    /// Rotation of most layers, of those with a window, and of those with none.
    rope: RopeTable,
    local_rope: RopeTable,
    no_rope: RopeTable,
}

/// A projection's weight and bias.
type Parts = (LayerPart, LayerPart);

impl<'a, P: Place> Assembler<'a, P> {
    /// `device` has the vectors; `place` makes the matrices.
    pub fn new(source: WeightSource, device: Device, place: P, progress: Progress<'a>) -> Self {
        Self { source, device, progress, used: Vec::new(), place }
    }

    /// `context` is the longest that will be served.
    pub fn decoder(mut self, spec: Spec, context: u32) -> Result<Decoder<P::Matrix>> {
        let plan = self.plan(&spec, context)?;
        let embedding = self.placed(&[(Part::Embedding, spec.vocab)], spec.hidden, Role::Table)?;
        let own_inputs = self.own_inputs(&plan)?;
        let layers = (0..spec.layers).map(|index| self.layer(&plan, index)).collect::<Result<Vec<_>>>()?;
        let final_norm = self.norm(&plan, Part::FinalNorm, Part::FinalNormBias)?;
        let head = if spec.tied_embeddings {
            embedding.clone()
        } else {
            self.packed(&[(Part::Head, spec.vocab)], spec.hidden)?
        };
        if let WeightSource::Files(tensors) = &self.source {
            tensors.refuse_unused(&self.used, spec.tied_embeddings)?;
        }
        self.place.close();
        let head = Linear { weight: head, bias: None };
        let adapters = AdapterSet::default();
        Ok(Decoder { spec, device: self.device, embedding, own_inputs, layers, final_norm, head, adapters })
    }

    fn plan<'s>(&self, spec: &'s Spec, context: u32) -> Result<Plan<'s>> {
        let positions = spec.context_max as usize;
        let table = |rope: &RopeSpec| {
            RopeTable::new(&rope.inverse_frequencies(context), positions, rope.attention_factor(), &self.device)
        };
        let rope = table(&spec.rope)?;
        let local_rope = spec.local_rope.as_ref().map_or_else(|| Ok(rope.clone()), table)?;
        Ok(Plan { spec, traits: spec.family.traits(), rope, local_rope, no_rope: RopeTable::identity(positions) })
    }

    /// The norm that stands before a block.
    fn norm(&mut self, plan: &Plan, part: Part, bias: Part) -> Result<Norm> {
        let NormKind::Layer { has_bias } = plan.spec.norm else { return Ok(Norm::Rms(self.rms_norm(plan, part)?)) };
        let weight = self.norm_weight(plan, part, plan.spec.hidden)?;
        let bias = if has_bias { Some(self.vector(bias, plan.spec.hidden)?) } else { None };
        Ok(Norm::Layer { weight, bias, eps: plan.spec.norm_eps })
    }

    fn rms_norm(&mut self, plan: &Plan, part: Part) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: self.norm_weight(plan, part, plan.spec.hidden)?, eps: plan.spec.norm_eps })
    }

    fn norm_weight(&mut self, plan: &Plan, part: Part, len: usize) -> Result<Tensor> {
        let weight = self.vector(part, len)?;
        // A GGUF's converter has added the one already, and dummies are ones.
        let is_less_one = matches!(&self.source, WeightSource::Files(tensors) if tensors.is_hugging_face());
        if plan.traits.norms_less_one && is_less_one { Ok(weight.affine(1.0, 1.0)?) } else { Ok(weight) }
    }

    /// What happens to a block's result on its way to the hidden state; `norm` if the family has one there.
    fn join(&mut self, plan: &Plan, norm: Option<Part>) -> Result<Option<Join>> {
        let scale = plan.spec.scales.residual;
        let norm = norm.map(|part| self.rms_norm(plan, part)).transpose()?;
        Ok(if norm.is_some() || scale != 1.0 { Some(Join { norm, scale }) } else { None })
    }

    /// Projections of one input, each with its number of outputs, as one.
    fn linear(
        &mut self,
        layer: usize,
        all: &[(Parts, usize)],
        input: usize,
        has_bias: bool,
    ) -> Result<Linear<P::Matrix>> {
        let weight = self.packed(&weights_of(layer, all), input)?;
        self.biased(weight, (layer, all), has_bias)
    }

    /// The same of an expert.
    fn expert_linear(
        &mut self,
        layer: usize,
        all: &[(Parts, usize)],
        input: usize,
        has_bias: bool,
    ) -> Result<Linear<P::Matrix>> {
        let weight = self.placed(&weights_of(layer, all), input, Role::Expert)?;
        self.biased(weight, (layer, all), has_bias)
    }

    fn biased(
        &mut self,
        weight: P::Matrix,
        (layer, all): (usize, &[(Parts, usize)]),
        has_bias: bool,
    ) -> Result<Linear<P::Matrix>> {
        let mut biases = Vec::new();
        if has_bias {
            for ((_, bias), out) in all {
                biases.push(self.vector(Part::Layer(layer, *bias), *out)?);
            }
        }
        let bias = if has_bias { Some(Tensor::cat(&biases, 0)?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// Matrices of one input, packed; what the files had of them in memory is given back.
    fn packed(&mut self, parts: &[(Part, usize)], input: usize) -> Result<P::Matrix> {
        self.placed(parts, input, Role::Product)
    }

    fn placed(&mut self, parts: &[(Part, usize)], input: usize, role: Role) -> Result<P::Matrix> {
        if let Some(ready) = self.ready(parts, input) {
            return Ok(ready);
        }
        if let Some(kept) = self.in_fp8(parts, input, role)? {
            return Ok(kept);
        }
        let weights =
            parts.iter().map(|(part, out)| self.matrix(*part, *out, input)).collect::<Result<Vec<_>, Error>>()?;
        let own = weights.iter().zip(parts).map(|(weight, (part, _))| self.place.share(*part, weight));
        let own = own.collect::<Result<Vec<_>, Error>>()?;
        let all: Vec<&Weight> = own.iter().collect();
        let packed = match role {
            Role::Product | Role::Table => self.place.matrix(&all)?,
            Role::Expert => self.place.expert(&all)?,
        };
        self.place.laid(parts, &packed);
        for (weight, (part, _)) in weights.iter().zip(parts) {
            self.is_read(*part, weight);
        }
        Ok(packed)
    }

    /// The matrix of these parts as FP8, where all of them are in FP8 and the place keeps them so.
    fn in_fp8(&mut self, parts: &[(Part, usize)], input: usize, role: Role) -> Result<Option<P::Matrix>> {
        let WeightSource::Files(tensors) = &self.source else { return Ok(None) };
        if !P::KEEPS_FP8 {
            return Ok(None);
        }
        let mut matrices = Vec::with_capacity(parts.len());
        for (part, out) in parts {
            match tensors.fp8(*part, *out, input)? {
                Some(matrix) => matrices.push(matrix),
                None => return Ok(None),
            }
        }
        let Some(kept) = self.place.fp8(&matrices, role)? else { return Ok(None) };
        for (matrix, (part, _)) in matrices.iter().zip(parts) {
            self.used.push(*part);
            tensors.read_once(*part);
            self.progress.add(matrix.codes().len() as u64);
        }
        Ok(Some(kept))
    }

    /// The matrix of these parts if their weights need not be read.
    fn ready(&mut self, parts: &[(Part, usize)], input: usize) -> Option<P::Matrix> {
        let ready = self.place.ready(parts, input)?;
        self.used.extend(parts.iter().map(|(part, _)| *part));
        Some(ready)
    }

    /// The part was packed: what the files had of it in memory is given back.
    fn is_read(&mut self, part: Part, weight: &Weight) {
        if let WeightSource::Files(tensors) = &self.source {
            tensors.read_once(part);
        }
        self.progress.add(weight.bytes().len() as u64);
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
        self.place.share_vector(part, vector)
    }
}

fn weights_of(layer: usize, all: &[(Parts, usize)]) -> Vec<(Part, usize)> {
    all.iter().map(|((weight, _), out)| (Part::Layer(layer, *weight), *out)).collect()
}

/// What stands between the two projections of a feed-forward block.
fn activation(spec: &Spec) -> Prologue<'static> {
    match (spec.activation, spec.gated) {
        (Activation::Silu, _) => Prologue::SiluMul,
        (Activation::GeluTanh, true) => Prologue::GeluTanhMul,
        (Activation::GeluTanh, false) => Prologue::GeluTanh,
        (Activation::ClampedSwiglu, _) => Prologue::ClampedSwigluMul,
    }
}
