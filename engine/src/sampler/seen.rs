// performance-critical: no lock, no log, no format; allocates only as new token ids appear
//! Which tokens a sequence has had, counted as they come: what penalties need, without reading the context again.

use std::collections::HashMap;

use super::SamplingParams;

/// The distinct tokens of one sequence.
#[derive(Debug, Clone, Default)]
pub struct SeenTokens {
    /// Token id, and how often the output has it (0: only the prompt does).
    counts: Vec<(u32, u32)>,
    /// Token id to its place in `counts`.
    places: HashMap<u32, usize>,
}

impl SeenTokens {
    /// Of a prompt, for parameters that have penalties. Only the repetition penalty looks at the prompt.
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Option<Self> {
        if !has_penalties(params) {
            return None;
        }
        let mut seen = Self::default();
        if params.repetition_penalty != 1.0 {
            for token in prompt {
                seen.place(*token);
            }
        }
        Some(seen)
    }

    /// Counts a generated token.
    pub fn push(&mut self, token: u32) {
        let place = self.place(token);
        self.counts[place].1 += 1;
    }

    fn place(&mut self, token: u32) -> usize {
        let new = self.counts.len();
        let place = *self.places.entry(token).or_insert(new);
        if place == new {
            self.counts.push((token, 0));
        }
        place
    }

    /// Repetition divides positive logits and multiplies negative ones (Keskar et al. 2019, as Transformers does) of
    /// every token seen; frequency and presence subtract for those generated (OpenAI's definition). `more` are generated
    /// tokens that were not counted yet; there are few of them.
    pub(super) fn penalise(&self, params: &SamplingParams, more: &[u32], logits: &mut [f32]) {
        let further = |token: u32| more.iter().filter(|other| **other == token).count() as u32;
        for (token, count) in &self.counts {
            apply(params, *token, count + further(*token), logits);
        }
        for (place, token) in more.iter().enumerate() {
            if !self.places.contains_key(token) && !more[..place].contains(token) {
                apply(params, *token, further(*token), logits);
            }
        }
    }

    /// Adds every token seen to `list`, once, with how often the output has it.
    pub(super) fn list(&self, more: &[u32], list: &mut Vec<(u32, u32)>) {
        let start = list.len();
        list.extend_from_slice(&self.counts);
        for token in more {
            let place = self.places.get(token).map(|place| start + place);
            let place = place.or_else(|| (start + self.counts.len()..list.len()).find(|at| list[*at].0 == *token));
            match place {
                Some(place) => list[place].1 += 1,
                None => list.push((*token, 1)),
            }
        }
    }
}

pub(super) fn apply(params: &SamplingParams, token: u32, output_count: u32, logits: &mut [f32]) {
    let Some(logit) = logits.get_mut(token as usize) else { return };
    *logit = if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty };
    // A tiny penalty takes it beyond what f32 holds; that is the client's wish, not a fault of the model.
    *logit = logit.min(f32::MAX);
    if output_count > 0 {
        *logit -= params.frequency_penalty * output_count as f32 + params.presence_penalty;
    }
}

fn has_penalties(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0 || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0
}
