//! Sampling on the device against a plain reference in the CPU sampler's order: lists, cuts, the draw, log probabilities.

use sconce_cuda::ops::sample::{
    Choice, RowWishes, SCORE_WORDS, SampleInput, SampleRows, Status, TOP_MAX, workspace_words,
};
use sconce_cuda::{Device, ElementType};

use crate::{noise, on_each_device};
use ElementType::{F32, U32};

const WORDS_MAX: usize = 20_000;
/// What padding holds; it must still be there afterwards.
const UNTOUCHED: u32 = 0xdead_beef;

struct Scores {
    logprob: f32,
    rank: u32,
    top: Vec<(u32, f32)>,
}

struct Sampled {
    token: u32,
    status: Status,
    detail: u32,
    scores: Scores,
    /// Afterwards.
    logits: Vec<f32>,
}

/// Samples rows of one vocabulary, with a row of padding behind them.
fn sample(device: &Device, rows: &[(Vec<f32>, RowWishes)]) -> Vec<Sampled> {
    let vocab = rows[0].0.len();
    let padded = rows.len() + 1;
    let mut input = SampleInput::new(WORDS_MAX);
    input.begin(padded, vocab).unwrap();
    let mut values = Vec::new();
    for (logits, wishes) in rows {
        assert!(input.push(wishes), "{wishes:?}");
        values.extend_from_slice(logits);
    }
    values.resize(padded * vocab, f32::NAN);
    let logits = device.upload(&values).unwrap();
    let input_there = device.zeros(WORDS_MAX, U32).unwrap();
    input_there.write(0, input.words()).unwrap();
    let workspace = device.alloc(workspace_words(padded, vocab, WORDS_MAX), U32).unwrap();
    let chosen = device.upload(&vec![UNTOUCHED; 3 * padded]).unwrap();
    let scores = device.upload(&vec![UNTOUCHED; padded * SCORE_WORDS]).unwrap();
    let launch = SampleRows {
        input: input_there.all(),
        logits: logits.all(),
        workspace: workspace.all(),
        chosen: chosen.all(),
        scores: scores.all(),
    };
    launch.on(device, &input).unwrap();
    let (chosen, scores) = (chosen.to_vec::<u32>().unwrap(), scores.to_vec::<u32>().unwrap());
    let logits = logits.to_vec::<f32>().unwrap();
    for part in 0..3 {
        assert_eq!(chosen[(part + 1) * padded - 1], UNTOUCHED, "padding is not touched");
    }
    assert!(scores[rows.len() * SCORE_WORDS..].iter().all(|word| *word == UNTOUCHED));
    let one = |row: usize| {
        let words = &scores[row * SCORE_WORDS..][..SCORE_WORDS];
        let count = if words[0] == UNTOUCHED { 0 } else { words[2] as usize };
        let top = (0..count).map(|at| (words[4 + at], f32::from_bits(words[4 + TOP_MAX + at]))).collect();
        Sampled {
            token: chosen[row],
            status: Status::of(chosen[padded + row]),
            detail: chosen[2 * padded + row],
            scores: Scores { logprob: f32::from_bits(words[0]), rank: words[1], top },
            logits: logits[row * vocab..][..vocab].to_vec(),
        }
    };
    (0..rows.len()).map(one).collect()
}

