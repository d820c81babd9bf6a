// performance-critical: no allocation per token, no lock that can wait, no log, no format
//! A fork-join pool: the calling thread leads, parked workers help, and both take chunks from one counter.
//!
//! Invariants: a call returns only after every chunk has run and no worker touches the caller's data any more. It
//! never waits for a worker that has not started, so a sleeping or descheduled worker costs nothing. While one
//! thread leads, every other caller (also a chunk that calls again) runs its chunks itself.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Longer than the gap between two operations of a step, shorter than anyone notices on an idle machine.
const SPIN: Duration = Duration::from_micros(50);
/// Upper bound on threads, far above any machine's gain for one operation.
const THREADS_MAX: usize = 256;
/// Set in `gate` while workers may enter; the bits below count those inside.
const OPEN: u32 = 1 << 31;

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// How many threads an operation may use, the calling one included. 0 means the default again.
pub fn set_threads(threads: usize) {
    THREADS.store(threads.min(THREADS_MAX), Ordering::Relaxed);
}

/// Threads that an operation uses: what was set, or the cores this process may run on (affinity and cgroup quota).
pub fn threads() -> usize {
    static DEFAULT: OnceLock<usize> = OnceLock::new();
    match THREADS.load(Ordering::Relaxed) {
        0 => *DEFAULT
            .get_or_init(|| std::thread::available_parallelism().map_or(1, |cores| cores.get().min(THREADS_MAX))),
        threads => threads,
    }
}

/// One call of [`run`], on the leader's stack.
struct Job<'a> {
    run: &'a (dyn Fn(usize) + Sync),
    chunks: usize,
    next: AtomicUsize,
    leader: Thread,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job<'_> {
    /// Runs chunks until none is left. A panic ends the job for everyone and is kept for the leader.
    fn work(&self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let chunk = self.next.fetch_add(1, Ordering::Relaxed);
                if chunk >= self.chunks {
                    return;
                }
                (self.run)(chunk);
            }
        }));
        if let Err(payload) = outcome {
            // Half of the counter's range is left for the fetch_adds that still come.
            self.next.store(usize::MAX / 2, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }
}

struct Pool {
    /// The workers; held by the leading thread. Only ever tried, so nobody waits for it.
    workers: Mutex<Vec<Worker>>,
    gate: AtomicU32,
    /// Counts the jobs; workers watch it.
    jobs: AtomicU32,
    /// Only workers below this index may enter.
    limit: AtomicUsize,
    /// Valid for a worker between entering and leaving the gate.
    job: AtomicPtr<Job<'static>>,
}

struct Worker {
    thread: Thread,
    parked: Arc<AtomicBool>,
}

static POOL: Pool = Pool {
    workers: Mutex::new(Vec::new()),
    gate: AtomicU32::new(0),
    jobs: AtomicU32::new(0),
    limit: AtomicUsize::new(0),
    job: AtomicPtr::new(std::ptr::null_mut()),
};

