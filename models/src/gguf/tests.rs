//! The parser on sound, altered and hostile headers, all built in memory.

use std::path::Path;

use proptest::prelude::*;

use super::{Array, Header, Value};
use crate::error::Error;

/// Writes headers as a converter does, and as none should.
#[derive(Default)]
struct Builder {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: usize,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

impl Builder {
    fn key(mut self, name: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.extend([&text(name), kind.to_le_bytes().as_slice(), value].concat());
        self.key_count += 1;
        self
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.extend(text(name));
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        self.tensors.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data = bytes;
        self
    }

    fn build(&self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.key_count.to_le_bytes());
        file.extend(&self.keys);
        file.extend(&self.tensors);
        file.resize(file.len().next_multiple_of(32) + self.data, 0);
        file
    }
}

fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), count.to_le_bytes().as_slice(), elements].concat()
}

fn parse(file: &[u8]) -> Result<Header, String> {
    Header::parse(file, Path::new("m.gguf")).map_err(|error| match error {
        Error::Damaged { .. } => error.to_string(),
        other => panic!("unexpected kind of error: {other:?}"),
    })
}

fn sound() -> Builder {
    Builder::default()
        .key("general.architecture", 8, &text("llama"))
        .key("a.u8", 0, &[200])
        .key("a.negative", 5, &(-3_i32).to_le_bytes())
        .key("a.half", 6, &0.5_f32.to_le_bytes())
        .key("a.yes", 7, &[1])
        .key("a.tokens", 9, &array(8, 2, &[text("<s>"), text("é")].concat()))
        .key("a.kinds", 9, &array(5, 2, &[1_i32.to_le_bytes(), (-2_i32).to_le_bytes()].concat()))
        .key("a.nested", 9, &array(9, 1, &array(0, 3, &[1, 2, 3])))
        .tensor("x", &[32, 2], 8, 0)
        .tensor("y", &[3], 0, 96)
        .data(96 + 12)
}

#[test]
fn a_sound_header_reads_back() {
    let file = sound().build();
    let header = parse(&file).unwrap();
    assert_eq!(header.string("general.architecture"), Some("llama"));
    assert_eq!((header.unsigned("a.u8"), header.unsigned("a.negative")), (Some(200), None));
    assert_eq!((header.number("a.negative"), header.number("a.half")), (Some(-3.0), Some(0.5)));
    assert_eq!(header.bool("a.yes"), Some(true));
    assert_eq!(header.strings("a.tokens").unwrap(), ["<s>", "é"]);
    assert_eq!(header.get("a.kinds").unwrap().as_i32s().unwrap(), [1, -2]);
    assert_eq!(header.get("a.kinds").unwrap().as_array().unwrap().to_u64s(), None);
    assert_eq!(header.get("a.nested"), Some(&Value::Array(Array::Nested(vec![Array::U8(vec![1, 2, 3])]))));
    let x = header.tensor("x").unwrap();
    assert_eq!((x.shape(), x.kind.name(), x.bytes), (vec![2, 32], "Q8_0", 68));
    assert_eq!(header.tensor("y").unwrap().offset as usize, file.len() - 12);
}

