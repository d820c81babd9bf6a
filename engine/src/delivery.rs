// performance-critical: no lock, no log, no format
//! The way of progress to one client: one place of its channel is kept for the last message.

use std::time::Instant;

use tokio::sync::mpsc::Sender;

use super::handle::Progress;

/// The way back to one client, and what it has not taken yet.
pub(super) struct Delivery {
    pub progress: Sender<Progress>,
    pub submitted_at: Instant,
    pub started_at: Option<Instant>,
    /// Of a parked sequence: what its full channel did not take.
    pub unsent: Option<Progress>,
    /// The sequence is parked until its filter is back.
    pub awaits_filter: bool,
}

/// Half of the places are free: one that is parked again after each token would lose its seat each time.
pub(super) fn has_caught_up(sender: &Sender<Progress>) -> bool {
    sender.capacity() >= (sender.max_capacity() / 2).max(2)
}

/// Sends unless that would take the place kept for the terminal progress; then gives it back.
pub(super) fn try_deliver(sender: &Sender<Progress>, progress: Progress) -> Option<Progress> {
    if sender.capacity() < 2 {
        // Closed or full. A closed one is found out by the next look at the clients.
        return Some(progress);
    }
    let _ = sender.try_send(progress);
    None
}

/// What was not sent yet, then what is new.
pub(super) fn merge(unsent: Option<Progress>, new: Progress) -> Progress {
    let Some(mut unsent) = unsent else { return new };
    unsent.prompt = unsent.prompt.or(new.prompt);
    unsent.tokens.extend(new.tokens);
    unsent
}
