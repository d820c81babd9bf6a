// performance-critical: no lock, no log, no format; allocates only what leaves
//! The end of a step: what was sampled becomes tokens, and news for each sequence.

use std::vec::Drain;

use super::{Row, Scheduler, Step};
use crate::sequence::{FinishReason, SeqId, Token, TokenLogprobs};

/// What sampling made of one row.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Sampled {
    /// Nothing was asked of the row, or only prompt scores.
    #[default]
    Nothing,
    /// So many tokens: one, and one more for each draft that the one before it confirmed.
    Tokens(usize),
    /// The row's logits are useless; says why.
    Failed(String),
}

/// What sampling made of a step.
#[derive(Debug, Default)]
pub struct StepResults {
    /// One a row, in the order of the rows.
    pub sampled: Vec<Sampled>,
    /// Of all rows that did not fail, in their order.
    pub tokens: Vec<Token>,
    /// One for each scored position of all rows that did not fail, in their order.
    pub scores: Vec<TokenLogprobs>,
}

impl StepResults {
    pub fn clear(&mut self) {
        self.sampled.clear();
        self.tokens.clear();
        self.scores.clear();
    }

    /// Moves the results of the rows that follow to the end of these.
    pub fn append(&mut self, other: &mut Self) {
        self.sampled.append(&mut other.sampled);
        self.tokens.append(&mut other.tokens);
        self.scores.append(&mut other.scores);
    }
}

/// The news about one sequence after a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub id: SeqId,
    /// Once, when the whole prompt has been computed.
    pub prompt: Option<PromptOutcome>,
    /// Usually one; with drafts that held, or what a filter forces, several.
    pub tokens: Vec<Token>,
    /// The sequence is gone from the scheduler.
    pub finish: Option<FinishReason>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PromptOutcome {
    pub cached_tokens: u32,
    /// For `prompt[1..]` when asked for, else empty.
    pub logprobs: Vec<TokenLogprobs>,
}

impl Scheduler {
    /// Takes in what a step computed, and says what that means for each sequence. Empties `results`.
    pub fn commit(&mut self, step: &Step, results: &mut StepResults, outcomes: &mut Vec<Outcome>) {
        assert!(self.in_flight || step.rows.is_empty(), "only a scheduled step is committed, once");
        assert_eq!(step.rows.len(), results.sampled.len(), "every row has a result");
        self.in_flight = std::mem::take(&mut self.has_behind);
        if let Some(states) = self.states.as_mut().filter(|_| !step.rows.is_empty()) {
            states.settle();
        }
        let (mut tokens, mut scores) = (results.tokens.drain(..), results.scores.drain(..));
        for (row, sampled) in step.rows.iter().zip(results.sampled.drain(..)) {
            let sampled = match sampled {
                Sampled::Failed(reason) => {
                    outcomes.push(self.fail_row(row, reason));
                    continue;
                }
                Sampled::Nothing => 0,
                Sampled::Tokens(count) => count,
            };
            assert!(
                sampled <= 1 + row.drafts && row.sample == (sampled > 0),
                "exactly the rows that sample have tokens"
            );
            let prompt = self.advance(row, &mut scores);
            let mut sampled: Vec<Token> = tokens.by_ref().take(sampled).collect();
            let finish = self.take_tokens(row, &mut sampled);
            if let Some(reason) = &finish {
                self.finish(row.slot, reason);
            }
            if prompt.is_some() || !sampled.is_empty() || finish.is_some() {
                outcomes.push(Outcome { id: row.id, prompt, tokens: sampled, finish });
            }
        }
        assert!(
            scores.next().is_none() && tokens.next().is_none(),
            "no score without its position, no token without a row"
        );
    }

    /// A row whose logits are useless ends its sequence, and nobody may share what it left in the cache.
    fn fail_row(&mut self, row: &Row, reason: String) -> Outcome {
        let block_size = self.config.block_size;
        let sequence = self.slots[row.slot].as_mut().expect("a scheduled sequence is live until its step ends");
        self.pool.forget(sequence.blocks());
        if let Some(states) = &mut self.states {
            for index in 0..(row.start + row.count) / block_size as usize {
                states.forget(sequence.content(index, block_size).1);
            }
        }
        let finish = FinishReason::Failed(reason);
        self.finish(row.slot, &finish);
        Outcome { id: row.id, prompt: None, tokens: Vec::new(), finish: Some(finish) }
    }