#[test]
fn damage_is_named_in_one_line() {
    let empty = Builder::default;
    let f32_matrix = |dimensions: &[u64]| empty().tensor("w", dimensions, 0, 0).data(64).build();
    let with_count = |at: usize, count: u64| {
        let mut file = sound().build();
        file[at..at + 8].copy_from_slice(&count.to_le_bytes());
        file
    };
    let version = |bytes: [u8; 4]| {
        let mut file = sound().build();
        file[4..8].copy_from_slice(&bytes);
        file
    };
    let cut = |bytes: usize| sound().build()[..bytes].to_vec();
    let nested = (0..6).fold(array(0, 1, &[7]), |inner, _| array(9, 1, &inner));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGML aaaa".to_vec(), "does not begin with the letters GGUF"),
        (b"GG".to_vec(), "the magic number needs 4 bytes at byte 0, but the file has 2 bytes"),
        (version([1, 0, 0, 0]), "version 1 is obsolete"),
        (version([0, 0, 0, 3]), "big-endian"),
        (version([9, 9, 0, 0]), "version 2313 is unknown"),
        (with_count(8, u64::MAX), "announces 18446744073709551615 tensors"),
        (with_count(16, 1 << 40), "announces 1099511627776 metadata keys"),
        (cut(60), "announces 2 tensors at byte 24, but the file has 60 bytes"),
        (cut(200), "bytes at byte"),
        (cut(sound().build().len() - 1), "tensor y needs 12 bytes"),
        (empty().key("k", 99, &[0]).build(), "the value of k has unknown type number 99"),
        (empty().key("k", 7, &[2]).build(), "truth value of 2"),
        (empty().key("k", 8, &u64::MAX.to_le_bytes()).build(), "needs 18446744073709551615 bytes"),
        (empty().key("k", 8, &[&2_u64.to_le_bytes(), [0xff, 0xfe].as_slice()].concat()).build(), "is not UTF-8"),
        (empty().key("k", 9, &array(4, 1 << 61, &[])).build(), "announces 2305843009213693952 array elements"),
        (empty().key("k", 9, &array(8, 1 << 50, &[])).build(), "announces 1125899906842624 strings"),
        (empty().key("k", 9, &nested).build(), "nests arrays deeper than 4"),
        (empty().key("k", 0, &[1]).key("k", 0, &[1]).build(), "key k appears twice"),
        (empty().key("general.alignment", 4, &24_u32.to_le_bytes()).build(), "general.alignment is not a power of two"),
        (empty().key("general.alignment", 4, &0_u32.to_le_bytes()).build(), "general.alignment is not a power of two"),
        (f32_matrix(&[]), "has 0 dimensions"),
        (f32_matrix(&[1, 1, 1, 1, 1]), "has 5 dimensions"),
        (f32_matrix(&[0, 4]), "tensor w of shape [0, 4] does not divide"),
        (f32_matrix(&[1 << 32, 1 << 32]), "too large"),
        (f32_matrix(&[1 << 20]), "tensor w needs 4194304 bytes"),
        (empty().tensor("w", &[31], 8, 0).data(64).build(), "does not divide into Q8_0 blocks"),
        (empty().tensor("w", &[4], 77, 0).data(64).build(), "unknown type number 77"),
        (empty().tensor("w", &[4], 0, 5).data(64).build(), "offset 5, not a multiple of 32"),
        (empty().tensor("w", &[4], 0, u64::MAX - 31).data(64).build(), "but the file has"),
        (empty().tensor("v", &[16], 0, 0).tensor("w", &[4], 0, 32).data(64).build(), "tensors v and w overlap"),
        (empty().tensor("w", &[4], 0, 0).tensor("w", &[4], 0, 32).data(64).build(), "tensor w appears twice"),
    ];
    for (file, expected) in cases {
        let message = parse(&file).expect_err(expected);
        assert!(message.contains(expected), "expected {expected:?} in {message:?}");
        assert!(message.starts_with("m.gguf: ") && !message.contains('\n'), "{message:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is altered or cut, the parser answers; what it accepts keeps its promises.
    #[test]
    fn altered_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = sound().build();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(length) = length {
            file.truncate(length.index(file.len()));
        }
        if let Ok(header) = parse(&file) {
            let mut ranges: Vec<_> = header.tensors.iter().map(|tensor| (tensor.offset, tensor.bytes)).collect();
            ranges.sort_unstable();
            prop_assert!(ranges.iter().all(|(offset, bytes)| offset + bytes <= file.len() as u64));
            prop_assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        }
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&[b"GGUF\x03\0\0\0".as_slice(), &noise].concat());
        let _ = parse(&noise);
    }
}
