//! A weight matrix as its file has it: mapped and shared, until it is packed for the device that multiplies with it.
//!
//! Invariant: a [`Weight`] that exists has exactly `out * input` elements in its byte range, and `input` is a whole
//! number of blocks, so every row starts on a block boundary and kernels need not check again.

use std::sync::Arc;

use crate::cpu::dequant;
use crate::error::{Result, shape};

/// The GGUF element types that a weight may keep in memory. Names as ggml's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

impl GgmlType {
    /// Every type, for tables and tests.
    pub const ALL: [GgmlType; 16] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::Bf16,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q2K,
        GgmlType::Q3K,
        GgmlType::Q4K,
        GgmlType::Q5K,
        GgmlType::Q6K,
        GgmlType::Iq4Nl,
        GgmlType::Iq4Xs,
        GgmlType::Mxfp4,
    ];

    /// The type with this id in a GGUF tensor record, `None` when no kernel reads it.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.id() == id)
    }

    /// ggml's id, as GGUF files store it.
    pub fn id(self) -> u32 {
        self.layout().0
    }

    /// ggml's name: `Q4_1`, `Q4_K`, `BF16`.
    pub fn name(self) -> &'static str {
        self.layout().1
    }

    /// Elements of one block: 1, 32 or 256.
    pub fn block_elements(self) -> usize {
        self.layout().2
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.layout().3
    }

    // (id, name, elements a block, bytes a block), from the block structs in ggml-common.h.
    fn layout(self) -> (u32, &'static str, usize, usize) {
        match self {
            GgmlType::F32 => (0, "F32", 1, 4),
            GgmlType::F16 => (1, "F16", 1, 2),
            GgmlType::Q4_0 => (2, "Q4_0", 32, 18),
            GgmlType::Q4_1 => (3, "Q4_1", 32, 20),
            GgmlType::Q5_0 => (6, "Q5_0", 32, 22),
            GgmlType::Q5_1 => (7, "Q5_1", 32, 24),
            GgmlType::Q8_0 => (8, "Q8_0", 32, 34),
            GgmlType::Q2K => (10, "Q2_K", 256, 84),
            GgmlType::Q3K => (11, "Q3_K", 256, 110),
            GgmlType::Q4K => (12, "Q4_K", 256, 144),
            GgmlType::Q5K => (13, "Q5_K", 256, 176),
            GgmlType::Q6K => (14, "Q6_K", 256, 210),
            GgmlType::Iq4Nl => (20, "IQ4_NL", 32, 18),
            GgmlType::Iq4Xs => (23, "IQ4_XS", 256, 136),
            GgmlType::Bf16 => (30, "BF16", 1, 2),
            GgmlType::Mxfp4 => (39, "MXFP4", 32, 17),
        }
    }
}

/// The shared owner of a weight's bytes: a mapped file, a `Vec<u8>`.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A matrix `[out, input]`, row-major in its file's format. Cheap to clone: the bytes are shared.
#[derive(Clone)]
pub struct Weight {
    ty: GgmlType,
    out: usize,
    input: usize,
    bytes: SharedBytes,
    offset: usize,
}

impl Weight {
    /// A weight whose elements are the `out * input` elements from `offset` bytes on in `bytes`. Nothing is copied.
    pub fn new(ty: GgmlType, out: usize, input: usize, bytes: SharedBytes, offset: usize) -> Result<Self> {
        const OP: &str = "weight";
        if out == 0 || input == 0 {
            return Err(shape(OP, format!("a matrix of {out} x {input} elements is empty")));
        }
        if !input.is_multiple_of(ty.block_elements()) {
            let (name, block) = (ty.name(), ty.block_elements());
            return Err(shape(OP, format!("rows of {input} elements are no whole number of {name} blocks of {block}")));
        }
        let wanted = (input / ty.block_elements()).checked_mul(ty.block_bytes()).and_then(|row| row.checked_mul(out));
        let end = wanted.and_then(|wanted| wanted.checked_add(offset));
        let have = (*bytes).as_ref().len();
        if end.is_none_or(|end| end > have) {
            let name = ty.name();
            return Err(shape(OP, format!("{out} x {input} {name} from byte {offset} do not fit in {have} bytes")));
        }
        Ok(Self { ty, out, input, bytes, offset })
    }

