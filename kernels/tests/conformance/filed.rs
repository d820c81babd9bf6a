//! Packed weights from a file.

use std::io::Write;

use sconce_kernels::{
    Added, Arena, FiledPart, GgmlType, PACKED_VERSION, PackedFile, PackedWeight, Precision, Prologue,
};
use sconce_kernels::{Error, matmul};

use super::formats::weight;
use super::{Values, assert_error, assert_same_bits, devices, flat, tensor};

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn packed_from(ty: GgmlType, rows: &[usize], units: usize) -> PackedWeight {
    let input = units * ty.block_elements();
    let mut values = Values::new(7);
    let weights: Vec<_> = rows.iter().map(|rows| weight(ty, *rows, input, &mut values)).collect();
    let weights: Vec<_> = weights.iter().collect();
    PackedWeight::new(&weights, Precision::Fast, &mut Arena::default()).expect("one input width")
}

/// Writes each part at a cache line, and says where.
fn filed(weight: &PackedWeight) -> (Vec<FiledPart>, PackedFile) {
    let mut file = tempfile::tempfile().expect("a file");
    let mut bytes = vec![0xee; 128];
    let mut parts = Vec::new();
    for (ty, rows, panels) in weight.parts() {
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        parts.push(FiledPart { ty, rows, offset: bytes.len() });
        bytes.extend_from_slice(panels);
    }
    file.write_all(&bytes).expect("writes");
    (parts, PackedFile::map(&file).expect("maps"))
}

#[test]
fn products_with_mapped_weights_are_the_same_to_the_bit() {
    for ty in GgmlType::ALL {
        let packed = packed_from(ty, &[33, 16, 5], 2);
        let (parts, file) = filed(&packed);
        let mapped = PackedWeight::mapped(&parts, packed.input(), Precision::Fast, &file).expect("fits");
        drop(file);
        assert_eq!((mapped.out(), mapped.bytes()), (packed.out(), packed.bytes()), "{ty:?}");
        let (mut was, mut is) = (vec![0.0; packed.input()], vec![0.0; packed.input()]);
        for row in 0..packed.out() {
            packed.row_f32(row, &mut was);
            mapped.row_f32(row, &mut is);
            assert_same_bits(&is, &was, &format!("{ty:?} row {row}"));
        }
        for device in devices() {
            let x = tensor(&Values::new(3).many(4 * packed.input()), &[4, packed.input()], &device);
            let of = |weight| flat(&matmul(&x, Prologue::None, weight, Added::default()).expect("sizes fit"));
            assert_same_bits(&of(&mapped), &of(&packed), &format!("{ty:?} product"));
        }
    }
}

#[test]
fn parts_that_are_not_in_the_file_are_refused() {
    let packed = packed_from(GgmlType::Q8_0, &[20], 2);
    let (parts, file) = filed(&packed);
    let map = |part: FiledPart, input| -> Result<PackedWeight, Error> {
        PackedWeight::mapped(&[part], input, Precision::Fast, &file)
    };
    let part = parts[0];
    assert!(map(part, 64).is_ok());
    assert_error(map(FiledPart { offset: part.offset + 64, ..part }, 64), "not in the file");
    assert_error(map(FiledPart { offset: part.offset - 1, ..part }, 64), "not in the file");
    assert_error(map(FiledPart { offset: usize::MAX - 63, ..part }, 64), "not in the file");
    assert_error(map(FiledPart { rows: usize::MAX / 2, ..part }, 64), "address space");
    assert_error(map(FiledPart { rows: 0, ..part }, 64), "no matrix");
    assert_error(map(part, 63), "whole number");
    assert_error(map(part, 0), "whole number");
}

/// Files that were kept are read again as long as the version stands.
#[test]
fn packed_bytes_are_known() {
    let of = |ty| {
        let packed = packed_from(ty, &[19], 2);
        packed.parts().fold(0, |all, (_, _, bytes)| all ^ hash(bytes))
    };
    let all = GgmlType::ALL.map(|ty| format!("{ty:?} {:016x}", of(ty))).join("\n");
    assert_eq!((PACKED_VERSION, all.as_str()), (1, KNOWN), "raise PACKED_VERSION, then put these here");
}

const KNOWN: &str = "\
F32 5992e4973da55b2a
F16 f043688a70bce581
Bf16 4cf425e0613e69fa
Q4_0 50ffc620ad62f227
Q4_1 664ef5637d954df1
Q5_0 64fbfe0733fa172b
Q5_1 92614157ef82a249
Q8_0 9029b56036c1d694
Q2K 6280ed3021c4bc53
Q3K ad2290f1c8da7e53
Q4K a2419405ecb3d67c
Q5K d346ae09a1dc1bab
Q6K 7234bd106563be75
Iq4Nl c7e7260f8e37375a
Iq4Xs 61298769f72928c0
Mxfp4 9301ad3648da6a62";
