// performance-critical: no allocation, no lock, no log, no format
//! What a step costs on this machine, learnt from the steps that ran.
//!
//! Pure: durations come in as numbers, so a simulation feeds what it likes and replays exactly. Two figures answer every
//! question of the scheduler: the time of a step of `n` decode tokens and nothing else, and the time that one prompt
//! token adds. Where a size was not met lately, its neighbours and the prompt token's time stand in for it. That guess
//! is on the low side, so what was not tried is tried, and measured, again.

/// Sizes up to this one are kept apart; a larger one shares an entry with those within an eighth of it.
const EXACT_TOKENS: usize = 32;
/// An eighth each from there to 4096 tokens; larger steps share the last entry.
const ENTRIES: usize = EXACT_TOKENS + 8 * 7 + 1;
/// Weight of a new measurement.
const NEW_WEIGHT: f32 = 0.2;
/// A measurement counts at most as this many times what was known: a descheduled thread is no news about the model.
const OUTLIER_FACTOR: f32 = 2.0;
/// Fewer prompt tokens than this say little about one.
const PROMPT_TOKENS_MIN: usize = 8;
/// After so many steps a measurement no longer counts: contexts have grown, or the machine does other things.
const STALE_STEPS: u64 = 512;
/// A size counts as often as it was met, and a blend forgets what was before about so many.
const MET_MAX: u32 = 8;
/// What a decode token adds is guessed to be what a prompt token adds, which is so where arithmetic is the limit; the
/// guess counts as much as it is likely right. Square of the noise of a step (a tenth of it) over the error of the guess
/// (a third of it).
const PRIOR_WEIGHT: f32 = (0.1 * 0.1) / (0.33 * 0.33);

/// Time of a step by its decode tokens.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// A place on it: so many tokens take so long.
    tokens: f32,
    us: f32,
    /// What each token adds.
    pub slope_us: f32,
}

impl Line {
    pub fn us(&self, tokens: usize) -> f32 {
        (self.us + self.slope_us * (tokens as f32 - self.tokens)).max(0.0)
    }
}

/// What is known of one size: microseconds (0 for nothing), how often it was met, and at which step lately.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    us: f32,
    met: u32,
    step: u64,
}

/// Measured times in microseconds; 0 where nothing is known.
#[derive(Debug, Clone)]
pub struct StepCosts {
    steps: u64,
    /// `[entry]`
    measured: [Measured; ENTRIES],
    /// With the gaps filled. `[entry]`
    decode_us: [f32; ENTRIES],
    prompt_token_us: f32,
    /// What a draft model takes for one guess.
    draft_token_us: f32,
    /// The largest size measured lately.
    largest: usize,
}

impl Default for StepCosts {
    fn default() -> Self {
        Self {
            steps: 0,
            measured: [Measured::default(); ENTRIES],
            decode_us: [0.0; ENTRIES],
            prompt_token_us: 0.0,
            draft_token_us: 0.0,
            largest: 0,
        }
    }
}

impl StepCosts {
    /// Takes in a step of so many decode tokens (drafts included) and prompt tokens.
    pub fn observe(&mut self, decode_tokens: usize, prompt_tokens: usize, elapsed_us: f32) {
        if !elapsed_us.is_finite() || elapsed_us <= 0.0 {
            return;
        }
        self.steps += 1;
        if prompt_tokens == 0 {
            let known = &mut self.measured[entry(decode_tokens)];
            if known.us > 0.0 && self.steps - known.step < STALE_STEPS {
                known.us = blend(known.us, elapsed_us);
                known.met = (known.met + 1).min(MET_MAX);
            } else {
                (known.us, known.met) = (elapsed_us, 1);
            }
            known.step = self.steps;
        } else if prompt_tokens >= PROMPT_TOKENS_MIN || self.prompt_token_us == 0.0 {
            let share = (elapsed_us - self.decode_us(decode_tokens)).max(0.0) / prompt_tokens as f32;
            self.prompt_token_us = if self.prompt_token_us > 0.0 { blend(self.prompt_token_us, share) } else { share };
        }
        self.fill_gaps();
    }

    /// Takes in that a draft model guessed so many tokens.
    pub fn observe_drafts(&mut self, tokens: usize, elapsed_us: f32) {
        if tokens > 0 && elapsed_us.is_finite() {
            let each_us = elapsed_us / tokens as f32;
            self.draft_token_us = if self.draft_token_us > 0.0 { blend(self.draft_token_us, each_us) } else { each_us };
        }
    }

