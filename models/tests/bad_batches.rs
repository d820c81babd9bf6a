//! Caches that no machine has, and batches that contradict themselves: refused before anything is written.

use std::path::Path;

use sconce_models::kv::LayerCache;
use sconce_models::{BatchInput, KvDtype, LoadOptions, Logits, Source, StateSave, load};

#[test]
fn a_cache_beyond_the_machine_is_refused() {
    let model = load(&Source::Dummy("tiny".to_owned()), LoadOptions::default()).unwrap();
    for (blocks, block_size) in [(u32::MAX, 1), (u32::MAX, u32::MAX)] {
        let message = model.new_kv_cache(blocks, block_size, KvDtype::F16).err().expect("too large").to_string();
        assert!(message.contains("bytes, which this machine does not give; lower --max-model-len"), "{message}");
    }
    assert!(model.new_kv_cache(0, 16, KvDtype::F16).is_err());
    let cache = model.new_kv_cache(8, 16, KvDtype::F16).unwrap();
    assert_eq!((cache.blocks(), cache.block_size()), (8, 16));
    assert_eq!(cache.bytes(), 8 * 16 * model.spec().kv_bytes_per_token(KvDtype::F16));
    let elements = |layer: &LayerCache| match layer {
        LayerCache::Blocks(layer) => layer.k.elem_count() + layer.v.elem_count(),
        LayerCache::States(_) => 0,
    };
    let held: usize = cache.layers.iter().map(|layer| 2 * elements(layer)).sum();
    assert_eq!(cache.bytes(), held as u64);
}

#[test]
fn states_that_rows_do_not_own_are_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/qwen3_5");
    let model = load(&Source::Folder(folder), LoadOptions::default()).unwrap();
    let kv = model.new_kv_cache(4, 4, KvDtype::F16).unwrap();
    let mut kv = kv.with_state_slots(3, model.spec()).unwrap();
    let mut logits = Logits::default();
    let sound = BatchInput { states: vec![2, 0], state_saves: vec![StateSave { token: 0, slot: 1 }], ..sound() };
    model.forward(&sound, &mut kv, &mut logits).unwrap();
    let cases: &[(Spoil, &str)] = &[
        (|batch| batch.states.clear(), "0 states for 2 rows"),
        (|batch| batch.states[0] = 3, "state 3 is outside the 3"),
        (|batch| batch.states[0] = 0, "slot 0 or a saved state's is taken twice"),
        (|batch| batch.state_saves[0].slot = 2, "slot 2 or a saved state's is taken twice"),
        (|batch| batch.state_saves[0].slot = 4, "state 4 is outside the 3"),
        (|batch| batch.state_copies.push((1, 0)), "state 1 is copied and written in one step"),
        (|batch| batch.state_copies.push((0, 3)), "state 3 is outside the 3"),
    ];
    for (spoil, expected) in cases {
        let mut batch = sound.clone();
        spoil(&mut batch);
        let message = model.forward(&batch, &mut kv, &mut logits).expect_err(expected).to_string();
        assert!(message.contains(expected), "expected {expected:?} in {message:?}");
    }
    let plain = load(&Source::Dummy("tiny".to_owned()), LoadOptions::default()).unwrap();
    let mut kv = plain.new_kv_cache(4, 4, KvDtype::F16).unwrap();
    let message = plain.forward(&sound, &mut kv, &mut logits).expect_err("it has no states").to_string();
    assert!(message.contains("2 states for 0 rows"), "{message:?}");
    let none = model.new_kv_cache(4, 4, KvDtype::F16).unwrap().with_state_slots(0, model.spec());
    assert!(none.err().expect("no state").to_string().contains("lower --max-num-seqs"));
}

type Spoil = fn(&mut BatchInput);

/// A prompt of two tokens and one of one.
fn sound() -> BatchInput {
    BatchInput {
        tokens: vec![1, 2, 3],
        positions: vec![0, 1, 0],
        slots: vec![8, 9, 4],
        row_ends: vec![2, 3],
        context_lens: vec![2, 1],
        block_tables: vec![2, 1],
        block_table_ends: vec![1, 2],
        sample_rows: vec![1, 2],
        ..BatchInput::default()
    }
}

#[test]
fn batches_that_contradict_themselves_are_refused() {
    let model = load(&Source::Dummy("tiny".to_owned()), LoadOptions::default()).unwrap();
    let mut kv = model.new_kv_cache(4, 4, KvDtype::F16).unwrap();
    let mut logits = Logits::default();
    let sound = sound();
    model.forward(&sound, &mut kv, &mut logits).unwrap();
    assert_eq!(logits.values.len(), 2 * 256);
    model.forward(&BatchInput::default(), &mut kv, &mut logits).unwrap();
    assert!(logits.values.is_empty());
    let cases: &[(Spoil, &str)] = &[
        (|batch| batch.tokens[0] = 256, "token 256 is outside the vocabulary of 256"),
        (|batch| batch.tokens.push(0), "4 tokens with 3 positions"),
        (|batch| batch.positions[1] = 2, "at position 2, expected 1"),
        (|batch| batch.slots[1] = 5, "position 1 of row 0 goes to slot 5, its block says 9"),
        (|batch| batch.row_ends[1] = 2, "rows end at Some(2), but there are 3 tokens"),
        (|batch| batch.row_ends[0] = 4, "row or table ends descend"),
        (|batch| batch.row_ends[0] = 0, "row 0 has no tokens"),
        (|batch| batch.context_lens[1] = 5, "row 1 has 1 blocks of 4 for 5 tokens"),
        (|batch| batch.context_lens[0] = 1, "row 0 has more tokens than its context of 1"),
        (|batch| batch.context_lens[0] = 5000, "a context of 5000 tokens, the model takes 2048"),
        (|batch| batch.context_lens.truncate(1), "2 rows with 1 context lengths"),
        (|batch| batch.block_tables[0] = 4, "block 4 is outside the cache of 4 blocks"),
        (|batch| batch.block_table_ends[0] = 9, "the block table of row 0 ends beyond the entries"),
        (|batch| batch.block_table_ends[1] = 1, "block tables end at Some(1), but there are 2 entries"),
        (|batch| batch.sample_rows = vec![2, 1], "sample rows are not ascending indices below 3"),
        (|batch| batch.sample_rows = vec![3], "sample rows are not ascending indices below 3"),
    ];
    for (spoil, expected) in cases {
        let mut batch = sound.clone();
        spoil(&mut batch);
        let message = model.forward(&batch, &mut kv, &mut logits).expect_err(expected).to_string();
        assert!(message.contains(expected), "expected {expected:?} in {message:?}");
    }
}
