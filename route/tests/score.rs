//! Difficulty scores: measures beside an independent reading, features, fits on made-up outcomes, and the artefact.

use sconce_route::score::curve::{Curve, Measures, Outcomes, bootstrap};
use sconce_route::score::eval::evaluate;
use sconce_route::score::features::{Features, NAMES};
use sconce_route::score::fit::{Embeddings, FitOptions, fit, general, leave_groups_out};
use sconce_route::score::{Example, Router, outcomes};

/// A 64-bit LCG, upper bits; `reference/curve.py` draws the same.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

fn rows(count: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut draws = Draws(1);
    let (mut scores, mut weak, mut strong) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let score = draws.next() % 17;
        scores.push(score as f64);
        weak.push(f64::from(u8::from(draws.next() % 100 < 70 - 2 * score)));
        strong.push(f64::from(u8::from(draws.next() % 100 < 85)));
    }
    (scores, weak, strong)
}

fn close(measures: Measures, expected: [f64; 3]) {
    let got = [measures.apgr, measures.cpt50, measures.cpt80];
    assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-8), "{got:?}, expected {expected:?}");
}

/// The numbers come from `python3 route/tests/reference/curve.py`.
#[test]
fn measures_agree_with_an_independent_reading() {
    let (scores, weak, strong) = rows(200);
    let outcomes = Outcomes { weak: &weak, strong: &strong };
    close(Curve::new(&scores, &outcomes).unwrap().measures(), [0.653_650_793_651, 33.75, 55.733_333_333]);
    let constant = vec![1.0; 200];
    close(Curve::new(&constant, &outcomes).unwrap().measures(), [0.5, 50.0, 80.0]);
    let falling: Vec<f64> = scores.iter().map(|score| -score).collect();
    let reversed = Curve::new(&falling, &outcomes).unwrap().measures();
    assert!((reversed.apgr - (1.0 - 0.653_650_793_651)).abs() < 1e-8, "the other way round is as bad as this is good");
    let oracle = Curve::oracle(&outcomes).unwrap().measures();
    assert!((oracle.apgr - 1.015_873_015_873).abs() < 1e-8, "{oracle:?}");
}

#[test]
fn intervals_hold_the_value_and_repeat() {
    let (scores, weak, strong) = rows(400);
    let outcomes = Outcomes { weak: &weak, strong: &strong };
    let value = Curve::new(&scores, &outcomes).unwrap().measures().apgr;
    let chance = vec![0.0; 400];
    let (own, over) = bootstrap(&scores, &chance, &outcomes, 100).unwrap().unwrap();
    assert!(own.low < value && value < own.high && own.high - own.low < 0.2, "{own}");
    assert!(over.low > 0.0, "better than chance beyond doubt: {over}");
    let (_, none) = bootstrap(&scores, &scores, &outcomes, 20).unwrap().unwrap();
    assert_eq!((none.low, none.high), (0.0, 0.0));
    assert_eq!(bootstrap(&scores, &chance, &outcomes, 100).unwrap().unwrap(), (own, over));
    assert_eq!(bootstrap(&scores, &chance, &outcomes, 0).unwrap(), None);
}

#[test]
fn measures_refuse_what_has_no_answer() {
    let of = |scores: &[f64], weak: &[f64], strong: &[f64]| Curve::new(scores, &Outcomes { weak, strong }).unwrap_err();
    assert!(of(&[1.0], &[1.0], &[1.0]).contains("no gap"));
    assert!(of(&[], &[], &[]).contains("there are none"));
    assert!(of(&[1.0], &[1.0, 0.0], &[1.0]).contains("one of each"));
    assert!(of(&[f64::NAN], &[0.0], &[1.0]).contains("finite"));
}