    /// What a draft model takes for one guess; 0 while nothing is known.
    pub fn draft_token_us(&self) -> f32 {
        self.draft_token_us
    }

    /// Time of a step of `tokens` decode tokens; 0 while nothing is known.
    pub fn decode_us(&self, tokens: usize) -> f32 {
        if tokens == 0 { 0.0 } else { self.decode_us[entry(tokens)] }
    }

    /// The line through the sizes of `from` to `to` decode tokens and those around them. Measured alone each size is noisy
    /// and a difference of two is mostly noise: who looks for the cheapest of several finds the one that was measured too
    /// low. The line is many measurements, and where they are few the prompt token's time is its slope.
    pub fn line(&self, from: usize, to: usize) -> Line {
        let (low, high) = (entry(from - from / 4), entry(to + (from / 4).max(4)));
        let within = |low, high| (low..=high).filter(|at: &usize| self.is_fresh(*at));
        let (low, high) = if within(low, high).nth(1).is_some() {
            (low, high)
        } else {
            // Too few there for a line: those nearest join.
            (within(1, low).next_back().unwrap_or(low), within(high, ENTRIES - 1).next().unwrap_or(high))
        };
        let around = || within(low, high);
        let weight = |at: usize| self.measured[at].met as f32;
        let total: f32 = around().map(weight).sum();
        if total == 0.0 {
            return Line { tokens: 0.0, us: 0.0, slope_us: 0.0 };
        }
        let tokens = around().map(|at| weight(at) * tokens_of(at) as f32).sum::<f32>() / total;
        let us = around().map(|at| weight(at) * self.measured[at].us).sum::<f32>() / total;
        let (mut together, mut spread) = (0.0, 0.0);
        for at in around() {
            let away = tokens_of(at) as f32 - tokens;
            together += weight(at) * away * (self.measured[at].us - us);
            spread += weight(at) * away * away;
        }
        if self.prompt_token_us > 0.0 {
            let prior = PRIOR_WEIGHT * (us / self.prompt_token_us).powi(2);
            together += prior * self.prompt_token_us;
            spread += prior;
        }
        Line { tokens, us, slope_us: if spread > 0.0 { (together / spread).max(0.0) } else { 0.0 } }
    }

    fn is_fresh(&self, at: usize) -> bool {
        self.measured[at].us > 0.0 && self.steps - self.measured[at].step < STALE_STEPS
    }

    /// The most decode tokens that a step should have for the sake of guesses: half as many again as a step had lately,
    /// so that a size whose cost nobody knows is approached, not leapt to. No bound while nothing is known.
    pub fn familiar_tokens(&self) -> usize {
        if self.largest == 0 { usize::MAX } else { self.largest + self.largest / 2 + 4 }
    }

    /// Time that one prompt token adds to a step; 0 while nothing is known.
    pub fn prompt_token_us(&self) -> f32 {
        self.prompt_token_us
    }

    /// Between two measured sizes a straight line; beyond the last one the prompt token's slope; below the first one
    /// its own time, for most of a small step is reading the weights.
    fn fill_gaps(&mut self) {
        let mut last: Option<usize> = None;
        for at in 1..ENTRIES {
            let Measured { us: time, .. } = self.measured[at];
            if !self.is_fresh(at) {
                continue;
            }
            self.decode_us[at] = time;
            let before = last.map_or((1, time), |last| (last, self.decode_us[last]));
            let slope = (time - before.1) / (tokens_of(at) - tokens_of(before.0)).max(1) as f32;
            for gap in last.map_or(1, |last| last + 1)..at {
                self.decode_us[gap] = before.1 + slope * (tokens_of(gap) - tokens_of(before.0)) as f32;
            }
            last = Some(at);
        }
        let Some(last) = last else { return };
        self.largest = tokens_of(last);
        for at in last + 1..ENTRIES {
            let more = (tokens_of(at) - tokens_of(last)) as f32;
            self.decode_us[at] = self.decode_us[last] + more * self.prompt_token_us;
        }
    }
}

fn blend(known: f32, new: f32) -> f32 {
    known + NEW_WEIGHT * (new.min(known * OUTLIER_FACTOR) - known)
}

