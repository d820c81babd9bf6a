// performance-critical: no allocation per token, no lock, no log, no format
//! A model with everything that a step needs: the paged cache, the buffers between its kernels, and graphs of its steps.

use sconce_cuda::ops::attention::{splits_for, workspace_len};
use sconce_cuda::ops::rows::scale_and_cap;
use sconce_cuda::{Buffer, Device, ElementType, Mark, SetAside, Slice};
use sconce_kernels::KvDtype;

use super::CudaModel;
use super::cache::{LayerCache, kv_element};
use super::delta::{self, DeltaScratch};
use super::experts::{self, ExpertScratch};
use super::graphs::Graphs;
use super::latent::{self, LatentScratch};
use super::mixer::GpuMixer;
use super::place::{Matrix, Room};
use super::sampling::Sampling;
use super::step::{Shape, StepArrays};
use super::uneven::GpuOwnInputs;
use crate::batch::{BatchInput, Logits};
use crate::check::{CacheSizes, check_batch};
use crate::error::{Error, Result};
use crate::sampling::{Sample, SampleRequests};
use crate::spec::{KvHeads, Spec};

/// What to set memory aside for.
#[derive(Debug, Clone, Copy)]
pub struct CudaSizes {
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: u32,
    pub max_model_len: u32,
    pub blocks: u32,
    pub block_size: u32,
    /// As activations without one.
    pub kv_dtype: Option<KvDtype>,
}

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
    /// Of products of quantised matrices.
    pub workspace: Buffer,
    /// T `[tokens, widest part of a matrix]`
    pub part: Buffer,
    pub experts: ExpertScratch,
    pub latent: LatentScratch,
    pub delta: DeltaScratch,
}

/// A model that can step.
pub struct CudaRunner {
    pub(super) model: CudaModel,
    pub(super) sizes: CudaSizes,
    pub(super) cache: Vec<LayerCache>,
    pub(super) scratch: Scratch,
    arrays: StepArrays,
    graphs: Graphs,
    sampling: Sampling,
    issued: Issued,
    /// Weights were allocated before it; everything else is worth nothing while nobody asks.
    weights: Mark,
    /// While the model sleeps.
    aside: Option<SetAside>,
    /// 0 of a model that keeps no states.
    state_slots: u32,
}

/// Where the logits of the step are that [`CudaRunner::issue`] began.
enum Issued {
    Nothing,
    /// On the device, as they are or still being computed.
    OnDevice,
    /// There were too many of them at once.
    Here(Logits),
}

impl CudaRunner {
    /// Likeliest tokens whose log probabilities the device gives.
    pub const TOP_LOGPROBS_MAX: u32 = sconce_cuda::ops::sample::TOP_MAX as u32;

    /// Allocates cache and buffers.
    pub fn new(model: CudaModel, sizes: CudaSizes) -> Result<Self> {
        let (spec, device) = (&model.spec, &model.device);
        let weights = device.mark();
        let kv = kv_element(sizes.kv_dtype, model.ty);
        let cache = LayerCache::all(spec, device, sizes, kv)?;
        let tables_of_a_row = sizes.max_model_len.div_ceil(sizes.block_size) as usize;
        let (tokens, rows) = (sizes.max_num_batched_tokens as usize, sizes.max_num_seqs as usize);
        let arrays = StepArrays::new(device, tokens.max(rows), rows, rows * tables_of_a_row)?;
        let scratch = Scratch::new(&model, sizes)?;
        let sampling = Sampling::new(device, logit_rows(sizes), spec.vocab)?;
        let state_slots = u32::from(spec.uneven.delta.is_some());
        let (graphs, issued) = (Graphs::new(rows), Issued::Nothing);
        Ok(Self { model, sizes, cache, scratch, arrays, graphs, sampling, issued, weights, aside: None, state_slots })
    }

