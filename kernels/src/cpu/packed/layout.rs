//! How each element type lies in a packed panel, and how its codes get there and back.
//!
//! A panel is 16 rows of the matrix. For block types it is a run of groups, one for every 32 or 256 elements of input:
//!
//! ```text
//! group   = head, then 1 or 8 blocks of 32 elements
//! head    = d of 16 rows (f16, of MXFP4 bf16), then for types with mins m or dmin of 16 rows (f16)
//! block   = side, then planes                          (side: the small scales and mins of K-quants)
//! Four    = 4 x 64 bytes: vector j has quad j in the low and quad j + 4 in the high nibbles
//! Two     = 2 x 64 bytes: vector j has quads 4j, 4j + 1, 4j + 2, 4j + 3 in bits 0, 2, 4, 6
//! One     = 8 x 8 bytes: mask q has bit i for byte i of quad q
//! Eight   = 8 x 64 bytes: vector q is quad q
//! quad q  = elements 4q to 4q + 3 of row 0, of row 1, ... of row 15: 64 codes, one vector
//! ```
//!
//! F32 and F16 panels are `[input][16 rows]`, BF16 panels `[input / 2][16 rows][2]`, odd inputs padded with zero.

use half::bf16;

use super::blocks::Group;
use crate::cpu::dequant;
use crate::cpu::half_table::half_to_f32;
use crate::cpu::simd::BLOCK;
use crate::weight::GgmlType;

/// Rows of a panel: the lanes of a vector.
pub(crate) const ROWS: usize = 16;
/// Codes of one row in a quad.
const QUAD: usize = 4;
const QUADS: usize = BLOCK / QUAD;

/// Which bit planes a block's codes are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planes {
    Eight,
    Four,
    FourOne,
    FourTwo,
    Two,
    TwoOne,
}

impl Planes {
    #[inline(always)]
    fn bytes(self) -> usize {
        match self {
            Planes::Eight => 512,
            Planes::Four => 256,
            Planes::FourOne => 256 + 64,
            Planes::FourTwo => 256 + 128,
            Planes::Two => 128,
            Planes::TwoOne => 128 + 64,
        }
    }
}

/// The side bytes of a block: small scales (and mins) of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    None,
    /// 16 unsigned scales, then 16 mins.
    ScaleAndMin,
    /// 16 signed scales for the first 16 elements, then 16 for the last.
    TwoScales,
    /// As `TwoScales`, each byte a 4-bit scale and, above it, a 4-bit min.
    TwoNibbles,
}

impl Side {
    fn bytes(self) -> usize {
        if self == Side::None { 0 } else { 2 * ROWS }
    }
}

/// A block type's place in its panel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    blocks: usize,
    mins: bool,
    side: Side,
    planes: Planes,
    /// Subtracted from a code.
    zero: i32,
}

impl Layout {
    /// `None` for the types that are plain numbers.
    #[inline(always)]
    pub fn of(ty: GgmlType) -> Option<Layout> {
        let layout = |blocks, mins, side, planes, zero| Some(Layout { blocks, mins, side, planes, zero });
        match ty {
            GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 => None,
            GgmlType::Q4_0 => layout(1, false, Side::None, Planes::Four, 8),
            // Codes are places in a table.
            GgmlType::Iq4Nl | GgmlType::Mxfp4 => layout(1, false, Side::None, Planes::Four, 0),
            GgmlType::Iq4Xs => layout(8, false, Side::TwoScales, Planes::Four, 0),
            GgmlType::Q4_1 => layout(1, true, Side::None, Planes::Four, 0),
            GgmlType::Q5_0 => layout(1, false, Side::None, Planes::FourOne, 16),
            GgmlType::Q5_1 => layout(1, true, Side::None, Planes::FourOne, 0),
            GgmlType::Q8_0 => layout(1, false, Side::None, Planes::Eight, 128),
            GgmlType::Q2K => layout(8, true, Side::TwoNibbles, Planes::Two, 0),
            GgmlType::Q3K => layout(8, false, Side::TwoScales, Planes::TwoOne, 4),
            GgmlType::Q4K => layout(8, true, Side::ScaleAndMin, Planes::Four, 0),
            GgmlType::Q5K => layout(8, true, Side::ScaleAndMin, Planes::FourOne, 0),
            GgmlType::Q6K => layout(8, false, Side::TwoScales, Planes::FourTwo, 32),
        }
    }

    pub const fn head_bytes(&self) -> usize {
        if self.mins { 4 * ROWS } else { 2 * ROWS }
    }

