//! The thread that owns the ledger's file: rows in batches, questions in between.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

use super::database::Database;
use super::{AttemptOutcome, LedgerEntry, Totals};
use crate::calendar::day_of;
use crate::error::{Error, Result};

/// Rows and questions that may wait for the thread.
const QUEUE_MESSAGES: usize = 16 * 1024;
/// Rows of one transaction.
const BATCH_ENTRIES_MAX: usize = 4096;
/// How long rows are gathered for one transaction, unless somebody asks meanwhile. Whatever the rate of requests, there are
/// few transactions, and who writes a row down wakes nobody.
const GATHER: Duration = Duration::from_millis(50);

type Call = Box<dyn FnOnce(&mut Result<Database>) + Send>;

pub(super) enum Message {
    Entry(Box<LedgerEntry>),
    Call(Call),
}

/// What sums are kept by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SumKey {
    pub day: u32,
    pub key: String,
    pub route: String,
    pub member: String,
    pub outcome: AttemptOutcome,
}

pub(super) type Sums = BTreeMap<SumKey, Totals>;

/// Sums that could not be queued or written. As many as there are combinations of names.
#[derive(Default)]
pub(super) struct Overflow {
    sums: Mutex<Sums>,
}

impl Overflow {
    pub fn add(&self, entry: &LedgerEntry) {
        add(&mut self.sums.lock().unwrap_or_else(PoisonError::into_inner), entry);
    }

    fn take(&self) -> Sums {
        std::mem::take(&mut self.sums.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn give_back(&self, sums: Sums) {
        let mut kept = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, totals) in sums {
            kept.entry(key).or_default().add(&totals);
        }
    }
}

fn add(sums: &mut Sums, entry: &LedgerEntry) {
    let key = SumKey {
        day: day_of(entry.at_s),
        key: entry.key.clone(),
        route: entry.route.clone(),
        member: entry.member.clone(),
        outcome: entry.outcome,
    };
    sums.entry(key).or_default().add(&Totals::of(entry));
}

/// The way to the thread, and what wakes it before its time.
pub(super) fn start(
    overflow: Arc<Overflow>,
    open: impl Fn() -> Result<Database> + Send + 'static,
) -> Result<(mpsc::Sender<Message>, Arc<Alarm>)> {
    let (sender, waiting) = mpsc::channel(QUEUE_MESSAGES);
    let alarm = Arc::new(Alarm::default());
    let heard = Arc::clone(&alarm);
    thread::Builder::new()
        .name("ledger".to_owned())
        .spawn(move || run(waiting, &heard, &overflow, open))
        .map_err(|why| Error::internal(format!("cannot start the thread of the ledger: {why}")))?;
    Ok((sender, alarm))
}

/// Ends the gathering of rows: somebody waits for an answer.
#[derive(Default)]
pub(super) struct Alarm {
    rings: Mutex<bool>,
    ringing: Condvar,
}

impl Alarm {
    pub fn ring(&self) {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ringing.notify_one();
    }

    /// Until it rings, but no longer than `most`.
    fn wait(&self, most: Duration) {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ringing.wait_timeout_while(rings, most, |rings| !*rings);
        let (mut rings, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *rings = false;
    }
}

fn run(mut waiting: mpsc::Receiver<Message>, alarm: &Alarm, overflow: &Overflow, open: impl Fn() -> Result<Database>) {
    let mut database: Option<Result<Database>> = None;
    let mut batch: Vec<LedgerEntry> = Vec::new();
    while let Some(message) = waiting.blocking_recv() {
        if matches!(message, Message::Entry(_)) {
            alarm.wait(GATHER);
        }
        let mut next = Some(message);
        let mut call = None;
        while let Some(message) = next.take() {
            match message {
                Message::Entry(entry) => batch.push(*entry),
                Message::Call(asked) => call = Some(asked),
            }
            if call.is_none() && batch.len() < BATCH_ENTRIES_MAX {
                next = waiting.try_recv().ok();
            }
        }
        let database = match database.as_mut() {
            Some(Ok(_)) => database.as_mut().expect("it was just looked at"),
            // What could not be opened may have become good, e.g. a folder that was mounted late.
            _ => database.insert(open()),
        };
        write(database, &mut batch, overflow);
        if let Some(call) = call {
            call(database);
        }
    }
}

/// Rows that cannot be written become sums in memory; the rows themselves are given up.
fn write(database: &mut Result<Database>, batch: &mut Vec<LedgerEntry>, overflow: &Overflow) {
    let mut sums = overflow.take();
    if batch.is_empty() && sums.is_empty() {
        return;
    }
    for entry in batch.iter() {
        add(&mut sums, entry);
    }
    let written = match database {
        Ok(database) => database.write(batch, &sums),
        Err(why) => Err(why.clone()),
    };
    if let Err(why) = written {
        tracing::error!(%why, entries = batch.len(), "the ledger could not be written; its sums are kept in memory");
        overflow.give_back(sums);
    }
    batch.clear();
}