#[test]
fn features_count_what_they_say() {
    let text =
        "Tom has 3 boxes and 12.5 kg of rice. If he does not sell 20% of it, how much is left?\n(see [4, 5, 6] {7})";
    let features = Features::of(text);
    let expected = [
        ("characters", text.chars().count()),
        ("sentences", 2),
        ("quantities", 3),
        ("questions", 1),
        ("negations", 1),
        ("brackets", 6),
        ("steps", 1),
        ("lines", 1),
        ("symbols", 1),
        ("tasks", 1),
        ("code", 0),
        ("long_words", 0),
    ];
    for (name, count) in expected {
        let got = features.get(name).unwrap();
        assert!((got - (count as f64).ln_1p()).abs() < 1e-12, "{name}: {}", got.exp_m1());
    }
    assert_eq!(features.get("words"), Some(19_f64.ln_1p()));
    assert_eq!(features.get("distinct_words"), Some(18_f64.ln_1p()), "'of' twice");
    for text in ["", " \n", "？", "日本語の質問です。", "\u{0}", "))))"] {
        assert!(Features::of(text).values.iter().all(|value| value.is_finite()), "{text:?}");
    }
    assert_eq!(Features::of("x").get("nothing"), None);
}

#[test]
fn the_built_in_artefact_follows_length() {
    let router = Router::builtin();
    assert_eq!(router.embedder(), None);
    let of = |text: &str| router.score(text, None).difficulty;
    let short = "What is the capital of France?";
    let long = "A shop sells 12 pens a day for 3 weeks, then 9 a day. Each pen costs 1.20 to make and sells for 2.50. If a \
                fifth of them come back and cannot be sold again, how much did it earn after 60 days, and when did it \
                first earn more than 500? Explain each step.";
    assert!(of(short) < 0.2 && of(long) > 0.6, "{} {}", of(short), of(long));
    assert_eq!(of(""), 0.0);
    assert_eq!(of(&long.repeat(100)), 1.0);
    let growing: Vec<f64> = (1..60).map(|count| of(&"some other words ".repeat(count))).collect();
    assert!(growing.is_sorted(), "more of the same is never easier");
    assert_eq!(router.score(long, Some(&[1.0, 0.0])), router.score(long, None), "it needs no embedding and reads none");
}

/// Two topics; the strong model helps on one of them, which neither length nor any other count shows.
fn topical(count: usize) -> (Vec<Example>, Vec<Vec<f32>>) {
    let topics = [["planet", "orbit", "comet", "star"], ["recipe", "oven", "butter", "flour"]];
    let mut draws = Draws(7);
    let mut vectors = Vec::new();
    let mut pick = |most: u64| usize::try_from(draws.next() % most).unwrap();
    let examples = (0..count).map(|at| {
        let topic = pick(2);
        let words: Vec<&str> = (0..6 + pick(6)).map(|_| topics[topic][pick(4)]).collect();
        let gains = topic == 0 && pick(10) < 8;
        let jitter = |pick: &mut dyn FnMut(u64) -> usize| pick(100) as f32 / 500.0;
        let mut vector = vec![jitter(&mut pick), jitter(&mut pick), jitter(&mut pick), jitter(&mut pick)];
        vector[topic] += 1.0;
        vectors.push(vector);
        let weak = f64::from(u8::from(!gains && pick(10) < 7));
        let strong = if gains || pick(10) == 0 { 1.0 } else { weak };
        Example { id: at.to_string(), group: topic.to_string(), prompt: words.join(" "), weak, strong }
    });
    (examples.collect(), vectors)
}

#[test]
fn a_fit_learns_what_length_cannot_show() {
    let (examples, vectors) = topical(600);
    let (train, test) = examples.split_at(400);
    let options = FitOptions { axes: 3, ..FitOptions::default() };
    let embeddings = Embeddings { name: "tiny", vectors: &vectors[..400] };
    for given in [None, Some(embeddings)] {
        let router = fit(train, given, &options).unwrap();
        let read = Router::parse(&router.to_json()).unwrap();
        let score = |router: &Router, at: usize| router.score(&test[at].prompt, Some(&vectors[400 + at])).raw;
        let scores: Vec<f64> = (0..test.len()).map(|at| score(&read, at)).collect();
        for (at, read) in scores.iter().enumerate() {
            assert!((score(&router, at) - read).abs() < 1e-4, "the artefact says what the fit said");
        }
        let evaluation = evaluate(&scores, test, 50).unwrap();
        let (_, over) = evaluation.interval.unwrap();
        assert!(evaluation.score.apgr > 0.65 && over.low > 0.1, "{evaluation}");
        assert!((evaluation.longest_first.apgr - 0.5).abs() < 0.1, "{evaluation}");
        assert_eq!(read.embedder().map(|embedder| embedder.dimensions), given.map(|_| 4));
    }
}

