//! Device memory: pieces that are owned, views into them, and host memory that a device copies from directly.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::Device;
use crate::element::{Element, ElementType, bytes_of, bytes_of_mut};
use crate::error::{Result, shape};

/// A piece of device memory, given back when it is dropped.
pub struct Buffer {
    device: Device,
    piece: Arc<Piece>,
    len: usize,
    ty: ElementType,
}

/// Where a buffer lies, as its device knows it, too: see [`crate::SetAside`].
pub(crate) struct Piece {
    /// [`NOWHERE`] while it is set aside.
    address: AtomicU64,
    bytes: usize,
    /// Pieces of one device have growing numbers.
    pub number: u64,
}

/// No piece begins here.
const NOWHERE: u64 = 0;

impl Piece {
    pub fn new(address: u64, bytes: usize, number: u64) -> Self {
        Self { address: AtomicU64::new(address), bytes, number }
    }

    pub fn address(&self) -> u64 {
        self.address.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Lies elsewhere, or nowhere, from now on; where it lay until then.
    pub fn move_to(&self, address: Option<u64>) -> u64 {
        self.address.swap(address.unwrap_or(NOWHERE), Ordering::Relaxed)
    }
}

/// Elements in device memory: what operations take.
#[derive(Debug, Clone, Copy)]
pub struct Slice<'a> {
    address: u64,
    len: usize,
    ty: ElementType,
    lifetime: PhantomData<&'a ()>,
}

impl Buffer {
    /// Uninitialised; the stand-in fills it with NaN.
    pub(crate) fn new(device: &Device, len: usize, ty: ElementType) -> Result<Self> {
        let bytes = len.checked_mul(ty.bytes()).ok_or_else(|| shape("alloc", format!("{len} elements")))?;
        Ok(Self { device: device.clone(), piece: device.piece(bytes)?, len, ty })
    }

    /// All of it. While the buffer is set aside there is nothing there, and nothing may be issued with it.
    pub fn all(&self) -> Slice<'_> {
        Slice { address: self.piece.address(), len: self.len, ty: self.ty, lifetime: PhantomData }
    }

    /// `len` elements from `start`. Panics when they do not exist.
    pub fn range(&self, start: usize, len: usize) -> Slice<'_> {
        self.all().range(start, len)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn bytes(&self) -> usize {
        self.len * self.ty.bytes()
    }

    /// Copies values to the elements from `start` on, and waits until they are there.
    pub fn write<T: Element>(&self, start: usize, values: &[T]) -> Result<()> {
        self.check::<T>("write", start, values.len())?;
        self.device.copy_in(self.piece.address() + (start * self.ty.bytes()) as u64, bytes_of(values))
    }

    /// Copies elements as they lie in memory, little endian, to those from `start` on, and waits until they are there.
    pub fn write_bytes(&self, start: usize, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() / self.ty.bytes();
        if !bytes.len().is_multiple_of(self.ty.bytes()) || start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(shape("write", format!("{} bytes from element {start} of {}", bytes.len(), self.len)));
        }
        self.device.copy_in(self.piece.address() + (start * self.ty.bytes()) as u64, bytes)
    }

    /// Copies elements from `start` on into `values`, behind all work issued before, and waits for it.
    pub fn read<T: Element>(&self, start: usize, values: &mut [T]) -> Result<()> {
        self.check::<T>("read", start, values.len())?;
        self.device.copy_out(self.piece.address() + (start * self.ty.bytes()) as u64, bytes_of_mut(values))
    }

    /// All elements.
    pub fn to_vec<T: Element + Default>(&self) -> Result<Vec<T>> {
        let mut values = vec![T::default(); self.len];
        self.read(0, &mut values)?;
        Ok(values)
    }

    fn check<T: Element>(&self, op: &'static str, start: usize, len: usize) -> Result<()> {
        // FP8 goes as bytes.
        let same = T::TYPE == self.ty || (T::TYPE == ElementType::U8 && self.ty.bytes() == 1);
        if !same {
            return Err(shape(op, format!("{} values for {} memory", T::TYPE.name(), self.ty.name())));
        }
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(shape(op, format!("{len} elements from {start} of {}", self.len)));
        }
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // One that is set aside has no memory to give back.
        let address = self.piece.move_to(None);
        if address != NOWHERE {
            self.device.free(address);
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} {})", self.len, self.ty.name())
    }
}

impl<'a> Slice<'a> {
    /// `len` elements from `start`. Panics when they do not exist.
    pub fn range(self, start: usize, len: usize) -> Self {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "{start} + {len} of {}", self.len);
        Self { address: self.address + (start * self.ty.bytes()) as u64, len, ..self }
    }

    /// The first `len` elements. Panics when they do not exist.
    pub fn first(self, len: usize) -> Self {
        self.range(0, len)
    }

    pub fn len(self) -> usize {
        self.len
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    pub fn ty(self) -> ElementType {
        self.ty
    }

    pub(crate) fn address(self) -> u64 {
        self.address
    }

    /// The same memory as elements of another type, as many as it holds. Refuses a start that they cannot have.
    pub fn cast(self, op: &'static str, ty: ElementType) -> Result<Self> {
        if !self.address.is_multiple_of(ty.bytes() as u64) {
            return Err(shape(op, format!("memory that starts where no {} can", ty.name())));
        }
        Ok(Self { len: self.len * self.ty.bytes() / ty.bytes(), ty, ..self })
    }

    /// Refuses another element type, or fewer elements.
    pub(crate) fn require(self, op: &'static str, name: &str, ty: ElementType, len: usize) -> Result<Self> {
        if self.ty != ty {
            return Err(shape(op, format!("{name} must be {} and is {}", ty.name(), self.ty.name())));
        }
        if self.len < len {
            return Err(shape(op, format!("{name} has {} elements, {len} are needed", self.len)));
        }
        Ok(self)
    }
}

/// Host memory that the device copies from and to without a copy in between.
pub struct Pinned {
    device: Device,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(crate) fn new(device: &Device, bytes: usize) -> Result<Self> {
        let pinned = Self { device: device.clone(), start: device.allocate_pinned(bytes)?, bytes };
        // SAFETY: so many bytes were just handed out.
        unsafe { std::ptr::write_bytes(pinned.start, 0, bytes) };
        Ok(pinned)
    }

    /// With what lies at `address` in device memory. Waits for the copy: nobody sees what was there before.
    pub(crate) fn copy_of(device: &Device, address: u64, bytes: usize) -> Result<Self> {
        let pinned = Self { device: device.clone(), start: device.allocate_pinned(bytes)?, bytes };
        device.receive(pinned.start, address, bytes)?;
        device.synchronize()?;
        Ok(pinned)
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is initialised and this value's own.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// Nothing that still copies from or to it may be under way.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    /// Issues a copy of its first `bytes` to the start of `to`; it runs in the stream's order.
    pub fn send(&self, to: Slice, bytes: usize) -> Result<()> {
        if bytes > self.bytes || bytes > to.len * to.ty.bytes() {
            return Err(shape("send", format!("{bytes} bytes of {} to {} elements", self.bytes, to.len)));
        }
        self.device.send(to.address, self.start, bytes)
    }

    /// Issues a copy of all of `from` to its start; what it holds is valid behind [`Device::synchronize`].
    pub fn receive(&mut self, from: Slice) -> Result<()> {
        let bytes = from.len * from.ty.bytes();
        if bytes > self.bytes {
            return Err(shape("receive", format!("{bytes} bytes into {}", self.bytes)));
        }
        self.device.receive(self.start, from.address, bytes)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.device.free_pinned(self.start, self.bytes);
    }
}
