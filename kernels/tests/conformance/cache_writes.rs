//! The ways into the cache: K and V into their slots, alone and fused with norms and rotation.

use candle_core::{DType, Device, Tensor};
use sconce_kernels::reference::{self, AttentionShape};
use sconce_kernels::{
    HeadNorms, KvDtype, KvLayer, QkvHeads, RopeStyle, RopeTable, rms_norm, rope, rope_and_write_kv, write_kv,
};

use super::attention::rounded;
use super::{Values, assert_error, assert_same_bits, devices, e4m3, flat, tensor};

#[test]
fn the_fused_way_into_the_cache_does_what_its_parts_do() {
    let device = Device::Cpu;
    let mut values = Values::new(21);
    let table = RopeTable::new(&[1.0, 0.3, 0.05], 64, 1.0, &device).expect("a table");
    let (heads, kv_heads, head_dim, tokens) = (6, 2, 20, 37);
    let positions: Vec<u32> = (3..3 + tokens as u32).collect();
    let slots: Vec<u32> = (0..tokens as u32).map(|token| 39 - token).collect();
    let norms = [values.many(head_dim), values.many(head_dim)].map(|norm| tensor(&norm, &[head_dim], &device));
    for (dtype, style, normed) in [
        (KvDtype::F32, RopeStyle::Halves, false),
        (KvDtype::F16, RopeStyle::Interleaved, true),
        (KvDtype::Bf16, RopeStyle::Halves, true),
        (KvDtype::Fp8, RopeStyle::Halves, false),
    ] {
        let qkv = tensor(&values.many(tokens * 200), &[tokens, 200], &device);
        let ones = tensor(&vec![1.0; head_dim], &[head_dim], &device);
        let normed_values = normed && dtype == KvDtype::F16;
        let head_norms =
            HeadNorms { query: &norms[0], key: &norms[1], value: normed_values.then_some(&ones), eps: 1e-5 };
        let parts = QkvHeads { heads, kv_heads, head_dim, norms: normed.then_some(head_norms) };
        let sizes = [10, kv_heads, 4, head_dim];
        let mut layer = KvLayer::new(sizes, dtype, &device).expect("a small cache");
        let query = rope_and_write_kv(&qkv, parts, (&table, style, &positions), &mut layer, &slots).expect("fits");
        let part = |start: usize, heads: usize| {
            let part = qkv.narrow(1, start, heads * head_dim).and_then(|part| part.contiguous()).expect("in range");
            part.reshape((tokens, heads, head_dim)).expect("same elements")
        };
        let turned = |x: Tensor, heads: usize, norm: &Tensor| {
            let rows = x.reshape((tokens * heads, head_dim)).expect("same elements");
            let rows = if normed { rms_norm(&rows, norm, 1e-5).expect("sizes fit") } else { rows };
            let heads = rows.reshape((tokens, heads, head_dim)).expect("same elements");
            rope(&heads, &positions, &table, style).expect("sizes fit")
        };
        assert_same_bits(&flat(&query), &flat(&turned(part(0, 6), 6, &norms[0])), "query");
        let mut apart = KvLayer::new(sizes, dtype, &device).expect("a small cache");
        let key = turned(part(120, 2), 2, &norms[1]);
        let value = match normed_values {
            false => part(160, 2),
            true => {
                let rows = part(160, 2).reshape((tokens * 2, head_dim)).expect("same elements");
                let rows = rms_norm(&rows, &ones, 1e-5).expect("sizes fit");
                rows.reshape((tokens, 2, head_dim)).expect("same elements")
            }
        };
        write_kv(&mut apart, &key, &value, &slots).expect("fits");
        for (fused, apart) in [(&layer.k, &apart.k), (&layer.v, &apart.v)] {
            let wide = |x: &Tensor| flat(&x.to_dtype(DType::F32).expect("converts"));
            assert_same_bits(&wide(fused), &wide(apart), "cache");
            assert!(wide(fused).iter().filter(|value| **value != 0.0).count() > 1400, "the cache was written");
        }
        let want = if dtype == KvDtype::F32 { flat(&key) } else { rounded(dtype, &flat(&key)) };
        let first = flat(&layer.k.to_dtype(DType::F32).expect("converts"));
        // Of FP8 candle knows the codes only.
        let value = |held: &f32| if dtype == KvDtype::Fp8 { e4m3::value(*held as u8) } else { *held };
        let first: Vec<f32> = first.iter().map(value).collect();
        // Token 0 went into slot 39: block 9, offset 3.
        assert_same_bits(&first[(9 * 2 * 4 + 3) * head_dim..][..head_dim], &want[..head_dim], "first key");
    }
    let mut layer = KvLayer::new([10, 2, 4, 20], KvDtype::F16, &device).expect("a small cache");
    let qkv = Tensor::zeros((2, 200), DType::F32, &device).expect("fits");
    let parts = QkvHeads { heads, kv_heads, head_dim, norms: None };
    let mut run = |parts, positions: &[u32], slots: &[u32]| {
        rope_and_write_kv(&qkv, parts, (&table, RopeStyle::Halves, positions), &mut layer, slots)
    };
    assert_error(run(parts, &[0, 1], &[7, 7]), "two tokens have slot 7");
    assert_error(run(parts, &[0, 1], &[7, 40]), "slot 40 is outside");
    assert_error(run(parts, &[0, 64], &[7, 8]), "position 64 is past");
    assert_error(run(QkvHeads { heads: 5, ..parts }, &[0, 1], &[7, 8]), "qkv must be [2, 180]");
    assert_error(run(QkvHeads { kv_heads: 1, ..parts }, &[0, 1], &[7, 8]), "1 kv heads of 20 do not fit");
}

