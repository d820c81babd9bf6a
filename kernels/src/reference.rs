//! The f32 truth of every operation: the simplest loops over plain slices, sums in f64.
//!
//! Nothing here is fast. Every back end is tested against these functions, and a kernel that disagrees is wrong.

use half::{bf16, f16};

use crate::rope::RopeStyle;
use crate::weight::{GgmlType, Weight};

/// Shape of one attention call for [`paged_attention`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub block_size: usize,
}

/// `y = x W^T + bias`: x `[tokens, input]` -> `[tokens, out]`, x as [`activations`] makes it.
pub fn matmul(x: &[f32], w: &Weight, bias: Option<&[f32]>) -> Vec<f32> {
    let x: Vec<f32> = x.chunks(w.input()).flat_map(|row| activations(w.ty(), row)).collect();
    let mut y = matmul_unrounded(&x, w);
    if let Some(bias) = bias {
        y.iter_mut().enumerate().for_each(|(at, y)| *y = (*y as f64 + bias[at % w.out()] as f64) as f32);
    }
    y
}

/// `y = x W^T` with x as it is.
pub fn matmul_unrounded(x: &[f32], w: &Weight) -> Vec<f32> {
    let mut row = vec![0.0; w.input()];
    let tokens = x.len() / w.input();
    let mut y = vec![0.0; tokens * w.out()];
    for out in 0..w.out() {
        w.row_f32(out, &mut row);
        for token in 0..tokens {
            let x = &x[token * w.input()..(token + 1) * w.input()];
            let sum: f64 = x.iter().zip(&row).map(|(a, b)| *a as f64 * *b as f64).sum();
            y[token * w.out() + out] = sum as f32;
        }
    }
    y
}

/// A row of activations as a weight of this type is multiplied with it: in blocks of 32 rounded to -127..=127 times a
/// scale for block types, rounded to BF16 for BF16, as it is otherwise.
pub fn activations(ty: GgmlType, x: &[f32]) -> Vec<f32> {
    match ty {
        GgmlType::F32 | GgmlType::F16 => x.to_vec(),
        GgmlType::Bf16 => x.iter().map(|value| bf16::from_f32(*value).to_f32()).collect(),
        _ => {
            let rounded = x.chunks(32).flat_map(|block| {
                let largest = block.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                let (factor, scale) = if largest > 0.0 { (127.0 / largest, largest / 127.0) } else { (0.0, 0.0) };
                block.iter().map(move |value| (value * factor).round_ties_even() * scale)
            });
            rounded.collect()
        }
    }
}

/// The unquantised element types, by the crate `half`; block types are checked against candle's own dequantisation.
pub fn dequantise_plain(ty: GgmlType, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match ty {
        GgmlType::F32 => bytes.as_chunks().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect(),
        GgmlType::F16 => bytes.as_chunks().0.iter().map(|raw| f16::from_le_bytes(*raw).to_f32()).collect(),
        GgmlType::Bf16 => bytes.as_chunks().0.iter().map(|raw| bf16::from_le_bytes(*raw).to_f32()).collect(),
        _ => return None,
    })
}

/// `x / sqrt(mean(x^2) + eps) * weight` for each row of `weight.len()`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(weight.len()) {
        let mean = row.iter().map(|v| *v as f64 * *v as f64).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + eps as f64).sqrt();
        out.extend(row.iter().zip(weight).map(|(v, w)| (*v as f64 * scale * *w as f64) as f32));
    }
    out
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` for each row of `weight.len()`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(weight.len()) {
        let count = row.len() as f64;
        let mean = row.iter().map(|v| *v as f64).sum::<f64>() / count;
        let variance = row.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / count;
        let scale = 1.0 / (variance + eps as f64).sqrt();
        let bias = |at: usize| bias.map_or(0.0, |bias| bias[at] as f64);
        let normed = |(at, v): (usize, &f32)| ((*v as f64 - mean) * scale * weight[at] as f64 + bias(at)) as f32;
        out.extend(row.iter().enumerate().map(normed));
    }
    out
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`.
pub fn gelu(x: &[f32]) -> Vec<f32> {
    let gelu = |x: f64| x / 2.0 * erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
    x.iter().map(|x| gelu(*x as f64) as f32).collect()
}

