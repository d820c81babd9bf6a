// performance-critical: no allocation per token, no lock, no log, no format
//! A rank's way to the others that have the rest of its model.

use sconce_cuda::comm::Entered;
use sconce_cuda::ops::columns::place_columns;
use sconce_cuda::{Breaker, Buffer, Communicator, Device, ElementType, Slice};

use super::CudaModel;
use crate::error::{Error, Result};

pub(super) struct Ranks {
    communicator: Communicator,
    /// F32 `[1]`: how many ranks could not do something.
    failed: Buffer,
}

impl Ranks {
    pub fn new(model: &CudaModel, communicator: Communicator) -> Result<Self> {
        let (share, end) = (model.share(), (communicator.rank(), communicator.ranks()));
        if (share.rank, share.ranks) != end {
            return Err(Error::Batch(format!("{share:?} of a model among ranks {end:?}")));
        }
        Ok(Self { communicator, failed: model.device().alloc(1, ElementType::F32)? })
    }

    pub fn enter(&self) -> Result<Entered> {
        Ok(self.communicator.enter()?)
    }

    pub fn breaker(&self) -> Breaker {
        self.communicator.breaker()
    }

    pub fn sum_up(&self, x: Slice) -> Result<()> {
        Ok(self.communicator.all_reduce(x)?)
    }

    /// Whether all ranks could. Waits for them.
    pub fn all_could(&self, could: bool) -> Result<bool> {
        let mut failed = [if could { 0.0_f32 } else { 1.0 }];
        self.failed.write(0, &failed)?;
        self.communicator.all_reduce(self.failed.all())?;
        self.failed.read(0, &mut failed)?;
        Ok(failed == [0.0])
    }

    /// Where this rank's part of so many rows of logits belongs: `[rows, vocab / ranks]`.
    pub fn own_logits<'a>(&self, gathered: &'a Buffer, rows: usize, vocab: usize) -> Slice<'a> {
        let len = rows * (vocab / self.communicator.ranks());
        gathered.range(self.communicator.rank() * len, len)
    }

    /// Makes rows of logits `[rows, vocab]` of all ranks' parts; on the rank that samples alone.
    pub fn gather(
        &self,
        device: &Device,
        gathered: &Buffer,
        logits: Slice,
        (rows, vocab): (usize, usize),
    ) -> Result<()> {
        self.communicator.all_gather(gathered.range(0, rows * vocab))?;
        if self.communicator.rank() > 0 {
            return Ok(());
        }
        let ranks = self.communicator.ranks();
        let width = vocab / ranks;
        for rank in 0..ranks {
            let part = gathered.range(rank * rows * width, rows * width);
            place_columns(device, part, logits, rows, (rank * width, width, vocab))?;
        }
        Ok(())
    }
}
