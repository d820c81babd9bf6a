// performance-critical: no lock, no log; allocates only what leaves as log probabilities, formats only a failure
//! From one row of logits to one token: pure, and the same whatever else is in the batch.
//!
//! The order is vLLM's: what a filter forbids is taken out before everything else, so that log probabilities are those
//! among the allowed tokens; then log probabilities of the raw logits; then min_tokens, logit bias, penalties (repetition,
//! frequency, presence), temperature, min-p, top-k, top-p. The random number of output token `i` is a hash of (seed,
//! i): a sequence that is preempted and recomputed, or runs in another batch, draws the same. So does one that is
//! guessed ahead: each place is sampled from the model's own distribution whatever was drafted for it, and a draft only
//! decides whether the logits of the next place are there already.

mod device;
mod seen;
mod step;

use std::cmp::Ordering;

pub use device::request;
use device::{Answers, Place};

pub use seen::SeenTokens;
pub use step::{LANE_LOGITS_MIN, StepSampler, Workers};

use super::filter::{NextTokens, Restriction};
use super::scheduler::{Row, Sampled, Scheduler, StepResults};
use super::sequence::{Sequence, Token, TokenLogprobs};

/// Candidates sorted at first when only top-p cuts; most distributions need no more.
const TOP_P_FIRST: usize = 128;

/// What one sequence wants. Fully resolved: no options left, vocabulary-checked.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// Over prompt and output; 1 is off.
    pub repetition_penalty: f32,
    /// Over the output; 0 is off.
    pub presence_penalty: f32,
    /// Over the output; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these ids.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
    /// 0 computes the prompt and generates nothing.
    pub max_tokens: u32,
    /// No stop id is sampled before this many tokens.
    pub min_tokens: u32,
    /// Includes EOS unless the client ignores it.
    pub stop_token_ids: Vec<u32>,
    /// Log probabilities of each token, and of this many likeliest ones.
    pub logprobs: Option<u32>,
    /// The same for the prompt's tokens but the first.
    pub prompt_logprobs: Option<u32>,
}

impl SamplingParams {
    /// Greedy, nothing else set. The start of a struct update.
    pub fn greedy(max_tokens: u32) -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            max_tokens,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// What a token is chosen after.
#[derive(Debug, Clone, Copy, Default)]
pub struct History<'a> {
    /// Tokens of the output before it.
    pub output_len: usize,
    /// For parameters with penalties: the tokens before it.
    pub seen: Option<&'a SeenTokens>,
    /// The last tokens of the output, where `seen` does not have them yet.
    pub unseen: &'a [u32],
}

/// Scratch memory, reused from token to token. It carries nothing from one to the next.
#[derive(Default)]
pub struct Sampler {
    /// Logits of the tokens that a filter allows. `[vocab]`
    masked: Vec<f32>,
    /// Logits after bias and penalties. `[vocab]`
    adjusted: Vec<f32>,
    /// Unnormalised probabilities where nothing cuts. `[vocab]`
    weights: Vec<f32>,
    candidates: Vec<(u32, f32)>,
}

/// The largest logit and the lowest id that has it.
#[derive(Debug, Clone, Copy)]
struct Peak {
    id: u32,
    value: f32,
}

impl Sampler {
    /// Scores and samples rows whose logits begin at `sample`; adds to `results`.
    fn sample_rows(
        &mut self,
        scheduler: &Scheduler,
        rows: &[Row],
        answers: Answers,
        mut sample: usize,
        results: &mut StepResults,
    ) {
        for row in rows {
            let own = sample..sample + row.samples();
            sample = own.end;
            let (scores_before, tokens_before) = (results.scores.len(), results.tokens.len());
            let sampled = self.sample_row(scheduler.sequence(row), row, own.map(|index| answers.place(index)), results);
            let sampled = sampled.unwrap_or_else(|reason| {
                results.scores.truncate(scores_before);
                results.tokens.truncate(tokens_before);
                Sampled::Failed(reason)
            });
            results.sampled.push(sampled);
        }
    }

