//! Drives a model the way an engine would: sequences in scattered blocks, any share of each in a step.

use sconce_models::{AdapterId, BatchInput, KvCache, KvDtype, Logits, Model};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    Every,
    Last,
    Nothing,
}

pub struct Sequence {
    pub tokens: Vec<u32>,
    pub done: usize,
    blocks: Vec<u32>,
    /// Position and logits of every sampled token, in order.
    pub sampled: Vec<(usize, Vec<f32>)>,
    pub adapter: Option<AdapterId>,
}

pub struct Ragged<'a> {
    model: &'a dyn Model,
    kv: KvCache,
    block_size: usize,
    free: Vec<u32>,
    /// The last of the slots for states.
    states: usize,
    pub sequences: Vec<Sequence>,
    batch: BatchInput,
    logits: Logits,
}

impl<'a> Ragged<'a> {
    pub fn new(model: &'a dyn Model, block_size: usize, prompts: &[Vec<u32>], spare_tokens: usize) -> Self {
        Self::with_kv(model, KvDtype::F32, block_size, prompts, spare_tokens)
    }

    pub fn with_kv(
        model: &'a dyn Model,
        dtype: KvDtype,
        block_size: usize,
        prompts: &[Vec<u32>],
        spare_tokens: usize,
    ) -> Self {
        let blocks_each = |prompt: &Vec<u32>| (prompt.len() + spare_tokens).div_ceil(block_size);
        let blocks = prompts.iter().map(blocks_each).sum::<usize>() as u32 + 3;
        let kv = model.new_kv_cache(blocks, block_size as u32, dtype).unwrap();
        // Slots in another order than sequences.
        let kv = kv.with_state_slots(prompts.len() as u32 + 1, model.spec()).unwrap();
        let mut free: Vec<u32> = (0..blocks).collect();
        // Fisher-Yates with a fixed stream: no sequence gets neighbouring blocks in order.
        let mut state = 0x2545_f491_u64;
        for last in (1..free.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            free.swap(last, (state >> 33) as usize % (last + 1));
        }
        let sequence = |tokens: &Vec<u32>| Sequence {
            tokens: tokens.clone(),
            done: 0,
            blocks: Vec::new(),
            sampled: Vec::new(),
            adapter: None,
        };
        let sequences = prompts.iter().map(sequence).collect();
        let (states, batch, logits) = (prompts.len(), BatchInput::default(), Logits::default());
        Self { model, kv, block_size, free, states, sequences, batch, logits }
    }

    /// Computes the next `count` tokens of each `(sequence, count)`, rows in the order given.
    pub fn step(&mut self, work: &[(usize, usize)], sample: Sample) {
        self.batch.clear();
        for &(index, count) in work {
            self.add_row(index, count, sample);
        }
        if self.batch.adapters.iter().all(Option::is_none) {
            self.batch.adapters.clear();
        }
        self.model.forward(&self.batch, &mut self.kv, &mut self.logits).unwrap();
        assert_eq!(self.logits.vocab, self.model.spec().vocab);
        assert_eq!(self.logits.values.len(), self.batch.sample_rows.len() * self.logits.vocab);
        let mut row_start = 0;
        for (row, &(index, _)) in work.iter().enumerate() {
            let row_end = self.batch.row_ends[row];
            for (place, &token) in self.batch.sample_rows.iter().enumerate() {
                if (row_start..row_end).contains(&token) {
                    let position = self.batch.positions[token as usize] as usize;
                    self.sequences[index].sampled.push((position, self.logits.row(place).to_vec()));
                }
            }
            row_start = row_end;
        }
    }

    fn add_row(&mut self, index: usize, count: usize, sample: Sample) {
        let sequence = &mut self.sequences[index];
        let (start, end) = (sequence.done, sequence.done + count);
        while sequence.blocks.len() * self.block_size < end {
            sequence.blocks.push(self.free.pop().expect("enough blocks for every sequence"));
        }
        for position in start..end {
            let block = sequence.blocks[position / self.block_size];
            self.batch.tokens.push(sequence.tokens[position]);
            self.batch.positions.push(position as u32);
            self.batch.slots.push(block * self.block_size as u32 + (position % self.block_size) as u32);
            if sample == Sample::Every || (sample == Sample::Last && position + 1 == end) {
                self.batch.sample_rows.push(self.batch.tokens.len() as u32 - 1);
            }
        }
        self.batch.row_ends.push(self.batch.tokens.len() as u32);
        self.batch.context_lens.push(end as u32);
        self.batch.block_tables.extend_from_slice(&sequence.blocks);
        self.batch.block_table_ends.push(self.batch.block_tables.len() as u32);
        self.batch.adapters.push(sequence.adapter);
        if self.model.spec().state_bytes() > 0 {
            self.batch.states.push((self.states - index) as u32);
        }
        sequence.done = end;
    }
}
