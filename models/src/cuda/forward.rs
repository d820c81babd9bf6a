// performance-critical: no allocation per token, no lock, no log, no format
//! The layers, kernel by kernel: what `decoder.rs` does on the CPU. All launches depend on a step's [`super::step::Shape`]
//! only, so that they can be recorded.

use sconce_cuda::ops::activate::{Activated, Gated, add_bias};
use sconce_cuda::ops::attention::{self, Params, splits_for};
use sconce_cuda::ops::norm::{AddScaled, LayerNorm, rms_norm};
use sconce_cuda::ops::rope::{Cache, HeadNorms, Qkv, Queries, rope_and_write_kv, rope_queries};
use sconce_cuda::ops::rows::{convert, gather};
use sconce_cuda::{Buffer, Device, Slice};

use super::cache::LayerCache;
use super::experts::Tokens;
use super::parts::{Between, GpuAttention, GpuFeedForward, GpuJoin, GpuLayer, GpuLinear, GpuMlp, GpuNorm};
use super::runner::CudaRunner;
use super::step::{Shape, StepInput};
use crate::error::Result;

impl GpuNorm {
    /// x F32 `[rows, dim]` into y `[rows, dim]`.
    pub fn apply(&self, device: &Device, x: Slice, y: Slice, rows: usize) -> Result<()> {
        match self {
            Self::None => convert(device, x, y, y.len())?,
            Self::Rms { weight, eps } => rms_norm(device, x, (weight.all(), *eps), y, rows)?,
            Self::Layer { weight, bias, eps } => {
                let bias = bias.as_ref().map(|bias| bias.all());
                LayerNorm { x, weight: weight.all(), bias, eps: *eps, y, rows }.on(device)?;
            }
        }
        Ok(())
    }
}

/// A hidden state `[rows, hidden]` and what of a step it belongs to.
#[derive(Clone, Copy)]
pub(super) struct State<'a> {
    pub hidden: Slice<'a>,
    pub rows: usize,
}

/// How a block's part of a rank gets into the hidden state. The first rank adds its own; the others leave theirs there
/// alone, so that the sum over all of them is the hidden state with the whole block added, the same bits on all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    Whole,
    /// Of two blocks side by side, which are summed over the ranks as one: the first, and the second.
    Begin,
    End,
}

impl GpuLayer {
    /// Of attention and of the feed-forward block.
    fn sums(&self) -> (Sum, Sum) {
        let (_, join) = self.mixer.output();
        let is_one = |other: &Option<GpuJoin>| self.is_parallel && join.is_none() && other.is_none();
        match &self.feed_forward {
            GpuFeedForward::Dense(mlp) if is_one(&mlp.join) => (Sum::Begin, Sum::End),
            GpuFeedForward::Dense(_) | GpuFeedForward::Experts(_) => (Sum::Whole, Sum::Whole),
        }
    }
}

impl CudaRunner {
    /// Runs all layers; leaves the hidden states of the sampled tokens in [`Self::sampled_states`].
    pub(super) fn layers(&self, step: &StepInput) -> Result<()> {
        let (model, scratch) = (&self.model, &self.scratch);
        let (spec, device) = (&model.spec, &model.device);
        let tokens = step.shape.tokens;
        let hidden = scratch.hidden.range(0, tokens * spec.hidden);
        model.parts.embedding.embed(device, step.tokens, spec.scales.embedding, hidden)?;
        self.own_inputs(hidden, step)?;
        self.name_heads(step)?;
        let last = model.parts.layers.len() - 1;
        let mut state = State { hidden, rows: tokens };
        for (index, layer) in model.parts.layers.iter().enumerate() {
            let normed = scratch.normed.range(0, tokens * spec.hidden);
            layer.mixer.norm().apply(device, state.hidden, normed, tokens)?;
            self.write(index, &layer.mixer, normed, step)?;
            if index == last && step.shape.samples == 0 {
                return Ok(());
            }
            self.attend(index, &layer.mixer, step)?;
            let width = layer.mixer.width();
            let mut seen = scratch.seen.range(0, tokens * width);
            if index == last {
                (state, seen) = self.sampled(layer, state, step)?;
            }
            let normed = scratch.normed.range(0, state.rows * spec.hidden);
            if layer.is_parallel {
                // Before the hidden state changes: both blocks look at the same.
                layer.norm.apply(device, state.hidden, normed, state.rows)?;
            }
            let (output, join) = layer.mixer.output();
            let (first, second) = layer.sums();
            self.add(output, seen, join, (state, first))?;
            if !layer.is_parallel {
                layer.norm.apply(device, state.hidden, normed, state.rows)?;
            }
            match &layer.feed_forward {
                GpuFeedForward::Dense(mlp) => self.feed_forward(mlp, normed, (state, second))?,
                GpuFeedForward::Experts(experts) => {
                    // Gathered rows are all real ones.
                    let slots = (state.rows == tokens).then_some(step.slots);
                    let State { hidden, rows: count } = state;
                    self.experts(experts, Tokens { normed, hidden, slots, count })?;
                }
            }
            self.finish(layer, state, step)?;
        }
        Ok(())
    }

