//! The sampler's answers against those of the GPU's kernels (on the stand-in), for the same logits and the same wishes.

use sconce_cuda::ops::sample::{
    Choice, RowWishes, SCORE_WORDS, SampleInput, SampleRows, Status, TOP_MAX, workspace_words,
};
use sconce_cuda::{Device, ElementType};
use sconce_engine::sampler::Sampler;
use sconce_engine::sim::ContextHash;
use sconce_models::{Logits, Sample, SampleRequest, SampleRequests, SampleScores, Want};

use crate::random::Random;
use crate::scenario;

const ROWS: usize = 12;
const ROUNDS: u64 = 12;
const WORDS_MAX: usize = 1 << 14;

#[test]
fn a_gpu_answers_as_the_sampler_does() {
    let device = Device::host();
    let (mut different, mut total) = (0, 0);
    for seed in 0..ROUNDS {
        let mut random = Random::new(seed);
        let vocab = random.pick(&[31, 700, 4500]) as u32;
        let (wanted, computed) = (requests(&mut random, vocab), logits(&mut random, vocab));
        let (mut samples, mut back) = (Vec::new(), Logits::default());
        Sampler::default().answer_all(&wanted, &computed, &mut samples, &mut back);
        for (row, (sample, found)) in samples.iter().zip(on_gpu(&device, &wanted, &computed)).enumerate() {
            total += 1;
            if !alike(sample, &found) {
                // A draw on the very edge between two tokens may fall to either side.
                assert!(matches!((sample, &found), (Sample::Token { .. }, Sample::Token { .. })), "{seed} {row}");
                eprintln!("{seed} {row}: {sample:?} and {found:?} for {:?}", wanted.rows[row]);
                different += 1;
            }
        }
    }
    assert!(different <= 1, "{different} of {total} answers differ");
}

/// Rows of a step that have nothing to do with each other.
fn requests(random: &mut Random, vocab: u32) -> SampleRequests {
    let mut wanted = SampleRequests::default();
    for _ in 0..ROWS {
        let params = scenario::params(random, vocab);
        let mut request = SampleRequest::new(Want::Token);
        if random.chance(15) {
            request.want = Want::Score(random.below(vocab));
            request.logprobs = Some(random.below(6));
            wanted.rows.push(request);
            continue;
        }
        (request.temperature, request.top_k, request.top_p) = (params.temperature, params.top_k, params.top_p);
        (request.min_p, request.logprobs) = (params.min_p, params.logprobs);
        request.uniform = f64::from(random.below(1 << 30)) / f64::from(1_u32 << 30);
        request.repetition_penalty = params.repetition_penalty;
        (request.presence_penalty, request.frequency_penalty) = (params.presence_penalty, params.frequency_penalty);
        if random.chance(30) {
            let start = wanted.masks.len();
            wanted.masks.extend((0..vocab.div_ceil(32)).map(|_| random.next() as u32 | 1));
            request.mask = Some(start..wanted.masks.len());
        }
        let start = wanted.forbidden.len();
        wanted.forbidden.extend(params.stop_token_ids);
        request.forbidden = start..wanted.forbidden.len();
        let start = wanted.bias.len();
        wanted.bias.extend(params.logit_bias);
        request.bias = start..wanted.bias.len();
        let start = wanted.seen.len();
        if random.chance(50) {
            let step = 1 + random.below(5);
            wanted.seen.extend((0..vocab.min(200)).step_by(step as usize).map(|id| (id, id % 3)));
        }
        request.seen = start..wanted.seen.len();
        wanted.rows.push(request);
    }
    wanted
}

fn logits(random: &mut Random, vocab: u32) -> Logits {
    let mut logits = Logits { vocab: vocab as usize, values: vec![0.0; vocab as usize * ROWS] };
    for row in 0..ROWS {
        ContextHash::EMPTY.extend(random.below(1000), row as u32).logits(&[3], logits.row_mut(row));
    }
    if random.chance(20) {
        logits.row_mut(2)[7] = f32::NAN;
    }
    logits
}

