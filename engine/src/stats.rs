//! Numbers of one engine: written by its thread once a step, read by anybody without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::speculation::DRAFTS_PER_ROW_MAX;

/// Inclusive upper bounds of [`StepTokens::counts`]; the last count is for everything above.
pub const STEP_TOKENS_BOUNDS: [u32; 13] = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// How many tokens the steps had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepTokens {
    /// Steps a bucket, not cumulative, in the order of [`STEP_TOKENS_BOUNDS`], then those above.
    pub counts: [u64; STEP_TOKENS_BOUNDS.len() + 1],
    /// Sum of the tokens of all steps.
    pub sum: u64,
}

impl StepTokens {
    pub(super) fn observe(&mut self, tokens: u32) {
        let bucket = STEP_TOKENS_BOUNDS.partition_point(|bound| *bound < tokens);
        self.counts[bucket] += 1;
        self.sum += u64::from(tokens);
    }
}

macro_rules! engine_stats {
    ($($(#[$doc:meta])* $field:ident),+ $(,)?) => {
        /// A plain snapshot. Gauges first, then counters since the start.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct EngineStats {
            $($(#[$doc])* pub $field: u64,)+
            /// Histogram of the tokens a step computes.
            pub step_tokens: StepTokens,
            /// Drafted tokens that were right, by their place in the draft.
            pub spec_accepted_per_position: [u64; DRAFTS_PER_ROW_MAX],
        }

        /// The cells behind [`EngineStats`].
        #[derive(Default)]
        pub(super) struct StatsBoard {
            /// Sequences accepted and not yet ended, on their way to the engine included.
            live: AtomicU64,
            $($field: AtomicU64,)+
            step_tokens_counts: [AtomicU64; STEP_TOKENS_BOUNDS.len() + 1],
            step_tokens_sum: AtomicU64,
            spec_accepted_per_position: [AtomicU64; DRAFTS_PER_ROW_MAX],
        }

        impl StatsBoard {
            /// Called by the engine thread only.
            pub(super) fn publish(&self, stats: &EngineStats) {
                $(self.$field.store(stats.$field, Ordering::Relaxed);)+
                for (cell, count) in self.step_tokens_counts.iter().zip(&stats.step_tokens.counts) {
                    cell.store(*count, Ordering::Relaxed);
                }
                self.step_tokens_sum.store(stats.step_tokens.sum, Ordering::Relaxed);
                for (cell, count) in self.spec_accepted_per_position.iter().zip(&stats.spec_accepted_per_position) {
                    cell.store(*count, Ordering::Relaxed);
                }
            }

            pub(super) fn snapshot(&self) -> EngineStats {
                let mut step_tokens = StepTokens::default();
                for (cell, count) in self.step_tokens_counts.iter().zip(&mut step_tokens.counts) {
                    *count = cell.load(Ordering::Relaxed);
                }
                step_tokens.sum = self.step_tokens_sum.load(Ordering::Relaxed);
                let mut stats = EngineStats {
                    $($field: self.$field.load(Ordering::Relaxed),)+
                    step_tokens,
                    spec_accepted_per_position: std::array::from_fn(|place| {
                        self.spec_accepted_per_position[place].load(Ordering::Relaxed)
                    }),
                };
                // Accepted but not yet seen by the engine thread: they wait.
                let seen = stats.running + stats.waiting + stats.parked;
                stats.waiting += self.live.load(Ordering::Relaxed).saturating_sub(seen);
                stats
            }
        }
    };
}

engine_stats! {
    /// Sequences that hold blocks and take part in steps.
    running,
    /// Sequences without blocks: new, preempted, or still on their way to the engine thread.
    waiting,
    /// Sequences whose client does not read.
    parked,
    blocks_total,
    blocks_free,
    /// Blocks that nobody owns and that keep their content for the prefix cache.
    blocks_cached,
    blocks_owned,
    /// Slots for the states of sequences; 0 of a model that keeps none.
    states_total,
    /// Saved states that nobody owns and that later sequences may begin with.
    states_saved,
    steps,
    /// Prompt tokens of completed prompts, cached ones included.
    prompt_tokens,
    generation_tokens,
    /// Prompt tokens of completed prompts that came from the prefix cache.
    cached_prompt_tokens,
    /// Prompt tokens looked up in the prefix cache.
    prefix_queries,
    /// Prompt tokens found there.
    prefix_hits,
    preemptions,
    /// Tokens computed again after a preemption.
    recomputed_tokens,
    /// Tokens that steps were filled up with to the executor's next bucket, and that nobody asked for.
    padding_tokens,
    finished_stop,
    finished_length,
    finished_cancelled,
    finished_failed,
    /// Steps whose executor failed.
    failed_steps,
    /// Times that tokens were drafted for a sequence.
    spec_drafts,
    spec_draft_tokens,
    /// Drafted tokens that the model confirmed.
    spec_accepted_tokens,
}

impl StatsBoard {
    /// Counts a sequence in, unless `live_max` are in already.
    pub(super) fn try_enter(&self, live_max: u64) -> bool {
        self.live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |live| (live < live_max).then_some(live + 1))
            .is_ok()
    }

    pub(super) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    pub(super) fn leave(&self) {
        let before = self.live.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a sequence left that never entered");
    }
}

/// When the step that runs began, so that one that never ends can be seen from outside.
#[derive(Default)]
pub(super) struct StepClock {
    /// Milliseconds of [`since_start_ms`], plus one; 0 between steps.
    began_ms: AtomicU64,
}

impl StepClock {
    pub(super) fn begin(&self) {
        self.began_ms.store(1 + since_start_ms(), Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.began_ms.store(0, Ordering::Relaxed);
    }

    /// How long the step has been running; `None` between steps.
    pub(super) fn running_for(&self) -> Option<Duration> {
        let began_ms = self.began_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(since_start_ms().saturating_sub(began_ms)))
    }
}

/// Of a moment early in this process.
fn since_start_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}
