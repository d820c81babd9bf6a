//! K and V on the device, and what is known of them after a program failed.
//!
//! A program takes the cache as donated arguments: one that fails may have eaten it. Then an empty cache takes its place, and a
//! row that would read what was lost is refused until its blocks are filled anew.

use sconce_models::BatchInput;

use crate::api::{Buffer, Device};
use crate::buckets::Limits;
use crate::error::{Error, Result};
use crate::hlo::TensorType;

pub(crate) struct Cache {
    /// K and V of each layer in turn.
    buffers: Vec<Buffer>,
    ty: TensorType,
    known: Known,
}

/// Which blocks hold what their sequences wrote.
struct Known {
    block_size: u32,
    /// `[blocks]`
    blocks: Vec<bool>,
}

impl Cache {
    /// `count` buffers of zeros.
    pub fn new(device: &Device, ty: TensorType, count: usize, limits: Limits) -> Result<Self> {
        let known = Known { block_size: limits.block_size, blocks: vec![true; limits.blocks as usize] };
        Ok(Self { buffers: zeros(device, &ty, count)?, ty, known })
    }

    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Refuses rows that would read what was lost, and notes what the batch fills.
    pub fn enter(&mut self, batch: &BatchInput) -> Result<()> {
        self.known.enter(batch)
    }

    /// What a program made of the cache.
    pub fn replace(&mut self, buffers: Vec<Buffer>) -> Result<()> {
        if buffers.len() != self.buffers.len() {
            let detail = format!("a program gave {} caches of {}", buffers.len(), self.buffers.len());
            return Err(Error::Program { operation: "step", detail });
        }
        self.buffers = buffers;
        Ok(())
    }

    /// After a program failed: whatever it has eaten is replaced by nothing.
    pub fn recover(&mut self, device: &Device) -> Result<()> {
        // One that cannot even be asked is gone.
        if self.buffers.iter().any(|buffer| buffer.is_deleted().unwrap_or(true)) {
            self.known.blocks.fill(false);
            self.buffers = zeros(device, &self.ty, self.buffers.len())?;
        }
        Ok(())
    }
}

impl Known {
    fn enter(&mut self, batch: &BatchInput) -> Result<()> {
        let starts = std::iter::once(0).chain(batch.row_ends.iter().copied());
        let tables = std::iter::once(0).chain(batch.block_table_ends.iter().copied());
        for (row, (start, table)) in starts.zip(tables).take(batch.rows()).enumerate() {
            let read = batch.positions[start as usize].div_ceil(self.block_size) as usize;
            let table = &batch.block_tables[table as usize..batch.block_table_ends[row] as usize];
            if !table[..read].iter().all(|block| self.blocks[*block as usize]) {
                let why = "the kv cache of a sequence was lost in an earlier step that failed; send the request again";
                return Err(Error::Refused(why.to_owned()));
            }
        }
        for (position, slot) in batch.positions.iter().zip(&batch.slots) {
            if position % self.block_size == 0 {
                self.blocks[(slot / self.block_size) as usize] = true;
            }
        }
        Ok(())
    }
}

fn zeros(device: &Device, ty: &TensorType, count: usize) -> Result<Vec<Buffer>> {
    let bytes = vec![0; ty.bytes()];
    (0..count).map(|_| device.upload(ty.element, &ty.dims, &bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row from `start` on, in blocks of 4.
    fn batch(table: &[u32], start: u32, count: u32) -> BatchInput {
        let slot = |position: u32| table[(position / 4) as usize] * 4 + position % 4;
        BatchInput {
            tokens: vec![0; count as usize],
            positions: (start..start + count).collect(),
            slots: (start..start + count).map(slot).collect(),
            row_ends: vec![count],
            context_lens: vec![start + count],
            block_tables: table.to_vec(),
            block_table_ends: vec![table.len() as u32],
            ..BatchInput::default()
        }
    }

    #[test]
    fn what_was_lost_is_not_read() {
        let mut known = Known { block_size: 4, blocks: vec![true; 4] };
        known.enter(&batch(&[2, 0], 5, 1)).expect("nothing was lost");
        known.blocks.fill(false);
        known.enter(&batch(&[2, 0], 5, 1)).expect_err("its blocks are gone");
        known.enter(&batch(&[1, 3], 4, 2)).expect_err("its first block is gone");
        known.enter(&batch(&[2, 0], 0, 3)).expect("it begins anew");
        known.enter(&batch(&[2, 0], 3, 2)).expect("its first block is there, the second begins");
        known.enter(&batch(&[2, 0], 5, 1)).expect("both are there");
        known.enter(&batch(&[2, 1], 5, 1)).expect_err("the other one is not");
    }
}
