//! The steps of a measurement: laid out, run, and sampled greedily where the model computes.

use std::time::Instant;

use sconce_kernels::argmax;
use sconce_models::{Sample, SampleRequest, SampleRequests, Want};

use super::engine::{BLOCK_TOKENS, Bench};
use crate::engine::DeviceExecutor;
use crate::error::{Error, Result};

/// A part of a sequence.
pub(super) struct Row {
    pub sequence: usize,
    pub from: usize,
    pub tokens: Vec<u32>,
    pub sample: bool,
}

/// What a device is asked, and what it answers.
#[derive(Default)]
pub(super) struct Sampling {
    wanted: SampleRequests,
    samples: Vec<Sample>,
}

impl Sampling {
    /// The likeliest token of each of so many rows.
    fn want(&mut self, rows: usize) {
        self.wanted.rows.clear();
        self.wanted.rows.resize(rows, SampleRequest::new(Want::Token));
    }

    fn tokens(&self) -> Result<Vec<u32>, String> {
        let token = |sample: &Sample| match sample {
            Sample::Token { id, .. } => Ok(*id),
            other => Err(format!("a row was answered with {other:?}")),
        };
        self.samples.iter().map(token).collect()
    }
}

impl Bench {
    pub(super) fn decode(&mut self, mut next: Vec<u32>, context: usize, tokens: usize) -> Result<f64> {
        let (started, sequences) = (Instant::now(), next.len());
        if self.is_async && self.executor.device().is_some_and(|device| device.runs_ahead()) {
            self.decode_ahead(next, context, tokens)?;
        } else {
            for at in context..context + tokens {
                next = self.step(&rows(&next, at))?;
            }
        }
        Ok((sequences * tokens) as f64 / started.elapsed().as_secs_f64())
    }

    /// As the engine decodes on a device that lets it: a step is issued before the tokens of the one before it are here.
    fn decode_ahead(&mut self, next: Vec<u32>, context: usize, tokens: usize) -> Result<()> {
        let sources: Vec<u32> = (0..next.len() as u32).collect();
        self.sampling.want(next.len());
        for at in context..context + tokens {
            self.lay_out(&rows(&next, at));
            let is_first = at == context;
            self.on_device(|device, batch, sampling, logits| {
                if is_first {
                    device.issue(batch)?;
                    return device.choose(&sampling.wanted).map(|_| ());
                }
                device.issue_behind(batch, &sources)?;
                device.choose(&sampling.wanted)?;
                device.collect(&sampling.wanted, &mut sampling.samples, logits)
            })?;
            self.times.steps += 1;
        }
        self.on_device(|device, _, sampling, logits| {
            device.collect(&sampling.wanted, &mut sampling.samples, logits)?;
            sampling.tokens().map(|_| ())
        })
    }

    /// Runs one ragged step and samples greedily.
    pub(super) fn step(&mut self, rows: &[Row]) -> Result<Vec<u32>> {
        self.lay_out(rows);
        self.times.steps += 1;
        if self.executor.device().is_some() {
            self.sampling.want(self.batch.sample_rows.len());
            return self.on_device(|device, batch, sampling, logits| {
                device.issue(batch)?;
                device.choose(&sampling.wanted)?;
                device.collect(&sampling.wanted, &mut sampling.samples, logits)?;
                sampling.tokens()
            });
        }
        let started = Instant::now();
        let executed = self.executor.execute(&self.batch, &mut self.logits);
        self.times.executing += started.elapsed();
        executed.map_err(|why| self.failed(&why))?;
        let started = Instant::now();
        let sampled = (0..self.batch.sample_rows.len()).map(|sample| argmax(self.logits.row(sample))).collect();
        self.times.sampling += started.elapsed();
        Ok(sampled)
    }

    fn on_device<T>(
        &mut self,
        run: impl FnOnce(
            &mut dyn DeviceExecutor,
            &sconce_models::BatchInput,
            &mut Sampling,
            &mut sconce_models::Logits,
        ) -> Result<T, String>,
    ) -> Result<T> {
        let started = Instant::now();
        let done = match self.executor.device() {
            Some(device) => run(device, &self.batch, &mut self.sampling, &mut self.logits),
            None => Err("its device went away".to_owned()),
        };
        self.times.executing += started.elapsed();
        done.map_err(|why| self.failed(&why))
    }

    fn failed(&self, why: &str) -> Error {
        Error::internal(format!("{}: a step failed: {why}", self.name))
    }

    fn lay_out(&mut self, rows: &[Row]) {
        self.batch.clear();
        for row in rows {
            // Every sequence has a stretch of blocks of its own.
            let first_block = (row.sequence * self.blocks_each) as u32;
            let end = (row.from + row.tokens.len()) as u32;
            for (at, &id) in row.tokens.iter().enumerate() {
                let position = (row.from + at) as u32;
                self.batch.tokens.push(id);
                self.batch.positions.push(position);
                self.batch.slots.push(first_block * BLOCK_TOKENS as u32 + position);
            }
            self.batch.row_ends.push(self.batch.tokens.len() as u32);
            self.batch.context_lens.push(end);
            if self.spec.state_bytes() > 0 {
                self.batch.states.push(row.sequence as u32);
            }
            let blocks = end.div_ceil(BLOCK_TOKENS as u32);
            self.batch.block_tables.extend((0..blocks).map(|block| first_block + block));
            self.batch.block_table_ends.push(self.batch.block_tables.len() as u32);
            if row.sample {
                self.batch.sample_rows.push(self.batch.tokens.len() as u32 - 1);
            }
        }
    }
}

/// One token of each sequence.
fn rows(next: &[u32], at: usize) -> Vec<Row> {
    let row = |(sequence, &id): (usize, &u32)| Row { sequence, from: at, tokens: vec![id], sample: true };
    next.iter().enumerate().map(row).collect()
}
