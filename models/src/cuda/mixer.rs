// performance-critical: no allocation per token, no lock, no log, no format
//! What mixes the tokens of a sequence in one layer, in the two halves that a step needs apart: `layers/mixer.rs` on a GPU.

use sconce_cuda::Slice;

use super::convolution::GpuConvolution;
use super::delta::GpuDelta;
use super::latent::GpuLatent;
use super::parts::{GpuAttention, GpuJoin, GpuLinear, GpuNorm};
use super::place::Matrix;
use super::runner::CudaRunner;
use super::step::StepInput;
use crate::error::Result;

pub(super) enum GpuMixer {
    Attention(Box<GpuAttention>),
    Latent(Box<GpuLatent>),
    Convolution(Box<GpuConvolution>),
    Delta(Box<GpuDelta>),
}

impl GpuMixer {
    /// Before it.
    pub fn norm(&self) -> &GpuNorm {
        match self {
            Self::Attention(attention) => &attention.norm,
            Self::Latent(latent) => &latent.norm,
            Self::Convolution(convolution) => &convolution.norm,
            Self::Delta(delta) => &delta.norm,
        }
    }

    /// The projection of what it gives, and how that joins the hidden state.
    pub fn output(&self) -> (&GpuLinear, Option<&GpuJoin>) {
        match self {
            Self::Attention(attention) => (&attention.output, attention.join.as_ref()),
            Self::Latent(latent) => (&latent.output, latent.join.as_ref()),
            Self::Convolution(convolution) => (&convolution.output, convolution.join.as_ref()),
            Self::Delta(delta) => (&delta.output, delta.join.as_ref()),
        }
    }

    /// Elements that it gives of a token, before that projection.
    pub fn width(&self) -> usize {
        match self {
            Self::Attention(attention) => attention.heads * attention.head_dim,
            Self::Latent(latent) => latent.width(),
            Self::Convolution(convolution) => convolution.width(),
            Self::Delta(delta) => delta.width(),
        }
    }

    /// Elements of a token that `scratch.qkv` has to hold.
    pub fn projected(&self) -> usize {
        match self {
            Self::Attention(attention) => attention.qkv.weight.out,
            Self::Latent(_) | Self::Delta(_) => 0,
            Self::Convolution(convolution) => convolution.input.weight.out,
        }
    }

    /// Elements of a token's gate on what is seen, if there is one.
    pub fn gate_width(&self) -> Option<usize> {
        match self {
            Self::Attention(attention) => attention.gate.as_ref().map(|gate| gate.weight.out),
            _ => None,
        }
    }

    /// Those that are multiplied one by one.
    pub fn matrices(&self) -> Vec<&Matrix> {
        match self {
            Self::Attention(attention) => {
                let gate = attention.gate.iter().map(|gate| &gate.weight);
                [&attention.qkv.weight, &attention.output.weight].into_iter().chain(gate).collect()
            }
            Self::Delta(delta) => delta.matrices().into(),
            Self::Latent(latent) => latent.matrices(),
            Self::Convolution(convolution) => vec![&convolution.input.weight, &convolution.output.weight],
        }
    }
}

impl CudaRunner {
    /// From the normed hidden state: what the cache holds of the tokens, and what [`Self::attend`] needs of them beside it.
    pub(super) fn write(&self, index: usize, mixer: &GpuMixer, normed: Slice, step: &StepInput) -> Result<()> {
        match mixer {
            GpuMixer::Attention(attention) => self.write_kv(attention, normed, step),
            GpuMixer::Latent(latent) => self.write_latents(index, latent, normed, step),
            GpuMixer::Convolution(convolution) => self.write_convolved(index, convolution, normed, step),
            // A state is read as it changes: nothing is left to be seen later.
            GpuMixer::Delta(delta) => self.advance(index, delta, normed, step),
        }
    }

    /// What every token sees of its context, into `scratch.seen`.
    pub(super) fn attend(&self, index: usize, mixer: &GpuMixer, step: &StepInput) -> Result<()> {
        match mixer {
            GpuMixer::Attention(attention) => self.attend_kv(attention, step),
            GpuMixer::Latent(latent) => self.attend_latents(index, latent, step),
            GpuMixer::Convolution(convolution) => self.mix_convolved(index, convolution, step),
            GpuMixer::Delta(_) => Ok(()),
        }
    }
}
