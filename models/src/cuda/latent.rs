// performance-critical: no allocation per token, no lock, no log, no format
//! Latent attention on a GPU: the cache has one vector a token, which every head reads. What `layers/latent.rs` does on the CPU:
//! a head's key matrix is applied to its query, its value matrix to what it has seen.
//!
//! The heads' matrices are multiplied as those of experts are, where every token sees all of them.

use std::sync::Arc;

use sconce_cuda::ops::activate::add_bias;
use sconce_cuda::ops::attention::{Params, splits_for};
use sconce_cuda::ops::attention_latent::{OverLatents, has_latent_kernel};
use sconce_cuda::ops::columns::{place_columns, take_columns};
use sconce_cuda::ops::experts::Source;
use sconce_cuda::ops::latent::{SplitQueries, WriteLatents, norm_first};
use sconce_cuda::ops::quant::QuantisedRows;
use sconce_cuda::ops::rope::Cache;
use sconce_cuda::ops::routes::Tiles;
use sconce_cuda::{Buffer, Device, ElementType, Slice};

use super::CudaModel;
use super::cache::{LayerCache, kv_element};
use super::parts::{GpuJoin, GpuLinear, GpuNorm, Maker, Turning};
use super::place::{Matrix, Stack, StackValues};
use super::runner::{CudaRunner, CudaSizes};
use super::step::StepInput;
use crate::error::Result;
use crate::layers::{LatentAttention, Linear};
use crate::spec::Latent;

pub(super) struct GpuLatent {
    pub norm: GpuNorm,
    /// Queries (or what they pass through), then latent, then the shared key. `[query + rank + rotated, hidden]`
    down: GpuLinear,
    query_up: Option<(Buffer, f32, GpuLinear)>,
    latent_norm: (Buffer, f32),
    /// `[heads, rank, plain]`
    key: Stack,
    /// `[heads, value, rank]`
    value: Stack,
    pub output: GpuLinear,
    pub join: Option<GpuJoin>,
    turning: Arc<Turning>,
    sizes: Latent,
    heads: usize,
    scale: f32,
}

/// Elements of the buffers that latent attention needs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lens {
    /// F32: latents, keys and what goes to queries.
    pub down: usize,
    /// T: what queries pass through; queries; the part of them that is not rotated.
    pub through: usize,
    pub queries: usize,
    pub plain: usize,
    /// T: a latent a head.
    pub latents: usize,
    /// T: what attention gives.
    pub mixed: usize,
    /// U32: the heads of all tokens.
    pub tiles: usize,
    /// U8: rows in 8 bits.
    pub rows: usize,
}

/// Those buffers.
pub(super) struct LatentScratch {
    down: Buffer,
    through: Buffer,
    queries: Buffer,
    plain: Buffer,
    latents: Buffer,
    mixed: Buffer,
    tiles: Buffer,
    rows: Buffer,
}

impl Lens {
    /// Of steps of up to `tokens` tokens; nothing of a model with another kind of attention.
    pub fn of(model: &CudaModel, sizes: CudaSizes, tokens: usize) -> Self {
        let (spec, parts) = (&model.spec, &model.parts);
        let Some(Latent { query_rank, rank, plain, .. }) = spec.latent else { return Self::default() };
        let (latent, heads) = (spec.latent.map_or(0, |latent| latent.width()), tokens * spec.heads);
        let types = (model.ty, kv_element(sizes.kv_dtype, model.ty));
        let has_kernel = has_latent_kernel(&model.device, types, (latent - rank, rank));
        let queries = spec.heads * spec.latent.map_or(0, |latent| latent.query());
        Self {
            down: tokens * (query_rank.unwrap_or(queries) + latent),
            through: tokens * query_rank.unwrap_or(0),
            queries: if query_rank.is_some() { tokens * queries } else { 0 },
            plain: heads * plain,
            latents: heads * rank,
            mixed: if has_kernel { 0 } else { heads * latent },
            tiles: (1..=tokens).map(|tokens| Tiles::every_len(tokens, spec.heads)).max().unwrap_or(0),
            rows: parts.latents().flat_map(|layer| [&layer.key, &layer.value]).map(in_8_bits(heads)).max().unwrap_or(0),
        }
    }

