// performance-critical: no allocation per token, no lock, no log, no format but for a refusal
//! Whether drafts pay: how many tokens of one sequence to guess ahead in a step, from what guesses were worth so far.
//!
//! Pure. A draft of `k` tokens is worth the tokens that it is expected to save, at the price a token has in this step,
//! and costs the time that `k` more tokens add to it. Where the one does not exceed the other nothing is drafted: that
//! is how speculation switches itself off, for one sequence that cannot be guessed and for a crowd that leaves the
//! machine no idle arithmetic. Nor does a step take longer for drafts than its target time. Confidence returns slowly while
//! nothing is drafted, so that what has become predictable is noticed.

use super::costs::StepCosts;
use super::lookup::NgramIndex;

/// Most drafted tokens of one row.
pub const DRAFTS_PER_ROW_MAX: usize = 16;
/// Most drafted tokens of one step: each needs a row of logits in memory.
pub const DRAFTS_PER_STEP_MAX: usize = 64;

/// Chance that the next drafted token is right, before anything is known.
const CONFIDENCE_FIRST: f32 = 0.6;
/// Weight of one guess in the confidence of its sequence, and in that of the engine.
const OWN_WEIGHT: f32 = 0.15;
const SHARED_WEIGHT: f32 = 0.02;
/// How far confidence returns to where it began with each token that was not drafted for.
const RETURN_WEIGHT: f32 = 1.0 / 512.0;
/// Gains below this share of the cost are noise: the figure with which `noise_does_not_draft` loses least and gains most.
const GAIN_MARGIN: f32 = 1.3;

/// Prompt lookup: drafts are copied from where the text's last n-gram occurred before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NgramConfig {
    /// Most tokens drafted at once.
    pub num_speculative_tokens: u32,
    /// Longest and shortest n-gram that is looked for.
    pub prompt_lookup_max: u32,
    pub prompt_lookup_min: u32,
}

/// Where drafts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speculation {
    /// The text itself.
    Ngram(NgramConfig),
    /// The executor's draft model.
    DraftModel {
        /// Most tokens drafted at once.
        num_speculative_tokens: u32,
    },
}

impl Speculation {
    pub fn num_speculative_tokens(&self) -> u32 {
        match self {
            Self::Ngram(config) => config.num_speculative_tokens,
            Self::DraftModel { num_speculative_tokens } => *num_speculative_tokens,
        }
    }

    pub fn check(&self) -> Result<(), String> {
        let count = self.num_speculative_tokens();
        if !(1..=DRAFTS_PER_ROW_MAX as u32).contains(&count) {
            return Err(format!("num_speculative_tokens is {count}; give 1 to {DRAFTS_PER_ROW_MAX}"));
        }
        match self {
            Self::Ngram(config) => config.check(),
            Self::DraftModel { .. } => Ok(()),
        }
    }
}

impl Default for NgramConfig {
    fn default() -> Self {
        Self { num_speculative_tokens: 8, prompt_lookup_max: 5, prompt_lookup_min: 3 }
    }
}

impl NgramConfig {
    fn check(&self) -> Result<(), String> {
        if self.prompt_lookup_min == 0 || self.prompt_lookup_min > self.prompt_lookup_max {
            return Err(format!(
                "prompt_lookup_min is {} and prompt_lookup_max {}; both are at least 1, the first not above the second",
                self.prompt_lookup_min, self.prompt_lookup_max
            ));
        }
        Ok(())
    }
}

/// How often guesses are right, over all sequences: where the next one begins.
#[derive(Debug, Clone, Copy)]
pub struct SharedConfidence(f32);

impl Default for SharedConfidence {
    fn default() -> Self {
        Self(CONFIDENCE_FIRST)
    }
}

/// What one sequence needs to be guessed ahead.
#[derive(Debug)]
pub struct Drafter {
    most: usize,
    source: Source,
    confidence: f32,
    /// Tokens of the step in flight that nobody has generated yet. They follow those that the sequence has.
    drafts: Vec<u32>,
}

#[derive(Debug)]
enum Source {
    Lookup {
        index: NgramIndex,
        longest: usize,
    },
    /// Guesses later, when the step is planned: until then placeholders stand for them.
    Model,
}

/// A step as a drafter sees it: what it computes anyway.
#[derive(Debug, Clone, Copy)]
pub struct StepSoFar {
    /// Sequences that decode.
    pub decodes: usize,
    /// Drafts of the sequences before.
    pub drafts: usize,
    /// What the step should take at most.
    pub target_us: f32,
}

impl Drafter {
    pub fn new(speculation: Speculation, shared: SharedConfidence) -> Self {
        let source = match speculation {
            Speculation::Ngram(config) => Source::Lookup {
                index: NgramIndex::new(config.prompt_lookup_min as usize),
                longest: config.prompt_lookup_max as usize,
            },
            Speculation::DraftModel { .. } => Source::Model,
        };
        let most = speculation.num_speculative_tokens() as usize;
        Self { most, source, confidence: shared.0, drafts: Vec::new() }
    }

    pub fn drafts(&self) -> &[u32] {
        &self.drafts
    }

