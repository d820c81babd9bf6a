// performance-critical: no allocation per token, no lock, no log, no format
//! A mixture of experts: each token goes through the few feed-forward blocks that its router scores highest.
//!
//! The tokens of a step are grouped by expert, so that an expert's weights are read once a step. Invariant: a token's
//! experts are added in ascending order, so its result does not depend on which other tokens are in the step.

use candle_core::Tensor;
use sconce_kernels::{PackedWeight, Prologue, add_scaled, rms_norm};

use super::{Choice, Join, Linear, RmsNorm};
use crate::error::Result;

/// One feed-forward block without a norm.
pub(crate) struct ExpertMlp<M = PackedWeight> {
    /// Gate above up. `[2 * ffn, hidden]`
    pub gate_up: Linear<M>,
    /// `[hidden, ffn]`
    pub down: Linear<M>,
}

/// The expert that every token sees.
pub(crate) struct SharedExpert<M = PackedWeight> {
    pub mlp: ExpertMlp<M>,
    /// `[1, hidden]`: a token takes `sigmoid` of it; all of it without.
    pub router: Option<Linear<M>>,
}

pub(crate) struct Moe<M = PackedWeight> {
    pub norm: RmsNorm,
    /// `[experts, hidden]`
    pub router: Linear<M>,
    pub experts: Vec<ExpertMlp<M>>,
    pub shared: Option<SharedExpert<M>>,
    pub choice: Choice,
    pub activation: Prologue<'static>,
    pub join: Option<Join>,
}

/// A token's way through one expert.
struct Route {
    expert: u32,
    token: u32,
    share: f32,
}

impl Moe {
    /// The block on `hidden` with its norm, added to `residual`: all `[tokens, hidden]`.
    pub fn forward(&self, hidden: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (tokens, width) = hidden.dims2()?;
        let normed = rms_norm(hidden, &self.norm.weight, self.norm.eps)?;
        let routes = self.routes(&normed, tokens)?;
        let mut sum = vec![0.0; tokens * width];
        let (mut rows, mut y) = (Vec::new(), Vec::new());
        for routes in routes.chunk_by(|a, b| a.expert == b.expert) {
            let expert = &self.experts[routes[0].expert as usize];
            rows.clear();
            rows.extend(routes.iter().map(|route| route.token));
            // [rows, hidden]
            let mut x = if rows.len() == tokens {
                // Routes of an expert are in the order of their tokens: these are all of them.
                normed.clone()
            } else {
                normed.index_select(&Tensor::from_slice(&rows, rows.len(), hidden.device())?, 0)?
            };
            let scales_input = self.choice.routing.scales_input;
            if scales_input {
                let shares: Vec<f32> = routes.iter().map(|route| route.share).collect();
                x = x.broadcast_mul(&Tensor::from_vec(shares, (routes.len(), 1), hidden.device())?)?;
            }
            self.run(expert, &x, &mut y)?;
            for (route, y) in routes.iter().zip(y.chunks_exact(width)) {
                let share = if scales_input { 1.0 } else { route.share };
                add(&mut sum[route.token as usize * width..][..width], share, y);
            }
        }
        if let Some(shared) = &self.shared {
            let mut shares = Vec::with_capacity(tokens);
            match &shared.router {
                Some(router) => {
                    router.forward_into(&normed, Prologue::None, &mut shares)?;
                    shares.iter_mut().for_each(|share| *share = 1.0 / (1.0 + (-*share).exp()));
                }
                None => shares.resize(tokens, 1.0),
            }
            self.run(&shared.mlp, &normed, &mut y)?;
            for ((sum, share), y) in sum.chunks_exact_mut(width).zip(shares).zip(y.chunks_exact(width)) {
                add(sum, share, y);
            }
        }
        let sum = Tensor::from_vec(sum, (tokens, width), hidden.device())?;
        match &self.join {
            None => Ok(add_scaled(&sum, residual, None, 1.0)?),
            Some(join) => join.add(&sum, residual),
        }
    }

    fn run(&self, expert: &ExpertMlp, x: &Tensor, y: &mut Vec<f32>) -> Result<()> {
        y.clear();
        expert.down.forward_into(&expert.gate_up.forward(x, Prologue::None)?, self.activation, y)
    }

    /// The ways of all tokens, by expert and then by token.
    fn routes(&self, normed: &Tensor, tokens: usize) -> Result<Vec<Route>> {
        let mut scores = Vec::with_capacity(tokens * self.experts.len());
        self.router.forward_into(normed, Prologue::None, &mut scores)?;
        let mut routes = Vec::with_capacity(tokens * self.choice.per_token);
        let (mut room, mut best) = (Vec::new(), Vec::with_capacity(self.choice.per_token + 1));
        for (token, scores) in scores.chunks_exact(self.experts.len()).enumerate() {
            self.choice.choose(scores, &mut room, &mut best);
            let way = |&(expert, share): &(u32, f32)| Route { expert, token: token as u32, share };
            routes.extend(best.iter().map(way));
        }
        routes.sort_unstable_by_key(|route| (route.expert, route.token));
        Ok(routes)
    }
}

/// `sum += share * y`
fn add(sum: &mut [f32], share: f32, y: &[f32]) {
    sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += share * y);
}
