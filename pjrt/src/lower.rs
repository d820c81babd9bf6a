//! A decoder as a program: the layers over a bucket of tokens and a paged cache that is updated in place.
//!
//! The cache of a layer is `[slots, kv_heads, head_dim]` for K and for V. Its last block belongs to nobody: rows that fill up a
//! bucket write there, so that every index of every gather and scatter is inside. A token sees the keys of its context up to
//! its own position; what stands behind it in gathered blocks is masked.

use sconce_kernels::RopeStyle;
use sconce_models::Spec;

use crate::element::ElementType;
use crate::error::Result;
use crate::hlo::{Binary, Comparison, Contraction, Function, Program, Reduction, TensorType, Unary, Value};
use crate::weights::{LayerWeights, LinearWeights, Weights, shapes};

/// Scores that are masked: far below any other, and no infinity, of which differences are not numbers.
const MASKED: f32 = -1e30;

/// What all programs of one model share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The block that belongs to nobody included.
    pub blocks: usize,
    /// Tokens a block.
    pub block_size: usize,
    /// Positions that have angles.
    pub positions: usize,
    /// Of matrices, of the cache, and of what is multiplied.
    pub element: ElementType,
}

/// What one program computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// One token of each of `rows` sequences with `context` blocks each; logits of all.
    Decode { rows: usize, context: usize },
    /// `tokens` tokens of one sequence with `context` blocks; their hidden states before the last norm.
    Prefill { tokens: usize, context: usize },
    /// Logits of `samples` of `tokens` hidden states.
    Head { tokens: usize, samples: usize },
}

/// Names of the programs, for logs and for people who read dumps.
impl Bucket {
    pub fn name(self) -> String {
        match self {
            Self::Decode { rows, context } => format!("decode_{rows}_of_{context}_blocks"),
            Self::Prefill { tokens, context } => format!("prefill_{tokens}_of_{context}_blocks"),
            Self::Head { tokens, samples } => format!("head_{samples}_of_{tokens}"),
        }
    }
}

impl Sizes {
    /// K or V of one layer.
    pub fn cache(self, spec: &Spec) -> TensorType {
        TensorType::new(self.element, &[self.blocks * self.block_size, spec.kv_heads, spec.head_dim])
    }
}

/// Writes the program of a bucket.
///
/// Parameters of a step: tokens, positions and slots `[tokens]`, block tables `[rows * context]`, K and V of every layer,
/// cosines and sines `[positions, pairs]`, then the weights; its outputs are K and V of every layer and what the bucket says.
/// Parameters of a head: hidden states `[tokens, hidden]`, which of them `[samples]`, the last norm and the head.
pub fn lower(spec: &Spec, sizes: Sizes, bucket: Bucket) -> Result<Program> {
    match bucket {
        Bucket::Decode { rows, context } => Step::write(spec, sizes, bucket, [rows, 1, context]),
        Bucket::Prefill { tokens, context } => Step::write(spec, sizes, bucket, [1, tokens, context]),
        Bucket::Head { tokens, samples } => head_alone(spec, sizes, bucket, (tokens, samples)),
    }
}

/// A program of a step while it is written.
struct Step<'a> {
    spec: &'a Spec,
    sizes: Sizes,
    f: Function,
    rows: usize,
    /// Tokens a row.
    each: usize,
    /// Tokens of a gathered context.
    keys: usize,
    positions: Value,
    slots: Value,
    tables: Value,
    /// Cosines and sines of the step's tokens, `[tokens, 1, pairs]`.
    turns: (Value, Value),
    /// What a token may see, by window: `[rows, each, keys]`.
    masks: Vec<(Option<u32>, Value)>,
}

