// performance-critical: no allocation per token, no lock, no log, no format
//! Gated short convolutions on a GPU, in place of attention: what `layers/convolution.rs` does on the CPU.

use candle_core::Tensor;
use sconce_cuda::ops::convolution::Convolution;
use sconce_cuda::{Buffer, Slice};

use super::cache::LayerCache;
use super::parts::{GpuJoin, GpuLinear, GpuNorm, Maker};
use super::place::Matrix;
use super::runner::CudaRunner;
use super::step::StepInput;
use crate::error::Result;
use crate::layers::ShortConvolution;

pub(super) struct GpuConvolution {
    pub norm: GpuNorm,
    /// The first factor, the gate on the result, the second factor. `[3 * hidden, hidden]`
    pub input: GpuLinear,
    /// `[taps, hidden]`
    taps: Buffer,
    bias: Option<Buffer>,
    pub output: GpuLinear,
    pub join: Option<GpuJoin>,
}

impl GpuConvolution {
    pub fn new(maker: &Maker, convolution: &ShortConvolution<Matrix>) -> Result<Self> {
        let bias = |bias: &Tensor| maker.vector(bias);
        Ok(Self {
            norm: maker.norm(&convolution.norm)?,
            input: maker.linear(&convolution.input)?,
            taps: maker.vector(&convolution.taps.flatten_all()?)?,
            bias: convolution.bias.as_ref().map(bias).transpose()?,
            output: maker.linear(&convolution.output)?,
            join: maker.join(convolution.join.as_ref())?,
        })
    }

    /// Elements that it gives of a token.
    pub fn width(&self) -> usize {
        self.output.weight.input
    }
}

impl CudaRunner {
    /// From the normed hidden state: the three vectors of every token into `scratch.qkv`, and what is convolved into the
    /// cache.
    pub(super) fn write_convolved(
        &self,
        index: usize,
        convolution: &GpuConvolution,
        normed: Slice,
        step: &StepInput,
    ) -> Result<()> {
        let tokens = step.shape.tokens;
        let x = self.scratch.qkv.range(0, tokens * convolution.input.weight.out);
        convolution.input.weight.multiply(self.room(), normed, x, tokens, false)?;
        Ok(self.convolution(index, convolution, tokens).write(&self.model.device, step.slots)?)
    }

    /// What every token becomes, into `scratch.seen`.
    pub(super) fn mix_convolved(&self, index: usize, convolution: &GpuConvolution, step: &StepInput) -> Result<()> {
        let tokens = step.shape.tokens;
        let y = self.scratch.seen.range(0, tokens * convolution.width());
        Ok(self.convolution(index, convolution, tokens).mix(&self.model.device, &step.rows, y)?)
    }

    fn convolution<'a>(&'a self, index: usize, convolution: &'a GpuConvolution, tokens: usize) -> Convolution<'a> {
        let LayerCache::Vectors(cache) = &self.cache[index] else {
            unreachable!("a layer that convolves has vectors");
        };
        let width = convolution.width();
        Convolution {
            x: self.scratch.qkv.range(0, 3 * tokens * width),
            bias: convolution.input.bias.as_ref().map(Buffer::all),
            cache: cache.all(),
            taps: convolution.taps.all(),
            tap_bias: convolution.bias.as_ref().map(Buffer::all),
            width,
            block_size: self.sizes.block_size as usize,
            tokens,
        }
    }
}
