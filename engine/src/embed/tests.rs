//! The engine on models that fail, panic and wait.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, Sender, channel};

use sconce_models::{EmbedderSpec, Error, Output, Pooling, TextBatch};

use super::*;

const CONFIG: EmbedConfig = EmbedConfig { max_num_batched_tokens: 8, jobs_max: 4 };

/// A text's vector is the sum of its ids and their number. Id 1 fails, id 2 panics; each step is told and, with a gate,
/// waits for it.
struct Fake {
    spec: EmbedderSpec,
    steps: Sender<usize>,
    gate: Option<Receiver<()>>,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl Embedder for Fake {
    fn spec(&self) -> &EmbedderSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &TextBatch, out: &mut Vec<f32>) -> sconce_models::Result<()> {
        self.steps.send(batch.row_ends.len()).expect("the test listens");
        if let Some(gate) = &self.gate {
            gate.recv().expect("the test opens the gate");
        }
        out.clear();
        let mut start = 0;
        for &end in &batch.row_ends {
            let ids = &batch.tokens[start..end as usize];
            assert!(!ids.contains(&2), "an id that the model cannot stand");
            if ids.contains(&1) {
                return Err(Error::Batch("an id that the model refuses".to_owned()));
            }
            out.extend([ids.iter().sum::<u32>() as f32, ids.len() as f32]);
            start = end as usize;
        }
        Ok(())
    }
}

struct Bench {
    handle: EmbedHandle,
    steps: Receiver<usize>,
    gate: Option<Sender<()>>,
    dropped: Arc<AtomicUsize>,
}

fn bench(config: EmbedConfig, gated: bool) -> Bench {
    let (sender, steps) = channel();
    let (gate, wait) = channel();
    let dropped = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dropped);
    let spec = EmbedderSpec {
        architecture: "fake".to_owned(),
        output: Output::Embedding { normalize: false },
        pooling: Pooling::Mean,
        layers: 1,
        width: 2,
        vocab: 100,
        types: 1,
        tokens_max: 8,
        lower_case: false,
        judges: false,
        weight_format: String::new(),
        parameters: 0,
        weight_bytes: 0,
        step_bytes_per_token: 0,
    };
    let fake = move || {
        Ok(Box::new(Fake { spec, steps: sender, gate: gated.then_some(wait), dropped: counted }) as Box<dyn Embedder>)
    };
    let handle = EmbedHandle::start("embed-test", config, fake).expect("it starts");
    Bench { handle, steps, gate: gated.then_some(gate), dropped }
}

type Waiting = oneshot::Receiver<Result<EmbedDone, EmbedFailure>>;

impl Bench {
    fn submit(&self, texts: &[&[u32]]) -> Result<Waiting, SubmitError> {
        let text = |ids: &&[u32]| EmbedText { tokens: ids.to_vec(), types: Vec::new() };
        let (done, waiting) = oneshot::channel();
        let texts = texts.iter().map(text).collect();
        self.handle.submit(EmbedSubmit { texts, priority: 0, done })?;
        Ok(waiting)
    }

    fn ask(&self, texts: &[&[u32]]) -> Result<Vec<f32>, EmbedFailure> {
        let waiting = self.submit(texts).expect("there is room");
        waiting.blocking_recv().expect("an answer").map(|done| done.values)
    }

    fn open(&self) {
        self.gate.as_ref().expect("a gate").send(()).expect("the model waits");
    }
}

#[test]
fn texts_come_back_in_their_order_whatever_the_steps() {
    let bench = bench(CONFIG, false);
    let texts: [&[u32]; 4] = [&[10, 11, 12, 13, 14], &[20], &[30, 31, 32, 33], &[40, 41]];
    assert_eq!(bench.ask(&texts), Ok(vec![60.0, 5.0, 20.0, 1.0, 126.0, 4.0, 81.0, 2.0]));
    assert_eq!(bench.ask(&[]), Ok(vec![]));
    let stats = bench.handle.stats();
    assert_eq!((stats.texts, stats.tokens, stats.steps, stats.jobs), (4, 12, 2, 0));
    assert_eq!((stats.running, stats.waiting, stats.step_tokens.sum), (0, 0, 12));
    assert_eq!(bench.steps.try_iter().collect::<Vec<_>>(), [2, 2], "five and one, then four and two");
}

