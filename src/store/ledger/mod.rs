//! Who used what and what it cost: one row an attempt, and sums by day that outlive them.
//!
//! 1. Writing down never waits and never loses a token: rows go through a bounded queue to one thread; what finds it
//!    full, or the disk unwilling, is added to sums in memory, which the thread writes with the next batch.
//! 2. A batch of rows and their sums is one transaction: after a crash both are there or neither.
//! 3. Money is whole nano-USD. What has no known price is counted apart, never as zero.
//! 4. What was asked after a row was written down sees that row.

mod csv;
mod database;
#[cfg(test)]
mod tests;
mod thread;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::request::Usage;

pub use csv::{entries_csv, totals_csv};
use database::Database;
use thread::{Alarm, Message, Overflow};

/// One attempt of a request at one member.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerEntry {
    /// When it ended, Unix time in seconds.
    pub at_s: u64,
    /// The request's id, the same for all its attempts.
    pub request: String,
    pub key: String,
    pub route: String,
    pub member: String,
    pub outcome: AttemptOutcome,
    /// From 1.
    pub attempt: u32,
    pub usage: Usage,
    /// `None` where the price is not known.
    pub cost_nano_usd: Option<u64>,
    pub latency_ms: u64,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttemptOutcome {
    /// The client got this answer, whole.
    Answered,
    /// It failed: another attempt followed, or the client was told.
    Failed,
    /// The client went away.
    Cancelled,
    /// Another member's answer was taken.
    Discarded,
    /// For comparison only; no client asked for it.
    Shadow,
}

impl AttemptOutcome {
    pub const ALL: [Self; 5] = [Self::Answered, Self::Failed, Self::Cancelled, Self::Discarded, Self::Shadow];

    pub fn word(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Discarded => "discarded",
            Self::Shadow => "shadow",
        }
    }
}

/// Sums of attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub attempts: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub cache_write_tokens: u64,
    pub completion_tokens: u64,
    pub reasoning_tokens: u64,
    pub cost_nano_usd: u64,
    /// Attempts of which the price is not known; `cost_nano_usd` has nothing of them.
    pub unpriced: u64,
    pub latency_ms: u64,
}

impl Totals {
    pub fn of(entry: &LedgerEntry) -> Self {
        Self {
            attempts: 1,
            prompt_tokens: entry.usage.prompt_tokens.into(),
            cached_tokens: entry.usage.cached_tokens.into(),
            cache_write_tokens: entry.usage.cache_write_tokens.into(),
            completion_tokens: entry.usage.completion_tokens.into(),
            reasoning_tokens: entry.usage.reasoning_tokens.into(),
            cost_nano_usd: entry.cost_nano_usd.unwrap_or(0),
            unpriced: entry.cost_nano_usd.is_none().into(),
            latency_ms: entry.latency_ms,
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.cache_write_tokens += other.cache_write_tokens;
        self.completion_tokens += other.completion_tokens;
        self.reasoning_tokens += other.reasoning_tokens;
        self.cost_nano_usd = self.cost_nano_usd.saturating_add(other.cost_nano_usd);
        self.unpriced += other.unpriced;
        self.latency_ms += other.latency_ms;
    }
}

/// What sums are parted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupBy {
    Day,
    Key,
    Route,
    Member,
    Outcome,
}

impl GroupBy {
    pub const ALL: [Self; 5] = [Self::Day, Self::Key, Self::Route, Self::Member, Self::Outcome];

    /// The column, and the word of commands and endpoints.
    pub fn word(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Key => "key",
            Self::Route => "route",
            Self::Member => "member",
            Self::Outcome => "outcome",
        }
    }

    /// Words with commas between them.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut groups = Vec::new();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let found = Self::ALL.into_iter().find(|group| group.word() == word);
            let group = found.ok_or_else(|| format!("'{word}' is none of day, key, route, member and outcome"))?;
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        Ok(groups)
    }
}

/// Which attempts are wanted. Days are counted from 1970-01-01, both ends included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageQuery {
    pub from_day: Option<u32>,
    pub to_day: Option<u32>,
    pub key: Option<String>,
    pub route: Option<String>,
    pub member: Option<String>,
    pub by: Vec<GroupBy>,
}

/// Sums of one group; a column that was not grouped by is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageRow {
    pub day: Option<u32>,
    pub key: Option<String>,
    pub route: Option<String>,
    pub member: Option<String>,
    pub outcome: Option<String>,
    pub totals: Totals,
}

/// What a key or a route spent, for budgets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    pub day: u32,
    pub key: String,
    pub route: String,
    pub cost_nano_usd: u64,
}

/// A handle on the ledger's thread; cheap to clone. The thread writes what is left and ends with the last handle.
#[derive(Clone)]
pub struct Ledger {
    messages: tokio::sync::mpsc::Sender<Message>,
    alarm: Arc<Alarm>,
    overflow: Arc<Overflow>,
    path: PathBuf,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ledger").field(&self.path).finish()
    }
}

impl Ledger {
    /// Starts the thread. The file is opened, and made if need be, when something is first written or asked.
    pub fn start(path: &Path, entries_age_days: u32) -> Result<Self> {
        let overflow = Arc::new(Overflow::default());
        let opened = path.to_owned();
        let (messages, alarm) =
            thread::start(Arc::clone(&overflow), move || Database::open(&opened, entries_age_days))?;
        Ok(Self { messages, alarm, overflow, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes an attempt down. Returns at once.
    pub fn record(&self, entry: LedgerEntry) {
        use tokio::sync::mpsc::error::TrySendError;
        match self.messages.try_send(Message::Entry(Box::new(entry))) {
            Ok(()) => {}
            Err(TrySendError::Full(Message::Entry(entry)) | TrySendError::Closed(Message::Entry(entry))) => {
                self.overflow.add(&entry);
            }
            Err(_) => debug_assert!(false, "what comes back is what was sent"),
        }
    }

    /// Opens the file, to learn at the start whether it can be used.
    pub async fn check(&self) -> Result<()> {
        self.ask(|_| Ok(())).await
    }

    /// Returns when every row so far is on disk, as far as the operating system says so.
    pub async fn flush(&self) -> Result<()> {
        self.ask(|_| Ok(())).await
    }

    pub async fn usage(&self, query: UsageQuery) -> Result<Vec<UsageRow>> {
        self.ask(move |database| database.usage(&query)).await
    }

    /// Single attempts, oldest first, at most `limit`.
    pub async fn entries(&self, query: UsageQuery, limit: u32) -> Result<Vec<LedgerEntry>> {
        self.ask(move |database| database.entries(&query, limit)).await
    }

    /// What every key spent on every route since a day.
    pub async fn spent_since(&self, day: u32) -> Result<Vec<Spent>> {
        self.ask(move |database| database.spent_since(day)).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let call = Message::Call(Box::new(move |database: &mut Result<Database>| {
            let result = match database {
                Ok(database) => work(database),
                Err(why) => Err(why.clone()),
            };
            // Who asked may be gone.
            let _ = reply.send(result);
        }));
        let gone = || Error::new(ErrorKind::Unavailable, "the ledger has stopped; restart the server");
        self.messages.send(call).await.map_err(|_| gone())?;
        self.alarm.ring();
        answer.await.map_err(|_| gone())?
    }
}
