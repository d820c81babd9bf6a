//! What a scenario met on its way.

/// What a run met.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub steps: u64,
    pub tokens: u64,
    pub preemptions: u64,
    pub recomputed: u64,
    pub prefix_hits: u64,
    pub parked: u64,
    pub cancelled: u64,
    pub failed_steps: u64,
    pub broken_logits: u64,
    pub refused: u64,
    pub stopped: u64,
    pub length: u64,
    pub prompt_scores: u64,
    pub several_prefills: u64,
    pub drafted: u64,
    pub accepted: u64,
    pub bounded_prefills: u64,
    pub filtered: u64,
    /// Tokens that came without sampling.
    pub forced: u64,
    /// Rows of logits that the device answered.
    pub answered: u64,
    /// And those that it gave back.
    pub given_back: u64,
    /// Tokens that filled steps up to their buckets.
    pub padding: u64,
    /// Of scenarios without preemption.
    pub kept_steps: u64,
    /// Steps in which somebody waited for what a parked sequence keeps.
    pub held_up: u64,
    /// Steps that were planned behind another.
    pub behind: u64,
    /// Rows of them whose sequences had ended.
    pub ended_behind: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.tokens += other.tokens;
        self.preemptions += other.preemptions;
        self.recomputed += other.recomputed;
        self.prefix_hits += other.prefix_hits;
        self.parked += other.parked;
        self.cancelled += other.cancelled;
        self.failed_steps += other.failed_steps;
        self.broken_logits += other.broken_logits;
        self.refused += other.refused;
        self.stopped += other.stopped;
        self.length += other.length;
        self.prompt_scores += other.prompt_scores;
        self.several_prefills += other.several_prefills;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.bounded_prefills += other.bounded_prefills;
        self.filtered += other.filtered;
        self.forced += other.forced;
        self.answered += other.answered;
        self.given_back += other.given_back;
        self.padding += other.padding;
        self.kept_steps += other.kept_steps;
        self.held_up += other.held_up;
        self.behind += other.behind;
        self.ended_behind += other.ended_behind;
    }
}