#[test]
fn all_heads_of_a_token_may_be_normed_together() {
    let device = Device::Cpu;
    let mut values = Values::new(22);
    let table = RopeTable::new(&[1.0, 0.3], 64, 1.0, &device).expect("a table");
    let qkv = tensor(&values.many(3 * 80), &[3, 80], &device);
    let (query, key) = (tensor(&values.many(40), &[40], &device), tensor(&values.many(20), &[20], &device));
    let norms = Some(HeadNorms { query: &query, key: &key, value: None, eps: 1e-5 });
    let parts = QkvHeads { heads: 4, kv_heads: 2, head_dim: 10, norms };
    let mut layer = KvLayer::new([1, 2, 4, 10], KvDtype::F32, &device).expect("a small cache");
    let (positions, slots) = ([5, 6, 7], [0, 1, 2]);
    let found = rope_and_write_kv(&qkv, parts, (&table, RopeStyle::Halves, &positions), &mut layer, &slots);
    let rows = qkv.narrow(1, 0, 40).and_then(|part| part.contiguous()).expect("in range");
    let rows = rms_norm(&rows, &query, 1e-5).expect("sizes fit").reshape((3, 4, 10)).expect("same elements");
    let want = rope(&rows, &positions, &table, RopeStyle::Halves).expect("sizes fit");
    assert_same_bits(&flat(&found.expect("sizes fit")), &flat(&want), "query");
    let norms = Some(HeadNorms { query: &query, key: &query, value: None, eps: 1e-5 });
    let wrong = QkvHeads { norms, ..parts };
    let run = rope_and_write_kv(&qkv, wrong, (&table, RopeStyle::Halves, &positions), &mut layer, &slots);
    assert_error(run, "key norm must be [10]");
}

#[test]
fn writes_reach_their_slots_and_no_others() {
    for device in devices() {
        let shape = AttentionShape { heads: 2, kv_heads: 2, head_dim: 20, block_size: 4 };
        let mut layer = KvLayer::new([5, 2, 4, 20], KvDtype::F32, &device).expect("a small cache");
        let shared = layer.k.clone();
        let mut values = Values::new(12);
        let (k, v) = (values.many(3 * 40), values.many(3 * 40));
        let slots = [19, 0, 6];
        let [k_tensor, v_tensor] = [&k, &v].map(|values| tensor(values, &[3, 2, 20], &device));
        write_kv(&mut layer, &k_tensor, &v_tensor, &slots).expect("slots are in range");
        for (got, written) in [(&layer.k, &k), (&layer.v, &v), (&shared, &k)] {
            let mut want = vec![0.0; 5 * 2 * 4 * 20];
            reference::write_kv(&mut want, shape, written, &slots);
            assert_same_bits(&flat(got), &want, "cache");
        }
    }
}

