//! The files of the pages, as they are in the binary.

use std::sync::OnceLock;

/// One file.
pub(super) struct Asset {
    pub name: &'static str,
    pub kind: &'static str,
    pub text: &'static str,
    tag: OnceLock<String>,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! asset {
    ($kind:expr, $name:literal) => {
        Asset { name: $name, kind: $kind, text: include_str!(concat!("pages/", $name)), tag: OnceLock::new() }
    };
}

static ASSETS: [Asset; 19] = [
    asset!(HTML, "chat.html"),
    asset!(HTML, "docs.html"),
    asset!(HTML, "usage.html"),
    asset!(CSS, "base.css"),
    asset!(CSS, "chat.css"),
    asset!(CSS, "docs.css"),
    asset!(CSS, "panel.css"),
    asset!(CSS, "usage.css"),
    asset!(SVG, "icon.svg"),
    asset!(SCRIPT, "chat.js"),
    asset!(SCRIPT, "conversation.js"),
    asset!(SCRIPT, "docs.js"),
    asset!(SCRIPT, "dom.js"),
    asset!(SCRIPT, "engine.js"),
    asset!(SCRIPT, "markdown.js"),
    asset!(SCRIPT, "schema.js"),
    asset!(SCRIPT, "settings.js"),
    asset!(SCRIPT, "stream.js"),
    asset!(SCRIPT, "usage.js"),
];

pub(super) fn named(name: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.name == name)
}

impl Asset {
    /// Pages have paths of their own.
    pub fn is_page(&self) -> bool {
        self.kind == HTML
    }

    pub fn tag(&self) -> &str {
        self.tag.get_or_init(|| super::tag_of(self.text))
    }
}