/// Calls `run(0)` to `run(chunks - 1)`, each once, on the calling thread and the pool's workers. A panic in any of
/// them is thrown again here, after all workers have stopped.
pub fn run(chunks: usize, run: &(dyn Fn(usize) + Sync)) {
    let wanted = threads().min(chunks);
    if wanted > 1 {
        // A poisoned lock only says that an earlier job panicked; the list of workers is whole.
        let workers = match POOL.workers.try_lock() {
            Ok(workers) => Some(workers),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(mut workers) = workers {
            POOL.grow(&mut workers, wanted - 1);
            return POOL.lead(&workers[..workers.len().min(wanted - 1)], chunks, run);
        }
    }
    (0..chunks).for_each(run);
}

impl Pool {
    /// Starts workers up to `wanted`. Where the OS refuses a thread, fewer work.
    fn grow(&'static self, workers: &mut Vec<Worker>, wanted: usize) {
        while workers.len() < wanted {
            let (index, parked) = (workers.len(), Arc::new(AtomicBool::new(false)));
            let builder = std::thread::Builder::new().name(format!("sconce-cpu-{}", index + 1));
            let flag = parked.clone();
            let Ok(handle) = builder.spawn(move || self.serve(index, &flag)) else { return };
            workers.push(Worker { thread: handle.thread().clone(), parked });
        }
    }

    fn lead(&self, workers: &[Worker], chunks: usize, run: &(dyn Fn(usize) + Sync)) {
        let leader = std::thread::current();
        let job = Job { run, chunks, next: AtomicUsize::new(0), leader, panic: Mutex::new(None) };
        self.job.store((&raw const job).cast_mut().cast(), Ordering::Relaxed);
        self.limit.store(workers.len(), Ordering::Relaxed);
        // Release: who enters through the gate sees the job.
        self.gate.fetch_or(OPEN, Ordering::Release);
        self.jobs.fetch_add(1, Ordering::SeqCst);
        for worker in workers {
            // SeqCst on both sides: either this sees the flag or the worker sees the new job before it parks.
            if worker.parked.load(Ordering::SeqCst) && worker.parked.swap(false, Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        job.work();
        self.close();
        let payload = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }

    /// Lets no more workers in and waits until those inside have left.
    fn close(&self) {
        let mut inside = self.gate.fetch_and(!OPEN, Ordering::Acquire) & !OPEN;
        let mut spin = Spin::new();
        while inside != 0 {
            if !spin.more() {
                std::thread::park();
            }
            inside = self.gate.load(Ordering::Acquire);
        }
    }

    /// A worker's life: watch for jobs for a moment, then sleep until the leader wakes it.
    fn serve(&self, index: usize, parked: &AtomicBool) {
        let mut seen = 0;
        loop {
            let mut spin = Spin::new();
            while self.jobs.load(Ordering::SeqCst) == seen {
                if spin.more() {
                    continue;
                }
                parked.store(true, Ordering::SeqCst);
                while parked.load(Ordering::SeqCst) && self.jobs.load(Ordering::SeqCst) == seen {
                    std::thread::park();
                }
                parked.store(false, Ordering::SeqCst);
            }
            seen = self.jobs.load(Ordering::SeqCst);
            if index < self.limit.load(Ordering::Relaxed) && self.enter() {
                // SAFETY: the leader of this job waits in `close` until this worker has left the gate.
                let job = unsafe { &*self.job.load(Ordering::Relaxed) };
                job.work();
                self.leave(job);
            }
        }
    }

    fn enter(&self) -> bool {
        let mut gate = self.gate.load(Ordering::Relaxed);
        while gate & OPEN != 0 {
            match self.gate.compare_exchange_weak(gate, gate + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => gate = now,
            }
        }
        false
    }

    /// After the exchange succeeds the job may be gone, so the leader's handle is taken before.
    fn leave(&self, job: &Job) {
        let mut gate = self.gate.load(Ordering::Relaxed);
        loop {
            let leader = (gate == 1).then(|| job.leader.clone());
            match self.gate.compare_exchange_weak(gate, gate - 1, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return leader.into_iter().for_each(|leader| leader.unpark()),
                Err(now) => gate = now,
            }
        }
    }
}

/// Busy waiting with an end.
struct Spin {
    rounds: u32,
    started: Option<Instant>,
}

impl Spin {
    fn new() -> Self {
        Spin { rounds: 0, started: None }
    }

    /// Passes a few nanoseconds; false once [`SPIN`] is over.
    fn more(&mut self) -> bool {
        std::hint::spin_loop();
        self.rounds += 1;
        // Reading the clock is dearer than a round.
        if !self.rounds.is_multiple_of(32) {
            return true;
        }
        self.started.get_or_insert_with(Instant::now).elapsed() < SPIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(chunks: usize) -> Vec<AtomicUsize> {
        (0..chunks).map(|_| AtomicUsize::new(0)).collect()
    }

    fn count(count: &AtomicUsize) {
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn all_once(counts: &[AtomicUsize]) -> bool {
        counts.iter().all(|count| count.load(Ordering::Relaxed) == 1)
    }

    #[test]
    fn every_chunk_runs_once_whatever_the_number_of_threads() {
        for (threads, chunks) in [(1, 5), (2, 1), (2, 1000), (5, 3), (8, 64), (3, 0)] {
            set_threads(threads);
            for _ in 0..200 {
                let seen = counts(chunks);
                run(chunks, &|chunk| count(&seen[chunk]));
                assert!(all_once(&seen), "{threads} threads, {chunks} chunks");
            }
        }
        set_threads(0);
        assert!(threads() >= 1);
    }

    #[test]
    fn several_leaders_and_nested_calls_finish() {
        set_threads(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let seen = counts(40);
                        run(8, &|outer| {
                            run(5, &|inner| count(&seen[outer * 5 + inner]));
                        });
                        assert!(all_once(&seen));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_in_any_chunk_reaches_the_caller_and_the_pool_lives_on() {
        set_threads(3);
        for bad in [0, 7, 63] {
            let outcome = catch_unwind(|| run(64, &|chunk| assert!(chunk != bad, "chunk {chunk}")));
            let payload = outcome.expect_err("the panic must come out");
            assert_eq!(payload.downcast_ref::<String>(), Some(&format!("chunk {bad}")));
            let seen = counts(64);
            run(64, &|chunk| count(&seen[chunk]));
            assert!(all_once(&seen));
        }
    }
}