    /// With slots for so many states instead of one, if the model keeps a state a sequence.
    pub fn with_state_slots(mut self, slots: u32) -> Result<Self> {
        if self.state_slots == 0 {
            return Ok(self);
        }
        if slots == 0 {
            return Err(Error::Batch("a model that keeps a state a sequence has no slot for one".to_owned()));
        }
        for (layer, cache) in self.cache.iter_mut().enumerate() {
            if let Some(sizes) = self.model.spec.delta_of(layer) {
                *cache = LayerCache::States(LayerCache::states(&self.model.device, &sizes, slots)?);
            }
        }
        self.state_slots = slots;
        Ok(self)
    }

    /// Sequences whose states there is room for; 0 of a model that keeps none.
    pub fn state_slots(&self) -> u32 {
        self.state_slots
    }

    /// Gives all device memory of the model back: weights wait in host memory, what the cache held is lost. Returns the bytes
    /// of host memory that it takes. An error leaves the model awake; whatever else was allocated through the model's device
    /// handle goes along.
    pub fn sleep(&mut self) -> Result<u64> {
        if let Some(aside) = &self.aside {
            return Ok(aside.bytes());
        }
        // Graphs hold the addresses that they were recorded with, and memory comes back at others: they are recorded again,
        // and what they take of the device themselves goes, too.
        self.graphs = Graphs::new(self.sizes.max_num_seqs as usize);
        self.issued = Issued::Nothing;
        let aside = self.model.device.set_aside(self.weights)?;
        Ok(self.aside.insert(aside).bytes())
    }

    /// Takes device memory again, with the weights and an empty cache. Where it is not to be had the model sleeps on, and may
    /// be woken later.
    pub fn wake(&mut self) -> Result<()> {
        let Some(aside) = self.aside.take() else { return Ok(()) };
        self.model.device.bring_back(aside).map_err(|(aside, error)| {
            self.aside = Some(aside);
            error.into()
        })
    }

    /// Bytes that [`Self::new`] allocates beside the cache.
    pub fn scratch_bytes(model: &CudaModel, sizes: CudaSizes) -> u64 {
        let lens = Lens::of(model, sizes);
        let tables = sizes.max_num_seqs as usize * sizes.max_model_len.div_ceil(sizes.block_size) as usize;
        let words = lens.f32s() + tables + 4 * lens.tokens + Sampling::words(logit_rows(sizes), model.spec.vocab);
        let own = lens.experts.bytes(model.ty) + lens.latent.bytes(model.ty) + lens.delta.bytes();
        (4 * words + model.ty.bytes() * lens.values() + lens.workspace + own) as u64
    }

    /// Bytes that the cache takes of one token in all layers.
    pub fn kv_bytes_per_token(model: &CudaModel, kv_dtype: Option<KvDtype>) -> u64 {
        model.spec.kv_values_per_token() * kv_element(kv_dtype, model.ty).bytes() as u64
    }

    pub fn spec(&self) -> &Spec {
        &self.model.spec
    }

    pub fn device(&self) -> &Device {
        &self.model.device
    }

    pub fn has_warning(&self) -> bool {
        self.graphs.has_warning()
    }

    /// Why steps are no longer launched as graphs, said once.
    pub fn take_warning(&mut self) -> Option<String> {
        self.graphs.take_warning()
    }

    /// Rows of logits that one step can leave on the device.
    pub fn logit_rows_max(&self) -> usize {
        logit_rows(self.sizes)
    }

