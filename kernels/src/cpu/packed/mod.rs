//! Weights as the CPU multiplies with them: 16 rows side by side, one stream of memory from the first panel to the last.
//!
//! Packing copies a matrix once, at load; nothing of the file is needed afterwards. Matrices that take the same input
//! (q, k and v; gate and up) are packed into one weight and multiplied in one go, whatever type each of them has.

mod activations;
mod arena;
mod blocks;
mod file;
mod layout;
mod product;
mod quants;
mod quants_k;
#[cfg(target_os = "linux")]
mod settle;
mod tile;
mod tile_halves;
#[cfg(target_arch = "aarch64")]
mod tile_pairs;
#[cfg(target_arch = "x86_64")]
mod tile_staged;

use std::sync::Arc;

pub use arena::{ALIGN as PACKED_ALIGN, Arena};
pub use file::{PACKED_VERSION, PackedFile};

pub(crate) use activations::{Activations, Forms, View};
pub(crate) use arena::HUGE_PAGE_BYTES;
pub(crate) use layout::ROWS;
pub(crate) use product::{Epilogue, Panels};

use self::arena::Piece;
use self::blocks::Group;
use self::layout::Layout;
use super::pool;
use crate::error::{Result, shape};
use crate::weight::{GgmlType, Weight};

/// How exactly activations are kept while they are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 8 bits in blocks of 32 with block-quantised weights, as ggml does; BF16 with BF16 weights.
    #[default]
    Fast,
    /// 16 bits in blocks of 32 with block-quantised weights, F32 with BF16 weights: as good as F32 throughout, at about
    /// half the speed where arithmetic and not memory is the limit.
    High,
}

/// One or more matrices that take the same input, their rows one below the other.
#[derive(Clone)]
pub struct PackedWeight {
    parts: Arc<[Part]>,
    precision: Precision,
    input: usize,
    out: usize,
}

/// One matrix of a [`PackedWeight`] in a file: its first byte there, a multiple of [`PACKED_ALIGN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FiledPart {
    pub ty: GgmlType,
    pub rows: usize,
    pub offset: usize,
}

/// Panels of one matrix.
struct Part {
    ty: GgmlType,
    /// Its first row in the output.
    row: usize,
    rows: usize,
    panel_bytes: usize,
    panels: Piece,
}

impl PackedWeight {
    /// Packs matrices of one input width. Reads each of them once, on all threads.
    pub fn new(weights: &[&Weight], precision: Precision, arena: &mut Arena) -> Result<Self> {
        let Some(first) = weights.first() else { return Err(shape("pack", "there is no matrix")) };
        let input = first.input();
        let mut out = 0;
        let mut parts = Vec::with_capacity(weights.len());
        for weight in weights {
            if weight.input() != input {
                let other = weight.input();
                return Err(shape("pack", format!("matrices of {input} and {other} columns cannot stand together")));
            }
            parts.push(Part::new(weight, out, arena)?);
            out += weight.out();
        }
        Ok(Self { parts: parts.into(), precision, input, out })
    }

    /// Matrices of one input width that were packed before, where they lie in a file. The file's bytes are not looked
    /// at; those of another type give other numbers.
    pub fn mapped(parts: &[FiledPart], input: usize, precision: Precision, file: &PackedFile) -> Result<Self> {
        let mut out = 0;
        let mut mapped = Vec::with_capacity(parts.len());
        for part in parts {
            mapped.push(Part::mapped(part, input, out, file)?);
            out += part.rows;
        }
        if out == 0 {
            return Err(shape("map", "there is no matrix"));
        }
        Ok(Self { parts: mapped.into(), precision, input, out })
    }

    /// Type, rows and packed bytes of each matrix, in order: what a file needs for [`PackedWeight::mapped`].
    pub fn parts(&self) -> impl ExactSizeIterator<Item = (GgmlType, usize, &[u8])> {
        self.parts.iter().map(|part| (part.ty, part.rows, part.panels.bytes()))
    }

    /// Whether it has clones.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.parts) > 1
    }

    /// Rows of all matrices together: features that come out.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Columns: features that go in.
    pub fn input(&self) -> usize {
        self.input
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.panels.bytes().len()).sum()
    }

    /// Dequantises row `row` into `out`, `[input]`. Panics when the row or the length does not exist.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.out && out.len() == self.input, "row {row} of {} into {} values", self.out, out.len());
        let part = self.parts.iter().rfind(|part| part.row <= row).expect("the first part starts at row 0");
        let (panel, lane) = ((row - part.row) / ROWS, (row - part.row) % ROWS);
        let panel = &part.panels.bytes()[panel * part.panel_bytes..(panel + 1) * part.panel_bytes];
        match Layout::of(part.ty) {
            Some(layout) => layout.read_row(part.ty, panel, lane, out),
            None => layout::read_plain_row(part.ty, panel, lane, out),
        }
    }

    /// What activations must become for it.
    pub(crate) fn forms(&self) -> Forms {
        let mut forms = Forms::default();
        for part in &*self.parts {
            match (part.ty, self.precision) {
                (GgmlType::F32 | GgmlType::F16, _) | (GgmlType::Bf16, Precision::High) => forms.f32 = true,
                (GgmlType::Bf16, Precision::Fast) => forms.bf16 = true,
                (_, Precision::Fast) => forms.i8 = true,
                (_, Precision::High) => forms.i16 = true,
            }
        }
        forms
    }

    /// Panels of all parts: units that work is divided in.
    pub(crate) fn panels(&self) -> usize {
        self.parts.iter().map(Part::count).sum()
    }
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let types: Vec<_> = self.parts.iter().map(|part| part.ty.name()).collect();
        write!(f, "PackedWeight({} [{}, {}])", types.join(" + "), self.out, self.input)
    }
}

