//! `sconce usage`: what was used and what it cost, read from the ledger. The server may be running.

use std::path::PathBuf;

use clap::Args;

use super::output;
use crate::calendar::{date_of, parse_date};
use crate::config::StorePlace;
use crate::config::pool::{ENTRIES_AGE_DAYS_DEFAULT, LEDGER_NAME};
use crate::error::{Error, ErrorKind, Result};
use crate::store::ledger::{GroupBy, Ledger, UsageQuery, UsageRow, entries_csv, totals_csv};

#[derive(Args)]
pub struct UsageArgs {
    /// The ledger's file [default: sconce/ledger.db in $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// What sums are parted by: day, key, route, member, outcome, with commas between
    #[arg(long, value_name = "WORDS", default_value = "day,member", value_parser = GroupBy::parse_list)]
    by: std::vec::Vec<GroupBy>,
    /// The first day, e.g. 2026-11-22 (UTC)
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<u32>,
    /// The last day
    #[arg(long, value_name = "DAY", value_parser = day)]
    to: Option<u32>,
    /// Of this key only
    #[arg(long)]
    key: Option<String>,
    /// Of this route only
    #[arg(long)]
    route: Option<String>,
    /// Of this member only
    #[arg(long)]
    member: Option<String>,
    /// Comma-separated values in place of a table
    #[arg(long)]
    csv: bool,
    /// Single attempts in place of sums, oldest first, as comma-separated values; at most this many
    #[arg(long, value_name = "N", conflicts_with = "csv")]
    entries: Option<u32>,
}

fn day(text: &str) -> Result<u32, String> {
    parse_date(text).ok_or_else(|| format!("'{text}' is not a day such as 2026-11-22"))
}

pub async fn usage(args: UsageArgs) -> Result<()> {
    let path = match (args.ledger, StorePlace::from_flag(None, LEDGER_NAME)) {
        (Some(path), _) | (None, StorePlace::Default(path) | StorePlace::Named(path)) => path,
        (None, StorePlace::Off) => return Err(Error::invalid("--ledger", "there is no home folder; give --ledger")),
    };
    if !path.exists() {
        let message = format!("there is no ledger at {}; give --ledger, or serve with members first", path.display());
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    let ledger = Ledger::start(&path, ENTRIES_AGE_DAYS_DEFAULT)?;
    let query = UsageQuery {
        from_day: args.from,
        to_day: args.to,
        key: args.key,
        route: args.route,
        member: args.member,
        by: args.by,
    };
    let text = match (args.entries, args.csv) {
        (Some(limit), _) => entries_csv(&ledger.entries(query, limit).await?),
        (None, true) => totals_csv(&ledger.usage(query).await?),
        (None, false) => table(&ledger.usage(query.clone()).await?, &query.by),
    };
    // Nobody reads any more: there is no one to tell either.
    let _ = output::print(&text);
    Ok(())
}

/// Aligned columns: names left, figures right.
fn table(rows: &[UsageRow], by: &[GroupBy]) -> String {
    let figures = ["attempts", "prompt", "cached", "completion", "cost USD", "unpriced"];
    let heads = by.iter().map(|group| group.word()).chain(figures);
    let mut lines: Vec<Vec<String>> = vec![heads.map(str::to_owned).collect()];
    for row in rows {
        let name = |group: &GroupBy| match group {
            GroupBy::Day => row.day.map(date_of),
            GroupBy::Key => row.key.clone(),
            GroupBy::Route => row.route.clone(),
            GroupBy::Member => row.member.clone(),
            GroupBy::Outcome => row.outcome.clone(),
        };
        let totals = &row.totals;
        let cost = sconce_route::Nanos(totals.cost_nano_usd).to_string().trim_start_matches('$').to_owned();
        let counts = [totals.attempts, totals.prompt_tokens, totals.cached_tokens, totals.completion_tokens];
        let figures = counts.map(|count| count.to_string()).into_iter().chain([cost, totals.unpriced.to_string()]);
        lines.push(by.iter().map(|group| name(group).unwrap_or_default()).chain(figures).collect());
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..lines[0].len()).map(width).collect();
    let padded = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column < by.len() {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(padded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ledger::Totals;

    #[test]
    fn a_table_is_aligned() {
        let totals = Totals { attempts: 12, prompt_tokens: 3456, cost_nano_usd: 1_500_000, ..Totals::default() };
        let row = UsageRow { day: Some(0), member: Some("m".into()), totals, ..UsageRow::default() };
        assert_eq!(
            table(&[row], &[GroupBy::Day, GroupBy::Member]),
            "day         member  attempts  prompt  cached  completion  cost USD  unpriced\n\
             1970-01-01  m             12    3456       0           0    0.0015         0\n"
        );
    }
}
