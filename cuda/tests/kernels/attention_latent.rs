//! Attention over latents on tensor cores against plain loops in f64.

use sconce_cuda::Device;
use sconce_cuda::ElementType::{self, Bf16, F16, F32};
use sconce_cuda::ops::attention::{Rows, workspace_len};
use sconce_cuda::ops::attention_latent::{OverLatents, has_latent_kernel};

use crate::typed::{download, rounded, upload};
use crate::{distance, noise, on_each_device};

struct Case<'a> {
    ty: ElementType,
    sizes: (usize, usize),
    heads: usize,
    block_size: usize,
    /// Tokens of a row and its context, these included; a context of 0 is padding.
    rows: &'a [(usize, usize)],
    splits: usize,
}

const BLOCKS: usize = 40;
const SCALE: f32 = 0.07;

/// The row's blocks, scattered over the cache.
fn table(row: usize, context: usize, block_size: usize) -> Vec<u32> {
    (0..context.div_ceil(block_size)).map(|at| ((7 * (at + 11 * row) + 3) % BLOCKS) as u32).collect()
}

/// What every head of every token should see.
fn wanted(case: &Case, q: &[f32], cache: &[f32]) -> Vec<f32> {
    let (rotated, rank) = case.sizes;
    let width = rotated + rank;
    let (mut out, mut token) = (Vec::new(), 0);
    for (row, &(count, context)) in case.rows.iter().enumerate() {
        let table = table(row, context, case.block_size);
        let vector = |p: usize| {
            let place = table[p / case.block_size] as usize * case.block_size + p % case.block_size;
            &cache[place * width..][..width]
        };
        for at in 0..count {
            let seen = if context == 0 { 0 } else { context - count + at + 1 };
            for head in 0..case.heads {
                let q = &q[((token + at) * case.heads + head) * width..][..width];
                let product =
                    |p: usize| q.iter().zip(vector(p)).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
                let weights: Vec<f64> = (0..seen).map(|p| (product(p) * f64::from(SCALE)).exp()).collect();
                let sum = weights.iter().sum::<f64>().max(f64::MIN_POSITIVE);
                let mix = |at: usize| (0..seen).map(|p| weights[p] * f64::from(vector(p)[at])).sum::<f64>() / sum;
                out.extend((rotated..width).map(|at| mix(at) as f32));
            }
        }
        token += count;
    }
    out
}

fn check(device: &Device, case: &Case) {
    let Case { ty, sizes: (rotated, rank), heads, block_size, rows, splits } = *case;
    let width = rotated + rank;
    let tokens: usize = rows.iter().map(|(count, _)| count).sum();
    let q = rounded(ty, &noise(1, tokens * heads * width));
    let cache = rounded(ty, &noise(2, BLOCKS * block_size * width));
    let (q_there, cache_there) = (upload(device, ty, &q), upload(device, ty, &cache));
    let (mut starts, mut table_starts, mut tables) = (vec![0_u32], vec![0_u32], Vec::new());
    for (row, &(count, context)) in rows.iter().enumerate() {
        starts.push(starts[row] + count as u32);
        tables.extend(table(row, context, block_size));
        table_starts.push(tables.len() as u32);
    }
    let contexts: Vec<u32> = rows.iter().map(|(_, context)| *context as u32).collect();
    let up = |values: &[u32]| device.upload(values).unwrap();
    let (starts, contexts, tables, table_starts) = (up(&starts), up(&contexts), up(&tables), up(&table_starts));
    let batch = Rows {
        row_starts: starts.all(),
        context_lens: contexts.all(),
        block_tables: tables.all(),
        table_starts: table_starts.all(),
        rows: rows.len(),
        tokens,
        query_max: rows.iter().map(|(count, _)| *count).max().unwrap(),
    };
    let out = device.alloc(tokens * heads * rank, ty).unwrap();
    let workspace = device.zeros(workspace_len(tokens, heads, rank, splits), F32).unwrap();
    let attention = OverLatents {
        q: q_there.all(),
        cache: cache_there.all(),
        out: out.all(),
        heads,
        rotated,
        rank,
        block_size,
        scale: SCALE,
    };
    attention.on(device, &batch, splits, workspace.all()).unwrap();
    let apart = distance(&download(&out), &wanted(case, &q, &cache));
    let allowed = if ty == F16 { 2e-3 } else { 1e-2 };
    assert!(apart < allowed, "{ty:?} {rotated} + {rank}, {heads} heads, {rows:?}, {splits} splits: {apart}");
    let short = OverLatents { out: out.all().range(0, tokens * heads * rank - 1), ..attention };
    assert!(short.on(device, &batch, splits, workspace.all()).is_err(), "no room for the output");
}

#[test]
fn decode_steps_see_latents() {
    on_each_device(|device| {
        let rows = [(1, 70), (1, 1), (1, 0), (1, 33)];
        let base = Case { ty: Bf16, sizes: (64, 512), heads: 16, block_size: 16, rows: &rows, splits: 1 };
        check(device, &base);
        check(device, &Case { splits: 3, ..base });
        check(device, &Case { ty: F16, heads: 20, block_size: 5, splits: 2, ..base });
        check(device, &Case { sizes: (32, 256), heads: 5, ..base });
        check(device, &Case { ty: F16, sizes: (32, 256), heads: 40, splits: 32, ..base });
    });
}

#[test]
fn prompts_see_latents() {
    on_each_device(|device| {
        let rows = [(3, 3), (1, 40), (9, 45), (1, 0)];
        let base = Case { ty: Bf16, sizes: (64, 512), heads: 4, block_size: 16, rows: &rows, splits: 1 };
        check(device, &base);
        check(device, &Case { ty: F16, heads: 7, splits: 2, ..base });
        check(device, &Case { sizes: (32, 256), heads: 16, block_size: 7, ..base });
    });
}

#[test]
fn other_sizes_have_no_kernel() {
    on_each_device(|device| {
        assert!(has_latent_kernel(device, (Bf16, Bf16), (64, 512)));
        for (types, sizes) in [((F32, F32), (64, 512)), ((Bf16, ElementType::Fp8), (64, 512)), ((F16, F16), (8, 32))] {
            assert!(!has_latent_kernel(device, types, sizes), "{types:?} {sizes:?}");
        }
    });
}