#[test]
fn a_failing_text_fails_its_step_and_the_engine_goes_on() {
    let bench = bench(CONFIG, false);
    let failed = |outcome: Result<_, EmbedFailure>| match outcome {
        Err(EmbedFailure::Failed(reason)) => reason,
        other => panic!("{other:?} is no failure"),
    };
    assert!(failed(bench.ask(&[&[1]])).contains("the model refuses"));
    assert!(failed(bench.ask(&[&[2]])).contains("panic: an id that the model cannot stand"));
    assert_eq!(bench.ask(&[&[5]]), Ok(vec![5.0, 1.0]), "it goes on");
    for _ in 0..3 {
        assert!(bench.handle.failure().is_none());
        failed(bench.ask(&[&[2]]));
    }
    // Three in a row: it gives up, says so, and answers everyone from then on.
    bench.handle.shutdown(Duration::ZERO);
    assert!(bench.handle.failure().is_some_and(|why| why.contains("3 steps failed one after the other")));
    assert!(matches!(bench.submit(&[&[5]]), Err(SubmitError::Stopped)));
    assert_eq!((bench.handle.stats().failed_steps, bench.dropped.load(Ordering::SeqCst)), (5, 1));
}

#[test]
fn a_client_that_leaves_frees_its_place_and_costs_no_step() {
    let bench = bench(CONFIG, true);
    let first = bench.submit(&[&[5]]).expect("room");
    assert_eq!(bench.steps.recv(), Ok(1));
    let gone = bench.submit(&[&[7, 7, 7, 7], &[8, 8, 8, 8], &[9, 9, 9, 9]]).expect("room");
    let stays = bench.submit(&[&[6]]).expect("room");
    let _fills = bench.submit(&[&[6]]).expect("room");
    assert!(matches!(bench.submit(&[&[5]]), Err(SubmitError::Full)), "four are alive");
    drop(gone);
    bench.open();
    assert_eq!(first.blocking_recv().expect("an answer").map(|done| done.values), Ok(vec![5.0, 1.0]));
    assert_eq!(bench.steps.recv(), Ok(2), "nothing of the one that left");
    bench.open();
    assert_eq!(stays.blocking_recv().expect("an answer").map(|done| done.values), Ok(vec![6.0, 1.0]));
    let last = bench.submit(&[&[5]]).expect("places are free again");
    assert_eq!(bench.steps.recv(), Ok(1));
    bench.open();
    assert!(last.blocking_recv().expect("an answer").is_ok());
}

#[test]
fn a_stop_waits_for_what_is_alive_and_cancels_the_rest() {
    for (grace, is_answered) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
        let bench = bench(CONFIG, true);
        let running = bench.submit(&[&[5]]).expect("room");
        assert_eq!(bench.steps.recv(), Ok(1));
        let waits = bench.submit(&[&[6]]).expect("room");
        let handle = bench.handle.clone();
        let stopping = std::thread::spawn(move || handle.shutdown(grace));
        while !matches!(bench.submit(&[&[7]]), Err(SubmitError::Stopped)) {
            std::thread::yield_now();
        }
        bench.open();
        if is_answered {
            bench.open();
        }
        stopping.join().expect("no panic");
        let answer = |waiting: Waiting| waiting.blocking_recv().expect("an answer, not a dropped sender");
        assert!(answer(running).is_ok(), "a step in progress is finished");
        let late = answer(waits);
        assert_eq!(late.is_ok(), is_answered, "{late:?}");
        assert!(is_answered || late == Err(EmbedFailure::Cancelled));
        assert_eq!(bench.dropped.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_model_that_cannot_be_built_leaves_no_thread() {
    let refused = EmbedHandle::start("embed-test", CONFIG, || Err("no such file".to_owned()));
    assert_eq!(refused.err().as_deref(), Some("no such file"));
    let panicked = EmbedHandle::start("embed-test", CONFIG, || panic!("while loading"));
    assert_eq!(panicked.err().as_deref(), Some("panic: while loading"));
}