#[test]
fn wrong_writes_are_refused_and_change_nothing() {
    for device in devices() {
        let mut layer = KvLayer::new([2, 1, 4, 3], KvDtype::F32, &device).expect("a small cache");
        let ones = |dims: &[usize]| Tensor::ones(dims, DType::F32, &device).expect("fits");
        let (good, wide) = (ones(&[1, 1, 3]), ones(&[1, 1, 4]));
        assert_error(write_kv(&mut layer, &good, &good, &[8]), "slot 8 is outside the cache of 8 slots");
        assert_error(write_kv(&mut layer, &wide, &good, &[0]), "k must be [1, 1, 3]");
        assert_error(write_kv(&mut layer, &good, &wide, &[0]), "v must be [1, 1, 3]");
        let halves = good.to_dtype(DType::F16).expect("converts");
        assert_error(write_kv(&mut layer, &good, &halves, &[0]), "f32");
        let own = layer.k.clone().reshape((8, 1, 3)).expect("same elements");
        let slots = [0, 1, 2, 3, 4, 5, 6, 7];
        let eight = ones(&[8, 1, 3]);
        assert_error(write_kv(&mut layer, &eight, &own, &slots), "the cache itself");
        assert!(flat(&layer.k).iter().chain(&flat(&layer.v)).all(|value| *value == 0.0));
    }
    assert_error(KvLayer::new([0, 1, 4, 3], KvDtype::F16, &Device::Cpu), "no usable size");
    assert_error(KvLayer::new([usize::MAX, 8, 16, 64], KvDtype::F16, &Device::Cpu), "no usable size");
}

/// Arrays of large caches start at different places of their pages.
#[test]
fn a_large_cache_holds_what_a_small_one_does() {
    let (device, mut values) = (Device::Cpu, Values::new(5));
    let (kv_heads, block_size, head_dim, tokens) = (2, 16, 20, 5);
    let blocks = (32 << 20) / (kv_heads * block_size * head_dim) + 1;
    let own = |_| tensor(&values.many(tokens * kv_heads * head_dim), &[tokens, kv_heads, head_dim], &device);
    let [k, v] = [0, 1].map(own);
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16, KvDtype::Fp8] {
        let mut starts = Vec::new();
        let mut small = KvLayer::new([1, kv_heads, block_size, head_dim], dtype, &device).expect("a small cache");
        write_kv(&mut small, &k, &v, &[0, 1, 2, 3, 15]).expect("fits");
        for _ in 0..3 {
            let mut large = KvLayer::new([blocks, kv_heads, block_size, head_dim], dtype, &device).expect("a cache");
            let last = ((blocks - 1) * block_size) as u32;
            write_kv(&mut large, &k, &v, &[last, last + 1, last + 2, last + 3, last + 15]).expect("fits");
            for (large, small) in [(&large.k, &small.k), (&large.v, &small.v)] {
                assert_eq!(large.dims(), [blocks, kv_heads, block_size, head_dim]);
                starts.push(large.layout().start_offset());
                let wide = |x: &Tensor| flat(&x.contiguous().and_then(|x| x.to_dtype(DType::F32)).expect("converts"));
                let block = |index| large.narrow(0, index, 1).expect("a block");
                assert_same_bits(&wide(&block(blocks - 1)), &wide(small), "last block");
                assert!(wide(&block(0)).iter().all(|value| *value == 0.0), "{dtype:?}: nothing else is written");
            }
        }
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), 6, "{dtype:?}: {starts:?}");
    }
}