    pub fn bytes(self, ty: ElementType) -> usize {
        let values = self.through + self.queries + self.plain + self.latents + self.mixed;
        4 * (self.down + self.tiles) + ty.bytes() * values + self.rows
    }
}

/// Bytes that so many rows of a product's input take in 8 bits, where its matrices are quantised.
fn in_8_bits(rows: usize) -> impl Fn(&Stack) -> usize {
    move |stack| match &stack.values {
        StackValues::Dense(_) | StackValues::Fp8(_) => 0,
        StackValues::Quantised(_) => QuantisedRows::bytes(rows, stack.input),
    }
}

impl LatentScratch {
    pub fn new(device: &Device, lens: Lens, ty: ElementType) -> Result<Self> {
        Ok(Self {
            down: device.alloc(lens.down, ElementType::F32)?,
            through: device.alloc(lens.through, ty)?,
            queries: device.alloc(lens.queries, ty)?,
            plain: device.alloc(lens.plain, ty)?,
            latents: device.alloc(lens.latents, ty)?,
            mixed: device.alloc(lens.mixed, ty)?,
            tiles: device.alloc(lens.tiles, ElementType::U32)?,
            rows: device.alloc(lens.rows, ElementType::U8)?,
        })
    }
}

impl GpuLatent {
    pub fn new(maker: &mut Maker, index: usize, attention: &LatentAttention<Matrix>) -> Result<Self> {
        let stack =
            |heads: &[Linear<Matrix>]| maker.on.stack(&heads.iter().map(|head| &head.weight).collect::<Vec<_>>());
        let (key, value) = (stack(&attention.key)?, stack(&attention.value)?);
        let query_up = match &attention.query_up {
            Some((norm, up)) => Some((maker.vector(&norm.weight)?, norm.eps, maker.linear(up)?)),
            None => None,
        };
        Ok(Self {
            norm: maker.norm(&attention.norm)?,
            down: maker.linear(&attention.down)?,
            query_up,
            latent_norm: (maker.vector(&attention.latent_norm.weight)?, attention.latent_norm.eps),
            key,
            value,
            output: maker.linear(&attention.output)?,
            join: maker.join(attention.join.as_ref())?,
            turning: maker.turning(index)?,
            sizes: attention.sizes,
            heads: attention.key.len(),
            scale: attention.scale,
        })
    }

    /// Of what it gives of a token, before the output projection.
    pub fn width(&self) -> usize {
        self.heads * self.sizes.value
    }

    /// Matrices that are multiplied one by one.
    pub fn matrices(&self) -> Vec<&Matrix> {
        let up = self.query_up.iter().map(|(_, _, up)| &up.weight);
        [&self.down.weight, &self.output.weight].into_iter().chain(up).collect()
    }
}

impl CudaRunner {
    /// The heads of all tokens of a step, for the products of [`Self::each_head`] of all layers.
    pub(super) fn name_heads(&self, step: &StepInput) -> Result<()> {
        if self.model.spec.latent.is_some() {
            let (tokens, heads) = (step.shape.tokens, self.model.spec.heads);
            Tiles::every(&self.model.device, tokens, heads, self.scratch.latent.tiles.all())?;
        }
        Ok(())
    }