#[test]
fn strange_prompts_keep_the_general_score() {
    let (examples, _) = topical(400);
    let router = fit(&examples, None, &FitOptions::default()).unwrap();
    let known = router.score("comet orbit star planet comet orbit", None);
    let strange = router.score("Wie viele Kilometer sind es von Hamburg nach Wien?", None);
    assert!(known.familiarity > 0.5 && strange.familiarity < 0.1, "{known:?} {strange:?}");
    let plain = general(&examples).unwrap().score("Wie viele Kilometer sind es von Hamburg nach Wien?", None);
    assert!((strange.raw - plain.raw).abs() < 0.3, "{strange:?} {plain:?}");
}

/// What a prompt is about is not how it is put: near neighbours say nothing of a prompt in another form.
#[test]
fn prompts_that_look_otherwise_keep_the_general_score() {
    let (examples, vectors) = topical(400);
    let given = || Some(Embeddings { name: "tiny", vectors: &vectors });
    let general = general(&examples).unwrap();
    let in_form = "comet orbit star planet comet orbit".to_owned();
    let many_lines = in_form.replace(' ', "\n\n");
    let with_code = format!("{in_form} if (star == 1) {{ return orbit[0] + 12 * 7; }} // 1 + 2 = 3");
    let long = vec![in_form.as_str(); 80].join(" ");
    for fitted in [None, given()] {
        let router = fit(&examples, fitted, &FitOptions { axes: 3, ..FitOptions::default() }).unwrap();
        let near = |prompt: &str| router.score(prompt, Some(&vectors[0]));
        assert!(near(&in_form).familiarity > 0.5, "{:?}", near(&in_form));
        for foreign in [&many_lines, &with_code, &long] {
            let scored = near(foreign);
            assert_eq!((scored.familiarity, scored.raw), (0.0, general.score(foreign, None).raw), "{foreign}");
        }
    }
}

#[test]
fn without_its_embedding_a_fit_is_the_general_score() {
    let (examples, vectors) = topical(200);
    let embeddings = Embeddings { name: "tiny", vectors: &vectors };
    let router = fit(&examples, Some(embeddings), &FitOptions::default()).unwrap();
    let general = general(&examples).unwrap();
    for wrong in [None, Some([1.0_f32, 0.0].as_slice())] {
        let scored = router.score("planet orbit", wrong);
        assert_eq!((scored.raw, scored.familiarity), (general.score("planet orbit", None).raw, 0.0));
    }
}

#[test]
fn left_out_groups_are_scored_by_the_others() {
    let (mut examples, vectors) = topical(400);
    let given = || Some(Embeddings { name: "tiny", vectors: &vectors });
    let options = FitOptions { axes: 3, ..FitOptions::default() };
    let apgr = |examples: &[Example]| {
        let scores = leave_groups_out(examples, given(), &options, 4).unwrap();
        evaluate(&scores, examples, 0).unwrap().score.apgr
    };
    // With the topics left out by turns nothing is learnt of them; with every prompt a group of its own it is.
    assert!(apgr(&examples) < 0.6);
    examples.iter_mut().for_each(|example| example.group.clear());
    assert!(apgr(&examples) > 0.65);
}

#[test]
fn percentiles_make_a_difficulty() {
    let (examples, _) = topical(500);
    let router = general(&examples).unwrap();
    let mut difficulties: Vec<f64> = examples.iter().map(|one| router.score(&one.prompt, None).difficulty).collect();
    difficulties.sort_by(f64::total_cmp);
    let above = difficulties.iter().filter(|difficulty| **difficulty >= 0.7).count();
    assert!(above.abs_diff(150) < 25, "a threshold of 0.7 sends about three of ten on: {above} of 500");
}

