//! Buffers of a step, all allocated once, and how large they are.

use sconce_cuda::ops::attention::{splits_for, workspace_len};
use sconce_cuda::{Buffer, ElementType};

use super::CudaModel;
use super::delta::{self, DeltaScratch};
use super::experts::{self, ExpertScratch};
use super::latent::{self, LatentScratch};
use super::mixer::GpuMixer;
use super::place::Matrix;
use super::runner::{CudaRunner, CudaSizes};
use super::sampling::Sampling;
use super::step::StepArrays;
use super::uneven::GpuOwnInputs;
use crate::error::Result;
use crate::spec::KvHeads;

/// Buffers that the kernels of a step write and read; the widest layer says how wide. `T` is the model's type.
pub(super) struct Scratch {
    /// F32 `[tokens, hidden]`, and the same of the sampled tokens.
    pub hidden: Buffer,
    pub sampled: Buffer,
    /// T `[tokens, hidden]`
    pub normed: Buffer,
    /// T `[tokens, (heads + 2 kv_heads) head_dim]`
    pub qkv: Buffer,
    /// T `[tokens, heads head_dim]`
    pub query: Buffer,
    pub seen: Buffer,
    /// T `[tokens, 2 ffn]`, or `[tokens, ffn]` without a gate.
    pub wide: Buffer,
    /// T `[tokens, ffn]`
    pub gated: Buffer,
    /// F32 `[tokens, hidden]`
    pub block: Buffer,
    /// F32, and what is projected into it T: `[tokens, inputs of all layers]`
    pub own: Buffer,
    pub projected: Buffer,
    /// F32 of attention that is split.
    pub partial: Buffer,
    /// F32 `[logit_rows, vocab]`
    pub logits: Buffer,
    /// F32 `[ranks, logit_rows, vocab / ranks]` where ranks have a part of the vocabulary each.
    pub gathered: Buffer,
    /// Of products of quantised matrices.
    pub workspace: Buffer,
    /// T `[tokens, widest part of a matrix]`
    pub part: Buffer,
    pub experts: ExpertScratch,
    pub latent: LatentScratch,
    pub delta: DeltaScratch,
}

impl CudaRunner {
    /// Bytes that [`Self::new`] allocates beside the cache.
    pub fn scratch_bytes(model: &CudaModel, sizes: CudaSizes) -> u64 {
        let lens = Lens::of(model, sizes);
        let (rows, blocks) = (sizes.max_num_seqs as usize, sizes.max_model_len.div_ceil(sizes.block_size) as usize);
        let arrays = StepArrays::words(lens.tokens, rows, rows * blocks);
        let words = lens.f32s() + arrays + Sampling::words(logit_rows(sizes), model.spec.vocab);
        let own = lens.experts.bytes(model.ty) + lens.latent.bytes(model.ty) + lens.delta.bytes();
        (4 * words + model.ty.bytes() * lens.values() + lens.workspace + own) as u64
    }
}

/// Elements of each buffer.
struct Lens {
    tokens: usize,
    hidden: usize,
    qkv: usize,
    query: usize,
    wide: usize,
    ffn: usize,
    own: usize,
    partial: usize,
    logits: usize,
    gathered: usize,
    workspace: usize,
    part: usize,
    experts: experts::Lens,
    latent: latent::Lens,
    delta: delta::Lens,
}

impl Lens {
    fn of(model: &CudaModel, sizes: CudaSizes) -> Self {
        let (spec, multiprocessors) = (&model.spec, model.device.info().multiprocessors as usize);
        let tokens = sizes.max_num_batched_tokens.max(sizes.max_num_seqs) as usize;
        let mixers = model.parts.layers.iter().map(|layer| &layer.mixer);
        let qkv = mixers.clone().map(GpuMixer::projected).max().unwrap_or(0);
        let (mut query, mut ffn, mut partial) = (mixers.map(GpuMixer::width).max().unwrap_or(0), 0, 0);
        let heads = model.heads();
        for layer in 0..spec.layers {
            let KvHeads { kv_heads, head_dim } = model.kv_heads_of(layer);
            query = query.max(heads * head_dim);
            ffn = ffn.max(model.cut.most_of_ffn(spec.ffn_of(layer)));
            for rows in 1..=sizes.max_num_seqs as usize {
                let splits = splits_for(rows, kv_heads, multiprocessors);
                partial = partial.max(workspace_len(rows, heads, head_dim, splits));
            }
        }
        ffn = ffn.max(spec.uneven.own_input);
        let own = model.parts.own_inputs.as_ref().map_or(0, GpuOwnInputs::width);
        let gates = model.parts.layers.iter().filter_map(|layer| layer.mixer.gate_width()).max().unwrap_or(0);
        let wide = gates.max(if spec.gated { 2 * ffn } else { ffn });
        let logits = logit_rows(sizes) * spec.vocab;
        let gathered = if model.cut.splits_head() { logits } else { 0 };
        let of_layers = model.parts.matrices().map(|matrix| matrix.workspace_bytes(tokens, model.ty));
        let of_head = model.parts.head.workspace_bytes(logit_rows(sizes), model.ty);
        let workspace = of_layers.chain([of_head]).max().unwrap_or(0);
        let part = model.parts.matrices().map(Matrix::widest_part).max().unwrap_or(0);
        let experts = experts::Lens::of(model.parts.experts(), tokens);
        let latent = latent::Lens::of(model, sizes, tokens);
        let delta = delta::Lens::of(model, tokens);
        Self {
            tokens,
            hidden: spec.hidden,
            qkv,
            query,
            wide,
            ffn,
            own,
            partial,
            logits,
            gathered,
            workspace,
            part,
            experts,
            latent,
            delta,
        }
    }

    fn f32s(&self) -> usize {
        self.tokens * (3 * self.hidden + self.own) + self.partial + self.logits + self.gathered
    }

    fn values(&self) -> usize {
        self.tokens * (self.hidden + self.qkv + 2 * self.query + self.wide + self.ffn + self.own + self.part)
    }
}

impl Scratch {
    pub fn new(model: &CudaModel, sizes: CudaSizes) -> Result<Self> {
        let (device, ty) = (&model.device, model.ty);
        let lens = Lens::of(model, sizes);
        let Lens { tokens, hidden, qkv, query, wide, ffn, own, partial, .. } = lens;
        let Lens { logits, gathered, workspace, part, experts, latent, delta, .. } = lens;
        let floats = |len| device.alloc(len, ElementType::F32);
        let values = |len| device.alloc(len, ty);
        Ok(Self {
            hidden: floats(tokens * hidden)?,
            sampled: floats(tokens * hidden)?,
            normed: values(tokens * hidden)?,
            qkv: values(tokens * qkv)?,
            query: values(tokens * query)?,
            seen: values(tokens * query)?,
            wide: values(tokens * wide)?,
            gated: values(tokens * ffn)?,
            block: floats(tokens * hidden)?,
            own: floats(tokens * own)?,
            projected: values(tokens * own)?,
            partial: device.zeros(partial, ElementType::F32)?,
            logits: floats(logits)?,
            gathered: floats(gathered)?,
            workspace: device.alloc(workspace, ElementType::U8)?,
            part: values(tokens * part)?,
            experts: ExpertScratch::new(device, experts, ty)?,
            latent: LatentScratch::new(device, latent, ty)?,
            delta: DeltaScratch::new(device, delta)?,
        })
    }
}

/// Every row of a step of decoding has its logits; prompts whose tokens are scored go through in pieces.
pub(super) fn logit_rows(sizes: CudaSizes) -> usize {
    sizes.max_num_seqs.max(16) as usize
}
