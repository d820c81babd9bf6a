//! Launches of `kernels/quant.cu` and `kernels/dequant.cu`: products with weights in GGUF's quantised types.
//!
//! A [`QuantWeight`] is packed for the GPU at upload, without loss. Up to [`TILE_ROWS_MAX`] rows are quantised to 8 bits and
//! multiplied with the weights as they are; more rows go through a dense product with the weights as plain elements.

mod pack;

use super::gemm::Gemm;
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::{Buffer, Slice};

const OP: &str = "quantised product";

/// Up to so many rows the weights are multiplied as they are: they are read once for every 64 rows, and a dense product
/// would write and read them as plain elements. Unmeasured: no GPU was at hand.
pub const TILE_ROWS_MAX: usize = 192;

/// A larger matrix is never made plain: it is a vocabulary, of which few rows are wanted.
const DENSE_BYTES_MAX: usize = 512 << 20;

/// The quantised types of GGUF that kernels read. Names as ggml's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantType {
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

impl QuantType {
    /// Every type, for tables and tests.
    pub const ALL: [Self; 13] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
    ];

    /// The type with ggml's number, as GGUF files have it.
    pub fn from_ggml(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.facts().0 == id)
    }

    /// Elements of a block of GGUF: 32 or 256.
    pub fn block_elements(self) -> usize {
        self.facts().2
    }

    /// Bytes of a block of GGUF.
    pub fn block_bytes(self) -> usize {
        self.facts().3
    }

    /// As kernels have it in their names.
    pub fn name(self) -> &'static str {
        self.facts().1
    }

    fn facts(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::Q4_0 => (2, "q4_0", 32, 18),
            Self::Q4_1 => (3, "q4_1", 32, 20),
            Self::Q5_0 => (6, "q5_0", 32, 22),
            Self::Q5_1 => (7, "q5_1", 32, 24),
            Self::Q8_0 => (8, "q8_0", 32, 34),
            Self::Q2K => (10, "q2_k", 256, 84),
            Self::Q3K => (11, "q3_k", 256, 110),
            Self::Q4K => (12, "q4_k", 256, 144),
            Self::Q5K => (13, "q5_k", 256, 176),
            Self::Q6K => (14, "q6_k", 256, 210),
            Self::Iq4Nl => (20, "iq4_nl", 32, 18),
            Self::Iq4Xs => (23, "iq4_xs", 256, 136),
            Self::Mxfp4 => (39, "mxfp4", 32, 17),
        }
    }
}

/// A matrix `[n, k]`, or several of one size, in device memory.
pub struct QuantWeight {
    ty: QuantType,
    units: Buffer,
    count: usize,
    n: usize,
    k: usize,
    names: Names,
}

/// Kernels for a type: a launch must not make a string.
struct Names {
    products: [String; 4],
    experts: [String; 2],
    dequantise: [String; 3],
    embedding: String,
}

impl Names {
    fn of(ty: QuantType) -> Self {
        let ty = ty.name();
        Self {
            products: [8, 16, 32, 64].map(|rows| format!("quant_product_{rows}_{ty}")),
            experts: [8, 32].map(|routes| format!("experts_{routes}_{ty}")),
            dequantise: ["f32", "f16", "bf16"].map(|to| format!("dequantise_{ty}_{to}")),
            embedding: format!("embedding_{ty}"),
        }
    }
}

impl QuantWeight {
    /// Packs the blocks of `[n, k]` as a GGUF file has them, and uploads them.
    pub fn upload(device: &Device, ty: QuantType, blocks: &[u8], n: usize, k: usize) -> Result<Self> {
        Self::upload_all(device, ty, &[blocks], n, k)
    }

    /// The same for several matrices of one size, such as a layer's experts.
    pub fn upload_all(device: &Device, ty: QuantType, matrices: &[&[u8]], n: usize, k: usize) -> Result<Self> {
        const SIZE_MAX: usize = i32::MAX as usize / 2;
        if n == 0 || k == 0 || n > SIZE_MAX || k > SIZE_MAX || !k.is_multiple_of(ty.block_elements()) {
            let (name, block) = (ty.name(), ty.block_elements());
            return Err(shape(OP, format!("no weight [{n}, {k}] of {name}, whose blocks have {block} elements")));
        }
        let wanted = (k / ty.block_elements() * ty.block_bytes()).checked_mul(n);
        if let Some(matrix) = matrices.iter().find(|matrix| Some(matrix.len()) != wanted) {
            return Err(shape(OP, format!("{} bytes are not [{n}, {k}] of {}", matrix.len(), ty.name())));
        }
        let bytes = pack::packed_bytes(ty, n, k);
        let units = device.alloc(bytes * matrices.len(), ElementType::U8)?;
        let mut packed = vec![0; bytes];
        for (index, blocks) in matrices.iter().enumerate() {
            pack::pack(ty, blocks, (n, k), &mut packed);
            units.write(index * bytes, &packed)?;
        }
        Ok(Self { ty, units, count: matrices.len(), n, k, names: Names::of(ty) })
    }