    pub fn block_bytes(&self) -> usize {
        self.side.bytes() + self.planes.bytes()
    }

    pub fn group_bytes(&self) -> usize {
        self.head_bytes() + self.blocks * self.block_bytes()
    }

    /// Bytes of a panel.
    pub fn panel_bytes(&self, input: usize) -> usize {
        input / (self.blocks * BLOCK) * self.group_bytes()
    }

    /// Puts one row's part of a group into its place.
    #[inline(always)]
    pub fn write(&self, group: &Group, row: usize, to: &mut [u8]) {
        put(to, 2 * row, group.d);
        if self.mins {
            put(to, 2 * ROWS + 2 * row, group.m);
        }
        let blocks = to[self.head_bytes()..].chunks_exact_mut(self.block_bytes());
        for (index, (to, codes)) in blocks.zip(group.codes.as_chunks::<BLOCK>().0).enumerate() {
            let (side, planes) = to.split_at_mut(self.side.bytes());
            match self.side {
                Side::None => {}
                Side::ScaleAndMin => (side[row], side[ROWS + row]) = (group.scales[index], group.mins[index]),
                Side::TwoScales => {
                    (side[row], side[ROWS + row]) = (group.scales[2 * index], group.scales[2 * index + 1]);
                }
                Side::TwoNibbles => {
                    let byte = |part: usize| group.scales[2 * index + part] | group.mins[2 * index + part] << 4;
                    (side[row], side[ROWS + row]) = (byte(0), byte(1));
                }
            }
            self.planes.write(codes, row, planes);
        }
    }

    /// Dequantises one row of a panel.
    pub fn read_row(&self, ty: GgmlType, panel: &[u8], row: usize, out: &mut [f32]) {
        let groups = panel.chunks_exact(self.group_bytes()).zip(out.chunks_exact_mut(self.blocks * BLOCK));
        for (group, out) in groups {
            let half = |at: usize| half_to_f32(u16::from_le_bytes([group[at], group[at + 1]]));
            let d = match ty {
                GgmlType::Mxfp4 => bf16::from_le_bytes([group[2 * row], group[2 * row + 1]]).to_f32(),
                _ => half(2 * row),
            };
            let m = if self.mins { half(2 * ROWS + 2 * row) } else { 0.0 };
            let blocks = group[self.head_bytes()..].chunks_exact(self.block_bytes());
            for (block, out) in blocks.zip(out.as_chunks_mut::<BLOCK>().0) {
                let (side, planes) = block.split_at(self.side.bytes());
                for (at, out) in out.iter_mut().enumerate() {
                    let code = self.planes.read(planes, row, at);
                    let byte = |part: usize| side[part * ROWS + row];
                    let part = at / 16;
                    let (scale, min) = match self.side {
                        Side::None => (d, m),
                        Side::ScaleAndMin => (d * f32::from(byte(0)), -(m * f32::from(byte(1)))),
                        Side::TwoScales => (d * f32::from(byte(part).cast_signed()), 0.0),
                        Side::TwoNibbles => (d * f32::from(byte(part) & 15), -(m * f32::from(byte(part) >> 4))),
                    };
                    let value = match ty {
                        GgmlType::Iq4Nl | GgmlType::Iq4Xs => i32::from(dequant::IQ4_NL_VALUES[usize::from(code)]),
                        GgmlType::Mxfp4 => i32::from(dequant::MXFP4_VALUES[usize::from(code)]),
                        _ => i32::from(code) - self.zero,
                    };
                    *out = if self.mins { scale * value as f32 + min } else { scale * value as f32 };
                }
            }
        }
    }
}

