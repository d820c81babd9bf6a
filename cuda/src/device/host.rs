//! The stand-in: device memory is memory, a launch runs at once, a graph is a list of what was issued.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::DeviceInfo;
use crate::comm::{Meet, meet};
use crate::element::ElementType;
use crate::error::{Error, Result, driver};
use crate::launch::Launch;
use crate::ops::gemm::{Gemm, gemm_on_host};

unsafe extern "C" {
    fn shim_launch(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: usize,
        arguments: *mut *mut c_void,
    ) -> c_int;
    fn shim_has(name: *const c_char) -> c_int;
}

/// Stands behind each piece of memory and must still be there when it goes.
const FENCE: [u8; 64] = [0xa5; 64];
const ALIGN: usize = 256;

/// Stand-ins that a process has, as a machine has GPUs.
pub(super) const COUNT: u32 = 4;
pub(super) const MEMORY_BYTES: u64 = 8 << 30;

/// Bytes taken on each of them, whoever opened it.
static TAKEN: [AtomicU64; COUNT as usize] = [const { AtomicU64::new(0) }; COUNT as usize];

/// As if another program had taken so much of it, for good.
pub(super) fn occupy(ordinal: u32, bytes: u64) {
    TAKEN[ordinal as usize].fetch_add(bytes, Ordering::Relaxed);
}

pub(super) struct Host {
    state: Mutex<State>,
    /// One of [`TAKEN`]; `None` is a stand-in of its own, with memory of its own.
    ordinal: Option<u32>,
    memory_bytes: u64,
}

#[derive(Default)]
struct State {
    pieces: HashMap<u64, usize>,
    pinned: HashMap<u64, usize>,
    recording: Option<Vec<Work>>,
}

pub(super) struct Recorded(Vec<Work>);

enum Work {
    Launch { kernel: CString, grid: [u32; 3], block: [u32; 3], shared_bytes: usize, arguments: Vec<u64> },
    Gemm(Gemm<'static>),
    Copy { to: u64, from: u64, bytes: usize },
    Meet(Meet),
}

impl Host {
    pub fn open(ordinal: Option<u32>, memory_bytes: u64) -> Result<(DeviceInfo, Self)> {
        if let Some(ordinal) = ordinal.filter(|ordinal| *ordinal >= COUNT) {
            return Err(Error::NoDevice(format!("there is no stand-in {ordinal}: there are {COUNT}")));
        }
        let info = DeviceInfo {
            name: "stand-in on the CPU".to_owned(),
            compute_capability: (0, 0),
            multiprocessors: 4,
            memory_bytes,
            // What the smallest of the cards that kernels are compiled for has (8.6, 8.9).
            shared_bytes_max: 99 << 10,
        };
        Ok((info, Self { state: Mutex::default(), ordinal, memory_bytes }))
    }

    /// What everybody took of this stand-in, where it is one of the process's.
    fn shared_account(&self) -> Option<&'static AtomicU64> {
        Some(&TAKEN[self.ordinal? as usize])
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn memory_free(&self) -> Result<u64> {
        let own = || self.state().pieces.values().sum::<usize>() as u64;
        let taken = self.shared_account().map_or_else(own, |account| account.load(Ordering::Relaxed));
        Ok(self.memory_bytes.saturating_sub(taken))
    }

    pub fn allocate(&self, bytes: usize) -> Result<u64> {
        let free = self.memory_free()?;
        if bytes as u64 > free {
            return Err(Error::Memory { bytes: bytes as u64, free });
        }
        let address = self.allocate_piece(bytes)?;
        self.state().pieces.insert(address, bytes);
        if let Some(account) = self.shared_account() {
            account.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        Ok(address)
    }

    /// Memory with its fence, not counted yet.
    fn allocate_piece(&self, bytes: usize) -> Result<u64> {
        let layout = layout(bytes);
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(driver("allocate", format!("{bytes} bytes are not to be had")));
        }
        // SAFETY: so many bytes were just handed out. All ones are NaN in every element type.
        unsafe {
            std::ptr::write_bytes(start, 0xff, bytes);
            std::ptr::copy_nonoverlapping(FENCE.as_ptr(), start.add(bytes), FENCE.len());
        }
        Ok(start as u64)
    }

    pub fn free(&self, address: u64) {
        let Some(bytes) = self.state().pieces.remove(&address) else { return };
        if let Some(account) = self.shared_account() {
            account.fetch_sub(bytes as u64, Ordering::Relaxed);
        }
        Self::free_piece(address, bytes);
    }

    /// Checks the fence and gives the memory back.
    fn free_piece(address: u64, bytes: usize) {
        let start = address as *mut u8;
        // SAFETY: `allocate_piece` handed out this piece with its fence.
        let fence = unsafe { std::slice::from_raw_parts(start.add(bytes), FENCE.len()) };
        let is_whole = fence == FENCE;
        // SAFETY: the same layout as at its allocation.
        unsafe { dealloc(start, layout(bytes)) };
        assert!(is_whole || std::thread::panicking(), "a kernel wrote behind a piece of {bytes} bytes");
    }

    /// Panics if a kernel wrote behind its memory.
    pub fn synchronize(&self) -> Result<()> {
        let state = self.state();
        for (&address, &bytes) in state.pieces.iter().chain(&state.pinned) {
            // SAFETY: pieces in the table are allocated, with their fences.
            let fence = unsafe { std::slice::from_raw_parts((address as *const u8).add(bytes), FENCE.len()) };
            assert!(fence == FENCE, "a kernel wrote behind a piece of {bytes} bytes");
        }
        Ok(())
    }

