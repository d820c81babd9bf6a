//! Downloads from a fake hub: resumed, checked, shared between processes, and refused with a next step.

#![cfg(feature = "hub")]

mod fake;
mod wheel;

use std::path::Path;
use std::time::{Duration, Instant};

use fake::{COMMIT, FakeHub, Fault, Record, bytes, sha256, tree};
use sconce::error::{Error, ErrorKind};
use sconce::hub::progress::Silent;
use sconce::hub::{HubOptions, LocalFiles, LocalModel, ModelRef, fetch, list_local, remove};

/// More than the channel between network and disk holds.
const SIZE: usize = 3_000_000;

async fn get(text: &str, options: &HubOptions) -> Result<LocalModel, Error> {
    fetch(&ModelRef::parse(text).unwrap(), options, &Silent).await
}

fn gguf(model: LocalModel) -> Vec<u8> {
    let LocalFiles::Gguf(path) = model.files else { panic!("{model:?} is no gguf file") };
    std::fs::read(path).unwrap()
}

/// Nothing that a reader could take for a whole file.
fn assert_nothing_published(cache: &Path) {
    let files = tree(cache);
    let is_published = |file: &&String| {
        file.contains("/snapshots/")
            || file.contains("/refs/")
            || file.contains("/blobs/") && !file.ends_with(".incomplete")
    };
    assert_eq!(files.iter().find(is_published), None, "{files:#?}");
}

#[tokio::test]
async fn a_folder_of_safetensors_lands_in_the_standard_layout() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    let weights = bytes(SIZE);
    hub.small("config.json", "{}").small("tokenizer.json", "[1]").small("README.md", "# m");
    hub.large("model.safetensors", weights.clone()).large("pytorch_model.bin", "no").small("../../evil.json", "no");
    hub.small("1_Pooling/config.json", "[2]");
    let options = hub.options(cache.path());

    let model = get("org/m", &options).await.unwrap();
    assert_eq!((model.name.as_str(), model.reference.as_str()), ("org/m", "org/m"));
    let LocalFiles::Folder(folder) = &model.files else { panic!("{model:?}") };
    let expected = ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(tree(folder), expected);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert_eq!(std::fs::read(folder.join("1_Pooling/config.json")).unwrap(), b"[2]");

    let repo = cache.path().join("models--org--m");
    assert_eq!(*folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let link = std::fs::read_link(folder.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(&weights)));
    assert!(!tree(cache.path()).iter().any(|file| file.ends_with(".incomplete") || file.ends_with(".tmp")));

    hub.forget();
    assert_eq!(get("org/m", &options).await.unwrap(), model);
    assert_eq!(hub.seen().len(), 0, "a cached model asked the hub");

    let listed = list_local(&options).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].reference.as_str(), listed[0].files), ("org/m", 4));
    assert_eq!(listed[0].bytes, SIZE as u64 + 2 + 3 + 3);
    let removed = remove(&ModelRef::parse("org/m").unwrap(), &options).unwrap();
    assert_eq!(removed.bytes, listed[0].bytes);
    assert!(!repo.exists());
}

#[tokio::test]
async fn a_cut_connection_is_resumed_at_the_byte() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    let content = bytes(SIZE);
    hub.large("m.gguf", content.clone()).fault("m.gguf", Fault::Cut(100_000)).fault("m.gguf", Fault::Cut(50_000));
    let record = Record::default();
    let reference = ModelRef::parse("org/m:m.gguf").unwrap();
    let model = fetch(&reference, &hub.options(cache.path()), &record).await.unwrap();
    assert_eq!(gguf(model), content);
    let ranges: Vec<_> = hub.gets("m.gguf").into_iter().map(|seen| seen.range).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".into()), Some("bytes=150000-".into())]);
    assert!(record.notes().contains("trying again"), "{}", record.notes());
    assert_eq!(*record.finished.lock().unwrap(), ["m.gguf"]);
}

