//! What the logits of a step are for, said to a model that samples where it computes, and what such a model gives back.
//!
//! Plain data, like a batch: parameters are resolved, random numbers are given, and nothing here names a sequence. A row that
//! the model cannot sample goes back as logits.

use std::ops::Range;

use crate::batch::Logits;

/// What one row of logits is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Nothing: the row need not even be computed.
    Nothing,
    /// The logits themselves.
    Logits,
    /// The next token.
    Token,
    /// Log probabilities of this token. Everything else in the request but `logprobs` is off.
    Score(u32),
}

/// One row of `BatchInput::sample_rows`. The order is that of the fields below `want`: first the mask, then what is
/// forbidden, then bias and penalties; temperature, min-p, top-k, top-p; the draw. Log probabilities are those of the
/// logits behind the mask.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRequest {
    pub want: Want,
    /// Of `SampleRequests::masks`: one bit an id, the lowest first; ids beyond the end are not allowed.
    pub mask: Option<Range<usize>>,
    /// Of `SampleRequests::forbidden`.
    pub forbidden: Range<usize>,
    /// Of `SampleRequests::bias`.
    pub bias: Range<usize>,
    /// Of `SampleRequests::seen`.
    pub seen: Range<usize>,
    /// Divides positive logits of every id in `seen` and multiplies the others; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of ids that the output has.
    pub presence_penalty: f32,
    /// The same for each time that it has them.
    pub frequency_penalty: f32,
    /// 0 is greedy: the lowest id of the largest logit.
    pub temperature: f32,
    /// Least probability beside the likeliest token's; 0 is off.
    pub min_p: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// In [0, 1): the draw is the first candidate at which the running sum of weights passes this part of their total.
    /// Candidates stand in the order of their ids, or, where top-k or top-p cuts, best first.
    pub uniform: f64,
    /// Log probabilities: of the row's token, and of this many likeliest ones.
    pub logprobs: Option<u32>,
}

impl SampleRequest {
    /// Greedy where a token is wanted, nothing else.
    pub fn new(want: Want) -> Self {
        Self {
            want,
            mask: None,
            forbidden: 0..0,
            bias: 0..0,
            seen: 0..0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            temperature: 0.0,
            min_p: 0.0,
            top_k: 0,
            top_p: 1.0,
            uniform: 0.0,
            logprobs: None,
        }
    }
}

/// All rows of a step, and the lists they point into. Keeps its memory from step to step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SampleRequests {
    /// One for each of `BatchInput::sample_rows`.
    pub rows: Vec<SampleRequest>,
    pub masks: Vec<u32>,
    /// Ids whose logits become minus infinity. An id may be there twice.
    pub forbidden: Vec<u32>,
    /// Ids, and what is added to their logits. An id may be there twice.
    pub bias: Vec<(u32, f32)>,
    /// Ids, once each, and how often the output has them (0: only the prompt does).
    pub seen: Vec<(u32, u32)>,
}

impl SampleRequests {
    /// Empties every list and keeps its memory.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.masks.clear();
        self.forbidden.clear();
        self.bias.clear();
        self.seen.clear();
    }
}

/// How likely a token is.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleScores {
    /// Natural logarithm.
    pub logprob: f32,
    /// 1 is the likeliest; of equals the lower id comes first.
    pub rank: u32,
    /// The likeliest, best first, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// What became of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    /// Nothing was wanted.
    Nothing,
    /// So many rows of logits came back before it, and then its own, unchanged: they were wanted, or what is wanted of them
    /// cannot be done here.
    Logits(usize),
    Token {
        id: u32,
        /// Where they were asked for.
        scores: Option<SampleScores>,
    },
    Score(SampleScores),
    /// A logit is NaN or infinite.
    NotFinite {
        id: u32,
    },
    /// No token is left to choose from.
    NothingLeft,
}

impl Sample {
    /// Whether it answers what was wanted, with ids and rows that exist.
    fn answers(&self, request: &SampleRequest, logits: &Logits) -> bool {
        let has_id = |id: u32| (id as usize) < logits.vocab;
        let scored = |scores: &SampleScores| scores.top.iter().all(|(id, _)| has_id(*id));
        match (self, request.want) {
            // More than was wanted does no harm.
            (Self::Logits(row), _) => (row + 1) * logits.vocab <= logits.values.len(),
            (Self::Nothing, Want::Nothing) => true,
            (Self::Nothing, _) | (_, Want::Nothing) => false,
            (Self::Token { id, scores }, Want::Token) => {
                has_id(*id) && scores.is_some() == request.logprobs.is_some() && scores.iter().all(scored)
            }
            (Self::Score(scores), Want::Score(_)) => scored(scores),
            (Self::NotFinite { .. } | Self::NothingLeft, Want::Token | Want::Score(_)) => true,
            _ => false,
        }
    }
}

/// Checks that a step's answers fit what was wanted; a device that has lost its way is told by that, and no index is wrong.
pub fn check_samples(wanted: &SampleRequests, samples: &[Sample], logits: &Logits) -> Result<(), String> {
    if samples.len() != wanted.rows.len() {
        return Err(format!("the device answered {} of {} rows", samples.len(), wanted.rows.len()));
    }
    match samples.iter().zip(&wanted.rows).position(|(sample, request)| !sample.answers(request, logits)) {
        None => Ok(()),
        Some(row) => Err(format!("the device's answer to row {row} does not fit what was wanted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_do_not_fit_are_told() {
        let logits = Logits { vocab: 4, values: vec![0.0; 8] };
        let scores = |id| SampleScores { logprob: -1.0, rank: 1, top: vec![(id, -1.0)] };
        let token = |id, scores| Sample::Token { id, scores };
        let mut with_logprobs = SampleRequest::new(Want::Token);
        with_logprobs.logprobs = Some(1);
        let plain = SampleRequest::new;
        let cases = [
            (plain(Want::Nothing), Sample::Nothing, true),
            (plain(Want::Nothing), token(1, None), false),
            (plain(Want::Nothing), Sample::Logits(1), true),
            (plain(Want::Token), Sample::Nothing, false),
            (plain(Want::Token), token(3, None), true),
            (plain(Want::Token), token(4, None), false),
            (plain(Want::Token), token(3, Some(scores(1))), false),
            (plain(Want::Token), Sample::Logits(1), true),
            (plain(Want::Token), Sample::Logits(2), false),
            (plain(Want::Token), Sample::NotFinite { id: 9 }, true),
            (plain(Want::Token), Sample::Score(scores(1)), false),
            (with_logprobs.clone(), token(3, Some(scores(3))), true),
            (with_logprobs.clone(), token(3, Some(scores(4))), false),
            (with_logprobs, token(3, None), false),
            (plain(Want::Logits), Sample::Logits(0), true),
            (plain(Want::Logits), token(0, None), false),
            (plain(Want::Logits), Sample::NothingLeft, false),
            (plain(Want::Score(2)), Sample::Score(scores(0)), true),
            (plain(Want::Score(2)), token(0, None), false),
            (plain(Want::Score(2)), Sample::NothingLeft, true),
        ];
        for (request, sample, fits) in cases {
            let wanted = SampleRequests { rows: vec![request], ..SampleRequests::default() };
            let samples = [sample];
            assert_eq!(check_samples(&wanted, &samples, &logits).is_ok(), fits, "{:?}: {samples:?}", wanted.rows[0]);
            assert!(check_samples(&wanted, &[], &logits).is_err());
        }
    }
}
