// performance-critical: a launch takes one lock that nobody else holds, and allocates nothing once its kernel is known
//! A GPU through its driver: one context, one stream, the kernels of this build, and cuBLASLt.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use super::DeviceInfo;
use crate::error::{Error, Result, driver};
use crate::launch::Launch;
use crate::ops::gemm::Gemm;
use crate::ops::gemm::lt::Products;

/// Fat binaries by the names of their files.
const MODULES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// Shared memory that every kernel may have without asking.
const SHARED_BYTES_USUAL: u32 = 48 << 10;

pub(super) struct Driver {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<String, Function>>,
    products: Mutex<Products>,
    /// Kernels begin while those before them end: see `begin_early` of `kernels/prelude.cuh`.
    launches_early: bool,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared_bytes: u32,
}

/// A graph that can be launched.
pub(super) struct Recorded {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
}

/// An event of the stream.
pub(super) struct Marked(sys::CUevent);

// SAFETY: the driver's handles may be used from any thread that has the context; what is not thread-safe is locked.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}
// SAFETY: as above; a graph is launched by the thread that issues work.
unsafe impl Send for Recorded {}
// SAFETY: as above.
unsafe impl Send for Marked {}

thread_local! {
    /// The context that this thread works in, as its address.
    static BOUND: Cell<usize> = const { Cell::new(0) };
}

impl Driver {
    pub fn open(ordinal: u32) -> Result<(DeviceInfo, Self)> {
        check_driver()?;
        // SAFETY: only looks for libraries.
        if !unsafe { cudarc::cublaslt::sys::is_culib_present() } {
            let missing =
                "libcublasLt.so was not found: install CUDA's libraries or add their folder to LD_LIBRARY_PATH";
            return Err(Error::NoDevice(missing.to_owned()));
        }
        if MODULES.iter().all(|(_, bytes)| bytes.is_empty()) {
            return Err(Error::NoDevice("this build has no kernels for GPUs".to_owned()));
        }
        let count = count()?;
        let device = i32::try_from(ordinal).ok().filter(|_| ordinal < count);
        let device =
            device.ok_or_else(|| Error::NoDevice(format!("there is no GPU {ordinal}: {count} can be seen")))?;
        let device = result::device::get(device).map_err(|error| failed("device", error))?;
        let info = info(device)?;
        // SAFETY: the device exists.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(|error| failed("context", error))?;
        bind(context)?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        let stream = stream.map_err(|error| failed("stream", error))?;
        let mut modules = Vec::with_capacity(MODULES.len());
        for (name, image) in MODULES {
            // SAFETY: a whole fat binary, as nvcc wrote it.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            modules.push(module.map_err(|error| failed(&format!("loading the kernels of {name}"), error))?);
        }
        let products = Mutex::new(Products::new()?);
        let launches_early = info.compute_capability >= (9, 0);
        let functions = Mutex::default();
        Ok((info, Self { device, context, stream, modules, functions, products, launches_early }))
    }

    fn bind(&self) -> Result<()> {
        if BOUND.get() == self.context as usize { Ok(()) } else { bind(self.context) }
    }

    pub fn memory_free(&self) -> Result<u64> {
        self.bind()?;
        result::mem_get_info().map(|(free, _)| free as u64).map_err(|error| failed("free memory", error))
    }