#[tokio::test]
async fn a_later_process_goes_on_where_an_earlier_one_stopped() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    let content = bytes(SIZE);
    hub.large("m.gguf", content.clone()).fault("m.gguf", Fault::Cut(100_000));
    let mut options = hub.options(cache.path());
    options.patience.tries = 1;
    let error = get("org/m:m.gguf", &options).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("start again") && !error.message.contains("secret"), "{error}");
    assert_nothing_published(cache.path());
    let listed = list_local(&options).unwrap();
    assert_eq!((listed[0].is_complete, listed[0].bytes), (false, 100_000));

    let record = Record::default();
    let model = fetch(&ModelRef::parse("org/m:m.gguf").unwrap(), &options, &record).await.unwrap();
    assert_eq!(gguf(model), content);
    assert_eq!(hub.gets("m.gguf")[1].range.as_deref(), Some("bytes=100000-"));
    assert_eq!(record.started(), [("m.gguf".to_owned(), 100_000, Some(SIZE as u64))]);
}

#[tokio::test]
async fn a_dropped_download_keeps_its_bytes() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    let content = bytes(SIZE);
    hub.large("m.gguf", content.clone()).fault("m.gguf", Fault::Stall(100_000));
    let mut options = hub.options(cache.path());
    options.patience.idle_ms = 10_000;
    let reference = ModelRef::parse("org/m:m.gguf").unwrap();
    let record = Record::default();
    tokio::select! {
        result = fetch(&reference, &options, &record) => panic!("{result:?}"),
        () = record.advanced.notified() => {}
    }
    assert_nothing_published(cache.path());
    let model = fetch(&reference, &options, &record).await.unwrap();
    assert_eq!(gguf(model), content);
    let kept = record.started()[1].1;
    assert!(kept > 0, "nothing was kept");
    assert_eq!(hub.gets("m.gguf")[1].range, Some(format!("bytes={kept}-")));
}

#[tokio::test]
async fn a_stalled_connection_is_given_up_and_resumed() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.large("m.gguf", bytes(SIZE)).fault("m.gguf", Fault::Stall(100_000));
    let mut options = hub.options(cache.path());
    // A busy machine may stall by itself: then there are more tries.
    (options.patience.idle_ms, options.patience.tries) = (100, 20);
    let record = Record::default();
    let model = fetch(&ModelRef::parse("org/m:m.gguf").unwrap(), &options, &record).await.unwrap();
    assert_eq!(gguf(model), bytes(SIZE));
    assert!(hub.gets("m.gguf").iter().any(|seen| seen.range.as_deref() == Some("bytes=100000-")));
    assert!(record.notes().contains("nothing came for 0.1 s"), "{}", record.notes());
}

#[tokio::test]
async fn a_hub_without_ranges_costs_a_restart_only() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.large("m.gguf", bytes(SIZE)).fault("m.gguf", Fault::Cut(100_000)).fault("m.gguf", Fault::NoRange);
    assert_eq!(gguf(get("org/m", &hub.options(cache.path())).await.unwrap()), bytes(SIZE));
    assert_eq!(hub.gets("m.gguf").len(), 2);
}

#[tokio::test]
async fn small_files_resume_only_under_their_etag() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.small("m.gguf", bytes(SIZE)).fault("m.gguf", Fault::Cut(100_000));
    assert_eq!(gguf(get("org/m", &hub.options(cache.path())).await.unwrap()), bytes(SIZE));
    let second = &hub.gets("m.gguf")[1];
    assert_eq!(second.range.as_deref(), Some("bytes=100000-"));
    assert_eq!(second.if_range, Some(format!("\"{}\"", &sha256(&bytes(SIZE))[..40])));
}