    /// From the normed hidden state: the step's vectors into the cache, queries as wide as those into `scratch.query`.
    pub(super) fn write_latents(
        &self,
        index: usize,
        latent: &GpuLatent,
        normed: Slice,
        step: &StepInput,
    ) -> Result<()> {
        let (device, scratch, tokens) = (&self.model.device, &self.scratch.latent, step.shape.tokens);
        let (GpuLatent { sizes, heads, .. }, stride) = (latent, latent.down.weight.out);
        let (heads, rotation) = (*heads, latent.turning.rotation());
        let down = scratch.down.range(0, tokens * stride);
        latent.down.weight.multiply(self.room(), normed, down, tokens, false)?;
        if let Some(bias) = &latent.down.bias {
            add_bias(device, bias.all(), down, tokens, stride)?;
        }
        let LayerCache::Vectors(cache) = &self.cache[index] else {
            unreachable!("a layer of latent attention has vectors");
        };
        let (positions, slots, first) = (step.positions, step.slots, stride - sizes.width());
        let (weight, eps) = (latent.latent_norm.0.all(), latent.latent_norm.1);
        let cache = cache.all();
        WriteLatents { x: down, stride, first, weight, eps, rotation, positions, slots, cache, tokens }.on(device)?;
        let (mut x, mut query_stride) = (down, stride);
        if let Some((weight, eps, up)) = &latent.query_up {
            let through = scratch.through.range(0, tokens * weight.len());
            norm_first(device, (down, stride), (weight.all(), *eps), through, tokens)?;
            (x, query_stride) = (scratch.queries.range(0, tokens * up.weight.out), up.weight.out);
            up.weight.multiply(self.room(), through, x, tokens, false)?;
        }
        let (plain, width) = (sizes.plain, sizes.width());
        let to_plain = scratch.plain.range(0, tokens * heads * plain);
        let q = self.scratch.query.range(0, tokens * heads * width);
        let stride = query_stride;
        SplitQueries { x, stride, heads, plain, rotation, positions, to_plain, q, width, tokens }.on(device)?;
        let on_latents = scratch.latents.range(0, tokens * heads * sizes.rank);
        self.each_head(&latent.key, to_plain, on_latents, tokens)?;
        Ok(place_columns(device, on_latents, q, tokens * heads, (sizes.rotated, sizes.rank, width))?)
    }

    /// What every token sees of its context, into `scratch.seen`.
    pub(super) fn attend_latents(&self, index: usize, latent: &GpuLatent, step: &StepInput) -> Result<()> {
        let (device, scratch, tokens) = (&self.model.device, &self.scratch.latent, step.shape.tokens);
        let (sizes, heads) = (&latent.sizes, latent.heads);
        let (rows, width) = (tokens * heads, sizes.width());
        let LayerCache::Vectors(cache) = &self.cache[index] else {
            unreachable!("a layer of latent attention has vectors");
        };
        let (q, block_size, scale) =
            (self.scratch.query.range(0, rows * width), self.sizes.block_size as usize, latent.scale);
        let latents = scratch.latents.range(0, rows * sizes.rank);
        let (rotated, rank) = (sizes.rotated, sizes.rank);
        if has_latent_kernel(device, (q.ty(), cache.all().ty()), (rotated, rank)) {
            let splits = match step.shape.query_max {
                1 => splits_for(step.shape.rows * heads.div_ceil(16), 1, device.info().multiprocessors as usize),
                _ => 1,
            };
            let (cache, out) = (cache.all(), latents);
            let attention = OverLatents { q, cache, out, heads, rotated, rank, block_size, scale };
            attention.on(device, &step.rows, splits, self.scratch.partial.all())?;
        } else {
            // To attention it is one head whose keys are its values.
            let cache = Cache { k: cache.all(), v: cache.all(), kv_heads: 1, block_size, head_dim: width };
            let mixed = scratch.mixed.range(0, rows * width);
            let params = Params { scale, window: None, softcap: None, sinks: None, causal: true };
            self.attend_cache(&cache, heads, &params, (q, mixed), step)?;
            take_columns(device, mixed, latents, rows, (rotated, rank, width))?;
        }
        self.each_head(&latent.value, latents, self.scratch.seen.range(0, rows * sizes.value), tokens)
    }

    /// Each head's own matrix times its part of x `[tokens, heads, input]`: y `[tokens, heads, out]`.
    fn each_head(&self, matrices: &Stack, x: Slice, y: Slice, tokens: usize) -> Result<()> {
        let (device, scratch, heads) = (&self.model.device, &self.scratch.latent, self.model.spec.heads);
        let tiles = Tiles::every_again(tokens, heads, scratch.tiles.all())?;
        matrices.multiply(device, (x, tokens * heads, Source::Route), None, (y, scratch.rows.all()), &tiles)
    }
}
