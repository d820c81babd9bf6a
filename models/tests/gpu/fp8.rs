//! FP8 that stays FP8 on a GPU: that it does, and what single matrices and experts of it give.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use sconce_cuda::Device;
use sconce_models::{LoadOptions, Logits, Precision, Source, read_spec};

use super::{CudaModel, MOSTLY, Part, ROUNDED, batch, devices, fixtures, goldens, relative_error, runner_of, source};

/// E4M3 nearest to a value; not the fastest way.
fn nearest(value: f32) -> u8 {
    let of = |code: u8| {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let size = if exponent == 0 { fraction / 512.0 } else { (1.0 + fraction / 8.0) * 2_f32.powi(exponent - 7) };
        if code & 0x80 == 0 { size } else { -size }
    };
    let codes = (0..=255_u8).filter(|code| code & 0x7f != 0x7f);
    codes.min_by(|a, b| (of(*a) - value).abs().total_cmp(&(of(*b) - value).abs())).unwrap()
}

/// A fixture in F16 with all its projections in FP8: those of experts with one scale, others with one a row.
fn in_fp8(name: &str, to: &Path) {
    let folder = fixtures().join(name);
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut written: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)> = HashMap::new();
    for (name, view) in tensors.tensors() {
        let [out, input] = view.shape() else {
            written.insert(name.clone(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            continue;
        };
        if !name.ends_with("_proj.weight") {
            written.insert(name.clone(), (view.dtype(), vec![*out, *input], view.data().to_vec()));
            continue;
        }
        let halves = view.data().as_chunks().0.iter();
        let values: Vec<f32> = halves.map(|half| half::f16::from_le_bytes(*half).to_f32()).collect();
        let rows = if name.contains("experts") { *out } else { 1 };
        let (mut scales, mut codes) = (Vec::new(), Vec::new());
        for values in values.chunks(rows * input) {
            let scale = values.iter().fold(0_f32, |max, value| max.max(value.abs())) / 448.0;
            scales.extend(scale.to_le_bytes());
            codes.extend(values.iter().map(|value| nearest(value / scale)));
        }
        written.insert(format!("{name}_scale"), (Dtype::F32, vec![out / rows, 1], scales));
        written.insert(name, (Dtype::F8_E4M3, vec![*out, *input], codes));
    }
    let views = written
        .iter()
        .map(|(name, (ty, shape, bytes))| (name.clone(), TensorView::new(*ty, shape.clone(), bytes).unwrap()));
    fs::write(to.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["quantization_config"] = serde_json::json!({"quant_method": "fp8", "fmt": "e4m3"});
    fs::write(to.join("config.json"), config.to_string()).unwrap();
}

/// What weights take of the device.
fn taken(source: &Source, device: &Device, precision: Precision) -> u64 {
    let before = device.memory_free().unwrap();
    let options = LoadOptions { precision, max_model_len: Some(16), ..LoadOptions::default() };
    let model = CudaModel::load(source, device, options).unwrap();
    let taken = before - device.memory_free().unwrap();
    let notes = &model.spec().notes;
    assert_eq!(notes.iter().any(|note| note.contains("stay")), precision == Precision::Fast, "{notes:?}");
    taken
}

/// Three bytes less an element than in F32: in BF16 it would be two.
#[cfg(feature = "cuda-host")]
#[test]
fn fp8_takes_a_byte_an_element() {
    let device = Device::host_sized(256 << 20);
    let folder = tempfile::tempdir().unwrap();
    in_fp8("qwen3_moe", folder.path());
    for source in [source("compressed_fp8"), source("fp8_blocks"), Source::Folder(folder.path().to_owned())] {
        let spec = read_spec(&source).unwrap();
        let on_gpu = sconce_models::cuda::on_gpu(spec.clone());
        assert!(spec.fp8_bytes > 0 && on_gpu.weight_bytes + spec.fp8_bytes == spec.weight_bytes);
        let less = taken(&source, &device, Precision::High) - taken(&source, &device, Precision::Fast);
        assert!(less > spec.fp8_bytes * 26 / 10, "{less} bytes less for {} in FP8: {source:?}", spec.fp8_bytes);
    }
}

/// Experts in FP8 give what the same numbers in F32 give.
#[test]
fn experts_in_fp8_are_near_plain_ones() {
    let folder = tempfile::tempdir().unwrap();
    in_fp8("qwen3_moe", folder.path());
    let source = Source::Folder(folder.path().to_owned());
    for device in devices() {
        let sequences: Vec<Vec<u32>> = goldens("qwen3_moe").into_iter().map(|golden| golden.prompt).collect();
        let whole = |(sequence, tokens): (usize, &Vec<u32>)| Part { sequence, start: 0, count: tokens.len() };
        let all: Vec<Part> = sequences.iter().enumerate().map(whole).collect();
        let mut logits = [Precision::High, Precision::Fast].map(|precision| {
            let mut logits = Logits::default();
            let mut runner = runner_of(&source, &device, precision).unwrap();
            // In one step, and token by token: few routes a tile and many.
            runner.forward(&batch(&sequences, &all, true), &mut logits).unwrap();
            let mut found = std::mem::take(&mut logits.values);
            for at in 0..sequences[0].len() {
                let part = Part { sequence: 0, start: at, count: 1 };
                runner.forward(&batch(&sequences, &[part], true), &mut logits).unwrap();
                found.extend_from_slice(&logits.values);
            }
            (logits.vocab, found)
        });
        let (vocab, exact) = std::mem::take(&mut logits[0]);
        let pairs = logits[1].1.chunks(vocab).zip(exact.chunks(vocab));
        let errors: Vec<f32> = pairs.map(|(found, exact)| relative_error(found, exact)).collect();
        let within = errors.iter().filter(|error| **error < ROUNDED.min(MOSTLY)).count();
        assert!(3 * within >= 2 * errors.len(), "{within} of {} positions: {errors:?}", errors.len());
    }
}