    /// The row's tokens are in the cache; the drafts are not looked at yet.
    fn advance(&mut self, row: &Row, scores: &mut Drain<'_, TokenLogprobs>) -> Option<PromptOutcome> {
        let sequence = self.slots[row.slot].as_mut().expect("a scheduled sequence is live until its step ends");
        self.stats.recomputed_tokens += sequence.advance() as u64;
        for _ in row.scored() {
            sequence.push_score(scores.next().expect("every scored position has a score"));
        }
        sequence.complete_prompt().map(|logprobs| {
            self.stats.prompt_tokens += sequence.prompt_len() as u64;
            self.stats.cached_prompt_tokens += sequence.cached_tokens() as u64;
            if self.pool.caching() {
                self.stats.prefix_queries += sequence.prompt_len() as u64;
                self.stats.prefix_hits += sequence.cached_tokens() as u64;
            }
            PromptOutcome { cached_tokens: sequence.cached_tokens() as u32, logprobs }
        })
    }

    /// Adds what was sampled, and to it what must follow. Each sampled token but the last confirms the draft in its
    /// place, which is in the cache already.
    fn take_tokens(&mut self, row: &Row, sampled: &mut Vec<Token>) -> Option<FinishReason> {
        let block_size = self.config.block_size;
        let sequence = self.slots[row.slot].as_mut().expect("a scheduled sequence is live until its step ends");
        if sampled.is_empty() && sequence.uncomputed() == 0 {
            // It was to generate nothing.
            return Some(FinishReason::Length);
        }
        let mut finish = None;
        for (place, token) in sampled.iter().enumerate() {
            assert!(finish.is_none(), "nothing is sampled after the end");
            if place > 0 {
                sequence.confirm_draft(place - 1);
            }
            finish = sequence.push(token.id);
        }
        let confirmed = sampled.len().saturating_sub(1);
        while finish.is_none()
            && let Some(last) = sampled.len().checked_sub(1)
            && let Some(id) = sequence.forced().get(last).copied()
        {
            finish = sequence.append(id);
            sampled.push(Token { id, logprobs: None });
        }
        self.stats.generation_tokens += sampled.len() as u64;
        if finish.is_none() && sequence.is_ahead() {
            self.go_on(row.slot);
            return None;
        }
        if row.drafts > 0 {
            sequence.settle_drafts(confirmed, &mut self.confidence);
            self.stats.spec_drafts += 1;
            self.stats.spec_draft_tokens += row.drafts as u64;
            self.stats.spec_accepted_tokens += confirmed as u64;
            for place in &mut self.stats.spec_accepted_per_position[..confirmed] {
                *place += 1;
            }
            let size = block_size as usize;
            // Registered only now: until it is confirmed, a draft is nobody's text.
            let certain = row.start + row.count - row.drafts;
            if self.pool.caching() {
                for index in certain / size..sequence.computed() / size {
                    let block = sequence.blocks()[index];
                    let (parent, hash, tokens) = sequence.content(index, block_size);
                    self.pool.register(block, hash, parent, tokens);
                }
            }
        }
        while let Some(block) = sequence.pop_surplus_block(block_size) {
            self.pool.release(block);
        }
        finish
    }

    /// The executor failed: every sequence of the step ends, and nothing that the KV cache holds is trusted any more.
    /// The other sequences recompute; where they may not, those that run or hold blocks end too.
    pub fn fail_step(&mut self, step: &Step, reason: &str, outcomes: &mut Vec<Outcome>) {
        assert!(self.in_flight, "only a scheduled step fails");
        self.in_flight = false;
        // What is planned behind it has the same sequences.
        self.has_behind = false;
        self.stats.failed_steps += 1;
        for row in &step.rows {
            let finish = FinishReason::Failed(reason.to_owned());
            self.finish(row.slot, &finish);
            outcomes.push(Outcome { id: row.id, prompt: None, tokens: Vec::new(), finish: Some(finish) });
        }
        if !self.capabilities.preemption {
            self.fail_holders(reason, outcomes);
        }
        while let Some(slot) = self.running.last().copied() {
            self.preempt(slot);
        }
        let parked: Vec<usize> = self.parked.values().copied().collect();
        for slot in parked {
            if !self.at(slot).blocks().is_empty() {
                self.preempt(slot);
            } else {
                self.release_blocks(slot);
            }
        }
        self.pool.reset_cache();
        if let Some(states) = &mut self.states {
            states.reset_saved();
            assert_eq!(states.free(), states.total(), "after a failed step every slot is free");
        }
        assert_eq!(self.pool.free(), self.pool.total(), "after a failed step every block is free");
    }

    /// Ends every sequence that runs, or is parked and holds blocks.
    fn fail_holders(&mut self, reason: &str, outcomes: &mut Vec<Outcome>) {
        let holders: Vec<usize> = self.running.iter().copied().chain(self.parked_holders()).collect();
        for slot in holders {
            let (id, finish) = (self.at(slot).id, FinishReason::Failed(reason.to_owned()));
            self.finish(slot, &finish);
            outcomes.push(Outcome { id, prompt: None, tokens: Vec::new(), finish: Some(finish) });
        }
    }
}