fn on_gpu(device: &Device, wanted: &SampleRequests, computed: &Logits) -> Vec<Sample> {
    let mut input = SampleInput::new(WORDS_MAX);
    input.begin(ROWS, computed.vocab).expect("there is room");
    for request in &wanted.rows {
        assert!(input.push(&wishes(request, wanted)));
    }
    let words = |count| device.alloc(count, ElementType::U32).expect("memory");
    let on_device = words(WORDS_MAX);
    on_device.write(0, input.words()).expect("the words fit");
    let logits = device.upload(&computed.values).expect("memory");
    let workspace = words(workspace_words(ROWS, computed.vocab, WORDS_MAX));
    let (chosen, scores) = (words(3 * ROWS), words(ROWS * SCORE_WORDS));
    let launch = SampleRows {
        input: on_device.all(),
        logits: logits.all(),
        workspace: workspace.all(),
        chosen: chosen.all(),
        scores: scores.all(),
    };
    launch.on(device, &input).expect("it is launched");
    let (chosen, scores) = (chosen.to_vec::<u32>().expect("words"), scores.to_vec::<u32>().expect("words"));
    let answer = |(row, request): (usize, &SampleRequest)| {
        let scored = || scores_of(&scores[row * SCORE_WORDS..][..SCORE_WORDS]);
        match (Status::of(chosen[ROWS + row]), request.want) {
            (Status::NotFinite, _) => Sample::NotFinite { id: chosen[2 * ROWS + row] },
            (Status::NothingLeft, _) => Sample::NothingLeft,
            (Status::Done, Want::Score(_)) => Sample::Score(scored()),
            (Status::Done, _) => Sample::Token { id: chosen[row], scores: request.logprobs.map(|_| scored()) },
        }
    };
    wanted.rows.iter().enumerate().map(answer).collect()
}

fn wishes<'a>(request: &SampleRequest, wanted: &'a SampleRequests) -> RowWishes<'a> {
    RowWishes {
        choice: match request.want {
            Want::Score(token) => Choice::Score(token),
            _ => Choice::Next,
        },
        temperature: request.temperature,
        top_k: request.top_k,
        top_p: request.top_p,
        min_p: request.min_p,
        uniform: request.uniform,
        mask: request.mask.clone().map(|mask| &wanted.masks[mask]),
        forbidden: &wanted.forbidden[request.forbidden.clone()],
        bias: &wanted.bias[request.bias.clone()],
        seen: &wanted.seen[request.seen.clone()],
        repetition_penalty: request.repetition_penalty,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        logprobs: request.logprobs,
    }
}

fn scores_of(words: &[u32]) -> SampleScores {
    let top = (0..words[2] as usize).map(|at| (words[4 + at], f32::from_bits(words[4 + TOP_MAX + at]))).collect();
    SampleScores { logprob: f32::from_bits(words[0]), rank: words[1], top }
}

/// The same, but for the last digits of log probabilities.
fn alike(left: &Sample, right: &Sample) -> bool {
    let near = |left: f32, right: f32| left == right || (left - right).abs() < 1e-4;
    let scores = |left: &SampleScores, right: &SampleScores| {
        let pairs = || left.top.iter().zip(&right.top);
        left.rank == right.rank
            && near(left.logprob, right.logprob)
            && left.top.len() == right.top.len()
            && pairs().all(|(left, right)| left.0 == right.0 && near(left.1, right.1))
    };
    match (left, right) {
        (Sample::Token { id, scores: None }, Sample::Token { id: other, scores: None }) => id == other,
        (Sample::Token { id, scores: Some(left) }, Sample::Token { id: other, scores: Some(right) }) => {
            id == other && scores(left, right)
        }
        (Sample::Score(left), Sample::Score(right)) => scores(left, right),
        (left, right) => left == right,
    }
}
