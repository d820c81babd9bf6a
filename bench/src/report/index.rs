//! An index page over a folder of committed results.

use std::path::Path;

use sconce_vocabulary::error::{Error, Result};

use super::html::escape;
use super::table::short;
use crate::metrics::Run;

const STYLE: &str = include_str!("page.css");

/// Links to every `.md`, `.html` and `.json` of the folder, newest name first, with the main figures of results.
pub fn index(folder: &Path) -> Result<String> {
    let failed = |why: std::io::Error| Error::invalid("--index", format!("--index: {}: {why}", folder.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        let known = [".md", ".html", ".json"].iter().any(|end| name.ends_with(end));
        if known && name != "index.html" && name != "README.md" {
            names.push(name);
        }
    }
    names.sort_by(|left, right| right.cmp(left));
    let mut rows = String::new();
    for name in &names {
        let link = format!("<a href=\"{}\">{}</a>", escape(name), escape(name));
        let path = folder.join(name);
        // JSON of other tools has no figures of ours to show.
        let runs = if name.ends_with(".json") { Run::read_all(&path).unwrap_or_default() } else { Vec::new() };
        if runs.is_empty() {
            rows.push_str(&format!(
                "<tr><td>{link}</td><td style=\"text-align:left\" colspan=\"6\">{}</td></tr>",
                escape(&title(&path))
            ));
        }
        for run in &runs {
            let number = |key: &str| run.number(key).map_or("-".to_owned(), short);
            rows.push_str(&format!(
                "<tr><td>{link}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&run.name()),
                escape(&run.load()),
                number("output_throughput"),
                number("median_ttft_ms"),
                number("median_itl_ms"),
                number("failed"),
            ));
        }
    }
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Measurements</title>\n<style>\n{STYLE}a {{ color: var(--c0); }}\n</style></head>\n<body><main><header><h1>Measurements</h1></header>\n\
         <p>One line a result or report of this folder, newest first.</p>\n<div class=\"scroll\"><table><thead><tr><th>file</th><th>result</th><th>load</th>\
         <th>output tokens/s</th><th>TTFT median, ms</th><th>ITL median, ms</th><th>failed</th></tr></thead><tbody>\n{rows}\n</tbody></table></div>\n\
         </main></body></html>\n"
    ))
}

/// The first heading of a text.
fn title(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let heading = text.lines().find_map(|line| line.strip_prefix("# "));
    let in_page =
        || text.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>")).map(|(title, _)| title);
    heading.or_else(in_page).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_has_every_result() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
        write("2026-01-01-a.md", "# The first <run>\ntext");
        write("2026-01-02-b.json", r#"{"label": "b", "output_throughput": 12.5}"#);
        write("ignored.raw", "x");
        let page = index(folder.path()).expect("an index");
        assert!(page.contains("The first &lt;run&gt;") && page.contains("12.50") && !page.contains("ignored"));
        assert!(page.find("2026-01-02").expect("there") < page.find("2026-01-01").expect("there"));
        assert!(index(&folder.path().join("absent")).is_err());
    }
}
