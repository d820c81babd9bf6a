//! Figures for the kernels' speed on this machine; measures nothing unless asked.
//!
//! Usage: `cargo test -p sconce-kernels --test measure -- --ignored --nocapture`

use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use sconce_kernels::{GgmlType, Weight, matmul};

/// Best time of several rounds, in seconds.
fn seconds(mut run: impl FnMut()) -> f64 {
    run();
    let started = Instant::now();
    let mut best = f64::INFINITY;
    while started.elapsed().as_millis() < 400 {
        let round = Instant::now();
        run();
        best = best.min(round.elapsed().as_secs_f64());
    }
    best
}

fn weight(ty: GgmlType, out: usize, input: usize) -> Weight {
    // 0x1c makes every f16 scale a small number and every f32 a tiny one.
    let bytes = vec![0x1cu8; out * input / ty.block_elements() * ty.block_bytes()];
    Weight::new(ty, out, input, Arc::new(bytes), 0).expect("sizes fit")
}

#[test]
#[ignore = "prints measurements"]
fn dense() {
    use GgmlType::*;
    for (ty, out, input) in [
        (Q4_1, 1536, 576),
        (Q4_1, 576, 1536),
        (Q8_0, 49152, 576),
        (Q4_1, 49152, 576),
        (Q4_0, 49152, 576),
        (F16, 49152, 576),
        (Bf16, 49152, 576),
        (F32, 49152, 576),
        (Q5_0, 49152, 576),
        (Q4K, 49152, 512),
        (Q6K, 49152, 512),
    ] {
        let weight = weight(ty, out, input);
        for tokens in [1, 4, 16] {
            let x = Tensor::ones((tokens, input), candle_core::DType::F32, &Device::Cpu).expect("fits");
            let best = seconds(|| drop(matmul(&x, &weight, None).expect("runs")));
            let bytes = weight.bytes().len() as f64;
            let flops = 2.0 * (tokens * out * input) as f64;
            eprintln!(
                "{:7} {out:5} x {input:4}, {tokens:3} tokens: {:7.1} us, {:5.1} GB/s, {:6.1} GFLOP/s",
                ty.name(),
                best * 1e6,
                bytes / best / 1e9,
                flops / best / 1e9
            );
        }
    }
    for (ty, out, input, tokens) in [
        (Q4_1, 1536, 576, 512),
        (Q4_1, 576, 1536, 512),
        (Q4_1, 576, 576, 512),
        (F32, 1536, 576, 512),
        (Q4K, 1536, 512, 512),
        (Q4_1, 1536, 576, 64),
        (Q4_0, 4096, 4096, 128),
        (Q4_0, 4096, 14336, 128),
    ] {
        let weight = weight(ty, out, input);
        let x = Tensor::ones((tokens, input), candle_core::DType::F32, &Device::Cpu).expect("fits");
        let best = seconds(|| drop(matmul(&x, &weight, None).expect("runs")));
        let flops = 2.0 * (tokens * out * input) as f64;
        eprintln!(
            "{:7} {out:5} x {input:5}, {tokens:3} tokens: {:8.1} us, {:6.1} GFLOP/s",
            ty.name(),
            best * 1e6,
            flops / best / 1e9
        );
    }
}
