//! A mixture of experts: choice, order, products, gate and sum, against plain loops.

use sconce_cuda::ops::activate::{Gate, Gated};
use sconce_cuda::ops::experts::{ExpertGemm, Fp8ExpertGemm, QuantExpertGemm, Source};
use sconce_cuda::ops::fp8::Fp8Weight;
use sconce_cuda::ops::quant::{QuantType, QuantWeight, QuantisedRows};
use sconce_cuda::ops::routes::{ExpertGroups, Routes, Routing, Scores, Scoring};
use sconce_cuda::{Device, ElementType, Graph};

use crate::matvec::{download, tolerance, upload};
use crate::quant::{blocks, plain, product, rounded};
use crate::{distance, noise, on_each_device};

const NONE: u32 = u32::MAX;

const PLAIN: Routing =
    Routing { experts: 8, per_token: 2, scoring: Scoring::Softmax, normalised: true, scale: 1.0, groups: None };

/// Best first, ties by the lowest index, NaN never.
fn top_k(values: &[f32], k: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..values.len()).filter(|at| !values[*at].is_nan()).collect();
    all.sort_by(|a, b| values[*b].partial_cmp(&values[*a]).unwrap());
    all.truncate(k);
    all
}

/// A token's experts in ascending order with their shares.
fn choose(scores: &[f32], correction: Option<&[f32]>, routing: &Routing) -> Vec<(u32, f32)> {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |score: f32| match routing.scoring {
        Scoring::Softmax => (score - largest).exp(),
        Scoring::Sigmoid => 1.0 / (1.0 + (-score).exp()),
    };
    let all: f32 = match routing.scoring {
        Scoring::Softmax => scores.iter().map(|score| weight(*score)).sum(),
        Scoring::Sigmoid => 1.0,
    };
    let mut ranks: Vec<f32> = match correction {
        None => scores.to_vec(),
        Some(correction) => scores.iter().zip(correction).map(|(score, add)| weight(*score) / all + add).collect(),
    };
    if let Some(groups) = routing.groups {
        let size = routing.experts / groups.count;
        let of_groups: Vec<f32> = ranks
            .chunks_exact(size)
            .map(|group| {
                let best: Vec<f32> = top_k(group, 2).iter().map(|at| group[*at]).collect();
                if groups.by_best_two { best.iter().sum() } else { best[0] }
            })
            .collect();
        let kept = top_k(&of_groups, groups.used);
        for (group, ranks) in ranks.chunks_exact_mut(size).enumerate() {
            if !kept.contains(&group) {
                ranks.fill(f32::NEG_INFINITY);
            }
        }
    }
    let best = top_k(&ranks, routing.per_token);
    let total: f32 = if routing.normalised { best.iter().map(|at| weight(scores[*at])).sum() } else { all };
    let mut found: Vec<(u32, f32)> = best
        .iter()
        .map(|at| (*at as u32, weight(scores[*at]) / total.max(f32::MIN_POSITIVE) * routing.scale))
        .collect();
    found.sort_by_key(|(expert, _)| *expert);
    found
}

fn read<T: sconce_cuda::Element + Default>(device: &Device, from: sconce_cuda::Slice) -> Vec<T> {
    let mut pinned = device.pinned(from.len() * 4).unwrap();
    pinned.receive(from).unwrap();
    device.synchronize().unwrap();
    let mut values = vec![T::default(); from.len()];
    let buffer = device.alloc(from.len(), T::TYPE).unwrap();
    pinned.send(buffer.all(), from.len() * 4).unwrap();
    buffer.read(0, &mut values).unwrap();
    values
}

