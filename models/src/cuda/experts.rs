// performance-critical: no allocation per token, no lock, no log, no format
//! A mixture of experts on a GPU: routes are chosen and sorted there, and each of the two products is one launch for all
//! experts. What `layers/moe.rs` does on the CPU, with the same order of sums.

use sconce_cuda::ops::activate::{Gate, Gated};
use sconce_cuda::ops::experts::{ExpertGemm, Fp8ExpertGemm, QuantExpertGemm, Source};
use sconce_cuda::ops::norm::AddScaled;
use sconce_cuda::ops::quant::QuantisedRows;
use sconce_cuda::ops::routes::{ExpertGroups, Routes, Routing, Scores, Scoring, Tiles};
use sconce_cuda::ops::share::add_share;
use sconce_cuda::{Buffer, Device, ElementType, Slice};

use super::parts::{Between, GpuJoin, GpuLinear, Maker, between};
use super::place::{Matrix, OnGpu, Room, Stack, StackValues};
use super::runner::CudaRunner;
use crate::error::{Error, Result};
use crate::layers::{Moe, SharedExpert};
use crate::spec::{GroupScore, Scoring as SpecScoring};

pub(super) struct GpuExperts {
    router: GpuLinear,
    routing: Routing,
    correction: Option<Buffer>,
    gate_up: Stack,
    /// F32 `[experts, 2 * ffn]`
    gate_up_bias: Option<Buffer>,
    down: Stack,
    /// F32 `[experts, hidden]`
    down_bias: Option<Buffer>,
    gate: Gate,
    shared: Option<GpuShared>,
    join: Option<GpuJoin>,
    /// Shares are factors on the experts' inputs, not on what they give.
    scales_input: bool,
}

/// The expert that every token sees.
struct GpuShared {
    gate_up: GpuLinear,
    down: GpuLinear,
    router: Option<GpuLinear>,
}

/// What a step has beside its tokens.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    pub normed: Slice<'a>,
    pub hidden: Slice<'a>,
    /// U32, `u32::MAX` for tokens that pad; without, none does.
    pub slots: Option<Slice<'a>>,
    pub count: usize,
}

/// Elements of the buffers that experts need.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lens {
    /// F32: scores of a router.
    pub scores: usize,
    /// U32: routes.
    pub routes: usize,
    /// T: between the products.
    pub wide: usize,
    pub gated: usize,
    /// F32: what experts give.
    pub given: usize,
    /// U8: rows in 8 bits.
    pub rows: usize,
}

/// Those buffers.
pub(super) struct ExpertScratch {
    scores: Buffer,
    routes: Buffer,
    wide: Buffer,
    gated: Buffer,
    given: Buffer,
    rows: Buffer,
}

impl Lens {
    fn max(self, other: Self) -> Self {
        Self {
            scores: self.scores.max(other.scores),
            routes: self.routes.max(other.routes),
            wide: self.wide.max(other.wide),
            gated: self.gated.max(other.gated),
            given: self.given.max(other.given),
            rows: self.rows.max(other.rows),
        }
    }

    /// Of all layers.
    pub fn of<'a>(layers: impl Iterator<Item = &'a GpuExperts>, tokens: usize) -> Self {
        layers.map(|experts| experts.lens(tokens)).fold(Self::default(), Self::max)
    }

    pub fn bytes(self, ty: ElementType) -> usize {
        4 * (self.scores + self.routes + self.given) + ty.bytes() * (self.wide + self.gated) + self.rows
    }
}

impl ExpertScratch {
    pub fn new(device: &Device, lens: Lens, ty: ElementType) -> Result<Self> {
        let Lens { scores, routes, wide, gated, given, rows } = lens;
        Ok(Self {
            scores: device.alloc(scores, ElementType::F32)?,
            routes: device.alloc(routes, ElementType::U32)?,
            wide: device.alloc(wide, ty)?,
            gated: device.alloc(gated, ty)?,
            given: device.alloc(given, ElementType::F32)?,
            rows: device.alloc(rows, ElementType::U8)?,
        })
    }
}