    /// A weight made in memory, for tensors that are computed at load time and for tests.
    pub fn from_f32(out: usize, input: usize, values: Vec<f32>) -> Result<Self> {
        if out.checked_mul(input) != Some(values.len()) {
            return Err(shape("weight", format!("{} values are not {out} x {input}", values.len())));
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(GgmlType::F32, out, input, Arc::new(bytes), 0)
    }

    /// Some of the rows, as a matrix of their own. Panics when they do not exist.
    pub fn rows(&self, first: usize, count: usize) -> Self {
        assert!(count > 0 && first + count <= self.out, "rows {first} and {count} more of {}", self.out);
        Self { out: count, offset: self.offset + first * self.row_bytes(), ..self.clone() }
    }

    /// Some of the columns, copied out as a matrix of their own. An error unless they begin and end where blocks do; panics
    /// when they do not exist.
    pub fn columns(&self, first: usize, count: usize) -> Result<Self> {
        assert!(count > 0 && first + count <= self.input, "columns {first} and {count} more of {}", self.input);
        let (block, block_bytes) = (self.ty.block_elements(), self.ty.block_bytes());
        if !first.is_multiple_of(block) || !count.is_multiple_of(block) {
            let name = self.ty.name();
            return Err(shape(
                "weight",
                format!("columns {first} and {count} more are no whole {name} blocks of {block}"),
            ));
        }
        let (start, len) = (first / block * block_bytes, count / block * block_bytes);
        let mut bytes = Vec::with_capacity(self.out * len);
        for row in self.bytes().chunks_exact(self.row_bytes()) {
            bytes.extend_from_slice(&row[start..start + len]);
        }
        Self::new(self.ty, self.out, count, Arc::new(bytes), 0)
    }

    /// Matrices of one type and input, one below the other, as one. Panics when they differ, or there is none.
    pub fn stacked(parts: &[Self]) -> Result<Self> {
        let (ty, input) = (parts[0].ty, parts[0].input);
        assert!(parts.iter().all(|part| part.ty == ty && part.input == input), "matrices of one type and input");
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes()).copied().collect();
        Self::new(ty, parts.iter().map(Self::out).sum(), input, Arc::new(bytes), 0)
    }

    /// The matrix with rows and columns changed: in its own type where elements are stored one by one, otherwise in F32.
    pub fn transposed(&self) -> Result<Self> {
        let (out, input) = (self.out, self.input);
        let bytes = if self.ty.block_elements() == 1 {
            transpose(self.bytes(), self.ty.block_bytes(), (out, input))
        } else {
            let mut values = vec![0.0; out * input];
            values.chunks_exact_mut(input).enumerate().for_each(|(row, values)| self.row_f32(row, values));
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            transpose(&bytes, size_of::<f32>(), (out, input))
        };
        let ty = if self.ty.block_elements() == 1 { self.ty } else { GgmlType::F32 };
        Self::new(ty, input, out, Arc::new(bytes), 0)
    }

    /// Rows: features that come out of [`crate::matmul`].
    pub fn out(&self) -> usize {
        self.out
    }

    /// Columns: features that go in.
    pub fn input(&self) -> usize {
        self.input
    }

    /// Element type of the stored bytes.
    pub fn ty(&self) -> GgmlType {
        self.ty
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.input / self.ty.block_elements() * self.ty.block_bytes()
    }

    /// The matrix's own bytes, without what stands around them in the file.
    pub fn bytes(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.offset..self.offset + self.out * self.row_bytes()]
    }

    /// Dequantises row `row` into `out`, `[input]`. Panics when the row or the length does not exist.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.out && out.len() == self.input, "row {row} of {} into {} values", self.out, out.len());
        let row_bytes = self.row_bytes();
        dequant::row(self.ty, &self.bytes()[row * row_bytes..(row + 1) * row_bytes], out);
    }
}

/// Elements of so many bytes each, `(rows, columns)` to columns of rows.
fn transpose(bytes: &[u8], element_bytes: usize, (rows, columns): (usize, usize)) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * element_bytes;
            out.extend_from_slice(&bytes[at..at + element_bytes]);
        }
    }
    out
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weight({} [{}, {}])", self.ty.name(), self.out, self.input)
    }
}
