//! What bounds the scheduler: the sizes of one engine, and what its executor can do.

use crate::speculation::Speculation;

/// What an executor asks of the scheduler. Plain data: a new device is a new record, not a new branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Row counts that the device has compiled steps of one token a row for; empty is any. The scheduler never schedules
    /// more rows than the largest. `PaddedExecutor` fills a step up to the next bucket, unless the executor does so itself.
    pub static_buckets: Vec<u32>,
    /// Token counts of the other steps, likewise; empty is any. A chunk that would leave more than half of its bucket
    /// empty is cut to one that it fills.
    pub token_buckets: Vec<u32>,
    /// Whether prefill chunks and decodes may share a step.
    pub mixed_batch: bool,
    /// `u32::MAX` is any.
    pub max_prefills_per_step: u32,
    /// `u32::MAX` is any.
    pub max_tokens_per_step: u32,
    /// Drafted tokens that a decode may carry; 0 where a decode is one token, `u32::MAX` is any.
    pub max_drafts_per_row: u32,
    /// Slots for states, of which every running sequence has one; 0 of a model that keeps none.
    pub state_slots: u32,
    /// Whether a sequence may lose its blocks and be computed again. Without, the blocks that it may ever need are set
    /// aside when it is admitted, and whoever comes later waits.
    pub preemption: bool,
}

impl Capabilities {
    /// No restriction at all.
    pub fn any() -> Self {
        Self {
            static_buckets: Vec::new(),
            token_buckets: Vec::new(),
            mixed_batch: true,
            max_prefills_per_step: u32::MAX,
            max_tokens_per_step: u32::MAX,
            max_drafts_per_row: u32::MAX,
            state_slots: 0,
            preemption: true,
        }
    }

    /// What compiled steps allow: decodes and one prompt take turns, in sizes known beforehand, and nobody starts over.
    pub fn compiled(decode_rows: &[u32], prefill_tokens: &[u32]) -> Self {
        Self {
            static_buckets: decode_rows.to_vec(),
            token_buckets: prefill_tokens.to_vec(),
            mixed_batch: false,
            max_prefills_per_step: 1,
            max_tokens_per_step: u32::MAX,
            max_drafts_per_row: 0,
            state_slots: 0,
            preemption: false,
        }
    }

    /// Refuses a record under which no step could have a row.
    pub fn check(&self) -> Result<(), String> {
        for (name, buckets) in [("static_buckets", &self.static_buckets), ("token_buckets", &self.token_buckets)] {
            if buckets.contains(&0) {
                return Err(format!("executor capabilities: a bucket of 0 in `{name}`"));
            }
        }
        if self.max_prefills_per_step == 0 || self.max_tokens_per_step == 0 {
            return Err("executor capabilities: no prefill or no token a step is allowed".into());
        }
        if self.state_slots > 0 && self.max_drafts_per_row > 0 {
            return Err("executor capabilities: a state cannot take drafts back; `max_drafts_per_row` must be 0".into());
        }
        let has_buckets = !self.static_buckets.is_empty() || !self.token_buckets.is_empty();
        if self.state_slots > 0 && has_buckets {
            return Err(
                "executor capabilities: padding has no state of its own; `state_slots` needs steps of any size".into(),
            );
        }
        Ok(())
    }

    /// Most tokens of a step.
    pub fn tokens_max(&self) -> u32 {
        self.max_tokens_per_step.min(self.token_buckets.iter().copied().max().unwrap_or(u32::MAX))
    }

    /// Most sequences that run at once.
    pub fn rows_max(&self) -> u32 {
        let slots = if self.state_slots > 0 { self.state_slots } else { u32::MAX };
        slots.min(self.static_buckets.iter().copied().max().unwrap_or(u32::MAX))
    }

    /// Tokens that a step of `rows` rows and `tokens` tokens has once it is filled up to its bucket. Fails where there is
    /// none so large.
    pub fn padded_tokens(&self, rows: usize, tokens: usize) -> Result<usize, String> {
        let (buckets, kind) =
            if rows == tokens { (&self.static_buckets, "rows") } else { (&self.token_buckets, "tokens") };
        if buckets.is_empty() {
            return Ok(tokens);
        }
        let fitting = buckets.iter().map(|bucket| *bucket as usize).filter(|bucket| *bucket >= tokens).min();
        fitting.ok_or_else(|| format!("no bucket holds a step of {tokens} {kind}; the buckets are {buckets:?}"))
    }

    /// The most of `tokens` prompt tokens that one step should take: all of them, unless more than half of their bucket
    /// would be padding and a smaller one is full.
    pub(super) fn well_filled(&self, tokens: usize) -> usize {
        let sizes = || self.token_buckets.iter().map(|bucket| *bucket as usize);
        match (sizes().filter(|size| *size >= tokens).min(), sizes().filter(|size| *size <= tokens).max()) {
            (Some(above), Some(below)) if tokens * 2 < above => below,
            _ => tokens,
        }
    }
}

/// How long a step should take at most while sequences decode: what they wait for their next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ItlTarget {
    /// Twice what the decodes take alone: beside them, prompts get half of the machine.
    #[default]
    Auto,
    Milliseconds(u32),
    /// Whatever the token budget allows.
    Off,
}

/// Sizes and limits of one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Tokens a KV block.
    pub block_size: u32,
    /// KV blocks in all.
    pub blocks: u32,
    /// Sequences that run at once.
    pub max_num_seqs: u32,
    /// Tokens a step.
    pub max_num_batched_tokens: u32,
    /// Prompt and output of one sequence together.
    pub max_model_len: u32,
    pub enable_prefix_caching: bool,
    /// Sequences accepted beyond `max_num_seqs`; more are refused as `Full`.
    pub max_waiting: u32,
    pub itl_target: ItlTarget,
    /// `None` drafts nothing.
    pub speculation: Option<Speculation>,
}

impl EngineConfig {
    /// Refuses sizes with which no sequence could ever run, and names the flag.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("block_size", self.block_size),
            ("blocks", self.blocks),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_model_len", self.max_model_len),
        ];
        for (name, value) in sizes {
            if value == 0 {
                return Err(format!("engine config: `{name}` is 0; it must be at least 1"));
            }
        }
        if let Some(speculation) = &self.speculation {
            speculation.check().map_err(|reason| format!("engine config: {reason}"))?;
        }
        if self.itl_target == ItlTarget::Milliseconds(0) {
            return Err("engine config: `itl_target` is 0 ms; it must be at least 1".into());
        }
        let slots = u64::from(self.block_size) * u64::from(self.blocks);
        if slots > u64::from(u32::MAX) {
            return Err(format!(
                "engine config: {} blocks of {} tokens are {slots} slots, over the limit of {}; lower `blocks`",
                self.blocks,
                self.block_size,
                u32::MAX
            ));
        }
        Ok(())
    }
}
