//! One sequence: its tokens, how many of them are in the KV cache, and in which blocks.
//!
//! Invariants, asserted at every transition: `computed <= tokens.len()`; the blocks cover exactly the computed tokens
//! between steps; a finished sequence leaves the scheduler at once, so no state here means "finished".

use super::blocks::{self, BlockId, ChainHash};
use super::sampler::SamplingParams;

/// Names one submitted sequence for the life of its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// One of the sequence's stop ids was sampled. It is the last of the delivered tokens.
    StopToken(u32),
    /// `max_tokens`, the model's context, or the whole KV pool is used up.
    Length,
    /// The receiver was dropped, or a shutdown ran out of patience.
    Cancelled,
    /// One line that says what went wrong.
    Failed(String),
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    pub logprobs: Option<TokenLogprobs>,
}

/// How likely a token was, by the model's raw logits (before penalties and temperature).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm. Negative infinity where the model gave a probability of zero.
    pub logprob: f32,
    /// 1 is the likeliest; of equals the lower id comes first.
    pub rank: u32,
    /// The likeliest tokens, best first, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Who goes first: the lower key. Fixed for the life of a sequence, see `Scheduler::add`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderKey {
    pub start_step: i64,
    pub arrival: u64,
}

/// Where a live sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Holds no blocks; new, or preempted.
    Waiting,
    /// Holds blocks; takes part in steps.
    Running,
    /// Its client does not read. May hold blocks; takes part in no step.
    Parked,
}