    /// Drafts what follows `tokens`: as many as pay, at most `room`. Returns how many there are.
    pub fn draft(&mut self, tokens: &[u32], room: usize, step: StepSoFar, costs: &StepCosts) -> usize {
        self.drafts.clear();
        let count = self.worthwhile(room.min(self.most), step, costs);
        if count == 0 {
            self.confidence += RETURN_WEIGHT * (CONFIDENCE_FIRST - self.confidence);
            return 0;
        }
        match &mut self.source {
            Source::Lookup { index, longest } => index.draft(tokens, *longest, count, &mut self.drafts),
            Source::Model => self.drafts.resize(count, 0),
        }
        self.drafts.len()
    }

    /// Keeps the first `count` drafts: there is no room for more.
    pub fn truncate(&mut self, count: usize) {
        self.drafts.truncate(count);
    }

    /// What the draft model guessed, in place of placeholders.
    pub fn set(&mut self, drafts: &[u32]) {
        self.drafts.clear();
        self.drafts.extend_from_slice(drafts);
    }

    /// The drafts were checked: the first `accepted` of them were right. Forgets them.
    pub fn learn(&mut self, accepted: usize, shared: &mut SharedConfidence) {
        for place in 0..self.drafts.len().min(accepted + 1) {
            let right = if place < accepted { 1.0 } else { 0.0 };
            self.confidence += OWN_WEIGHT * (right - self.confidence);
            shared.0 += SHARED_WEIGHT * (right - shared.0);
        }
        self.drafts.clear();
    }