/// Mask, forbidden ids, bias, penalties.
fn adjusted(logits: &[f32], wishes: &RowWishes) -> (Vec<f32>, Vec<f32>) {
    let mut raw = logits.to_vec();
    if let Some(mask) = wishes.mask {
        for (id, logit) in raw.iter_mut().enumerate() {
            if mask.get(id / 32).is_none_or(|word| word >> (id % 32) & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    let mut out = raw.clone();
    for id in wishes.forbidden {
        out[*id as usize] = f32::NEG_INFINITY;
    }
    for (id, bias) in wishes.bias {
        out[*id as usize] += bias;
    }
    for (id, count) in wishes.seen {
        let logit = &mut out[*id as usize];
        let (by, over) = (wishes.repetition_penalty, *logit > 0.0);
        *logit = (if over { *logit / by } else { *logit * by }).min(f32::MAX);
        if *count > 0 {
            *logit -= wishes.frequency_penalty * *count as f32 + wishes.presence_penalty;
        }
    }
    (raw, out)
}

/// The token, unless the draw or top-p falls so close to an edge that rounding decides.
fn reference(logits: &[f32], wishes: &RowWishes) -> Option<u32> {
    let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if wishes.temperature <= 0.0 {
        return logits.iter().position(|logit| *logit == peak).map(|id| id as u32);
    }
    let floor = if wishes.min_p > 0.0 { wishes.min_p.ln() } else { f32::NEG_INFINITY };
    let exponents = logits.iter().map(|logit| (logit - peak) / wishes.temperature).enumerate();
    let mut candidates: Vec<(u32, f32)> =
        exponents.filter(|(_, e)| *e >= floor && *e > f32::NEG_INFINITY).map(|(id, e)| (id as u32, e)).collect();
    let mut edge = false;
    let cuts = (wishes.top_k > 0 && (wishes.top_k as usize) < logits.len()) || wishes.top_p < 1.0;
    if cuts {
        candidates.sort_by(|left, right| right.1.partial_cmp(&left.1).unwrap().then(left.0.cmp(&right.0)));
        if wishes.top_k > 0 {
            candidates.truncate(wishes.top_k as usize);
        }
    }
    let mut weights: Vec<(u32, f64)> = candidates.iter().map(|(id, e)| (*id, f64::from(e.exp()))).collect();
    let near = |left: f64, right: f64, total: f64| (left - right).abs() < 1e-6 * total;
    if wishes.top_p < 1.0 {
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let (wanted, mut mass) = (f64::from(wishes.top_p) * total, 0.0);
        let kept = weights.iter().position(|(_, weight)| {
            edge |= near(mass, wanted, total) && mass > 0.0;
            mass += weight;
            mass >= wanted
        });
        edge |= near(mass, wanted, total);
        weights.truncate(kept.map_or(weights.len(), |last| last + 1));
    }
    let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
    let (target, mut mass) = (wishes.uniform * total, 0.0);
    for (id, weight) in &weights {
        let before = mass;
        mass += weight;
        if mass > target {
            edge |= (near(before, target, total) && before > 0.0) || near(mass, target, total);
            return (!edge).then_some(*id);
        }
    }
    None
}

/// Compares tokens; returns how many could be compared.
fn compare(device: &Device, rows: &[(Vec<f32>, RowWishes)]) -> usize {
    let mut compared = 0;
    for (sampled, (logits, wishes)) in sample(device, rows).iter().zip(rows) {
        assert_eq!(sampled.status, Status::Done, "{wishes:?}");
        if let Some(token) = reference(&adjusted(logits, wishes).1, wishes) {
            assert_eq!(sampled.token, token, "{wishes:?}");
            compared += 1;
        }
    }
    compared
}

fn logits(seed: u64, vocab: usize, span: f32) -> Vec<f32> {
    noise(seed, vocab).iter().map(|x| x * span).collect()
}

/// The same numbers on each run, in [0, 1).
fn uniforms(seed: u64, count: usize) -> Vec<f64> {
    noise(seed + 777, count).iter().map(|x| (f64::from(*x) + 1.0) / 2.0 * (1.0 - 1e-9)).collect()
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_tells_what_is_unsound() {
    on_each_device(|device| {
        for vocab in [3, 4096, 9001] {
            let base = logits(vocab as u64, vocab, 5.0);
            let with = |changes: &[(usize, f32)]| {
                let mut row = base.clone();
                changes.iter().for_each(|(id, value)| row[*id] = *value);
                row
            };
            let last = vocab - 1;
            let nothing = vec![f32::NEG_INFINITY; vocab];
            let rows = [
                (with(&[]), Status::Done, None),
                (with(&[(last, 9.0), (1, 9.0)]), Status::Done, Some(1)),
                (with(&[(last, 9.0)]), Status::Done, Some(last)),
                (with(&[(0, f32::NEG_INFINITY), (last, 0.0)]), Status::Done, None),
                (with(&[(last, f32::NAN), (2, f32::INFINITY)]), Status::NotFinite, Some(2)),
                (with(&[(last, f32::NAN)]), Status::NotFinite, Some(last)),
                (nothing, Status::NothingLeft, None),
            ];
            let wanted: Vec<_> = rows.iter().map(|(row, ..)| (row.clone(), RowWishes::GREEDY)).collect();
            for (case, (sampled, (row, status, id))) in sample(device, &wanted).iter().zip(&rows).enumerate() {
                assert_eq!(sampled.status, *status, "{case}");
                match status {
                    Status::Done => {
                        let id = id.map(|id| id as u32).or_else(|| reference(row, &RowWishes::GREEDY));
                        assert_eq!(Some(sampled.token), id, "{case}");
                    }
                    Status::NotFinite => assert_eq!(Some(sampled.detail as usize), *id, "{case}"),
                    Status::NothingLeft => {}
                }
            }
        }
        // Zero and minus zero are equal.
        let row = vec![-1.0, -0.0, 0.0];
        assert_eq!(sample(device, &[(row, RowWishes::GREEDY)])[0].token, 1);
    });
}

#[test]
fn draws_are_those_of_the_reference() {
    on_each_device(|device| {
        let base = RowWishes { temperature: 1.0, ..RowWishes::GREEDY };
        let cases = [
            base,
            RowWishes { temperature: 0.3, ..base },
            RowWishes { min_p: 0.1, ..base },
            RowWishes { top_k: 1, ..base },
            RowWishes { top_k: 40, ..base },
            RowWishes { top_k: 100_000, ..base },
            RowWishes { top_p: 0.9, ..base },
            RowWishes { top_p: 0.0, ..base },
            RowWishes { temperature: 1.7, top_k: 300, top_p: 0.8, min_p: 0.01, ..base },
            RowWishes { temperature: 1e-40, top_p: 0.9, ..base },
        ];
        let mut compared = 0;
        for (vocab, span, draws) in [(4500, 9.0, 6), (700, 3.0, 8)] {
            for (seed, case) in cases.iter().enumerate() {
                let row = logits(seed as u64 + 5, vocab, span);
                let rows: Vec<_> = uniforms(seed as u64, draws)
                    .into_iter()
                    .map(|uniform| (row.clone(), RowWishes { uniform, ..*case }))
                    .collect();
                compared += compare(device, &rows);
            }
        }
        assert!(compared > 130, "{compared} of 140");
    });
}

#[test]
fn the_ends_of_the_uniform_range_are_the_ends_of_the_distribution() {
    on_each_device(|device| {
        let row = vec![0.0, 3.0, 2.0, 1.0];
        let base = RowWishes { temperature: 1.0, ..RowWishes::GREEDY };
        let last = 1.0 - f64::EPSILON;
        let cases = [(3, 0.0, 1), (3, last, 3), (0, 0.0, 0), (0, last, 3)];
        let rows: Vec<_> = cases
            .iter()
            .map(|(top_k, uniform, _)| (row.clone(), RowWishes { top_k: *top_k, uniform: *uniform, ..base }))
            .collect();
        for (sampled, (top_k, uniform, expected)) in sample(device, &rows).iter().zip(cases) {
            assert_eq!(sampled.token, expected, "top-k {top_k} at {uniform}");
        }
    });
}

#[test]
fn flat_rows_whose_candidates_do_not_fit_the_shared_memory() {
    on_each_device(|device| {
        let base = RowWishes { temperature: 1.0, ..RowWishes::GREEDY };
        let mut compared = 0;
        for span in [0.0, 0.001, 2.0] {
            let row = logits(3, 5000, span);
            for case in [RowWishes { top_p: 0.93, ..base }, RowWishes { top_k: 3001, top_p: 0.99, ..base }] {
                let rows: Vec<_> =
                    uniforms(11, 3).into_iter().map(|uniform| (row.clone(), RowWishes { uniform, ..case })).collect();
                compared += compare(device, &rows);
            }
        }
        assert!(compared >= 15, "{compared} of 18");
    });
}

#[test]
fn masks_forbidden_ids_bias_and_penalties() {
    on_each_device(|device| {
        let vocab = 4200;
        let row = logits(8, vocab, 4.0);
        let best = reference(&row, &RowWishes::GREEDY).unwrap();
        let mask: Vec<u32> = (0..100).map(|word: u32| word.wrapping_mul(0x9e37_79b9)).collect();
        let seen: Vec<(u32, u32)> = (0..300).map(|at| (at * 14, at % 4)).chain([(best | 1, 2)]).collect();
        let seen = seen.into_iter().fold(Vec::new(), |mut unique: Vec<(u32, u32)>, entry| {
            if unique.iter().all(|(id, _)| *id != entry.0) {
                unique.push(entry);
            }
            unique
        });
        let bias = [(7, 3.5), (best, -2.0), (4199, 7.5), (7, 1.0)];
        let forbidden = [best, 14, 4199];
        let greedy = RowWishes::GREEDY;
        let penalties = RowWishes { repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.25, ..greedy };
        let cases = [
            RowWishes { mask: Some(&mask), ..greedy },
            RowWishes { forbidden: &forbidden, ..greedy },
            RowWishes { bias: &bias, ..greedy },
            RowWishes { seen: &seen, ..penalties },
            RowWishes { mask: Some(&mask), forbidden: &forbidden, bias: &bias, seen: &seen, ..penalties },
        ];
        let mut rows = Vec::new();
        for case in cases {
            rows.push((row.clone(), case));
            let drawn = RowWishes { temperature: 0.7, ..case };
            for uniform in uniforms(21, 2) {
                rows.push((row.clone(), RowWishes { uniform, ..drawn }));
                rows.push((row.clone(), RowWishes { uniform, top_p: 0.8, logprobs: Some(0), ..drawn }));
            }
        }
        assert!(compare(device, &rows) >= rows.len() - 2);
        for (sampled, (row, wishes)) in sample(device, &rows).iter().zip(&rows) {
            let (raw, changed) = adjusted(row, wishes);
            let expected = if wishes.logprobs.is_some() { raw } else { changed };
            let close = |(left, right): (&f32, &f32)| left == right || (left - right).abs() < 1e-5;
            assert!(sampled.logits.iter().zip(&expected).all(close), "{wishes:?}");
        }
        let nothing = RowWishes { mask: Some(&[]), ..greedy };
        assert_eq!(sample(device, &[(row, nothing)])[0].status, Status::NothingLeft);
    });
}

#[test]
fn log_probabilities_ranks_and_the_likeliest() {
    on_each_device(|device| {
        let vocab = 4500;
        let tied: Vec<f32> = (0..vocab).map(|id| ((id * 7 % 40) as f32) / 10.0).collect();
        let mut few = vec![f32::NEG_INFINITY; vocab];
        (few[4400], few[3], few[9]) = (1.0, 1.0, -70.0);
        let bias = [(3, -9.0), (5, 80.0)];
        let base = RowWishes { logprobs: Some(20), ..RowWishes::GREEDY };
        let score = |token| RowWishes { choice: Choice::Score(token), ..base };
        let rows = [
            (logits(1, vocab, 8.0), base),
            (logits(1, vocab, 8.0), RowWishes { bias: &bias, logprobs: Some(5), ..base }),
            (logits(2, vocab, 8.0), RowWishes { logprobs: Some(0), ..base }),
            (tied.clone(), base),
            (tied, score(4499)),
            (few.clone(), base),
            (few.clone(), score(9)),
            (few, RowWishes { logprobs: Some(1), ..score(77) }),
        ];
        for (case, (sampled, (row, wishes))) in sample(device, &rows).iter().zip(&rows).enumerate() {
            assert_eq!(sampled.status, Status::Done);
            let peak = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let log_sum = f64::from(peak) + row.iter().map(|x| f64::from(x - peak).exp()).sum::<f64>().ln();
            let mut best: Vec<(u32, f32)> =
                (0..).zip(row.iter().copied()).filter(|(_, x)| *x > f32::NEG_INFINITY).collect();
            best.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
            let token = match wishes.choice {
                Choice::Score(token) => token,
                Choice::Next => reference(&adjusted(row, wishes).1, wishes).unwrap(),
            };
            assert_eq!(sampled.token, token, "{case}");
            let own = row[token as usize];
            let before = |(id, x): &(u32, f32)| *x > own || (*x == own && *id < token);
            // One that is impossible ranks behind all that are possible, and the impossible ones before it.
            let rank = 1
                + best.iter().filter(|pair| before(pair)).count()
                + if own == f32::NEG_INFINITY {
                    row[..token as usize].iter().filter(|x| **x == own).count()
                } else {
                    0
                };
            assert_eq!(sampled.scores.rank as usize, rank, "{case}");
            let wanted = (f64::from(own) - log_sum) as f32;
            let near = |left: f32, right: f32| left == right || (left - right).abs() < 1e-5 * left.abs().max(1.0);
            assert!(near(sampled.scores.logprob, wanted), "{case}: {} for {wanted}", sampled.scores.logprob);
            best.truncate(wishes.logprobs.unwrap() as usize);
            assert_eq!(sampled.scores.top.len(), best.len(), "{case}");
            for ((id, logprob), (best_id, logit)) in sampled.scores.top.iter().zip(&best) {
                assert_eq!(id, best_id, "{case}");
                assert!(near(*logprob, (f64::from(*logit) - log_sum) as f32), "{case}");
            }
        }
    });
}

#[test]
fn what_cannot_be_done_is_left_to_others() {
    let mut input = SampleInput::new(50);
    assert!(input.begin(3, 0).is_err() && input.begin(3, 1 << 21).is_err(), "no such vocabulary");
    let cases = [
        RowWishes { logprobs: Some(21), ..RowWishes::GREEDY },
        RowWishes { seen: &[(1, 1); 6], ..RowWishes::GREEDY },
        RowWishes { mask: Some(&[]), ..RowWishes::GREEDY },
        RowWishes { uniform: 1.0, ..RowWishes::GREEDY },
        RowWishes { choice: Choice::Score(400), logprobs: Some(0), ..RowWishes::GREEDY },
        RowWishes { choice: Choice::Score(4), ..RowWishes::GREEDY },
    ];
    for (case, wishes) in cases.iter().enumerate() {
        input.begin(2, 400).unwrap();
        assert!(!input.push(wishes), "{case}");
        assert!(input.push(&RowWishes { seen: &[(1, 1), (400, 2)], ..RowWishes::GREEDY }), "the next one can be done");
        assert_eq!(input.words().len(), 42, "{case}: an id beyond the vocabulary is passed over");
        assert!(input.words()[..20].iter().all(|word| *word == 0), "{case}: it is skipped");
    }
    assert!(input.begin(3, 400).is_err(), "three rows take sixty words");
    on_each_device(|device| {
        let mut input = SampleInput::new(100);
        input.begin(2, 64).unwrap();
        let floats = device.alloc(128, F32).unwrap();
        let words = device.zeros(400, U32).unwrap();
        let all = SampleRows {
            input: words.range(0, 100),
            logits: floats.all(),
            workspace: words.range(100, 120),
            chosen: words.range(220, 6),
            scores: words.range(300, 0),
        };
        let cases = [
            SampleRows { input: words.range(0, 39), ..all },
            SampleRows { logits: floats.range(0, 127), ..all },
            SampleRows { workspace: words.range(100, 119), ..all },
            SampleRows { chosen: words.range(220, 5), ..all },
            SampleRows { logits: words.all(), ..all },
        ];
        for (case, rows) in cases.iter().enumerate() {
            assert!(rows.on(device, &input).is_err(), "{case}");
        }
        all.on(device, &input).unwrap();
        assert!(input.push(&RowWishes { logprobs: Some(1), ..RowWishes::GREEDY }));
        assert!(all.on(device, &input).is_err(), "scores have no room");
    });
}
