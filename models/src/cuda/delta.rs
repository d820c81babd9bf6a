// performance-critical: no allocation per token, no lock, no log, no format
//! Layers of the gated delta rule on a GPU, whose past is one state a sequence: what `layers/delta.rs` does on the CPU, and the
//! gate on what the layers of attention between them have seen.

use sconce_cuda::ops::delta::{DeltaRoom, DeltaRows, DeltaRule, DeltaSizes, DeltaWeights, copy_state, sigmoid_mul};
use sconce_cuda::{Buffer, Device, ElementType, Slice};
use sconce_kernels::HeadOrder;

use super::CudaModel;
use super::cache::LayerCache;
use super::mixer::GpuMixer;
use super::parts::{GpuJoin, GpuLinear, GpuNorm, Maker};
use super::place::Matrix;
use super::runner::CudaRunner;
use super::step::StepInput;
use crate::batch::BatchInput;
use crate::error::{Error, Result};
use crate::layers::DeltaMixer;

pub(super) struct GpuDelta {
    pub norm: GpuNorm,
    /// Query above key above value, the gate on the result, and two numbers a value head.
    input: GpuLinear,
    taps: Buffer,
    decay: Buffer,
    decay_bias: Buffer,
    head_norm: Buffer,
    eps: f32,
    pub output: GpuLinear,
    pub join: Option<GpuJoin>,
    sizes: DeltaSizes,
}

/// F32 elements of the buffers that such layers need.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lens {
    projected: usize,
    mixed: usize,
    gates: usize,
    seen: usize,
}

/// Those buffers.
pub(super) struct DeltaScratch {
    projected: Buffer,
    mixed: Buffer,
    gates: Buffer,
    seen: Buffer,
}

/// As kernels take them.
pub(super) fn sizes_of(sizes: &sconce_kernels::DeltaSizes) -> DeltaSizes {
    let sconce_kernels::DeltaSizes { key_heads, value_heads, key_dim, value_dim, taps, order } = *sizes;
    DeltaSizes { key_heads, value_heads, key_dim, value_dim, taps, is_tiled: order == HeadOrder::Tiled }
}

impl Lens {
    /// Of steps of up to `tokens` tokens.
    pub fn of(model: &CudaModel, tokens: usize) -> Self {
        let sizes = model.parts.layers.iter().filter_map(|layer| match &layer.mixer {
            GpuMixer::Delta(delta) => Some(&delta.sizes),
            _ => None,
        });
        let widest = |width: fn(&DeltaSizes) -> usize| tokens * sizes.clone().map(width).max().unwrap_or(0);
        Self {
            projected: widest(DeltaSizes::projected),
            mixed: widest(DeltaSizes::mixed),
            gates: widest(|sizes| 2 * sizes.value_heads),
            seen: widest(DeltaSizes::values),
        }
    }

    pub fn bytes(self) -> usize {
        4 * (self.projected + self.mixed + self.gates + self.seen)
    }
}

impl DeltaScratch {
    pub fn new(device: &Device, lens: Lens) -> Result<Self> {
        let floats = |len| device.alloc(len, ElementType::F32);
        Ok(Self {
            projected: floats(lens.projected)?,
            mixed: floats(lens.mixed)?,
            gates: floats(lens.gates)?,
            seen: floats(lens.seen)?,
        })
    }
}

impl GpuDelta {
    pub fn new(maker: &Maker, delta: &DeltaMixer<Matrix>, sizes: &sconce_kernels::DeltaSizes) -> Result<Self> {
        Ok(Self {
            norm: maker.norm(&delta.norm)?,
            input: maker.linear(&delta.input)?,
            taps: maker.vector(&delta.taps.flatten_all()?)?,
            decay: maker.vector(&delta.decay)?,
            decay_bias: maker.vector(&delta.decay_bias)?,
            head_norm: maker.vector(&delta.head_norm)?,
            eps: delta.eps,
            output: maker.linear(&delta.output)?,
            join: maker.join(delta.join.as_ref())?,
            sizes: sizes_of(sizes),
        })
    }

    /// Elements that it gives of a token.
    pub fn width(&self) -> usize {
        self.sizes.values()
    }

    pub fn matrices(&self) -> [&Matrix; 2] {
        [&self.input.weight, &self.output.weight]
    }
}

impl CudaRunner {
    /// From the normed hidden state: advances the states of the step's rows; what every token sees goes into `scratch.seen`.
    pub(super) fn advance(&self, index: usize, delta: &GpuDelta, normed: Slice, step: &StepInput) -> Result<()> {
        let (device, scratch, tokens) = (&self.model.device, &self.scratch.delta, step.shape.tokens);
        let GpuDelta { sizes, eps, .. } = *delta;
        let x = scratch.projected.range(0, tokens * sizes.projected());
        delta.input.weight.multiply(self.room(), normed, x, tokens, false)?;
        let LayerCache::States(states) = &self.cache[index] else {
            unreachable!("a layer of the delta rule has states");
        };
        let (taps, norm) = (delta.taps.all(), delta.head_norm.all());
        let weights = DeltaWeights { taps, decay: delta.decay.all(), decay_bias: delta.decay_bias.all(), norm, eps };
        let room = DeltaRoom { mixed: scratch.mixed.all(), gates: scratch.gates.all(), seen: scratch.seen.all() };
        let y = self.scratch.seen.range(0, tokens * sizes.values());
        let rows = DeltaRows {
            row_starts: step.rows.row_starts,
            context_lens: step.rows.context_lens,
            slots: step.states,
            saves: step.state_saves,
            rows: step.shape.rows,
            tokens,
        };
        Ok(DeltaRule { sizes, weights, states: states.all(), x, y, room }.on(device, &rows)?)
    }

    /// `seen * sigmoid(gate(normed))`, in place. The normed hidden state still stands where the layer's first half read it.
    pub(super) fn gate_seen(&self, gate: &GpuLinear, seen: Slice, tokens: usize) -> Result<()> {
        let (device, width) = (&self.model.device, gate.weight.out);
        let normed = self.scratch.normed.range(0, tokens * gate.weight.input);
        let gates = self.scratch.wide.range(0, tokens * width);
        gate.weight.multiply(self.room(), normed, gates, tokens, false)?;
        Ok(sigmoid_mul(device, gates, seen, tokens * width)?)
    }

    /// Copies states before a step, as it asks for.
    pub(super) fn copy_states(&self, batch: &BatchInput) -> Result<()> {
        let mut saved = batch.state_saves.windows(2);
        if saved.any(|pair| pair[0].token == pair[1].token) {
            return Err(Error::Batch("a state is saved twice behind one token".to_owned()));
        }
        for pair in &batch.state_copies {
            for (layer, cache) in self.cache.iter().enumerate() {
                if let (LayerCache::States(states), Some(sizes)) = (cache, self.model.spec.delta_of(layer)) {
                    copy_state(&self.model.device, states.all(), sizes_of(&sizes).state_len(), *pair)?;
                }
            }
        }
        Ok(())
    }
}
