//! What one step computes, as the scheduler plans it.

use std::ops::Range;

use crate::sequence::SeqId;
use crate::states::{StateCopy, StateSlot};

/// One sequence's part of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub(super) slot: usize,
    pub id: SeqId,
    /// Its place among the step's rows when it was issued: some may have gone since, see `behind`.
    pub place: usize,
    /// Position of the first token of the row.
    pub start: usize,
    /// Tokens, drafts included.
    pub count: usize,
    /// How many of them, at the end, nobody has generated yet.
    pub drafts: usize,
    /// One token after those computed in earlier steps; else a part of a prompt, or of a sequence that resumes.
    pub decode: bool,
    /// The logits of the last token before the drafts are sampled from, and those of the drafts as far as they hold.
    pub sample: bool,
    /// The sequence was never part of a step before.
    pub first: bool,
    pub(super) score_start: usize,
    pub(super) score_end: usize,
}

impl Row {
    /// Positions whose logits score the prompt token that follows.
    pub fn scored(&self) -> Range<usize> {
        self.score_start..self.score_end
    }

    /// Rows of logits that it needs: those for scores come first.
    pub fn samples(&self) -> usize {
        self.scored().len() + if self.sample { 1 + self.drafts } else { 0 }
    }
}

/// A state that a step leaves elsewhere, as it is before the token at `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSave {
    /// Index in the step's rows.
    pub row: usize,
    pub end: usize,
    pub slot: StateSlot,
}

/// What one step computes. The rows keep their memory from step to step.
#[derive(Debug, Default)]
pub struct Step {
    pub rows: Vec<Row>,
    /// Sum of the rows' counts.
    pub tokens: usize,
    /// In the order of rows and tokens.
    pub saves: Vec<StepSave>,
    /// Made before anything is computed.
    pub copies: Vec<StateCopy>,
    /// Of a step behind another: for each row the place of the row there whose token it computes. Empty otherwise.
    pub sources: Vec<u32>,
}

impl Step {
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.tokens = 0;
        self.saves.clear();
        self.copies.clear();
        self.sources.clear();
    }
}