#[tokio::test]
async fn wrong_bytes_are_deleted_and_named() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.large("m.gguf", bytes(SIZE)).fault("m.gguf", Fault::Wrong);
    let options = hub.options(cache.path());
    let error = get("org/m", &options).await.unwrap_err();
    for part in ["'m.gguf' of 'org/m' is damaged", "3000000 bytes", &sha256(&bytes(SIZE)), "start again"] {
        assert!(error.message.contains(part), "{part}: {error}");
    }
    assert_nothing_published(cache.path());
    assert!(!tree(cache.path()).iter().any(|file| file.ends_with(".incomplete")), "damaged bytes were kept");
    assert_eq!(gguf(get("org/m", &options).await.unwrap()), bytes(SIZE));
}

#[tokio::test]
async fn damaged_leftovers_cost_a_restart_only() {
    for kept in [1_000, SIZE, SIZE + 1] {
        let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
        hub.large("m.gguf", bytes(SIZE));
        let blobs = cache.path().join("models--org--m/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{}.incomplete", sha256(&bytes(SIZE)))), vec![7; kept]).unwrap();
        assert_eq!(gguf(get("org/m", &hub.options(cache.path())).await.unwrap()), bytes(SIZE), "{kept} bytes kept");
    }
}

#[tokio::test]
async fn more_bytes_than_announced_are_refused() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.large("m.gguf", bytes(SIZE)).fault("m.gguf", Fault::TooLong);
    let error = get("org/m", &hub.options(cache.path())).await.unwrap_err();
    assert!(error.message.contains("more bytes than announced"), "{error}");
    assert_nothing_published(cache.path());
}

#[tokio::test]
async fn a_hub_in_trouble_is_asked_again() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.large("m.gguf", bytes(SIZE)).api_fault(500, None).api_fault(503, None);
    hub.fault("m.gguf", Fault::Status(429, Some("0"))).fault("m.gguf", Fault::Status(502, None));
    assert_eq!(gguf(get("org/m", &hub.options(cache.path())).await.unwrap()), bytes(SIZE));
    assert_eq!(hub.gets("m.gguf").len(), 3);
}

#[tokio::test]
async fn a_hub_that_stays_in_trouble_is_given_up() {
    for (status, part) in [(429, "limits requests (status 429)"), (503, "has trouble (status 503)")] {
        let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
        hub.large("m.gguf", bytes(10));
        for _ in 0..4 {
            hub.fault("m.gguf", Fault::Status(status, Some("7")));
        }
        let error = get("org/m", &hub.options(cache.path())).await.unwrap_err();
        assert!(error.message.contains(part), "{error}");
        assert_eq!((error.kind, error.retry_after_s), (ErrorKind::Unavailable, Some(7)));
        assert_eq!(hub.gets("m.gguf").len(), 3, "tries");
        assert_nothing_published(cache.path());
    }
}