impl Planes {
    #[inline(always)]
    fn write(self, codes: &[u8; BLOCK], row: usize, to: &mut [u8]) {
        let quads = codes.as_chunks::<QUAD>().0;
        let quad = |q: usize| u32::from_le_bytes(quads[q]);
        let to = &mut to[..self.bytes()];
        let mut put = |at: usize, bits: u32| put(to, at, bits.to_le_bytes());
        let row_at = row * QUAD;
        match self {
            Planes::Eight => (0..QUADS).for_each(|q| put(q * 64 + row_at, quad(q))),
            Planes::Four => (0..4).for_each(|j| put(j * 64 + row_at, quad(j) | quad(j + 4) << 4)),
            Planes::FourOne | Planes::FourTwo => {
                const LOW: u32 = 0x0f0f_0f0f;
                (0..4).for_each(|j| put(j * 64 + row_at, quad(j) & LOW | (quad(j + 4) & LOW) << 4));
            }
            Planes::Two | Planes::TwoOne => {}
        }
        let two_bits = |q: usize, shift: usize| quad(q) >> shift & 0x0303_0303;
        let (twos_at, shift) = if self == Planes::FourTwo { (256, 4) } else { (0, 0) };
        if matches!(self, Planes::FourTwo | Planes::Two | Planes::TwoOne) {
            for vector in 0..2 {
                let bits = (0..4).fold(0, |bits, j| bits | two_bits(vector * 4 + j, shift) << (2 * j));
                put(twos_at + vector * 64 + row_at, bits);
            }
        }
        let (ones_at, bit) = if self == Planes::FourOne { (256, 4) } else { (128, 2) };
        if matches!(self, Planes::FourOne | Planes::TwoOne) {
            for (q, codes) in quads.iter().enumerate() {
                let bits = codes.iter().rev().fold(0, |bits, code| bits << 1 | code >> bit & 1);
                to[ones_at + q * 8 + row / 2] |= bits << (row % 2 * 4);
            }
        }
    }

    fn read(self, from: &[u8], row: usize, at: usize) -> u8 {
        let (quad, byte) = (at / QUAD, row * QUAD + at % QUAD);
        let four = || from[quad % 4 * 64 + byte] >> (quad / 4 * 4) & 15;
        let two = |start: usize| from[start + quad / 4 * 64 + byte] >> (quad % 4 * 2) & 3;
        let one = |start: usize| from[start + quad * 8 + byte / 8] >> (byte % 8) & 1;
        match self {
            Planes::Eight => from[quad * 64 + byte],
            Planes::Four => four(),
            Planes::FourOne => four() | one(256) << 4,
            Planes::FourTwo => four() | two(256) << 4,
            Planes::Two => two(0),
            Planes::TwoOne => two(0) | one(128) << 2,
        }
    }
}

#[inline(always)]
fn put<const BYTES: usize>(to: &mut [u8], at: usize, bytes: [u8; BYTES]) {
    let room: &mut [u8; BYTES] = (&mut to[at..at + BYTES]).try_into().expect("as many as the range has");
    *room = bytes;
}

/// Bytes of a panel of plain numbers.
pub(super) fn plain_panel_bytes(ty: GgmlType, input: usize) -> usize {
    match ty {
        GgmlType::F32 => input * ROWS * 4,
        GgmlType::F16 => input * ROWS * 2,
        _ => input.div_ceil(2) * ROWS * 4,
    }
}

/// Puts one row of plain numbers into its panel.
pub(super) fn write_plain_row(ty: GgmlType, bytes: &[u8], row: usize, panel: &mut [u8]) {
    match ty {
        GgmlType::F32 => interleave::<4>(bytes, row, panel),
        GgmlType::F16 => interleave::<2>(bytes, row, panel),
        _ => {
            interleave::<4>(bytes, row, panel);
            if let [last_low, last_high] = bytes[bytes.len() / 4 * 4..] {
                let at = (bytes.len() / 4 * ROWS + row) * 4;
                panel[at..at + 2].copy_from_slice(&[last_low, last_high]);
            }
        }
    }
}

#[inline(always)]
fn interleave<const BYTES: usize>(bytes: &[u8], row: usize, panel: &mut [u8]) {
    let places = panel.as_chunks_mut::<BYTES>().0;
    for (place, raw) in places.iter_mut().skip(row).step_by(ROWS).zip(bytes.as_chunks::<BYTES>().0) {
        *place = *raw;
    }
}

/// Reads one row of plain numbers.
pub(super) fn read_plain_row(ty: GgmlType, panel: &[u8], row: usize, out: &mut [f32]) {
    match ty {
        GgmlType::F32 => {
            let places = panel.as_chunks::<4>().0.iter().skip(row).step_by(ROWS);
            places.zip(out).for_each(|(raw, out)| *out = f32::from_le_bytes(*raw));
        }
        GgmlType::F16 => {
            let places = panel.as_chunks::<2>().0.iter().skip(row).step_by(ROWS);
            places.zip(out).for_each(|(raw, out)| *out = half_to_f32(u16::from_le_bytes(*raw)));
        }
        _ => {
            let places = panel.as_chunks::<4>().0.iter().skip(row).step_by(ROWS);
            for (raw, out) in places.zip(out.chunks_mut(2)) {
                let pair = [[raw[0], raw[1]], [raw[2], raw[3]]];
                pair.into_iter().zip(out).for_each(|(raw, out)| *out = bf16::from_le_bytes(raw).to_f32());
            }
        }
    }
}
