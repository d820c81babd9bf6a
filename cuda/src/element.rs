//! Types of elements that device memory holds.

use half::{bf16, f16};

/// What an element of a [`crate::Slice`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    F32,
    F16,
    Bf16,
    /// E4M3, in caches.
    Fp8,
    U32,
    /// Bytes of any meaning, such as blocks of quantised weights.
    U8,
}

impl ElementType {
    /// As kernels have it at the end of their names.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::U32 => "u32",
            Self::U8 => "u8",
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Fp8 | Self::U8 => 1,
        }
    }
}

/// A Rust type that can be copied to and from a device as it lies in memory.
///
/// # Safety
/// Plain numbers without padding, any bits of which are a value.
pub unsafe trait Element: Copy + Send + Sync + 'static {
    const TYPE: ElementType;
}

// SAFETY: all plain numbers.
unsafe impl Element for f32 {
    const TYPE: ElementType = ElementType::F32;
}
// SAFETY: as above.
unsafe impl Element for f16 {
    const TYPE: ElementType = ElementType::F16;
}
// SAFETY: as above.
unsafe impl Element for bf16 {
    const TYPE: ElementType = ElementType::Bf16;
}
// SAFETY: as above.
unsafe impl Element for u32 {
    const TYPE: ElementType = ElementType::U32;
}
// SAFETY: as above.
unsafe impl Element for u8 {
    const TYPE: ElementType = ElementType::U8;
}

/// The bytes of plain numbers.
pub(crate) fn bytes_of<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: plain numbers have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The same to write to.
pub(crate) fn bytes_of_mut<T: Element>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: plain numbers have no padding, and any bits are a value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