impl Part {
    fn new(weight: &Weight, row: usize, arena: &mut Arena) -> Result<Self> {
        let (ty, rows, layout) = (weight.ty(), weight.out(), Layout::of(weight.ty()));
        let (panel_bytes, bytes) = sizes(ty, rows, weight.input())?;
        let panels = arena.piece(bytes, |room| {
            let room = SharedRoom { start: room.as_mut_ptr(), panel_bytes };
            // A few panels a chunk: packing is a copy, and fork-joins are not free.
            const CHUNK: usize = 8;
            pool::run(rows.div_ceil(ROWS * CHUNK), &|chunk| {
                for panel in chunk * CHUNK..((chunk + 1) * CHUNK).min(rows.div_ceil(ROWS)) {
                    // SAFETY: each panel is written by one chunk.
                    let room = unsafe { room.panel(panel) };
                    let rows = panel * ROWS..((panel + 1) * ROWS).min(rows);
                    match &layout {
                        Some(_) => pack_groups(weight, rows, room),
                        None => pack_plain(weight, rows, room),
                    }
                }
            });
        })?;
        Ok(Part { ty, row, rows, panel_bytes, panels })
    }

    fn mapped(part: &FiledPart, input: usize, row: usize, file: &PackedFile) -> Result<Self> {
        let FiledPart { ty, rows, offset } = *part;
        if input == 0 || !input.is_multiple_of(ty.block_elements()) {
            return Err(shape("map", format!("rows of {input} elements are no whole number of {} blocks", ty.name())));
        }
        let (panel_bytes, bytes) = sizes(ty, rows, input)?;
        let outside = || shape("map", format!("{bytes} bytes from byte {offset} are not in the file"));
        let panels = file.piece(offset, bytes).ok_or_else(outside)?;
        Ok(Part { ty, row, rows, panel_bytes, panels })
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }
}

/// Bytes of a panel, and of all.
fn sizes(ty: GgmlType, rows: usize, input: usize) -> Result<(usize, usize)> {
    let panel_bytes = match Layout::of(ty) {
        Some(layout) => layout.panel_bytes(input),
        None => layout::plain_panel_bytes(ty, input),
    };
    let bytes = panel_bytes.checked_mul(rows.div_ceil(ROWS));
    let name = ty.name();
    let bytes = bytes.ok_or_else(|| shape("pack", format!("{rows} x {input} {name} do not fit the address space")))?;
    Ok((panel_bytes, bytes))
}

struct SharedRoom {
    start: *mut u8,
    panel_bytes: usize,
}
// SAFETY: threads write to disjoint panels only.
unsafe impl Sync for SharedRoom {}

impl SharedRoom {
    /// # Safety
    /// The panel must lie in the room, and no other thread may have it.
    #[expect(clippy::mut_from_ref, reason = "disjoint panels, as the contract says")]
    unsafe fn panel(&self, index: usize) -> &mut [u8] {
        // SAFETY: as promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.panel_bytes), self.panel_bytes) }
    }
}

/// Packs rows of blocks. Each type has a copy of the loop of its own, where sizes and shifts are constants.
fn pack_groups(weight: &Weight, rows: std::ops::Range<usize>, panel: &mut [u8]) {
    macro_rules! of_type {
        ($($ty:ident)*) => {
            match weight.ty() {
                $(GgmlType::$ty => pack_groups_of(GgmlType::$ty, weight, rows, panel),)*
                GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 => unreachable!("plain numbers have no blocks"),
            }
        };
    }
    of_type!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K Iq4Nl Iq4Xs Mxfp4)
}

#[inline(always)]
fn pack_groups_of(ty: GgmlType, weight: &Weight, rows: std::ops::Range<usize>, panel: &mut [u8]) {
    let Some(layout) = Layout::of(ty) else { return };
    let (row_bytes, block_bytes, bytes) = (weight.row_bytes(), ty.block_bytes(), weight.bytes());
    let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
    let mut group = Group::EMPTY;
    for (at, room) in panel.chunks_exact_mut(layout.group_bytes()).enumerate() {
        for (row, from) in bytes.chunks_exact(row_bytes).enumerate() {
            group.read(ty, &from[at * block_bytes..(at + 1) * block_bytes]);
            layout.write(&group, row, room);
        }
    }
}

fn pack_plain(weight: &Weight, rows: std::ops::Range<usize>, panel: &mut [u8]) {
    let (row_bytes, bytes) = (weight.row_bytes(), weight.bytes());
    let first = rows.start;
    for row in rows {
        layout::write_plain_row(weight.ty(), &bytes[row * row_bytes..(row + 1) * row_bytes], row - first, panel);
    }
}
