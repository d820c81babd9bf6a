//! `sconce bench report`: merge results into one page, index a folder, flag a regression.

use std::path::PathBuf;

use clap::Args;
use sconce_vocabulary::error::{Error, Result};
use serde_json::json;

use super::{Said, write};
use crate::args::positive;
use crate::metrics::Run;
use crate::report::{csv, html, index, regression, table};

/// Show results side by side, as a table, a page with plots, or CSV; results of `vllm bench serve` too.
#[derive(Args, Debug, Clone)]
pub struct ReportArgs {
    /// Results, as --output-json wrote them
    #[arg(value_name = "FILE", required_unless_present_any = ["index", "check"])]
    pub files: Vec<PathBuf>,
    /// Names for the results, in their order
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Write a page with plots that needs nothing from elsewhere
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write one line of figures a result as CSV
    #[arg(long, value_name = "FILE")]
    pub output_csv: Option<PathBuf>,
    /// Exit with 1 when the second file is worse than the first by more than so many percent (where both have confidence
    /// intervals, only if these do not overlap)
    #[arg(long, value_name = "PERCENT", value_parser = positive)]
    pub fail_above: Option<f64>,
    /// Hold the newest result of each name in a folder (YYYY-MM-DD-NAME.json) against the one before it, of the same machine;
    /// exit with 1 when one is worse by more than --fail-above percent, or 15
    #[arg(long, value_name = "FOLDER", conflicts_with = "files")]
    pub check: Option<PathBuf>,
    /// Write index.html over a folder of results
    #[arg(long, value_name = "FOLDER")]
    pub index: Option<PathBuf>,
}

/// What separate runs on shared machines differ by without a reason.
const CHECK_PERCENT: f64 = 15.0;

pub fn run(args: &ReportArgs) -> Result<Said> {
    let mut text = String::new();
    if let Some(folder) = &args.index {
        let path = folder.join("index.html");
        write(&path, &index::index(folder)?)?;
        text.push_str(&format!("wrote {}\n", path.display()));
    }
    let mut failed = false;
    if let Some(folder) = &args.check {
        let (lines, is_worse) = regression::check(folder, args.fail_above.unwrap_or(CHECK_PERCENT))?;
        text.push_str(&lines);
        failed |= is_worse;
    }
    let by_file = args.files.iter().map(|path| Run::read_all(path)).collect::<Result<Vec<_>>>()?;
    if let Some(percent) = args.fail_above.filter(|_| args.check.is_none()) {
        let [old, new] = by_file.as_slice() else {
            return Err(Error::invalid("--fail-above", "--fail-above: give two files, the older first"));
        };
        if old.len() != new.len() {
            let why =
                format!("--fail-above: the files have {} and {} results; compare like with like", old.len(), new.len());
            return Err(Error::invalid("--fail-above", why));
        }
        for (old, new) in old.iter().zip(new) {
            if old.load() != new.load() {
                let why = format!("--fail-above: '{}' and '{}' are different loads", old.load(), new.load());
                return Err(Error::invalid("--fail-above", why));
            }
            for line in regression::regressions(old, new, percent) {
                failed = true;
                text.push_str(&format!("regression, {}: {line}\n", new.load()));
            }
        }
        if !failed {
            text.push_str(&format!("no regression above {percent} %\n"));
        }
    }
    let mut runs: Vec<Run> = by_file.into_iter().flatten().collect();
    for (run, label) in runs.iter_mut().zip(&args.labels) {
        run.0.insert("label".to_owned(), json!(label));
    }
    if let Some(path) = &args.html {
        write(path, &html::page(&runs, &json!({})))?;
    }
    if let Some(path) = &args.output_csv {
        write(path, &csv::csv(&runs))?;
    }
    match runs.as_slice() {
        [] => {}
        [one] => text.push_str(&table::one(one)),
        many if many.len() <= 4 => text.push_str(&table::beside(many)),
        many => text.push_str(&table::ladder(many)),
    }
    Ok(Said { text, failed })
}
