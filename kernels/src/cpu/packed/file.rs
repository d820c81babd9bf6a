//! Panels that lie in a file as they are multiplied with: mapped instead of packed, so that a start costs what reading
//! the file costs.
//!
//! Mapped pages are small ones, and the page cache's. `settle` moves them to huge pages of our own, a piece at a time,
//! beneath whoever reads them meanwhile.

use std::fs::File;
use std::io;
use std::sync::Arc;

use memmap2::{Advice, Mmap};

use super::arena::{Piece, Region};
use crate::cpu::pool;

/// To be raised when the same matrix would be packed to other bytes, which the test `packed_bytes_are_known` notices.
pub const PACKED_VERSION: u32 = 1;

/// A mapped file that holds panels. Cheap to clone; it stays mapped as long as any weight in it.
#[derive(Clone)]
pub struct PackedFile {
    region: Arc<Region>,
}

impl PackedFile {
    /// Maps a whole file. Whoever replaces such files renames new ones into their place: one that is written to or cut
    /// while it is mapped gives other numbers, or ends the process.
    pub fn map(file: &File) -> io::Result<Self> {
        // SAFETY: the map is read-only and shared slices are all that leaves it. What another process may do to the
        // file is said above: it never writes to memory of ours.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self { region: Arc::new(Region::File(map)) })
    }

    /// All of the file.
    pub fn bytes(&self) -> &[u8] {
        self.region.bytes()
    }

    /// Reads the file in, on all threads; `told` hears of so many more bytes. An error is the disk's.
    pub fn read_in(&self, mut told: impl FnMut(u64)) -> io::Result<()> {
        const SHARE: usize = 16 << 20;
        let Region::File(map) = &*self.region else { return Ok(()) };
        let shares = 2 * crate::cpu::threads().max(1);
        for start in (0..map.len()).step_by(shares * SHARE) {
            let end = map.len().min(start + shares * SHARE);
            let failed = std::sync::Mutex::new(None);
            pool::run((end - start).div_ceil(SHARE), &|share| {
                let from = start + share * SHARE;
                if let Err(error) = read_range(map, from, SHARE.min(end - from)) {
                    *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                }
            });
            if let Some(error) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
                return Err(error);
            }
            told((end - start) as u64);
        }
        Ok(())
    }

    /// Moves everything to huge pages where the system has them; takes seconds, at half of one core. Ends early when
    /// nothing else has the file any more.
    pub fn settle(self) {
        #[cfg(target_os = "linux")]
        super::settle::settle(&self.region);
    }

    pub(super) fn piece(&self, start: usize, len: usize) -> Option<Piece> {
        Piece::of_file(&self.region, start, len)
    }
}

fn read_range(map: &Mmap, start: usize, len: usize) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match map.advise_range(Advice::PopulateRead, start, len) {
        // Linux before 5.14 does not know it.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
        other => return other,
    }
    #[cfg(unix)]
    map.advise_range(Advice::WillNeed, start, len)?;
    Ok(())
}

impl std::fmt::Debug for PackedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedFile({} bytes)", self.bytes().len())
    }
}
