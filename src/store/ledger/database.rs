//! The ledger's tables and the statements on them. Blocking; runs on the ledger's thread only.

use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params, params_from_iter};

use super::thread::Sums;
use super::{AttemptOutcome, GroupBy, LedgerEntry, Spent, Totals, UsageQuery, UsageRow};
use crate::calendar::day_of;
use crate::error::{Error, ErrorKind, Result};
use crate::request::Usage;
use crate::store::database::{make_private, prepare};

/// Of the file's form; kept in SQLite's own `user_version`.
const FORM: i64 = 1;
const DAY_S: u64 = 24 * 60 * 60;

const TABLES: &str = "
    CREATE TABLE totals (
        day INTEGER NOT NULL, key TEXT NOT NULL, route TEXT NOT NULL, member TEXT NOT NULL, outcome TEXT NOT NULL,
        attempts INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
        cache_write_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL,
        cost_nano_usd INTEGER NOT NULL, unpriced INTEGER NOT NULL, latency_ms INTEGER NOT NULL,
        PRIMARY KEY (day, key, route, member, outcome)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE entries (
        at_s INTEGER NOT NULL, request TEXT NOT NULL, key TEXT NOT NULL, route TEXT NOT NULL, member TEXT NOT NULL,
        outcome TEXT NOT NULL, attempt INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL, cache_write_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL, cost_nano_usd INTEGER, latency_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX entries_by_time ON entries (at_s);
    PRAGMA user_version = 1;
";

const ADD_TOTALS: &str = "
    INSERT INTO totals VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
    ON CONFLICT DO UPDATE SET
        attempts = attempts + excluded.attempts, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
        cached_tokens = cached_tokens + excluded.cached_tokens,
        cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,
        completion_tokens = completion_tokens + excluded.completion_tokens,
        reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens,
        cost_nano_usd = cost_nano_usd + excluded.cost_nano_usd, unpriced = unpriced + excluded.unpriced,
        latency_ms = latency_ms + excluded.latency_ms";

const SUMS: &str = "coalesce(sum(attempts), 0), coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0),
    coalesce(sum(cache_write_tokens), 0), coalesce(sum(completion_tokens), 0), coalesce(sum(reasoning_tokens), 0),
    coalesce(sum(cost_nano_usd), 0), coalesce(sum(unpriced), 0), coalesce(sum(latency_ms), 0)";

pub(super) struct Database {
    connection: Connection,
    entries_age_s: u64,
    /// The day on which old entries were last deleted.
    pruned_day: u32,
}

impl Database {
    pub fn open(path: &Path, entries_age_days: u32) -> Result<Self> {
        let refused = |why: &dyn std::fmt::Display| {
            let message =
                format!("cannot use the ledger {}: {why}; set [ledger] file to another or to \"off\"", path.display());
            Error::new(ErrorKind::Unavailable, message).with_code("ledger_unavailable")
        };
        make_private(path).map_err(|why| refused(&why))?;
        let connection = Connection::open(path).map_err(|why| refused(&why))?;
        let form = prepare(&connection, TABLES).map_err(|why| refused(&why))?;
        if form != FORM {
            return Err(refused(&format!("it has the form {form}, this version reads {FORM}")));
        }
        Ok(Self { connection, entries_age_s: u64::from(entries_age_days) * DAY_S, pruned_day: 0 })
    }

    /// Rows and the sums of all that is new, in one transaction.
    pub fn write(&mut self, entries: &[LedgerEntry], sums: &Sums) -> Result<()> {
        let newest_s = entries.iter().map(|entry| entry.at_s).max().unwrap_or(0);
        let prune = day_of(newest_s) > self.pruned_day;
        let oldest_s = newest_s.saturating_sub(self.entries_age_s);
        let written = (|| {
            let transaction = self.connection.transaction()?;
            {
                let mut add = transaction.prepare_cached(ADD_TOTALS)?;
                for (key, totals) in sums {
                    add.execute(params![
                        key.day,
                        key.key,
                        key.route,
                        key.member,
                        key.outcome.word(),
                        totals.attempts,
                        totals.prompt_tokens,
                        totals.cached_tokens,
                        totals.cache_write_tokens,
                        totals.completion_tokens,
                        totals.reasoning_tokens,
                        totals.cost_nano_usd,
                        totals.unpriced,
                        totals.latency_ms
                    ])?;
                }
                let query = "INSERT INTO entries VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
                let mut insert = transaction.prepare_cached(query)?;
                for entry in entries {
                    insert_entry(&mut insert, entry)?;
                }
            }
            if prune {
                transaction.execute("DELETE FROM entries WHERE at_s < ?1", [oldest_s])?;
            }
            transaction.commit()
        })();
        written.map_err(|why: rusqlite::Error| broken("write", &why))?;
        if prune {
            self.pruned_day = day_of(newest_s);
        }
        Ok(())
    }

    pub fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>> {
        let (condition, values) = conditions(query, "day");
        let columns: Vec<_> = query.by.iter().map(|group| group.word()).collect();
        let listed: String = columns.iter().map(|column| format!("{column}, ")).collect();
        let mut text = format!("SELECT {listed}{SUMS} FROM totals{condition}");
        if !columns.is_empty() {
            let columns = columns.join(", ");
            text += &format!(" GROUP BY {columns} ORDER BY {columns}");
        }
        let rows = (|| {
            let mut statement = self.connection.prepare(&text)?;
            let rows = statement.query_map(params_from_iter(values), |row| usage_row(row, &query.by))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })();
        let mut rows = rows.map_err(|why| broken("read", &why))?;
        // Sums without groups are one row, also of nothing.
        rows.retain(|row| row.totals.attempts > 0);
        Ok(rows)
    }

    pub fn entries(&self, query: &UsageQuery, limit: u32) -> Result<Vec<LedgerEntry>> {
        let (condition, values) = conditions(query, "at_s / 86400");
        let text = format!("SELECT * FROM entries{condition} ORDER BY at_s, rowid LIMIT {limit}");
        let rows = (|| {
            let mut statement = self.connection.prepare(&text)?;
            statement.query_map(params_from_iter(values), entry_row)?.collect::<rusqlite::Result<Vec<_>>>()
        })();
        rows.map_err(|why| broken("read", &why))
    }

    pub fn spent_since(&self, day: u32) -> Result<Vec<Spent>> {
        let query = "SELECT day, key, route, sum(cost_nano_usd) FROM totals WHERE day >= ?1 AND outcome != 'shadow'
                     GROUP BY day, key, route";
        let rows = (|| {
            let mut statement = self.connection.prepare(query)?;
            let rows = statement.query_map([day], |row| {
                Ok(Spent { day: row.get(0)?, key: row.get(1)?, route: row.get(2)?, cost_nano_usd: row.get(3)? })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })();
        rows.map_err(|why| broken("read", &why))
    }
}

fn insert_entry(insert: &mut rusqlite::CachedStatement<'_>, entry: &LedgerEntry) -> rusqlite::Result<usize> {
    let usage = &entry.usage;
    insert.execute(params![
        entry.at_s,
        entry.request,
        entry.key,
        entry.route,
        entry.member,
        entry.outcome.word(),
        entry.attempt,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.completion_tokens,
        usage.reasoning_tokens,
        entry.cost_nano_usd,
        entry.latency_ms
    ])
}

/// Column names come from here, values are bound.
fn conditions(query: &UsageQuery, day: &str) -> (String, Vec<Value>) {
    let mut parts = Vec::new();
    let mut values = Vec::new();
    let days = [(">=", query.from_day), ("<=", query.to_day)];
    for (sign, bound) in days.into_iter().filter_map(|(sign, bound)| Some((sign, bound?))) {
        parts.push(format!("{day} {sign} ?"));
        values.push(Value::Integer(bound.into()));
    }
    let names = [("key", &query.key), ("route", &query.route), ("member", &query.member)];
    for (column, name) in names.into_iter().filter_map(|(column, name)| Some((column, name.as_ref()?))) {
        parts.push(format!("{column} = ?"));
        values.push(Value::Text(name.clone()));
    }
    let text = if parts.is_empty() { String::new() } else { format!(" WHERE {}", parts.join(" AND ")) };
    (text, values)
}

fn usage_row(row: &Row<'_>, by: &[GroupBy]) -> rusqlite::Result<UsageRow> {
    let mut found = UsageRow::default();
    for (at, group) in by.iter().enumerate() {
        match group {
            GroupBy::Day => found.day = row.get(at)?,
            GroupBy::Key => found.key = row.get(at)?,
            GroupBy::Route => found.route = row.get(at)?,
            GroupBy::Member => found.member = row.get(at)?,
            GroupBy::Outcome => found.outcome = row.get(at)?,
        }
    }
    let at = by.len();
    found.totals = Totals {
        attempts: row.get(at)?,
        prompt_tokens: row.get(at + 1)?,
        cached_tokens: row.get(at + 2)?,
        cache_write_tokens: row.get(at + 3)?,
        completion_tokens: row.get(at + 4)?,
        reasoning_tokens: row.get(at + 5)?,
        cost_nano_usd: row.get(at + 6)?,
        unpriced: row.get(at + 7)?,
        latency_ms: row.get(at + 8)?,
    };
    Ok(found)
}

fn entry_row(row: &Row<'_>) -> rusqlite::Result<LedgerEntry> {
    let outcome: String = row.get(5)?;
    let known = AttemptOutcome::ALL.into_iter().find(|known| known.word() == outcome);
    Ok(LedgerEntry {
        at_s: row.get(0)?,
        request: row.get(1)?,
        key: row.get(2)?,
        route: row.get(3)?,
        member: row.get(4)?,
        outcome: known.unwrap_or(AttemptOutcome::Failed),
        attempt: row.get(6)?,
        usage: Usage {
            prompt_tokens: row.get(7)?,
            cached_tokens: row.get(8)?,
            cache_write_tokens: row.get(9)?,
            completion_tokens: row.get(10)?,
            reasoning_tokens: row.get(11)?,
        },
        cost_nano_usd: row.get(12)?,
        latency_ms: row.get(13)?,
    })
}

fn broken(what: &str, why: &rusqlite::Error) -> Error {
    tracing::error!(%why, what, "the ledger failed");
    Error::internal(format!("the ledger could not {what}; the server's log says more")).with_code("ledger_failed")
}
