// performance-critical: no allocation per token, no lock, no log, no format
//! A sequence in two steps at once: it computes in the one in flight, and its next token, which nobody knows yet, in the one
//! behind that.

use super::Sequence;
use crate::blocks::blocks_for;
use crate::filter::Restriction;
use crate::scheduler::DraftRoom;

impl Sequence {
    /// What comes after its next token hangs on nothing but the model: no penalty counts that token, no filter looks at it.
    pub(crate) fn can_run_ahead(&self) -> bool {
        self.seen.is_none() && matches!(self.restriction, Restriction::None)
    }

    /// The token that the step in flight gives it is its last, whichever it is.
    pub(crate) fn ends_with_next(&self) -> bool {
        self.tokens.len() + 1 >= self.tokens_max || self.output().len() + 1 >= self.params.max_tokens as usize
    }

    /// Blocks to be allocated for a token behind those that it has.
    pub(crate) fn blocks_for_next(&self, block_size: u32) -> usize {
        blocks_for(self.tokens.len() + 1, block_size).saturating_sub(self.blocks.len())
    }

    /// Something to draft is known that would pay, so that its next step is better planned when its tokens are there.
    pub(crate) fn would_draft(&mut self, room: DraftRoom) -> bool {
        let found = self.draft(room.drafts, room.so_far, room.costs);
        self.truncate_drafts(0);
        found > 0
    }

    /// Makes its next token part of the step behind the one in flight. Its blocks cover that token.
    pub(crate) fn run_ahead(&mut self, block_size: u32) {
        assert!(self.scheduled > 0 && !self.ahead, "only a sequence of the step in flight runs ahead, by one step");
        assert_eq!(self.computed + self.scheduled, self.tokens.len(), "it gets a token from the step in flight");
        assert_eq!(self.blocks.len(), blocks_for(self.tokens.len() + 1, block_size), "blocks cover both steps");
        self.ahead = true;
    }

    pub(crate) fn is_ahead(&self) -> bool {
        self.ahead
    }

    /// Its token has come and did not end it: the step behind is the one in flight now.
    pub(crate) fn go_on(&mut self, block_size: u32) {
        assert!(self.ahead && self.uncomputed() == 1, "one token is known of the step behind");
        self.ahead = false;
        self.schedule(1, block_size);
    }
}