impl<'a> Step<'a> {
    fn write(spec: &'a Spec, sizes: Sizes, bucket: Bucket, [rows, each, context]: [usize; 3]) -> Result<Program> {
        let mut f = Function::new(&bucket.name());
        let integers = |len: usize| TensorType::new(ElementType::I32, &[len]);
        let tokens = f.parameter(integers(rows * each))?;
        let positions = f.parameter(integers(rows * each))?;
        let slots = f.parameter(integers(rows * each))?;
        let tables = f.parameter(integers(rows * context))?;
        let cache = sizes.cache(spec);
        let caches = (0..2 * spec.layers).map(|_| f.parameter(cache.clone())).collect::<Result<Vec<_>>>()?;
        let angles = TensorType::new(ElementType::F32, &[sizes.positions, spec.rope.rotated / 2]);
        let (cosines, sines) = (f.parameter(angles.clone())?, f.parameter(angles)?);
        let weights = shapes(spec, sizes.element).map(&mut |ty| f.parameter(ty.clone()))?;
        let turns = (angles_of(&mut f, &cosines, &positions)?, angles_of(&mut f, &sines, &positions)?);
        let keys = context * sizes.block_size;
        let mut step = Step { spec, sizes, f, rows, each, keys, positions, slots, tables, turns, masks: Vec::new() };
        let embedded = step.f.rows(&weights.embedding, &tokens)?;
        let mut hidden = step.f.convert(&embedded, ElementType::F32)?;
        let mut outputs = Vec::with_capacity(2 * spec.layers + 1);
        for (index, layer) in weights.layers.iter().enumerate() {
            let (attended, written) = step.attention(&hidden, layer, index, &caches[2 * index..2 * index + 2])?;
            outputs.extend(written);
            hidden = step.feed_forward(&attended, layer)?;
        }
        let mut f = step.f;
        let last = match bucket {
            Bucket::Decode { .. } => head(&mut f, spec, sizes, &hidden, (&weights.final_norm, table(&weights)))?,
            _ => hidden,
        };
        outputs.push(last);
        let donated: Vec<(&Value, usize)> = caches.iter().enumerate().map(|(index, cache)| (cache, index)).collect();
        f.finish(&outputs.iter().collect::<Vec<_>>(), &donated)
    }

    fn tokens(&self) -> usize {
        self.rows * self.each
    }

    /// Adds what attention gives to `hidden` `[tokens, hidden]`; also gives K and V with the step's tokens written.
    fn attention(
        &mut self,
        hidden: &Value,
        layer: &LayerWeights<Value>,
        index: usize,
        caches: &[Value],
    ) -> Result<(Value, [Value; 2])> {
        let spec = self.spec;
        let normed = norm(&mut self.f, hidden, &layer.attention_norm, spec.norm_eps)?;
        let qkv = self.linear(&normed, &layer.qkv)?;
        let (queries, kvs) = (spec.query_width(), spec.kv_width());
        let query = self.heads(&qkv, (0, queries), layer.query_norm.as_ref())?;
        let key = self.heads(&qkv, (queries, kvs), layer.key_norm.as_ref())?;
        let (query, key) = (self.rotate(&query)?, self.rotate(&key)?);
        let value = self.heads(&qkv, (queries + kvs, kvs), None)?;
        let keys = self.written(&caches[0], &key)?;
        let values = self.written(&caches[1], &value)?;
        let seen = self.attend(&query, &keys, &values, spec.window(index))?;
        let projected = self.linear(&seen, &layer.output)?;
        Ok((self.f.binary(Binary::Add, hidden, &projected)?, [keys, values]))
    }

    /// Columns `start..start + width` of `qkv` as heads `[tokens, heads, head_dim]`, normed where that is wanted.
    fn heads(&mut self, qkv: &Value, (start, width): (usize, usize), weight: Option<&Value>) -> Result<Value> {
        let dim = self.spec.head_dim;
        let columns = self.f.columns(qkv, start, width)?;
        let heads = self.f.reshape(&columns, &[self.tokens(), width / dim, dim])?;
        match weight {
            Some(weight) => norm(&mut self.f, &heads, weight, self.spec.norm_eps),
            None => Ok(heads),
        }
    }

