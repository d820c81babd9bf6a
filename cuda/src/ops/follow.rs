//! Launch of `kernels/follow.cu`: tokens from the step before that were just chosen, for the step behind it.

use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

/// `tokens[i]` becomes what row `sources[i]` of a step chose; `chosen` U32 `[3, rows]` is that step's, as
/// [`super::sample::SampleRows`] leaves it. A row that chose nothing gives token 0, a source beyond its rows leaves
/// `tokens[i]` as it is. All U32.
pub fn follow(device: &Device, chosen: Slice, sources: Slice, tokens: Slice) -> Result<()> {
    const OP: &str = "follow";
    const THREADS: usize = 128;
    let (rows, count) = (chosen.len() / 3, sources.len());
    if !chosen.len().is_multiple_of(3) {
        return Err(shape(OP, format!("{} words are not three a row", chosen.len())));
    }
    chosen.require(OP, "chosen", ElementType::U32, 3 * rows)?;
    sources.require(OP, "sources", ElementType::U32, count)?;
    tokens.require(OP, "tokens", ElementType::U32, count)?;
    if count == 0 {
        return Ok(());
    }
    let launch = Launch::new("follow_tokens").grid(count.div_ceil(THREADS), 1, 1).block(THREADS, 1);
    launch.slice(chosen).slice(sources).slice(tokens).int(rows).int(count).on(device)
}
