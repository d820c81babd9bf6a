//! Responses that are being written: so that they can be seen and cancelled.
//!
//! An entry lives as long as its answer, and every answer holds a place in the pool's bounded queue: there are never
//! more entries than places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, watch};

use crate::store::Owner;

/// A writer whose client does not read is not waited for longer.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(in crate::api) struct Running {
    // Taken a handful of times a request, never a token.
    entries: Mutex<HashMap<String, Entry>>,
}

#[derive(Clone)]
struct Entry {
    owner: Owner,
    /// The response object as it began, then as it ended.
    object: watch::Receiver<Arc<Value>>,
    cancel: Arc<Notify>,
}

/// Held by who writes the answer; dropping it takes the entry out.
pub(super) struct Guard {
    running: Arc<Running>,
    id: String,
    object: watch::Sender<Arc<Value>>,
    cancel: Arc<Notify>,
}

impl Running {
    pub(super) fn begin(self: &Arc<Self>, owner: Owner, id: &str, object: Value) -> Guard {
        let (sender, receiver) = watch::channel(Arc::new(object));
        let cancel = Arc::new(Notify::new());
        let entry = Entry { owner, object: receiver, cancel: Arc::clone(&cancel) };
        self.lock().insert(id.to_owned(), entry);
        Guard { running: Arc::clone(self), id: id.to_owned(), object: sender, cancel }
    }

    /// The response object as it is now.
    pub(super) fn get(&self, owner: Owner, id: &str) -> Option<Arc<Value>> {
        self.entry(owner, id).map(|entry| Arc::clone(&entry.object.borrow()))
    }

    /// Cancels a response and returns what became of it; one that ends in the same moment ends as it does.
    pub(super) async fn cancel(&self, owner: Owner, id: &str) -> Option<Arc<Value>> {
        let mut entry = self.entry(owner, id)?;
        entry.cancel.notify_one();
        let ended = |object: &Arc<Value>| object["status"] != "in_progress";
        // An error is an answer that was dropped: its client went away first.
        let waited = tokio::time::timeout(CANCEL_WAIT, entry.object.wait_for(ended)).await;
        drop(waited);
        let object = Arc::clone(&entry.object.borrow());
        Some(object)
    }

    fn entry(&self, owner: Owner, id: &str) -> Option<Entry> {
        self.lock().get(id).filter(|entry| entry.owner == owner).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    pub fn cancel(&self) -> Arc<Notify> {
        Arc::clone(&self.cancel)
    }

    pub fn ended(&self, object: Value) {
        self.object.send_replace(Arc::new(object));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.running.lock().remove(&self.id);
    }
}
