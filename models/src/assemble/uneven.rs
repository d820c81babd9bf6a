//! What only some layers have: a convolution in place of attention, an input of their own, a factor on what they give.

use candle_core::{Device, Tensor};

use super::{Assembler, Parts, Place, Plan, Role, WeightSource};
use crate::error::{Error, Result};
use crate::layers::{Join, Linear, OwnInput, OwnInputs, RmsNorm, ShortConvolution};
use crate::names::{LayerPart, Part};

const IN: Parts = (LayerPart::ConvolutionIn, LayerPart::ConvolutionInBias);
const OUT: Parts = (LayerPart::ConvolutionOut, LayerPart::ConvolutionOutBias);
// These two have no biases; the second name is never asked for.
const GATE: Parts = (LayerPart::InputGate, LayerPart::InputGate);
const PROJECTION: Parts = (LayerPart::InputProjection, LayerPart::InputProjection);

impl<P: Place> Assembler<'_, P> {
    pub(super) fn short_convolution(&mut self, plan: &Plan, index: usize) -> Result<ShortConvolution<P::Matrix>> {
        let (spec, part) = (plan.spec, |part| Part::Layer(index, part));
        let convolution = spec.uneven.convolution.as_ref().expect("only layers that convolve are built here");
        let (hidden, has_bias) = (spec.hidden, convolution.has_bias);
        Ok(ShortConvolution {
            norm: self.norm(plan, part(LayerPart::AttentionNorm), part(LayerPart::AttentionNormBias))?,
            input: self.linear(index, &[(IN, 3 * hidden)], hidden, has_bias)?,
            taps: self.taps(part(LayerPart::Taps), hidden, convolution.taps)?,
            bias: if has_bias { Some(self.vector(part(LayerPart::TapsBias), hidden)?) } else { None },
            output: self.linear(index, &[(OUT, hidden)], hidden, has_bias)?,
            join: self.join(plan, None)?,
        })
    }

    /// `[taps, width]`, which files have the other way round, some with a dimension of one in between.
    pub(super) fn taps(&mut self, part: Part, width: usize, taps: usize) -> Result<Tensor> {
        self.used.push(part);
        let WeightSource::Files(tensors) = &self.source else {
            return Ok(Tensor::full(1.0 / taps as f32, (taps, width), &self.device)?);
        };
        let name = part.name(tensors.naming);
        let (found, values) = tensors.floats_of(&name)?;
        if found != [width, taps] && found != [width, 1, taps] {
            let (file, expected) = (tensors.source.clone(), vec![width, taps]);
            return Err(Error::TensorShape { file, tensor: name, expected, found });
        }
        self.progress.add(tensors.get(&name).map_or(0, |stored| stored.bytes as u64));
        Ok(Tensor::from_vec(values, (width, taps), &Device::Cpu)?.t()?.contiguous()?)
    }

    /// What all layers' own inputs are made of.
    pub(super) fn own_inputs(&mut self, plan: &Plan) -> Result<Option<OwnInputs<P::Matrix>>> {
        let (spec, width) = (plan.spec, plan.spec.uneven.own_input);
        if width == 0 {
            return Ok(None);
        }
        let all = spec.layers * width;
        let table = self.placed(&[(Part::InputTable, spec.vocab)], all, Role::Table)?;
        let projection = Linear { weight: self.packed(&[(Part::InputsProjection, all)], spec.hidden)?, bias: None };
        let norm = RmsNorm { weight: self.norm_weight(plan, Part::InputsNorm, width)?, eps: spec.norm_eps };
        let scales = ((width as f64).sqrt(), (spec.hidden as f64).sqrt().recip());
        Ok(Some(OwnInputs { table, projection, norm, scales }))
    }

    pub(super) fn own_input(&mut self, plan: &Plan, index: usize) -> Result<Option<OwnInput<P::Matrix>>> {
        let (hidden, width) = (plan.spec.hidden, plan.spec.uneven.own_input);
        if width == 0 {
            return Ok(None);
        }
        let norm = self.rms_norm(plan, Part::Layer(index, LayerPart::InputNorm))?;
        Ok(Some(OwnInput {
            start: index * width,
            gate: self.linear(index, &[(GATE, width)], hidden, false)?,
            projection: self.linear(index, &[(PROJECTION, hidden)], width, false)?,
            join: Join { norm: Some(norm), scale: 1.0 },
        }))
    }

    pub(super) fn layer_scale(&mut self, plan: &Plan, index: usize) -> Result<f64> {
        if !plan.spec.uneven.scaled {
            return Ok(1.0);
        }
        Ok(f64::from(self.vector(Part::Layer(index, LayerPart::LayerScale), 1)?.to_vec1::<f32>()?[0]))
    }
}