    /// One ragged step with its logits on the host: as [`crate::Model::forward`].
    pub fn forward(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<()> {
        let vocab = self.model.spec.vocab;
        logits.vocab = vocab;
        logits.values.clear();
        let Some(shape) = self.run_layers(batch)? else { return Ok(()) };
        let samples = batch.sample_rows.len();
        logits.values.resize(samples * vocab, 0.0);
        for (index, to) in logits.values.chunks_mut(self.logit_rows_max() * vocab).enumerate() {
            let rows = to.len() / vocab;
            if samples > self.logit_rows_max() {
                self.head(shape, index * self.logit_rows_max(), rows)?;
            }
            self.scratch.logits.read(0, to)?;
        }
        Ok(())
    }

    /// Begins one ragged step; nothing waits for the device as long as all its logits have room there.
    pub fn issue(&mut self, batch: &BatchInput) -> Result<()> {
        self.issued = Issued::Nothing;
        if batch.sample_rows.len() > self.logit_rows_max() {
            let mut logits = Logits::default();
            self.forward(batch, &mut logits)?;
            self.issued = Issued::Here(logits);
            return Ok(());
        }
        self.run_layers(batch)?;
        self.issued = Issued::OnDevice;
        Ok(())
    }

    /// Samples the step that was begun and waits for it: an answer for each of `wanted.rows`, one for each sampled row. Logits
    /// that come back stand in `logits` in the order of their rows.
    pub fn collect(&mut self, wanted: &SampleRequests, samples: &mut Vec<Sample>, logits: &mut Logits) -> Result<()> {
        let vocab = self.model.spec.vocab;
        logits.vocab = vocab;
        logits.values.clear();
        match std::mem::replace(&mut self.issued, Issued::Nothing) {
            Issued::Nothing => Err(Error::Batch("no step was begun".to_owned())),
            Issued::OnDevice => {
                let place = (&self.scratch.logits, vocab);
                self.sampling.run(&self.model.device, place, wanted, samples, logits)
            }
            Issued::Here(all) => {
                samples.clear();
                samples.extend((0..wanted.rows.len()).map(Sample::Logits));
                *logits = all;
                Ok(())
            }
        }
    }

    /// The step up to the logits, which are computed too where all of them have room. `None` without samples.
    fn run_layers(&mut self, batch: &BatchInput) -> Result<Option<Shape>> {
        let cache = CacheSizes {
            layers: self.cache.len(),
            blocks: self.sizes.blocks,
            block_size: self.sizes.block_size,
            state_slots: self.state_slots,
        };
        check_batch(batch, &self.model.spec, cache)?;
        self.check_room(batch)?;
        self.copy_states(batch)?;
        if batch.tokens.is_empty() {
            return Ok(None);
        }
        let (tokens, rows, samples) = (batch.tokens.len(), batch.rows(), batch.sample_rows.len());
        if tokens == rows && samples == rows {
            let padded = self.graphs.bucket(rows);
            let shape = Shape { tokens: padded, rows: padded, samples: padded, query_max: 1 };
            self.arrays.send(batch, shape)?;
            let mut graphs = std::mem::take(&mut self.graphs);
            let run = graphs.run(padded, &self.model.device, || self.step(shape));
            self.graphs = graphs;
            run?;
            return Ok(Some(shape));
        }
        let starts = std::iter::once(0).chain(batch.row_ends.iter().copied());
        let query_max = starts.zip(&batch.row_ends).map(|(start, end)| (end - start) as usize).max().unwrap_or(1);
        let shape = Shape { tokens, rows, samples, query_max };
        self.arrays.send(batch, shape)?;
        self.step(shape)?;
        Ok((samples > 0).then_some(shape))
    }

    fn check_room(&self, batch: &BatchInput) -> Result<()> {
        if self.aside.is_some() {
            return Err(Error::Batch("the model sleeps; wake it first".to_owned()));
        }
        let (tokens, rows) = (batch.tokens.len(), batch.rows());
        let (tokens_max, rows_max) = (self.sizes.max_num_batched_tokens, self.sizes.max_num_seqs);
        if tokens > tokens_max.max(rows_max) as usize || rows > rows_max as usize {
            let room = format!("{tokens_max} tokens and {rows_max} rows");
            return Err(Error::Batch(format!("{tokens} tokens in {rows} rows, there is room for {room}")));
        }
        if !batch.adapters.is_empty() {
            return Err(Error::Batch("adapters on a GPU".to_owned()));
        }
        if batch.context_lens.iter().any(|context| *context > self.sizes.max_model_len) {
            let max = self.sizes.max_model_len;
            return Err(Error::Batch(format!("a row is longer than the {max} tokens that are served")));
        }
        Ok(())
    }

    fn step(&self, shape: Shape) -> Result<()> {
        let input = self.arrays.input(shape);
        self.layers(&input)?;
        if (1..=self.logit_rows_max()).contains(&shape.samples) {
            self.head(shape, 0, shape.samples)?;
        }
        Ok(())
    }

    pub(super) fn expert_scratch(&self) -> &ExpertScratch {
        &self.scratch.experts
    }

    /// F32 that a block gives.
    pub(super) fn block(&self, len: usize) -> Slice<'_> {
        self.scratch.block.range(0, len)
    }