    pub fn ty(&self) -> QuantType {
        self.ty
    }

    /// Rows of one matrix: features that come out.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns: features that go in.
    pub fn k(&self) -> usize {
        self.k
    }

    /// How many matrices there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What it takes of the device's memory.
    pub fn bytes(&self) -> usize {
        self.units.bytes()
    }

    pub(super) fn units_of_row(&self) -> usize {
        self.k.div_ceil(pack::Layout::of(self.ty).elements)
    }

    pub(super) fn units(&self) -> Slice<'_> {
        self.units.all()
    }

    pub(super) fn experts_kernel(&self, is_few: bool) -> &str {
        &self.names.experts[usize::from(!is_few)]
    }

    /// Bytes of workspace for a [`QuantGemm`] of up to `m_max` rows of `ty`.
    pub fn workspace_bytes(&self, m_max: usize, ty: ElementType) -> usize {
        let dense = self.n * self.k * ty.bytes();
        let is_dense = m_max > TILE_ROWS_MAX && dense <= DENSE_BYTES_MAX;
        // Rows that stay quantised may be more than the dense product begins at.
        let quantised = QuantisedRows::bytes(if is_dense { TILE_ROWS_MAX } else { m_max }, self.k);
        quantised.max(if is_dense { dense } else { 0 })
    }

    /// Whether [`QuantGemm::on`] goes by way of plain elements for so many rows.
    pub fn is_dense(&self, m: usize, ty: ElementType) -> bool {
        m > TILE_ROWS_MAX && self.n * self.k * ty.bytes() <= DENSE_BYTES_MAX
    }
}

/// The plain elements of a matrix: out `[n, k]` in F32, F16 or BF16, the same numbers as the CPU's.
pub fn dequantise(device: &Device, w: &QuantWeight, out: Slice) -> Result<()> {
    const OP: &str = "dequantise";
    let kernel = match out.ty() {
        ElementType::F32 => &w.names.dequantise[0],
        ElementType::F16 => &w.names.dequantise[1],
        ElementType::Bf16 => &w.names.dequantise[2],
        other => return Err(shape(OP, format!("elements cannot become {}", other.name()))),
    };
    if w.count != 1 {
        return Err(shape(OP, format!("{} matrices at once", w.count)));
    }
    out.require(OP, "out", out.ty(), w.n * w.k)?;
    aligned(OP, "out", out)?;
    let units = w.units_of_row();
    let warps = w.n.div_ceil(16) * units;
    let launch = Launch::new(kernel).grid(warps.div_ceil(4), 1, 1).block(128, 1);
    launch.slice(w.units()).slice(out).int(w.n).int(w.k).int(units).long(warps).on(device)
}

/// `out[token] = factor * row ids[token]`: ids `[tokens]` U32, out `[tokens, k]` F32. Ids beyond the table give zeros.
pub fn embedding(
    device: &Device,
    w: &QuantWeight,
    (ids, factor): (Slice, f32),
    out: Slice,
    tokens: usize,
) -> Result<()> {
    const OP: &str = "quantised embedding";
    ids.require(OP, "ids", ElementType::U32, tokens)?;
    out.require(OP, "out", ElementType::F32, tokens * w.k)?;
    let launch = Launch::new(&w.names.embedding).grid(tokens, 1, 1).block(128, 1);
    let launch = launch.slice(w.units()).slice(ids).slice(out);
    launch.int(w.n).int(w.k).int(w.units_of_row()).float(factor).on(device)
}

/// Rows in 8 bits, for the products that share them.
#[derive(Debug, Clone, Copy)]
pub struct QuantisedRows<'a> {
    pub(super) quants: Slice<'a>,
    pub(super) meta: Slice<'a>,
    m: usize,
    k: usize,
}

impl<'a> QuantisedRows<'a> {
    /// Bytes that `m` rows of `k` need.
    pub fn bytes(m: usize, k: usize) -> usize {
        // 8 rows: 256 bytes of quants and 64 of scales and sums for every 32 of k.
        m.div_ceil(8) * k.next_multiple_of(128) / 32 * (256 + 64)
    }

    /// `(m, k)`
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.m, self.k)
    }

    /// Quantises x `[m, k]` into `room`; the rows are there for work that is issued later.
    pub fn new(device: &Device, x: Slice, (m, k): (usize, usize), room: Slice<'a>) -> Result<Self> {
        const OP: &str = "quantise rows";
        let kernel = match x.ty() {
            ElementType::F32 => "quantise_f32",
            ElementType::F16 => "quantise_f16",
            ElementType::Bf16 => "quantise_bf16",
            other => return Err(shape(OP, format!("x cannot be {}", other.name()))),
        };
        if k == 0 || !k.is_multiple_of(32) {
            return Err(shape(OP, format!("rows of {k} elements are no whole number of blocks of 32")));
        }
        // Kernels count 8 bytes with an int.
        if m.div_ceil(8) * k.next_multiple_of(128) > i32::MAX as usize {
            return Err(shape(OP, format!("[{m}, {k}] are too many elements")));
        }
        x.require(OP, "x", x.ty(), m * k)?;
        room.require(OP, "room", ElementType::U8, Self::bytes(m, k))?;
        aligned(OP, "room", room)?;
        let (tiles, groups) = (m.div_ceil(8), k.div_ceil(128));
        let quants_bytes = tiles * groups * 4 * 256;
        let quants = room.first(quants_bytes);
        let meta = room.range(quants_bytes, tiles * groups * 4 * 64);
        let launch = Launch::new(kernel).grid(groups, tiles, 1).block(256, 1);
        launch.slice(x).slice(quants).slice(meta).int(m).int(k).on(device)?;
        Ok(Self { quants, meta, m, k })
    }
}

