//! Load: when requests go out, and what became of each.
//!
//! Invariants: arrival times of an open loop are fixed before it starts and never wait for an answer; every latency can
//! be counted from the intended time as well as from the sending, so that a stalled server cannot hide (coordinated
//! omission). Each worker is one thread with its own connections; their lag and their use of processors are part of the
//! outcome.

mod pace;
mod reads;
mod request;
mod runner;

pub use pace::{Arrivals, offsets};
pub use reads::Reads;
pub use request::{ApiKind, Client, RequestShape, Turn};
pub use runner::{Live, Load, LoadOutcome, control, run};

/// Why a request did not get its whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// A word to count by: `connect`, `timeout`, `http_429`, `stream_error`, `cut`, `protocol`.
    pub kind: String,
    pub message: String,
}

/// One request. Times are seconds since the start of the load.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// Which of the conversations of the data set, and which request of it.
    pub conversation: u32,
    pub turn: u32,
    /// When it should have gone out.
    pub intended_s: f64,
    /// When it went out: the connection was asked for.
    pub sent_s: f64,
    pub first_s: Option<f64>,
    /// The latest chunk that belongs to a choice.
    pub last_s: Option<f64>,
    /// When its end was known, good or bad.
    pub end_s: f64,
    /// Between chunks with text.
    pub gaps_s: Vec<f32>,
    /// By the server's usage, where it reports it.
    pub input_tokens: Option<u32>,
    pub output_tokens: Option<u32>,
    /// Chunks with text: what stands for tokens where there is no usage.
    pub chunks: u32,
    /// What the data set meant.
    pub input_wanted: Option<u32>,
    pub output_wanted: Option<u32>,
    pub text: String,
    pub failure: Option<Failure>,
}

impl Record {
    pub fn is_good(&self) -> bool {
        self.failure.is_none()
    }

    pub fn tokens_out(&self) -> u32 {
        self.output_tokens.unwrap_or(self.chunks)
    }

    pub fn tokens_in(&self) -> u32 {
        self.input_tokens.or(self.input_wanted).unwrap_or(0)
    }

    pub fn ttft_s(&self) -> Option<f64> {
        self.first_s.map(|first| first - self.sent_s)
    }

    /// End to end: until the last chunk of a choice, as `vllm bench serve` counts it.
    pub fn e2e_s(&self) -> f64 {
        self.last_s.unwrap_or(self.end_s) - self.sent_s
    }

    pub fn send_delay_s(&self) -> f64 {
        self.sent_s - self.intended_s
    }

    /// Time per output token after the first; none for answers of one token.
    pub fn tpot_s(&self) -> Option<f64> {
        let tokens = self.tokens_out();
        let first = self.first_s?;
        (tokens > 1).then(|| (self.last_s.unwrap_or(self.end_s) - first) / f64::from(tokens - 1))
    }
}
