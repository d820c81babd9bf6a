// performance-critical: no allocation per token, no lock, no log, no format
//! A batch as the device reads it: all its arrays in one piece of memory, sent by one copy.

use sconce_cuda::ops::attention::Rows;
use sconce_cuda::{Buffer, Device, ElementType, Pinned, Slice};

use crate::batch::BatchInput;
use crate::error::{Error, Result};

/// Marks tokens and slots of rows that only fill up a graph's batch.
const PADDING: u32 = u32::MAX;

/// How many of everything a step computes, padding included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub tokens: usize,
    pub rows: usize,
    pub samples: usize,
    /// Most tokens of a row.
    pub query_max: usize,
}

/// Where each array begins, in words. Block tables come last, as long as they are.
#[derive(Debug, Clone, Copy)]
struct Layout {
    positions: usize,
    slots: usize,
    row_starts: usize,
    context_lens: usize,
    table_starts: usize,
    sample_rows: usize,
    sources: usize,
    states: usize,
    saves: usize,
    tables: usize,
}

/// A step may be sent while the one before it, or its copy, is under way: so there are two on the host.
pub(super) struct StepArrays {
    pinned: [Pinned; 2],
    /// Which of them the next step takes.
    turn: usize,
    device: Buffer,
    tables_max: usize,
}

impl Shape {
    fn layout(self) -> Layout {
        let positions = self.tokens;
        let slots = positions + self.tokens;
        let row_starts = slots + self.tokens;
        let context_lens = row_starts + self.rows + 1;
        let table_starts = context_lens + self.rows;
        let sample_rows = table_starts + self.rows + 1;
        let sources = sample_rows + self.samples;
        let states = sources + self.rows;
        let saves = states + self.rows;
        let tables = saves + self.tokens;
        Layout { positions, slots, row_starts, context_lens, table_starts, sample_rows, sources, states, saves, tables }
    }
}

impl StepArrays {
    pub fn new(device: &Device, tokens_max: usize, rows_max: usize, tables_max: usize) -> Result<Self> {
        let words = Self::words(tokens_max, rows_max, tables_max);
        let pinned = [device.pinned(4 * words)?, device.pinned(4 * words)?];
        Ok(Self { pinned, turn: 0, device: device.alloc(words, ElementType::U32)?, tables_max })
    }

    /// Words of device memory that [`Self::new`] allocates.
    pub fn words(tokens_max: usize, rows_max: usize, tables_max: usize) -> usize {
        5 * tokens_max + 5 * (rows_max.min(tokens_max) + 1) + tables_max
    }

    /// Lays a batch out as `shape`, which has at least its sizes, and issues the copy. `sources` are those of a step behind
    /// another, one a row, and nothing for other steps. At most one step that was sent before may be under way.
    pub fn send(&mut self, batch: &BatchInput, sources: &[u32], shape: Shape) -> Result<()> {
        if batch.block_tables.len() > self.tables_max {
            let (found, max) = (batch.block_tables.len(), self.tables_max);
            return Err(Error::Batch(format!("{found} entries of block tables, there is room for {max}")));
        }
        let layout = shape.layout();
        let words = layout.tables + batch.block_tables.len();
        self.turn = 1 - self.turn;
        let pinned = &mut self.pinned[self.turn];
        let bytes = &mut pinned.bytes_mut()[..4 * words];
        let mut put = |at: usize, len: usize, values: &mut dyn Iterator<Item = u32>| {
            let (to, _) = bytes[4 * at..4 * (at + len)].as_chunks_mut::<4>();
            to.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_le_bytes());
        };
        let Shape { tokens, rows, samples, .. } = shape;
        put(0, tokens, &mut batch.tokens.iter().copied().chain(std::iter::repeat(PADDING)));
        put(layout.positions, tokens, &mut batch.positions.iter().copied().chain(std::iter::repeat(0)));
        put(layout.slots, tokens, &mut batch.slots.iter().copied().chain(std::iter::repeat(PADDING)));
        // Padding rows have one token each, behind the batch's own.
        let own = batch.row_ends.last().copied().unwrap_or(0);
        let starts = std::iter::once(0).chain(batch.row_ends.iter().copied());
        put(layout.row_starts, rows + 1, &mut starts.chain(own + 1..));
        put(layout.context_lens, rows, &mut batch.context_lens.iter().copied().chain(std::iter::repeat(0)));
        let end = batch.block_tables.len() as u32;
        let starts = std::iter::once(0).chain(batch.block_table_ends.iter().copied());
        put(layout.table_starts, rows + 1, &mut starts.chain(std::iter::repeat(end)));
        put(layout.sample_rows, samples, &mut batch.sample_rows.iter().copied().chain(std::iter::repeat(PADDING)));
        put(layout.sources, rows, &mut sources.iter().copied().chain(std::iter::repeat(PADDING)));
        put(layout.states, rows, &mut batch.states.iter().copied().chain(std::iter::repeat(PADDING)));
        let mut saves = batch.state_saves.iter().peekable();
        let saved = |token: u32| saves.next_if(|save| save.token == token).map_or(PADDING, |save| save.slot);
        put(layout.saves, tokens, &mut (0..tokens as u32).map(saved));
        put(layout.tables, batch.block_tables.len(), &mut batch.block_tables.iter().copied());
        Ok(pinned.send(self.device.all(), 4 * words)?)
    }

    /// The arrays of a step of that shape.
    pub fn input(&self, shape: Shape) -> StepInput<'_> {
        let (layout, all) = (shape.layout(), self.device.all());
        let Shape { tokens, rows, samples, query_max } = shape;
        StepInput {
            shape,
            tokens: all.range(0, tokens),
            positions: all.range(layout.positions, tokens),
            slots: all.range(layout.slots, tokens),
            sample_rows: all.range(layout.sample_rows, samples),
            sources: all.range(layout.sources, rows),
            states: all.range(layout.states, rows),
            state_saves: all.range(layout.saves, tokens),
            rows: Rows {
                row_starts: all.range(layout.row_starts, rows + 1),
                context_lens: all.range(layout.context_lens, rows),
                table_starts: all.range(layout.table_starts, rows + 1),
                block_tables: all.range(layout.tables, self.tables_max),
                rows,
                tokens,
                query_max,
            },
        }
    }
}

/// A step's arrays on the device.
#[derive(Clone, Copy)]
pub(super) struct StepInput<'a> {
    pub shape: Shape,
    pub tokens: Slice<'a>,
    pub positions: Slice<'a>,
    pub slots: Slice<'a>,
    pub sample_rows: Slice<'a>,
    pub sources: Slice<'a>,
    /// Of rows, for models that keep a state a sequence, and where states behind tokens are also left; `u32::MAX` for none.
    pub states: Slice<'a>,
    pub state_saves: Slice<'a>,
    pub rows: Rows<'a>,
}
