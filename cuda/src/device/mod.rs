//! A device and its one stream. Which of the two back ends stands behind it, nothing above this file knows.

#[cfg(feature = "driver")]
mod driver;
#[cfg(feature = "host")]
mod host;

#[cfg(feature = "host")]
pub(crate) use host::{read_elements, write_elements};

#[cfg(feature = "driver")]
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

#[cfg(feature = "host")]
use crate::comm::Meet;
use crate::element::{Element, ElementType};
#[cfg(all(feature = "driver", feature = "host"))]
use crate::error::Error;
use crate::error::Result;
use crate::launch::Launch;
use crate::memory::{Buffer, Piece, Pinned};
use crate::ops::gemm::Gemm;

/// What a device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    pub name: String,
    /// 9.0 is (9, 0); the stand-in says (0, 0).
    pub compute_capability: (u32, u32),
    pub multiprocessors: u32,
    pub memory_bytes: u64,
    /// Shared memory that a block can have when it asks for more than the usual.
    pub shared_bytes_max: u32,
}

/// A handle; clones are the same device. One thread at a time issues work to a device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    info: DeviceInfo,
    back_end: BackEnd,
    // Taken when memory is allocated, never by a step.
    pieces: Mutex<Pieces>,
}

/// Memory that was allocated through one handle.
#[derive(Default)]
pub(crate) struct Pieces {
    /// The number of the next one.
    pub next: u64,
    all: Vec<Weak<Piece>>,
}

