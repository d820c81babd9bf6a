//! What models take of the process's allocator, and how it goes back to the system.
//!
//! mimalloc carves allocations up to 2 GiB out of areas that it keeps for later. That suits requests, and not models: the
//! buffers of a load and then the model's own leave holes, a KV cache in a used area is zeroed page by page where a fresh
//! one costs nothing before it is written, and what an unloaded model held stays with an idle process. So while a model
//! is loaded ([`loading`]), large buffers come from the system one by one and go back to it when they are dropped; and
//! [`give_back`] hands over what is left behind.
//!
//! Addresses are taken again too: mimalloc never gives up the page map of those it has used, so it is built without
//! hints of its own for them (`.cargo/config.toml`).
//!
//! In a program with another allocator both do nothing that matters.

use std::ffi::c_long;
use std::sync::{Mutex, PoisonError};

use libmimalloc_sys::{_mi_option_last, mi_collect, mi_option_get, mi_option_set, mi_option_t};

/// `arena_max_object_size`, which the bindings do not name: the last but one of the options, in KiB.
const ARENA_MAX_OBJECT_KIB: mi_option_t = _mi_option_last - 2;
/// What it is unless somebody changed it. Also says that it is the option that is meant.
const USUAL_KIB: c_long = 2 * 1024 * 1024;
/// Larger than nearly all that requests allocate meanwhile, smaller than what a model is made of.
const WHILE_LOADING_KIB: c_long = 1024;

/// Loads that run now.
static LOADS: Mutex<usize> = Mutex::new(0);

/// While one lives, large buffers come from the system.
#[derive(Debug)]
pub struct Loading(());

/// To be held while a model is loaded.
#[must_use = "large buffers come from the system only while it lives"]
pub fn loading() -> Loading {
    let mut loads = LOADS.lock().unwrap_or_else(PoisonError::into_inner);
    if *loads == 0 {
        change(USUAL_KIB, WHILE_LOADING_KIB);
    }
    *loads += 1;
    Loading(())
}

impl Drop for Loading {
    fn drop(&mut self) {
        let mut loads = LOADS.lock().unwrap_or_else(PoisonError::into_inner);
        *loads -= 1;
        if *loads == 0 {
            change(WHILE_LOADING_KIB, USUAL_KIB);
        }
        drop(loads);
        give_back();
    }
}

/// Returns what the allocator holds and nobody uses to the system, as far as this thread may.
pub fn give_back() {
    // SAFETY: callable at any time from any thread; it moves no live allocation.
    unsafe { mi_collect(true) };
}

/// Sets the option if it is what is expected: one that an operator has set in the environment stays.
fn change(from: c_long, to: c_long) {
    // SAFETY: the index is within the table of options. The value is one aligned word that allocations read as it is
    // then; either value is right for each of them. `LOADS` is held by whoever writes.
    unsafe {
        if mi_option_get(ARENA_MAX_OBJECT_KIB) == from {
            mi_option_set(ARENA_MAX_OBJECT_KIB, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The option is the whole process's.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    #[test]
    fn large_buffers_come_from_the_system_until_the_last_load_is_over() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as in `change`.
        let now = || unsafe { mi_option_get(ARENA_MAX_OBJECT_KIB) };
        assert_eq!(now(), USUAL_KIB, "the option is the one that is meant");
        let one = loading();
        let other = loading();
        assert_eq!(now(), WHILE_LOADING_KIB);
        drop(one);
        assert_eq!(now(), WHILE_LOADING_KIB);
        drop(other);
        assert_eq!(now(), USUAL_KIB);
    }

    #[test]
    fn addresses_of_dropped_buffers_are_taken_again() {
        const SIZE: usize = 64 << 20;
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let loading = loading();
        let address = |_| Allocation::new(SIZE).0.addr();
        let used: Vec<usize> = (0..64).map(address).collect();
        drop(loading);
        let span = used.iter().max().unwrap() - used.iter().min().unwrap();
        assert!(span < 16 * SIZE, "64 buffers, one after the other, lie {span} bytes apart: see .cargo/config.toml");
    }

    /// A buffer of mimalloc's, whatever allocator tests have.
    struct Allocation(*mut std::ffi::c_void);

    impl Allocation {
        fn new(size: usize) -> Self {
            // SAFETY: callable at any time from any thread.
            let start = unsafe { libmimalloc_sys::mi_malloc(size) };
            assert!(!start.is_null(), "{size} bytes");
            Self(start)
        }
    }

    impl Drop for Allocation {
        fn drop(&mut self) {
            // SAFETY: the pointer is of `mi_malloc`, and freed once.
            unsafe { libmimalloc_sys::mi_free(self.0) };
        }
    }
}
