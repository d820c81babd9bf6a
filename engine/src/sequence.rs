//! One sequence: its tokens, how many of them are in the KV cache, and in which blocks.
//!
//! Invariants, asserted at every transition: `computed <= tokens.len()`; the blocks cover exactly the computed tokens
//! between steps; drafts exist only inside a step and never among the tokens; a finished sequence leaves the scheduler
//! at once, so no state here means "finished".

mod ahead;

use sconce_models::AdapterId;

use super::blocks::{BlockId, ChainHash, blocks_for};
use super::costs::StepCosts;
use super::filter::Restriction;
use super::sampler::{SamplingParams, SeenTokens};
use super::speculation::{Drafter, SharedConfidence, StepSoFar};
use super::states::StateSlot;

/// The last tokens of a prompt open the answer; the prompt of the next turn may open it otherwise.
const OPENING_TOKENS: usize = 8;

/// Names one submitted sequence for the life of its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// One of the sequence's stop ids was sampled. It is the last of the delivered tokens.
    StopToken(u32),
    /// `max_tokens`, the model's context, or the whole KV pool is used up.
    Length,
    /// The receiver was dropped, or a shutdown ran out of patience.
    Cancelled,
    /// One line that says what went wrong.
    Failed(String),
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    pub logprobs: Option<TokenLogprobs>,
}

/// How likely a token was, by the model's raw logits (before penalties and temperature).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm. Negative infinity where the model gave a probability of zero.
    pub logprob: f32,
    /// 1 is the likeliest; of equals the lower id comes first.
    pub rank: u32,
    /// The likeliest tokens, best first, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Who goes first: the lower key. Fixed for the life of a sequence, see `Scheduler::add`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderKey {
    pub start_step: i64,
    pub arrival: u64,
}

/// Where a live sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Holds no blocks; new, or preempted.
    Waiting,
    /// Holds blocks; takes part in steps.
    Running,
    /// Its client does not read. May hold blocks; takes part in no step.
    Parked,
}

/// A live sequence.
#[derive(Debug)]
pub struct Sequence {
    pub id: SeqId,
    pub params: SamplingParams,
    pub priority: i32,
    pub key: OrderKey,
    adapter: Option<AdapterId>,
    /// Of the adapter, too: what it wrote is never another's.
    salt: [u8; 32],
    root: ChainHash,
    /// Prompt, then output.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Prompt and output together never exceed this.
    tokens_max: usize,
    state: State,
    /// Tokens whose K and V are in `blocks`. The rest is what the sequence still has to run.
    computed: usize,
    /// The most that `computed` has ever been: below it, computing is recomputing.
    computed_max: usize,
    /// Tokens of the step in flight; 0 when the sequence is not part of it.
    scheduled: usize,
    /// The token that the step in flight gives it is part of the step behind that one.
    ahead: bool,
    blocks: Vec<BlockId>,
    /// Of a model that keeps a state a sequence; holds the computed tokens.
    slot: Option<StateSlot>,
    /// K and V of others went on to here behind the last saved state when it was admitted; 0 where they did not.
    branch: usize,
    /// Of the full blocks of `tokens`, as far as they were needed.
    hashes: Vec<ChainHash>,
    /// Prompt tokens found in the prefix cache (not those found again after a preemption).
    cached_tokens: usize,
    prompt_done: bool,
    prompt_scores: Vec<TokenLogprobs>,
    /// For its penalties, if it has any.
    seen: Option<Box<SeenTokens>>,
    /// Guesses ahead, if it may be guessed ahead.
    drafter: Option<Box<Drafter>>,
    /// Of the next token; set anew before each.
    restriction: Restriction,
}

/// What `Scheduler::add` turns into a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSequence {
    pub id: SeqId,
    pub prompt: Vec<u32>,
    pub params: SamplingParams,
    pub priority: i32,
    pub salt: [u8; 32],
    pub adapter: Option<AdapterId>,
}

impl NewSequence {
    /// The salt of its blocks: K and V depend on the adapter, and an adapter's name is never given again.
    fn block_salt(&self) -> [u8; 32] {
        let Some(adapter) = self.adapter else { return self.salt };
        let mut hasher = blake3::Hasher::new_keyed(&self.salt);
        hasher.update(b"sconce adapter").update(&adapter.0.to_le_bytes());
        *hasher.finalize().as_bytes()
    }
}

