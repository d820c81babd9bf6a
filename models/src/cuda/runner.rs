// performance-critical: no allocation per token, no lock, no log, no format
//! A model with everything that a step needs: the paged cache, the buffers between its kernels, and graphs of its steps.

use sconce_cuda::ops::follow::follow;
use sconce_cuda::ops::rows::scale_and_cap;
use sconce_cuda::{Breaker, Communicator, Device, Mark, SetAside, Slice};
use sconce_kernels::KvDtype;

use super::cache::{LayerCache, kv_element};
use super::experts::ExpertScratch;
use super::graphs::Graphs;
use super::place::Room;
use super::ranks::Ranks;
use super::sampling::Sampling;
use super::scratch::{Scratch, logit_rows};
use super::step::{Shape, StepArrays};
use super::{CudaModel, Share};
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

/// A model that can step.
pub struct CudaRunner {
    pub(super) model: CudaModel,
    pub(super) sizes: CudaSizes,
    pub(super) cache: Vec<LayerCache>,
    pub(super) scratch: Scratch,
    arrays: StepArrays,
    graphs: Graphs,
    sampling: Sampling,
    pub(super) issued: Issued,
    /// Weights were allocated before it; everything else is worth nothing while nobody asks.
    weights: Mark,
    /// While the model sleeps.
    aside: Option<SetAside>,
    /// 0 of a model that keeps no states.
    state_slots: u32,
    /// Where others have the rest of the model. Goes last: what was recorded uses it.
    ranks: Option<Ranks>,
}

