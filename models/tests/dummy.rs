//! Dummy models: the shapes are the published ones, the weights are there, every format runs.

use std::sync::{Arc, Mutex};

use sconce_models::{BatchInput, KvDtype, LoadOptions, Logits, Source, dummy_shapes, load, read_spec};

#[test]
fn shapes_have_the_published_sizes() {
    // Parameters as the model cards count them, in millions.
    for (name, millions) in [
        ("smollm2-135m", 134.5),
        ("smollm2-360m", 361.8),
        ("smollm2-1.7b", 1711.4),
        ("llama-3.2-1b", 1235.8),
        ("llama-3.2-3b", 3212.7),
        ("llama-3.1-8b", 8030.3),
        ("mistral-7b", 7248.0),
        ("qwen2.5-0.5b", 494.0),
        ("qwen2.5-1.5b", 1543.7),
        ("qwen2.5-7b", 7615.6),
        ("qwen3-0.6b", 596.0),
        ("qwen3-1.7b", 1720.6),
        ("qwen3-4b", 4022.5),
        ("qwen3-8b", 8190.7),
        ("qwen3.5-0.8b", 752.4),
    ] {
        let spec = read_spec(&Source::Dummy(name.to_owned())).unwrap();
        let found = spec.parameters as f64 / 1e6;
        assert!((found - millions).abs() < 0.1, "{name} has {found} million parameters, not {millions}");
        assert_eq!((spec.weight_format.as_str(), spec.layers > 0), ("BF16", true));
    }
    assert_eq!(dummy_shapes().count(), 16);
}

#[test]
fn every_format_runs_and_reports_its_progress() {
    let batch = BatchInput {
        tokens: vec![1, 2, 3],
        positions: vec![0, 1, 2],
        slots: vec![0, 1, 2],
        row_ends: vec![3],
        context_lens: vec![3],
        block_tables: vec![0],
        block_table_ends: vec![1],
        sample_rows: vec![2],
        ..BatchInput::default()
    };
    for format in ["bf16", "f16", "f32", "q8_0", "q4_0", "q4_1"] {
        let source = Source::Dummy(format!("tiny:{format}"));
        let reports = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&reports);
        let progress = Box::new(move |done, total| log.lock().unwrap().push((done, total)));
        let model = load(&source, LoadOptions { progress: Some(progress), ..LoadOptions::default() }).unwrap();
        let total = model.spec().weight_bytes;
        let reports = reports.lock().unwrap();
        assert!(reports.windows(2).all(|pair| pair[0].0 <= pair[1].0) && reports.len() > 10, "{format}");
        let before_the_last = reports[reports.len() - 2];
        assert_eq!((before_the_last, reports[reports.len() - 1]), ((total, total), (total, total)), "{format}");

        let mut kv = model.new_kv_cache(1, 16, KvDtype::F16).unwrap();
        let mut logits = Logits::default();
        model.forward(&batch, &mut kv, &mut logits).unwrap();
        let spread = logits.values.iter().fold(0_f32, |max, value| max.max(value.abs()));
        assert!(logits.values.iter().all(|value| value.is_finite()) && spread > 0.01, "{format}: {spread}");
        let again = load(&source, LoadOptions::default()).unwrap();
        let mut logits_again = Logits::default();
        again.forward(&batch, &mut again.new_kv_cache(1, 16, KvDtype::F16).unwrap(), &mut logits_again).unwrap();
        assert_eq!(logits, logits_again, "{format}: the seed is fixed");
    }
}
