//! Metadata values; arrays keep their element type, so that a vocabulary of 150,000 tokens stays one flat vector.

use super::reader::Reader;
use crate::error::shown;

/// Arrays of arrays deeper than this are nobody's metadata.
const NESTING_MAX: u32 = 4;
/// Strings share one bound: the file. A length beyond it fails as "needs N bytes".
const STRING_BYTES_MAX: u64 = u64::MAX;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Nested(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    pub(super) fn read(reader: &mut Reader, key: &str) -> Result<Self, String> {
        let what = format!("the value of {}", shown(key));
        let what = what.as_str();
        let kind = reader.u32(what)?;
        Ok(match kind {
            0 => Self::U8(reader.array::<1>(what)?[0]),
            1 => Self::I8(i8::from_le_bytes(reader.array(what)?)),
            2 => Self::U16(u16::from_le_bytes(reader.array(what)?)),
            3 => Self::I16(i16::from_le_bytes(reader.array(what)?)),
            4 => Self::U32(reader.u32(what)?),
            5 => Self::I32(i32::from_le_bytes(reader.array(what)?)),
            6 => Self::F32(f32::from_le_bytes(reader.array(what)?)),
            7 => Self::Bool(bool_of(reader.array::<1>(what)?[0], what)?),
            8 => Self::String(reader.string(what, STRING_BYTES_MAX)?),
            9 => Self::Array(Array::read(reader, what, 1)?),
            10 => Self::U64(reader.u64(what)?),
            11 => Self::I64(i64::from_le_bytes(reader.array(what)?)),
            12 => Self::F64(f64::from_le_bytes(reader.array(what)?)),
            _ => return Err(format!("{what} has unknown type number {kind}")),
        })
    }

    /// Any integer that is not negative. Files differ in the width they choose for the same key.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            Self::I8(value) => Some(value.into()),
            Self::I16(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::I64(value) => Some(value as f64),
            _ => self.as_u64().map(|value| value as f64),
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = *self { Some(value) } else { None }
    }

    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(value) = self { Some(value) } else { None }
    }

    pub fn as_array(&self) -> Option<&Array> {
        if let Self::Array(value) = self { Some(value) } else { None }
    }

    pub fn as_strings(&self) -> Option<&[String]> {
        if let Self::Array(Array::String(values)) = self { Some(values) } else { None }
    }

    /// An array of 32-bit integers, such as token types.
    pub fn as_i32s(&self) -> Option<&[i32]> {
        if let Self::Array(Array::I32(values)) = self { Some(values) } else { None }
    }

    /// An array of 32-bit floats, such as token scores.
    pub fn as_f32s(&self) -> Option<&[f32]> {
        if let Self::Array(Array::F32(values)) = self { Some(values) } else { None }
    }
}

impl Array {
    fn read(reader: &mut Reader, what: &str, depth: u32) -> Result<Self, String> {
        let kind = reader.u32(what)?;
        let count = reader.u64(what)?;
        let mut fixed = |bytes_each: u64| {
            reader.expect_room(count, bytes_each, "array elements")?;
            reader.take(count * bytes_each, what)
        };
        Ok(match kind {
            0 => Self::U8(fixed(1)?.to_vec()),
            1 => Self::I8(numbers(fixed(1)?, i8::from_le_bytes)),
            2 => Self::U16(numbers(fixed(2)?, u16::from_le_bytes)),
            3 => Self::I16(numbers(fixed(2)?, i16::from_le_bytes)),
            4 => Self::U32(numbers(fixed(4)?, u32::from_le_bytes)),
            5 => Self::I32(numbers(fixed(4)?, i32::from_le_bytes)),
            6 => Self::F32(numbers(fixed(4)?, f32::from_le_bytes)),
            7 => Self::Bool(fixed(1)?.iter().map(|&byte| bool_of(byte, what)).collect::<Result<_, _>>()?),
            8 => {
                reader.expect_room(count, 8, "strings")?;
                Self::String((0..count).map(|_| reader.string(what, STRING_BYTES_MAX)).collect::<Result<_, _>>()?)
            }
            9 if depth == NESTING_MAX => return Err(format!("{what} nests arrays deeper than {NESTING_MAX}")),
            9 => {
                reader.expect_room(count, 12, "arrays")?;
                Self::Nested((0..count).map(|_| Self::read(reader, what, depth + 1)).collect::<Result<_, _>>()?)
            }
            10 => Self::U64(numbers(fixed(8)?, u64::from_le_bytes)),
            11 => Self::I64(numbers(fixed(8)?, i64::from_le_bytes)),
            12 => Self::F64(numbers(fixed(8)?, f64::from_le_bytes)),
            _ => return Err(format!("{what} is an array of unknown type number {kind}")),
        })
    }

    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U16(values) => values.len(),
            Self::I16(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::String(values) => values.len(),
            Self::Nested(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every element as an unsigned integer, if all are.
    pub fn to_u64s(&self) -> Option<Vec<u64>> {
        fn all<T: Copy + TryInto<u64>>(values: &[T]) -> Option<Vec<u64>> {
            values.iter().map(|&value| value.try_into().ok()).collect()
        }
        match self {
            Self::U8(values) => all(values),
            Self::I8(values) => all(values),
            Self::U16(values) => all(values),
            Self::I16(values) => all(values),
            Self::U32(values) => all(values),
            Self::I32(values) => all(values),
            Self::U64(values) => all(values),
            Self::I64(values) => all(values),
            _ => None,
        }
    }
}

fn numbers<T, const BYTES: usize>(bytes: &[u8], read: fn([u8; BYTES]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<BYTES>();
    chunks.iter().map(|&chunk| read(chunk)).collect()
}

fn bool_of(byte: u8, what: &str) -> Result<bool, String> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(format!("{what} is a truth value of {byte}, expected 0 or 1")),
    }
}
