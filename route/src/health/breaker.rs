//! The circuit breaker: stops asking a member that fails, and finds out by a few probes when it is well again.
//!
//! Closed until failures in a row or the share of failures in a window reach a limit; then open for a while that doubles
//! with each failed probe; then half-open, where at most `probes_max` requests wait for their first content. A probe that
//! never reports back gives its place up after `probe_lease_ms`, so that no member is shut out for good. News of attempts that
//! started before the last change of state is ignored.

use serde::{Deserialize, Serialize};

use crate::health::{Barred, Circuit, Outcome};

const BUCKETS: usize = 10;

/// When a circuit opens and closes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerOptions {
    /// Failures in a row that open it.
    pub failures_in_row: u32,
    /// Share of failures in the window that opens it, once there were `requests_min`.
    pub failure_share: f64,
    pub requests_min: u32,
    pub window_ms: u64,
    /// How long it stays open at first, and at most.
    pub open_ms: u64,
    pub open_ms_max: u64,
    /// Probes under way at once, and successes among them that close it.
    pub probes_max: u32,
    pub probe_successes: u32,
    pub probe_lease_ms: u64,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self {
            failures_in_row: 5,
            failure_share: 0.5,
            requests_min: 10,
            window_ms: 30_000,
            open_ms: 5_000,
            open_ms_max: 60_000,
            probes_max: 1,
            probe_successes: 2,
            probe_lease_ms: 120_000,
        }
    }
}

/// What lets an attempt through, and back to the state it belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pass {
    pub is_probe: bool,
    /// It still takes the place of a probe.
    has_place: bool,
    generation: u64,
    lease_until_ms: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Breaker {
    options: BreakerOptions,
    state: State,
    /// Counts changes of state.
    generation: u64,
    failures_in_row: u32,
    /// Openings since it was last well.
    openings: u32,
    window: [Bucket; BUCKETS],
}

#[derive(Debug, Clone)]
enum State {
    Closed,
    Open { until_ms: u64 },
    HalfOpen { leases_until_ms: Vec<u64>, successes: u32 },
}

/// Counts of one part of the window; `number` says which, as places are used again.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    number: u64,
    requests: u32,
    failures: u32,
}

impl Breaker {
    pub fn new(options: BreakerOptions) -> Self {
        Self {
            options,
            state: State::Closed,
            generation: 0,
            failures_in_row: 0,
            openings: 0,
            window: [Bucket::default(); BUCKETS],
        }
    }

