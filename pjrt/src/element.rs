//! Element types that programs and buffers here have.

use std::fmt;

/// What a tensor is made of. Integers are of 32 bits only: wider ones are what Neuron's compiler warns of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    Bool,
    I32,
    F32,
    Bf16,
}

impl ElementType {
    /// On the host and on the device.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bool => 1,
            Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::Bf16)
    }
}

/// As MLIR writes it.
impl fmt::Display for ElementType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Bool => "i1",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}