    /// Where the layers leave the hidden states of the sampled tokens.
    pub(super) fn sampled_states(&self, shape: Shape) -> &Buffer {
        if shape.samples == shape.tokens { &self.scratch.hidden } else { &self.scratch.sampled }
    }

    /// From the normed hidden state: K and V into the cache, the query into `scratch.query`.
    pub(super) fn write_kv(&self, attention: &GpuAttention, normed: Slice, step: &StepInput) -> Result<()> {
        let (device, scratch, tokens) = (&self.model.device, &self.scratch, step.shape.tokens);
        let qkv = scratch.qkv.range(0, tokens * attention.qkv.weight.out);
        attention.qkv.weight.multiply(self.room(), normed, qkv, tokens, false)?;
        let bias = attention.qkv.bias.as_ref().map(|bias| bias.all());
        let query = scratch.query.range(0, tokens * attention.heads * attention.head_dim);
        if attention.reads_only {
            let &GpuAttention { heads, head_dim, .. } = attention;
            let norm = attention.head_norms.as_ref().map(|norms| (norms.query.all(), norms.eps));
            let queries = Queries { x: qkv, bias, norm, heads, head_dim, tokens };
            return Ok(rope_queries(device, &queries, &attention.turning.rotation(), step.positions, query)?);
        }
        let norms = attention.head_norms.as_ref().map(|norms| HeadNorms {
            query: norms.query.all(),
            key: norms.key.all(),
            value: norms.value.as_ref().map(|value| value.all()),
            eps: norms.eps,
        });
        let parts = Qkv { qkv, bias, norms, heads: attention.heads, tokens };
        let cache = self.cache_of(attention);
        Ok(rope_and_write_kv(
            device,
            &parts,
            &attention.turning.rotation(),
            (step.positions, step.slots),
            &cache,
            query,
        )?)
    }

