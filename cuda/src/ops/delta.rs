//! Launches of `kernels/delta.cu`: layers of the gated delta rule, whose past is one state a sequence.

use crate::device::Device;
use crate::element::ElementType;
use crate::error::{Result, shape};
use crate::launch::Launch;
use crate::memory::Slice;

const OP: &str = "gated delta rule";
/// Rows of a state that a kernel keeps in registers at most.
pub const KEY_DIM_MAX: usize = 256;
/// Heads and rows of a launch at most.
const GRID_MAX: usize = 65_535;

/// Sizes of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaSizes {
    pub key_heads: usize,
    /// A multiple of the key heads, each with a state.
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Tokens that the convolution before the rule looks at, its own included.
    pub taps: usize,
    /// The value heads of a key head are every so many as there are key heads, otherwise neighbours.
    pub is_tiled: bool,
}

impl DeltaSizes {
    /// Width of all values.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Width of what is convolved: queries, keys and values.
    pub fn mixed(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.values()
    }

    /// Width of what a layer projects: that, the gates on the result, and two numbers a value head.
    pub fn projected(&self) -> usize {
        self.mixed() + self.values() + 2 * self.value_heads
    }

    /// F32 elements of one sequence's state.
    pub fn state_len(&self) -> usize {
        self.taps.saturating_sub(1) * self.mixed() + self.value_heads * self.key_dim * self.value_dim
    }

    fn check(&self) -> Result<()> {
        let Self { key_heads, value_heads, key_dim, value_dim, taps, .. } = *self;
        let is_whole = key_heads > 0 && value_heads.is_multiple_of(key_heads) && (1..=GRID_MAX).contains(&value_heads);
        let is_sized = (1..=KEY_DIM_MAX).contains(&key_dim) && (1..=1 << 16).contains(&value_dim) && taps > 0;
        if is_whole && is_sized { Ok(()) } else { Err(shape(OP, format!("no kernel for {self:?}"))) }
    }
}

/// A layer's weights.
#[derive(Debug, Clone, Copy)]
pub struct DeltaWeights<'a> {
    /// F32 `[taps, mixed]`, the oldest token's first.
    pub taps: Slice<'a>,
    /// F32 `[value_heads]`, negative: how fast each head forgets; and what is added to a token's own say in it.
    pub decay: Slice<'a>,
    pub decay_bias: Slice<'a>,
    /// F32 `[value_dim]`, of an RMSNorm over each head's result, and its eps.
    pub norm: Slice<'a>,
    pub eps: f32,
}

/// The rows of a step. The caller checks what stands in device memory: starts ascend from 0 to `tokens`, slots of rows and of saves
/// are all different.
#[derive(Debug, Clone, Copy)]
pub struct DeltaRows<'a> {
    /// U32 `[rows + 1]`
    pub row_starts: Slice<'a>,
    /// U32 `[rows]`: a row whose context is its own tokens begins its sequence.
    pub context_lens: Slice<'a>,
    /// U32 `[rows]`: where each row's state is; `u32::MAX` of a padding row, of which nothing is touched.
    pub slots: Slice<'a>,
    /// U32 `[tokens]`: where the state behind a token is also left, or `u32::MAX`.
    pub saves: Slice<'a>,
    pub rows: usize,
    pub tokens: usize,
}

/// What goes between the kernels of a layer.
#[derive(Debug, Clone, Copy)]
pub struct DeltaRoom<'a> {
    /// F32 `[tokens, mixed]`
    pub mixed: Slice<'a>,
    /// F32 `[tokens, value_heads, 2]`
    pub gates: Slice<'a>,
    /// F32 `[tokens, values]`
    pub seen: Slice<'a>,
}

/// The layer between its two projections: x F32 `[tokens, projected]` to y T `[tokens, values]`. Advances `states`, F32
/// `[slots, state_len]`.
#[derive(Debug, Clone, Copy)]
pub struct DeltaRule<'a> {
    pub sizes: DeltaSizes,
    pub weights: DeltaWeights<'a>,
    pub states: Slice<'a>,
    pub x: Slice<'a>,
    pub y: Slice<'a>,
    pub room: DeltaRoom<'a>,
}

