//! `sconce list --catalogue`: the models that have short names.

use super::output;
use crate::device::fit::human_bytes;
use crate::hub::catalogue::{self, Entry, Kind};

pub fn print() {
    let entries = catalogue::entries();
    let width = entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    output::line(&format!(
        "{:width$}  {:>10}  {:>8}  {:>8}  {:9}  {:24}  NOTE",
        "MODEL", "DOWNLOAD", "SIZE", "CONTEXT", "KIND", "LICENCE"
    ));
    for entry in entries {
        output::line(&format!(
            "{:width$}  {:>10}  {:>8}  {:>8}  {:9}  {:24}  {}",
            entry.name,
            human_bytes(entry.bytes),
            parameters(entry.parameters),
            entry.context,
            kind(entry.kind),
            entry.licence,
            note(entry)
        ));
    }
}

fn parameters(count: u64) -> String {
    let millions = count as f64 / 1e6;
    if millions < 1000.0 { format!("{millions:.0} M") } else { format!("{:.1} B", millions / 1000.0) }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Chat => "chat",
        Kind::Base => "base",
        Kind::Embedding => "embedding",
        Kind::Reranker => "reranker",
    }
}

fn note(entry: &Entry) -> &'static str {
    match (entry.is_served(), entry.gated) {
        (false, _) => "can be pulled, not served yet",
        (true, true) => "needs an account that accepted its licence (HF_TOKEN)",
        (true, false) => "",
    }
}