fn check_choice(device: &Device, routing: &Routing, tokens: usize, is_corrected: bool) {
    let Routing { experts, per_token, .. } = *routing;
    let mut scores: Vec<f32> = noise(11, tokens * experts).iter().map(|score| score * 4.0).collect();
    // Ties, numbers that are none, and a token that is not there.
    scores[1] = scores[0];
    scores[experts - 1] = f32::NAN;
    scores[experts] = f32::NEG_INFINITY;
    let mut slots: Vec<u32> = (0..tokens as u32).collect();
    slots[tokens - 1] = NONE;
    let correction: Vec<f32> = noise(12, experts);
    let scores_there = device.upload(&scores).unwrap();
    let slots_there = device.upload(&slots).unwrap();
    let correction_there = device.upload(&correction).unwrap();
    let room = device.alloc(routing.room_len(tokens), ElementType::U32).unwrap();
    let said = Scores {
        scores: scores_there.all(),
        correction: is_corrected.then(|| correction_there.all()),
        slots: Some(slots_there.all()),
        tokens,
    };
    let routes = Routes::choose(device, &said, routing, room.all()).unwrap();
    let (ids, shares): (Vec<u32>, Vec<f32>) = (read(device, routes.ids), read(device, routes.shares));
    for token in 0..tokens {
        let wanted = match slots[token] {
            NONE => Vec::new(),
            _ => choose(&scores[token * experts..][..experts], is_corrected.then_some(&correction[..]), routing),
        };
        for at in 0..per_token {
            let (id, share) = (ids[token * per_token + at], shares[token * per_token + at]);
            let (wanted_id, wanted_share) = wanted.get(at).copied().unwrap_or((NONE, 0.0));
            assert_eq!(id, wanted_id, "{routing:?} token {token}: {:?}", &ids[token * per_token..][..per_token]);
            // A NaN among the scores of a softmax makes its shares NaN on the CPU, too.
            let is_near = (share - wanted_share).abs() < 1e-5 * wanted_share.abs().max(1e-3);
            assert!(is_near || (share.is_nan() && wanted_share.is_nan()), "{share} for {wanted_share}: {routing:?}");
        }
    }
    let mut sorted: Vec<u32> = (0..ids.len() as u32).filter(|route| ids[*route as usize] != NONE).collect();
    sorted.sort_by_key(|route| (ids[*route as usize], *route));
    assert_eq!(read::<u32>(device, routes.tiles.order)[..sorted.len()], sorted, "{routing:?}");
}

#[test]
fn experts_are_chosen_and_sorted() {
    let groups = |count, used, by_best_two| Some(ExpertGroups { count, used, by_best_two });
    on_each_device(|device| {
        check_choice(device, &PLAIN, 5, false);
        check_choice(device, &Routing { normalised: false, scale: 2.5, ..PLAIN }, 1 + 70, true);
        let deep = Routing { experts: 64, per_token: 6, scoring: Scoring::Sigmoid, ..PLAIN };
        check_choice(device, &deep, 9, true);
        check_choice(device, &Routing { groups: groups(8, 3, true), ..deep }, 9, true);
        check_choice(device, &Routing { groups: groups(4, 2, false), scale: 0.5, ..deep }, 90, false);
        check_choice(device, &Routing { experts: 7, per_token: 7, normalised: false, ..PLAIN }, 4, false);
    });
}

#[test]
fn too_many_experts_are_refused() {
    on_each_device(|device| {
        let memory = device.zeros(64, ElementType::F32).unwrap();
        let room = device.zeros(64, ElementType::U32).unwrap();
        let said = Scores { scores: memory.all(), correction: None, slots: None, tokens: 1 };
        for routing in [
            Routing { experts: 1025, ..PLAIN },
            Routing { per_token: 9, ..PLAIN },
            Routing { groups: Some(ExpertGroups { count: 8, used: 1, by_best_two: false }), ..PLAIN },
        ] {
            assert!(Routes::choose(device, &said, &routing, room.all()).is_err(), "{routing:?}");
        }
    });
}

/// Routes of `tokens` by noise, the first token padded. The ids with them.
fn routes<'a>(
    device: &Device,
    room: &'a sconce_cuda::Buffer,
    routing: &Routing,
    tokens: usize,
) -> (Routes<'a>, Vec<u32>) {
    let scores = device.upload(&noise(21, tokens * routing.experts)).unwrap();
    let mut slots = vec![0; tokens];
    slots[0] = NONE;
    let slots = device.upload(&slots).unwrap();
    let said = Scores { scores: scores.all(), correction: None, slots: Some(slots.all()), tokens };
    let routes = Routes::choose(device, &said, routing, room.all()).unwrap();
    let ids = read(device, routes.ids);
    (routes, ids)
}

struct Case {
    ty: ElementType,
    out: ElementType,
    tokens: usize,
    n: usize,
    k: usize,
    source: Source,
}

