//! Weights of a mapped file, moved to huge pages while they are read.
//!
//! A piece is copied to memory of our own, which then takes the place of the file's pages at their addresses, in one
//! step of the kernel: whoever reads there meanwhile finds the same bytes before and after, and waits in between.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mprotect, mremap_fixed, munmap,
};

use super::arena::{HUGE_PAGE_BYTES, Region};

/// Moved at once.
const PIECE_BYTES: usize = 16 << 20;
const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

pub(super) fn settle(region: &Arc<Region>) {
    if !matches!(&**region, Region::File(_)) || !has_huge_pages() {
        return;
    }
    let (start, end) = (region.bytes().as_ptr().addr(), region.bytes().as_ptr_range().end.addr());
    let mut at = start.next_multiple_of(HUGE_PAGE_BYTES);
    while at + HUGE_PAGE_BYTES <= end {
        // The only holder is whoever settles: the model is gone.
        if Arc::strong_count(region) == 1 {
            return;
        }
        let bytes = PIECE_BYTES.min((end - at) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES);
        let started = Instant::now();
        // SAFETY: the range lies in the region, whose pages nothing writes to, and starts on a huge page.
        if unsafe { replace(region.bytes().as_ptr().with_addr(at).cast_mut().cast(), bytes) }.is_err() {
            // No memory for it: what is mapped works as it is.
            return;
        }
        at += bytes;
        // The other half of the time belongs to whoever computes.
        thread::sleep(started.elapsed());
    }
}

fn has_huge_pages() -> bool {
    std::fs::read_to_string(ENABLED).is_ok_and(|text| !text.contains("[never]"))
}

/// Puts equal bytes on huge pages in the place of a range.
///
/// # Safety
/// The range must be mapped, start on a huge page and be a whole number of them; nobody may write to it.
unsafe fn replace(at: *mut c_void, bytes: usize) -> rustix::io::Result<()> {
    let room_bytes = bytes + HUGE_PAGE_BYTES;
    // SAFETY: new memory at an address of the kernel's choice.
    let room =
        unsafe { mmap_anonymous(null_mut(), room_bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }?;
    let before = room.addr().next_multiple_of(HUGE_PAGE_BYTES) - room.addr();
    let copy = room.wrapping_byte_add(before);
    // SAFETY: `copy` has `bytes` bytes inside the new memory, which nobody else knows; `at` is the caller's promise.
    let moved = unsafe {
        // Advice only.
        _ = madvise(copy, bytes, Advice::LinuxHugepage);
        copy.cast::<u8>().copy_from_nonoverlapping(at.cast(), bytes);
        mprotect(copy, bytes, MprotectFlags::READ)
            .and_then(|()| mremap_fixed(copy, bytes, bytes, MremapFlags::MAYMOVE, at).map(|_| ()))
    };
    // SAFETY: what is left of the new memory, which nothing points to.
    unsafe {
        if moved.is_err() {
            _ = munmap(room, room_bytes);
        } else {
            if before > 0 {
                _ = munmap(room, before);
            }
            let behind = HUGE_PAGE_BYTES - before;
            if behind > 0 {
                _ = munmap(copy.wrapping_byte_add(bytes), behind);
            }
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::PackedFile;
    use super::*;

    /// Bytes that differ from page to page.
    fn byte(at: usize) -> u8 {
        (at ^ (at >> 8) ^ (at >> 16)) as u8
    }

    #[test]
    fn bytes_are_the_same_before_meanwhile_and_after() {
        let bytes: Vec<u8> = (0..(5 << 20) + 4097).map(byte).collect();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("writes");
        let mapped = PackedFile::map(&file).expect("maps");
        let mut read = 0;
        mapped.read_in(|more| read += more).expect("reads");
        assert_eq!(read, bytes.len() as u64);
        let other = mapped.clone();
        let is_done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(other.bytes() == bytes, "while pages are replaced");
                }
            });
            mapped.clone().settle();
            is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(mapped.bytes() == bytes, "afterwards");
        if has_huge_pages() {
            let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
            let (start, end) = (mapped.bytes().as_ptr().addr(), mapped.bytes().as_ptr_range().end.addr());
            let inside = |line: &&str| {
                let from = line.split('-').next().and_then(|from| usize::from_str_radix(from, 16).ok());
                from.is_some_and(|from| (start..end).contains(&from)) && line.split_whitespace().count() == 5
            };
            assert!(maps.lines().filter(inside).count() > 0, "no memory of our own in place of the file's:\n{maps}");
        }
    }
}
