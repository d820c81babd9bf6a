//! Memory maps of weight files: bytes that are shared with the page cache and copied by nobody.
//!
//! Invariant: this file has the only `unsafe` of the crate. A map is exactly as long as the file was when it was opened,
//! and the file stays open as long as its map.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A whole file, read-only. Empty files are refused.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Mmap,
    // Held so that the inode outlives the map even where a file system drops unlinked files early.
    _file: File,
    path: PathBuf,
}

impl MappedFile {
    pub fn open(path: &Path) -> Result<Self> {
        const NEXT: &str = "check the path and its permissions";
        let failed =
            |action: &'static str| move |source| Error::Io { file: path.to_owned(), action, source, next: NEXT };
        let file = File::open(path).map_err(failed("open it"))?;
        let metadata = file.metadata().map_err(failed("read its size"))?;
        if !metadata.is_file() {
            return Err(failed("map it")(std::io::Error::other("not a regular file")));
        }
        let bytes = metadata.len();
        let damaged =
            |detail: &str| Error::Damaged { file: path.to_owned(), format: "weight", detail: detail.to_owned() };
        if bytes == 0 {
            return Err(damaged("it is empty"));
        }
        // SAFETY: the map is read-only and private to `MappedFile`, which hands out shared slices only. What Rust
        // cannot rule out is another process truncating or rewriting the file meanwhile: that ends in SIGBUS or in
        // other numbers, never in memory of ours being written. Model files are replaced by renaming (hub/ does),
        // which leaves the mapped inode alone.
        let map = unsafe { Mmap::map(&file) }.map_err(failed("map it"))?;
        if map.len() as u64 != bytes {
            return Err(damaged("its size changed while it was opened"));
        }
        Ok(Self { map, _file: file, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks the operating system to start reading a range. Advice only: where it is not taken, reading is on demand.
    pub fn read_ahead(&self, offset: usize, bytes: usize) {
        #[cfg(unix)]
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, offset, bytes);
    }

    /// Gives a range's pages back: what was copied would otherwise count twice. They stay in the page cache, and
    /// reading them again works.
    pub fn let_go(&self, offset: usize, bytes: usize) {
        // SAFETY: the map is shared and read-only, so a dropped page comes back with the same contents.
        #[cfg(unix)]
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes) };
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
