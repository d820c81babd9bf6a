// performance-critical: no lock, no log; allocates only what leaves as log probabilities, formats only a failure
//! The sampler's half of a step that a device samples: what is wanted of each row of logits, and what became of it.
//!
//! The device chooses as [`Sampler`] does, so that a sequence gets the same tokens either way, but for rounding where a
//! draw falls on the edge between two. Rows that it cannot do come back as logits and go the usual way.

use std::ops::Range;

use sconce_models::{Logits, Sample, SampleRequest, SampleRequests, SampleScores, Want};

use super::{
    History, NOTHING_LEFT, Sampler, SamplingParams, first_unsound, forbid, forced, holds_stops, peak, uniform,
};
use crate::executor::SamplingLimits;
use crate::filter::{NextTokens, Restriction};
use crate::scheduler::{Row, Scheduler, Step};
use crate::sequence::{Sequence, Token, TokenLogprobs};

/// What there is of a step: logits of all rows, or a device's answers and the logits that came back.
#[derive(Clone, Copy)]
pub(super) struct Answers<'a> {
    pub logits: &'a Logits,
    pub samples: Option<&'a [Sample]>,
}

/// What there is of one row.
pub(super) enum Place<'a> {
    Logits(&'a [f32]),
    Answer(&'a Sample),
}

impl<'a> Answers<'a> {
    /// Rows in all.
    pub fn len(self) -> usize {
        let in_logits = || self.logits.values.len().checked_div(self.logits.vocab).unwrap_or(0);
        self.samples.map_or_else(in_logits, <[Sample]>::len)
    }

    pub fn place(self, index: usize) -> Place<'a> {
        match self.samples.map(|samples| &samples[index]) {
            None => Place::Logits(self.logits.row(index)),
            Some(Sample::Logits(row)) => Place::Logits(self.logits.row(*row)),
            // What its filter decides needs no logits.
            Some(Sample::Nothing) => Place::Logits(&[]),
            Some(sample) => Place::Answer(sample),
        }
    }
}

/// Describes what is wanted of each row of a step's logits, in their order. What filters say must be known.
pub fn request(scheduler: &Scheduler, step: &Step, limits: SamplingLimits, wanted: &mut SampleRequests) {
    wanted.clear();
    for row in &step.rows {
        request_row(scheduler.sequence(row), row, limits, wanted);
    }
}

fn request_row(sequence: &Sequence, row: &Row, limits: SamplingLimits, wanted: &mut SampleRequests) {
    let params = &sequence.params;
    let can_score = |top: u32| top <= limits.top_logprobs_max;
    for position in row.scored() {
        let top = params.prompt_logprobs.unwrap_or(0);
        let want = if can_score(top) { Want::Score(sequence.tokens()[position + 1]) } else { Want::Logits };
        wanted.rows.push(SampleRequest { logprobs: Some(top), ..SampleRequest::new(want) });
    }
    if !row.sample {
        return;
    }
    let drafts = sequence.drafts();
    // Of a step behind another, one more than the sequence has.
    let known = row.start + row.count - row.drafts - sequence.prompt_len();
    for place in 0..=drafts.len() {
        let output_len = known + place;
        let history = History { output_len, seen: sequence.seen(), unseen: &drafts[..place] };
        let next = match sequence.restriction() {
            Restriction::None => None,
            Restriction::Only(next) => Some(next),
            Restriction::Failed(_) => {
                wanted.rows.push(SampleRequest::new(Want::Nothing));
                continue;
            }
        };
        let request = if next.is_some_and(|next| forced(params, next).is_some()) {
            SampleRequest::new(Want::Nothing)
        } else if !params.logprobs.is_none_or(can_score) || (next.is_some() && !limits.masks) {
            SampleRequest::new(Want::Logits)
        } else {
            request_token(params, history, next, wanted)
        };
        wanted.rows.push(request);
    }
}

fn request_token(
    params: &SamplingParams,
    history: History,
    next: Option<&NextTokens>,
    wanted: &mut SampleRequests,
) -> SampleRequest {
    let mask = next.map(|next| extend(&mut wanted.masks, &next.allowed));
    let stops: &[u32] = if holds_stops(params, history, next) { &params.stop_token_ids } else { &[] };
    let forbidden = extend(&mut wanted.forbidden, stops);
    let bias = extend(&mut wanted.bias, &params.logit_bias);
    let start = wanted.seen.len();
    if let Some(seen) = history.seen {
        seen.list(history.unseen, &mut wanted.seen);
    }
    SampleRequest {
        want: Want::Token,
        mask,
        forbidden,
        bias,
        seen: start..wanted.seen.len(),
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        temperature: params.temperature,
        min_p: params.min_p,
        top_k: params.top_k,
        top_p: params.top_p,
        uniform: uniform(params.seed, history.output_len as u64),
        logprobs: params.logprobs,
    }
}