/// The complementary error function: its Taylor series near zero, its continued fraction beyond.
fn erfc(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let factor = 2.0 / std::f64::consts::PI.sqrt();
    let z = x.abs();
    let of_size = if z < 2.5 {
        let (mut term, mut sum) = (z, z);
        for n in 1..80 {
            term *= -z * z / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        1.0 - factor * sum
    } else {
        // Lentz's order turned round: from far out towards the front.
        let fraction = (1..200).rev().fold(z, |behind, k| z + k as f64 / 2.0 / behind);
        factor / 2.0 * (-z * z).exp() / fraction
    };
    if x < 0.0 { 2.0 - of_size } else { of_size }
}

/// Attention in both directions: qkv `[tokens, 3 * heads * head_dim]` to `[tokens, heads * head_dim]`, softmax in two
/// passes within each of the sequences that end at `row_ends`, over the tokens within `reach` of each.
pub fn bidirectional_attention(
    qkv: &[f32],
    row_ends: &[u32],
    (heads, head_dim): (usize, usize),
    reach: usize,
) -> Vec<f32> {
    let width = heads * head_dim;
    let at = |token: usize, part: usize, head: usize| {
        let start = token * 3 * width + part * width + head * head_dim;
        &qkv[start..start + head_dim]
    };
    let mut out = Vec::with_capacity(qkv.len() / 3);
    let mut start = 0;
    for end in row_ends.iter().map(|end| *end as usize) {
        for token in start..end {
            let seen = token.saturating_sub(reach).max(start)..token.saturating_add(reach).saturating_add(1).min(end);
            for head in 0..heads {
                let q = at(token, 0, head);
                let dot = |k: &[f32]| q.iter().zip(k).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
                let scores: Vec<f64> =
                    seen.clone().map(|other| dot(at(other, 1, head)) / (head_dim as f64).sqrt()).collect();
                let max = scores.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                for column in 0..head_dim {
                    let mix = |(weight, other)| weight * at(other, 2, head)[column] as f64;
                    out.push((weights.iter().zip(seen.clone()).map(mix).sum::<f64>() / total) as f32);
                }
            }
        }
        start = end;
    }
    out
}

/// Rotary embedding of x `[tokens, heads, head_dim]`: pairs of the first `2 * inv_freq.len()` elements.
pub fn rope(
    x: &[f32],
    (heads, head_dim): (usize, usize),
    positions: &[u32],
    inv_freq: &[f32],
    style: RopeStyle,
) -> Vec<f32> {
    let mut out = x.to_vec();
    let pairs = inv_freq.len();
    for (token, position) in positions.iter().enumerate() {
        for head in 0..heads {
            let at = (token * heads + head) * head_dim;
            for (pair, inv_freq) in inv_freq.iter().enumerate() {
                // The angle is rounded to f32, as in transformers' rotary embedding.
                let (sin, cos) = ((*position as f32 * inv_freq) as f64).sin_cos();
                let (first, second) = match style {
                    RopeStyle::Halves => (at + pair, at + pair + pairs),
                    RopeStyle::Interleaved => (at + 2 * pair, at + 2 * pair + 1),
                };
                let (a, b) = (x[first] as f64, x[second] as f64);
                out[first] = (a * cos - b * sin) as f32;
                out[second] = (b * cos + a * sin) as f32;
            }
        }
    }
    out
}

/// `silu(gate) * up`.
pub fn silu_mul(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let silu = |g: f64| g / (1.0 + (-g).exp());
    gate.iter().zip(up).map(|(g, u)| (silu(*g as f64) * *u as f64) as f32).collect()
}

/// `sigmoid(gate) * x`.
pub fn sigmoid_mul(gate: &[f32], x: &[f32]) -> Vec<f32> {
    gate.iter().zip(x).map(|(g, x)| (*x as f64 / (1.0 + (-*g as f64).exp())) as f32).collect()
}

/// `gelu(gate) * up` with the tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415).
pub fn gelu_tanh_mul(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let gelu = |g: f64| 0.5 * g * (1.0 + (root * (g + 0.044715 * g * g * g)).tanh());
    gate.iter().zip(up).map(|(g, u)| (gelu(*g as f64) * *u as f64) as f32).collect()
}

/// `gate * sigmoid(1.702 * gate) * (up + 1)` with gate at most 7 and up within -7..=7: the gate of GPT-OSS.
pub fn clamped_swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let one = |(g, u): (&f32, &f32)| {
        let (g, u) = ((*g as f64).min(7.0), (*u as f64).clamp(-7.0, 7.0));
        (g / (1.0 + (-1.702 * g).exp()) * (u + 1.0)) as f32
    };
    gate.iter().zip(up).map(one).collect()
}