    fn sample_row<'a>(
        &mut self,
        sequence: &Sequence,
        row: &Row,
        mut places: impl Iterator<Item = Place<'a>>,
        results: &mut StepResults,
    ) -> Result<Sampled, String> {
        for position in row.scored() {
            let top = sequence.params.prompt_logprobs.unwrap_or(0);
            let score = match places.next().expect("one row of logits a scored position") {
                Place::Logits(logits) => self.score(logits, sequence.tokens()[position + 1], top)?,
                Place::Answer(sample) => device::score(sample)?,
            };
            results.scores.push(score);
        }
        if !row.sample {
            return Ok(Sampled::Nothing);
        }
        let drafts = sequence.drafts();
        for place in 0..=drafts.len() {
            let answer = places.next().expect("one row of logits for the next token, and one after each draft");
            let output_len = sequence.output().len() + place;
            let history = History { output_len, seen: sequence.seen(), unseen: &drafts[..place] };
            let token = match (sequence.restriction(), answer) {
                (Restriction::Failed(reason), _) => return Err(reason.clone()),
                (_, Place::Answer(sample)) => device::token(sample)?,
                (Restriction::None, Place::Logits(logits)) => self.sample(&sequence.params, history, logits)?,
                (Restriction::Only(next), Place::Logits(logits)) => {
                    self.sample_allowed(&sequence.params, history, logits, next)?
                }
            };
            let holds = drafts.get(place) == Some(&token.id) && !sequence.params.stop_token_ids.contains(&token.id);
            results.tokens.push(token);
            if !holds {
                return Ok(Sampled::Tokens(place + 1));
            }
        }
        unreachable!("after the last draft nothing holds")
    }

    /// Chooses the next token. Fails when the logits are not numbers or leave nothing to choose.
    pub fn sample(&mut self, params: &SamplingParams, history: History, logits: &[f32]) -> Result<Token, String> {
        self.pick(params, history, logits, holds_stops(params, history, None))
    }

    /// The same among the tokens that a filter allows. `min_tokens` gives way where the answer can only end.
    pub fn sample_allowed(
        &mut self,
        params: &SamplingParams,
        history: History,
        logits: &[f32],
        next: &NextTokens,
    ) -> Result<Token, String> {
        if let Some(id) = forced(params, next) {
            return Ok(Token { id, logprobs: None });
        }
        let holds_stops = holds_stops(params, history, Some(next));
        let mut masked = std::mem::take(&mut self.masked);
        next.mask(logits, &mut masked);
        let token = self.pick(params, history, &masked, holds_stops);
        self.masked = masked;
        token
    }

    /// `holds_stops`: no stop token may come now.
    fn pick(
        &mut self,
        params: &SamplingParams,
        history: History,
        logits: &[f32],
        holds_stops: bool,
    ) -> Result<Token, String> {
        let raw_peak = peak(logits)?;
        let mut adjusted = std::mem::take(&mut self.adjusted);
        let (peak, values) = if holds_stops || is_adjusted(params, history) {
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            if holds_stops {
                forbid(&params.stop_token_ids, &mut adjusted);
            }
            Self::adjust(params, history, &mut adjusted);
            (peak(&adjusted), adjusted.as_slice())
        } else {
            (Ok(raw_peak), logits)
        };
        let id = peak.map(|peak| {
            if params.temperature <= 0.0 {
                peak.id
            } else {
                self.draw(params, values, peak, uniform(params.seed, history.output_len as u64))
            }
        });
        self.adjusted = adjusted;
        let id = id?;
        let logprobs = params.logprobs.map(|top| self.logprobs(logits, raw_peak, id, top));
        Ok(Token { id, logprobs })
    }

    /// Log probabilities of a given token.
    pub fn score(&mut self, logits: &[f32], token: u32, top: u32) -> Result<TokenLogprobs, String> {
        let peak = peak(logits)?;
        Ok(self.logprobs(logits, peak, token, top))
    }

    /// Bias and penalties, in place.
    fn adjust(params: &SamplingParams, history: History, logits: &mut [f32]) {
        for (id, bias) in &params.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        if let Some(seen) = history.seen {
            seen.penalise(params, history.unseen, logits);
        }
    }

    /// Draws from the distribution that temperature, min-p, top-k and top-p leave.
    fn draw(&mut self, params: &SamplingParams, logits: &[f32], peak: Peak, uniform: f64) -> u32 {
        let top_k = if params.top_k == 0 { usize::MAX } else { params.top_k as usize };
        // exp(x) >= min_p * exp(0) as a bound on x: no exponential for those that fall.
        let floor = if params.min_p > 0.0 { params.min_p.ln() } else { f32::NEG_INFINITY };
        let scaled = |logit: f32| (logit - peak.value) / params.temperature;
        if top_k >= logits.len() && params.top_p >= 1.0 {
            self.weights.clear();
            self.weights.extend(logits.iter().map(|logit| {
                let exponent = scaled(*logit);
                if exponent >= floor { exponent.exp() } else { 0.0 }
            }));
            let weights = self.weights.iter().enumerate().map(|(id, weight)| (id as u32, *weight));
            return choose(weights, uniform, peak.id);
        }
        self.candidates.clear();
        let above = logits.iter().enumerate().map(|(id, logit)| (id as u32, scaled(*logit)));
        self.candidates.extend(above.filter(|(_, exponent)| *exponent >= floor && *exponent > f32::NEG_INFINITY));
        if top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, best_first);
            self.candidates.truncate(top_k);
        }
        for (_, exponent) in &mut self.candidates {
            *exponent = exponent.exp();
        }
        if params.top_p < 1.0 {
            self.cut_top_p(params.top_p);
        } else {
            self.candidates.sort_unstable_by(best_first);
        }
        choose(self.candidates.iter().copied(), uniform, peak.id)
    }

    /// Keeps the fewest best candidates whose weights reach `top_p` of all, sorted; at least one. Sorts only as many as
    /// that takes.
    fn cut_top_p(&mut self, top_p: f32) {
        let total: f64 = self.candidates.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let wanted = f64::from(top_p) * total;
        let (mut sorted, mut batch, mut mass) = (0, TOP_P_FIRST, 0.0);
        while sorted < self.candidates.len() {
            let rest = &mut self.candidates[sorted..];
            let size = batch.min(rest.len());
            if size < rest.len() {
                rest.select_nth_unstable_by(size - 1, best_first);
            }
            rest[..size].sort_unstable_by(best_first);
            for (index, (_, weight)) in rest[..size].iter().enumerate() {
                mass += f64::from(*weight);
                if mass >= wanted {
                    self.candidates.truncate(sorted + index + 1);
                    return;
                }
            }
            sorted += size;
            batch *= 8;
        }
    }

    fn logprobs(&mut self, logits: &[f32], peak: Peak, token: u32, top: u32) -> TokenLogprobs {
        let sum: f64 = logits.iter().map(|logit| f64::from((logit - peak.value).exp())).sum();
        let log_sum = f64::from(peak.value) + sum.ln();
        let log_probability = |logit: f32| (f64::from(logit) - log_sum) as f32;
        let own = logits[token as usize];
        let before = |(id, logit): (usize, &f32)| *logit > own || (*logit == own && id < token as usize);
        let rank = 1 + logits.iter().enumerate().filter(|pair| before(*pair)).count();
        self.candidates.clear();
        let count = (top as usize).min(logits.len());
        if count > 0 {
            let possible = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
            self.candidates.extend(possible.map(|(id, logit)| (id as u32, *logit)));
            if count < self.candidates.len() {
                self.candidates.select_nth_unstable_by(count - 1, best_first);
                self.candidates.truncate(count);
            }
            self.candidates.sort_unstable_by(best_first);
        }
        let top = self.candidates.iter().map(|(id, logit)| (*id, log_probability(*logit))).collect();
        TokenLogprobs { logprob: log_probability(own), rank: rank as u32, top }
    }
}

