// performance-critical: no allocation per token, no lock, no log; formats only a refusal
//! Steps filled up to the sizes that a device has compiled.
//!
//! A device that runs compiled steps knows a few sizes only: so many rows of one token, or so many tokens of a prompt.
//! This adapter stands before such an executor, adds tokens until a step has one of the sizes
//! (`Capabilities::static_buckets`, `token_buckets`), and takes what was computed for them out of the logits again.
//!
//! Padding comes last in a batch and lives in scratch blocks behind those that the scheduler knows ([`scratch_blocks`]), a
//! slot of its own for each token: no sequence ever reads what it writes, and no slot is written twice in a step. Beside
//! decodes it is rows of one token, so that every row of the bucket samples; behind a prompt it is rows of one block.

use std::sync::Arc;

use sconce_models::{Adapter, AdapterId, BatchInput, Logits};

use super::executor::Executor;
use super::sampler::Workers;
use super::scheduler::Capabilities;

/// Blocks that an executor needs beyond `EngineConfig::blocks` for padding of at most the largest bucket.
pub fn scratch_blocks(capabilities: &Capabilities, block_size: u32) -> u32 {
    let largest = capabilities.static_buckets.iter().chain(&capabilities.token_buckets).copied().max().unwrap_or(0);
    largest.div_ceil(block_size)
}

/// See the module.
pub struct PaddedExecutor<E> {
    inner: E,
    capabilities: Capabilities,
    /// The first block that no sequence has.
    scratch: u32,
    block_size: u32,
    batch: BatchInput,
}

impl<E: Executor> PaddedExecutor<E> {
    /// `blocks` is what the scheduler has, as in `EngineConfig`; `inner` has [`scratch_blocks`] more. What `inner` says of
    /// its own limits is not asked: `capabilities` are those of the steps it gets.
    pub fn new(inner: E, capabilities: Capabilities, blocks: u32, block_size: u32) -> Self {
        Self { inner, capabilities, scratch: blocks, block_size, batch: BatchInput::default() }
    }

    pub fn inner(&mut self) -> &mut E {
        &mut self.inner
    }
}

impl<E: Executor> Executor for PaddedExecutor<E> {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn vocab(&self) -> usize {
        self.inner.vocab()
    }

    fn workers(&self) -> Workers {
        self.inner.workers()
    }

    fn set_adapter(&mut self, id: AdapterId, adapter: Option<Arc<Adapter>>) -> Result<(), String> {
        self.inner.set_adapter(id, adapter)
    }

    fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
        let (rows, tokens) = (batch.rows(), batch.tokens.len());
        let padding = self.capabilities.padded_tokens(rows, tokens)? - tokens;
        if padding == 0 {
            return self.inner.execute(batch, logits);
        }
        copy(batch, &mut self.batch);
        let decodes = rows == tokens;
        pad(&mut self.batch, padding, if decodes { 1 } else { self.block_size }, (self.scratch, self.block_size));
        if decodes {
            self.batch.sample_rows.extend(tokens as u32..(tokens + padding) as u32);
        }
        self.inner.execute(&self.batch, logits)?;
        logits.values.truncate(batch.sample_rows.len() * logits.vocab);
        Ok(())
    }
}

/// Keeps the memory that `to` has.
fn copy(from: &BatchInput, to: &mut BatchInput) {
    to.clear();
    to.tokens.extend_from_slice(&from.tokens);
    to.positions.extend_from_slice(&from.positions);
    to.slots.extend_from_slice(&from.slots);
    to.row_ends.extend_from_slice(&from.row_ends);
    to.context_lens.extend_from_slice(&from.context_lens);
    to.block_tables.extend_from_slice(&from.block_tables);
    to.block_table_ends.extend_from_slice(&from.block_table_ends);
    to.sample_rows.extend_from_slice(&from.sample_rows);
    to.adapters.extend_from_slice(&from.adapters);
}

