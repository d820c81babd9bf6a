//! The ledger as comma-separated values (RFC 4180).

use crate::calendar::date_of;

use super::{LedgerEntry, Totals, UsageRow};

const SUMS: &str = "attempts,prompt_tokens,cached_tokens,cache_write_tokens,completion_tokens,reasoning_tokens,cost_usd,\
                    unpriced_attempts,latency_ms";

/// One line a group, with a head.
pub fn totals_csv(rows: &[UsageRow]) -> String {
    let mut text = format!("day,key,route,member,outcome,{SUMS}\r\n");
    for row in rows {
        let day = row.day.map(date_of).unwrap_or_default();
        let names = [Some(&day), row.key.as_ref(), row.route.as_ref(), row.member.as_ref(), row.outcome.as_ref()];
        for name in names {
            text += &field(name.map_or("", String::as_str));
            text.push(',');
        }
        text += &sums(&row.totals);
        text += "\r\n";
    }
    text
}

/// One line an attempt, with a head.
pub fn entries_csv(entries: &[LedgerEntry]) -> String {
    let mut text = "unix_s,request,key,route,member,outcome,attempt,prompt_tokens,cached_tokens,cache_write_tokens,\
                    completion_tokens,reasoning_tokens,cost_usd,latency_ms\r\n"
        .to_owned();
    for entry in entries {
        let usage = &entry.usage;
        let cost = entry.cost_nano_usd.map(usd).unwrap_or_default();
        let names = [&entry.request, &entry.key, &entry.route, &entry.member].map(|name| field(name)).join(",");
        text += &format!(
            "{},{names},{},{},{},{},{},{},{},{cost},{}\r\n",
            entry.at_s,
            entry.outcome.word(),
            entry.attempt,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.cache_write_tokens,
            usage.completion_tokens,
            usage.reasoning_tokens,
            entry.latency_ms
        );
    }
    text
}

fn sums(totals: &Totals) -> String {
    format!(
        "{},{},{},{},{},{},{},{},{}",
        totals.attempts,
        totals.prompt_tokens,
        totals.cached_tokens,
        totals.cache_write_tokens,
        totals.completion_tokens,
        totals.reasoning_tokens,
        usd(totals.cost_nano_usd),
        totals.unpriced,
        totals.latency_ms
    )
}

/// Exact: a float would round.
fn usd(nano: u64) -> String {
    format!("{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000)
}

/// Quoted where it must be. What a spreadsheet would take for a formula is made text.
fn field(text: &str) -> String {
    let text = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_where_needed() {
        for (text, expected) in [("a", "a"), ("a,b", "\"a,b\""), ("a\"b", "\"a\"\"b\""), ("=1+1", "'=1+1")] {
            assert_eq!(field(text), expected);
        }
        assert_eq!(usd(1_500_000_001), "1.500000001");
    }

    #[test]
    fn groups_are_lines() {
        let totals = Totals { attempts: 2, prompt_tokens: 7, cost_nano_usd: 3, ..Totals::default() };
        let text = totals_csv(&[UsageRow { day: Some(0), key: Some("ann".into()), totals, ..UsageRow::default() }]);
        assert_eq!(text.lines().nth(1), Some("1970-01-01,ann,,,,2,7,0,0,0,0,0.000000003,0,0"));
        assert_eq!(text.lines().next().map(|head| head.split(',').count()), Some(14));
    }
}
