//! Quantised safetensors: what a `quantization_config` says, and how its tensors become weights that kernels pack.
//!
//! Whole numbers with a scale for each group keep their numbers: they become Q4_0 or Q8_0 where zero lies in the middle
//! (exactly the file's values) and Q4_1 otherwise. FP8 becomes BF16, or stays as it is where a GPU multiplies with it. Which tensors are quantised is seen from the tensors
//! themselves: what the file has in plain form is read in plain form.

mod experts;
mod fp8;
mod groups;

use sconce_kernels::Weight;

pub(crate) use experts::{Half, interleaved_bias, interleaved_expert};
pub(crate) use fp8::Fp8Matrix;

use crate::error::{Result, shown};
use crate::spec::fields::Fields;
use crate::tensors::{Format, Stored, TensorSet};

/// How the matrices of a folder are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantisation {
    Gptq {
        bits: usize,
        has_true_zeros: bool,
    },
    Awq,
    /// `pack-quantized` of compressed-tensors: 4 bits, zero in the middle.
    Packed,
    Fp8,
    Mxfp4,
}

/// As safetensors name it.
const FP8_FORMAT: &str = "F8_E4M3";

/// Said at load of FP8 that becomes BF16.
pub(crate) const FP8_NOTE: &str = "FP8 weights are turned into BF16 at load and take twice the file's memory";

/// Behind the stem of a quantised matrix's name: its parts, and factors for activations, which are not quantised here.
const PARTS: [&str; 12] = [
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".weight_packed",
    ".weight_shape",
    ".weight_scale",
    ".weight_scale_inv",
    ".input_scale",
    ".activation_scale",
    ".weight_g_idx",
    ".weight_zero_point",
];

impl Quantisation {
    /// What `quantization_config` or `compression_config` asks for; `None` without either.
    pub fn parse(config: &Fields) -> Result<Option<Self>> {
        for key in ["quantization_config", "compression_config"] {
            let Some(object) = config.object_at(key)? else { continue };
            let fields = Fields { object, file: config.file };
            let method = fields.text("quant_method")?.unwrap_or("unnamed");
            let found = match method {
                "gptq" => Some(gptq(&fields)?),
                "awq" => Some(awq(&fields)?),
                "fp8" => Some(fp8(&fields)?),
                "mxfp4" => Some(Self::Mxfp4),
                "compressed-tensors" => compressed(&fields)?,
                _ => None,
            };
            let Some(found) = found else {
                return Err(fields.unsupported(format!("{key} with quant_method {}", shown(method))));
            };
            return Ok(Some(found));
        }
        Ok(None)
    }

