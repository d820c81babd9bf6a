//! Steps issued behind steps whose tokens are not collected: the same tokens as one step at a time, though nobody on the
//! host knew them.

use sconce_models::cuda::CudaRunner;
use sconce_models::{BatchInput, Logits, Precision, Sample, SampleRequest, SampleRequests, Want};

use super::{Part, batch, devices, goldens, runner};

const STEPS: usize = 14;

/// Greedy, and two that draw.
fn wanted(rows: &[usize], step: usize) -> SampleRequests {
    let request = |row: &usize| {
        let uniform = ((row * 31 + step * 17) % 100) as f64 / 100.0;
        let temperature = if *row == 0 { 0.0 } else { 1.0 };
        let logprobs = (*row == 1).then_some(2);
        SampleRequest { temperature, uniform, logprobs, ..SampleRequest::new(Want::Token) }
    };
    SampleRequests { rows: rows.iter().map(request).collect(), ..SampleRequests::default() }
}

fn prompts() -> Vec<Vec<u32>> {
    goldens("llama3").into_iter().map(|golden| golden.prompt).collect()
}

/// The step that computes token `len - 1` of each of these sequences.
fn decode(sequences: &[Vec<u32>], rows: &[usize]) -> BatchInput {
    let parts = rows.iter().map(|row| Part { sequence: *row, start: sequences[*row].len() - 1, count: 1 });
    batch(sequences, &parts.collect::<Vec<_>>(), false)
}

fn prefill(sequences: &[Vec<u32>]) -> BatchInput {
    let whole = sequences.iter().enumerate();
    let parts = whole.map(|(sequence, tokens)| Part { sequence, start: 0, count: tokens.len() });
    batch(sequences, &parts.collect::<Vec<_>>(), false)
}

fn id(sample: &Sample) -> u32 {
    let Sample::Token { id, .. } = sample else { panic!("no token: {sample:?}") };
    *id
}

/// Who is left in step `step`: the second sequence ends early.
fn rows(step: usize) -> Vec<usize> {
    if step < 6 { vec![0, 1, 2] } else { vec![0, 2] }
}

fn one_at_a_time(runner: &mut CudaRunner) -> Vec<Vec<Sample>> {
    let mut sequences = prompts();
    let (mut all, mut samples, mut logits) = (Vec::new(), Vec::new(), Logits::default());
    for step in 0..STEPS {
        let rows = rows(step);
        let input = if step == 0 { prefill(&sequences) } else { decode(&sequences, &rows) };
        let wanted = wanted(&rows, step);
        runner.issue(&input).unwrap();
        assert!(runner.choose(&wanted).unwrap());
        runner.collect(&wanted, &mut samples, &mut logits).unwrap();
        rows.iter().zip(&samples).for_each(|(row, sample)| sequences[*row].push(id(sample)));
        all.push(samples.clone());
    }
    all
}

/// Always one step ahead of the tokens that are known.
fn ahead(runner: &mut CudaRunner) -> Vec<Vec<Sample>> {
    let mut sequences = prompts();
    let (mut all, mut samples, mut logits) = (Vec::new(), Vec::new(), Logits::default());
    runner.issue(&prefill(&sequences)).unwrap();
    assert!(runner.choose(&wanted(&rows(0), 0)).unwrap());
    for step in 1..=STEPS {
        let before = rows(step - 1);
        if step < STEPS {
            let rows = rows(step);
            // A placeholder that would give other tokens, were it looked at.
            rows.iter().for_each(|row| sequences[*row].push(1));
            let sources: Vec<u32> =
                rows.iter().map(|row| before.iter().position(|other| other == row).unwrap() as u32).collect();
            runner.issue_behind(&decode(&sequences, &rows), &sources).unwrap();
            assert!(runner.choose(&wanted(&rows, step)).unwrap());
            rows.iter().for_each(|row| _ = sequences[*row].pop());
        }
        runner.collect(&wanted(&before, step - 1), &mut samples, &mut logits).unwrap();
        before.iter().zip(&samples).for_each(|(row, sample)| sequences[*row].push(id(sample)));
        all.push(samples.clone());
    }
    all
}

#[test]
fn steps_behind_others_give_the_same_tokens() {
    for device in devices() {
        for precision in [Precision::High, Precision::Fast] {
            let mut runner = runner("llama3", &device, precision).unwrap();
            let expected = one_at_a_time(&mut runner);
            assert_eq!(ahead(&mut runner), expected, "steps launched one by one, and recorded");
            assert_eq!(ahead(&mut runner), expected, "all as graphs");
            assert!(runner.take_warning().is_none());
        }
    }
}

#[test]
fn a_step_goes_behind_one_that_is_chosen_and_not_collected() {
    for device in devices() {
        let mut runner = runner("llama3", &device, Precision::Fast).unwrap();
        let expected = one_at_a_time(&mut runner);
        let (mut sequences, all) = (prompts(), rows(0));
        sequences.iter_mut().for_each(|tokens| tokens.push(1));
        let next = decode(&sequences, &all);
        assert!(runner.issue_behind(&next, &[0, 1, 2]).is_err(), "there is no step to follow");
        runner.issue(&prefill(&prompts())).unwrap();
        assert!(runner.issue_behind(&next, &[0, 1, 2]).is_err(), "it is not chosen");
        runner.choose(&wanted(&all, 0)).unwrap();
        assert!(runner.issue_behind(&next, &[0, 1]).is_err(), "a row has no source");
        assert!(runner.issue_behind(&prefill(&prompts()), &[0, 1, 2]).is_err(), "a row has several tokens");
        runner.issue_behind(&next, &[0, 1, 2]).unwrap();
        runner.choose(&wanted(&all, 1)).unwrap();
        assert!(runner.issue_behind(&next, &[0, 1, 2]).is_err(), "two steps are under way");
        // Whoever gives up begins anew.
        assert_eq!(one_at_a_time(&mut runner), expected);
        let mut with_logits = wanted(&all, 0);
        with_logits.rows[1].want = Want::Logits;
        runner.issue(&prefill(&prompts())).unwrap();
        assert!(!runner.choose(&with_logits).unwrap(), "a row's token is chosen on the host");
    }
}
