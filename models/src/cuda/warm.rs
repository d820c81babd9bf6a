//! Steps that nobody asked for, before anybody waits: kernels are loaded, products are chosen, and steps of decoding are
//! recorded for usual sizes of batches. What such a step computes is padding alone, which touches nothing.

use super::CudaModel;
use super::runner::{CudaRunner, CudaSizes, Issued};
use super::step::Shape;
use crate::batch::{BatchInput, Logits};
use crate::error::Result;
use crate::sampling::{SampleRequest, SampleRequests, Want};

/// What a warm-up may take beside what is allocated for it, roughly.
const ROOM_BYTES: u64 = 1 << 30;
/// A stand-in takes minutes for a step of thousands of tokens, and has nothing to load.
const STAND_IN_TOKENS_MAX: usize = 16;
/// As above, of sizes of batches.
const STAND_IN_ROWS_MAX: usize = 2;

impl CudaRunner {
    /// Runs a step of as many tokens as there may be, then steps of decoding of 1, 2, 4, 8, ... sequences, and says how many of
    /// them are done of how many. Other sizes are recorded when they are met.
    pub fn warm_up(&mut self, mut report: impl FnMut(usize, usize)) -> Result<()> {
        let is_stand_in = self.device().info().compute_capability == (0, 0);
        let most = |most: usize, on_stand_in: usize| if is_stand_in { most.min(on_stand_in) } else { most };
        let rows_max = most(self.sizes.max_num_seqs as usize, STAND_IN_ROWS_MAX).max(1);
        let tokens = most(self.sizes.max_num_batched_tokens as usize, STAND_IN_TOKENS_MAX).max(1);
        let mut sizes: Vec<usize> =
            std::iter::successors(Some(1), |size| Some(size * 2)).take_while(|size| *size < rows_max).collect();
        sizes.push(rows_max);
        let total = 1 + sizes.len();
        self.run_padding(Shape { tokens, rows: 1, samples: 1, query_max: tokens })?;
        report(1, total);
        // The largest first: what the smaller ones take is there then.
        for (done, rows) in sizes.into_iter().rev().enumerate() {
            let padded = self.bucket(rows);
            let shape = Shape { tokens: padded, rows: padded, samples: padded, query_max: 1 };
            // The second time it is recorded.
            for _ in 0..2 {
                self.run_padding(shape)?;
                if self.model.share().rank == 0 {
                    self.sample_padding(padded)?;
                } else {
                    self.device().synchronize()?;
                }
            }
            report(2 + done, total);
        }
        Ok(self.device().synchronize()?)
    }

    /// The model again, and the bytes of device memory that steps of `sizes` take beyond what is allocated for them, such as
    /// graphs: seen in a warm-up with the smallest cache. `None` where there is no room for one.
    pub fn measure(model: CudaModel, sizes: CudaSizes) -> Result<(CudaModel, Option<u64>)> {
        let sizes = CudaSizes { blocks: 1, ..sizes };
        let device = model.device().clone();
        let cache = Self::kv_bytes_per_token(&model, sizes.kv_dtype) * u64::from(sizes.block_size);
        let allocated = Self::scratch_bytes(&model, sizes) + cache;
        if allocated + ROOM_BYTES > device.memory_free()? {
            return Ok((model, None));
        }
        let mut runner = Self::new(model, sizes)?;
        runner.warm_up(|_, _| {})?;
        let during = device.memory_free()?;
        let model = runner.into_model();
        let given_back = device.memory_free()?.saturating_sub(during);
        Ok((model, Some(given_back.saturating_sub(allocated))))
    }

    /// One token by each of the ways to choose, as far as there are rows.
    fn sample_padding(&mut self, rows: usize) -> Result<()> {
        let token = || SampleRequest::new(Want::Token);
        let ways = [
            token(),
            SampleRequest { temperature: 1.0, uniform: 0.5, ..token() },
            SampleRequest { temperature: 1.0, uniform: 0.5, top_p: 0.9, logprobs: Some(1), ..token() },
        ];
        let requests = (0..rows).map(|row| ways[row % ways.len()].clone());
        let wanted = SampleRequests { rows: requests.collect(), ..SampleRequests::default() };
        self.issued = Issued::OnDevice;
        self.choose(&wanted)?;
        self.collect(&wanted, &mut Vec::new(), &mut Logits::default())
    }

    /// A step of that shape without a token of anybody's.
    fn run_padding(&mut self, shape: Shape) -> Result<()> {
        self.begin(&BatchInput::default(), &[], shape)
    }
}