impl Pieces {
    /// Those that still have an owner.
    pub fn live(&mut self) -> Vec<Arc<Piece>> {
        self.all.retain(|piece| piece.strong_count() > 0);
        self.all.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Inner {
    fn new(info: DeviceInfo, back_end: BackEnd) -> Self {
        Self { info, back_end, pieces: Mutex::default() }
    }
}

enum BackEnd {
    #[cfg(feature = "driver")]
    Driver(driver::Driver),
    #[cfg(feature = "host")]
    Host(host::Host),
}

/// What a graph consists of.
pub(crate) struct Recorded(Work);

enum Work {
    #[cfg(feature = "driver")]
    Driver(driver::Recorded),
    #[cfg(feature = "host")]
    Host(host::Recorded),
}

/// What an event is to its back end.
pub(crate) struct Marked(Place);

enum Place {
    #[cfg(feature = "driver")]
    Driver(driver::Marked),
    /// Everything has run when its call returns.
    #[cfg(feature = "host")]
    Host,
}

/// Runs the same call on whichever back end there is.
macro_rules! on_back_end {
    ($device:expr, $back_end:ident => $call:expr) => {
        match &$device.0.back_end {
            #[cfg(feature = "driver")]
            BackEnd::Driver($back_end) => $call,
            #[cfg(feature = "host")]
            BackEnd::Host($back_end) => $call,
        }
    };
}

impl Device {
    /// GPU number `ordinal`. Fails with what is missing: a driver, a device, or kernels in this build.
    #[cfg(feature = "driver")]
    pub fn open(ordinal: u32) -> Result<Self> {
        let (info, driver) = driver::Driver::open(ordinal)?;
        Ok(Self(Arc::new(Inner::new(info, BackEnd::Driver(driver)))))
    }

    /// GPUs that the driver shows.
    #[cfg(feature = "driver")]
    pub fn count() -> Result<u32> {
        driver::count()
    }

    /// A stand-in on the CPU, with memory of its own.
    #[cfg(feature = "host")]
    pub fn host() -> Self {
        Self::host_sized(host::MEMORY_BYTES)
    }

    /// The same with so much memory.
    #[cfg(feature = "host")]
    pub fn host_sized(memory_bytes: u64) -> Self {
        Self::host_of(None, memory_bytes).expect("a stand-in without a number is always there")
    }

    /// Stand-in number `ordinal` of this process: whoever opens the same one shares its memory. Fails where there are
    /// fewer.
    #[cfg(feature = "host")]
    pub fn host_numbered(ordinal: u32) -> Result<Self> {
        Self::host_of(Some(ordinal), host::MEMORY_BYTES)
    }

    /// Stand-ins that have a number.
    #[cfg(feature = "host")]
    pub fn host_count() -> u32 {
        host::COUNT
    }

    /// As if another program had taken so much of stand-in `ordinal` for good. Panics where there is none of that number.
    #[cfg(feature = "host")]
    pub fn host_occupy(ordinal: u32, bytes: u64) {
        host::occupy(ordinal, bytes);
    }

    #[cfg(feature = "host")]
    fn host_of(ordinal: Option<u32>, memory_bytes: u64) -> Result<Self> {
        let (info, host) = host::Host::open(ordinal, memory_bytes)?;
        Ok(Self(Arc::new(Inner::new(info, BackEnd::Host(host)))))
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// Memory that is free now, in bytes.
    pub fn memory_free(&self) -> Result<u64> {
        on_back_end!(self, back_end => back_end.memory_free())
    }

    /// Uninitialised memory.
    pub fn alloc(&self, len: usize, ty: ElementType) -> Result<Buffer> {
        Buffer::new(self, len, ty)
    }

    pub fn zeros(&self, len: usize, ty: ElementType) -> Result<Buffer> {
        let buffer = Buffer::new(self, len, ty)?;
        self.fill_zero(buffer.all().address(), buffer.bytes())?;
        Ok(buffer)
    }

    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer> {
        let buffer = Buffer::new(self, values.len(), T::TYPE)?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    pub fn pinned(&self, bytes: usize) -> Result<Pinned> {
        Pinned::new(self, bytes)
    }

    /// Waits until everything that was issued has run. Errors of kernels show here.
    pub fn synchronize(&self) -> Result<()> {
        on_back_end!(self, back_end => back_end.synchronize())
    }

    /// Whether this build has a kernel of that name.
    pub fn has_kernel(&self, name: &str) -> bool {
        on_back_end!(self, back_end => back_end.has_kernel(name))
    }

    pub(crate) fn launch(&self, launch: &Launch) -> Result<()> {
        on_back_end!(self, back_end => back_end.launch(launch))
    }

    pub(crate) fn gemm(&self, gemm: &Gemm) -> Result<()> {
        on_back_end!(self, back_end => back_end.gemm(gemm))
    }

    pub(crate) fn pieces(&self) -> MutexGuard<'_, Pieces> {
        self.0.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory that this handle knows of as long as it has an owner.
    pub(crate) fn piece(&self, bytes: usize) -> Result<Arc<Piece>> {
        let address = self.allocate(bytes)?;
        let mut pieces = self.pieces();
        let piece = Arc::new(Piece::new(address, bytes, pieces.next));
        pieces.next += 1;
        if pieces.all.len() == pieces.all.capacity() {
            pieces.all.retain(|piece| piece.strong_count() > 0);
        }
        pieces.all.push(Arc::downgrade(&piece));
        Ok(piece)
    }

    pub(crate) fn fill_zero(&self, address: u64, bytes: usize) -> Result<()> {
        on_back_end!(self, back_end => back_end.fill_zero(address, bytes))
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64> {
        on_back_end!(self, back_end => back_end.allocate(bytes))
    }

    pub(crate) fn free(&self, address: u64) {
        on_back_end!(self, back_end => back_end.free(address));
    }

    pub(crate) fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8> {
        on_back_end!(self, back_end => back_end.allocate_pinned(bytes))
    }

    pub(crate) fn free_pinned(&self, start: *mut u8, bytes: usize) {
        on_back_end!(self, back_end => back_end.free_pinned(start, bytes));
    }

    pub(crate) fn copy_in(&self, to: u64, from: &[u8]) -> Result<()> {
        on_back_end!(self, back_end => back_end.copy_in(to, from))
    }

    pub(crate) fn copy_out(&self, from: u64, to: &mut [u8]) -> Result<()> {
        on_back_end!(self, back_end => back_end.copy_out(from, to))
    }

    pub(crate) fn send(&self, to: u64, from: *const u8, bytes: usize) -> Result<()> {
        on_back_end!(self, back_end => back_end.send(to, from, bytes))
    }

    pub(crate) fn receive(&self, to: *mut u8, from: u64, bytes: usize) -> Result<()> {
        on_back_end!(self, back_end => back_end.receive(to, from, bytes))
    }

    pub(crate) fn new_event(&self) -> Result<Marked> {
        match &self.0.back_end {
            #[cfg(feature = "driver")]
            BackEnd::Driver(driver) => Ok(Marked(Place::Driver(driver.new_event()?))),
            #[cfg(feature = "host")]
            BackEnd::Host(_) => Ok(Marked(Place::Host)),
        }
    }

    pub(crate) fn record_event(&self, event: &Marked) -> Result<()> {
        match (&self.0.back_end, &event.0) {
            #[cfg(feature = "driver")]
            (BackEnd::Driver(driver), Place::Driver(event)) => driver.record_event(event),
            #[cfg(feature = "host")]
            (_, Place::Host) => Ok(()),
            #[cfg(all(feature = "driver", feature = "host"))]
            _ => Err(Error::NoDevice("an event belongs to the device that made it".to_owned())),
        }
    }

    pub(crate) fn wait_for_event(&self, event: &Marked) -> Result<()> {
        match (&self.0.back_end, &event.0) {
            #[cfg(feature = "driver")]
            (BackEnd::Driver(driver), Place::Driver(event)) => driver.wait_for_event(event),
            #[cfg(feature = "host")]
            (_, Place::Host) => self.synchronize(),
            #[cfg(all(feature = "driver", feature = "host"))]
            _ => Err(Error::NoDevice("an event belongs to the device that made it".to_owned())),
        }
    }

    /// The number that the driver knows it by; `None` is a stand-in.
    #[cfg(feature = "driver")]
    pub(crate) fn ordinal(&self) -> Option<i32> {
        match &self.0.back_end {
            BackEnd::Driver(driver) => Some(driver.ordinal()),
            #[cfg(feature = "host")]
            BackEnd::Host(_) => None,
        }
    }

    /// Has a library issue work of its own on the GPU's stream.
    #[cfg(feature = "driver")]
    pub(crate) fn on_stream<R>(&self, issue: impl FnOnce(*mut c_void) -> Result<R>) -> Result<R> {
        match &self.0.back_end {
            BackEnd::Driver(driver) => driver.on_stream(issue),
            #[cfg(feature = "host")]
            BackEnd::Host(_) => Err(Error::NoDevice("a stand-in has no stream".to_owned())),
        }
    }

    /// A stand-in's part in a collective.
    #[cfg(feature = "host")]
    pub(crate) fn meet(&self, part: Meet) -> Result<()> {
        match &self.0.back_end {
            #[cfg(feature = "driver")]
            BackEnd::Driver(_) => Err(Error::NoDevice("a GPU does not meet stand-ins".to_owned())),
            BackEnd::Host(host) => host.meet(part),
        }
    }

    pub(crate) fn begin_recording(&self) -> Result<()> {
        on_back_end!(self, back_end => back_end.begin_recording())
    }

    pub(crate) fn end_recording(&self) -> Result<Recorded> {
        match &self.0.back_end {
            #[cfg(feature = "driver")]
            BackEnd::Driver(driver) => Ok(Recorded(Work::Driver(driver.end_recording()?))),
            #[cfg(feature = "host")]
            BackEnd::Host(host) => Ok(Recorded(Work::Host(host.end_recording()?))),
        }
    }

    pub(crate) fn replay(&self, recorded: &Recorded) -> Result<()> {
        match (&self.0.back_end, &recorded.0) {
            #[cfg(feature = "driver")]
            (BackEnd::Driver(driver), Work::Driver(recorded)) => driver.replay(recorded),
            #[cfg(feature = "host")]
            (BackEnd::Host(host), Work::Host(recorded)) => host.replay(recorded),
            #[cfg(all(feature = "driver", feature = "host"))]
            _ => Err(Error::NoDevice("a graph runs on the device that recorded it".to_owned())),
        }
    }
}
