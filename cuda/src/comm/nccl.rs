//! NCCL, opened at run time.
//!
//! A rank's handle is used by its own thread, and aborted when something failed, for all ranks at once. That may be while the
//! rank's thread is inside of a call: calls are counted, and the handle is aborted when none is under way, or after
//! [`PATIENCE`] all the same, because a call may be what waits for a rank that does not come (NCCL allows an abort then). An
//! abort ends what is under way on the GPU at once, but returns only when no graph is left that has work of the communicator,
//! and graphs go with their ranks: so each handle is aborted in a thread of its own, for which nobody waits, and which keeps
//! the device open until then.
//!
//! Nothing here has run with NCCL: no machine with several GPUs was at hand. A test compiles a library in its place that has
//! the same functions and checks what it is handed.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use libloading::Library;

use super::Collective;
use crate::device::Device;
use crate::error::{Error, Result, driver};
use crate::memory::Slice;

/// How long an abort waits for a call that is under way.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_micros(200);

const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

// Of nccl.h, the same in all of version 2.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

type Handle = *mut c_void;

/// What is used of the library.
struct Nccl {
    init_all: unsafe extern "C" fn(*mut Handle, c_int, *const c_int) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    error_text: unsafe extern "C" fn(c_int) -> *const c_char,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> c_int,
    _library: Library,
}

/// The handles of all ranks.
pub(super) struct Comms {
    nccl: &'static Nccl,
    members: Vec<Arc<Member>>,
}

struct Member {
    /// Open as long as the handle may be in use.
    _device: Device,
    /// Null once it was aborted.
    handle: AtomicPtr<c_void>,
    /// Calls that are under way.
    calls: AtomicUsize,
}

impl Nccl {
    /// By the first of these names, or paths, that is there.
    fn open(names: &[&str]) -> std::result::Result<Self, String> {
        // SAFETY: opening it runs its initialisers, which are those of a well-known library.
        let library = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let library = library.ok_or(
            "libnccl.so.2 was not found, which GPUs need to compute one model together: install NCCL (libnccl2, or the \
             Python package nvidia-nccl) and add its folder to LD_LIBRARY_PATH, or use --tensor-parallel-size 1",
        )?;
        /// One of its functions.
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of the declaration in nccl.h.
                *unsafe { library.get($name) }.map_err(|error| format!("libnccl.so.2 is not usable: {error}"))?
            };
        }
        Ok(Self {
            init_all: function!(b"ncclCommInitAll\0"),
            abort: function!(b"ncclCommAbort\0"),
            async_error: function!(b"ncclCommGetAsyncError\0"),
            error_text: function!(b"ncclGetErrorString\0"),
            all_reduce: function!(b"ncclAllReduce\0"),
            all_gather: function!(b"ncclAllGather\0"),
            _library: library,
        })
    }

    fn get() -> Result<&'static Self> {
        static NCCL: OnceLock<std::result::Result<Nccl, String>> = OnceLock::new();
        NCCL.get_or_init(|| Self::open(&NAMES)).as_ref().map_err(|why| Error::NoDevice(why.clone()))
    }

    fn text(&self, code: c_int) -> String {
        // SAFETY: the library gives a terminated string that lives for ever, for any number.
        let text = unsafe { CStr::from_ptr((self.error_text)(code)) };
        format!("{} (NCCL_DEBUG=WARN in the environment says more)", text.to_string_lossy())
    }

    fn check(&self, what: &str, code: c_int) -> Result<()> {
        if code == SUCCESS { Ok(()) } else { Err(driver(what, self.text(code))) }
    }
}

impl Comms {
    /// One of each of these GPUs. One call makes those of all ranks, so that none waits for another that fails.
    pub fn connect(devices: &[Device], ordinals: &[i32]) -> Result<Self> {
        Self::by(Nccl::get()?, devices, ordinals)
    }

    fn by(nccl: &'static Nccl, devices: &[Device], ordinals: &[i32]) -> Result<Self> {
        let mut handles: Vec<Handle> = vec![null_mut(); ordinals.len()];
        let ranks = c_int::try_from(ordinals.len()).map_err(|_| driver("NCCL", "too many ranks"))?;
        // SAFETY: both arrays have so many elements.
        let code = unsafe { (nccl.init_all)(handles.as_mut_ptr(), ranks, ordinals.as_ptr()) };
        nccl.check("connecting the GPUs", code)?;
        let member = |(handle, device): (Handle, &Device)| {
            Arc::new(Member { _device: device.clone(), handle: AtomicPtr::new(handle), calls: AtomicUsize::new(0) })
        };
        Ok(Self { nccl, members: handles.into_iter().zip(devices).map(member).collect() })
    }

    /// Begins a call of a rank; false, and none has begun, once its handle is gone.
    pub fn enter(&self, rank: usize) -> Result<bool> {
        let member = &self.members[rank];
        member.calls.fetch_add(1, Ordering::SeqCst);
        let handle = member.handle.load(Ordering::SeqCst);
        if handle.is_null() {
            self.leave(rank);
            return Ok(false);
        }
        let mut found = SUCCESS;
        // SAFETY: the handle is not aborted while a call is counted.
        let asked = unsafe { (self.nccl.async_error)(handle, &raw mut found) };
        let code = if asked == SUCCESS { found } else { asked };
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(true);
        }
        self.leave(rank);
        Err(driver("the GPUs' connection", self.nccl.text(code)))
    }

    /// The call is over.
    pub fn leave(&self, rank: usize) {
        self.members[rank].calls.fetch_sub(1, Ordering::SeqCst);
    }

    /// Within a call.
    pub fn issue(&self, rank: usize, what: Collective, (x, len): (Slice, usize), stream: *mut c_void) -> Result<()> {
        let handle = self.members[rank].handle.load(Ordering::SeqCst);
        if handle.is_null() {
            return Err(driver("NCCL", "the communicator was aborted"));
        }
        let start = x.address() as *mut c_void;
        // SAFETY: the slice holds so many elements of each rank, and its owner keeps it until the stream is done with it.
        let (name, code) = unsafe {
            match what {
                Collective::AllReduce => {
                    ("all-reduce", (self.nccl.all_reduce)(start, start, len, FLOAT32, SUM, handle, stream))
                }
                Collective::AllGather => {
                    let own = x.range(rank * len, len).address() as *const c_void;
                    ("all-gather", (self.nccl.all_gather)(own, start, len, FLOAT32, handle, stream))
                }
            }
        };
        self.nccl.check(name, code)
    }

    /// Ends what is under way on all ranks, soon, and takes their handles apart when they are not needed any more.
    pub fn abort(&self) {
        for member in &self.members {
            let handle = AtomicPtr::new(member.handle.swap(null_mut(), Ordering::SeqCst));
            if handle.load(Ordering::SeqCst).is_null() {
                continue;
            }
            let (nccl, member) = (self.nccl, Arc::clone(member));
            // Without a thread the handle is left as it is: better than to wait for ever.
            let _ = std::thread::Builder::new().name("nccl-abort".to_owned()).spawn(move || {
                let until = Instant::now() + PATIENCE;
                while member.calls.load(Ordering::SeqCst) > 0 && Instant::now() < until {
                    std::thread::sleep(LOOK);
                }
                // SAFETY: nobody finds the handle any more; who is still inside of a call waits for what the abort ends.
                let _ = unsafe { (nccl.abort)(handle.into_inner()) };
            });
        }
    }
}

impl Drop for Comms {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(all(test, feature = "host"))]
mod tests;
