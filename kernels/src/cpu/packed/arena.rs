//! Memory for packed weights: large anonymous maps on huge pages, cut into pieces that are never given back singly.
//!
//! Huge pages are worth a fifth of the read bandwidth. They need ranges of 2 MiB, which single matrices of small models
//! are not: hence one arena for all of a model's. Address space that is not written costs nothing.

use std::sync::Arc;

use memmap2::{Advice, Mmap, MmapMut};

use crate::error::{Error, Result};

/// Address space asked for at once.
const REGION_BYTES: usize = 256 << 20;
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Pieces start on cache lines, in memory and in files.
pub const ALIGN: usize = 64;

/// Memory of many pieces.
pub(super) enum Region {
    /// What is packed now.
    Own(MmapMut),
    /// What was packed before, as a file has it.
    File(Mmap),
}

impl Region {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(map) => map,
            Self::File(map) => map,
        }
    }
}

/// Hands out pieces of regions.
#[derive(Default)]
pub struct Arena {
    region: Option<Arc<Region>>,
    used: usize,
}

/// A piece of an arena. Cheap to clone; the memory lives as long as any piece of its region.
#[derive(Clone)]
pub(super) struct Piece {
    region: Arc<Region>,
    start: usize,
    len: usize,
}

impl Arena {
    /// A piece filled by `fill`, which gets zeros. Nothing else can reach it until it is returned.
    pub(super) fn piece(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<Piece> {
        let (region, start) = self.place(len)?;
        self.used = start + len;
        // SAFETY: the range lies in the map and was handed out to nobody else: `used` only grows while a region
        // stands, and pieces are read only after this function.
        let room = unsafe { std::slice::from_raw_parts_mut(region.bytes().as_ptr().cast_mut().add(start), len) };
        fill(room);
        Ok(Piece { region, start, len })
    }

    fn place(&mut self, len: usize) -> Result<(Arc<Region>, usize)> {
        if let Some(region) = &self.region {
            let start = self.used.next_multiple_of(ALIGN);
            if start.checked_add(len).is_some_and(|end| end <= region.bytes().len()) {
                return Ok((Arc::clone(region), start));
            }
        }
        let bytes = len.saturating_add(HUGE_PAGE_BYTES).max(REGION_BYTES);
        let map = MmapMut::map_anon(bytes).or_else(|_| MmapMut::map_anon(len.saturating_add(HUGE_PAGE_BYTES)));
        let map = map.map_err(|_| Error::Memory { bytes: len as u64 })?;
        // Advice only: without huge pages everything works, a little slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(Advice::HugePage);
        let start = map.as_ptr().align_offset(HUGE_PAGE_BYTES);
        let region = Arc::new(Region::Own(map));
        self.region = Some(Arc::clone(&region));
        Ok((region, start))
    }
}

impl Piece {
    /// A piece of a mapped file; `None` if it does not lie in it, or not on a cache line.
    pub fn of_file(region: &Arc<Region>, start: usize, len: usize) -> Option<Self> {
        let lies_in = start.checked_add(len).is_some_and(|end| end <= region.bytes().len());
        (lies_in && start.is_multiple_of(ALIGN)).then(|| Self { region: Arc::clone(region), start, len })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.region.bytes()[self.start..self.start + self.len]
    }
}