#[test]
fn fits_refuse_what_they_cannot_learn_from() {
    let (examples, vectors) = topical(100);
    let told = |examples: &[Example], vectors: Option<&[Vec<f32>]>| {
        let embeddings = vectors.map(|vectors| Embeddings { name: "e", vectors });
        fit(examples, embeddings, &FitOptions::default()).unwrap_err()
    };
    assert!(told(&examples[..10], None).contains("at least 50"));
    assert!(told(&examples, Some(&vectors[..50])).contains("50 embeddings for 100 outcomes"));
    let mut broken = vectors.clone();
    broken[3][0] = f32::NAN;
    assert!(told(&examples, Some(&broken)).contains("embedding 4"));
    let equal: Vec<Example> = examples.iter().map(|one| Example { strong: one.weak, ..one.clone() }).collect();
    assert!(told(&equal, None).contains("equal on every prompt"));
}

#[test]
fn artefacts_of_others_are_refused() {
    let (examples, vectors) = topical(100);
    let embeddings = Embeddings { name: "tiny", vectors: &vectors };
    let json = fit(&examples, Some(embeddings), &FitOptions::default()).unwrap().to_json();
    assert!(Router::parse(&json).is_ok());
    for (from, to, fault) in [
        ("\"version\":2", "\"version\":1", "version: 1"),
        ("\"characters\"", "\"bytes\"", "features"),
        ("\"dimensions\":4", "\"dimensions\":5", "embedder"),
        ("\"percentiles\":[", "\"percentiles\":[-9,", "percentiles"),
        ("\"hex\":\"", "\"hex\":\"zz", "hexadecimal"),
        ("\"hex\":\"", "\"hex\":\"00", "lengths"),
        ("{", "", "not a routing artefact"),
    ] {
        let told = Router::parse(&json.replacen(from, to, 1)).unwrap_err();
        assert!(told.contains(fault), "{told}");
    }
}

#[test]
fn outcomes_are_read_from_csv_and_json_lines() {
    let csv = "id,subject,prompt,weak,strong\r\n\
               a/1,math,\"One, \"\"two\"\"\n3?\",0,1\r\n\
               a/2,math,plain,true,0.5\r\n";
    let examples = outcomes::parse(csv).unwrap();
    assert_eq!(examples.len(), 2);
    assert_eq!((examples[0].prompt.as_str(), examples[0].group.as_str()), ("One, \"two\"\n3?", "math"));
    assert_eq!((examples[1].weak, examples[1].strong), (1.0, 0.5));
    let lines = "{\"prompt\": \"p\", \"weak_correct\": false, \"strong_correct\": true}\n\n\
                 {\"id\": \"x\", \"prompt\": \"q\", \"weak_score\": 0.25, \"strong\": 1}\n";
    let examples = outcomes::parse(lines).unwrap();
    assert_eq!((examples[0].id.as_str(), examples[0].strong), ("0", 1.0));
    assert_eq!((examples[1].id.as_str(), examples[1].weak), ("x", 0.25));
    for (text, fault) in [
        ("", "no outcomes"),
        ("id,prompt,weak\n1,p,0\n", "no column 'strong'"),
        ("prompt,weak,strong\np,0\n", "record 2: 2 fields, the header has 3"),
        ("prompt,weak,strong\np,0,good\n", "'good' is no outcome"),
        ("prompt,weak,strong\np,0,8\n", "from 0 to 1"),
        ("prompt,weak,strong\n\"p,0,1\n", "never closed"),
        ("{\"prompt\": 1}", "line 1"),
        ("prompt,weak,strong\n", "no outcomes"),
    ] {
        let told = outcomes::parse(text).unwrap_err();
        assert!(told.contains(fault), "{text:?}: {told}");
    }
}

/// As `zlib.crc32(id) % 5 == 0` says.
#[test]
fn the_test_part_is_everybodys() {
    for (id, expected) in
        [("abstract_algebra/0000", false), ("abstract_algebra/0004", true), ("abstract_algebra/0011", true), ("", true)]
    {
        assert_eq!(outcomes::is_test(id), expected, "{id}");
    }
    let share = (0..5000).filter(|at| outcomes::is_test(&format!("id/{at}"))).count();
    assert!(share.abs_diff(1000) < 100, "{share} of 5000");
}

#[test]
fn names_of_features_are_part_of_the_format() {
    assert_eq!(NAMES.len(), Features::of("").values.len());
    let mut sorted = NAMES.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), NAMES.len());
}