/// Index of the largest value; the lowest index wins a tie, NaN never wins, 0 when nothing can win.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best: Option<(usize, f32)> = None;
    for (index, value) in logits.iter().enumerate() {
        if !value.is_nan() && best.is_none_or(|(_, best)| *value > best) {
            best = Some((index, *value));
        }
    }
    best.map_or(0, |(index, _)| index as u32)
}

/// The `k` largest values, best first, ties by lowest index, without NaN.
pub fn top_k(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> =
        logits.iter().enumerate().filter(|(_, v)| !v.is_nan()).map(|(i, v)| (i as u32, *v)).collect();
    // Stable, so equal values (0 and -0 too) stay in the order of their indices.
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("NaN was left out"));
    all.truncate(k);
    all
}

/// Writes k or v `[tokens, kv_heads, head_dim]` into a cache `[blocks, kv_heads, block_size, head_dim]`.
pub fn write_kv(cache: &mut [f32], shape: AttentionShape, values: &[f32], slots: &[u32]) {
    for (token, slot) in slots.iter().enumerate() {
        for head in 0..shape.kv_heads {
            let from = (token * shape.kv_heads + head) * shape.head_dim;
            let to = shape.cache_row(*slot as usize / shape.block_size, head, *slot as usize % shape.block_size);
            cache[to..to + shape.head_dim].copy_from_slice(&values[from..from + shape.head_dim]);
        }
    }
}

impl AttentionShape {
    fn cache_row(&self, block: usize, head: usize, offset: usize) -> usize {
        ((block * self.kv_heads + head) * self.block_size + offset) * self.head_dim
    }
}

/// Causal attention over a paged cache: softmax in two passes, all in f64.
pub fn paged_attention(
    q: &[f32],
    (k, v): (&[f32], &[f32]),
    shape: AttentionShape,
    batch: &crate::AttentionBatch,
    params: &crate::AttentionParams,
) -> Vec<f32> {
    let mut out = vec![0.0; q.len()];
    let (mut token, mut table_start) = (0, 0);
    for row in 0..batch.row_ends.len() {
        let table = &batch.block_tables[table_start..batch.block_table_ends[row] as usize];
        table_start = batch.block_table_ends[row] as usize;
        while token < batch.row_ends[row] as usize {
            for head in 0..shape.heads {
                let at = (token * shape.heads + head) * shape.head_dim;
                let q = &q[at..at + shape.head_dim];
                let out = &mut out[at..at + shape.head_dim];
                attend_one(q, (k, v), shape, (table, head, batch.positions[token]), params, out);
            }
            token += 1;
        }
    }
    out
}

