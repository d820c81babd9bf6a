//! Columns of a wide matrix, and shares of rows.

use half::bf16;
use sconce_cuda::ElementType;
use sconce_cuda::ops::columns::place_columns;
use sconce_cuda::ops::share::add_share;

use crate::{distance, noise, on_each_device};

#[test]
fn parts_stand_side_by_side() {
    on_each_device(|device| {
        let (rows, widths) = (5, [3, 300, 1]);
        let stride: usize = widths.iter().sum();
        let wide = device.alloc(rows * stride, ElementType::F32).unwrap();
        let mut wanted = vec![0.0; rows * stride];
        let mut first = 0;
        for (seed, n) in widths.into_iter().enumerate() {
            let x = noise(seed as u64 + 1, rows * n);
            let there = device.upload(&x).unwrap();
            place_columns(device, there.all(), wide.all(), rows, (first, n, stride)).unwrap();
            for row in 0..rows {
                wanted[row * stride + first..][..n].copy_from_slice(&x[row * n..][..n]);
            }
            first += n;
        }
        assert_eq!(wide.to_vec::<f32>().unwrap(), wanted);
        let x = device.upload(&[0.0_f32; 8]).unwrap();
        assert!(place_columns(device, x.all(), wide.all(), 2, (stride - 3, 4, stride)).is_err());
    });
}

#[test]
fn a_row_is_added_as_its_score_says() {
    on_each_device(|device| {
        let (rows, width) = (3, 259);
        let (x, scores, before) = (noise(1, rows * width), [-30.0_f32, 0.3, 40.0], noise(2, rows * width));
        let halves: Vec<bf16> = x.iter().map(|x| bf16::from_f32(*x)).collect();
        let y = device.upload(&before).unwrap();
        let (x_there, scores_there) = (device.upload(&halves).unwrap(), device.upload(&scores).unwrap());
        add_share(device, x_there.all(), scores_there.all(), y.all(), (rows, width)).unwrap();
        let share = |score: f32| 1.0 / (1.0 + (-f64::from(score)).exp());
        let wanted: Vec<f32> = (0..rows * width)
            .map(|at| (f64::from(before[at]) + share(scores[at / width]) * halves[at].to_f64()) as f32)
            .collect();
        assert!(distance(&y.to_vec::<f32>().unwrap(), &wanted) < 1e-6);
        assert!(add_share(device, x_there.all(), scores_there.all(), y.all(), (rows + 1, width)).is_err());
    });
}
