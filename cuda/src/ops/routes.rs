//! Launches of `kernels/routes.cu`: which experts see which tokens, and the sum over a token's experts.

use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;
use crate::ops::quant::aligned;

const OP: &str = "routes";
const EXPERTS_MAX: usize = 1024;
const PER_TOKEN_MAX: usize = 32;
const GROUPS_MAX: usize = 64;

/// From so many routes an expert on average, its routes are multiplied 64 at a time instead of 8. Unmeasured: no GPU was
/// at hand.
const MANY_ROUTES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    Softmax,
    Sigmoid,
}

/// Only experts of the `used` best of `count` groups of neighbours are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    pub count: usize,
    pub used: usize,
    /// Groups are ranked by the sum of their best two experts, otherwise by their best.
    pub by_best_two: bool,
}

/// How a token's experts follow from its router's scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    pub experts: usize,
    pub per_token: usize,
    pub scoring: Scoring,
    /// A token's shares sum to `scale`; otherwise they are those among all experts, times `scale`.
    pub normalised: bool,
    pub scale: f32,
    pub groups: Option<ExpertGroups>,
}

/// What a router says of the tokens of a step.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    /// `[tokens, experts]` F32
    pub scores: Slice<'a>,
    /// Added to the weights while experts are chosen, not to the shares. `[experts]` F32
    pub correction: Option<Slice<'a>>,
    /// `[tokens]` U32: a token whose slot is `u32::MAX` is a padded one and sees no expert.
    pub slots: Option<Slice<'a>>,
    pub tokens: usize,
}

/// The routes of a step in device memory. Route `token * per_token + j` leads to a token's `j`-th expert, in ascending order.
#[derive(Debug, Clone, Copy)]
pub struct Routes<'a> {
    /// Experts of the routes; `u32::MAX` where there is none.
    pub ids: Slice<'a>,
    /// What each counts. F32
    pub shares: Slice<'a>,
    /// What the products of experts take.
    pub tiles: Tiles<'a>,
    /// The shares are in the experts' inputs already.
    is_scaled: bool,
}

/// Routes by expert, a tile of one expert's at a time, in device memory.
#[derive(Debug, Clone, Copy)]
pub struct Tiles<'a> {
    /// Routes by expert.
    pub order: Slice<'a>,
    pub(super) list: Slice<'a>,
    pub(super) tile_count: usize,
    pub(super) tile_routes: usize,
    pub(super) experts: usize,
    pub(super) per_token: usize,
    pub(super) tokens: usize,
}

impl<'a> Tiles<'a> {
    /// Of tokens that all see all of `experts` experts, as the heads of latent attention see them: route `token * experts + e`
    /// leads to expert `e`. Into `room` U32 of [`Self::every_len`].
    pub fn every(device: &Device, tokens: usize, experts: usize, room: Slice<'a>) -> Result<Self> {
        let tiles = Self::every_again(tokens, experts, room)?;
        let launch = Launch::new("routes_every").grid((tokens * experts).div_ceil(256), 1, 1).block(256, 1);
        let launch = launch.slice(tiles.order).slice(tiles.list).int(tokens).int(experts);
        launch.int(tiles.tile_routes).on(device)?;
        Ok(tiles)
    }

    /// What an earlier [`Self::every`] with these arguments has left in `room`.
    pub fn every_again(tokens: usize, experts: usize, room: Slice<'a>) -> Result<Self> {
        room.require(OP, "room", ElementType::U32, Self::every_len(tokens, experts))?;
        aligned(OP, "room", room)?;
        if experts == 0 || tokens * experts > i32::MAX as usize {
            return Err(shape(OP, format!("{tokens} tokens for all of {experts} experts")));
        }
        let (columns, each) = Self::every_tile(tokens);
        let list = room.range(0, 4 * each * experts);
        let order = room.range(list.len(), tokens * experts);
        let (tile_count, tile_routes) = (each * experts, columns);
        Ok(Self { order, list, tile_count, tile_routes, experts, per_token: experts, tokens })
    }

    /// Elements of U32 that [`Self::every`] needs.
    pub fn every_len(tokens: usize, experts: usize) -> usize {
        (4 * Self::every_tile(tokens).1 + tokens) * experts
    }

    /// Routes that are multiplied at a time, and how many such tiles an expert has.
    fn every_tile(tokens: usize) -> (usize, usize) {
        let columns = if tokens < MANY_ROUTES { 8 } else { 64 };
        (columns, tokens.div_ceil(columns))
    }

