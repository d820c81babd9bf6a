//! A sampled log of routing decisions, one JSON line each: what `sconce route replay` reads.
//!
//! A line holds needs, lengths, limits and measurements, never a word of a request.

use std::path::Path;

use sconce_route::replay::Logged;

use super::lines::LineLog;
use super::route::fresh_seed;
use crate::error::Result;

pub struct DecisionLog {
    lines: LineLog<Logged>,
    share_permille: u32,
}

impl DecisionLog {
    /// Appends to the file.
    pub fn start(path: &Path, share_permille: u32) -> Result<Self> {
        Ok(Self { lines: LineLog::start(path, "decisions", "[ledger] decisions")?, share_permille })
    }

    /// Whether the next decision is one of the share.
    pub fn draws(&self) -> bool {
        fresh_seed() % 1000 < u64::from(self.share_permille)
    }

    pub fn write(&self, logged: Logged) {
        self.lines.write(logged);
    }
}
