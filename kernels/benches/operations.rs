//! The CPU kernels at the sizes of SmolLM2-135M: products of each weight type, attention, norms, sampling's first pass.
//!
//! usage: cargo bench -p sconce-kernels --bench operations

use std::hint::black_box;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sconce_kernels::{
    Added, Arena, AttentionBatch, AttentionParams, GgmlType, KvDtype, KvLayer, PackedWeight, Precision, Prologue,
    Weight, add_rms_norm, argmax, matmul, paged_attention, top_k,
};

const HIDDEN: usize = 576;
const FFN: usize = 1536;
const VOCAB: u32 = 49_152;

fn packed(ty: GgmlType, out: usize, input: usize) -> PackedWeight {
    // 0x1c makes every f16 scale a small number and every f32 a tiny one.
    let bytes = vec![0x1c_u8; out * input / ty.block_elements() * ty.block_bytes()];
    let weight = Weight::new(ty, out, input, Arc::new(bytes), 0).expect("sizes fit");
    PackedWeight::new(&[&weight], Precision::Fast, &mut Arena::default()).expect("packs")
}

fn ones(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).expect("fits")
}

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("matmul");
    for ty in [GgmlType::Q4_0, GgmlType::Q8_0, GgmlType::Bf16] {
        let weight = packed(ty, 2 * FFN, HIDDEN);
        for tokens in [1, 16, 256] {
            let x = ones((tokens, HIDDEN));
            group.throughput(Throughput::Elements((2 * tokens * 2 * FFN * HIDDEN) as u64));
            group.bench_function(format!("{} gate-up, {tokens} tokens", ty.name()), |bencher| {
                bencher.iter(|| matmul(black_box(&x), Prologue::None, &weight, Added::default()).expect("runs"));
            });
        }
    }
    group.finish();
}

fn attention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    for (context, tokens) in [(512_u32, 1_u32), (4096, 1), (512, 256)] {
        let cache = KvLayer::new([context as usize / 16, 3, 16, 64], KvDtype::F16, &Device::Cpu).expect("fits");
        let query = ones((tokens as usize, 9, 64));
        let positions: Vec<u32> = (context - tokens..context).collect();
        let table: Vec<u32> = (0..context / 16).collect();
        let batch = AttentionBatch {
            positions: &positions,
            row_ends: &[tokens],
            context_lens: &[context],
            block_tables: &table,
            block_table_ends: &[table.len() as u32],
        };
        let params = AttentionParams { scale: 0.125, window: None, softcap: None, sinks: None };
        group.bench_function(format!("{tokens} tokens of {context}"), |bencher| {
            bencher.iter(|| paged_attention(black_box(&query), &cache, &batch, &params).expect("runs"));
        });
    }
    group.finish();
}

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rows");
    for tokens in [1, 256] {
        let (x, weight) = (ones((tokens, HIDDEN)), ones(HIDDEN));
        group.bench_function(format!("add_rms_norm, {tokens} tokens"), |bencher| {
            bencher.iter(|| add_rms_norm(black_box(&x), &x, &weight, 1e-5).expect("runs"));
        });
    }
    let logits: Vec<f32> = (0..VOCAB).map(|id| (id.wrapping_mul(2_654_435_761) >> 8) as f32).collect();
    group.bench_function("argmax of a vocabulary", |bencher| bencher.iter(|| argmax(black_box(&logits))));
    let mut best = Vec::new();
    group.bench_function("top 40 of a vocabulary", |bencher| {
        bencher.iter(|| top_k(black_box(&logits), 40, &mut best));
    });
    group.finish();
}

criterion_group!(benches, products, attention, rows);
criterion_main!(benches);