impl GpuExperts {
    pub(super) fn new(maker: &Maker, on: &OnGpu, moe: &Moe<Matrix>) -> Result<Self> {
        let Between::Gated(gate) = between(moe.activation)? else {
            return Err(Error::Batch("experts without a gate".to_owned()));
        };
        let choice = &moe.choice;
        let routing = Routing {
            experts: moe.experts.len(),
            per_token: choice.per_token,
            scoring: match choice.routing.scoring {
                SpecScoring::Softmax => Scoring::Softmax,
                SpecScoring::Sigmoid => Scoring::Sigmoid,
            },
            normalised: choice.normalised,
            scale: choice.routing.scale,
            groups: choice.routing.groups.map(|groups| ExpertGroups {
                count: groups.count,
                used: groups.used,
                by_best_two: groups.score == GroupScore::BestTwo,
            }),
        };
        let gate_ups: Vec<&Matrix> = moe.experts.iter().map(|expert| &expert.gate_up.weight).collect();
        let downs: Vec<&Matrix> = moe.experts.iter().map(|expert| &expert.down.weight).collect();
        let shared = moe.shared.as_ref().map(|SharedExpert { mlp, router }| {
            Ok::<_, Error>(GpuShared {
                gate_up: maker.linear(&mlp.gate_up)?,
                down: maker.linear(&mlp.down)?,
                router: router.as_ref().map(|router| maker.linear(router)).transpose()?,
            })
        });
        Ok(Self {
            router: maker.linear(&moe.router)?,
            routing,
            correction: choice.correction.as_ref().map(|values| on.device.upload(values)).transpose()?,
            gate_up: on.stack(&gate_ups)?,
            gate_up_bias: maker.biases(moe.experts.iter().map(|expert| &expert.gate_up))?,
            down: on.stack(&downs)?,
            // Summed over the ranks.
            down_bias: match on.cut.share.rank {
                0 => maker.biases(moe.experts.iter().map(|expert| &expert.down))?,
                _ => None,
            },
            gate,
            shared: shared.transpose()?,
            join: maker.join(moe.join.as_ref())?,
            scales_input: choice.routing.scales_input,
        })
    }

    fn lens(&self, tokens: usize) -> Lens {
        let routes = tokens * self.routing.per_token;
        let shared = self.shared.as_ref().map_or(0, |shared| shared.down.weight.input);
        let ffn = (routes * self.down.input).max(tokens * shared);
        let quantised = |stack: &Stack, rows: usize| match &stack.values {
            StackValues::Dense(_) | StackValues::Fp8(_) => 0,
            StackValues::Quantised(_) => QuantisedRows::bytes(rows, stack.input),
        };
        let (scaled, inputs) = if self.scales_input { (routes * self.gate_up.input, routes) } else { (0, tokens) };
        Lens {
            scores: tokens * self.routing.experts,
            routes: (1..=tokens).map(|tokens| self.routing.room_len(tokens)).max().unwrap_or(0),
            wide: 2 * ffn,
            gated: ffn.max(scaled),
            given: routes.max(tokens) * self.down.out,
            rows: quantised(&self.gate_up, inputs).max(quantised(&self.down, routes)),
        }
    }

    /// Matrices that are multiplied one by one.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let shared = self.shared.iter().flat_map(|shared| {
            let router = shared.router.as_ref().map(|router| &router.weight);
            [&shared.gate_up.weight, &shared.down.weight].into_iter().chain(router)
        });
        std::iter::once(&self.router.weight).chain(shared)
    }
}

impl Stack {
    /// `y[route] = x[source] w[expert]^T + bias[expert]`
    pub(super) fn multiply(
        &self,
        device: &Device,
        (x, rows, source): (Slice, usize, Source),
        bias: Option<&Buffer>,
        (y, room): (Slice, Slice),
        tiles: &Tiles,
    ) -> Result<()> {
        let bias = bias.map(Buffer::all);
        match &self.values {
            StackValues::Dense(w) => {
                let gemm = ExpertGemm { x, w: w.all(), bias, y, n: self.out, k: self.input, source };
                Ok(gemm.on(device, tiles)?)
            }
            StackValues::Fp8(w) => Ok(Fp8ExpertGemm { x, w, bias, y, source }.on(device, tiles)?),
            StackValues::Quantised(w) => {
                let rows = QuantisedRows::new(device, x, (rows, self.input), room)?;
                Ok(QuantExpertGemm { rows, w, bias, y, source }.on(device, tiles)?)
            }
        }
    }
}

