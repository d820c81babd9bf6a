// performance-critical: no allocation per token, no lock, no log, no format
//! Where the time of a step goes, by operation, while somebody measures it.
//!
//! Off, an operation costs one load of a flag that nobody writes; on, two readings of the clock. Times belong to the
//! thread that runs the model: start, run and take on the same one.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Parts of a step. A norm belongs to the projection behind it, an activation to the projection down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Embedding,
    Qkv,
    /// Rotation, and K and V into the cache.
    RopeAndWrite,
    Attention,
    Output,
    GateUp,
    Down,
    /// A mixture of experts with its router.
    Experts,
    /// The head.
    Logits,
}

impl Operation {
    pub const ALL: [Self; 9] = [
        Self::Embedding,
        Self::Qkv,
        Self::RopeAndWrite,
        Self::Attention,
        Self::Output,
        Self::GateUp,
        Self::Down,
        Self::Experts,
        Self::Logits,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Qkv => "qkv",
            Self::RopeAndWrite => "rope and kv write",
            Self::Attention => "attention",
            Self::Output => "output",
            Self::GateUp => "gate-up",
            Self::Down => "down",
            Self::Experts => "experts",
            Self::Logits => "logits",
        }
    }
}

/// Time by operation, in the order of [`Operation::ALL`].
pub type Times = [Duration; Operation::ALL.len()];

/// Somebody measures.
static IS_ON: AtomicBool = AtomicBool::new(false);

thread_local! {
    static TIMES: RefCell<Option<Times>> = const { RefCell::new(None) };
}

/// From now on this thread's operations are timed.
pub fn start() {
    TIMES.set(Some(Times::default()));
    IS_ON.store(true, Ordering::Relaxed);
}

/// Ends it. What was timed since [`start`]; zeros without.
pub fn take() -> Times {
    IS_ON.store(false, Ordering::Relaxed);
    TIMES.take().unwrap_or_default()
}

#[inline]
pub(crate) fn timed<T>(operation: Operation, work: impl FnOnce() -> T) -> T {
    if !IS_ON.load(Ordering::Relaxed) {
        return work();
    }
    let started = Instant::now();
    let done = work();
    let elapsed = started.elapsed();
    TIMES.with_borrow_mut(|times| {
        if let Some(times) = times {
            times[operation as usize] += elapsed;
        }
    });
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchInput, KvDtype, LoadOptions, Logits, Source};

    #[test]
    fn a_step_is_its_operations() {
        let model = crate::load(&Source::Dummy("smollm2-135m".to_owned()), LoadOptions::default()).expect("a model");
        let mut cache = model.new_kv_cache(4, 16, KvDtype::F16).expect("a cache");
        let batch = BatchInput {
            tokens: vec![3, 4],
            positions: vec![0, 1],
            slots: vec![0, 1],
            row_ends: vec![2],
            context_lens: vec![2],
            block_tables: vec![0],
            block_table_ends: vec![1],
            sample_rows: vec![1],
            ..BatchInput::default()
        };
        let mut logits = Logits::default();
        start();
        let started = Instant::now();
        model.forward(&batch, &mut cache, &mut logits).expect("a step");
        let whole = started.elapsed();
        let times = take();
        let sum: Duration = times.iter().sum();
        assert!(sum <= whole && sum * 2 > whole, "{sum:?} of {whole:?}: {times:?}");
        for operation in [Operation::Qkv, Operation::Attention, Operation::Output, Operation::Logits] {
            assert!(!times[operation as usize].is_zero(), "{}", operation.name());
        }
        model.forward(&batch, &mut cache, &mut logits).expect("a step");
        assert_eq!(take(), Times::default(), "nothing is timed that nobody asked for");
    }
}