    pub fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        // SAFETY: nothing reads the memory before it was written.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(address),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(Error::Memory { bytes: bytes as u64, free: self.memory_free().unwrap_or(0) })
            }
            Err(error) => Err(failed("allocation", error)),
        }
    }

    /// Waits for work that may still use it.
    pub fn free(&self, address: u64) {
        if self.synchronize().is_ok() {
            // SAFETY: `allocate` handed it out, and nothing uses it any longer.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    pub fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8> {
        self.bind()?;
        // SAFETY: the caller initialises it.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) };
        start.map(|start| start.cast()).map_err(|error| failed("allocation of pinned memory", error))
    }

    pub fn free_pinned(&self, start: *mut u8, _bytes: usize) {
        if self.synchronize().is_ok() {
            // SAFETY: `allocate_pinned` handed it out, and nothing copies from or to it any longer.
            let _ = unsafe { result::free_host(start.cast()) };
        }
    }

    pub fn fill_zero(&self, address: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller owns so many bytes.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream) }.map_err(|error| failed("memset", error))
    }

    pub fn copy_in(&self, to: u64, from: &[u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller owns the target; `from` lives until the wait below is over.
        unsafe { result::memcpy_htod_async(to, from, self.stream) }.map_err(|error| failed("copy in", error))?;
        self.synchronize()
    }

    pub fn copy_out(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller owns the source; `to` lives until the wait below is over.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream) }.map_err(|error| failed("copy out", error))?;
        self.synchronize()
    }

    pub fn send(&self, to: u64, from: *const u8, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: both pieces are the callers', who keep them while work is under way.
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.stream) };
        status.result().map_err(|error| failed("send", error))
    }

    pub fn receive(&self, to: *mut u8, from: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: both pieces are the callers', who keep them while work is under way.
        let status = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.stream) };
        status.result().map_err(|error| failed("receive", error))
    }

    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as this value.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|error| failed("work on the GPU", error))
    }

    pub fn has_kernel(&self, name: &str) -> bool {
        self.bind().is_ok() && self.find(name).is_some()
    }

    pub fn launch(&self, launch: &Launch) -> Result<()> {
        self.bind()?;
        let function = self.function(launch.kernel, launch.shared_bytes)?;
        let mut arguments = launch.arguments;
        let mut pointers = [null_mut::<c_void>(); 32];
        for (pointer, argument) in pointers.iter_mut().zip(&mut arguments) {
            *pointer = std::ptr::from_mut(argument).cast();
        }
        let ([x, y, z], [block_x, block_y, block_z]) = (launch.grid, launch.block);
        let mut early = early_launch();
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream,
            attrs: &mut early,
            numAttrs: u32::from(self.launches_early),
        };
        // SAFETY: the operation that made the launch checked its sizes; the driver copies the arguments before it returns.
        let launched = unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), null_mut()) };
        launched.result().map_err(|error| failed(launch.kernel, error))
    }

    fn function(&self, name: &str, shared_bytes: u32) -> Result<sys::CUfunction> {
        let mut functions = locked(&self.functions);
        let known = functions.get(name).copied();
        let function = match known {
            Some(function) => function,
            None => {
                let handle = self.find(name).ok_or_else(|| driver(name, "this build has no such kernel"))?;
                Function { handle, shared_bytes: SHARED_BYTES_USUAL }
            }
        };
        if shared_bytes > function.shared_bytes {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a module that stays loaded.
            let set =
                unsafe { result::function::set_function_attribute(function.handle, attribute, shared_bytes as i32) };
            set.map_err(|error| failed(name, error))?;
        }
        let shared_bytes = shared_bytes.max(function.shared_bytes);
        if known.is_none_or(|known| known.shared_bytes != shared_bytes) {
            functions.insert(name.to_owned(), Function { shared_bytes, ..function });
        }
        Ok(function.handle)
    }

    fn find(&self, name: &str) -> Option<sys::CUfunction> {
        let name = CString::new(name).ok()?;
        // SAFETY: modules stay loaded as long as this value.
        self.modules.iter().find_map(|module| unsafe { result::module::get_function(*module, name.clone()) }.ok())
    }

    pub fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.bind()?;
        locked(&self.products).run(gemm, self.stream)
    }

    pub fn new_event(&self) -> Result<Marked> {
        self.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        event.map(Marked).map_err(|error| failed("event", error))
    }

    pub fn record_event(&self, event: &Marked) -> Result<()> {
        self.bind()?;
        // SAFETY: the event lives, and so does the stream.
        unsafe { result::event::record(event.0, self.stream) }.map_err(|error| failed("record of an event", error))
    }

    pub fn wait_for_event(&self, event: &Marked) -> Result<()> {
        self.bind()?;
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(event.0) }.map_err(|error| failed("waiting for the device", error))
    }

    pub fn ordinal(&self) -> i32 {
        self.device
    }

    /// `issue` may leave the thread in another context.
    pub fn on_stream<R>(&self, issue: impl FnOnce(*mut c_void) -> Result<R>) -> Result<R> {
        self.bind()?;
        let issued = issue(self.stream.cast());
        BOUND.set(0);
        issued
    }

    pub fn begin_recording(&self) -> Result<()> {
        self.bind()?;
        // Memory may be allocated by other threads meanwhile, and other ranks' threads record at the same time.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as this value.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(|error| failed("begin of recording", error))
    }

    pub fn end_recording(&self) -> Result<Recorded> {
        // SAFETY: the stream lives as long as this value.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        let graph = graph.map_err(|error| failed("end of recording", error))?;
        // SAFETY: the graph was just made.
        let executable = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        match executable {
            Ok(executable) => Ok(Recorded { graph, executable }),
            Err(error) => {
                // SAFETY: nothing else has the graph.
                let _ = unsafe { result::graph::destroy(graph) };
                Err(failed("making a graph", error))
            }
        }
    }

    pub fn replay(&self, recorded: &Recorded) -> Result<()> {
        self.bind()?;
        // SAFETY: the graph lives, and so does the memory that it was recorded with: its maker keeps both.
        unsafe { result::graph::launch(recorded.executable, self.stream) }.map_err(|error| failed("graph", error))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.synchronize().is_err() {
            return;
        }
        locked(&self.products).close();
        // SAFETY: nothing is under way, and nobody else has these handles.
        unsafe {
            for module in &self.modules {
                let _ = result::module::unload(*module);
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
        BOUND.set(0);
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: nobody else has these; the driver keeps what still runs.
        unsafe {
            let _ = result::graph::exec_destroy(self.executable);
            let _ = result::graph::destroy(self.graph);
        }
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; the driver keeps what is still to be reached.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// The one attribute of launches that may begin early.
fn early_launch() -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    }
}

fn check_driver() -> Result<()> {
    // SAFETY: only looks for libraries.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::NoDevice("there is no NVIDIA driver on this machine (libcuda.so.1 was not found)".to_owned()))
}

/// GPUs that the driver shows.
pub(super) fn count() -> Result<u32> {
    check_driver()?;
    result::init().map_err(|error| Error::NoDevice(format!("the NVIDIA driver does not start: {}", text(error))))?;
    let count = result::device::get_count().map_err(|error| failed("count of devices", error))?;
    Ok(u32::try_from(count).unwrap_or(0))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bind(context: sys::CUcontext) -> Result<()> {
    // SAFETY: the context is retained as long as the device is open.
    unsafe { result::ctx::set_current(context) }.map_err(|error| failed("context", error))?;
    BOUND.set(context as usize);
    Ok(())
}

fn info(device: sys::CUdevice) -> Result<DeviceInfo> {
    let number = |attribute| {
        // SAFETY: the device exists.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        value.map(|value| value.max(0).cast_unsigned()).map_err(|error| failed("attributes of the device", error))
    };
    // SAFETY: the device exists.
    let memory = unsafe { result::device::total_mem(device) }.map_err(|error| failed("memory of the device", error))?;
    Ok(DeviceInfo {
        name: result::device::get_name(device).map_err(|error| failed("name of the device", error))?,
        compute_capability: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory as u64,
        shared_bytes_max: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

fn failed(what: &str, error: DriverError) -> Error {
    driver(what, text(error))
}

fn text(error: DriverError) -> String {
    let said = error.error_string().ok().and_then(|text| text.to_str().ok());
    format!("{} ({:?})", said.unwrap_or("unknown error"), error.0)
}