    pub fn circuit(&self, now_ms: u64) -> Circuit {
        let probes_max = self.options.probes_max.max(1);
        match &self.state {
            State::Closed => Circuit::Closed,
            State::Open { until_ms } if now_ms < *until_ms => Circuit::Open { retry_after_ms: until_ms - now_ms },
            State::Open { .. } => Circuit::HalfOpen { probes_free: probes_max },
            State::HalfOpen { leases_until_ms, .. } => {
                let taken = leases_until_ms.iter().filter(|until_ms| **until_ms > now_ms).count();
                Circuit::HalfOpen { probes_free: probes_max.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX)) }
            }
        }
    }

    pub fn try_pass(&mut self, now_ms: u64) -> Result<Pass, Barred> {
        match self.circuit(now_ms) {
            Circuit::Closed => {
                let generation = self.generation;
                return Ok(Pass { is_probe: false, has_place: false, generation, lease_until_ms: 0 });
            }
            Circuit::Open { retry_after_ms } => return Err(Barred::CircuitOpen { retry_after_ms }),
            Circuit::HalfOpen { probes_free: 0 } => return Err(Barred::Probing),
            Circuit::HalfOpen { .. } => {}
        }
        if matches!(self.state, State::Open { .. }) {
            self.change(State::HalfOpen { leases_until_ms: Vec::new(), successes: 0 });
        }
        let lease_until_ms = now_ms.saturating_add(self.options.probe_lease_ms);
        if let State::HalfOpen { leases_until_ms, .. } = &mut self.state {
            leases_until_ms.retain(|until_ms| *until_ms > now_ms);
            leases_until_ms.push(lease_until_ms);
        }
        Ok(Pass { is_probe: true, has_place: true, generation: self.generation, lease_until_ms })
    }

    /// A probe has begun to answer: another may go, for an answer may take minutes. Whether it was one is known at its end.
    pub fn answers(&mut self, pass: &mut Pass) {
        if pass.generation == self.generation {
            self.give_up_place(pass);
        }
    }

    fn give_up_place(&mut self, pass: &mut Pass) {
        let had_place = std::mem::replace(&mut pass.has_place, false);
        if let State::HalfOpen { leases_until_ms, .. } = &mut self.state
            && had_place
            && let Some(at) = leases_until_ms.iter().position(|until_ms| *until_ms == pass.lease_until_ms)
        {
            leases_until_ms.swap_remove(at);
        }
    }

    pub fn finish(&mut self, now_ms: u64, mut pass: Pass, outcome: Outcome) {
        if pass.generation != self.generation {
            return;
        }
        if pass.is_probe {
            self.give_up_place(&mut pass);
            self.finish_probe(now_ms, outcome);
            return;
        }
        match outcome {
            Outcome::Success => {
                self.failures_in_row = 0;
                self.bucket(now_ms).requests += 1;
            }
            Outcome::Failure => {
                self.failures_in_row += 1;
                let bucket = self.bucket(now_ms);
                bucket.requests += 1;
                bucket.failures += 1;
                if self.failures_in_row >= self.options.failures_in_row || self.fails_often(now_ms) {
                    self.open(now_ms);
                }
            }
            Outcome::Misconfigured => self.open(now_ms),
            // An answer, if only that it is too much: the rate cap's business.
            Outcome::RateLimited { .. } | Outcome::Cancelled => {}
        }
    }

    fn finish_probe(&mut self, now_ms: u64, outcome: Outcome) {
        let State::HalfOpen { successes, .. } = &mut self.state else { return };
        match outcome {
            Outcome::Success => {
                *successes += 1;
                if *successes >= self.options.probe_successes {
                    self.openings = 0;
                    self.failures_in_row = 0;
                    self.window = [Bucket::default(); BUCKETS];
                    self.change(State::Closed);
                }
            }
            Outcome::Failure | Outcome::Misconfigured => self.open(now_ms),
            Outcome::RateLimited { .. } | Outcome::Cancelled => {}
        }
    }

    fn open(&mut self, now_ms: u64) {
        let doubled = self.options.open_ms.saturating_mul(1_u64.checked_shl(self.openings.min(20)).unwrap_or(1));
        let pause_ms = doubled.min(self.options.open_ms_max).max(1);
        self.openings = self.openings.saturating_add(1);
        self.change(State::Open { until_ms: now_ms.saturating_add(pause_ms) });
    }

    fn change(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }

    fn fails_often(&self, now_ms: u64) -> bool {
        let newest = self.bucket_number(now_ms);
        let in_window = |bucket: &&Bucket| bucket.number + BUCKETS as u64 > newest;
        let (requests, failures) = self
            .window
            .iter()
            .filter(in_window)
            .fold((0_u32, 0_u32), |sum, bucket| (sum.0 + bucket.requests, sum.1 + bucket.failures));
        requests >= self.options.requests_min && f64::from(failures) >= self.options.failure_share * f64::from(requests)
    }

    fn bucket(&mut self, now_ms: u64) -> &mut Bucket {
        let number = self.bucket_number(now_ms);
        let place = usize::try_from(number % BUCKETS as u64).unwrap_or(0);
        let bucket = &mut self.window[place];
        if bucket.number != number {
            *bucket = Bucket { number, ..Bucket::default() };
        }
        bucket
    }

    fn bucket_number(&self, now_ms: u64) -> u64 {
        now_ms / (self.options.window_ms / BUCKETS as u64).max(1)
    }
}
