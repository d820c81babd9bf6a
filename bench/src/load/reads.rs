// performance-critical: no allocation per token, no lock, no log, no format
//! What reads of streams say about the generator: how late it was, and whether that touched a figure.

use crate::http::Stamp;

/// Buckets a doubling of the time.
const FINE: usize = 8;
const BUCKETS: usize = 28 * FINE;

#[derive(Debug, Clone)]
pub struct Reads {
    /// Reads whose bytes the kernel dated, and others.
    pub stamped: u64,
    pub unstamped: u64,
    /// Chunks with text, and those of them that came out of one read with another: they have one time together.
    pub chunks: u64,
    pub together: u64,
    /// How long the latest bytes of a read had lain: buckets of microseconds, each a `FINE`th of a doubling.
    lain: [u64; BUCKETS],
}

impl Default for Reads {
    fn default() -> Self {
        Self { stamped: 0, unstamped: 0, chunks: 0, together: 0, lain: [0; BUCKETS] }
    }
}

impl Reads {
    /// One read with so many chunks with text.
    pub fn count(&mut self, stamp: Stamp, chunks: u32) {
        match stamp.lain {
            Some(lain) => {
                self.stamped += 1;
                let doublings = (lain.as_secs_f64() * 1e6 + 1.0).log2();
                self.lain[((doublings * FINE as f64) as usize).min(BUCKETS - 1)] += 1;
            }
            None => self.unstamped += 1,
        }
        self.chunks += u64::from(chunks);
        self.together += u64::from(chunks.saturating_sub(1));
    }

    pub fn add(&mut self, other: &Self) {
        self.stamped += other.stamped;
        self.unstamped += other.unstamped;
        self.chunks += other.chunks;
        self.together += other.together;
        self.lain.iter_mut().zip(&other.lain).for_each(|(own, more)| *own += more);
    }

    /// Seconds that bytes had lain before they were read, to within a bucket; 0 without times.
    pub fn lain_s(&self, share: f64) -> f64 {
        let wanted = (share * self.stamped as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.lain.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return (2.0_f64.powf((bucket as f64 + 0.5) / FINE as f64) - 1.0) / 1e6;
            }
        }
        0.0
    }

    /// Whether nearly all figures have the kernel's times.
    pub fn are_stamped(&self) -> bool {
        self.stamped > 0 && self.unstamped as f64 <= 0.001 * self.stamped as f64
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn quantiles_of_lateness_are_within_a_bucket() {
        let mut reads = Reads::default();
        assert_eq!((reads.lain_s(0.99), reads.are_stamped()), (0.0, false));
        for at in 1..=1000 {
            let lain = Some(Duration::from_micros(at * 10));
            reads.count(Stamp { came_at: Instant::now(), lain }, 1);
        }
        for (share, truth) in [(0.5, 5e-3), (0.99, 9.9e-3)] {
            assert!((reads.lain_s(share) / truth - 1.0).abs() < 0.1, "{share}: {}", reads.lain_s(share));
        }
        let mut both = reads.clone();
        both.count(Stamp { came_at: Instant::now(), lain: None }, 3);
        both.add(&reads);
        assert_eq!((both.stamped, both.unstamped, both.chunks, both.together), (2000, 1, 2003, 2));
        assert!(both.are_stamped());
    }
}
