// performance-critical: no allocation per token, no lock, no log, no format
//! Which experts see a token, and how much each counts.

use sconce_kernels::top_k;

use crate::spec::{GroupScore, Routing, Scoring};

pub(crate) struct Choice {
    pub per_token: usize,
    /// The shares of a token's experts sum to one; otherwise they are those among all experts.
    pub normalised: bool,
    pub routing: Routing,
    /// Added to the scores while experts are chosen, not to their shares. `[experts]`
    pub correction: Option<Vec<f32>>,
}

impl Choice {
    /// Experts and shares of a token from its router's `scores` `[experts]`. `room` is used up.
    pub fn choose(&self, scores: &[f32], room: &mut Vec<f32>, best: &mut Vec<(u32, f32)>) {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |score: f32| match self.routing.scoring {
            Scoring::Softmax => (score - largest).exp(),
            Scoring::Sigmoid => 1.0 / (1.0 + (-score).exp()),
        };
        let all = match self.routing.scoring {
            Scoring::Softmax => scores.iter().map(|score| weight(*score)).sum(),
            Scoring::Sigmoid => 1.0,
        };
        room.clear();
        match &self.correction {
            // Weights are in the order of scores.
            None => room.extend_from_slice(scores),
            Some(corrections) => {
                room.extend(scores.iter().zip(corrections).map(|(score, correction)| weight(*score) / all + correction))
            }
        }
        self.pick(room, best);
        best.iter_mut().for_each(|(expert, share)| *share = weight(scores[*expert as usize]));
        let total: f32 = if self.normalised { best.iter().map(|(_, share)| share).sum() } else { all };
        // Sigmoids may all be zero.
        let total = total.max(f32::MIN_POSITIVE);
        best.iter_mut().for_each(|(_, share)| *share = *share / total * self.routing.scale);
    }

    /// The best experts with their scores, of the best groups only where there are groups.
    fn pick(&self, scores: &mut [f32], best: &mut Vec<(u32, f32)>) {
        if let Some(groups) = &self.routing.groups {
            let size = scores.len() / groups.count;
            let of_group = |group: &[f32]| {
                let (first, second) =
                    group.iter().fold((f32::NEG_INFINITY, f32::NEG_INFINITY), |(first, second), &x| {
                        if x > first { (x, first) } else { (first, second.max(x)) }
                    });
                match groups.score {
                    GroupScore::Best => first,
                    GroupScore::BestTwo => first + second,
                }
            };
            let mut of_groups = [0.0; Routing::GROUPS_MAX];
            scores.chunks_exact(size).zip(&mut of_groups).for_each(|(group, score)| *score = of_group(group));
            top_k(&of_groups[..groups.count], groups.used, best);
            for (index, group) in scores.chunks_exact_mut(size).enumerate() {
                if best.iter().all(|(kept, _)| *kept as usize != index) {
                    group.fill(f32::NEG_INFINITY);
                }
            }
        }
        top_k(scores, self.per_token, best);
    }
}
