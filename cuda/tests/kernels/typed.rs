//! Numbers of every element type, to and from a device.

use std::sync::LazyLock;

use half::{bf16, f16};
use sconce_cuda::{Buffer, Device, ElementType};

/// The value of an E4M3 code.
pub fn of_fp8(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { size } else { -size }
}

/// The code whose value is nearest, the even one of two.
fn to_fp8(value: f32) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    // Codes without a sign ascend with their values.
    let size = value.abs().min(448.0);
    let above = FP8_VALUES.partition_point(|known| *known < size);
    let below = above.saturating_sub(1);
    let (up, down) = (FP8_VALUES[above] - size, size - FP8_VALUES[below]);
    let code = if up < down || (up == down && above.is_multiple_of(2)) { above } else { below };
    code as u8 | if value.is_sign_negative() { 0x80 } else { 0 }
}

static FP8_VALUES: LazyLock<Vec<f32>> = LazyLock::new(|| (0..0x7f).map(of_fp8).collect());

/// The values that a type has for these.
pub fn rounded(ty: ElementType, values: &[f32]) -> Vec<f32> {
    let round = |value: &f32| match ty {
        ElementType::F16 => f16::from_f32(*value).to_f32(),
        ElementType::Bf16 => bf16::from_f32(*value).to_f32(),
        ElementType::Fp8 => of_fp8(to_fp8(*value)),
        _ => *value,
    };
    values.iter().map(round).collect()
}

pub fn upload(device: &Device, ty: ElementType, values: &[f32]) -> Buffer {
    match ty {
        ElementType::F16 => {
            device.upload(&values.iter().map(|value| f16::from_f32(*value)).collect::<Vec<_>>()).unwrap()
        }
        ElementType::Bf16 => {
            device.upload(&values.iter().map(|value| bf16::from_f32(*value)).collect::<Vec<_>>()).unwrap()
        }
        ElementType::Fp8 => {
            let buffer = device.alloc(values.len(), ty).unwrap();
            buffer.write(0, &values.iter().map(|value| to_fp8(*value)).collect::<Vec<u8>>()).unwrap();
            buffer
        }
        _ => device.upload(values).unwrap(),
    }
}

pub fn download(buffer: &Buffer) -> Vec<f32> {
    match buffer.all().ty() {
        ElementType::F16 => buffer.to_vec::<f16>().unwrap().into_iter().map(f16::to_f32).collect(),
        ElementType::Bf16 => buffer.to_vec::<bf16>().unwrap().into_iter().map(bf16::to_f32).collect(),
        ElementType::Fp8 => buffer.to_vec::<u8>().unwrap().into_iter().map(of_fp8).collect(),
        _ => buffer.to_vec::<f32>().unwrap(),
    }
}

/// Relative error that one rounding to the type makes at most, generously.
pub fn tolerance(ty: ElementType) -> f64 {
    match ty {
        ElementType::F16 => 1e-3,
        ElementType::Bf16 => 8e-3,
        ElementType::Fp8 => 0.07,
        _ => 3e-6,
    }
}