    /// What products use.
    pub(super) fn room(&self) -> Room<'_> {
        let Scratch { workspace, part, .. } = &self.scratch;
        Room { device: &self.model.device, workspace: workspace.all(), part: part.all() }
    }

    /// Logits of some of the sampled rows, from the hidden states that the layers left.
    fn head(&self, shape: Shape, first: usize, rows: usize) -> Result<()> {
        let (model, scratch) = (&self.model, &self.scratch);
        let (spec, device) = (&model.spec, &model.device);
        let hidden = self.sampled_states(shape).range(first * spec.hidden, rows * spec.hidden);
        let normed = scratch.normed.range(0, rows * spec.hidden);
        model.parts.final_norm.apply(device, hidden, normed, rows)?;
        let logits = scratch.logits.range(0, rows * spec.vocab);
        model.parts.head.multiply(self.room(), normed, logits, rows, false)?;
        if spec.scales.logits != 1.0 || spec.scales.logit_cap.is_some() {
            scale_and_cap(device, logits, rows * spec.vocab, spec.scales.logits, spec.scales.logit_cap)?;
        }
        Ok(())
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
        for layer in 0..spec.layers {
            let KvHeads { kv_heads, head_dim } = spec.kv_heads_of(layer);
            query = query.max(spec.heads * head_dim);
            ffn = ffn.max(spec.ffn_of(layer));
            for rows in 1..=sizes.max_num_seqs as usize {
                let splits = splits_for(rows, kv_heads, multiprocessors);
                partial = partial.max(workspace_len(rows, spec.heads, head_dim, splits));
            }
        }
        ffn = ffn.max(spec.uneven.own_input);
        let own = model.parts.own_inputs.as_ref().map_or(0, GpuOwnInputs::width);
        let gates = model.parts.layers.iter().filter_map(|layer| layer.mixer.gate_width()).max().unwrap_or(0);
        let wide = gates.max(if spec.gated { 2 * ffn } else { ffn });
        let logits = logit_rows(sizes) * spec.vocab;
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
            workspace,
            part,
            experts,
            latent,
            delta,
        }
    }

    fn f32s(&self) -> usize {
        self.tokens * (3 * self.hidden + self.own) + self.partial + self.logits
    }

    fn values(&self) -> usize {
        self.tokens * (self.hidden + self.qkv + 2 * self.query + self.wide + self.ffn + self.own + self.part)
    }
}

impl Scratch {
    fn new(model: &CudaModel, sizes: CudaSizes) -> Result<Self> {
        let (device, ty) = (&model.device, model.ty);
        let lens = Lens::of(model, sizes);
        let Lens {
            tokens,
            hidden,
            qkv,
            query,
            wide,
            ffn,
            own,
            partial,
            logits,
            workspace,
            part,
            experts,
            latent,
            delta,
        } = lens;
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
            workspace: device.alloc(workspace, ElementType::U8)?,
            part: values(tokens * part)?,
            experts: ExpertScratch::new(device, experts, ty)?,
            latent: LatentScratch::new(device, latent, ty)?,
            delta: DeltaScratch::new(device, delta)?,
        })
    }
}

/// Every row of a step of decoding has its logits; prompts whose tokens are scored go through in pieces.
fn logit_rows(sizes: CudaSizes) -> usize {
    sizes.max_num_seqs.max(16) as usize
}