/// Adds `padding` tokens as rows of at most `row_tokens`, in the blocks from `scratch` on of the size behind it.
fn pad(batch: &mut BatchInput, padding: usize, row_tokens: u32, (scratch, block_size): (u32, u32)) {
    for index in 0..padding as u32 {
        let (block, position) = (scratch + index / block_size, index % block_size);
        batch.tokens.push(0);
        batch.positions.push(position);
        batch.slots.push(block * block_size + position);
        let row_ends = (index + 1).is_multiple_of(row_tokens) || index + 1 == padding as u32;
        if row_ends {
            batch.row_ends.push(batch.tokens.len() as u32);
            batch.context_lens.push(position + 1);
            batch.block_tables.push(block);
            batch.block_table_ends.push(batch.block_tables.len() as u32);
            if !batch.adapters.is_empty() {
                batch.adapters.push(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes batches as they are, and leaves the index of each sampled token as its logits.
    #[derive(Default)]
    struct Seen {
        batches: Vec<BatchInput>,
    }

    impl Executor for Seen {
        fn capabilities(&self) -> Capabilities {
            Capabilities::any()
        }

        fn vocab(&self) -> usize {
            2
        }

        fn execute(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<(), String> {
            self.batches.push(batch.clone());
            logits.vocab = 2;
            logits.values = batch.sample_rows.iter().flat_map(|row| [*row as f32; 2]).collect();
            Ok(())
        }
    }

    /// Rows of so many tokens each, in blocks of 4 of their own, that sample their last token.
    fn batch(rows: &[u32]) -> BatchInput {
        let mut batch = BatchInput::default();
        let mut block = 0;
        for count in rows {
            batch.tokens.extend(0..*count);
            batch.positions.extend(0..*count);
            batch.slots.extend((0..*count).map(|place| block * 4 + place));
            batch.row_ends.push(batch.tokens.len() as u32);
            batch.context_lens.push(*count);
            batch.block_tables.extend(block..block + count.div_ceil(4));
            batch.block_table_ends.push(batch.block_tables.len() as u32);
            batch.sample_rows.push(batch.tokens.len() as u32 - 1);
            block += count.div_ceil(4);
        }
        batch
    }

    #[test]
    fn a_step_gets_the_size_of_its_bucket_and_its_own_logits_back() {
        // (rows, tokens of the padded step, their rows, samples of it)
        let cases: [(&[u32], usize, usize, usize); 5] =
            [(&[1], 2, 2, 2), (&[1, 1], 2, 2, 2), (&[1, 1, 1], 6, 6, 6), (&[3], 8, 3, 1), (&[13], 16, 2, 1)];
        for (rows, tokens, padded_rows, samples) in cases {
            let capabilities = Capabilities::compiled(&[2, 6], &[8, 16]);
            assert_eq!(scratch_blocks(&capabilities, 4), 4);
            let mut executor = PaddedExecutor::new(Seen::default(), capabilities, 10, 4);
            let (batch, mut logits) = (batch(rows), Logits::default());
            executor.execute(&batch, &mut logits).expect("it fits");
            let expected: Vec<f32> = batch.sample_rows.iter().flat_map(|row| [*row as f32; 2]).collect();
            assert_eq!(logits.values, expected, "{rows:?}");
            let seen = &executor.inner().batches[0];
            assert_eq!((seen.tokens.len(), seen.rows(), seen.sample_rows.len()), (tokens, padded_rows, samples));
            assert_eq!(seen.row_ends.last(), Some(&(tokens as u32)), "{rows:?}");
            let mut slots = seen.slots.clone();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), tokens, "{rows:?}: no slot is written twice");
            assert!(seen.slots[batch.tokens.len()..].iter().all(|slot| (40..56).contains(slot)), "{:?}", seen.slots);
        }
    }

    #[test]
    fn padding_has_no_adapter_and_what_fits_no_bucket_is_refused() {
        let mut executor = PaddedExecutor::new(Seen::default(), Capabilities::compiled(&[2], &[8]), 10, 4);
        let mut one = batch(&[1]);
        one.adapters = vec![Some(AdapterId(3))];
        executor.execute(&one, &mut Logits::default()).expect("it fits");
        assert_eq!(executor.inner().batches[0].adapters, [Some(AdapterId(3)), None]);
        for (rows, refusal) in
            [(&[1, 1, 1][..], "3 rows; the buckets are [2]"), (&[9], "9 tokens; the buckets are [8]")]
        {
            let refused = executor.execute(&batch(rows), &mut Logits::default()).expect_err("no bucket is so large");
            assert!(refused.contains(refusal), "{refused}");
        }
    }
}
