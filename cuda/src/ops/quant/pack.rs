//! GGUF's quantised rows packed for the GPU, without loss: units of 16 rows, quants in the order of the tensor core's
//! fragments, then scales. `kernels/quant_blocks.cuh` has the layout and reads it.

use super::QuantType;

/// Rows of a unit.
const ROWS: usize = 16;
const LANES: usize = 32;

/// What a unit of a type consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Elements of one row: 128 or 256.
    pub elements: usize,
    low: Low,
    high: High,
    /// Bytes of scales a row: a first part of all rows, then a second.
    scales: [usize; 2],
}

/// Lower bits of a quant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Low {
    Bytes,
    Nibbles,
    /// Nibbles in the order in which a table is looked up.
    Indices,
    Pairs,
}

/// Bits above those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum High {
    None,
    One,
    Two,
}

/// One row's part of a unit: quants as unsigned numbers, scales as bytes.
struct Part {
    quants: [u8; 256],
    scales: [[u8; 16]; 2],
}

impl Layout {
    pub fn of(ty: QuantType) -> Self {
        use QuantType::*;
        let (elements, low, high, scales) = match ty {
            Q4_0 => (128, Low::Nibbles, High::None, [8, 0]),
            Q4_1 => (128, Low::Nibbles, High::None, [16, 0]),
            Q5_0 => (128, Low::Nibbles, High::One, [8, 0]),
            Q5_1 => (128, Low::Nibbles, High::One, [16, 0]),
            Q8_0 => (128, Low::Bytes, High::None, [8, 0]),
            Iq4Nl => (128, Low::Indices, High::None, [8, 0]),
            Mxfp4 => (128, Low::Indices, High::None, [4, 0]),
            Q2K => (256, Low::Pairs, High::None, [16, 4]),
            Q3K => (256, Low::Pairs, High::One, [16, 2]),
            Q4K => (256, Low::Nibbles, High::None, [16, 4]),
            Q5K => (256, Low::Nibbles, High::One, [16, 4]),
            Q6K => (256, Low::Nibbles, High::Two, [16, 2]),
            Iq4Xs => (256, Low::Indices, High::None, [8, 2]),
        };
        Self { elements, low, high, scales }
    }

    fn low_bytes(self) -> usize {
        let bits = match self.low {
            Low::Bytes => 8,
            Low::Nibbles | Low::Indices => 4,
            Low::Pairs => 2,
        };
        ROWS * self.elements * bits / 8
    }

    fn high_bytes(self) -> usize {
        let bits = match self.high {
            High::None => 0,
            High::One => 1,
            High::Two => 2,
        };
        ROWS * self.elements * bits / 8
    }

    pub fn bytes(self) -> usize {
        self.low_bytes() + self.high_bytes() + ROWS * (self.scales[0] + self.scales[1])
    }
}

/// Bytes of a packed matrix.
pub(super) fn packed_bytes(ty: QuantType, n: usize, k: usize) -> usize {
    let layout = Layout::of(ty);
    n.div_ceil(ROWS) * k.div_ceil(layout.elements) * layout.bytes()
}

/// Packs `[n, k]`: `blocks` holds exactly the rows' blocks, `out` exactly [`packed_bytes`]. Uses the machine's cores.
pub(super) fn pack(ty: QuantType, blocks: &[u8], (n, k): (usize, usize), out: &mut [u8]) {
    let layout = Layout::of(ty);
    let tile_bytes = k.div_ceil(layout.elements) * layout.bytes();
    let row_bytes = k / ty.block_elements() * ty.block_bytes();
    let tiles = n.div_ceil(ROWS);
    // A thread is worth its start for some hundred kilobytes.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(out.len() >> 18).max(1);
    let each = tiles.div_ceil(threads);
    std::thread::scope(|scope| {
        for (index, out) in out.chunks_mut(each * tile_bytes).enumerate() {
            let mut work = move || {
                for (at, tile) in out.chunks_exact_mut(tile_bytes).enumerate() {
                    let first = (index * each + at) * ROWS;
                    let rows = &blocks[first * row_bytes..(first + ROWS).min(n) * row_bytes];
                    pack_tile(ty, rows, row_bytes, tile);
                }
            };
            // The last piece is this thread's own.
            if (index + 1) * each >= tiles { work() } else { drop(scope.spawn(work)) }
        }
    });
}