/// What the products should be: `[routes, n]`, zeros for routes that do not exist. x and w are `[rows, k]`, `[experts, n, k]`.
fn wanted(ids: &[u32], divide: usize, (x, w, bias): (&[f32], &[f32], &[f32]), (n, k): (usize, usize)) -> Vec<f32> {
    let mut y = vec![0.0; ids.len() * n];
    for (route, id) in ids.iter().enumerate().filter(|(_, id)| **id != NONE) {
        let (x, w) = (&x[route / divide * k..][..k], &w[*id as usize * n * k..][..n * k]);
        let sums = product(x, w, (1, n, k));
        for (at, sum) in sums.iter().enumerate() {
            y[route * n + at] = sum + bias[*id as usize * n + at];
        }
    }
    y
}

/// Compares where a route exists, and sees that nothing else was written.
fn compare(found: &[f32], wanted: &[f32], ids: &[u32], n: usize, allowed: f64, what: &str) {
    for (found, id) in found.chunks_exact(n).zip(ids) {
        assert!(*id != NONE || found.iter().all(|value| value.is_nan()), "{what}: a route that does not exist");
    }
    let found: Vec<f32> = found.iter().map(|value| if value.is_nan() { 0.0 } else { *value }).collect();
    let apart = distance(&found, wanted);
    assert!(apart < allowed, "{what}: {apart}");
}

fn check_product(device: &Device, case: &Case) {
    let Case { ty, out, tokens, n, k, source } = *case;
    let room = device.alloc(PLAIN.room_len(tokens), ElementType::U32).unwrap();
    let (routes, ids) = routes(device, &room, &PLAIN, tokens);
    let divide = if source == Source::Token { PLAIN.per_token } else { 1 };
    let (x_there, x) = upload(device, ty, &noise(31, ids.len() / divide * k));
    let (w_there, w) = upload(device, ty, &noise(32, PLAIN.experts * n * k));
    let bias = noise(33, PLAIN.experts * n);
    let bias_there = device.upload(&bias).unwrap();
    let y = device.alloc(ids.len() * n, out).unwrap();
    let gemm =
        ExpertGemm { x: x_there.all(), w: w_there.all(), bias: Some(bias_there.all()), y: y.all(), n, k, source };
    gemm.on(device, &routes.tiles).unwrap();
    let wanted = wanted(&ids, divide, (&x, &w, &bias), (n, k));
    let what = format!("{ty:?} to {out:?}, {tokens} tokens, [{n}, {k}] {source:?}");
    compare(&download(&y, out), &wanted, &ids, n, tolerance(out), &what);
}

#[test]
fn products_of_plain_experts() {
    use ElementType::{Bf16, F16, F32};
    on_each_device(|device| {
        for (ty, out) in [(F32, F32), (F16, F16), (Bf16, F32)] {
            // Tiles of 8, tiles of 64 with one expert's routes in two, and sizes that no 16 bytes divide.
            for (tokens, n, k) in [(3, 17, 48), (40, 33, 136), (280, 70, 200), (5, 6, 35), (100, 5, 20)] {
                // The stand-in takes seconds for plain loops over many routes.
                if ty != F32 || tokens < 100 {
                    check_product(device, &Case { ty, out, tokens, n, k, source: Source::Token });
                }
            }
            check_product(device, &Case { ty, out, tokens: 9, n: 20, k: 64, source: Source::Route });
            check_product(device, &Case { ty, out, tokens: 70, n: 20, k: 64, source: Source::Route });
        }
    });
}

