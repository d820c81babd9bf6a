//! What is kept, for whom, and what goes first.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use tempfile::TempDir;

use super::*;

const ANN: Owner = [1; 32];
const BOB: Owner = [2; 32];
const LIMITS: ChainLimits = ChainLimits { responses_max: 10, bytes_max: 1 << 20 };
const ROOMY: Retention = Retention { age_s: 1000, bytes_max: 1 << 20 };

fn store(retention: Retention) -> (TempDir, ResponseStore) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = ResponseStore::start(&folder.path().join("deep/responses.db"), retention).expect("a thread");
    (folder, store)
}

fn row(id: &str, previous: Option<&str>) -> StoredResponse {
    StoredResponse {
        id: id.to_owned(),
        previous: previous.map(str::to_owned),
        response: json!({"id": id, "output": [{"id": format!("out_{id}"), "text": "o"}]}),
        input: vec![json!({"id": format!("in_{id}"), "text": "i"})],
    }
}

fn ids(rows: Option<Vec<StoredResponse>>) -> Option<Vec<String>> {
    rows.map(|rows| rows.into_iter().map(|row| row.id).collect())
}

#[tokio::test]
async fn rows_belong_to_their_owner() {
    let (_folder, store) = store(ROOMY);
    store.insert(ANN, row("a", None), 1).await.expect("written");
    assert_eq!(store.get(ANN, "a").await, Ok(Some(row("a", None))));
    assert_eq!(store.get(BOB, "a").await, Ok(None));
    assert_eq!(store.chain(BOB, "a", LIMITS, 1).await, Ok(None));
    assert_eq!(store.item(ANN, "in_a").await, Ok(Some(json!({"id": "in_a", "text": "i"}))));
    assert_eq!(store.item(ANN, "out_a").await, Ok(Some(json!({"id": "out_a", "text": "o"}))));
    assert_eq!(store.item(BOB, "out_a").await, Ok(None));
    assert_eq!(store.delete(BOB, "a").await, Ok(false));
    assert_eq!(store.delete(ANN, "a").await, Ok(true));
    assert_eq!(store.delete(ANN, "a").await, Ok(false));
    assert_eq!(store.item(ANN, "in_a").await, Ok(None), "items go with their response");
}

#[tokio::test]
async fn a_conversation_is_read_from_its_beginning() {
    let (_folder, store) = store(ROOMY);
    for (id, previous) in [("a", None), ("b", Some("a")), ("c", Some("b")), ("d", Some("b"))] {
        store.insert(ANN, row(id, previous), 1).await.expect("written");
    }
    let chain = async |id: &str, limits| store.chain(ANN, id, limits, 1).await.map(ids);
    assert_eq!(chain("d", LIMITS).await, Ok(Some(vec!["a".into(), "b".into(), "d".into()])));
    assert_eq!(chain("x", LIMITS).await, Ok(None));
    let short = ChainLimits { responses_max: 2, ..LIMITS };
    assert!(chain("d", short).await.expect_err("too long").message.contains("longer than 2 responses"));
    let small = ChainLimits { bytes_max: 100, ..LIMITS };
    assert!(chain("d", small).await.is_err());
    store.delete(ANN, "a").await.expect("deleted");
    assert_eq!(chain("d", LIMITS).await, Ok(None), "a conversation with a hole is no conversation");
}

#[tokio::test]
async fn old_rows_go_and_used_ones_stay() {
    let (_folder, store) = store(ROOMY);
    store.insert(ANN, row("a", None), 1000).await.expect("written");
    store.insert(ANN, row("b", Some("a")), 1001).await.expect("written");
    store.insert(ANN, row("lonely", None), 1002).await.expect("written");
    assert!(store.chain(ANN, "b", LIMITS, 1900).await.expect("read").is_some());
    store.insert(BOB, row("later", None), 2100).await.expect("written");
    let kept = async |id: &str| store.get(ANN, id).await.expect("read").is_some();
    assert!(kept("a").await && kept("b").await);
    assert!(!kept("lonely").await);
}

#[tokio::test]
async fn the_size_is_bounded() {
    let bytes_max = 10_000;
    let (_folder, store) = store(Retention { bytes_max, ..ROOMY });
    let large = |id: &str| StoredResponse { input: vec![json!({"id": id, "text": "x".repeat(3000)})], ..row(id, None) };
    for (at, id) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        store.insert(ANN, large(id), at as u64).await.expect("written");
    }
    let mut kept = Vec::new();
    for id in ["a", "b", "c", "d", "e"] {
        if store.get(ANN, id).await.expect("read").is_some() {
            kept.push(id);
        }
    }
    assert_eq!(kept, ["c", "d", "e"]);
}

#[tokio::test]
async fn a_restart_forgets_nothing_and_strangers_cannot_read() {
    let (folder, store) = store(ROOMY);
    store.insert(ANN, row("a", None), 1).await.expect("written");
    let path = store.path().to_owned();
    drop(store);
    let mode = std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let again = ResponseStore::start(&path, ROOMY).expect("a thread");
    assert_eq!(again.get(ANN, "a").await, Ok(Some(row("a", None))));
    // Two processes may share a file.
    let second = ResponseStore::start(&path, ROOMY).expect("a thread");
    second.insert(ANN, row("b", Some("a")), 2).await.expect("written");
    assert_eq!(again.chain(ANN, "b", LIMITS, 3).await.map(ids), Ok(Some(vec!["a".into(), "b".into()])));
    drop(folder);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("responses.db");
    std::fs::write(&path, "this is no database, but some other file of the user's").expect("written");
    let store = ResponseStore::start(&path, ROOMY).expect("a thread");
    let error = store.check().await.expect_err("not a database");
    assert!(error.message.contains("responses.db") && error.message.contains("--responses-store"), "{error}");
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(store.check().await, Ok(()), "it is tried again");

    let newer = folder.path().join("newer.db");
    rusqlite::Connection::open(&newer).and_then(|file| file.pragma_update(None, "user_version", 9)).expect("made");
    let error = ResponseStore::start(&newer, ROOMY).expect("a thread").check().await.expect_err("a newer form");
    assert!(error.message.contains("the form 9, this version reads 1"), "{error}");
}
