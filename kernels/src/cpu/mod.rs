//! The CPU back end: slice-level kernels and the threads that run them.

pub mod dequant;
mod dequant_k;

use std::sync::atomic::{AtomicUsize, Ordering};

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// How many threads an operation may use, the calling one included. 0 means the default again.
pub fn set_threads(threads: usize) {
    THREADS.store(threads, Ordering::Relaxed);
}

/// Threads that an operation uses: what was set, or the cores this process may run on (affinity and cgroup quota).
pub fn threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        threads => threads,
    }
}