#[test]
fn products_of_quantised_experts() {
    on_each_device(|device| {
        for ty in QuantType::ALL {
            let k = if ty.block_elements() == 32 { 160 } else { 512 };
            for (tokens, n, source) in [(4, 21, Source::Token), (72, 16, Source::Route)] {
                let room = device.alloc(PLAIN.room_len(tokens), ElementType::U32).unwrap();
                let (routes, ids) = routes(device, &room, &PLAIN, tokens);
                let divide = if source == Source::Token { PLAIN.per_token } else { 1 };
                let rows = ids.len() / divide;
                let bytes: Vec<Vec<u8>> = (0..PLAIN.experts as u64).map(|at| blocks(ty, 40 + at, n, k)).collect();
                let matrices: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
                let weight = QuantWeight::upload_all(device, ty, &matrices, n, k).unwrap();
                let w: Vec<f32> = bytes.iter().flat_map(|bytes| plain(ty, bytes, n, k)).collect();
                let (x_there, x) = upload(device, ElementType::Bf16, &noise(50, rows * k));
                let bias = noise(51, PLAIN.experts * n);
                let bias_there = device.upload(&bias).unwrap();
                let memory = device.alloc(QuantisedRows::bytes(rows, k), ElementType::U8).unwrap();
                let quantised = QuantisedRows::new(device, x_there.all(), (rows, k), memory.all()).unwrap();
                let y = device.alloc(ids.len() * n, ElementType::F32).unwrap();
                let bias_there = Some(bias_there.all());
                let gemm = QuantExpertGemm { rows: quantised, w: &weight, bias: bias_there, y: y.all(), source };
                gemm.on(device, &routes.tiles).unwrap();
                let wanted = wanted(&ids, divide, (&rounded(&x), &w, &bias), (n, k));
                compare(&y.to_vec().unwrap(), &wanted, &ids, n, 5e-6, &format!("{ty:?}, {tokens} tokens"));
            }
        }
    });
}

#[test]
fn products_of_fp8_experts() {
    use ElementType::{Bf16, F16, F32};
    on_each_device(|device| {
        // Tiles of 8 and of 64 routes, parts that end within a step, a scale a row, a block and a matrix.
        for (ty, out, tokens, (n, k), block, source) in [
            (Bf16, F32, 4, (21, 272), (1, 272), Source::Token),
            (F16, F16, 5, (40, 400), (16, 128), Source::Route),
            (Bf16, Bf16, 72, (33, 160), (33, 160), Source::Route),
            (Bf16, F32, 280, (18, 144), (16, 128), Source::Token),
        ] {
            let room = device.alloc(PLAIN.room_len(tokens), ElementType::U32).unwrap();
            let (routes, ids) = routes(device, &room, &PLAIN, tokens);
            let divide = if source == Source::Token { PLAIN.per_token } else { 1 };
            let all: Vec<_> =
                (0..PLAIN.experts as u64).map(|at| crate::fp8::weight(80 + 2 * at, (n, k), block)).collect();
            let matrices: Vec<(&[u8], &[f32])> =
                all.iter().map(|(bytes, scales, _)| (&bytes[..], &scales[..])).collect();
            let weight = Fp8Weight::upload_all(device, &matrices, (n, k), block).unwrap();
            let w: Vec<f32> = all.iter().flat_map(|(_, _, plain)| plain.clone()).collect();
            let (x_there, x) = upload(device, ty, &noise(50, ids.len() / divide * k));
            let bias = noise(51, PLAIN.experts * n);
            let bias_there = device.upload(&bias).unwrap();
            let y = device.alloc(ids.len() * n, out).unwrap();
            let bias_there = Some(bias_there.all());
            let gemm = Fp8ExpertGemm { x: x_there.all(), w: &weight, bias: bias_there, y: y.all(), source };
            gemm.on(device, &routes.tiles).unwrap();
            let wanted = wanted(&ids, divide, (&x, &w, &bias), (n, k));
            compare(&download(&y, out), &wanted, &ids, n, tolerance(out), &format!("{ty:?}, {tokens} tokens"));
        }
        let thin = Fp8Weight::upload(device, &[0; 96], &[1.0; 3], (1, 96), (1, 32)).unwrap();
        assert!(thin.count() == 1 && !Fp8Weight::is_multiplied_directly(96, (1, 32)));
    });
}