    /// How many routes there can be: rows of what goes between the experts' products.
    pub fn len(&self) -> usize {
        self.tokens * self.per_token
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Routing {
    fn check(&self) -> Result<()> {
        let Self { experts, per_token, groups, .. } = *self;
        if experts == 0 || experts > EXPERTS_MAX || per_token == 0 || per_token > experts.min(PER_TOKEN_MAX) {
            return Err(shape(OP, format!("{per_token} of {experts} experts a token")));
        }
        let Some(ExpertGroups { count, used, .. }) = groups else { return Ok(()) };
        let is_sound =
            (1..=GROUPS_MAX).contains(&count) && experts.is_multiple_of(count) && (1..=count).contains(&used);
        match is_sound && experts / count * used >= per_token {
            true => Ok(()),
            false => Err(shape(OP, format!("{used} of {count} groups for {per_token} of {experts} experts a token"))),
        }
    }

    /// Routes that are multiplied at a time, and how many such tiles there can be.
    fn tiles(&self, tokens: usize) -> (usize, usize) {
        let routes = tokens * self.per_token;
        let columns = if routes < MANY_ROUTES * self.experts { 8 } else { 64 };
        (columns, self.experts.min(routes) + routes / columns)
    }

    /// Elements of U32 that [`Routes::choose`] needs for so many tokens.
    pub fn room_len(&self, tokens: usize) -> usize {
        self.tiles(tokens).1 * 4 + 3 * tokens * self.per_token + 2 * self.experts
    }
}

impl<'a> Routes<'a> {
    /// Chooses experts and sorts the routes, into `room` U32.
    pub fn choose(device: &Device, scores: &Scores, routing: &Routing, room: Slice<'a>) -> Result<Self> {
        routing.check()?;
        let Routing { experts, per_token, .. } = *routing;
        let tokens = scores.tokens;
        scores.scores.require(OP, "scores", ElementType::F32, tokens * experts)?;
        if let Some(correction) = scores.correction {
            correction.require(OP, "correction", ElementType::F32, experts)?;
        }
        if let Some(slots) = scores.slots {
            slots.require(OP, "slots", ElementType::U32, tokens)?;
        }
        room.require(OP, "room", ElementType::U32, routing.room_len(tokens))?;
        aligned(OP, "room", room)?;
        let routes = tokens * per_token;
        let (columns, bound) = routing.tiles(tokens);
        let mut at = 0;
        let mut take = |len: usize| {
            at += len;
            room.range(at - len, len)
        };
        // Tiles first: they are read 16 bytes at a time.
        let (list, ids, shares, order) = (take(4 * bound), take(routes), take(routes), take(routes));
        let (first, count) = (take(experts), take(experts));
        let found = Self {
            ids,
            shares: shares.cast(OP, ElementType::F32)?,
            tiles: Tiles { order, list, tile_count: bound, tile_routes: columns, experts, per_token, tokens },
            is_scaled: false,
        };
        found.pick(device, scores, routing)?;
        let launch = Launch::new("routes_sort").grid(if routes > 0 { experts } else { 0 }, 1, 1).block(256, 1);
        launch.slice(ids).slice(order).slice(first).slice(count).int(routes).on(device)?;
        let launch = Launch::new("routes_tiles").grid(usize::from(routes > 0), 1, 1).block(1024, 1);
        launch.slice(first).slice(count).slice(list).int(experts).int(columns).int(bound).on(device)?;
        Ok(found)
    }

    fn pick(&self, device: &Device, scores: &Scores, routing: &Routing) -> Result<()> {
        let (groups, used, by_best_two) = match routing.groups {
            Some(ExpertGroups { count, used, by_best_two }) => (count, used, by_best_two),
            None => (0, 0, false),
        };
        let Tiles { tokens, experts, per_token, .. } = self.tiles;
        let launch = Launch::new("routes_choose").grid(tokens.div_ceil(4), 1, 1).block(128, 1);
        let launch = launch.shared_bytes(4 * (experts + GROUPS_MAX) * size_of::<f32>());
        let launch = launch.slice(scores.scores).slice_or_null(scores.correction).slice_or_null(scores.slots);
        let launch = launch.slice(self.ids).slice(self.shares);
        let launch = launch.int(tokens).int(experts).int(per_token);
        let launch = launch.int(usize::from(routing.scoring == Scoring::Sigmoid)).int(usize::from(routing.normalised));
        launch.float(routing.scale).int(groups).int(used).int(usize::from(by_best_two)).on(device)
    }

    /// How many routes there can be: rows of what goes between the experts' products.
    pub fn len(&self) -> usize {
        self.tiles.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `y[route] = share * x[token]`: x `[tokens, width]` and y `[routes, width]` of one type. The same routes with nothing left
    /// to scale behind the experts; rows of routes that do not exist are not written.
    pub fn scale_input(&self, device: &Device, x: Slice, y: Slice, width: usize) -> Result<Self> {
        const OP: &str = "input of experts";
        x.require(OP, "x", x.ty(), self.tiles.tokens * width)?;
        y.require(OP, "y", x.ty(), self.len() * width)?;
        let kernel = match x.ty() {
            ElementType::F32 => "experts_scale_f32",
            ElementType::F16 => "experts_scale_f16",
            ElementType::Bf16 => "experts_scale_bf16",
            other => return Err(shape(OP, format!("x cannot be {}", other.name()))),
        };
        let launch = Launch::new(kernel).grid(self.len(), width.div_ceil(256), 1).block(256, 1);
        let launch = launch.slice(x).slice(self.ids).slice(self.shares).slice(y);
        launch.int(width).int(self.tiles.per_token).on(device)?;
        Ok(Self { is_scaled: true, ..*self })
    }

    /// `y[token] = sum of share * x[route]` over a token's routes in ascending order of experts, or added to y: x
    /// `[routes, width]`, y `[tokens, width]` F32. Shares are 1 where the input was scaled. Padded tokens are added nothing, or become zero.
    pub fn combine(&self, device: &Device, x: Slice, y: Slice, width: usize, add: bool) -> Result<()> {
        const OP: &str = "sum over experts";
        x.require(OP, "x", x.ty(), self.len() * width)?;
        y.require(OP, "y", ElementType::F32, self.tiles.tokens * width)?;
        let kernel = match x.ty() {
            ElementType::F32 => "experts_combine_f32",
            ElementType::F16 => "experts_combine_f16",
            ElementType::Bf16 => "experts_combine_bf16",
            other => return Err(shape(OP, format!("x cannot be {}", other.name()))),
        };
        let launch = Launch::new(kernel).grid(self.tiles.tokens, width.div_ceil(256), 1).block(256, 1);
        let shares = (!self.is_scaled).then_some(self.shares);
        let launch = launch.slice(x).slice(self.ids).slice_or_null(shares).slice(y);
        launch.int(width).int(self.tiles.per_token).int(usize::from(add)).on(device)
    }
}
