//! Models on a GPU: the same families, specs and files as on the CPU, with matrices in the GPU's memory and a decoder that
//! launches kernels of `sconce-cuda`.
//!
//! [`CudaModel`] is the weights; [`CudaRunner`] adds the cache and every buffer that a step needs, all allocated once, so
//! that a step of decoding is recorded as a graph when its size has been met before and launched as one from then on.
//!
//! Invariants: the residual stream and logits are F32, everything between is of one type; a row that pads a graph's batch
//! reads and writes nothing; a batch is checked on the host before anything of it reaches the device.

mod cache;
mod convolution;
mod delta;
mod experts;
mod forward;
mod fp8;
mod graphs;
mod latent;
mod mixer;
mod parts;
mod place;
mod ranks;
mod refuse;
mod runner;
mod sampling;
mod scratch;
mod share;
mod step;
mod uneven;
mod warm;

use candle_core::Device as HostDevice;
use sconce_cuda::{Device, ElementType};
use sconce_kernels::Precision;

pub use fp8::on_gpu;
pub use refuse::check;
pub use runner::{CudaRunner, CudaSizes};
pub use share::{Share, check_share};

use crate::assemble::Assembler;
use crate::decoder::Decoder;
use crate::error::Result;
use crate::load::{LoadOptions, Progress, Source, open_any};
use crate::spec::{KvHeads, Spec};

use parts::Parts;
use place::OnGpu;
use share::Cut;

/// A decoder's weights on a GPU, or one rank's share of them.
pub struct CudaModel {
    spec: Spec,
    device: Device,
    /// Of activations and dense matrices.
    ty: ElementType,
    cut: Cut,
    parts: Parts,
}

impl CudaModel {
    /// Reads a model's files onto `device`. What this version has no kernels for is refused before weights are read.
    pub fn load(source: &Source, device: &Device, options: LoadOptions) -> Result<Self> {
        Self::load_share(source, device, options, Share::WHOLE)
    }

    /// The same of a rank's share alone. Where the model cannot be shared out so, that is an error before weights are read.
    pub fn load_share(source: &Source, device: &Device, options: LoadOptions, share: Share) -> Result<Self> {
        let report = options.progress.as_ref();
        let (spec, weights) = open_any(source, options.quantize.as_ref(), report)?;
        check(&spec, source)?;
        share::check(&spec, &weights, source, share.ranks)?;
        let cut = Cut::new(&spec, &weights, share);
        let ty = element_type(&spec, options.precision);
        let keeps_fp8 = ty != ElementType::F32 && share == Share::WHOLE;
        let spec = if keeps_fp8 { on_gpu(spec) } else { spec };
        let progress = Progress::new(spec.weight_bytes, report);
        let context = options.max_model_len.unwrap_or(spec.context_max);
        let place = OnGpu { device: device.clone(), ty, cut };
        let on = OnGpu { device: device.clone(), ty, cut };
        let decoder = Assembler::new(weights, HostDevice::Cpu, place, progress).decoder(spec, context)?;
        Progress::new(decoder.spec.weight_bytes, report).finish();
        let parts = Parts::new(&decoder, &on, context)?;
        let Decoder { spec, .. } = decoder;
        Ok(Self { spec, device: device.clone(), ty, cut, parts })
    }

    /// Of the whole model.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn share(&self) -> Share {
        self.cut.share
    }

    /// Query heads that are here.
    fn heads(&self) -> usize {
        self.cut.heads(self.spec.heads)
    }

    /// KV heads that are here.
    fn kv_heads_of(&self, layer: usize) -> KvHeads {
        let KvHeads { kv_heads, head_dim } = self.spec.kv_heads_of(layer);
        KvHeads { kv_heads: self.cut.kv_heads(kv_heads), head_dim }
    }
}

/// What products are computed in: as the file has it, with the range of BF16 where the file is of another kind.
/// [`Precision::High`] computes in F32.
pub fn element_type(spec: &Spec, precision: Precision) -> ElementType {
    match (precision, spec.weight_format.as_str()) {
        (Precision::High, _) => ElementType::F32,
        (Precision::Fast, "F16") => ElementType::F16,
        (Precision::Fast, _) => ElementType::Bf16,
    }
}
