//! How near attention comes to what the GPU can do, with `SCONCE_TEST_SPEED=1` on a GPU: a table, and floors under
//! which something is broken. The stand-in's times mean nothing, so that it is left out.

use std::time::Instant;

use sconce_cuda::ElementType::{self, Bf16, F32, Fp8};
use sconce_cuda::ops::attention::{Params, Rows, attention, splits_for_queries, workspace_len};
use sconce_cuda::ops::rates;
use sconce_cuda::ops::rope::Cache;
use sconce_cuda::{Buffer, Device, Graph};

use crate::{noise, on_each_device};

const BLOCK_SIZE: usize = 16;
/// Launches of a graph, each over blocks of its own as far as the cache reaches, so that L2 does not hold them.
const LAUNCHES: usize = 8;
/// At least so large is a cache: several times L2.
const CACHE_BYTES: usize = 256 << 20;

/// `rows` rows of so much context and so many tokens.
struct Case {
    cache: ElementType,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rows: usize,
    context: usize,
    tokens: usize,
    /// Part of the memory's read rate (decode) or of the bf16 product's rate (prefill).
    floor: f64,
}

impl Case {
    fn bytes(&self) -> f64 {
        (2 * self.rows * self.context * self.kv_heads * self.head_dim * self.cache.bytes()) as f64
    }

    /// Multiply-adds of what is seen, as two each.
    fn operations(&self) -> f64 {
        let seen = self.tokens as f64 * (self.context as f64 - (self.tokens as f64 - 1.0) / 2.0);
        4.0 * seen * (self.rows * self.heads * self.head_dim) as f64
    }

    fn best_s(&self, device: &Device) -> f64 {
        let Case { cache: ty, heads, kv_heads, head_dim, rows, context, tokens, .. } = *self;
        let per_row = context.div_ceil(BLOCK_SIZE);
        let block = kv_heads * BLOCK_SIZE * head_dim;
        let blocks = (rows * per_row).max(CACHE_BYTES / 2 / (block * ty.bytes()));
        let (k, v) = (noisy(device, ty, blocks * block, 1), noisy(device, ty, blocks * block, 2));
        let q = noisy(device, Bf16, rows * tokens * heads * head_dim, 3);
        let out = device.alloc(q.len(), Bf16).unwrap();
        let up = |values: Vec<u32>| device.upload(&values).unwrap();
        let starts = |each: usize| up((0..=rows).map(|row| (row * each) as u32).collect());
        let (row_starts, table_starts) = (starts(tokens), starts(per_row));
        let context_lens = up(vec![context as u32; rows]);
        // An odd factor visits every block once and none after its neighbour.
        let table = |launch: usize| {
            let of = |i: usize| ((launch * rows * per_row + i) * 7919 % blocks) as u32;
            up((0..rows * per_row).map(of).collect())
        };
        let tables: Vec<Buffer> = (0..LAUNCHES).map(table).collect();
        let multiprocessors = device.info().multiprocessors as usize;
        let splits = splits_for_queries(rows, tokens, (heads, kv_heads), multiprocessors);
        let workspace = device.zeros(workspace_len(rows * tokens, heads, head_dim, splits), F32).unwrap();
        let cache = Cache { k: k.all(), v: v.all(), kv_heads, block_size: BLOCK_SIZE, head_dim };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let params = Params { scale, window: None, softcap: None, sinks: None, causal: true };
        let issue = |launch: usize| {
            let batch = Rows {
                row_starts: row_starts.all(),
                context_lens: context_lens.all(),
                block_tables: tables[launch].all(),
                table_starts: table_starts.all(),
                rows,
                tokens: rows * tokens,
                query_max: tokens,
            };
            attention(device, q.all(), &cache, heads, &batch, &params, splits, workspace.all(), out.all())
        };
        issue(0).unwrap();
        let graph = Graph::record(device, || (0..LAUNCHES).try_for_each(issue)).unwrap();
        let round = || {
            device.synchronize().unwrap();
            let started = Instant::now();
            graph.launch().unwrap();
            device.synchronize().unwrap();
            started.elapsed().as_secs_f64() / LAUNCHES as f64
        };
        round();
        (0..10).map(|_| round()).fold(f64::INFINITY, f64::min)
    }
}