#[tokio::test]
async fn refusals_name_the_next_step_and_are_not_repeated() {
    let table = [
        (401, None, None, ErrorKind::Unauthorized, "set HF_TOKEN"),
        (401, None, Some("hf_x"), ErrorKind::Unauthorized, "renew HF_TOKEN"),
        (403, Some("GatedRepo"), None, ErrorKind::Forbidden, "accept its licence"),
        (403, Some("GatedRepo"), Some("hf_x"), ErrorKind::Forbidden, "with the account of HF_TOKEN"),
        (404, Some("RepoNotFound"), None, ErrorKind::NotFound, "no model 'org/m'"),
        (418, None, None, ErrorKind::Unavailable, "status 418"),
    ];
    for (status, code, token, kind, part) in table {
        let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
        hub.api_fault(status, code);
        let mut options = hub.options(cache.path());
        options.token = token.map(str::to_owned);
        let error = get("org/m", &options).await.unwrap_err();
        assert_eq!(error.kind, kind, "{status}: {error}");
        assert!(error.message.contains(part) && error.message.contains("org/m"), "{status}: {error}");
        assert!(!error.message.contains("hf_x") && !error.message.contains('\n'), "{status}: {error}");
        assert_eq!(hub.seen().len(), 1, "{status} was asked again");
    }
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.large("m-Q2_K.gguf", "x").large("m-Q3_K.gguf", "y");
    let options = hub.options(cache.path());
    for (text, part) in [
        ("org/none", "no model 'org/none'"),
        ("org/m@v9", "no revision 'v9' of 'org/m'"),
        ("org/m:z.gguf", "choose one of m-Q2_K.gguf, m-Q3_K.gguf"),
        ("org/m", "name one, org/m:FILE"),
    ] {
        // The listing has no order of its own.
        let error = get(text, &options)
            .await
            .unwrap_err()
            .message
            .replace("m-Q3_K.gguf, m-Q2_K.gguf", "m-Q2_K.gguf, m-Q3_K.gguf");
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[tokio::test]
async fn two_at_once_download_once() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.small("config.json", "{}").small("tokenizer.json", "[]").large("model.safetensors", bytes(SIZE));
    hub.fault("model.safetensors", Fault::Cut(10));
    let options = hub.options(cache.path());
    let (left, right) = (Record::default(), Record::default());
    let reference = ModelRef::parse("org/m").unwrap();
    let both = tokio::join!(fetch(&reference, &options, &left), fetch(&reference, &options, &right));
    assert_eq!(both.0.unwrap(), both.1.unwrap());
    // The cut one and the rest of it.
    assert_eq!(hub.gets("model.safetensors").len(), 2);
    let notes = left.notes() + &right.notes();
    assert!(notes.contains("another process is downloading model.safetensors"), "{notes}");
}

#[tokio::test]
async fn offline_sends_nothing() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.large("m-Q8_0.gguf", bytes(SIZE));
    let mut options = hub.options(cache.path());
    options.offline = true;
    for text in ["org/m", "org/m@main", "smollm2:135m", "llama3.2:1b"] {
        let error = get(text, &options).await.unwrap_err();
        assert!(error.message.contains("HF_HUB_OFFLINE"), "{text}: {error}");
    }
    options.offline = false;
    get("org/m", &options).await.unwrap();
    hub.forget();
    options.offline = true;
    for text in ["org/m", "org/m@main", "org/m:m-Q8_0.gguf", &format!("org/m@{COMMIT}")] {
        assert_eq!(gguf(get(text, &options).await.unwrap()), bytes(SIZE), "{text}");
    }
    assert_eq!(hub.seen().len(), 0);
}

#[tokio::test]
async fn a_named_branch_is_looked_up_but_an_old_copy_serves_when_the_hub_is_gone() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.large("m.gguf", bytes(SIZE));
    let mut options = hub.options(cache.path());
    get("org/m@main", &options).await.unwrap();
    hub.forget();
    get(&format!("org/m@{COMMIT}"), &options).await.unwrap();
    assert_eq!(hub.seen().len(), 0, "a commit cannot move");
    get("org/m@main", &options).await.unwrap();
    assert_eq!(hub.gets("m.gguf").len(), 0);
    assert!(!hub.seen().is_empty(), "a branch can move");

    options.endpoint = closed_port();
    let record = Record::default();
    let model = fetch(&ModelRef::parse("org/m@main").unwrap(), &options, &record).await.unwrap();
    assert_eq!(gguf(model), bytes(SIZE));
    assert!(record.notes().contains("using the copy in the cache"), "{}", record.notes());
}

/// An address where nothing listens.
fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn an_unreachable_hub_fails_at_once() {
    let cache = tempfile::tempdir().unwrap();
    let mut options = HubOptions::new(cache.path());
    // A name server that does not answer counts as well.
    options.patience.connect_ms = 1_000;
    for endpoint in [closed_port(), "http://hub.invalid".to_owned()] {
        options.endpoint = endpoint;
        let begun = Instant::now();
        let error = get("org/m", &options).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_eq!(error.kind, ErrorKind::Unavailable);
        for part in ["cannot reach", options.endpoint.trim_start_matches("http://"), "HF_ENDPOINT", "local path"] {
            assert!(error.message.contains(part), "{part}: {error}");
        }
    }
    assert_eq!(tree(cache.path()), [""; 0]);
}

