//! A model on a plugin's device: its weights, its cache, and one compiled program a bucket.
//!
//! Every index that a program gathers or scatters by is checked here first: out of bounds is an error on some devices and
//! a silent wrong answer on others.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use sconce_models::plain::{PlainDecoder, check_batch};
use sconce_models::{BatchInput, LoadOptions, Logits, Source, Spec};

use crate::api::{Buffer, Client, Device, Executable, Plugin};
use crate::buckets::{Buckets, Limits, fitting};
use crate::cache::Cache;
use crate::element::ElementType;
use crate::error::{Error, Result};
use crate::hlo::lint;
use crate::lower::{Bucket, Sizes, lower};
use crate::weights::{Weights, upload, upload_f32};

/// Rows of logits that are computed together where a part of a prompt wants several.
const HEAD_ROWS: usize = 16;

/// What weights, cache and products are of, and what there must be room for.
#[derive(Debug, Clone, Copy)]
pub struct PjrtOptions {
    /// F32 or BF16.
    pub element: ElementType,
    pub limits: Limits,
}

/// The first device of a plugin.
pub struct PjrtDevice {
    device: Device,
    info: PluginInfo,
}

impl PjrtDevice {
    /// Opens the plugin at `path` and takes its first device.
    pub fn open(path: &Path) -> Result<Self> {
        let plugin = Plugin::open(path)?;
        let client = Client::new(plugin)?;
        let device = client.device()?;
        let info = PluginInfo {
            version: plugin.version(),
            platform: client.platform()?,
            platform_version: client.platform_version()?,
            device: device.kind()?,
        };
        Ok(Self { device, info })
    }

    pub fn info(&self) -> &PluginInfo {
        &self.info
    }
}

/// What a plugin said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginInfo {
    /// Of the C API.
    pub version: (i32, i32),
    pub platform: String,
    pub platform_version: String,
    pub device: String,
}

/// A model that can step.
pub struct PjrtRunner {
    spec: Spec,
    limits: Limits,
    buckets: Buckets,
    info: PluginInfo,
    device: Device,
    weights: Weights<Buffer>,
    /// Cosines and sines, `[positions, pairs]` each.
    angles: [Buffer; 2],
    cache: Cache,
    programs: HashMap<Bucket, Executable>,
    step: StepArrays,
    logits: Vec<f32>,
}

/// A step's integers before they are copied to the device.
#[derive(Default)]
struct StepArrays {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    tables: Vec<u32>,
    bytes: Vec<u8>,
}

impl StepArrays {
    fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.tables.clear();
    }
}

/// What one program is given of a batch: rows `first..end`, and of one row's tokens a part.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Rows of the batch.
    rows: (usize, usize),
    /// Tokens of the batch.
    tokens: (usize, usize),
}

