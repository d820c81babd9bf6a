//! Arrival times: Poisson, gamma, constant or given, fixed before the load starts.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::random::Random;

/// How requests come.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// So many clients, each sending its next request when its last is answered; they begin spread over `ramp`.
    Closed { concurrency: usize, ramp: Duration },
    /// At these times (seconds, ascending), with at most so many in flight: what is over waits, and its wait counts.
    Open { offsets_s: Vec<f64>, in_flight_max: Option<usize> },
}

/// `count` arrival times at `rate` a second. `burstiness` 1 is a Poisson process, smaller is burstier (gamma distributed
/// gaps, as in `vllm bench serve`), infinite is a constant rate; an infinite rate sends all at once.
///
/// The times are scaled so that the last is at `count / rate`: a seed must not change the load by its luck.
pub fn offsets(count: usize, rate: f64, burstiness: f64, seed: u64) -> Vec<f64> {
    if rate.is_infinite() {
        return vec![0.0; count];
    }
    if burstiness.is_infinite() {
        return (0..count).map(|at| at as f64 / rate).collect();
    }
    let mut random = Random::new(seed);
    let mut now = 0.0;
    let mut times: Vec<f64> = (0..count)
        .map(|_| {
            now += if burstiness == 1.0 { random.exponential() } else { random.gamma(burstiness) };
            now
        })
        .collect();
    let scale = count as f64 / rate / now;
    times.iter_mut().for_each(|time| *time *= scale);
    times
}

/// Sends `0, 1, ...` at their times, to each of the workers in turn. On a thread of its own: the runtime's timers are good
/// to a millisecond only.
pub(super) fn pace(start: Instant, offsets_s: &[f64], due: &[mpsc::Sender<usize>]) {
    for (at, offset) in offsets_s.iter().enumerate() {
        let time = start + Duration::from_secs_f64(*offset);
        let wait = time.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        // Nobody listens any more: the load was stopped.
        if due[at % due.len()].blocking_send(at).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_kept_whatever_the_seed() {
        for (burstiness, spread) in [(1.0, 1.0), (0.25, 4.0), (4.0, 0.25), (f64::INFINITY, 0.0)] {
            let times = offsets(20_000, 50.0, burstiness, 11);
            assert!(times.is_sorted() && times.len() == 20_000);
            assert!((times.last().copied().unwrap_or_default() - 400.0).abs() < 0.03, "{burstiness}");
            let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) * 50.0).collect();
            let variance = gaps.iter().map(|gap| (gap - 1.0).powi(2)).sum::<f64>() / gaps.len() as f64;
            assert!((variance - spread).abs() < 0.15 * spread + 1e-9, "{burstiness}: {variance}");
        }
        assert_eq!(offsets(3, f64::INFINITY, 1.0, 0), [0.0; 3]);
        assert_eq!(offsets(50, 5.0, 1.0, 4), offsets(50, 5.0, 1.0, 4));
        assert_ne!(offsets(50, 5.0, 1.0, 4), offsets(50, 5.0, 1.0, 5));
    }
}