#[tokio::test]
async fn the_token_stays_with_the_hub() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.small("config.json", "{}").small("tokenizer.json", "[]").large("model.safetensors", bytes(SIZE));
    let mut options = hub.options(cache.path());
    options.token = Some("hf_secret".into());
    get("org/m", &options).await.unwrap();
    let seen = hub.seen();
    assert!(seen.iter().any(|seen| seen.host == "cdn"), "the cdn was not used");
    for seen in seen {
        let expected = (seen.host == "hub").then_some("Bearer hf_secret");
        assert_eq!(seen.authorization.as_deref(), expected, "{seen:?}");
    }
}

#[tokio::test]
async fn a_full_disk_is_noticed_before_the_first_byte() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.small("config.json", "{}").small("tokenizer.json", "[]").large("model.safetensors", bytes(SIZE));
    let mut options = hub.options(cache.path());
    options.free_bytes = |_| Ok(1_000);
    let error = get("org/m", &options).await.unwrap_err();
    for part in ["not enough disk space for 'org/m'", "3000004 bytes needed", "1000 free", "HF_HUB_CACHE"] {
        assert!(error.message.contains(part), "{part}: {error}");
    }
    assert_eq!(hub.gets("model.safetensors").len(), 0);
    assert_eq!(tree(cache.path()), [""; 0]);
}

#[tokio::test]
async fn a_renamed_repository_is_found_under_its_old_name() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.large("m.gguf", bytes(SIZE));
    assert_eq!(gguf(get("org/old", &hub.options(cache.path())).await.unwrap()), bytes(SIZE));
}

#[tokio::test]
async fn a_copy_begun_by_another_tool_is_completed() {
    let (hub, cache) = (FakeHub::start().await, tempfile::tempdir().unwrap());
    hub.small("config.json", "{}").small("tokenizer.json", "[]").large("model.safetensors", bytes(SIZE));
    hub.small("generation_config.json", "[7]");
    let options = hub.options(cache.path());
    // As a tool leaves it that wants no generation_config.json.
    let snapshot = cache.path().join("models--org--m/snapshots").join(COMMIT);
    std::fs::create_dir_all(snapshot.parent().unwrap().parent().unwrap().join("refs")).unwrap();
    std::fs::write(cache.path().join("models--org--m/refs/main"), COMMIT).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    for (name, content) in [("config.json", &b"{}"[..]), ("tokenizer.json", b"[]"), ("model.safetensors", &bytes(SIZE))]
    {
        std::fs::write(snapshot.join(name), content).unwrap();
    }
    let unreachable = HubOptions { endpoint: closed_port(), ..options.clone() };
    assert_eq!(get("org/m", &unreachable).await.unwrap().files, LocalFiles::Folder(snapshot.clone()));
    get("org/m", &options).await.unwrap();
    assert_eq!(std::fs::read(snapshot.join("generation_config.json")).unwrap(), b"[7]");
}

#[tokio::test]
async fn paths_and_names_without_files_need_no_hub() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.gguf");
    std::fs::write(&file, "GGUF").unwrap();
    let options = HubOptions { endpoint: closed_port(), ..HubOptions::new(folder.path().join("cache")) };
    let table = [
        (file.to_str().unwrap(), "a", LocalFiles::Gguf(file.clone())),
        ("sim", "sim", LocalFiles::Sim),
        ("dummy:qwen3:0.6b", "dummy:qwen3:0.6b", LocalFiles::Dummy("qwen3:0.6b".into())),
    ];
    for (text, name, files) in table {
        let model = get(text, &options).await.unwrap();
        assert_eq!((model.name.as_str(), model.reference.as_str(), model.files), (name, text, files));
    }
}

#[test]
fn a_fetch_can_be_spawned() {
    fn is_send(_: &impl Send) {}
    let (reference, options) = (ModelRef::Sim, HubOptions::new("/none"));
    is_send(&fetch(&reference, &options, &Silent));
}