    /// Turns pairs of each head of x `[tokens, heads, head_dim]` by the angles of its token's position.
    fn rotate(&mut self, x: &Value) -> Result<Value> {
        let (tokens, heads, dim) = (x.ty.dims[0], x.ty.dims[1], x.ty.dims[2]);
        let rotated = self.spec.rope.rotated;
        let pairs = rotated / 2;
        let turning = self.f.columns(x, 0, rotated)?;
        let (first, second) = match self.spec.rope.style {
            RopeStyle::Halves => (self.f.columns(&turning, 0, pairs)?, self.f.columns(&turning, pairs, pairs)?),
            RopeStyle::Interleaved => {
                let paired = self.f.reshape(&turning, &[tokens, heads, pairs, 2])?;
                let (first, second) = (self.f.columns(&paired, 0, 1)?, self.f.columns(&paired, 1, 1)?);
                let flat = [tokens, heads, pairs];
                (self.f.reshape(&first, &flat)?, self.f.reshape(&second, &flat)?)
            }
        };
        let (cosine, sine) = self.turns.clone();
        let over_heads = |f: &mut Function, angles: &Value| f.broadcast(angles, &[tokens, heads, pairs], &[0, 1, 2]);
        let (cosine, sine) = (over_heads(&mut self.f, &cosine)?, over_heads(&mut self.f, &sine)?);
        let mut turned = |a: &Value, by: Binary, b: &Value| {
            let (kept, moved) =
                (self.f.binary(Binary::Multiply, a, &cosine)?, self.f.binary(Binary::Multiply, b, &sine)?);
            self.f.binary(by, &kept, &moved)
        };
        let (left, right) = (turned(&first, Binary::Subtract, &second)?, turned(&second, Binary::Add, &first)?);
        let turned = match self.spec.rope.style {
            RopeStyle::Halves => self.f.join_columns(&[&left, &right])?,
            RopeStyle::Interleaved => {
                let column = [tokens, heads, pairs, 1];
                let (left, right) = (self.f.reshape(&left, &column)?, self.f.reshape(&right, &column)?);
                let paired = self.f.join_columns(&[&left, &right])?;
                self.f.reshape(&paired, &[tokens, heads, rotated])?
            }
        };
        if rotated == dim {
            return Ok(turned);
        }
        let rest = self.f.columns(x, rotated, dim - rotated)?;
        self.f.join_columns(&[&turned, &rest])
    }

    /// The cache with K or V of the step's tokens in their slots.
    fn written(&mut self, cache: &Value, new: &Value) -> Result<Value> {
        let new = self.f.convert(new, self.sizes.element)?;
        self.f.with_rows(cache, &self.slots, &new)
    }

    /// The blocks of the rows' tables, side by side: `[rows, keys, kv_heads, head_dim]`
    fn context(&mut self, cache: &Value) -> Result<Value> {
        let spec = self.spec;
        let blocks = self.f.reshape(cache, &[self.sizes.blocks, self.sizes.block_size * spec.kv_width()])?;
        let gathered = self.f.rows(&blocks, &self.tables)?;
        self.f.reshape(&gathered, &[self.rows, self.keys, spec.kv_heads, spec.head_dim])
    }