impl Sequence {
    pub(super) fn new(new: NewSequence, key: OrderKey, tokens_max: usize) -> Self {
        let prompt_len = new.prompt.len();
        let salt = new.block_salt();
        let seen = SeenTokens::new(&new.params, &new.prompt).map(Box::new);
        assert!(prompt_len > 0 && prompt_len <= tokens_max, "a prompt has at least one token and fits");
        Self {
            id: new.id,
            params: new.params,
            priority: new.priority,
            key,
            adapter: new.adapter,
            root: ChainHash::root(&salt),
            salt,
            tokens: new.prompt,
            prompt_len,
            tokens_max,
            state: State::Waiting,
            computed: 0,
            computed_max: 0,
            scheduled: 0,
            ahead: false,
            blocks: Vec::new(),
            slot: None,
            branch: 0,
            hashes: Vec::new(),
            cached_tokens: 0,
            prompt_done: false,
            prompt_scores: Vec::new(),
            seen,
            drafter: None,
            restriction: Restriction::None,
        }
    }

    /// Lets it be guessed ahead from now on.
    pub(super) fn set_drafter(&mut self, drafter: Drafter) {
        self.drafter = Some(Box::new(drafter));
    }

    pub(super) fn never_draft(&mut self) {
        self.drafter = None;
    }