/// The token that a filter leaves no choice about, where nothing else is asked.
fn forced(params: &SamplingParams, next: &NextTokens) -> Option<u32> {
    next.forced.first().copied().filter(|_| params.logprobs.is_none())
}

/// Whether no stop token may come now.
fn holds_stops(params: &SamplingParams, history: History, next: Option<&NextTokens>) -> bool {
    let others = |next: &NextTokens| next.allows_others(&params.stop_token_ids);
    history.output_len < params.min_tokens as usize && next.map_or(!params.stop_token_ids.is_empty(), others)
}

/// Whether bias or penalties change the logits before temperature.
fn is_adjusted(params: &SamplingParams, history: History) -> bool {
    !params.logit_bias.is_empty() || history.seen.is_some()
}

fn forbid(ids: &[u32], logits: &mut [f32]) {
    for id in ids {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Higher first, and of equals the lower id.
fn best_first(left: &(u32, f32), right: &(u32, f32)) -> Ordering {
    right.1.partial_cmp(&left.1).unwrap_or(Ordering::Equal).then(left.0.cmp(&right.0))
}

/// Finds the peak and checks every logit on the way. Minus infinity is a mask and allowed.
/// Three plain passes: each becomes vector code, one with all three jobs does not.
fn peak(logits: &[f32]) -> Result<Peak, String> {
    // NaN compares false too.
    let sound = logits.iter().fold(true, |sound, logit| sound & (*logit < f32::INFINITY));
    if !sound {
        return Err(unsound(logits));
    }
    let value = logits.iter().fold(f32::NEG_INFINITY, |best, logit| if *logit > best { *logit } else { best });
    if value == f32::NEG_INFINITY {
        return Err(NOTHING_LEFT.into());
    }
    let id = logits.iter().position(|logit| *logit == value).expect("the largest logit is one of them");
    Ok(Peak { id: id as u32, value })
}

const NOTHING_LEFT: &str = "no token is left to choose from; loosen logit_bias or min_tokens";

fn first_unsound(logits: &[f32]) -> usize {
    logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY).unwrap_or_default()
}

#[cold]
fn unsound(logits: &[f32]) -> String {
    let id = first_unsound(logits);
    format!("the model's logits are not finite (token {id}: {}); check the weights or the KV dtype", logits[id])
}

/// The first candidate at which the running sum of weights passes `uniform` of their total.
fn choose(weights: impl Iterator<Item = (u32, f32)> + Clone, uniform: f64, fallback: u32) -> u32 {
    let total: f64 = weights.clone().map(|(_, weight)| f64::from(weight)).sum();
    let target = uniform * total;
    let mut mass = 0.0;
    for (id, weight) in weights {
        mass += f64::from(weight);
        if mass > target {
            return id;
        }
    }
    // Only rounding leads here: `uniform` is below 1 and the peak has weight 1.
    fallback
}

/// In [0, 1), from nothing but the seed and the place of the token in the output.
fn uniform(seed: u64, index: u64) -> f64 {
    // SplitMix64's finaliser (Steele, Lea, Flood 2014), once for each of the two.
    let bits = mix(mix(seed).wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests;