    /// What query `[tokens, heads, head_dim]` sees: `[tokens, heads * head_dim]`
    fn attend(&mut self, query: &Value, keys: &Value, values: &Value, window: Option<u32>) -> Result<Value> {
        let (spec, rows, each) = (self.spec, self.rows, self.each);
        let (kv_heads, dim) = (spec.kv_heads, spec.head_dim);
        let group = spec.heads / kv_heads;
        let scaled = scale(&mut self.f, query, spec.scales.attention)?;
        let scaled = self.f.convert(&scaled, self.sizes.element)?;
        let scaled = self.f.reshape(&scaled, &[rows, each, kv_heads, group, dim])?;
        let (keys, values) = (self.context(keys)?, self.context(values)?);
        // [rows, kv_heads, each, group, keys]
        let scores = self.f.product(&scaled, &keys, Contraction { batch: (&[0, 2], &[0, 2]), summed: (4, 3) })?;
        let all = [rows, kv_heads, each, group, self.keys];
        let mask = self.mask(window)?;
        let mask = self.f.broadcast(&mask, &all, &[0, 2, 4])?;
        let masked = self.f.float(MASKED)?;
        let masked = self.f.broadcast(&masked, &all, &[])?;
        let scores = self.f.select(&mask, &scores, &masked)?;
        let shares = softmax(&mut self.f, &scores)?;
        let shares = self.f.convert(&shares, self.sizes.element)?;
        // [rows, kv_heads, each, group, head_dim]
        let seen = self.f.product(&shares, &values, Contraction { batch: (&[0, 1], &[0, 2]), summed: (4, 1) })?;
        let seen = self.f.transpose(&seen, &[0, 2, 1, 3, 4])?;
        self.f.reshape(&seen, &[rows * each, spec.heads * dim])
    }

    /// Whether a token may look at a key: `[rows, each, keys]`. Layers with one window share it.
    fn mask(&mut self, window: Option<u32>) -> Result<Value> {
        if let Some((_, mask)) = self.masks.iter().find(|(known, _)| *known == window) {
            return Ok(mask.clone());
        }
        let all = [self.rows, self.each, self.keys];
        let key = self.f.count_up(self.keys)?;
        let key = self.f.broadcast(&key, &all, &[2])?;
        let own = self.f.reshape(&self.positions, &[self.rows, self.each])?;
        let own = self.f.broadcast(&own, &all, &[0, 1])?;
        let mut mask = self.f.compare(Comparison::LessOrEqual, &key, &own)?;
        // A window as long as all positions is none, and must not overflow.
        if let Some(window) = window.and_then(|window| i32::try_from(window).ok()).filter(|window| *window < 1 << 24) {
            let window = self.f.integer(window)?;
            let window = self.f.broadcast(&window, &all, &[])?;
            let reach = self.f.binary(Binary::Add, &key, &window)?;
            let is_near = self.f.compare(Comparison::Greater, &reach, &own)?;
            mask = self.f.both(&mask, &is_near)?;
        }
        self.masks.push((window, mask.clone()));
        Ok(mask)
    }

    /// Adds what the gated block gives to `hidden`.
    fn feed_forward(&mut self, hidden: &Value, layer: &LayerWeights<Value>) -> Result<Value> {
        let ffn = self.spec.ffn;
        let normed = norm(&mut self.f, hidden, &layer.mlp_norm, self.spec.norm_eps)?;
        let wide = self.linear(&normed, &layer.gate_up)?;
        let (gate, up) = (self.f.columns(&wide, 0, ffn)?, self.f.columns(&wide, ffn, ffn)?);
        let open = self.f.unary(Unary::Logistic, &gate)?;
        let gate = self.f.binary(Binary::Multiply, &gate, &open)?;
        let gated = self.f.binary(Binary::Multiply, &gate, &up)?;
        let projected = self.linear(&gated, &layer.down)?;
        self.f.binary(Binary::Add, hidden, &projected)
    }

    /// `x W^T + bias` in F32: `[tokens, out]`
    fn linear(&mut self, x: &Value, linear: &LinearWeights<Value>) -> Result<Value> {
        let x = self.f.convert(x, self.sizes.element)?;
        let y = self.f.product(&x, &linear.weight, Contraction { batch: (&[], &[]), summed: (1, 1) })?;
        let Some(bias) = &linear.bias else { return Ok(y) };
        let bias = self.f.broadcast(bias, &y.ty.dims, &[1])?;
        self.f.binary(Binary::Add, &y, &bias)
    }
}