    fn cache_of(&self, attention: &GpuAttention) -> Cache<'_> {
        let LayerCache::KeysAndValues { k, v } = &self.cache[attention.cache_layer] else {
            unreachable!("the layer whose K and V are read has them");
        };
        Cache {
            k: k.all(),
            v: v.all(),
            kv_heads: attention.kv_heads,
            block_size: self.sizes.block_size as usize,
            head_dim: attention.head_dim,
        }
    }

    /// What every token sees of its context, into `scratch.seen`.
    pub(super) fn attend_kv(&self, attention: &GpuAttention, step: &StepInput) -> Result<()> {
        let scratch = &self.scratch;
        let len = step.shape.tokens * attention.heads * attention.head_dim;
        let params = Params {
            scale: attention.scale,
            window: attention.window,
            softcap: attention.softcap,
            sinks: attention.sinks.as_ref().map(|sinks| sinks.all()),
            causal: true,
        };
        let queries = (scratch.query.range(0, len), scratch.seen.range(0, len));
        self.attend_cache(&self.cache_of(attention), attention.heads, &params, queries, step)?;
        match &attention.gate {
            Some(gate) => self.gate_seen(gate, queries.1, step.shape.tokens),
            None => Ok(()),
        }
    }

    /// Attention of queries over a layer's cache, into `seen`.
    pub(super) fn attend_cache(
        &self,
        cache: &Cache,
        heads: usize,
        params: &Params,
        (query, seen): (Slice, Slice),
        step: &StepInput,
    ) -> Result<()> {
        let device = &self.model.device;
        // Prompts fill the device as they are.
        let splits = match step.shape.query_max {
            1 => splits_for(step.shape.rows, cache.kv_heads, device.info().multiprocessors as usize),
            _ => 1,
        };
        let partial = self.scratch.partial.all();
        Ok(attention::attention(device, query, cache, heads, &step.rows, params, splits, partial, seen)?)
    }

    /// Nothing behind the last layer's attention looks at other tokens: goes on with the sampled ones alone.
    fn sampled<'a>(&'a self, layer: &GpuLayer, state: State, step: &StepInput) -> Result<(State<'a>, Slice<'a>)> {
        let (device, scratch, hidden) = (&self.model.device, &self.scratch, self.model.spec.hidden);
        let rows = step.shape.samples;
        let width = layer.mixer.width();
        if rows == step.shape.tokens {
            return Ok((
                State { hidden: scratch.hidden.range(0, rows * hidden), rows },
                scratch.seen.range(0, rows * width),
            ));
        }
        let to = scratch.sampled.range(0, rows * hidden);
        gather(device, state.hidden, step.sample_rows, to, hidden)?;
        let seen = scratch.query.range(0, rows * width);
        gather(device, scratch.seen.range(0, step.shape.tokens * width), step.sample_rows, seen, width)?;
        Ok((State { hidden: to, rows }, seen))
    }

    /// `hidden += down(activation(gate_up(normed)))`
    fn feed_forward(&self, mlp: &GpuMlp, normed: Slice, (state, sum): (State, Sum)) -> Result<()> {
        let (device, scratch, rows, width) = (&self.model.device, &self.scratch, state.rows, mlp.down.weight.input);
        let wide = scratch.wide.range(0, rows * mlp.gate_up.weight.out);
        mlp.gate_up.weight.multiply(self.room(), normed, wide, rows, false)?;
        let bias = mlp.gate_up.bias.as_ref().map(|bias| bias.all());
        let y = scratch.gated.range(0, rows * width);
        match mlp.between {
            Between::Gated(gate) => Gated { gate, x: wide, bias, y, rows, width }.on(device)?,
            Between::Active(active) => Activated { active, x: wide, bias, y, rows, width }.on(device)?,
        }
        self.add(&mlp.down, y, mlp.join.as_ref(), (state, sum))
    }

    /// `hidden += scale * norm(x w^T + bias)`
    pub(super) fn add(
        &self,
        linear: &GpuLinear,
        x: Slice,
        join: Option<&GpuJoin>,
        (state, sum): (State, Sum),
    ) -> Result<()> {
        let (device, width) = (&self.model.device, linear.weight.out);
        let bias = linear.bias.as_ref().map(|bias| bias.all());
        let Some(GpuJoin { norm, scale }) = join else {
            let adds = self.model.cut.share.rank == 0 || sum == Sum::End;
            linear.weight.multiply(self.room(), x, state.hidden, state.rows, adds)?;
            if let Some(bias) = bias {
                add_bias(device, bias, state.hidden, state.rows, width)?;
            }
            return if sum == Sum::Begin { Ok(()) } else { self.sum_up(state.hidden) };
        };
        let block = self.scratch.block.range(0, state.rows * width);
        linear.weight.multiply(self.room(), x, block, state.rows, false)?;
        self.sum_up(block)?;
        let norm = norm.as_ref().map(|(weight, eps)| (weight.all(), *eps));
        let State { hidden: residual, rows } = state;
        Ok(AddScaled { y: block, bias, norm, scale: *scale, residual, rows, dim: width }.on(device)?)
    }
}