fn attend_one(
    q: &[f32],
    (k, v): (&[f32], &[f32]),
    shape: AttentionShape,
    (table, head, position): (&[u32], usize, u32),
    params: &crate::AttentionParams,
    out: &mut [f32],
) {
    let kv_head = head / (shape.heads / shape.kv_heads);
    let first = params.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let row_at = |position: u32| {
        let position = position as usize;
        shape.cache_row(table[position / shape.block_size] as usize, kv_head, position % shape.block_size)
    };
    let score = |position: u32| {
        let k = &k[row_at(position)..][..shape.head_dim];
        let dot: f64 = q.iter().zip(k).map(|(a, b)| *a as f64 * *b as f64).sum();
        let score = dot * params.scale as f64;
        params.softcap.map_or(score, |cap| (score / cap as f64).tanh() * cap as f64)
    };
    let scores: Vec<f64> = (first..=position).map(score).collect();
    let max = scores.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sink = params.sinks.map_or(0.0, |sinks| (sinks[head] as f64 - max).exp());
    let total: f64 = weights.iter().sum::<f64>() + sink;
    for (i, out) in out.iter_mut().enumerate() {
        let mix = |(weight, position): (&f64, u32)| weight * v[row_at(position) + i] as f64;
        *out = (weights.iter().zip(first..=position).map(mix).sum::<f64>() / total) as f32;
    }
}

/// The gated delta rule over one sequence from its first token on, everything in f64: x `[tokens, projected]`; taps
/// `[taps, mixed]`, decay and its bias `[value_heads]`, norm `[value_dim]`.
pub fn gated_delta_rule(
    x: &[f32],
    sizes: &crate::DeltaSizes,
    taps: &[f32],
    (decay, decay_bias): (&[f32], &[f32]),
    (norm, eps): (&[f32], f32),
) -> Vec<f32> {
    let (projected, mixed, dim, width) = (sizes.projected(), sizes.mixed(), sizes.key_dim, sizes.value_dim);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let at = |token: usize, column: usize| x[token * projected + column] as f64;
    let mut out = vec![0.0; x.len() / projected * sizes.values()];
    for head in 0..sizes.value_heads {
        let mut state = vec![0.0_f64; dim * width];
        for token in 0..x.len() / projected {
            let convolved = |column: usize| {
                let seen = (0..sizes.taps).filter(|tap| token + 1 + tap >= sizes.taps);
                let of = |tap: usize| taps[tap * mixed + column] as f64 * at(token + 1 + tap - sizes.taps, column);
                let sum: f64 = seen.map(of).sum();
                sum * sigmoid(sum)
            };
            let unit = |first: usize| -> Vec<f64> {
                let vector: Vec<f64> = (0..dim).map(|i| convolved(first + sizes.key_head(head) * dim + i)).collect();
                let length = (vector.iter().map(|value| value * value).sum::<f64>() + 1e-6).sqrt();
                vector.iter().map(|value| value / length).collect()
            };
            let (query, key) = (unit(0), unit(sizes.keys()));
            let gates = mixed + sizes.values();
            let written = sigmoid(at(token, gates + head));
            let time = at(token, gates + sizes.value_heads + head) + decay_bias[head] as f64;
            let kept = (decay[head] as f64 * (1.0 + time.exp()).ln()).exp();
            state.iter_mut().for_each(|value| *value *= kept);
            let mut seen = vec![0.0_f64; width];
            for j in 0..width {
                let known: f64 = (0..dim).map(|i| key[i] * state[i * width + j]).sum();
                let change = written * (convolved(2 * sizes.keys() + head * width + j) - known);
                (0..dim).for_each(|i| state[i * width + j] += key[i] * change);
                let asked: f64 = (0..dim).map(|i| query[i] * state[i * width + j]).sum();
                seen[j] = asked / (dim as f64).sqrt();
            }
            let mean = seen.iter().map(|value| value * value).sum::<f64>() / width as f64;
            for j in 0..width {
                let gate = at(token, mixed + head * width + j);
                let normed = seen[j] / (mean + eps as f64).sqrt() * norm[j] as f64;
                out[token * sizes.values() + head * width + j] = (normed * gate * sigmoid(gate)) as f32;
            }
        }
    }
    out
}