/// Sixteen rows or fewer; what is missing is zero.
fn pack_tile(ty: QuantType, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    let layout = Layout::of(ty);
    let blocks_a_unit = layout.elements / ty.block_elements();
    tile.fill(0);
    for (at, unit) in tile.chunks_exact_mut(layout.bytes()).enumerate() {
        for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
            let mut part = Part { quants: [0; 256], scales: [[0; 16]; 2] };
            let blocks = bytes.chunks_exact(ty.block_bytes()).skip(at * blocks_a_unit).take(blocks_a_unit);
            for (index, block) in blocks.enumerate() {
                read_block(ty, block, index, &mut part);
            }
            write_part(layout, &part, row, unit);
        }
    }
}

/// Quants and scales of block `index` of a part.
fn read_block(ty: QuantType, block: &[u8], index: usize, part: &mut Part) {
    use QuantType::*;
    let quants = &mut part.quants[index * ty.block_elements()..][..ty.block_elements()];
    let [first, second] = &mut part.scales;
    let mut scales = |from: &[u8]| first[index * from.len()..][..from.len()].copy_from_slice(from);
    match ty {
        Q4_0 | Iq4Nl => (scales(&block[..2]), nibbles(&block[2..], quants)).1,
        Q4_1 => (scales(&block[..4]), nibbles(&block[4..], quants)).1,
        Mxfp4 => (scales(&block[..1]), nibbles(&block[1..], quants)).1,
        Q5_0 => (scales(&block[..2]), nibbles(&block[6..], quants), fifth_bits(&block[2..6], quants)).2,
        Q5_1 => (scales(&block[..4]), nibbles(&block[8..], quants), fifth_bits(&block[4..8], quants)).2,
        Q8_0 => {
            scales(&block[..2]);
            quants.copy_from_slice(&block[2..]);
        }
        Q2K => {
            first.copy_from_slice(&block[..16]);
            second[..4].copy_from_slice(&block[80..84]);
            pairs(&block[16..80], quants);
        }
        Q3K => {
            first.copy_from_slice(&scales_of_q3(&block[96..108]));
            second[..2].copy_from_slice(&block[108..110]);
            pairs(&block[32..96], quants);
            for (at, quant) in quants.iter_mut().enumerate() {
                *quant |= (block[at % 32] >> (at / 32) & 1) << 2;
            }
        }
        Q4K | Q5K => {
            first.copy_from_slice(&scales_of_six_bits(&block[4..16]));
            second[..4].copy_from_slice(&block[..4]);
            let from = if ty == Q4K { 16 } else { 48 };
            for (quants, bytes) in quants.chunks_exact_mut(64).zip(block[from..].chunks_exact(32)) {
                for (at, byte) in bytes.iter().enumerate() {
                    (quants[at], quants[at + 32]) = (byte & 15, byte >> 4);
                }
            }
            if ty == Q5K {
                for (at, quant) in quants.iter_mut().enumerate() {
                    *quant |= (block[16 + at % 32] >> (at / 32) & 1) << 4;
                }
            }
        }
        Q6K => {
            first.copy_from_slice(&block[192..208]);
            second[..2].copy_from_slice(&block[208..210]);
            for (half, quants) in quants.chunks_exact_mut(128).enumerate() {
                let (lows, highs) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
                for at in 0..128 {
                    let (quarter, low) = (at / 32, lows[at % 64] >> (at / 64 * 4) & 15);
                    quants[at] = low | (highs[at % 32] >> (2 * quarter) & 3) << 4;
                }
            }
        }
        Iq4Xs => {
            second[..2].copy_from_slice(&block[..2]);
            let tops = u16::from_le_bytes([block[2], block[3]]);
            for (at, scale) in first[..8].iter_mut().enumerate() {
                let top = (tops >> (2 * at) & 3) as u8;
                *scale = (block[4 + at / 2] >> (at % 2 * 4) & 15 | top << 4).wrapping_sub(32);
            }
            for (quants, bytes) in quants.chunks_exact_mut(32).zip(block[8..].chunks_exact(16)) {
                nibbles(bytes, quants);
            }
        }
    }
}

/// 16 bytes to 32 quants: all lower nibbles before all upper ones.
fn nibbles(bytes: &[u8], quants: &mut [u8]) {
    for (at, byte) in bytes.iter().enumerate() {
        (quants[at], quants[at + 16]) = (byte & 15, byte >> 4);
    }
}

fn fifth_bits(word: &[u8], quants: &mut [u8]) {
    for (at, quant) in quants.iter_mut().enumerate() {
        *quant |= (word[at / 8] >> (at % 8) & 1) << 4;
    }
}