impl PjrtRunner {
    /// Copies the weights to `on` and compiles every program.
    pub fn load(on: PjrtDevice, source: &Source, options: LoadOptions, pjrt: PjrtOptions) -> Result<Self> {
        let PjrtOptions { limits, element } = pjrt;
        if !element.is_float() {
            return Err(Error::Refused(format!("models have weights of f32 or bf16, not of {element}")));
        }
        let PjrtDevice { device, info } = on;
        let options = LoadOptions { max_model_len: Some(limits.max_model_len), ..options };
        let decoder = PlainDecoder::load(source, options)?;
        let sizes = Sizes {
            blocks: limits.blocks as usize + 1,
            block_size: limits.block_size as usize,
            positions: limits.max_model_len as usize,
            element,
        };
        let weights = upload(&decoder, &device, element)?;
        let (cosines, sines) = decoder.angles(limits.max_model_len);
        let spec = decoder.spec;
        let dims = [sizes.positions, spec.rope.rotated / 2];
        let angles = [upload_f32(&device, &dims, &cosines)?, upload_f32(&device, &dims, &sines)?];
        let cache = Cache::new(&device, sizes.cache(&spec), 2 * spec.layers, limits)?;
        let buckets = Buckets::new(limits);
        let programs = compile(device.client(), &spec, sizes, &buckets)?;
        Ok(Self {
            spec,
            limits,
            buckets,
            info,
            device,
            weights,
            angles,
            cache,
            programs,
            step: StepArrays::default(),
            logits: Vec::new(),
        })
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    pub fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    pub fn info(&self) -> &PluginInfo {
        &self.info
    }

    /// One step: single tokens of many rows together, anything else row by row in their order. On these terms the rows of
    /// a step may not read blocks that a later row of it fills; one sequence a step is what the engine is told to prefill.
    pub fn forward(&mut self, batch: &BatchInput, logits: &mut Logits) -> Result<()> {
        check_batch(batch, &self.spec, self.limits.blocks, self.limits.block_size)?;
        logits.vocab = self.spec.vocab;
        logits.values.clear();
        if batch.adapters.iter().any(Option::is_some) {
            return Err(Error::Refused(
                "adapters through a pjrt plugin are not supported; use --device cpu".to_owned(),
            ));
        }
        if let Some(context) = batch.context_lens.iter().find(|context| **context > self.limits.max_model_len) {
            let most = self.limits.max_model_len;
            return Err(Error::Refused(format!("a row has {context} tokens of context, {most} are served")));
        }
        self.cache.enter(batch)?;
        let rows_most = self.buckets.rows.last().copied().unwrap_or(1) as usize;
        let mut row = 0;
        while row < batch.rows() {
            let start = row_start(batch, row);
            let singles = (row..batch.rows()).take_while(|at| row_len(batch, *at) == 1).take(rows_most).count();
            if singles > 0 {
                self.decode(batch, Piece { rows: (row, row + singles), tokens: (start, start + singles) }, logits)?;
                row += singles;
                continue;
            }
            let end = batch.row_ends[row] as usize;
            let most = self.buckets.chunks.last().copied().unwrap_or(1) as usize;
            for first in (start..end).step_by(most) {
                let tokens = (first, end.min(first + most));
                self.prefill(batch, Piece { rows: (row, row + 1), tokens }, logits)?;
            }
            row += 1;
        }
        Ok(())
    }

    /// One token of each of the piece's rows.
    fn decode(&mut self, batch: &BatchInput, piece: Piece, logits: &mut Logits) -> Result<()> {
        let rows = fitting(&self.buckets.rows, piece.rows.1 - piece.rows.0).ok_or_else(|| no_bucket("rows"))? as usize;
        let context = self.context_of(batch, piece)?;
        self.fill(batch, piece, [rows, rows, context]);
        let output = self.run(Bucket::Decode { rows, context })?;
        let wanted = samples(batch, piece);
        if wanted.is_empty() {
            return Ok(());
        }
        self.logits.clear();
        output.read_f32(&mut self.logits)?;
        let vocab = self.spec.vocab;
        for token in wanted {
            let row = *token as usize - piece.tokens.0;
            logits.values.extend_from_slice(&self.logits[row * vocab..(row + 1) * vocab]);
        }
        Ok(())
    }

    /// Consecutive tokens of one row.
    fn prefill(&mut self, batch: &BatchInput, piece: Piece, logits: &mut Logits) -> Result<()> {
        let count = piece.tokens.1 - piece.tokens.0;
        let tokens = fitting(&self.buckets.chunks, count).ok_or_else(|| no_bucket("tokens"))? as usize;
        let context = self.context_of(batch, piece)?;
        self.fill(batch, piece, [1, tokens, context]);
        let hidden = self.run(Bucket::Prefill { tokens, context })?;
        let wanted: Vec<u32> = samples(batch, piece).iter().map(|token| token - piece.tokens.0 as u32).collect();
        let most = if wanted.len() > 1 { HEAD_ROWS.min(tokens) } else { 1 };
        for part in wanted.chunks(most) {
            self.head(&hidden, tokens, part, most, logits)?;
        }
        Ok(())
    }

    fn head(
        &mut self,
        hidden: &Buffer,
        tokens: usize,
        which: &[u32],
        samples: usize,
        logits: &mut Logits,
    ) -> Result<()> {
        let which_padded = which.iter().copied().chain(std::iter::repeat_n(0, samples - which.len()));
        let indices = upload_integers(&self.device, which_padded, &mut self.step.bytes)?;
        let program = &self.programs[&Bucket::Head { tokens, samples }];
        let table = self.weights.head.as_ref().unwrap_or(&self.weights.embedding);
        let outputs = program.execute(&[hidden, &indices, &self.weights.final_norm, table])?;
        let output = outputs.first().ok_or_else(|| no_bucket("outputs"))?;
        self.logits.clear();
        output.read_f32(&mut self.logits)?;
        logits.values.extend_from_slice(&self.logits[..which.len() * self.spec.vocab]);
        Ok(())
    }

    /// Blocks of the bucket that holds the contexts of a piece.
    fn context_of(&self, batch: &BatchInput, piece: Piece) -> Result<usize> {
        let last = |row: usize| batch.positions[(batch.row_ends[row] as usize).min(piece.tokens.1) - 1] as usize;
        let blocks = (piece.rows.0..piece.rows.1).map(|row| last(row) / self.limits.block_size as usize + 1).max();
        let fitting = fitting(&self.buckets.contexts, blocks.unwrap_or(1));
        fitting.map(|context| context as usize).ok_or_else(|| no_bucket("blocks"))
    }

    /// Lays a piece out for a bucket of `rows` rows, `tokens` tokens in all and `context` blocks a row. What fills up looks at
    /// and writes to the block that belongs to nobody.
    fn fill(&mut self, batch: &BatchInput, piece: Piece, [rows, tokens, context]: [usize; 3]) {
        let (nobody, nowhere) = (self.limits.blocks, self.limits.blocks * self.limits.block_size);
        let (step, range) = (&mut self.step, piece.tokens.0..piece.tokens.1);
        step.clear();
        step.tokens.extend_from_slice(&batch.tokens[range.clone()]);
        step.positions.extend_from_slice(&batch.positions[range.clone()]);
        step.slots.extend_from_slice(&batch.slots[range]);
        step.tokens.resize(tokens, 0);
        step.positions.resize(tokens, 0);
        step.slots.resize(tokens, nowhere);
        for row in piece.rows.0..piece.rows.1 {
            let start = if row == 0 { 0 } else { batch.block_table_ends[row - 1] as usize };
            let table = &batch.block_tables[start..batch.block_table_ends[row] as usize];
            let end = step.tables.len() + context;
            step.tables.extend_from_slice(&table[..table.len().min(context)]);
            step.tables.resize(end, nobody);
        }
        step.tables.resize(rows * context, nobody);
    }

    /// Runs a step's program on what was laid out; gives its last output. The cache moves on with it.
    fn run(&mut self, bucket: Bucket) -> Result<Buffer> {
        let step = &mut self.step;
        let mut inputs = Vec::with_capacity(4);
        for values in [&step.tokens, &step.positions, &step.slots, &step.tables] {
            inputs.push(upload_integers(&self.device, values.iter().copied(), &mut step.bytes)?);
        }
        let mut arguments: Vec<&Buffer> = inputs.iter().collect();
        arguments.extend(self.cache.buffers());
        arguments.extend(&self.angles);
        arguments.extend(self.weights.all());
        let ran = self.programs[&bucket].execute(&arguments);
        let mut outputs = match ran {
            Ok(outputs) => outputs,
            Err(why) => {
                self.cache.recover(&self.device)?;
                return Err(why);
            }
        };
        let last = outputs.pop().ok_or_else(|| no_bucket("outputs"))?;
        self.cache.replace(outputs)?;
        Ok(last)
    }
}

fn row_start(batch: &BatchInput, row: usize) -> usize {
    if row == 0 { 0 } else { batch.row_ends[row - 1] as usize }
}

fn row_len(batch: &BatchInput, row: usize) -> usize {
    batch.row_ends[row] as usize - row_start(batch, row)
}

/// The piece's tokens whose logits are wanted.
fn samples(batch: &BatchInput, piece: Piece) -> &[u32] {
    let below = |end: usize| batch.sample_rows.partition_point(|token| (*token as usize) < end);
    &batch.sample_rows[below(piece.tokens.0)..below(piece.tokens.1)]
}

fn no_bucket(what: &'static str) -> Error {
    Error::Program { operation: "step", detail: format!("no program was compiled for so many {what}") }
}

fn upload_integers(device: &Device, values: impl Iterator<Item = u32>, bytes: &mut Vec<u8>) -> Result<Buffer> {
    bytes.clear();
    bytes.extend(values.flat_map(u32::to_le_bytes));
    device.upload(ElementType::I32, &[bytes.len() / 4], bytes)
}

/// Every program that a step may need: at the start, since a compiler may take minutes.
fn compile(client: &Client, spec: &Spec, sizes: Sizes, buckets: &Buckets) -> Result<HashMap<Bucket, Executable>> {
    let mut wanted = Vec::with_capacity(buckets.programs());
    for context in buckets.contexts.iter().map(|context| *context as usize) {
        wanted.extend(buckets.rows.iter().map(|rows| Bucket::Decode { rows: *rows as usize, context }));
        wanted.extend(buckets.chunks.iter().map(|tokens| Bucket::Prefill { tokens: *tokens as usize, context }));
    }
    for tokens in buckets.chunks.iter().map(|tokens| *tokens as usize) {
        wanted.push(Bucket::Head { tokens, samples: 1 });
        if tokens > 1 {
            wanted.push(Bucket::Head { tokens, samples: HEAD_ROWS.min(tokens) });
        }
    }
    let started = Instant::now();
    let mut programs = HashMap::with_capacity(wanted.len());
    for bucket in wanted {
        let program = lower(spec, sizes, bucket)?;
        if let Some(finding) = lint(&program.text).first() {
            return Err(Error::Program { operation: "lint", detail: format!("{}: {finding}", bucket.name()) });
        }
        let began = Instant::now();
        programs.insert(bucket, client.compile(&program.text)?);
        tracing::debug!(program = bucket.name(), ms = began.elapsed().as_millis(), "compiled");
    }
    tracing::info!(programs = programs.len(), ms = started.elapsed().as_millis(), "compiled for the pjrt plugin");
    Ok(programs)
}
