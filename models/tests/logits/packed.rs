//! Packed weights kept on disk: the same bits, made once, and made anew when they do not hold.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use sconce_models::{LoadOptions, Model, PackedCache, PackedNews, Source, load};

use super::{goldens, source, whole};

struct Place {
    folder: tempfile::TempDir,
    bytes_max: u64,
}

impl Place {
    fn new(bytes_max: u64) -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), bytes_max }
    }

    /// Loads, and waits for what becomes of the packed weights.
    fn load(&self, source: &Source) -> (Box<dyn Model>, PackedNews) {
        let (told, news) = mpsc::channel();
        let packed = PackedCache {
            folder: self.folder.path().join("packed"),
            bytes_max: self.bytes_max,
            keeps_small: true,
            told: Arc::new(move |news| _ = told.send(news)),
        };
        let model = load(source, LoadOptions { packed: Some(packed), ..LoadOptions::default() }).expect("it loads");
        (model, news.recv_timeout(Duration::from_secs(60)).expect("news"))
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path().join("packed")).expect("a folder");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }
}

fn bits(model: &dyn Model, name: &str) -> Vec<u32> {
    whole(model, &goldens(name)[0].prompt).into_iter().flat_map(|(_, row)| row).map(f32::to_bits).collect()
}

fn kept(news: PackedNews) -> (PathBuf, u64) {
    let PackedNews::Kept { file, bytes } = news else { panic!("{news:?}") };
    assert_eq!(fs::metadata(&file).expect("a file").len(), bytes);
    (file, bytes)
}

fn why_not(news: PackedNews) -> String {
    let PackedNews::NotKept { why, .. } = news else { panic!("{news:?}") };
    why
}

/// Every model that there is logits of.
fn names() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let entries = fs::read_dir(folder).expect("fixtures").map(|entry| entry.expect("an entry").file_name());
    let name = |file: std::ffi::OsString| Some(file.to_str()?.strip_suffix(".golden.safetensors")?.to_owned());
    let names: Vec<String> = entries.filter_map(name).collect();
    assert!(names.len() > 50, "{names:?}");
    names
}

#[test]
fn what_was_kept_gives_the_same_bits_in_every_family() {
    for name in &names() {
        let place = Place::new(u64::MAX);
        let source = source(name);
        let plain = bits(&*load(&source, LoadOptions::default()).expect("it loads"), name);
        let (first, news) = place.load(&source);
        let (file, bytes) = kept(news);
        assert!(bits(&*first, name) == plain, "{name}: packed");
        let (second, news) = place.load(&source);
        assert_eq!(news, PackedNews::Used { file, bytes }, "{name}");
        assert!(bits(&*second, name) == plain, "{name}: mapped");
        assert_eq!(place.files().len(), 1, "{name}: nothing else stays");
    }
}

#[test]
fn a_file_that_does_not_hold_is_made_anew() {
    let place = Place::new(u64::MAX);
    let source = source("llama3");
    let (model, news) = place.load(&source);
    let ((file, bytes), right) = (kept(news), bits(&*model, "llama3"));
    drop(model);
    let open = || OpenOptions::new().write(true).open(&file).expect("opens");
    let header = |at: u64, with: &'static [u8]| move |file: &fs::File| file.write_all_at(with, at).expect("writes");
    type Damage = Box<dyn Fn(&fs::File)>;
    let damages: [(&str, Damage); 6] = [
        ("empty", Box::new(|file| file.set_len(0).expect("cut"))),
        ("seven bytes", Box::new(|file| file.set_len(7).expect("cut"))),
        ("cut", Box::new(move |file| file.set_len(bytes - 1).expect("cut"))),
        ("longer", Box::new(move |file| file.set_len(bytes + 1).expect("longer"))),
        ("no header", Box::new(header(0, &[0xff; 8]))),
        ("no JSON", Box::new(header(8, b"#"))),
    ];
    for (what, damage) in damages {
        damage(&open());
        let (model, news) = place.load(&source);
        assert_eq!(kept(news), (file.clone(), bytes), "{what}");
        assert!(bits(&*model, "llama3") == right, "{what}");
    }
    // What is made of other files has another name.
    let copy = copied(&source);
    let (_, news) = place.load(&Source::Folder(copy.path().to_owned()));
    assert_ne!(kept(news).0, file);
    assert_eq!(place.files().len(), 2);
}

fn copied(source: &Source) -> tempfile::TempDir {
    let Source::Folder(from) = source else { panic!("{source:?}") };
    let to = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, to.path().join(path.file_name().expect("a name"))).expect("copies");
    }
    to
}

#[test]
fn the_oldest_make_room_and_what_is_too_large_is_not_kept() {
    let (one, two) = (source("llama3"), source("qwen3"));
    let any = Place::new(u64::MAX);
    let (one_bytes, two_bytes) = (kept(any.load(&one).1).1, kept(any.load(&two).1).1);

    let place = Place::new(one_bytes + two_bytes - 1);
    let (first, _) = kept(place.load(&one).1);
    let (stranger, half) = (place.folder.path().join("packed/mine.txt"), first.with_file_name("x.packed.part"));
    fs::write(&stranger, "mine").expect("writes");
    fs::write(&half, "half").expect("writes");
    old(&half);
    old(&first);
    let (second, _) = kept(place.load(&two).1);
    assert!(second.exists() && !first.exists() && !half.exists() && stranger.exists(), "{:?}", place.files());

    let place = Place::new(one_bytes - 1);
    let why = why_not(place.load(&one).1);
    assert!(why.contains("more than all packed weights together"), "{why}");
    assert!(!place.folder.path().join("packed").exists());
}

fn old(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).expect("opens");
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)).expect("sets the time");
}

#[test]
fn a_folder_that_cannot_be_is_said_and_the_model_loads() {
    let place = Place::new(u64::MAX);
    fs::write(place.folder.path().join("packed"), "a file").expect("writes");
    let (model, news) = place.load(&source("llama3"));
    assert!(!why_not(news).is_empty());
    assert_eq!(bits(&*model, "llama3").len() % model.spec().vocab, 0);
}