/// The head, or the embedding where the two are one.
fn table(weights: &Weights<Value>) -> &Value {
    weights.head.as_ref().unwrap_or(&weights.embedding)
}

fn head_alone(spec: &Spec, sizes: Sizes, bucket: Bucket, (tokens, samples): (usize, usize)) -> Result<Program> {
    let mut f = Function::new(&bucket.name());
    let hidden = f.parameter(TensorType::new(ElementType::F32, &[tokens, spec.hidden]))?;
    let which = f.parameter(TensorType::new(ElementType::I32, &[samples]))?;
    let norm = f.parameter(TensorType::new(ElementType::F32, &[spec.hidden]))?;
    let table = f.parameter(TensorType::new(sizes.element, &[spec.vocab, spec.hidden]))?;
    let chosen = f.rows(&hidden, &which)?;
    let logits = head(&mut f, spec, sizes, &chosen, (&norm, &table))?;
    f.finish(&[&logits], &[])
}

/// Logits `[n, vocab]` of hidden states `[n, hidden]`.
fn head(f: &mut Function, spec: &Spec, sizes: Sizes, hidden: &Value, weights: (&Value, &Value)) -> Result<Value> {
    let (weight, table) = weights;
    let normed = norm(f, hidden, weight, spec.norm_eps)?;
    let normed = f.convert(&normed, sizes.element)?;
    f.product(&normed, table, Contraction { batch: (&[], &[]), summed: (1, 1) })
}

/// RMSNorm (arXiv 1910.07467) over the last dimension.
fn norm(f: &mut Function, x: &Value, weight: &Value, eps: f32) -> Result<Value> {
    let dims = x.ty.dims.clone();
    let last = dims.len() - 1;
    let places: Vec<usize> = (0..last).collect();
    let squares = f.binary(Binary::Multiply, x, x)?;
    let sum = f.reduce_last(Reduction::Sum, &squares)?;
    let mean = scale(f, &sum, 1.0 / dims[last] as f32)?;
    let eps = f.float(eps)?;
    let eps = f.broadcast(&eps, &mean.ty.dims, &[])?;
    let shifted = f.binary(Binary::Add, &mean, &eps)?;
    let factor = f.unary(Unary::Rsqrt, &shifted)?;
    let factor = f.broadcast(&factor, &dims, &places)?;
    let normed = f.binary(Binary::Multiply, x, &factor)?;
    let weight = f.broadcast(weight, &dims, &[last])?;
    f.binary(Binary::Multiply, &normed, &weight)
}

/// Over the last dimension, moved by its largest so that nothing overflows.
fn softmax(f: &mut Function, x: &Value) -> Result<Value> {
    let dims = x.ty.dims.clone();
    let places: Vec<usize> = (0..dims.len() - 1).collect();
    let largest = f.reduce_last(Reduction::Max, x)?;
    let largest = f.broadcast(&largest, &dims, &places)?;
    let below = f.binary(Binary::Subtract, x, &largest)?;
    let powers = f.unary(Unary::Exponential, &below)?;
    let sum = f.reduce_last(Reduction::Sum, &powers)?;
    let sum = f.broadcast(&sum, &dims, &places)?;
    f.binary(Binary::Divide, &powers, &sum)
}

/// Times a number.
fn scale(f: &mut Function, x: &Value, factor: f32) -> Result<Value> {
    let factor = f.float(factor)?;
    let factor = f.broadcast(&factor, &x.ty.dims, &[])?;
    f.binary(Binary::Multiply, x, &factor)
}

/// Rows of `table` `[positions, pairs]`: `[tokens, 1, pairs]`
fn angles_of(f: &mut Function, table: &Value, positions: &Value) -> Result<Value> {
    let of_tokens = f.rows(table, positions)?;
    let [tokens, pairs] = of_tokens.ty.dims[..] else { unreachable!("rows of a table are a table") };
    f.reshape(&of_tokens, &[tokens, 1, pairs])
}

#[cfg(test)]
mod tests;
