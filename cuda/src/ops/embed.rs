//! Launches of `kernels/embed.cu`.

use super::rows::{aligned, instances, over_rows};
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::memory::Slice;

/// `out[t] = table[ids[t]] * scale`: table `[vocab, hidden]`, ids U32, out `[ids, hidden]` F32. An id beyond the table (that
/// of padding is `u32::MAX`) gives zeros.
#[derive(Debug, Clone, Copy)]
pub struct Embedding<'a> {
    pub table: Slice<'a>,
    pub ids: Slice<'a>,
    pub scale: f32,
    pub out: Slice<'a>,
    pub hidden: usize,
}

impl Embedding<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device) -> Result<()> {
        const OP: &str = "embedding";
        let Self { table, ids, scale, out, hidden } = *self;
        let tokens = ids.len();
        let [plain, wide] = instances!(OP, table.ty(), "embedding")?;
        if hidden == 0 || !table.len().is_multiple_of(hidden) {
            return Err(shape(OP, format!("{} elements are no rows of {hidden}", table.len())));
        }
        ids.require(OP, "ids", ElementType::U32, tokens)?;
        out.require(OP, "out", ElementType::F32, tokens * hidden)?;
        let launch = if hidden.is_multiple_of(4) && aligned([table, out]) {
            over_rows(wide, tokens, hidden, 4)
        } else {
            over_rows(plain, tokens, hidden, 1)
        };
        let launch = launch.slice(table).slice(ids).slice(out);
        launch.int(hidden).int(table.len() / hidden).float(scale).on(device)
    }
}