/// Which entry a number of tokens belongs to.
fn entry(tokens: usize) -> usize {
    if tokens <= EXACT_TOKENS {
        return tokens;
    }
    let octave = tokens.ilog2() as usize;
    let eighth = (tokens >> (octave - 3)) & 7;
    (EXACT_TOKENS + 8 * (octave - 5) + eighth).min(ENTRIES - 1)
}

/// The smallest number of tokens of an entry.
fn tokens_of(entry: usize) -> usize {
    if entry <= EXACT_TOKENS {
        return entry;
    }
    let (octave, eighth) = ((entry - EXACT_TOKENS) / 8 + 5, (entry - EXACT_TOKENS) % 8);
    (8 + eighth) << (octave - 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_an_entry_and_entries_ascend() {
        for tokens in 1..6000 {
            let at = entry(tokens);
            assert!(at < ENTRIES && tokens_of(at) <= tokens, "{tokens}");
            assert!(at + 1 == ENTRIES || tokens < tokens_of(at + 1), "{tokens}");
        }
        assert!((1..ENTRIES).all(|at| entry(tokens_of(at)) == at));
    }

    #[test]
    fn gaps_are_filled_from_what_is_known() {
        let mut costs = StepCosts::default();
        assert_eq!((costs.decode_us(3), costs.prompt_token_us()), (0.0, 0.0));
        costs.observe(0, 100, 5000.0);
        assert_eq!(costs.prompt_token_us(), 50.0);
        costs.observe(4, 0, 1000.0);
        let cases = [(0, 0.0), (1, 1000.0), (4, 1000.0), (6, 1100.0)];
        for (tokens, us) in cases {
            assert_eq!(costs.decode_us(tokens), us, "{tokens} tokens");
        }
        costs.observe(8, 0, 3000.0);
        assert_eq!(costs.decode_us(5), 1500.0, "on the line between two measured sizes");
        costs.observe(4, 100, 9000.0);
        assert_eq!(costs.prompt_token_us(), 50.0 + NEW_WEIGHT * 30.0, "less what the decodes take");
    }

    #[test]
    fn what_a_token_adds_is_a_slope_and_not_a_difference() {
        let mut costs = StepCosts::default();
        assert_eq!(costs.line(1, 9).us(9), 0.0, "nothing is known");
        costs.observe(0, 100, 200_000.0);
        assert_eq!(costs.line(1, 9).us(9), 0.0, "of a step that decodes nothing is");
        costs.observe(16, 0, 52_000.0);
        assert_eq!(costs.line(16, 24).slope_us, 2000.0, "as a prompt token");
        // 2 ms a token above 20 ms; each second size was measured 3 ms too low, as a shared machine will have it.
        for tokens in (16..=28).cycle().take(130) {
            let noise = if tokens % 2 == 1 { -3000.0 } else { 0.0 };
            costs.observe(tokens, 0, 20_000.0 + 2000.0 * tokens as f32 + noise);
        }
        assert!(costs.decode_us(17) < costs.decode_us(16), "the difference says that a token is less than free");
        for (from, to) in [(16, 17), (16, 24), (20, 28)] {
            let line = costs.line(from, to);
            assert!((1500.0..2500.0).contains(&line.slope_us), "{from} to {to}: {line:?}");
            assert!((48_000.0..53_000.0).contains(&line.us(16)), "{from} to {to}: {line:?}");
        }
        // Where memory is the limit tokens are free, and a few measurements say so against the guess.
        let mut free = StepCosts::default();
        free.observe(0, 100, 100_000.0);
        for tokens in (1..=8).cycle().take(64) {
            free.observe(tokens, 0, 5000.0);
        }
        assert!(free.line(1, 8).slope_us < 100.0, "{:?}", free.line(1, 8));
    }

    #[test]
    fn an_outlier_counts_little_and_old_news_not_at_all() {
        let mut costs = StepCosts::default();
        costs.observe(1, 0, 100.0);
        costs.observe(1, 0, 90_000.0);
        assert!(costs.decode_us(1) <= 120.0);
        costs.observe(5, 0, 9000.0);
        for _ in 0..STALE_STEPS {
            costs.observe(1, 0, 100.0);
        }
        assert!(costs.decode_us(5) < 200.0, "it is worth another try: {}", costs.decode_us(5));
        assert_eq!(costs.familiar_tokens(), 5, "and approached again");
        costs.observe(1, 0, f32::NAN);
        assert!(costs.decode_us(1).is_finite());
    }
}