/// `y = x w^T`, or `y += x w^T`: x `[m, k]` in F32, F16 or BF16, y `[m, n]` in the same or F32.
#[derive(Clone, Copy)]
pub struct QuantGemm<'a> {
    pub x: Slice<'a>,
    pub w: &'a QuantWeight,
    pub y: Slice<'a>,
    pub m: usize,
    /// Added to what y holds.
    pub add: bool,
}

impl QuantGemm<'_> {
    /// Issues it. `workspace` U8 as [`QuantWeight::workspace_bytes`] says.
    pub fn on(&self, device: &Device, workspace: Slice) -> Result<()> {
        if self.m == 0 {
            return Ok(());
        }
        if self.w.is_dense(self.m, self.x.ty()) {
            return self.dense(device, workspace);
        }
        let rows = QuantisedRows::new(device, self.x, (self.m, self.w.k), workspace)?;
        self.on_rows(device, &rows)
    }

    /// Issues it with rows of x that were quantised before; x itself is not read.
    pub fn on_rows(&self, device: &Device, rows: &QuantisedRows) -> Result<()> {
        self.into_columns(device, rows, (0, self.w.n))
    }

    /// The same into columns `first..first + n` of a y `[m, stride]`: products that share their input can have one y.
    pub fn into_columns(&self, device: &Device, rows: &QuantisedRows, (first, stride): (usize, usize)) -> Result<()> {
        const TILE_ROWS: [(usize, usize); 4] = [(1, 1), (2, 1), (4, 2), (8, 2)];
        let Self { w, y, m, .. } = *self;
        if rows.m != m || rows.k != w.k || w.count != 1 {
            let QuantWeight { count, n, k, .. } = w;
            return Err(shape(OP, format!("[{}, {}] for [{m}, {k}] with {count} [{n}, {k}]", rows.m, rows.k)));
        }
        if first + w.n > stride {
            return Err(shape(OP, format!("columns {first} to {} of {stride}", first + w.n)));
        }
        let kind = self.kind(stride)?;
        let which = match m {
            0 => return Ok(()),
            1..=8 => 0,
            9..=16 => 1,
            17..=32 => 2,
            _ => 3,
        };
        let (x_tiles, w_tiles) = TILE_ROWS[which];
        let grid = (w.n.div_ceil(16 * w_tiles), m.div_ceil(8 * x_tiles));
        let launch = Launch::new(&w.names.products[which]).grid(grid.0, grid.1, 1).block(256, 1);
        let launch = launch.shared_bytes(8 * 8 * x_tiles * (16 * w_tiles + 1) * size_of::<f32>());
        let launch = launch.slice(w.units()).slice(rows.quants).slice(rows.meta).slice(y.range(first, y.len() - first));
        launch.int(m).int(w.n).int(w.units_of_row()).int(stride).int(kind).int(usize::from(self.add)).on(device)
    }

    /// Issues it by way of plain elements, in `workspace` U8.
    pub fn dense(&self, device: &Device, workspace: Slice) -> Result<()> {
        let Self { x, w, y, m, add } = *self;
        self.kind(w.n)?;
        let plain = workspace.cast(OP, x.ty())?;
        plain.require(OP, "workspace", x.ty(), w.n * w.k)?;
        dequantise(device, w, plain)?;
        Gemm { x, w: plain, y, m, n: w.n, k: w.k, add }.on(device)
    }

    /// How the kernels know the type of y, whose rows are `stride` elements apart.
    fn kind(&self, stride: usize) -> Result<usize> {
        let Self { x, w, y, m, .. } = *self;
        x.require(OP, "x", x.ty(), m * w.k)?;
        let out = if y.ty() == ElementType::F32 { ElementType::F32 } else { x.ty() };
        y.require(OP, "y", out, m * stride)?;
        match out {
            ElementType::F32 => Ok(0),
            ElementType::F16 => Ok(1),
            ElementType::Bf16 => Ok(2),
            other => Err(shape(OP, format!("no product of {}", other.name()))),
        }
    }
}

/// Refuses memory that 16-byte accesses would miss.
pub(super) fn aligned(op: &'static str, name: &str, slice: Slice) -> Result<()> {
    match slice.address().is_multiple_of(16) {
        true => Ok(()),
        false => Err(shape(op, format!("{name} must start at a multiple of 16 bytes"))),
    }
}
