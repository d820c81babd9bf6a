//! ggml's tensor types: enough of each to know how many bytes a tensor takes, whether or not we can compute with it.

/// A type number of ggml. Sizes from ggml's type table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorType {
    id: u32,
    name: &'static str,
    block_elements: u64,
    block_bytes: u64,
}

/// id, name, elements a block, bytes a block.
const TYPES: [(u32, &str, u64, u64); 34] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

impl TensorType {
    pub fn from_id(id: u32) -> Option<Self> {
        let &(id, name, block_elements, block_bytes) = TYPES.iter().find(|entry| entry.0 == id)?;
        Some(Self { id, name, block_elements, block_bytes })
    }

    pub fn id(self) -> u32 {
        self.id
    }

    pub fn name(self) -> &'static str {
        self.name
    }

    /// Bytes of a tensor, `None` if its rows do not divide into blocks, it is empty, or the product overflows.
    pub(super) fn bytes_of(self, dimensions: &[u64]) -> Option<u64> {
        let row = *dimensions.first()?;
        if row == 0 || !row.is_multiple_of(self.block_elements) {
            return None;
        }
        let elements = dimensions.iter().try_fold(1_u64, |product, &size| product.checked_mul(size))?;
        if elements == 0 {
            return None;
        }
        (elements / self.block_elements).checked_mul(self.block_bytes)
    }
}
