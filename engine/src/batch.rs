// performance-critical: no allocation per token, no lock, no log, no format
//! A step as flat arrays. The arrays keep their memory from step to step.

use sconce_models::{BatchInput, StateSave};

use super::scheduler::{Scheduler, Step};

/// Stands for a token that the step before has not sampled yet.
const UNKNOWN: u32 = 0;

/// Writes `step` into `batch`: tokens, positions and slots of every row, its block table, and which logits are wanted. In a
/// step behind another the tokens are placeholders: `Step::sources` says where they come from.
pub fn fill(scheduler: &Scheduler, step: &Step, batch: &mut BatchInput) {
    batch.clear();
    let block_size = scheduler.block_size() as usize;
    for row in &step.rows {
        let sequence = scheduler.sequence(row);
        let first = batch.tokens.len();
        let end = row.start + row.count;
        assert!(sequence.blocks().len() * block_size >= end, "the blocks of a row cover its context");
        if step.sources.is_empty() {
            batch.tokens.extend_from_slice(&sequence.tokens()[row.start..end - row.drafts]);
            batch.tokens.extend_from_slice(sequence.drafts());
        } else {
            assert!(row.count == 1 && row.start == sequence.tokens().len(), "the one token that comes next");
            batch.tokens.push(UNKNOWN);
        }
        for position in row.start..end {
            let block = sequence.blocks()[position / block_size].0 as usize;
            batch.positions.push(position as u32);
            batch.slots.push((block * block_size + position % block_size) as u32);
        }
        batch.row_ends.push(batch.tokens.len() as u32);
        batch.context_lens.push(end as u32);
        // Blocks for drafts that were planned and not made are left out.
        let blocks = &sequence.blocks()[..end.div_ceil(block_size)];
        batch.block_tables.extend(blocks.iter().map(|block| block.0));
        batch.block_table_ends.push(batch.block_tables.len() as u32);
        // Logits for prompt scores come first, then those that are sampled: ascending, as positions are.
        batch.sample_rows.extend(row.scored().map(|position| (first + position - row.start) as u32));
        batch.adapters.push(sequence.adapter());
        batch.states.extend(sequence.slot().map(|slot| slot.0));
        if row.sample {
            batch.sample_rows.extend((batch.tokens.len() - 1 - row.drafts..batch.tokens.len()).map(|at| at as u32));
        }
    }
    batch.state_copies.extend(step.copies.iter().map(|copy| (copy.from.0, copy.to.0)));
    batch.state_saves.extend(step.saves.iter().map(|save| {
        let first = save.row.checked_sub(1).map_or(0, |before| batch.row_ends[before]);
        StateSave { token: first + (save.end - 1 - step.rows[save.row].start) as u32, slot: save.slot.0 }
    }));
    if batch.adapters.iter().all(Option::is_none) {
        batch.adapters.clear();
    }
    assert_eq!(batch.tokens.len(), step.tokens, "a batch has the tokens of its step");
}
