//! What was measured is kept by processor and threads, and a broken file is none.

use sconce_device::rates::{Hardware, load, store};

fn hardware(processor: &str, threads: usize, rate: f64) -> Hardware {
    let processor = processor.to_owned();
    Hardware { processor, threads, read_bytes_per_s: rate, f32_per_s: 1e11, bf16_per_s: None, int8_per_s: Some(4e11) }
}

#[test]
fn measured_rates_are_found_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("deeper/hardware.json");
    assert_eq!(load(&file, "A", 2), None);
    for measured in [hardware("A", 2, 1e10), hardware("A", 4, 2e10), hardware("B", 2, 3e10), hardware("A", 2, 4e10)] {
        store(&file, &measured).expect("a place to write");
    }
    assert_eq!(load(&file, "A", 2), Some(hardware("A", 2, 4e10)), "the newest");
    assert_eq!(load(&file, "A", 4), Some(hardware("A", 4, 2e10)));
    assert_eq!(load(&file, "B", 4), None, "other threads, other rates");
    let left: Vec<_> = std::fs::read_dir(folder.path().join("deeper")).expect("a folder").collect();
    assert_eq!(left.len(), 1, "no drafts stay");
}

#[test]
fn what_is_broken_or_impossible_is_not_believed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("hardware.json");
    for text in ["", "{", "[]", r#"{"version": 2, "measured": []}"#] {
        std::fs::write(&file, text).expect("written");
        assert_eq!(load(&file, "A", 2), None, "{text}");
    }
    store(&file, &hardware("A", 2, 0.0)).expect("written");
    assert_eq!(load(&file, "A", 2), None, "nothing is read at no speed");
    store(&file, &hardware("A", 2, 1e10)).expect("written over what was broken");
    assert!(load(&file, "A", 2).is_some());
}

#[test]
fn quantised_weights_are_multiplied_in_8_bits() {
    let found = hardware("A", 2, 1e10);
    let rates = ["Q4_K", "BF16", "F32"].map(|format| found.operations_per_s(format));
    assert_eq!(rates.map(|rate| (rate / 1e9) as u64), [400, 100, 100]);
}