    /// The number of drafts with the largest gain.
    fn worthwhile(&self, most: usize, step: StepSoFar, costs: &StepCosts) -> usize {
        if most == 0 {
            return 0;
        }
        let before = step.decodes + step.drafts;
        let line = costs.line(step.decodes, before + most);
        // What one token costs in this step without drafts is what one saves.
        let token_us = line.us(step.decodes) / step.decodes.max(1) as f32;
        let draft_us = match self.source {
            Source::Lookup { .. } => 0.0,
            Source::Model => costs.draft_token_us(),
        };
        let (mut best, mut best_gain_us) = (0, 0.0);
        let (mut all_right, mut saved) = (1.0, 0.0);
        for count in 1..=most {
            if costs.decode_us(before + count) > step.target_us || before + count > costs.familiar_tokens() {
                break;
            }
            all_right *= self.confidence;
            saved += all_right;
            let price_us = count as f32 * (line.slope_us + draft_us);
            let gain_us = saved * token_us - price_us * GAIN_MARGIN;
            // Before anything is measured every count gains nothing, and is worth finding out about.
            if gain_us > best_gain_us || (token_us == 0.0 && gain_us == 0.0) {
                (best, best_gain_us) = (count, gain_us);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: StepSoFar = StepSoFar { decodes: 1, drafts: 0, target_us: f32::INFINITY };

    /// A step of one token takes 1000 us, each further one `more_us`.
    fn costs(more_us: f32) -> StepCosts {
        let mut costs = StepCosts::default();
        for tokens in [1, 32] {
            costs.observe(tokens, 0, 1000.0 + more_us * (tokens - 1) as f32);
        }
        costs
    }

    fn drafter() -> Drafter {
        Drafter::new(Speculation::Ngram(NgramConfig::default()), SharedConfidence::default())
    }

    #[test]
    fn drafts_are_made_where_they_pay() {
        let crowd = StepSoFar { decodes: 16, ..ALONE };
        let cases = [
            ("free", 0.0, ALONE, 5),
            ("cheap", 50.0, ALONE, 5),
            ("dear", 300.0, ALONE, 1),
            ("too dear", 600.0, ALONE, 0),
            ("in a crowd a token costs little, so it saves little", 100.0, crowd, 0),
            ("in a crowd that the memory holds up", 10.0, crowd, 3),
            ("within the target time", 50.0, StepSoFar { target_us: 1100.0, ..ALONE }, 2),
        ];
        for (name, more_us, step, expected) in cases {
            assert_eq!(drafter().worthwhile(5, step, &costs(more_us)), expected, "{name}");
        }
        assert_eq!(drafter().worthwhile(5, ALONE, &StepCosts::default()), 5, "nothing is known yet");
        let mut single = StepCosts::default();
        single.observe(1, 0, 1000.0);
        assert_eq!(drafter().worthwhile(8, ALONE, &single), 4, "larger steps are approached");
        assert_eq!(drafter().worthwhile(0, ALONE, &costs(0.0)), 0, "there is no room");
    }

    #[test]
    fn wrong_guesses_switch_it_off_and_time_brings_it_back() {
        let (mut drafter, costs, text) = (drafter(), costs(200.0), [1, 2, 3, 4, 1, 2, 3]);
        let mut shared = SharedConfidence::default();
        let mut wrong = 0;
        while drafter.draft(&text, 5, ALONE, &costs) > 0 {
            drafter.learn(0, &mut shared);
            wrong += 1;
        }
        assert!((2..10).contains(&wrong), "{wrong} wrong guesses");
        let mut tries = 0;
        for _ in 0..4000 {
            if drafter.draft(&text, 5, ALONE, &costs) > 0 {
                drafter.learn(0, &mut shared);
                tries += 1;
            }
        }
        // A try of one token costs a fifth of a step.
        assert!((5..100).contains(&tries), "{tries} tries in 4000 tokens");
        let mut young = Drafter::new(Speculation::Ngram(NgramConfig::default()), shared);
        assert_eq!(young.draft(&text, 5, ALONE, &costs), 0, "the next sequence knows of it");
        for _ in 0..200 {
            if drafter.draft(&text, 5, ALONE, &costs) > 0 {
                drafter.learn(drafter.drafts.len(), &mut shared);
            }
        }
        assert_eq!(drafter.draft(&text, 5, ALONE, &costs), 5, "right guesses switch it on again");
    }

    #[test]
    fn a_models_guesses_have_their_price() {
        let drafter = Drafter::new(Speculation::DraftModel { num_speculative_tokens: 5 }, SharedConfidence::default());
        let cases = [(0.0, 5), (100.0, 3), (350.0, 1), (700.0, 0)];
        for (draft_us, expected) in cases {
            let mut costs = costs(10.0);
            costs.observe_drafts(4, 4.0 * draft_us);
            assert_eq!(drafter.worthwhile(5, ALONE, &costs), expected, "{draft_us} us a guess");
        }
    }

    /// Numbers of 0 to 1 (a linear congruential generator with the constants of Knuth's MMIX).
    fn draws(seed: u64) -> impl FnMut() -> f32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        }
    }

    /// Tokens a second of `rows` sequences of which `chance` of the guesses are right, on a machine where `step_us` is the
    /// time of a step of so many tokens, up to a quarter more or less and now and then three times that.
    fn speed(rows: usize, chance: f32, step_us: fn(usize) -> f32, speculates: bool) -> f32 {
        let mut draw = draws(7);
        let (mut costs, mut shared) = (StepCosts::default(), SharedConfidence::default());
        costs.observe(0, 64, step_us(64) * 0.8);
        let kind = Speculation::DraftModel { num_speculative_tokens: 8 };
        let mut drafters: Vec<Drafter> = (0..rows).map(|_| Drafter::new(kind, shared)).collect();
        let (mut said, mut us) = (0, 0.0);
        for _ in 0..4000 {
            let mut step = StepSoFar { decodes: rows, drafts: 0, target_us: f32::INFINITY };
            for drafter in &mut drafters {
                let most = if speculates { DRAFTS_PER_STEP_MAX - step.drafts } else { 0 };
                step.drafts += drafter.draft(&[], most, step, &costs);
            }
            let tokens = rows + step.drafts;
            let noise = if draw() < 0.02 { 3.0 } else { 0.75 + 0.5 * draw() };
            let elapsed_us = step_us(tokens) * noise;
            costs.observe(tokens, 0, elapsed_us);
            us += step_us(tokens);
            for drafter in &mut drafters {
                let accepted = (0..drafter.drafts().len()).take_while(|_| draw() < chance).count();
                drafter.learn(accepted, &mut shared);
                said += 1 + accepted;
            }
        }
        said as f32 / us * 1e6
    }

    /// Noise of a step is many times what a token adds to it: nobody may be led by it to draft where that costs more than
    /// it brings, nor away from where it pays.
    #[test]
    fn noise_does_not_draft() {
        let arithmetic: fn(usize) -> f32 = |tokens| 2500.0 + 2000.0 * tokens as f32;
        let tiles: fn(usize) -> f32 = |tokens| 4000.0 + 5000.0 * tokens.div_ceil(4) as f32;
        let memory: fn(usize) -> f32 = |tokens| f32::max(8000.0 + 20.0 * tokens as f32, 250.0 * tokens as f32);
        for (name, step_us) in [("arithmetic", arithmetic), ("tiles", tiles), ("memory", memory)] {
            for rows in [1, 4, 16] {
                for chance in [0.1, 0.4, 0.6, 0.8, 0.95] {
                    let gain = speed(rows, chance, step_us, true) / speed(rows, chance, step_us, false);
                    let least = if name == "memory" && rows < 16 && chance > 0.5 { 2.0 } else { 0.92 };
                    assert!(gain >= least, "{name}, {rows} sequences, {chance} right: {gain}");
                }
            }
        }
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        let good = NgramConfig::default();
        let cases = [
            (Speculation::Ngram(NgramConfig { num_speculative_tokens: 0, ..good }), "num_speculative_tokens"),
            (Speculation::Ngram(NgramConfig { num_speculative_tokens: 17, ..good }), "num_speculative_tokens"),
            (Speculation::DraftModel { num_speculative_tokens: 17 }, "num_speculative_tokens"),
            (Speculation::Ngram(NgramConfig { prompt_lookup_min: 0, ..good }), "prompt_lookup_min"),
            (Speculation::Ngram(NgramConfig { prompt_lookup_min: 6, ..good }), "prompt_lookup_min"),
        ];
        for (config, name) in cases {
            assert!(config.check().expect_err(name).starts_with(name));
        }
        assert!(Speculation::Ngram(good).check().is_ok());
    }
}
