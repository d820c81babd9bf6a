//! Inputs of single layers against plain loops.

use sconce_cuda::ElementType::{self, Bf16, F16, F32};
use sconce_cuda::ops::own_input::{OwnGate, join_inputs};

use crate::typed::{download, tolerance, upload};
use crate::{distance, noise, on_each_device};

#[test]
fn projections_and_table_are_joined() {
    on_each_device(|device| {
        for (ty, rows, width) in [(F32, 5, 33), (F16, 1, 256), (Bf16, 9, 40)] {
            let projected = upload(device, ty, &noise(1, rows * width));
            let x = download(&projected);
            let weight = noise(2, width);
            let table = noise(3, rows * width + 1);
            let (weight_there, all) = (device.upload(&weight).unwrap(), device.upload(&table).unwrap());
            let (scale, eps) = (0.3_f32, 1e-4_f32);
            join_inputs(device, projected.all(), scale, (weight_there.all(), eps), all.all(), rows).unwrap();
            let mut wanted = table.clone();
            for (x, wanted) in x.chunks_exact(width).zip(wanted.chunks_exact_mut(width)) {
                let scaled: Vec<f64> = x.iter().map(|x| f64::from(*x) * f64::from(scale)).collect();
                let mean = scaled.iter().map(|x| x * x).sum::<f64>() / width as f64;
                for (at, wanted) in wanted.iter_mut().enumerate() {
                    let normed = scaled[at] / (mean + f64::from(eps)).sqrt() * f64::from(weight[at]);
                    *wanted = ((normed + f64::from(*wanted)) / 2_f64.sqrt()) as f32;
                }
            }
            let found = all.to_vec::<f32>().unwrap();
            assert!(distance(&found, &wanted) < 1e-6, "{ty:?} [{rows}, {width}]");
            assert_eq!(found[rows * width], table[rows * width], "behind the rows");
            let short = join_inputs(device, projected.all(), scale, (weight_there.all(), eps), all.all(), rows + 1);
            assert!(short.is_err());
        }
    });
}

fn check_gate(ty: ElementType, chosen: Option<&[u32]>) {
    on_each_device(|device| {
        let (tokens, width, start, stride) = (4, 270, 3, 290);
        let rows = chosen.map_or(tokens, <[u32]>::len);
        let gate_there = upload(device, ty, &noise(5, rows * width));
        let gate = download(&gate_there);
        let own = noise(6, tokens * stride);
        let all = device.upload(&own).unwrap();
        let chosen_there = chosen.map(|chosen| device.upload(chosen).unwrap());
        let y = device.alloc(rows * width, ty).unwrap();
        let op = OwnGate {
            gate: gate_there.all(),
            all: all.all(),
            chosen: chosen_there.as_ref().map(|chosen| chosen.all()),
            y: y.all(),
            rows,
            width,
            start,
            stride,
        };
        op.on(device).unwrap();
        let gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x * x * x)).tanh());
        let wanted: Vec<f32> = (0..rows * width)
            .map(|at| {
                let token = chosen.map_or(at / width, |chosen| chosen[at / width] as usize);
                let own = if token < tokens { own[token * stride + start + at % width] } else { 0.0 };
                (gelu(f64::from(gate[at])) * f64::from(own)) as f32
            })
            .collect();
        let found = download(&y);
        assert!(distance(&found, &wanted) < tolerance(ty), "{ty:?} {chosen:?}");
        assert!(OwnGate { start: 21, ..op }.on(device).is_err(), "columns beyond the row");
        assert!(OwnGate { chosen: None, rows: tokens + 1, ..op }.on(device).is_err(), "rows that no token is");
    });
}

#[test]
fn a_gate_on_an_input() {
    check_gate(F32, None);
    check_gate(F16, Some(&[2, 2, u32::MAX]));
    check_gate(Bf16, Some(&[3]));
}
