//! Launches of `kernels/convolution.cu`: gated short convolutions over vectors that lie in the blocks of a cache.

use super::attention::Rows;
use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

const OP: &str = "short convolution";

/// A layer's convolution of one step.
#[derive(Debug, Clone, Copy)]
pub struct Convolution<'a> {
    /// T `[tokens, 3, width]`: the first factor of what is convolved, the gate on the result, the second factor.
    pub x: Slice<'a>,
    /// F32 `[3, width]`, added to x first.
    pub bias: Option<Slice<'a>>,
    /// F32, F16, BF16 or FP8 `[blocks, block_size, width]`
    pub cache: Slice<'a>,
    /// F32 `[taps, width]`, the oldest token's first.
    pub taps: Slice<'a>,
    /// F32 `[width]`
    pub tap_bias: Option<Slice<'a>>,
    pub width: usize,
    pub block_size: usize,
    pub tokens: usize,
}

impl Convolution<'_> {
    /// Puts what is convolved of the tokens into their slots, U32 `[tokens]`. A token of slot `u32::MAX` is padding; no two
    /// tokens may have the same slot.
    pub fn write(&self, device: &Device, slots: Slice) -> Result<()> {
        let slots_max = self.check()?;
        slots.require(OP, "slots", ElementType::U32, self.tokens)?;
        let launch = Launch::new(self.kernels().0).grid(self.tokens, self.width.div_ceil(256), 1).block(256, 1);
        let launch = launch.slice(self.x).slice_or_null(self.bias).slice(slots).slice(self.cache);
        launch.int(self.width).int(slots_max).on(device)
    }

    /// What every token becomes: y T `[tokens, width]`. The slots of all tokens of `rows` were written before.
    pub fn mix(&self, device: &Device, rows: &Rows, y: Slice) -> Result<()> {
        self.check()?;
        let Self { x, bias, cache, taps, tap_bias, width, block_size, tokens } = *self;
        if rows.tokens != tokens {
            return Err(shape(OP, format!("{tokens} tokens, {} in rows", rows.tokens)));
        }
        y.require(OP, "y", x.ty(), tokens * width)?;
        rows.row_starts.require(OP, "row_starts", ElementType::U32, rows.rows + 1)?;
        rows.context_lens.require(OP, "context_lens", ElementType::U32, rows.rows)?;
        rows.table_starts.require(OP, "table_starts", ElementType::U32, rows.rows + 1)?;
        rows.block_tables.require(OP, "block_tables", ElementType::U32, 0)?;
        let launch = Launch::new(self.kernels().1).grid(tokens, width.div_ceil(256), 1).block(256, 1);
        let launch = launch.slice(x).slice_or_null(bias).slice(cache).slice(taps).slice_or_null(tap_bias).slice(y);
        let launch = launch.slice(rows.row_starts).slice(rows.context_lens).slice(rows.block_tables);
        let launch = launch.slice(rows.table_starts).int(rows.rows).int(tokens).int(width);
        launch.int(taps.len() / width).int(block_size).on(device)
    }

    /// How many slots the cache has.
    fn check(&self) -> Result<usize> {
        let Self { x, bias, cache, taps, tap_bias, width, block_size, tokens } = *self;
        let is_cached = |ty| matches!(ty, ElementType::F32 | ElementType::F16 | ElementType::Bf16 | ElementType::Fp8);
        if !is_cached(cache.ty()) || !is_cached(x.ty()) || x.ty() == ElementType::Fp8 {
            return Err(shape(OP, format!("vectors of {} in a cache of {}", x.ty().name(), cache.ty().name())));
        }
        let is_whole = width > 0 && block_size > 0 && cache.len().is_multiple_of(width * block_size);
        if !is_whole || taps.is_empty() || !taps.len().is_multiple_of(width) || cache.len() / width > i32::MAX as usize
        {
            let sizes = format!("{} taps, {} elements of a cache", taps.len(), cache.len());
            return Err(shape(OP, format!("{sizes}, {width} wide in blocks of {block_size}")));
        }
        x.require(OP, "x", x.ty(), 3 * tokens * width)?;
        bias.map(|bias| bias.require(OP, "bias", ElementType::F32, 3 * width)).transpose()?;
        taps.require(OP, "taps", ElementType::F32, width)?;
        tap_bias.map(|bias| bias.require(OP, "bias of taps", ElementType::F32, width)).transpose()?;
        Ok(cache.len() / width)
    }

    fn kernels(&self) -> (&'static str, &'static str) {
        use ElementType::{Bf16, F16, F32};
        match (self.x.ty(), self.cache.ty()) {
            (F32, F32) => ("convolution_write_f32_f32", "convolution_mix_f32_f32"),
            (F32, F16) => ("convolution_write_f32_f16", "convolution_mix_f32_f16"),
            (F32, Bf16) => ("convolution_write_f32_bf16", "convolution_mix_f32_bf16"),
            (F32, _) => ("convolution_write_f32_fp8", "convolution_mix_f32_fp8"),
            (F16, F32) => ("convolution_write_f16_f32", "convolution_mix_f16_f32"),
            (F16, F16) => ("convolution_write_f16_f16", "convolution_mix_f16_f16"),
            (F16, Bf16) => ("convolution_write_f16_bf16", "convolution_mix_f16_bf16"),
            (F16, _) => ("convolution_write_f16_fp8", "convolution_mix_f16_fp8"),
            (_, F32) => ("convolution_write_bf16_f32", "convolution_mix_bf16_f32"),
            (_, F16) => ("convolution_write_bf16_f16", "convolution_mix_bf16_f16"),
            (_, Bf16) => ("convolution_write_bf16_bf16", "convolution_mix_bf16_bf16"),
            (_, _) => ("convolution_write_bf16_fp8", "convolution_mix_bf16_fp8"),
        }
    }
}