impl DeltaRule<'_> {
    /// Issues it.
    pub fn on(&self, device: &Device, rows: &DeltaRows) -> Result<()> {
        let Self { sizes, weights, states, x, y, room } = *self;
        self.check(rows)?;
        let DeltaRows { tokens, rows: count, saves, .. } = *rows;
        let columns = sizes.mixed().div_ceil(256);
        let launch =
            Launch::new("delta_mix").grid(tokens, 1, 1).block(256, 1).slice(x).slice(states).slice(weights.taps);
        let launch = launch.slice(weights.decay).slice(weights.decay_bias).slice(room.mixed).slice(room.gates);
        with(launch, rows, &sizes).on(device)?;
        if sizes.taps > 1 {
            let launch = Launch::new("delta_save_tails").grid(tokens, columns, 1).block(256, 1);
            with(launch.slice(x).slice(states).slice(saves), rows, &sizes).on(device)?;
            let launch = Launch::new("delta_keep_tails").grid(count, columns, 1).block(256, 1);
            with(launch.slice(x).slice(states), rows, &sizes).on(device)?;
        }
        let kernel = match sizes.key_dim {
            0..=32 => "delta_recur_8",
            33..=128 => "delta_recur_32",
            _ => "delta_recur_64",
        };
        let launch = Launch::new(kernel).grid(count, sizes.value_heads, sizes.value_dim.div_ceil(32)).block(128, 1);
        let launch = launch.slice(room.mixed).slice(room.gates).slice(states).slice(saves).slice(room.seen);
        with(launch, rows, &sizes).on(device)?;
        let kernel = match y.ty() {
            ElementType::F32 => "delta_gate_f32",
            ElementType::F16 => "delta_gate_f16",
            ElementType::Bf16 => "delta_gate_bf16",
            other => return Err(shape(OP, format!("y cannot be {}", other.name()))),
        };
        let launch = Launch::new(kernel).grid(tokens, sizes.value_heads.div_ceil(4), 1).block(128, 1);
        let launch = launch.slice(room.seen).slice(x).slice(weights.norm).float(weights.eps).slice(y);
        with_sizes(launch, &sizes).on(device)
    }

    fn check(&self, rows: &DeltaRows) -> Result<()> {
        use ElementType::{F32, U32};
        let Self { sizes, weights, states, x, y, room } = *self;
        sizes.check()?;
        let (tokens, mixed, heads) = (rows.tokens, sizes.mixed(), sizes.value_heads);
        weights.taps.require(OP, "taps", F32, sizes.taps * mixed)?;
        weights.decay.require(OP, "decay", F32, heads)?;
        weights.decay_bias.require(OP, "decay bias", F32, heads)?;
        weights.norm.require(OP, "norm", F32, sizes.value_dim)?;
        states.require(OP, "states", F32, sizes.state_len())?;
        x.require(OP, "x", F32, tokens * sizes.projected())?;
        y.require(OP, "y", y.ty(), tokens * sizes.values())?;
        room.mixed.require(OP, "room of what is mixed", F32, tokens * mixed)?;
        room.gates.require(OP, "room of gates", F32, tokens * heads * 2)?;
        room.seen.require(OP, "room of what is seen", F32, tokens * sizes.values())?;
        rows.row_starts.require(OP, "row_starts", U32, rows.rows + 1)?;
        rows.context_lens.require(OP, "context_lens", U32, rows.rows)?;
        rows.slots.require(OP, "slots", U32, rows.rows)?;
        rows.saves.require(OP, "saves", U32, tokens)?;
        Ok(())
    }
}

fn with<'l>(launch: Launch<'l>, rows: &DeltaRows, sizes: &DeltaSizes) -> Launch<'l> {
    let launch = launch.slice(rows.row_starts).slice(rows.context_lens).slice(rows.slots).int(rows.rows);
    with_sizes(launch, sizes)
}

fn with_sizes<'l>(launch: Launch<'l>, sizes: &DeltaSizes) -> Launch<'l> {
    let DeltaSizes { key_heads, value_heads, key_dim, value_dim, taps, is_tiled } = *sizes;
    launch.int(key_heads).int(value_heads).int(key_dim).int(value_dim).int(taps).int(is_tiled.into())
}

/// The state of slot `to` becomes that of `from`: states F32 `[slots, each]`.
pub fn copy_state(device: &Device, states: Slice, each: usize, (from, to): (u32, u32)) -> Result<()> {
    let slots = states.len() / each.max(1);
    states.require(OP, "states", ElementType::F32, each)?;
    if each == 0 || from.max(to) as usize >= slots || from == to {
        return Err(shape(OP, format!("a copy from slot {from} to {to} of {slots}")));
    }
    let launch = Launch::new("delta_copy").grid(each.div_ceil(256), 1, 1).block(256, 1);
    launch.slice(states).long(each).int(from as usize).int(to as usize).on(device)
}

/// `y = y * sigmoid(x)`: both of one type, `len` elements.
pub fn sigmoid_mul(device: &Device, x: Slice, y: Slice, len: usize) -> Result<()> {
    const OP: &str = "sigmoid_mul";
    x.require(OP, "x", x.ty(), len)?;
    y.require(OP, "y", x.ty(), len)?;
    let kernel = match x.ty() {
        ElementType::F32 => "sigmoid_mul_f32",
        ElementType::F16 => "sigmoid_mul_f16",
        ElementType::Bf16 => "sigmoid_mul_bf16",
        other => return Err(shape(OP, format!("no kernel for {}", other.name()))),
    };
    let launch = Launch::new(kernel).grid(len.div_ceil(256), 1, 1).block(256, 1);
    launch.slice(x).slice(y).long(len).on(device)
}
