// performance-critical: no allocation per token, no lock, no log, no format
//! What only some models' layers have on a GPU: an input of their own beside the hidden state, a factor on what they give. What
//! `layers/own_input.rs` does on the CPU.

use sconce_cuda::ops::own_input::{OwnGate, join_inputs};
use sconce_cuda::ops::rows::{convert, scale_and_cap};
use sconce_cuda::{Buffer, Slice};

use super::forward::{State, Sum};
use super::parts::{GpuJoin, GpuLayer, GpuLinear, Maker};
use super::place::Matrix;
use super::runner::CudaRunner;
use super::step::StepInput;
use crate::error::Result;
use crate::layers::{OwnInput, OwnInputs};

/// The vectors of all layers.
pub(super) struct GpuOwnInputs {
    /// `[vocab, layers * width]`
    table: Matrix,
    /// `[layers * width, hidden]`
    projection: GpuLinear,
    /// Over the projected vector of one layer. `[width]`
    norm: (Buffer, f32),
    /// Factors on the table's rows and on the projection.
    scales: (f32, f32),
}

/// What a layer does with its vector.
pub(super) struct GpuOwnInput {
    start: usize,
    gate: GpuLinear,
    projection: GpuLinear,
    join: Option<GpuJoin>,
}

impl GpuOwnInputs {
    pub fn new(maker: &Maker, inputs: &OwnInputs<Matrix>) -> Result<Self> {
        Ok(Self {
            table: inputs.table.clone(),
            projection: maker.linear(&inputs.projection)?,
            norm: (maker.vector(&inputs.norm.weight)?, inputs.norm.eps),
            scales: (inputs.scales.0 as f32, inputs.scales.1 as f32),
        })
    }

    /// Of all layers side by side.
    pub fn width(&self) -> usize {
        self.table.input
    }

    /// Those that are multiplied with.
    pub fn matrix(&self) -> &Matrix {
        &self.projection.weight
    }
}

impl GpuOwnInput {
    pub fn new(maker: &Maker, own: &OwnInput<Matrix>) -> Result<Self> {
        Ok(Self {
            start: own.start,
            gate: maker.linear(&own.gate)?,
            projection: maker.linear(&own.projection)?,
            join: maker.join(Some(&own.join))?,
        })
    }

    pub fn matrices(&self) -> [&Matrix; 2] {
        [&self.gate.weight, &self.projection.weight]
    }
}

impl CudaRunner {
    /// The vectors of all layers, from the embeddings `hidden` as they enter the first layer.
    pub(super) fn own_inputs(&self, hidden: Slice, step: &StepInput) -> Result<()> {
        let Some(inputs) = &self.model.parts.own_inputs else { return Ok(()) };
        let (device, scratch, tokens) = (&self.model.device, &self.scratch, step.shape.tokens);
        let len = tokens * inputs.width();
        let normed = scratch.normed.range(0, hidden.len());
        convert(device, hidden, normed, hidden.len())?;
        let projected = scratch.projected.range(0, len);
        inputs.projection.weight.multiply(self.room(), normed, projected, tokens, false)?;
        let all = scratch.own.range(0, len);
        inputs.table.embed(device, step.tokens, inputs.scales.0, all)?;
        let norm = (inputs.norm.0.all(), inputs.norm.1);
        Ok(join_inputs(device, projected, inputs.scales.1, norm, all, len / inputs.norm.0.len())?)
    }

    /// What follows a layer's blocks: `hidden + norm(projection(gelu(gate(hidden)) * own))`, and the layer's factor.
    pub(super) fn finish(&self, layer: &GpuLayer, state: State, step: &StepInput) -> Result<()> {
        let (device, scratch, State { hidden, rows }) = (&self.model.device, &self.scratch, state);
        if let (Some(own), Some(inputs)) = (&layer.own_input, &self.model.parts.own_inputs) {
            let normed = scratch.normed.range(0, hidden.len());
            convert(device, hidden, normed, hidden.len())?;
            let width = own.gate.weight.out;
            let (gate, y) = (scratch.wide.range(0, rows * width), scratch.gated.range(0, rows * width));
            own.gate.weight.multiply(self.room(), normed, gate, rows, false)?;
            let (start, stride) = (own.start, inputs.width());
            let all = scratch.own.range(0, step.shape.tokens * stride);
            let chosen = (rows != step.shape.tokens).then_some(step.sample_rows);
            OwnGate { gate, all, chosen, y, rows, width, start, stride }.on(device)?;
            self.add(&own.projection, y, own.join.as_ref(), (state, Sum::Whole))?;
        }
        if layer.scale != 1.0 {
            scale_and_cap(device, hidden, hidden.len(), layer.scale, None)?;
        }
        Ok(())
    }
}
