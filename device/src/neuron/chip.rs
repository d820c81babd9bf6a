//! The chips: what no file of the driver tells (memory, bandwidth, arithmetic) and how they are recognised.
//!
//! Source: AWS's architecture pages and the identifiers in the driver's source; nothing here was measured.

use serde::Serialize;

pub const VENDOR: u32 = 0x1d0f;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Chip {
    Inferentia1,
    Trainium1,
    Inferentia2,
    Trainium2,
    Trainium3,
}

/// What one chip is at best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Physical NeuronCores.
    pub cores: u32,
    /// Physical cores that make a logical one unless somebody says otherwise.
    pub logical_core_size: u32,
    pub memory_bytes: u64,
    pub read_bytes_per_s: f64,
    pub bf16_per_s: f64,
}

const GIB: u64 = 1 << 30;

impl Chip {
    pub fn of_pci(device: u32) -> Option<Self> {
        match device {
            0x7064..=0x7067 => Some(Self::Inferentia1),
            0x7164 => Some(Self::Trainium1),
            0x7264 => Some(Self::Inferentia2),
            0x7364 => Some(Self::Trainium2),
            0x7564 | 0x7565 => Some(Self::Trainium3),
            _ => None,
        }
    }

    /// As the driver names it. Its architecture codes are no keys: Inferentia2 and Trainium2 share one.
    pub fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "inferentia" | "inferentia1" => Some(Self::Inferentia1),
            "trainium1" => Some(Self::Trainium1),
            "inferentia2" => Some(Self::Inferentia2),
            "trainium2" => Some(Self::Trainium2),
            "trainium3" => Some(Self::Trainium3),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Inferentia1 => "Inferentia1",
            Self::Trainium1 => "Trainium1",
            Self::Inferentia2 => "Inferentia2",
            Self::Trainium2 => "Trainium2",
            Self::Trainium3 => "Trainium3",
        }
    }

    /// `None` for Inferentia1, which no current software serves language models on.
    pub fn figures(self) -> Option<Figures> {
        let (cores, logical_core_size, gib, read_bytes_per_s, bf16_per_s) = match self {
            Self::Inferentia1 => return None,
            Self::Inferentia2 | Self::Trainium1 => (2, 1, 32, 820.0 * GIB as f64, 190e12),
            Self::Trainium2 => (8, 2, 96, 2.9e12, 667e12),
            Self::Trainium3 => (8, 2, 144, 4.9e12, 671e12),
        };
        Some(Figures { cores, logical_core_size, memory_bytes: gib * GIB, read_bytes_per_s, bf16_per_s })
    }
}