fn extend<T: Copy>(list: &mut Vec<T>, more: &[T]) -> Range<usize> {
    let start = list.len();
    list.extend_from_slice(more);
    start..list.len()
}

/// A scored position's answer.
pub(super) fn score(sample: &Sample) -> Result<TokenLogprobs, String> {
    match sample {
        Sample::Score(scores) => Ok(logprobs(scores)),
        other => Err(failure(other)),
    }
}

/// The answer for a token.
pub(super) fn token(sample: &Sample) -> Result<Token, String> {
    match sample {
        Sample::Token { id, scores } => Ok(Token { id: *id, logprobs: scores.as_ref().map(logprobs) }),
        other => Err(failure(other)),
    }
}

fn logprobs(scores: &SampleScores) -> TokenLogprobs {
    TokenLogprobs { logprob: scores.logprob, rank: scores.rank, top: scores.top.clone() }
}

#[cold]
fn failure(sample: &Sample) -> String {
    match sample {
        Sample::NotFinite { id } => {
            format!("the model's logits are not finite (token {id}); check the weights or the KV dtype")
        }
        Sample::NothingLeft => NOTHING_LEFT.to_owned(),
        other => format!("the device's answer is of another kind than was wanted: {other:?}"),
    }
}

impl Sampler {
    /// What a device answers to `wanted`, on the CPU: for a simulated device, and to hold a real one's answers against.
    pub fn answer_all(
        &mut self,
        wanted: &SampleRequests,
        computed: &Logits,
        samples: &mut Vec<Sample>,
        logits: &mut Logits,
    ) {
        samples.clear();
        logits.vocab = computed.vocab;
        logits.values.clear();
        for row in 0..wanted.rows.len() {
            let answer = match self.answer(wanted, row, computed.row(row)) {
                Sample::Logits(_) => {
                    logits.values.extend_from_slice(computed.row(row));
                    Sample::Logits(logits.values.len() / logits.vocab - 1)
                }
                answer => answer,
            };
            samples.push(answer);
        }
    }

    /// The same for one row.
    fn answer(&mut self, wanted: &SampleRequests, row: usize, logits: &[f32]) -> Sample {
        let request = &wanted.rows[row];
        let answer = match request.want {
            Want::Nothing => Ok(Sample::Nothing),
            Want::Logits => Ok(Sample::Logits(0)),
            Want::Score(token) => peak(logits).map(|peak| {
                let top = request.logprobs.unwrap_or(0);
                Sample::Score(scores(self.logprobs(logits, peak, token, top)))
            }),
            Want::Token => self.answer_token(wanted, request, logits),
        };
        answer.unwrap_or_else(|reason| match reason.as_str() {
            NOTHING_LEFT => Sample::NothingLeft,
            _ => Sample::NotFinite { id: first_unsound(logits) as u32 },
        })
    }

    fn answer_token(
        &mut self,
        wanted: &SampleRequests,
        request: &SampleRequest,
        logits: &[f32],
    ) -> Result<Sample, String> {
        let mut raw = logits.to_vec();
        if let Some(mask) = request.mask.clone() {
            let next = NextTokens { allowed: wanted.masks[mask].to_vec(), forced: Vec::new() };
            next.mask(logits, &mut raw);
        }
        let raw_peak = peak(&raw)?;
        let params = SamplingParams {
            temperature: request.temperature,
            top_k: request.top_k,
            top_p: request.top_p,
            min_p: request.min_p,
            repetition_penalty: request.repetition_penalty,
            presence_penalty: request.presence_penalty,
            frequency_penalty: request.frequency_penalty,
            ..SamplingParams::greedy(0)
        };
        let mut adjusted = raw.clone();
        forbid(&wanted.forbidden[request.forbidden.clone()], &mut adjusted);
        for (id, bias) in &wanted.bias[request.bias.clone()] {
            if let Some(logit) = adjusted.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        for (id, count) in &wanted.seen[request.seen.clone()] {
            super::seen::apply(&params, *id, *count, &mut adjusted);
        }
        let best = peak(&adjusted)?;
        let greedy = request.temperature <= 0.0;
        let id = if greedy { best.id } else { self.draw(&params, &adjusted, best, request.uniform) };
        let scores = request.logprobs.map(|top| scores(self.logprobs(&raw, raw_peak, id, top)));
        Ok(Sample::Token { id, scores })
    }
}

fn scores(logprobs: TokenLogprobs) -> SampleScores {
    SampleScores { logprob: logprobs.logprob, rank: logprobs.rank, top: logprobs.top }
}