/// Memory that does not look like zeros, from one piece of noise over and over.
fn noisy(device: &Device, ty: ElementType, len: usize, seed: u64) -> Buffer {
    let buffer = device.alloc(len, ty).unwrap();
    let piece: Vec<half::bf16> = noise(seed, 1 << 18).into_iter().map(half::bf16::from_f32).collect();
    // Codes of any sign, of sizes up to 2.
    let codes: Vec<u8> = noise(seed, 1 << 18).into_iter().map(|x| (x.to_bits() >> 16) as u8 & 0xbf).collect();
    for start in (0..len).step_by(1 << 18) {
        let part = (len - start).min(1 << 18);
        match ty {
            Fp8 => buffer.write(start, &codes[..part]).unwrap(),
            _ => buffer.write(start, &piece[..part]).unwrap(),
        }
    }
    buffer
}

#[test]
fn attention_is_near_what_the_gpu_can_do() {
    if std::env::var("SCONCE_TEST_SPEED").is_err() {
        return;
    }
    // Cache, heads, head_dim, rows, context, tokens, floor.
    let case = |cache, [heads, kv_heads, head_dim]: [usize; 3], [rows, context, tokens]: [usize; 3], floor| Case {
        cache,
        heads,
        kv_heads,
        head_dim,
        rows,
        context,
        tokens,
        floor,
    };
    let cases = [
        case(Bf16, [32, 8, 64], [1, 1024, 1], 0.0),
        case(Bf16, [32, 8, 64], [1, 8192, 1], 0.1),
        case(Bf16, [32, 8, 64], [1, 8192, 4], 0.1),
        case(Bf16, [32, 8, 64], [32, 384, 1], 0.1),
        case(Bf16, [32, 8, 64], [256, 384, 1], 0.3),
        case(Bf16, [32, 8, 64], [32, 4096, 1], 0.5),
        case(Bf16, [32, 8, 128], [64, 1024, 1], 0.5),
        case(Fp8, [32, 8, 128], [64, 1024, 1], 0.3),
        case(Bf16, [16, 8, 128], [256, 1024, 1], 0.5),
        case(Bf16, [32, 32, 128], [16, 2048, 1], 0.5),
        case(Bf16, [8, 4, 256], [32, 2048, 1], 0.4),
        case(Bf16, [32, 8, 64], [1, 4096, 4096], 0.2),
        case(Bf16, [32, 8, 128], [1, 4096, 4096], 0.2),
        case(Fp8, [32, 8, 128], [1, 4096, 4096], 0.15),
        case(Bf16, [32, 8, 128], [16, 512, 512], 0.1),
        case(Bf16, [32, 8, 128], [1, 16384, 512], 0.1),
        case(Bf16, [8, 4, 256], [1, 4096, 4096], 0.1),
    ];
    on_each_device(|device| {
        if device.info().compute_capability == (0, 0) {
            return;
        }
        let best = rates::measure(device).unwrap();
        println!("reads {:.0} GB/s, bf16 {:.0} TFLOP/s", best.read_bytes_per_s / 1e9, best.bf16_per_s / 1e12);
        let slow = cases.iter().filter(|case| !is_near(case, device, best));
        assert_eq!(slow.count(), 0, "see the table");
    });
}

fn is_near(case: &Case, device: &Device, best: rates::Rates) -> bool {
    let Case { cache, heads, kv_heads, head_dim, rows, context, tokens, floor } = *case;
    let taken_s = case.best_s(device);
    let (bytes_per_s, operations_per_s) = (case.bytes() / taken_s, case.operations() / taken_s);
    let is_decode = tokens * heads / kv_heads <= 32;
    let part = if is_decode { bytes_per_s / best.read_bytes_per_s } else { operations_per_s / best.bf16_per_s };
    println!(
        "{:5} {heads:2}/{kv_heads:2} heads of {head_dim:3}, {rows:3} rows of {tokens:4} in {context:5}: {:9.1} us, \
         {:5.0} GB/s, {:5.1} TFLOP/s, {:3.0} % of the limit",
        cache.name(),
        taken_s * 1e6,
        bytes_per_s / 1e9,
        operations_per_s / 1e12,
        part * 100.0
    );
    part >= floor
}
