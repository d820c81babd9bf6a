// performance-critical: no lock on the way to a launch that was made before
//! One launch of a kernel: its name, its grid, its arguments.

use crate::device::Device;
use crate::error::{Error, Result, shape};
use crate::memory::Slice;

/// Of CUDA: blocks in the second and the third direction, and threads of a block.
const GRID_MAX: u32 = 65_535;
const THREADS_MAX: u32 = 1024;
/// More than any kernel here takes.
const ARGUMENTS_MAX: usize = 32;

/// Arguments in the order of the kernel's parameters. Nothing checks them against the kernel: the operation that builds a
/// launch must, and its sizes, too.
pub struct Launch<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    /// Each as the bits that its parameter reads from the front (both machines are little endian).
    pub(crate) arguments: [u64; ARGUMENTS_MAX],
    pub(crate) count: usize,
}

impl<'a> Launch<'a> {
    /// One block of one thread of `kernel`, as its KERNEL line has the name.
    pub fn new(kernel: &'a str) -> Self {
        Self { kernel, grid: [1; 3], block: [1; 3], shared_bytes: 0, arguments: [0; ARGUMENTS_MAX], count: 0 }
    }

    pub fn grid(mut self, x: usize, y: usize, z: usize) -> Self {
        self.grid = [x as u32, y as u32, z as u32];
        self
    }

    pub fn block(mut self, x: usize, y: usize) -> Self {
        self.block = [x as u32, y as u32, 1];
        self
    }

    pub fn shared_bytes(mut self, bytes: usize) -> Self {
        self.shared_bytes = bytes as u32;
        self
    }

    fn push(mut self, bits: u64) -> Self {
        self.arguments[self.count] = bits;
        self.count += 1;
        self
    }

    /// A pointer to the first element.
    pub fn slice(self, slice: Slice) -> Self {
        self.push(slice.address())
    }

    /// A pointer, or null.
    pub fn slice_or_null(self, slice: Option<Slice>) -> Self {
        self.push(slice.map_or(0, Slice::address))
    }

    pub fn int(self, value: usize) -> Self {
        let value = i32::try_from(value).expect("operations check that sizes fit a kernel's int");
        self.push(u64::from(value.cast_unsigned()))
    }

    pub fn long(self, value: usize) -> Self {
        self.push(value as u64)
    }

    pub fn float(self, value: f32) -> Self {
        self.push(u64::from(value.to_bits()))
    }

    /// Issues it. Nothing is launched for an empty grid, and what no GPU takes is refused on the stand-in, too.
    pub fn on(self, device: &Device) -> Result<()> {
        if self.grid.contains(&0) {
            return Ok(());
        }
        let ([_, y, z], threads) = (self.grid, self.block.iter().product::<u32>());
        if y.max(z) > GRID_MAX || threads > THREADS_MAX || self.shared_bytes > device.info().shared_bytes_max {
            return Err(self.too_large(device));
        }
        device.launch(&self)
    }

    #[cold]
    fn too_large(&self, device: &Device) -> Error {
        let Self { kernel, grid, block, shared_bytes, .. } = self;
        let most = device.info().shared_bytes_max;
        let why = format!(
            "{kernel}: a grid of {grid:?} blocks of {block:?} threads with {shared_bytes} bytes of shared memory; at most \
             {GRID_MAX} blocks but in the first direction, {THREADS_MAX} threads and {most} bytes; fewer tokens a step \
             (--max-num-batched-tokens) may help"
        );
        shape("launch", why)
    }
}