    pub fn adapter(&self) -> Option<AdapterId> {
        self.adapter
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// What penalties are computed from, if the parameters have any.
    pub fn seen(&self) -> Option<&SeenTokens> {
        self.seen.as_deref()
    }

    /// Tokens of the step in flight that follow `tokens` if the model agrees.
    pub fn drafts(&self) -> &[u32] {
        self.drafter.as_ref().map_or(&[], |drafter| drafter.drafts())
    }

    pub fn computed(&self) -> usize {
        self.computed
    }

    pub fn uncomputed(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Its state slot.
    pub fn slot(&self) -> Option<StateSlot> {
        self.slot
    }

    pub(super) fn set_slot(&mut self, slot: StateSlot) {
        assert!(self.slot.is_none() && self.computed == 0, "a slot is for a sequence that begins");
        self.slot = Some(slot);
    }

    pub(super) fn take_slot(&mut self) -> Option<StateSlot> {
        assert_eq!(self.computed, 0, "without its state nothing is computed");
        self.slot.take()
    }

    pub(super) fn set_branch(&mut self, branch: usize) {
        self.branch = branch;
    }

    /// Where the state is worth saving, ascending: at the last border before the prompt opens the answer, so that the
    /// next turn of a conversation and its siblings begin there; and where others with the same beginning went on.
    pub(super) fn save_borders(&self, block_size: u32) -> [usize; 2] {
        let border = self.prompt_border(block_size);
        [border.min(self.branch), border.max(self.branch)]
    }

    /// 0 for a prompt within its first block.
    pub(super) fn prompt_border(&self, block_size: u32) -> usize {
        let size = block_size as usize;
        let last = (self.prompt_len - 1) / size * size;
        let before_opening = self.prompt_len.saturating_sub(1 + OPENING_TOKENS) / size * size;
        if before_opening > 0 { before_opening } else { last }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn scheduled(&self) -> usize {
        self.scheduled
    }

    pub fn cached_tokens(&self) -> usize {
        self.cached_tokens
    }

    /// One token to run, and it is one that this engine generated.
    pub fn is_decode(&self) -> bool {
        self.uncomputed() == 1 && self.computed >= self.prompt_len
    }

    /// The most tokens that prompt and output may have together.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Blocks still to be allocated before every known token is computed.
    pub fn blocks_missing(&self, block_size: u32) -> usize {
        blocks_for(self.tokens.len(), block_size).saturating_sub(self.blocks.len())
    }

    /// Position whose logits score the next prompt token that still has to be scored, if any has.
    /// Logits at position `p` score token `p + 1`.
    pub fn score_next(&self) -> Option<usize> {
        let wanted = self.params.prompt_logprobs.is_some() && self.prompt_scores.len() + 1 < self.prompt_len;
        (wanted && !self.prompt_done).then_some(self.prompt_scores.len())
    }

    pub fn restriction(&self) -> &Restriction {
        &self.restriction
    }

    pub(super) fn restrict(&mut self, restriction: Restriction) {
        self.restriction = restriction;
    }

    pub(super) fn take_restriction(&mut self) -> Restriction {
        std::mem::take(&mut self.restriction)
    }

    /// What must follow the token that is sampled now, beyond that token itself.
    pub(super) fn forced(&self) -> &[u32] {
        match &self.restriction {
            // Log probabilities need the logits of every token.
            Restriction::Only(next) if self.params.logprobs.is_none() => next.forced.get(1..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// How many leading tokens may come from the prefix cache: the last token always runs, for its logits, and prompt
    /// tokens whose logits are wanted run too.
    pub(super) fn shareable(&self) -> usize {
        let before_last = self.tokens.len() - 1;
        self.score_next().map_or(before_last, |next| next.min(before_last))
    }

    /// Parent hash, own hash and token ids of full block `index`.
    pub(super) fn content(&mut self, index: usize, block_size: u32) -> (ChainHash, ChainHash, &[u32]) {
        let size = block_size as usize;
        assert!((index + 1) * size <= self.tokens.len(), "only full blocks have content");
        while self.hashes.len() <= index {
            let start = self.hashes.len() * size;
            let parent = self.hashes.last().copied().unwrap_or(self.root);
            self.hashes.push(parent.child(&self.salt, &self.tokens[start..start + size]));
        }
        let parent = if index == 0 { self.root } else { self.hashes[index - 1] };
        (parent, self.hashes[index], &self.tokens[index * size..(index + 1) * size])
    }

    /// Takes a block that already holds the next full block of tokens. Returns how many tokens of it count as cached.
    pub(super) fn take_cached(&mut self, block: BlockId, block_size: u32) -> usize {
        self.assert_between_steps(block_size);
        assert!(self.computed.is_multiple_of(block_size as usize), "cached blocks follow full blocks");
        self.blocks.push(block);
        let before = self.computed;
        self.computed += block_size as usize;
        assert!(self.computed < self.tokens.len(), "the last token always runs");
        let new = self.computed.min(self.prompt_len).saturating_sub(before.max(self.computed_max));
        // After the prompt, or after a preemption, a hit saves work but is no news to the client.
        let counted = if self.prompt_done { 0 } else { new };
        self.cached_tokens += counted;
        counted
    }

    /// Gives back the cached blocks taken since `computed` tokens, when the step has no room for more of this sequence.
    pub(super) fn drop_cached(&mut self, computed: usize, cached_tokens: usize, block_size: u32) -> Vec<BlockId> {
        assert!(computed <= self.computed && self.scheduled == 0, "only what this step took is given back");
        self.computed = computed;
        self.cached_tokens = cached_tokens;
        self.blocks.split_off(blocks_for(computed, block_size))
    }

    pub(super) fn add_block(&mut self, block: BlockId) {
        assert_eq!(self.state, State::Running, "only running sequences grow");
        self.blocks.push(block);
    }

    /// Drafts what comes after `tokens`, at most `room` tokens and never so many that the last could not be followed by
    /// another. Returns how many.
    pub(super) fn draft(&mut self, room: usize, step: StepSoFar, costs: &StepCosts) -> usize {
        let output_left = (self.params.max_tokens as usize).saturating_sub(self.output().len());
        let left = output_left.min(self.tokens_max - self.tokens.len());
        let Some(drafter) = &mut self.drafter else { return 0 };
        drafter.draft(&self.tokens, room.min(left.saturating_sub(1)), step, costs)
    }

    pub(super) fn truncate_drafts(&mut self, count: usize) {
        if let Some(drafter) = &mut self.drafter {
            drafter.truncate(count);
        }
    }

    pub(super) fn set_drafts(&mut self, drafts: &[u32]) {
        let drafter = self.drafter.as_mut().expect("only a sequence with a drafter is planned with drafts");
        drafter.set(drafts);
    }

    /// Makes the next `count` tokens and then the drafts part of the step in flight.
    pub(super) fn schedule(&mut self, count: usize, block_size: u32) {
        assert_eq!(self.state, State::Running, "only running sequences are scheduled");
        assert!(self.scheduled == 0 && count > 0 && count <= self.uncomputed(), "at most what is left, once a step");
        let drafts = self.drafts().len();
        assert!(drafts == 0 || count == self.uncomputed(), "drafts follow the last token");
        let end = self.computed + count + drafts;
        assert_eq!(self.blocks.len(), blocks_for(end, block_size), "blocks cover exactly the step");
        self.scheduled = count;
    }

    /// The scheduled tokens are in the cache now. Returns how many of them had been there before.
    pub(super) fn advance(&mut self) -> usize {
        assert!(self.scheduled > 0, "only scheduled sequences advance");
        let before = self.computed;
        self.computed += std::mem::take(&mut self.scheduled);
        let recomputed = self.computed_max.min(self.computed).saturating_sub(before);
        self.computed_max = self.computed_max.max(self.computed);
        recomputed
    }

    /// The last token is what was drafted in its place (the `place`-th draft): it is in the cache already.
    pub(super) fn confirm_draft(&mut self, place: usize) {
        assert_eq!(self.tokens.last(), self.drafts().get(place), "a confirmed draft is what was sampled");
        assert_eq!(self.computed + 1, self.tokens.len(), "drafts are confirmed one after the other");
        self.computed += 1;
        self.computed_max = self.computed_max.max(self.computed);
    }

    /// The drafts of the step are checked. What the cache holds beyond the computed tokens is overwritten later.
    pub(super) fn settle_drafts(&mut self, confirmed: usize, shared: &mut SharedConfidence) {
        if let Some(drafter) = &mut self.drafter {
            drafter.learn(confirmed, shared);
        }
    }

    /// Takes back a block that only drafts needed; `None` when the blocks cover what is computed and no more.
    pub(super) fn pop_surplus_block(&mut self, block_size: u32) -> Option<BlockId> {
        if self.blocks.len() > blocks_for(self.computed, block_size) {
            return self.blocks.pop();
        }
        self.assert_between_steps(block_size);
        None
    }

    /// Adds the log probabilities of the next prompt token.
    pub(super) fn push_score(&mut self, score: TokenLogprobs) {
        assert!(self.score_next().is_some(), "only wanted prompt tokens are scored, once");
        self.prompt_scores.push(score);
    }

    /// True once, when the prompt is complete: then the scores are taken out.
    pub(super) fn complete_prompt(&mut self) -> Option<Vec<TokenLogprobs>> {
        if self.prompt_done || self.computed < self.prompt_len {
            return None;
        }
        assert!(self.score_next().is_none(), "a complete prompt is scored completely");
        self.prompt_done = true;
        Some(std::mem::take(&mut self.prompt_scores))
    }

    /// Adds a sampled token and says whether the sequence ends with it.
    pub(super) fn push(&mut self, token: u32) -> Option<FinishReason> {
        assert!(self.computed == self.tokens.len(), "a token follows the last");
        self.append(token)
    }

    /// Adds a token that needs no sampling, after one that did not end the sequence.
    pub(super) fn append(&mut self, token: u32) -> Option<FinishReason> {
        assert!(self.tokens.len() < self.tokens_max, "a sequence that is full has ended");
        self.tokens.push(token);
        if let Some(seen) = &mut self.seen {
            seen.push(token);
        }
        if self.params.stop_token_ids.contains(&token) {
            return Some(FinishReason::StopToken(token));
        }
        self.is_full().then_some(FinishReason::Length)
    }

    /// No further token may be generated.
    pub(super) fn is_full(&self) -> bool {
        self.tokens.len() >= self.tokens_max || self.output().len() >= self.params.max_tokens as usize
    }

    /// It was never part of a step.
    pub(super) fn is_new(&self) -> bool {
        self.computed_max == 0
    }

    /// From waiting to running, with the cached blocks it took to be admitted.
    pub(super) fn admit(&mut self) {
        assert!(self.state == State::Waiting && self.scheduled == 0, "only a waiting sequence is admitted");
        self.state = State::Running;
    }

    /// Puts the sequence into another state; whoever calls this moves it between the queues too.
    pub(super) fn set_state(&mut self, state: State) {
        let holds_nothing = self.blocks.is_empty() && self.slot.is_none();
        assert!(state != State::Waiting || holds_nothing, "a waiting sequence holds no blocks and no state");
        assert_eq!(self.scheduled, 0, "no change of state inside a step");
        self.state = state;
    }

    /// Everything computed is given up: the blocks go back to the pool, the tokens stay.
    pub(super) fn take_blocks(&mut self) -> Vec<BlockId> {
        self.computed = 0;
        self.scheduled = 0;
        self.ahead = false;
        self.truncate_drafts(0);
        std::mem::take(&mut self.blocks)
    }

    fn assert_between_steps(&self, block_size: u32) {
        assert!(self.computed <= self.tokens.len(), "no more is computed than there is");
        assert_eq!(self.blocks.len(), blocks_for(self.computed, block_size), "blocks cover what is computed");
    }
}
