//! Work that takes a model's worth of memory, on a thread that ends with it.
//!
//! A thread of a pool would keep what the allocator has set aside for it after the model is gone; a thread that ends leaves
//! its memory to whoever frees it.

use tokio::sync::oneshot;

use crate::engine::allocator;
use crate::error::{Error, Result};

/// Runs `work` on a thread of its own, named `what`.
pub(super) async fn apart<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, outcome) = oneshot::channel();
    let thread = std::thread::Builder::new().name(what.to_owned()).spawn(move || {
        // Nobody may be left to hear it.
        let _ = done.send(work());
        allocator::give_back();
    });
    thread.map_err(|error| Error::internal(format!("no thread for {what} could be started: {error}")))?;
    outcome.await.map_err(|_| Error::internal(format!("{what} failed: its thread panicked; the log says where")))?
}
