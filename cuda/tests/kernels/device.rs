//! Devices themselves: memory, graphs, products and errors.

use sconce_cuda::ops::gemm::Gemm;
use sconce_cuda::ops::norm::rms_norm;
use sconce_cuda::{Device, ElementType, Graph, Launch};

use crate::on_each_device;

#[test]
fn a_norm_and_a_product_by_a_graph() {
    on_each_device(norm_and_product);
}

fn norm_and_product(device: &Device) {
    let (rows, dim, out) = (3, 70, 5);
    let x: Vec<f32> = (0..rows * dim).map(|i| ((i * 37 % 101) as f32 - 50.0) / 20.0).collect();
    let weight: Vec<f32> = (0..dim).map(|i| 1.0 + i as f32 / 100.0).collect();
    let w: Vec<f32> = (0..out * dim).map(|i| ((i * 53 % 97) as f32 - 48.0) / 60.0).collect();
    let x_there = device.zeros(rows * dim, ElementType::F32).unwrap();
    let weight_there = device.upload(&weight).unwrap();
    let w_there = device.upload(&w).unwrap();
    let normed = device.alloc(rows * dim, ElementType::F32).unwrap();
    let y = device.zeros(rows * out, ElementType::F32).unwrap();
    let graph = Graph::record(device, || {
        rms_norm(device, x_there.all(), (weight_there.all(), 1e-5), normed.all(), rows)?;
        Gemm { x: normed.all(), w: w_there.all(), y: y.all(), m: rows, n: out, k: dim, add: true }.on(device)
    });
    let graph = graph.unwrap();
    assert!(y.to_vec::<f32>().unwrap().iter().all(|value| *value == 0.0), "nothing runs while it is recorded");
    x_there.write(0, &x).unwrap();
    graph.launch().unwrap();
    graph.launch().unwrap();
    let y = y.to_vec::<f32>().unwrap();
    for row in 0..rows {
        let x = &x[row * dim..(row + 1) * dim];
        let mean = x.iter().map(|x| f64::from(x * x)).sum::<f64>() / dim as f64;
        for column in 0..out {
            let w = &w[column * dim..(column + 1) * dim];
            let product: f64 = (0..dim).map(|i| f64::from(x[i] * weight[i] * w[i]) / (mean + 1e-5).sqrt()).sum();
            let (found, wanted) = (f64::from(y[row * out + column]), 2.0 * product);
            assert!((found - wanted).abs() < 1e-4, "{found} for {wanted}");
        }
    }
}

#[test]
fn an_unknown_kernel_is_an_error() {
    on_each_device(|device| {
        let error = Launch::new("no_such_kernel").on(device).unwrap_err();
        assert!(error.to_string().contains("no_such_kernel"), "{error}");
        assert!(device.has_kernel("rms_norm_bf16") && !device.has_kernel("no_such_kernel"));
    });
}

#[test]
fn launches_that_no_gpu_takes_are_refused() {
    on_each_device(|device| {
        let launch = || Launch::new("follow_tokens");
        let cases = [
            (launch().grid(1, 70_000, 1), "blocks"),
            (launch().grid(1, 1, 70_000), "blocks"),
            (launch().block(64, 17), "threads"),
            (launch().shared_bytes(1 << 20), "shared memory"),
        ];
        for (launch, what) in cases {
            let error = launch.on(device).expect_err(what).to_string();
            assert!(error.contains("follow_tokens") && error.contains("--max-num-batched-tokens"), "{what}: {error}");
        }
    });
}