/// 64 bytes to 256 quants of two bits: 32 bytes hold 128 of them, a bit pair after the other.
fn pairs(bytes: &[u8], quants: &mut [u8]) {
    for (quants, bytes) in quants.chunks_exact_mut(128).zip(bytes.chunks_exact(32)) {
        for (at, quant) in quants.iter_mut().enumerate() {
            *quant = bytes[at % 32] >> (at / 32 * 2) & 3;
        }
    }
}

/// The 16 scales of Q3_K, signed.
fn scales_of_q3(packed: &[u8]) -> [u8; 16] {
    std::array::from_fn(|at| {
        let low = if at < 8 { packed[at] & 15 } else { packed[at - 8] >> 4 };
        let high = packed[8 + at % 4] >> (at / 4 * 2) & 3;
        (low | high << 4).wrapping_sub(32)
    })
}

/// The 8 scales and then the 8 offsets of Q4_K and Q5_K.
fn scales_of_six_bits(packed: &[u8]) -> [u8; 16] {
    std::array::from_fn(|at| {
        let (index, is_offset) = (at % 8, at / 8);
        match (index < 4, is_offset) {
            (true, _) => packed[index + 4 * is_offset] & 63,
            (false, 0) => packed[index + 4] & 15 | packed[index - 4] >> 6 << 4,
            (false, _) => packed[index + 4] >> 4 | packed[index] >> 6 << 4,
        }
    })
}

/// A row's part into its lanes' words.
fn write_part(layout: Layout, part: &Part, row: usize, unit: &mut [u8]) {
    let (half, g) = (row / 8, row % 8);
    let groups = layout.elements / 128;
    let (low_plane, rest) = unit.split_at_mut(layout.low_bytes());
    let (high_plane, scales) = rest.split_at_mut(layout.high_bytes());
    for (b, quants) in part.quants[..layout.elements].chunks_exact(32).enumerate() {
        for t in 0..4 {
            let lane = g * 4 + t;
            let sides: [&[u8]; 2] = [&quants[4 * t..][..4], &quants[16 + 4 * t..][..4]];
            match layout.low {
                Low::Bytes => {
                    let at = ((2 * half + b / 2) * LANES + lane) * 16 + b % 2 * 8;
                    low_plane[at..at + 4].copy_from_slice(sides[0]);
                    low_plane[at + 4..at + 8].copy_from_slice(sides[1]);
                }
                Low::Nibbles => {
                    let at = ((b / 4 * 2 + half) * LANES + lane) * 16 + b % 4 * 4;
                    for j in 0..4 {
                        low_plane[at + j] = sides[0][j] & 15 | sides[1][j] << 4;
                    }
                }
                Low::Indices => {
                    let at = ((b / 4 * 2 + half) * LANES + lane) * 16 + b % 4 * 4;
                    for (side, quants) in sides.iter().enumerate() {
                        low_plane[at + 2 * side] = quants[0] | quants[1] << 4;
                        low_plane[at + 2 * side + 1] = quants[2] | quants[3] << 4;
                    }
                }
                Low::Pairs => write_pairs(low_plane, (half, lane, b), sides, 0),
            }
            match layout.high {
                High::None => {}
                High::One => {
                    let shift = if layout.low == Low::Pairs { 2 } else { 4 };
                    let at = (lane * 2 * groups + half * groups + b / 4) * 4;
                    for (side, quants) in sides.iter().enumerate() {
                        for j in 0..4 {
                            high_plane[at + j] |= (quants[j] >> shift & 1) << (2 * (b % 4) + side);
                        }
                    }
                }
                High::Two => write_pairs(high_plane, (half, lane, b), sides, 4),
            }
        }
    }
    let (first, second) = scales.split_at_mut(ROWS * layout.scales[0]);
    for (plane, (bytes, values)) in [first, second].into_iter().zip(layout.scales.into_iter().zip(&part.scales)) {
        plane[row * bytes..][..bytes].copy_from_slice(&values[..bytes]);
    }
}

/// Two bits of each quant, from bit `shift` on.
fn write_pairs(plane: &mut [u8], (half, lane, b): (usize, usize, usize), sides: [&[u8]; 2], shift: usize) {
    let at = (half * LANES + lane) * 16 + b / 2 * 4;
    for (side, quants) in sides.iter().enumerate() {
        for j in 0..4 {
            plane[at + j] |= (quants[j] >> shift & 3) << (2 * (2 * (b % 2) + side));
        }
    }
}
