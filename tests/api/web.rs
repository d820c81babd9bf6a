//! The pages for people: their headers, their parts, and that they need nobody else.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use sconce::api::ApiConfig;

use crate::fake::*;

async fn ask_for(app: &axum::Router, path: &str, header: (&str, &str)) -> Answer {
    ask(app, Request::get(path).header(header.0, header.1).body(Body::empty()).unwrap()).await
}

const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");

/// Every file that the page at `path` uses, itself included, found by following what refers to what.
async fn files(app: &axum::Router, path: &str) -> Vec<(String, Answer)> {
    let mut found = vec![(path.to_owned(), ask_for(app, path, BROWSER).await)];
    let mut at = 0;
    while at < found.len() {
        let text = found[at].1.text.clone();
        let own = text.split(['"', '\'', '(', ')']).filter_map(|word| match word.strip_prefix("./") {
            Some(name) => Some(format!("/web/{name}")),
            None => word.starts_with("/web/").then(|| word.to_owned()),
        });
        for name in own.filter(|name| name.rsplit('/').next().is_some_and(|name| name.contains('.'))) {
            if found.iter().all(|(known, _)| *known != name) {
                let answer = get(app, &name).await;
                assert_eq!(answer.status, StatusCode::OK, "{path} needs {name}: {}", answer.text);
                found.push((name, answer));
            }
        }
        at += 1;
    }
    found
}

#[tokio::test]
async fn browsers_get_a_page_and_clients_what_they_got_before() {
    let app = app(&Fake::hello());
    let answer = ask_for(&app, "/", BROWSER).await;
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    for header in [("accept", "*/*"), ("accept", "application/json"), ("user-agent", "x")] {
        let answer = ask_for(&app, "/", header).await;
        assert_eq!((answer.json()["name"].as_str(), answer.header("vary")), (Some("sconce"), "accept"));
    }
    assert_eq!(get(&app, "/docs").await.header("content-type"), "text/html; charset=utf-8");
    for unknown in ["/web/nothing.js", "/web/chat.html", "/web/%ff", "/web/..%2fmod.rs"] {
        assert_eq!(get(&app, unknown).await.status, StatusCode::NOT_FOUND, "{unknown}");
    }
}

#[tokio::test]
async fn pages_are_strict_and_whole() {
    let app = app(&Fake::hello());
    for (page, least) in [("/", 10), ("/docs", 5), ("/usage", 6)] {
        let files = files(&app, page).await;
        assert!(files.len() >= least, "{page} has {} files", files.len());
        for (name, answer) in &files {
            let policy = answer.header("content-security-policy");
            assert!(policy.starts_with("default-src 'self';") && !policy.contains("unsafe"), "{name}: {policy}");
            assert_eq!(answer.header("x-content-type-options"), "nosniff", "{name}");
            assert_eq!(answer.header("cache-control"), "no-cache", "{name}");
            let sent = ask_for(&app, name, ("if-none-match", answer.header("etag"))).await;
            let again = if page == name && page == "/" { None } else { Some(sent.status) };
            assert!(again.is_none_or(|status| status == StatusCode::NOT_MODIFIED), "{name}");
        }
    }
}

/// Nothing from outside, and nothing that a strict policy would block or that reads text as HTML.
#[tokio::test]
async fn no_file_leads_outside_or_reads_text_as_markup() {
    let app = app(&Fake::hello());
    for page in ["/", "/docs", "/usage"] {
        for (name, answer) in files(&app, page).await {
            let text = answer.text.replace("http://www.w3.org/", "");
            for banned in [
                "http://",
                "https://",
                "//cdn",
                "@import",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "style=",
                "onclick=",
                "localStorage",
                "javascript:",
            ] {
                let found = text.lines().find(|line| line.contains(banned));
                assert!(found.is_none(), "{name} has {banned}: {}", found.unwrap_or_default());
            }
        }
    }
}

#[tokio::test]
async fn pages_can_be_switched_off() {
    let app = app_with(&Fake::hello(), ApiConfig { web: false, ..ApiConfig::default() });
    assert_eq!(ask_for(&app, "/", BROWSER).await.json()["name"], "sconce");
    for path in ["/docs", "/usage", "/web/chat.js"] {
        assert_eq!(app_status(&app, path).await, StatusCode::NOT_FOUND, "{path}");
    }
}

async fn app_status(app: &axum::Router, path: &str) -> StatusCode {
    let request = Request::get(path).body(Body::empty()).unwrap();
    tower::ServiceExt::oneshot(app.clone(), request).await.expect("infallible").status()
}
