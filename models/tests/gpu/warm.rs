//! Steps of padding before the first real one: they are said one by one, leave graphs behind and change no answer.

#[cfg(feature = "cuda-host")]
use sconce_cuda::Device;
use sconce_models::cuda::{CudaModel, CudaRunner};
use sconce_models::{LoadOptions, Logits, Precision};

use super::{CONTEXT, EXACT, Part, SIZES, argmax, batch, devices, goldens, relative_error, runner, source, words};

/// The model that was measured is the one that serves.
#[test]
fn what_steps_take_is_measured_with_the_model_that_serves() {
    for device in devices() {
        let prompt = goldens("llama3").remove(0).prompt;
        let expected = goldens("llama3").remove(0).logits;
        let options =
            LoadOptions { precision: Precision::High, max_model_len: Some(CONTEXT), ..LoadOptions::default() };
        let model = CudaModel::load(&source("llama3"), &device, options).unwrap();
        let before = device.memory_free().unwrap();
        let (model, beyond) = CudaRunner::measure(model, SIZES).unwrap();
        let beyond = beyond.expect("there is room");
        if device.info().name.contains("stand-in") {
            assert_eq!(beyond, 0, "its graphs are no memory of the device");
            assert_eq!(device.memory_free().unwrap(), before, "all is given back but the weights");
        }
        assert!(beyond < 2 << 30, "{beyond}");
        let mut runner = CudaRunner::new(model, SIZES).unwrap();
        let (whole, mut logits) = (Part { sequence: 0, start: 0, count: prompt.len() }, Logits::default());
        runner.forward(&batch(&[prompt], &[whole], true), &mut logits).unwrap();
        assert!(relative_error(&logits.values, &expected) < EXACT);
    }
}

#[test]
fn where_there_is_no_room_nothing_is_measured() {
    #[cfg(feature = "cuda-host")]
    {
        let device = Device::host_sized(1 << 20);
        let options = LoadOptions { max_model_len: Some(CONTEXT), ..LoadOptions::default() };
        let model = CudaModel::load(&source("llama3"), &device, options).unwrap();
        let (_, beyond) = CudaRunner::measure(model, SIZES).unwrap();
        assert_eq!(beyond, None);
    }
}

#[test]
fn a_warmed_model_gives_the_same_answers() {
    for device in devices() {
        // Plain, with experts, and quantised.
        for name in ["llama3", "qwen3_moe", "qwen3_q4_0"] {
            let prompt = goldens(name).remove(0).prompt;
            let expected = goldens(name).remove(0).logits;
            let greedy = words(name, "greedy");
            let mut runner = runner(name, &device, Precision::High).unwrap();
            let whole = Part { sequence: 0, start: 0, count: prompt.len() };
            let (mut tokens, mut logits) = (prompt.clone(), Logits::default());
            runner.forward(&batch(&[tokens.clone()], &[whole], true), &mut logits).unwrap();
            assert!(relative_error(&logits.values, &expected) < EXACT);
            // In between, where it could do most harm: what the cache holds must stay.
            let mut said = Vec::new();
            runner.warm_up(|done, total| said.push((done, total))).unwrap();
            let total = said.len();
            assert!(total >= 2 && said == (1..=total).map(|done| (done, total)).collect::<Vec<_>>(), "{said:?}");
            let vocab = logits.vocab;
            assert_eq!(argmax(&logits.values[logits.values.len() - vocab..]), greedy[0]);
            for (at, token) in greedy.iter().take(6).enumerate() {
                tokens.push(*token);
                let part = Part { sequence: 0, start: tokens.len() - 1, count: 1 };
                runner.forward(&batch(&[tokens.clone()], &[part], false), &mut logits).unwrap();
                assert_eq!(argmax(logits.row(0)), greedy[at + 1], "{name}: token {at}");
            }
            assert!(runner.take_warning().is_none());
        }
    }
}
