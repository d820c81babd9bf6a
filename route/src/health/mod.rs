//! What is measured of a member: whether it answers, how fast, how much it takes, and how long one would wait for it.
//!
//! One [`Health`] a member, fed by real traffic and probes through [`Health::try_start`] and [`Health::finish`];
//! [`Health::view`] is what a decision sees. The clock is an argument everywhere: milliseconds that never go back.
//! Estimates that nothing has fed for a while are dropped, so that a member which was slow once is tried again.

mod breaker;
mod latency;
mod load;
mod rate;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use breaker::Breaker;
use latency::Latency;
use rate::RateCap;

pub use breaker::BreakerOptions;
pub use load::LoadFigures;
pub use rate::RateOptions;

/// The limits of one member's health.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthOptions {
    pub breaker: BreakerOptions,
    pub rate: RateOptions,
}

/// The measurements of one member. Plain data: the caller shares it as it likes.
#[derive(Debug, Clone)]
pub struct Health {
    breaker: Breaker,
    rate: RateCap,
    latency: Latency,
    in_flight: u32,
}

/// One attempt at a member, from [`Health::try_start`] to [`Health::finish`]. Each must be finished exactly once; one
/// whose client went away with [`Outcome::Cancelled`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an attempt that is never finished is counted as in flight"]
pub struct Attempt {
    started_ms: u64,
    pass: breaker::Pass,
}

impl Attempt {
    /// Whether it decides if the circuit closes.
    pub fn is_probe(&self) -> bool {
        self.pass.is_probe
    }
}

/// How an attempt ended, in the terms that health cares about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// A whole answer, or a refusal that is the request's fault (400, 404 of a resource, 413, 422): the member is well.
    Success,
    /// 408, 5xx, no connection, no first byte in time, a broken stream, an answer that cannot be read.
    Failure,
    /// 401, 403, or 404 of the model: nobody's request will do better until somebody changes something.
    Misconfigured,
    /// 429, or 503 and 529 that mean the same, with what the member said about trying again.
    RateLimited { retry_after_ms: Option<u64> },
    /// The client went away, or another attempt was faster: nothing is learnt.
    Cancelled,
}

/// Why an attempt may not start, though a decision took the member: another request was faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barred {
    CircuitOpen { retry_after_ms: u64 },
    Probing,
    RateLimited { retry_after_ms: u64 },
}

/// What a decision sees of a member's health at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthView {
    pub circuit: Circuit,
    /// The member asked for no requests for so long.
    pub hold_ms: u64,
    /// Predicted time in queues before the request is worked on.
    pub wait_ms: Option<u64>,
    /// From then on to the first token: the usual, or the least of late for a member whose queue is known; and how far it
    /// strays, queues included.
    pub ttft_ms: Option<u64>,
    pub ttft_deviation_ms: Option<u64>,
    /// Between two tokens.
    pub token_us: Option<u64>,
    /// Requests that are worked on and that wait: of all clients for a local member, of ours for a remote one.
    pub running: u32,
    pub waiting: u32,
    /// Requests a second that it is known to take, in thousandths; `None` while nothing limits it.
    pub rate_cap_milli: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Circuit {
    #[default]
    Closed,
    Open {
        retry_after_ms: u64,
    },
    /// A few requests may find out whether it is well again.
    HalfOpen {
        probes_free: u32,
    },
}

impl Circuit {
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half_open",
        }
    }
}

impl Health {
    pub fn new(options: HealthOptions) -> Self {
        Self {
            breaker: Breaker::new(options.breaker),
            rate: RateCap::new(options.rate),
            latency: Latency::default(),
            in_flight: 0,
        }
    }

    /// Counts an attempt in, or says why it may not start. A learnt rate cap does not bar: it makes the wait longer.
    pub fn try_start(&mut self, now_ms: u64) -> Result<Attempt, Barred> {
        let hold_ms = self.rate.hold_ms(now_ms);
        if hold_ms > 0 {
            return Err(Barred::RateLimited { retry_after_ms: hold_ms });
        }
        let pass = self.breaker.try_pass(now_ms)?;
        self.rate.start(now_ms);
        self.in_flight += 1;
        Ok(Attempt { started_ms: now_ms, pass })
    }

    /// The first byte of content came.
    pub fn first_token(&mut self, now_ms: u64, attempt: &mut Attempt) {
        self.breaker.answers(&mut attempt.pass);
        let ttft_ms = now_ms.saturating_sub(attempt.started_ms);
        self.latency.ttft.add(now_ms, ttft_ms);
        self.latency.ttft_floor.add(now_ms, ttft_ms);
    }

    /// A whole answer of so many tokens took so long after its first one.
    pub fn tokens(&mut self, now_ms: u64, tokens: u32, took_ms: u64) {
        self.latency.decode_ms.add(now_ms, took_ms);
        if let Some(token_us) = (took_ms * 1000).checked_div(u64::from(tokens.saturating_sub(1))) {
            self.latency.token_us.add(now_ms, token_us);
        }
    }

    pub fn finish(&mut self, now_ms: u64, attempt: Attempt, outcome: Outcome) {
        self.in_flight = self.in_flight.saturating_sub(1);
        match outcome {
            Outcome::Success => {
                self.latency.total_ms.add(now_ms, now_ms.saturating_sub(attempt.started_ms));
                self.rate.success(now_ms);
            }
            Outcome::RateLimited { retry_after_ms } => self.rate.limited(now_ms, retry_after_ms),
            Outcome::Failure | Outcome::Misconfigured | Outcome::Cancelled => {}
        }
        self.breaker.finish(now_ms, attempt.pass, outcome);
    }

    /// Attempts that have started and not finished.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub fn view(&self, now_ms: u64, load: LoadFigures) -> HealthView {
        // Where the queue is seen, its wait is predicted on its own and must not count twice.
        let unqueued_ms = self.latency.ttft_floor.value(now_ms).filter(|_| load.capacity.is_some());
        let running = load.running.max(self.in_flight.saturating_sub(load.waiting));
        HealthView {
            circuit: self.breaker.circuit(now_ms),
            hold_ms: self.rate.hold_ms(now_ms),
            wait_ms: load::wait_ms(load, self.latency.service_ms(now_ms)).map(|queue_ms| {
                // One waits for a place and for the rate at the same time.
                queue_ms.max(self.rate.delay_ms(now_ms))
            }),
            ttft_ms: unqueued_ms.or(self.latency.ttft.usual(now_ms)),
            ttft_deviation_ms: self.latency.ttft.deviation(now_ms),
            token_us: self.latency.token_us.usual(now_ms),
            running,
            waiting: load.waiting,
            rate_cap_milli: self.rate.cap_milli(now_ms),
        }
    }
}
