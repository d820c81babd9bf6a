//! The contract of a batch, checked before a step computes or writes anything.
//!
//! It costs a few comparisons a token. What it buys: no bug of a scheduler can read another sequence's cache unnoticed.

use crate::batch::BatchInput;
use crate::error::{Error, Result};
use crate::spec::Spec;

/// What a batch must know of a cache: its layers, blocks, and tokens a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheSizes {
    pub layers: usize,
    pub blocks: u32,
    pub block_size: u32,
    /// 0 of a model without states.
    pub state_slots: u32,
}

pub(crate) fn check_batch(batch: &BatchInput, spec: &Spec, kv: CacheSizes) -> Result<()> {
    find_fault(batch, spec, kv).map_or(Ok(()), |fault| Err(Error::Batch(fault)))
}

fn find_fault(batch: &BatchInput, spec: &Spec, kv: CacheSizes) -> Option<String> {
    let (tokens, rows) = (batch.tokens.len(), batch.row_ends.len());
    if kv.layers != spec.layers {
        return Some(format!("a kv cache of {} layers for a model of {}", kv.layers, spec.layers));
    }
    if batch.positions.len() != tokens || batch.slots.len() != tokens {
        let (positions, slots) = (batch.positions.len(), batch.slots.len());
        return Some(format!("{tokens} tokens with {positions} positions and {slots} slots"));
    }
    if batch.context_lens.len() != rows || batch.block_table_ends.len() != rows {
        let (contexts, tables) = (batch.context_lens.len(), batch.block_table_ends.len());
        return Some(format!("{rows} rows with {contexts} context lengths and {tables} block tables"));
    }
    if !batch.adapters.is_empty() && batch.adapters.len() != rows {
        return Some(format!("{rows} rows with {} adapters", batch.adapters.len()));
    }
    if let Some(fault) = find_state_fault(batch, kv.state_slots) {
        return Some(fault);
    }
    if batch.row_ends.last().map_or(0, |&end| end as usize) != tokens {
        return Some(format!("rows end at {:?}, but there are {tokens} tokens", batch.row_ends.last()));
    }
    if batch.block_table_ends.last().map_or(0, |&end| end as usize) != batch.block_tables.len() {
        let (last, blocks) = (batch.block_table_ends.last(), batch.block_tables.len());
        return Some(format!("block tables end at {last:?}, but there are {blocks} entries"));
    }
    if let Some(token) = batch.tokens.iter().find(|&&token| token as usize >= spec.vocab) {
        return Some(format!("token {token} is outside the vocabulary of {}", spec.vocab));
    }
    if let Some(block) = batch.block_tables.iter().find(|&&block| block >= kv.blocks) {
        return Some(format!("block {block} is outside the cache of {} blocks", kv.blocks));
    }
    let are_ascending = batch.sample_rows.windows(2).all(|pair| pair[0] < pair[1]);
    if !are_ascending || batch.sample_rows.last().is_some_and(|&row| row as usize >= tokens) {
        return Some(format!("sample rows are not ascending indices below {tokens}"));
    }
    let (mut token_start, mut table_start) = (0, 0);
    for row in 0..rows {
        let (token_end, table_end) = (batch.row_ends[row] as usize, batch.block_table_ends[row] as usize);
        if token_end <= token_start || table_end < table_start || token_end > tokens {
            return Some(format!("row {row} has no tokens, or row or table ends descend"));
        }
        let Some(table) = batch.block_tables.get(table_start..table_end) else {
            return Some(format!("the block table of row {row} ends beyond the entries"));
        };
        let fault = find_row_fault(batch, row, (token_start, token_end), table, (spec.context_max, kv.block_size));
        if fault.is_some() {
            return fault;
        }
        (token_start, table_start) = (token_end, table_end);
    }
    None
}

/// Slots that rows and saves write are all different, which the kernels check; what is copied must not meet them.
fn find_state_fault(batch: &BatchInput, slots: u32) -> Option<String> {
    let rows = if slots == 0 { 0 } else { batch.row_ends.len() };
    if batch.states.len() != rows {
        return Some(format!("{} states for {rows} rows that have one", batch.states.len()));
    }
    let saved = batch.state_saves.iter().map(|save| save.slot);
    let copied = batch.state_copies.iter().flat_map(|(from, to)| [*from, *to]);
    if let Some(slot) = batch.states.iter().copied().chain(saved.clone()).chain(copied).find(|slot| *slot >= slots) {
        return Some(format!("state {slot} is outside the {slots} that there are"));
    }
    if !batch.state_saves.is_sorted_by_key(|save| save.token) {
        return Some("saved states are not in the order of their tokens".to_owned());
    }
    let is_source = |slot: u32| batch.state_copies.iter().any(|(from, _)| *from == slot);
    let lost = saved.chain(batch.states.iter().copied()).find(|slot| is_source(*slot));
    lost.map(|slot| format!("state {slot} is copied and written in one step"))
}

/// `limits`: the model's longest context and the cache's block size.
fn find_row_fault(
    batch: &BatchInput,
    row: usize,
    tokens: (usize, usize),
    table: &[u32],
    limits: (u32, u32),
) -> Option<String> {
    let (context_max, block_size) = limits;
    let context = batch.context_lens[row];
    if context > context_max {
        return Some(format!("row {row} has a context of {context} tokens, the model takes {context_max}"));
    }
    if table.len() as u64 * u64::from(block_size) < u64::from(context) {
        return Some(format!("row {row} has {} blocks of {block_size} for {context} tokens", table.len()));
    }
    let Some(first) = (context as usize).checked_sub(tokens.1 - tokens.0) else {
        return Some(format!("row {row} has more tokens than its context of {context}"));
    };
    for (position, token) in (first as u32..).zip(tokens.0..tokens.1) {
        if batch.positions[token] != position {
            let found = batch.positions[token];
            return Some(format!("token {token} of row {row} is at position {found}, expected {position}"));
        }
        let slot = table[(position / block_size) as usize] * block_size + position % block_size;
        if batch.slots[token] != slot {
            let found = batch.slots[token];
            return Some(format!("position {position} of row {row} goes to slot {found}, its block says {slot}"));
        }
    }
    None
}
