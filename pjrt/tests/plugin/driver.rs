//! Drives a runner the way an engine would: sequences in scattered blocks, any share of each in a step; and the truth of
//! Transformers that is held against it.

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use sconce_models::{BatchInput, LoadOptions, Logits, Source};
use sconce_pjrt::{ElementType, Limits, PjrtDevice, PjrtOptions, PjrtRunner};

pub const BLOCK_SIZE: u32 = 16;
const BLOCKS: u32 = 24;

pub struct Golden {
    pub prompt: Vec<u32>,
    /// `[tokens, vocab]`
    pub logits: Vec<f32>,
}

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures"))
}

pub fn source(name: &str) -> Source {
    let file = fixtures().join(format!("{name}.gguf"));
    if file.exists() { Source::Gguf(file) } else { Source::Folder(fixtures().join(name)) }
}

fn words(name: &str, tensor: &str) -> Vec<[u8; 4]> {
    let bytes = fs::read(fixtures().join(format!("{name}.golden.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors.tensor(tensor).unwrap().data().as_chunks::<4>().0.to_vec()
}

pub fn goldens(name: &str) -> Vec<Golden> {
    let golden = |index: usize| Golden {
        prompt: words(name, &format!("prompt.{index}")).into_iter().map(u32::from_le_bytes).collect(),
        logits: words(name, &format!("logits.{index}")).into_iter().map(f32::from_le_bytes).collect(),
    };
    (0..3).map(golden).collect()
}

/// What Transformers chose behind the first prompt.
pub fn greedy(name: &str) -> Vec<u32> {
    words(name, "greedy").into_iter().map(u32::from_le_bytes).collect()
}

/// The largest difference, relative to the largest logit.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    let scale = expected.iter().fold(0_f32, |max, value| max.max(value.abs()));
    let error = found.iter().zip(expected).fold(0_f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(found.len() == expected.len() && scale > 0.0 && found.iter().all(|value| value.is_finite()));
    error / scale
}

/// The token of the largest logit.
pub fn best(row: &[f32]) -> u32 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|value| *value == largest).unwrap() as u32
}

pub fn options(element: ElementType) -> PjrtOptions {
    let limits = Limits {
        max_num_seqs: 4,
        max_num_batched_tokens: 32,
        max_model_len: 96,
        blocks: BLOCKS,
        block_size: BLOCK_SIZE,
    };
    PjrtOptions { element, limits }
}

pub fn device() -> PjrtDevice {
    PjrtDevice::open(&super::plugin()).unwrap()
}

pub fn runner(name: &str, element: ElementType) -> PjrtRunner {
    PjrtRunner::load(device(), &source(name), LoadOptions::default(), options(element)).unwrap()
}

pub struct Sequence {
    pub tokens: Vec<u32>,
    pub done: usize,
    blocks: Vec<u32>,
}

pub struct Driver {
    pub runner: PjrtRunner,
    free: Vec<u32>,
    pub sequences: Vec<Sequence>,
    batch: BatchInput,
    pub logits: Logits,
}

impl Driver {
    pub fn new(runner: PjrtRunner) -> Self {
        // No sequence gets neighbouring blocks in order.
        let free = (0..BLOCKS).map(|block| block * 7 % BLOCKS).collect();
        Self { runner, free, sequences: Vec::new(), batch: BatchInput::default(), logits: Logits::default() }
    }

    pub fn add(&mut self, tokens: &[u32]) -> usize {
        self.sequences.push(Sequence { tokens: tokens.to_vec(), done: 0, blocks: Vec::new() });
        self.sequences.len() - 1
    }

    /// Starts over with no sequences; what they wrote stays in the cache, to be in the way.
    pub fn clear(&mut self) {
        for sequence in self.sequences.drain(..) {
            self.free.extend(sequence.blocks);
        }
    }

    /// Computes the next `count` tokens of each `(sequence, count)`: logits of all of them, or of each row's last.
    pub fn step(&mut self, work: &[(usize, usize)], every: bool) -> Result<(), String> {
        self.batch.clear();
        for &(index, count) in work {
            let sequence = &mut self.sequences[index];
            let (start, end) = (sequence.done, sequence.done + count);
            while sequence.blocks.len() * (BLOCK_SIZE as usize) < end {
                sequence.blocks.push(self.free.pop().expect("enough blocks for every sequence"));
            }
            for position in start as u32..end as u32 {
                let block = sequence.blocks[(position / BLOCK_SIZE) as usize];
                self.batch.tokens.push(sequence.tokens[position as usize]);
                self.batch.positions.push(position);
                self.batch.slots.push(block * BLOCK_SIZE + position % BLOCK_SIZE);
                if every || position as usize + 1 == end {
                    self.batch.sample_rows.push(self.batch.tokens.len() as u32 - 1);
                }
            }
            self.batch.row_ends.push(self.batch.tokens.len() as u32);
            self.batch.context_lens.push(end as u32);
            self.batch.block_tables.extend_from_slice(&sequence.blocks);
            self.batch.block_table_ends.push(self.batch.block_tables.len() as u32);
            sequence.done = end;
        }
        let samples = self.batch.sample_rows.len();
        self.runner.forward(&self.batch, &mut self.logits).map_err(|why| why.to_string())?;
        assert_eq!(self.logits.values.len(), samples * self.runner.spec().vocab);
        Ok(())
    }
}