    /// Said at load.
    pub fn note(self) -> &'static str {
        match self {
            Self::Gptq { .. } => "GPTQ weights are packed as Q4_0, Q8_0 or, where zero is not in the middle, as Q4_1",
            Self::Awq => "AWQ weights are packed as Q4_1",
            Self::Packed => "4-bit weights are packed as Q4_0",
            Self::Fp8 => FP8_NOTE,
            Self::Mxfp4 => "MXFP4 experts are multiplied as they are stored",
        }
    }

    /// What is shown as the format of the weights.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gptq { bits: 8, .. } => "GPTQ 8-bit",
            Self::Gptq { .. } => "GPTQ 4-bit",
            Self::Awq => "AWQ 4-bit",
            Self::Packed => "INT4",
            Self::Fp8 => "FP8",
            Self::Mxfp4 => "MXFP4",
        }
    }

    /// Parameters in a stored tensor, and the bytes that it takes once it is a weight.
    pub fn true_size(self, name: &str, stored: &Stored) -> (u64, u64) {
        let (elements, bytes) = (stored.elements() as u64, stored.bytes as u64);
        let Format::Unknown(format) = &stored.format else {
            return if Self::owner(name).is_some() { (0, 0) } else { (elements, bytes) };
        };
        match (self, format.as_str()) {
            (Self::Gptq { bits, .. }, "I32") if name.ends_with(".qweight") => {
                (elements * 32 / bits as u64, bytes * 5 / 4)
            }
            (Self::Awq | Self::Packed, "I32") if !name.ends_with(".qzeros") => (elements * 8, bytes * 5 / 4),
            (Self::Fp8, FP8_FORMAT) => (elements, 2 * bytes),
            (Self::Mxfp4, "U8") if name.ends_with("_blocks") => (elements * 2, bytes * 9 / 8),
            _ => (0, 0),
        }
    }

    /// The matrix under a name that ends in `.weight`, if it is stored in this way.
    pub fn matrix(self, set: &TensorSet, name: &str, out: usize, input: usize) -> Result<Option<Weight>> {
        let Some(stem) = name.strip_suffix(".weight") else { return Ok(None) };
        let has = |part: &str| set.get(&format!("{stem}{part}")).is_some();
        match self {
            Self::Gptq { bits, has_true_zeros } if has(".qweight") => {
                groups::gptq(set, stem, (out, input), bits, has_true_zeros).map(Some)
            }
            Self::Awq if has(".qweight") => groups::awq(set, stem, (out, input)).map(Some),
            Self::Packed if has(".weight_packed") => groups::packed(set, stem, (out, input)).map(Some),
            Self::Fp8 => self.fp8(set, name, out, input)?.map(|matrix| matrix.as_bf16()).transpose(),
            _ => Ok(None),
        }
    }

    /// The same as it lies in its file, if that is FP8.
    pub fn fp8(self, set: &TensorSet, name: &str, out: usize, input: usize) -> Result<Option<Fp8Matrix>> {
        let is_fp8 = set.get(name).is_some_and(|stored| self.is_fp8(name, stored));
        is_fp8.then(|| Fp8Matrix::read(set, name, (out, input))).transpose()
    }

    /// Whether a tensor is a matrix in FP8.
    pub fn is_fp8(self, name: &str, stored: &Stored) -> bool {
        self == Self::Fp8 && name.ends_with(".weight") && stored.format.name() == FP8_FORMAT
    }

    /// The name of the matrix that a tensor is a part of, if it looks like a part.
    pub fn owner(tensor: &str) -> Option<String> {
        if let Some(stem) = tensor.strip_suffix("_blocks").or(tensor.strip_suffix("_scales")) {
            // The experts of GPT-OSS.
            return Some(stem.to_owned());
        }
        let stem = PARTS.iter().find_map(|part| tensor.strip_suffix(part))?;
        Some(format!("{stem}.weight"))
    }
}

fn gptq(fields: &Fields) -> Result<Quantisation> {
    let bits = fields.size("bits")?;
    if !matches!(bits, 4 | 8) {
        return Err(fields.unsupported(format!("gptq with {bits} bits")));
    }
    // The first format stores zeros less one.
    let has_true_zeros = fields.text("checkpoint_format")? == Some("gptq_v2");
    Ok(Quantisation::Gptq { bits, has_true_zeros })
}

fn awq(fields: &Fields) -> Result<Quantisation> {
    let bits = fields.optional_size("bits")?.or(fields.optional_size("w_bit")?).unwrap_or(4);
    let version = fields.text("version")?.unwrap_or("gemm");
    if bits != 4 || !version.eq_ignore_ascii_case("gemm") {
        return Err(fields.unsupported(format!("awq version {} with {bits} bits", shown(version))));
    }
    Ok(Quantisation::Awq)
}

fn fp8(fields: &Fields) -> Result<Quantisation> {
    let format = fields.text("fmt")?.unwrap_or("e4m3");
    if format != "e4m3" { Err(fields.unsupported(format!("fp8 fmt {}", shown(format)))) } else { Ok(Quantisation::Fp8) }
}

/// `None` for what is not one of the two forms that are read.
fn compressed(fields: &Fields) -> Result<Option<Quantisation>> {
    let Some(groups) = fields.object_at("config_groups")? else { return Ok(None) };
    let mut found = None;
    for group in groups.values() {
        let Some(weights) = group.get("weights").and_then(serde_json::Value::as_object) else { return Ok(None) };
        let weights = Fields { object: weights, file: fields.file };
        let one = match (weights.text("type")?, weights.optional_size("num_bits")?) {
            (Some("float"), Some(8)) => Quantisation::Fp8,
            (Some("int"), Some(4)) if weights.bool("symmetric")?.unwrap_or(true) => Quantisation::Packed,
            _ => return Ok(None),
        };
        if found.is_some_and(|found| found != one) || weights.text("actorder")?.is_some_and(|order| order == "group") {
            return Ok(None);
        }
        found = Some(one);
    }
    Ok(found)
}
