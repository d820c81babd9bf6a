//! The disk's side of a download: free space, locks between processes, atomic writes and links, and what errors mean.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::DecimalBytes;
use sha2::{Digest, Sha256};

use super::options::HubOptions;
use super::progress::Progress;
use crate::error::{Error, ErrorKind};

/// `Error::code` of a full disk: no other source can help then.
pub(super) const DISK_FULL: &str = "disk_full";

/// Kept free beside the download itself, for links, locks and the rest of the system.
const SPARE_BYTES: u64 = 16 << 20;

/// How often a held lock is tried again. Waiting in `flock` itself could not be cancelled.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Bytes that this user may still write on the disk that holds `path`, or will hold it.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(existing)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Fails before the first byte when `needed` bytes do not fit.
pub(super) fn check_space(options: &HubOptions, what: &str, needed: u64) -> Result<(), Error> {
    // A file system that cannot say must not stop a download that may well fit.
    let Ok(free) = (options.free_bytes)(&options.cache) else { return Ok(()) };
    if needed == 0 || needed.saturating_add(SPARE_BYTES) <= free {
        return Ok(());
    }
    let message = format!(
        "not enough disk space for '{what}' in {}: {needed} bytes needed ({}), {free} free ({}); \
         free some with `sconce rm`, or set HF_HUB_CACHE to another disk",
        options.cache.display(),
        DecimalBytes(needed),
        DecimalBytes(free),
    );
    Err(Error::new(ErrorKind::Unavailable, message).with_code(DISK_FULL))
}

/// What a failed read or write of `path` means for the user.
pub(super) fn disk_error(path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let message = format!(
                "the disk is full while writing {path}: free some space and start again, \
                 the download goes on from there"
            );
            Error::new(ErrorKind::Unavailable, message).with_code(DISK_FULL)
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            let message =
                format!("cannot write {path} ({error}): check its owner, or set HF_HUB_CACHE to another folder");
            Error::new(ErrorKind::Forbidden, message)
        }
        _ => Error::internal(format!(
            "cannot use {path}: {error}; check the disk, or set HF_HUB_CACHE to another folder"
        )),
    }
}

pub(super) fn create_folder(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|error| disk_error(path, &error))
}

/// An exclusive lock between processes, held until dropped. Also released by the system when a process dies.
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock if nobody holds it. `Ok(None)`: somebody does.
    pub fn try_take(path: &Path) -> Result<Option<Self>, Error> {
        if let Some(folder) = path.parent() {
            create_folder(folder)?;
        }
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = open.map_err(|error| disk_error(path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            // Some network file systems know no locks. Two downloads at once then cost bandwidth; the final rename
            // still only ever publishes checked bytes.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                Ok(Some(Self { _file: file }))
            }
            Err(TryLockError::Error(error)) => Err(disk_error(path, &error)),
        }
    }

    /// Takes the lock, waiting for another process as long as that one lives, and says so once.
    pub async fn take(path: &Path, what: &str, progress: &dyn Progress) -> Result<Self, Error> {
        let mut has_said = false;
        loop {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(lock);
            }
            if !has_said {
                progress.note(&format!("waiting: another process is downloading {what}"));
                has_said = true;
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }
}

/// Writes a small file so that readers see the old or the new content and nothing between.
pub(super) fn write_atomic(path: &Path, content: &[u8]) -> Result<(), Error> {
    let fail = |error: io::Error| disk_error(path, &error);
    if let Some(folder) = path.parent() {
        create_folder(folder)?;
    }
    let beside = beside(path);
    std::fs::write(&beside, content).and_then(|()| std::fs::rename(&beside, path)).map_err(fail)
}

/// Points `pointer` at `target` with a relative link, so that the cache can be moved as a whole.
pub(super) fn link(pointer: &Path, target: &Path) -> Result<(), Error> {
    let fail = |error: io::Error| disk_error(pointer, &error);
    let folder = pointer.parent().unwrap_or(Path::new(""));
    create_folder(folder)?;
    let relative = relative_to(folder, target);
    if std::fs::read_link(pointer).is_ok_and(|existing| existing == relative) {
        return Ok(());
    }
    let beside = beside(pointer);
    std::os::unix::fs::symlink(&relative, &beside).and_then(|()| std::fs::rename(&beside, pointer)).map_err(fail)
}

/// A name in the same folder that no other process or task uses.
fn beside(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}-{count}.tmp", std::process::id()))
}

/// `target` as seen from `folder`; both below one root.
fn relative_to(folder: &Path, target: &Path) -> PathBuf {
    let shared = folder.components().zip(target.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| "..");
    up.map(std::ffi::OsStr::new).chain(target.components().skip(shared).map(|part| part.as_os_str())).collect()
}

/// SHA-256 of everything that `reader` has, and how many bytes that was.
pub(super) fn hash_all(mut reader: impl io::Read) -> io::Result<(Sha256, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((hasher, bytes)),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Lower-case hexadecimal, as etags and catalogues spell a hash.
pub(super) fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::progress::Silent;
    use super::*;

    #[test]
    fn space_is_checked_with_a_margin() {
        let mut options = HubOptions::new("/cache");
        options.free_bytes = |_| Ok(SPARE_BYTES + 1_000);
        assert!(check_space(&options, "m", 1_000).is_ok());
        let error = check_space(&options, "org/m", 1_001).unwrap_err();
        assert_eq!(error.code, Some(DISK_FULL));
        for part in ["'org/m'", "/cache", "1001 bytes", "free", "HF_HUB_CACHE"] {
            assert!(error.message.contains(part), "{part}: {error}");
        }
        options.free_bytes = |_| Err(io::Error::other("no such call"));
        assert!(check_space(&options, "m", u64::MAX).is_ok());
        assert!(free_bytes(Path::new("/none/at/all")).unwrap() > 0);
    }

    #[test]
    fn links_are_relative_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (folder.path().join("blobs"), folder.path().join("snapshots/c/sub"));
        std::fs::create_dir_all(&blobs).unwrap();
        for (name, content) in [("one", "1"), ("two", "2")] {
            std::fs::write(blobs.join(name), content).unwrap();
            let pointer = snapshot.join("file");
            link(&pointer, &blobs.join(name)).unwrap();
            assert_eq!(std::fs::read_link(&pointer).unwrap(), Path::new("../../../blobs").join(name));
            assert_eq!(std::fs::read_to_string(&pointer).unwrap(), content);
        }
        assert_eq!(std::fs::read_dir(&snapshot).unwrap().count(), 1, "a temporary link was left");
    }

    #[tokio::test]
    async fn the_second_lock_waits_for_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks/a.lock");
        let first = FileLock::take(&path, "a", &Silent).await.unwrap();
        assert!(FileLock::try_take(&path).unwrap().is_none());
        let waiting = FileLock::take(&path, "a", &Silent);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(first);
        waiting.await.unwrap();
    }

    #[test]
    fn hashes_read_as_etags_do() {
        let (hasher, bytes) = hash_all(&b"abc"[..]).unwrap();
        assert_eq!(bytes, 3);
        assert_eq!(hex(hasher), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