impl CudaRunner {
    /// The block on normed hidden states, added to the hidden states.
    pub(super) fn experts(&self, experts: &GpuExperts, tokens: Tokens) -> Result<()> {
        let (device, scratch) = (self.device(), self.expert_scratch());
        let Tokens { normed, hidden, slots, count } = tokens;
        let (routing, width) = (&experts.routing, experts.down.out);
        let scores = scratch.scores.range(0, count * routing.experts);
        linear(&experts.router, self.room(), normed, scores, count)?;
        let correction = experts.correction.as_ref().map(Buffer::all);
        let chosen = Scores { scores, correction, slots, tokens: count };
        let mut routes = Routes::choose(device, &chosen, routing, scratch.routes.all())?;
        let (rows, ffn) = (routes.len(), experts.down.input);
        let (wide, gated) = (scratch.wide.range(0, rows * 2 * ffn), scratch.gated.range(0, rows * ffn));
        let given = scratch.given.range(0, rows * width);
        let mut from = (normed, count, Source::Token);
        if experts.scales_input {
            // Free until the first product is done.
            let scaled = scratch.gated.range(0, rows * experts.gate_up.input);
            routes = routes.scale_input(device, normed, scaled, experts.gate_up.input)?;
            from = (scaled, rows, Source::Route);
        }
        experts.gate_up.multiply(
            device,
            from,
            experts.gate_up_bias.as_ref(),
            (wide, scratch.rows.all()),
            &routes.tiles,
        )?;
        Gated { gate: experts.gate, x: wide, bias: None, y: gated, rows, width: ffn }.on(device)?;
        let from = (gated, rows, Source::Route);
        experts.down.multiply(device, from, experts.down_bias.as_ref(), (given, scratch.rows.all()), &routes.tiles)?;
        let sum = self.block(count * width);
        routes.combine(device, given, sum, width, false)?;
        if let Some(shared) = &experts.shared {
            self.shared_expert(shared, (normed, sum), experts.gate, count)?;
        }
        self.sum_up(sum)?;
        let (norm, scale) = experts
            .join
            .as_ref()
            .map_or((None, 1.0), |join| (join.norm.as_ref().map(|(weight, eps)| (weight.all(), *eps)), join.scale));
        Ok(AddScaled { y: sum, bias: None, norm, scale, residual: hidden, rows: count, dim: width }.on(device)?)
    }

    fn shared_expert(&self, shared: &GpuShared, (normed, sum): (Slice, Slice), gate: Gate, rows: usize) -> Result<()> {
        let (device, scratch) = (self.device(), self.expert_scratch());
        let (ffn, width) = (shared.down.weight.input, shared.down.weight.out);
        let (wide, gated) = (scratch.wide.range(0, rows * 2 * ffn), scratch.gated.range(0, rows * ffn));
        shared.gate_up.weight.multiply(self.room(), normed, wide, rows, false)?;
        Gated { gate, x: wide, bias: None, y: gated, rows, width: ffn }.on(device)?;
        let Some(router) = &shared.router else {
            return shared.down.weight.multiply(self.room(), gated, sum, rows, true);
        };
        let given = scratch.given.range(0, rows * width);
        shared.down.weight.multiply(self.room(), gated, given, rows, false)?;
        let scores = scratch.scores.range(0, rows);
        linear(router, self.room(), normed, scores, rows)?;
        Ok(add_share(device, given, scores, sum, (rows, width))?)
    }
}

/// `y = x w^T + bias`
fn linear(linear: &GpuLinear, room: Room, x: Slice, y: Slice, rows: usize) -> Result<()> {
    linear.weight.multiply(room, x, y, rows, false)?;
    if let Some(bias) = &linear.bias {
        sconce_cuda::ops::activate::add_bias(room.device, bias.all(), y, rows, linear.weight.out)?;
    }
    Ok(())
}