/// Shares on what goes in, and none on what comes out.
#[test]
fn inputs_of_experts_are_scaled() {
    on_each_device(|device| {
        let (tokens, width) = (5, 300);
        let room = device.alloc(PLAIN.room_len(tokens), ElementType::U32).unwrap();
        let (routes, ids) = routes(device, &room, &PLAIN, tokens);
        let shares: Vec<f32> = read(device, routes.shares);
        for ty in [ElementType::F32, ElementType::Bf16] {
            let (x_there, x) = upload(device, ty, &noise(90, tokens * width));
            let y = device.alloc(ids.len() * width, ty).unwrap();
            let scaled = routes.scale_input(device, x_there.all(), y.all(), width).unwrap();
            let mut wanted = vec![0.0_f32; ids.len() * width];
            for route in (0..ids.len()).filter(|route| ids[*route] != NONE) {
                let from = &x[route / PLAIN.per_token * width..][..width];
                wanted[route * width..][..width].iter_mut().zip(from).for_each(|(y, x)| *y = shares[route] * x);
            }
            compare(&download(&y, ty), &wanted, &ids, width, tolerance(ty), &format!("{ty:?}"));
            let sum = device.zeros(tokens * width, ElementType::F32).unwrap();
            scaled.combine(device, y.all(), sum.all(), width, false).unwrap();
            let added: Vec<f32> = (0..tokens * width)
                .map(|at| {
                    (0..PLAIN.per_token).map(|j| wanted[(at / width * PLAIN.per_token + j) * width + at % width]).sum()
                })
                .collect();
            let apart = distance(&sum.to_vec().unwrap(), &added);
            assert!(apart < tolerance(ty), "{ty:?}: {apart}");
        }
    });
}

fn silu_mul(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

/// A whole block by one graph, as a decoder would have it: its own input again for other scores.
#[test]
fn a_block_of_experts_by_a_graph() {
    on_each_device(|device| {
        let (tokens, hidden, ffn, ty) = (6, 40, 24, ElementType::Bf16);
        let Routing { experts, per_token, .. } = PLAIN;
        let routes_len = tokens * per_token;
        let (x_there, x) = upload(device, ty, &noise(61, tokens * hidden));
        let (gate_up_there, gate_up) = upload(device, ty, &noise(62, experts * 2 * ffn * hidden));
        let (down_there, down) = upload(device, ty, &noise(63, experts * hidden * ffn));
        let scores_there = device.zeros(tokens * experts, ElementType::F32).unwrap();
        let room = device.alloc(PLAIN.room_len(tokens), ElementType::U32).unwrap();
        let both = device.alloc(routes_len * 2 * ffn, ty).unwrap();
        let act = device.alloc(routes_len * ffn, ty).unwrap();
        let out = device.alloc(routes_len * hidden, ElementType::F32).unwrap();
        let sum = device.zeros(tokens * hidden, ElementType::F32).unwrap();
        let graph = Graph::record(device, || {
            let said = Scores { scores: scores_there.all(), correction: None, slots: None, tokens };
            let routes = Routes::choose(device, &said, &PLAIN, room.all())?;
            let (x, w, y) = (x_there.all(), gate_up_there.all(), both.all());
            ExpertGemm { x, w, bias: None, y, n: 2 * ffn, k: hidden, source: Source::Token }
                .on(device, &routes.tiles)?;
            let (x, y, rows) = (both.all(), act.all(), routes.len());
            Gated { gate: Gate::Silu, x, bias: None, y, rows, width: ffn }.on(device)?;
            let (x, w, y) = (act.all(), down_there.all(), out.all());
            ExpertGemm { x, w, bias: None, y, n: hidden, k: ffn, source: Source::Route }.on(device, &routes.tiles)?;
            routes.combine(device, out.all(), sum.all(), hidden, true)
        })
        .unwrap();
        let mut wanted = vec![0.0_f32; tokens * hidden];
        for seed in [71, 72] {
            let scores = noise(seed, tokens * experts);
            scores_there.write(0, &scores).unwrap();
            graph.launch().unwrap();
            for token in 0..tokens {
                for (expert, share) in choose(&scores[token * experts..][..experts], None, &PLAIN) {
                    let w = &gate_up[expert as usize * 2 * ffn * hidden..][..2 * ffn * hidden];
                    let both = product(&x[token * hidden..][..hidden], w, (1, 2 * ffn, hidden));
                    let act: Vec<f32> =
                        (0..ffn).map(|at| silu_mul(f64::from(both[at]), f64::from(both[ffn + at])) as f32).collect();
                    let y = product(&act, &down[expert as usize * hidden * ffn..][..hidden * ffn], (1, hidden, ffn));
                    for (wanted, y) in wanted[token * hidden..][..hidden].iter_mut().zip(y) {
                        *wanted += share * y;
                    }
                }
            }
        }
        let apart = distance(&sum.to_vec().unwrap(), &wanted);
        assert!(apart < 1e-2, "{apart}");
    });
}