/// Where the logits of the step are that [`CudaRunner::issue`] began.
pub(super) enum Issued {
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
        Self::with(model, sizes, None)
    }

    /// The same of a rank's share: its steps meet those of the other ranks. All ranks take the same steps, each in a thread
    /// of its own; after an error of one its communicator must be broken, or the others may wait for ever.
    pub fn of_rank(model: CudaModel, sizes: CudaSizes, communicator: Communicator) -> Result<Self> {
        let ranks = Ranks::new(&model, communicator)?;
        Self::with(model, sizes, Some(ranks))
    }

    fn with(model: CudaModel, sizes: CudaSizes, ranks: Option<Ranks>) -> Result<Self> {
        if ranks.is_none() && model.share() != Share::WHOLE {
            return Err(Error::Batch("a rank's share of a model needs the other ranks".to_owned()));
        }
        let (spec, device) = (&model.spec, &model.device);
        let weights = device.mark();
        let kv = kv_element(sizes.kv_dtype, model.ty);
        let cache = LayerCache::all(&model, sizes, kv)?;
        let tables_of_a_row = sizes.max_model_len.div_ceil(sizes.block_size) as usize;
        let (tokens, rows) = (sizes.max_num_batched_tokens as usize, sizes.max_num_seqs as usize);
        let arrays = StepArrays::new(device, tokens.max(rows), rows, rows * tables_of_a_row)?;
        let scratch = Scratch::new(&model, sizes)?;
        let sampling = Sampling::new(device, logit_rows(sizes), spec.vocab)?;
        let state_slots = u32::from(spec.uneven.delta.is_some());
        let (graphs, issued) = (Graphs::new(rows), Issued::Nothing);
        let aside = None;
        Ok(Self { model, sizes, cache, scratch, arrays, graphs, sampling, issued, weights, aside, state_slots, ranks })
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
        self.sampling.forget();
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

    /// Bytes that the cache takes of one token in all layers.
    pub fn kv_bytes_per_token(model: &CudaModel, kv_dtype: Option<KvDtype>) -> u64 {
        let (spec, ty) = (&model.spec, kv_element(kv_dtype, model.ty));
        let values = if model.share() == Share::WHOLE {
            spec.kv_values_per_token()
        } else {
            let heads = (0..spec.layers).map(|layer| model.kv_heads_of(layer));
            heads.map(|KvHeads { kv_heads, head_dim }| 2 * kv_heads * head_dim).sum::<usize>() as u64
        };
        values * ty.bytes() as u64
    }

    /// Gives up everything but the weights.
    pub fn into_model(self) -> CudaModel {
        self.model
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
        let Some(shape) = self.run_layers(batch, &[])? else {
            // The batch's copy is done with before the next one is written.
            return Ok(self.model.device.synchronize()?);
        };
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
        if self.sampling.pending() > 0 || !matches!(self.issued, Issued::Nothing) {
            // Given up on the way; what it copies from and to is written anew.
            self.issued = Issued::Nothing;
            self.sampling.forget();
            self.model.device.synchronize()?;
        }
        if batch.sample_rows.len() > self.logit_rows_max() {
            let mut logits = Logits::default();
            self.forward(batch, &mut logits)?;
            self.issued = Issued::Here(logits);
            return Ok(());
        }
        self.run_layers(batch, &[])?;
        self.issued = Issued::OnDevice;
        Ok(())
    }

    /// One ragged step of a rank that does not sample; waits for it.
    pub fn follow(&mut self, batch: &BatchInput) -> Result<()> {
        let shape = self.run_layers(batch, &[])?;
        let (samples, rows_max) = (batch.sample_rows.len(), self.logit_rows_max());
        if let Some(shape) = shape.filter(|_| samples > rows_max) {
            for first in (0..samples).step_by(rows_max) {
                self.head(shape, first, rows_max.min(samples - first))?;
            }
        }
        Ok(self.model.device.synchronize()?)
    }

    /// Begins a step of one token a row behind the one that was chosen last and is not collected: `sources` says of each row
    /// which row's token of that step it computes.
    pub fn issue_behind(&mut self, batch: &BatchInput, sources: &[u32]) -> Result<()> {
        let (tokens, rows, samples) = (batch.tokens.len(), batch.rows(), batch.sample_rows.len());
        if self.sampling.pending() != 1 || !matches!(self.issued, Issued::Nothing) {
            return Err(Error::Batch("a step goes behind one that is chosen and not collected".to_owned()));
        }
        if [tokens, samples, sources.len()] != [rows; 3] {
            return Err(Error::Batch(format!(
                "behind another step {rows} rows have a token, a sample and a source each, not {tokens}, {samples} and {}",
                sources.len()
            )));
        }
        self.run_layers(batch, sources)?;
        self.issued = Issued::OnDevice;
        Ok(())
    }

    /// Has the step that was begun sampled, with one of `wanted.rows` for each of its sampled rows. True when all of them want
    /// a token and get it on the device: then a step may go behind it.
    pub fn choose(&mut self, wanted: &SampleRequests) -> Result<bool> {
        match std::mem::replace(&mut self.issued, Issued::Nothing) {
            Issued::Nothing => Err(Error::Batch("no step was begun".to_owned())),
            Issued::OnDevice => {
                let place = (&self.scratch.logits, self.model.spec.vocab);
                self.sampling.choose(&self.model.device, place, wanted)
            }
            Issued::Here(all) => self.sampling.give(wanted.rows.len(), all),
        }
    }

    /// Waits for the oldest step that was chosen: an answer for each of `wanted.rows`, which are those that were chosen. Logits
    /// that come back stand in `logits` in the order of their rows.
    pub fn collect(&mut self, wanted: &SampleRequests, samples: &mut Vec<Sample>, logits: &mut Logits) -> Result<()> {
        self.sampling.collect(wanted, samples, logits)?;
        logits.vocab = self.model.spec.vocab;
        Ok(())
    }

    /// The step up to the logits, which are computed too where all of them have room. `None` without samples.
    fn run_layers(&mut self, batch: &BatchInput, sources: &[u32]) -> Result<Option<Shape>> {
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
            let padded = self.bucket(rows);
            let shape = Shape { tokens: padded, rows: padded, samples: padded, query_max: 1 };
            self.begin(batch, sources, shape)?;
            return Ok(Some(shape));
        }
        let starts = std::iter::once(0).chain(batch.row_ends.iter().copied());
        let query_max = starts.zip(&batch.row_ends).map(|(start, end)| (end - start) as usize).max().unwrap_or(1);
        let shape = Shape { tokens, rows, samples, query_max };
        self.begin(batch, &[], shape)?;
        Ok((samples > 0).then_some(shape))
    }

    /// Rows of the step of decoding that computes so many.
    pub(super) fn bucket(&self, rows: usize) -> usize {
        self.graphs.bucket(rows)
    }

    /// Issues the step of a batch that is laid out as `shape`, and has at most its sizes: steps of decoding as graphs.
    pub(super) fn begin(&mut self, batch: &BatchInput, sources: &[u32], shape: Shape) -> Result<()> {
        let _entered = self.ranks.as_ref().map(Ranks::enter).transpose()?;
        self.arrays.send(batch, sources, shape)?;
        if !sources.is_empty() {
            let input = self.arrays.input(shape);
            follow(&self.model.device, self.sampling.chosen(), input.sources, input.tokens)?;
        }
        if shape.query_max > 1 || shape.tokens != shape.rows || shape.samples != shape.rows {
            return self.step(shape);
        }
        let mut graphs = std::mem::take(&mut self.graphs);
        let all_could = |could| self.ranks.as_ref().map_or(Ok(could), |ranks| ranks.all_could(could));
        let run = graphs.run(shape.rows, &self.model.device, || self.step(shape), all_could);
        self.graphs = graphs;
        run
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

    /// F32 of this rank becomes the sum over all ranks.
    pub(super) fn sum_up(&self, x: Slice) -> Result<()> {
        self.ranks.as_ref().map_or(Ok(()), |ranks| ranks.sum_up(x))
    }

    /// What ends the others' waiting for this rank, where there are others.
    pub fn breaker(&self) -> Option<Breaker> {
        self.ranks.as_ref().map(Ranks::breaker)
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
        if !model.cut.has_head() {
            return Ok(());
        }
        let hidden = self.sampled_states(shape).range(first * spec.hidden, rows * spec.hidden);
        let normed = scratch.normed.range(0, rows * spec.hidden);
        model.parts.final_norm.apply(device, hidden, normed, rows)?;
        let logits = scratch.logits.range(0, rows * spec.vocab);
        match &self.ranks {
            Some(ranks) if model.cut.splits_head() => {
                let own = ranks.own_logits(&scratch.gathered, rows, spec.vocab);
                model.parts.head.multiply(self.room(), normed, own, rows, false)?;
                ranks.gather(device, &scratch.gathered, logits, (rows, spec.vocab))?;
            }
            _ => model.parts.head.multiply(self.room(), normed, logits, rows, false)?,
        }
        if spec.scales.logits != 1.0 || spec.scales.logit_cap.is_some() {
            scale_and_cap(device, logits, rows * spec.vocab, spec.scales.logits, spec.scales.logit_cap)?;
        }
        Ok(())
    }
}