    /// Fenced like the device's memory, and not counted as such.
    pub fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8> {
        let address = self.allocate_piece(bytes)?;
        self.state().pinned.insert(address, bytes);
        Ok(address as *mut u8)
    }

    pub fn free_pinned(&self, start: *mut u8, _bytes: usize) {
        if let Some(bytes) = self.state().pinned.remove(&(start as u64)) {
            Self::free_piece(start as u64, bytes);
        }
    }

    pub fn fill_zero(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller owns the piece.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, bytes) };
        Ok(())
    }

    pub fn copy_in(&self, to: u64, from: &[u8]) -> Result<()> {
        copy(to, from.as_ptr() as u64, from.len());
        Ok(())
    }

    pub fn copy_out(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.synchronize()?;
        copy(to.as_mut_ptr() as u64, from, to.len());
        Ok(())
    }

    pub fn send(&self, to: u64, from: *const u8, bytes: usize) -> Result<()> {
        self.issue(Work::Copy { to, from: from as u64, bytes })
    }

    pub fn receive(&self, to: *mut u8, from: u64, bytes: usize) -> Result<()> {
        self.issue(Work::Copy { to: to as u64, from, bytes })
    }

    pub fn has_kernel(&self, name: &str) -> bool {
        // SAFETY: a terminated string.
        CString::new(name).is_ok_and(|name| unsafe { shim_has(name.as_ptr()) } == 1)
    }

    pub fn launch(&self, launch: &Launch) -> Result<()> {
        let kernel = CString::new(launch.kernel).map_err(|_| driver(launch.kernel, "is no name of a kernel"))?;
        self.issue(Work::Launch {
            kernel,
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes as usize,
            arguments: launch.arguments[..launch.count].to_vec(),
        })
    }

    pub fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.issue(Work::Gemm(gemm.unbound()))
    }

    pub fn meet(&self, part: Meet) -> Result<()> {
        self.issue(Work::Meet(part))
    }

    fn issue(&self, work: Work) -> Result<()> {
        let mut state = self.state();
        if let Some(recording) = &mut state.recording {
            recording.push(work);
            return Ok(());
        }
        drop(state);
        run(&work)
    }

    pub fn begin_recording(&self) -> Result<()> {
        self.state().recording = Some(Vec::new());
        Ok(())
    }

    pub fn end_recording(&self) -> Result<Recorded> {
        let recorded = self.state().recording.take();
        recorded.map(Recorded).ok_or_else(|| driver("end of recording", "nothing is being recorded"))
    }

    pub fn replay(&self, recorded: &Recorded) -> Result<()> {
        recorded.0.iter().try_for_each(run)
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + FENCE.len(), ALIGN).expect("far below the address space")
}

fn copy(to: u64, from: u64, bytes: usize) {
    // SAFETY: the callers own both pieces, which are at least so long and apart.
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
}

fn run(work: &Work) -> Result<()> {
    match work {
        Work::Launch { kernel, grid, block, shared_bytes, arguments } => {
            let mut arguments = arguments.clone();
            let mut pointers: Vec<*mut c_void> =
                arguments.iter_mut().map(|argument| std::ptr::from_mut(argument).cast()).collect();
            // SAFETY: the operation that made the launch has checked its sizes; arguments are read as 8 bytes each at most.
            let status = unsafe {
                shim_launch(kernel.as_ptr(), grid.as_ptr(), block.as_ptr(), *shared_bytes, pointers.as_mut_ptr())
            };
            match status {
                0 => Ok(()),
                _ => Err(driver(kernel.to_string_lossy(), "this build has no such kernel")),
            }
        }
        Work::Gemm(gemm) => {
            gemm_on_host(gemm);
            Ok(())
        }
        Work::Copy { to, from, bytes } => {
            copy(*to, *from, *bytes);
            Ok(())
        }
        Work::Meet(part) => meet(part),
    }
}

/// Elements in the stand-in's memory as f32.
pub(crate) fn read_elements(address: u64, len: usize, ty: ElementType) -> Vec<f32> {
    // SAFETY: the caller's slice holds so many elements of that type, and they are initialised.
    unsafe {
        match ty {
            ElementType::F32 => std::slice::from_raw_parts(address as *const f32, len).to_vec(),
            ElementType::F16 => {
                let values = std::slice::from_raw_parts(address as *const half::f16, len);
                values.iter().map(|value| value.to_f32()).collect()
            }
            ElementType::Bf16 => {
                let values = std::slice::from_raw_parts(address as *const half::bf16, len);
                values.iter().map(|value| value.to_f32()).collect()
            }
            other => unreachable!("no product of {}", other.name()),
        }
    }
}

/// f32 into the stand-in's memory as elements of `ty`.
pub(crate) fn write_elements(address: u64, values: &[f32], ty: ElementType) {
    // SAFETY: the caller's slice holds so many elements of that type.
    unsafe {
        match ty {
            ElementType::F32 => {
                std::slice::from_raw_parts_mut(address as *mut f32, values.len()).copy_from_slice(values)
            }
            ElementType::F16 => {
                let out = std::slice::from_raw_parts_mut(address as *mut half::f16, values.len());
                out.iter_mut().zip(values).for_each(|(out, value)| *out = half::f16::from_f32(*value));
            }
            ElementType::Bf16 => {
                let out = std::slice::from_raw_parts_mut(address as *mut half::bf16, values.len());
                out.iter_mut().zip(values).for_each(|(out, value)| *out = half::bf16::from_f32(*value));
            }
            other => unreachable!("no product of {}", other.name()),
        }
    }
}
