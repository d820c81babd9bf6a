//! `GET /v1/usage`: sums of the ledger.
//!
//! A key sees its own use; a key without limits, or anyone where no keys are needed, sees everybody's.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::AppState;
use crate::api::error::{Failure, shortened};
use crate::api::openai::origin::Origin;
use crate::calendar::{date_of, parse_date};
use crate::error::{Error, ErrorKind, Result};
use crate::store::ledger::{GroupBy, UsageQuery, UsageRow, totals_csv};

/// Which sums are wanted.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Wanted {
    /// What sums are parted by, with commas between: `day`, `key`, `route`, `member`, `outcome`. One sum of all without it.
    by: Option<String>,
    /// The first day, e.g. `2026-11-22` (UTC).
    from: Option<String>,
    /// The last day.
    to: Option<String>,
    /// Of this key only.
    key: Option<String>,
    /// Of this route only.
    route: Option<String>,
    /// Of this member only.
    member: Option<String>,
    /// `json` or `csv`.
    #[schemars(extend("enum" = ["json", "csv", null]))]
    format: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "UsageList")]
pub(in crate::api) struct List {
    #[schemars(extend("const" = "list"))]
    object: &'static str,
    data: Vec<Row>,
}

/// Sums of one group. Names that were not asked for are null.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "UsageRow")]
struct Row {
    day: Option<String>,
    key: Option<String>,
    route: Option<String>,
    member: Option<String>,
    /// `answered`, `failed`, `cancelled`, `discarded` (another answer was taken) or `shadow` (for comparison only).
    outcome: Option<String>,
    attempts: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    cache_write_tokens: u64,
    completion_tokens: u64,
    reasoning_tokens: u64,
    /// In billionths of a US dollar, of the attempts with a known price.
    cost_nano_usd: u64,
    /// Attempts of which no price is known.
    unpriced_attempts: u64,
    latency_ms: u64,
}

impl From<UsageRow> for Row {
    fn from(row: UsageRow) -> Self {
        let totals = row.totals;
        Self {
            day: row.day.map(date_of),
            key: row.key,
            route: row.route,
            member: row.member,
            outcome: row.outcome,
            attempts: totals.attempts,
            prompt_tokens: totals.prompt_tokens,
            cached_tokens: totals.cached_tokens,
            cache_write_tokens: totals.cache_write_tokens,
            completion_tokens: totals.completion_tokens,
            reasoning_tokens: totals.reasoning_tokens,
            cost_nano_usd: totals.cost_nano_usd,
            unpriced_attempts: totals.unpriced,
            latency_ms: totals.latency_ms,
        }
    }
}

pub(in crate::api) async fn usage(
    State(state): State<AppState>,
    origin: Origin,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(wanted) = wanted.map_err(|why| {
        let message = format!(
            "the query is not understood ({}); send by, from, to, key, route, member or format",
            shortened(&why.body_text())
        );
        Error::invalid("query", message)
    })?;
    let Some(ledger) = state.pool.shared().ledger.clone() else {
        let message = "this server keeps no ledger; set [ledger] file in its configuration";
        return Err(Error::new(ErrorKind::InvalidRequest, message).with_code("no_ledger").into());
    };
    let as_csv = match wanted.format.as_deref() {
        None | Some("json") => false,
        Some("csv") => true,
        Some(_) => return Err(Error::invalid("format", "format must be json or csv").into()),
    };
    let rows = ledger.usage(checked(wanted, &origin)?).await?;
    if as_csv {
        return Ok(([(CONTENT_TYPE, "text/csv; charset=utf-8")], totals_csv(&rows)).into_response());
    }
    Ok(axum::Json(List { object: "list", data: rows.into_iter().map(Row::from).collect() }).into_response())
}

fn checked(wanted: Wanted, origin: &Origin) -> Result<UsageQuery> {
    let day = |name: &str, text: Option<String>| {
        let read = |text: String| {
            let wrong = || Error::invalid(name, format!("{name} is not a day such as 2026-11-22"));
            parse_date(&text).ok_or_else(wrong)
        };
        text.map(read).transpose()
    };
    let own = origin.caller.name();
    let key = match wanted.key {
        key if origin.caller.is_operator() => key,
        Some(other) if other != own => {
            let message = format!("the API key '{own}' may see its own use only");
            return Err(Error::new(ErrorKind::Forbidden, message).with_param("key").with_code("not_allowed"));
        }
        _ => Some(own.to_owned()),
    };
    let by = wanted.by.as_deref().map(GroupBy::parse_list).transpose();
    Ok(UsageQuery {
        from_day: day("from", wanted.from)?,
        to_day: day("to", wanted.to)?,
        key,
        route: wanted.route,
        member: wanted.member,
        by: by.map_err(|why| Error::invalid("by", format!("by: {}", shortened(&why))))?.unwrap_or_default(),
    })
}
