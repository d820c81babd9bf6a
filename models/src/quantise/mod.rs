//! Quantising a dense checkpoint when it is loaded: which tensor becomes what. The result is made once, kept in a cache
//! file, and from then on read like any other file.
//!
//! Invariant: what is planned follows from the files and the format alone, so that a cache file can be checked against
//! the plan without reading a weight.

mod cache;
mod convert;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use sconce_kernels::GgmlType;

use crate::error::{Error, Result, shown};
use crate::load::Progress;
use crate::names::{DeltaPart, LayerPart, Part};
use crate::tensors::{Format, Stored, TensorSet};

/// Block formats that weights can be quantised to.
const FORMATS: [GgmlType; 10] = [
    GgmlType::Q8_0,
    GgmlType::Q6K,
    GgmlType::Q5K,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q4K,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q3K,
    GgmlType::Q2K,
];

/// A block format that weights can be quantised to, by ggml's name in any case: `q8_0`, `Q4_K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantFormat(GgmlType);

impl QuantFormat {
    pub fn name(self) -> String {
        self.0.name().to_ascii_lowercase()
    }
}

impl FromStr for QuantFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = FORMATS.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text));
        found.map(Self).ok_or_else(|| {
            let names: Vec<_> = FORMATS.iter().map(|kind| kind.name().to_ascii_lowercase()).collect();
            format!("'{text}' is no format that weights can be quantised to; give one of {}", names.join(", "))
        })
    }
}

/// What to quantise to, and the folder that keeps the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantize {
    pub format: QuantFormat,
    pub cache: PathBuf,
}

/// One tensor that is to be converted.
pub(crate) struct Planned {
    pub name: String,
    pub from: Stored,
    pub to: GgmlType,
    pub rows: usize,
    pub input: usize,
}

impl Planned {
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    pub fn row_bytes(&self) -> usize {
        self.input / self.to.block_elements() * self.to.block_bytes()
    }
}

/// All matrices but the small ones that decide which expert a token takes or how much a state keeps, which are as sensitive as they are small.
pub(crate) fn plan(tensors: &TensorSet, layers: usize, format: QuantFormat) -> Result<Vec<Planned>> {
    let refused = |feature: String, next| Error::Unsupported { file: tensors.source.clone(), feature, next };
    if tensors.quantisation.is_some() || tensors.interleaved_experts || tensors.transposed_experts {
        let feature = "quantising weights that are quantised already or lie in turns".to_owned();
        return Err(refused(feature, "leave --quantization out, or use a dense checkpoint"));
    }
    let (vocabulary, routers) = (named(tensors, &[Part::Embedding, Part::Head]), routers(tensors, layers));
    let mut planned = Vec::new();
    for (name, stored) in tensors.iter() {
        let Format::Known(GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16) = stored.format else {
            let feature = format!("quantising tensor {}, which is {} already,", shown(name), stored.format.name());
            return Err(refused(feature, "leave --quantization out, or use a dense checkpoint"));
        };
        let Some((&input, outer)) = stored.shape.split_last().filter(|(_, outer)| !outer.is_empty()) else { continue };
        let wanted = if vocabulary.contains(name) { of_vocabulary(format.0) } else { format.0 };
        if let Some(to) = fitting(wanted, input).filter(|_| !routers.contains(name)) {
            let rows = outer.iter().product();
            planned.push(Planned { name: name.clone(), from: stored.clone(), to, rows, input });
        }
    }
    Ok(planned)
}

/// Points the set to the converted tensors: those in the cache file, or ones that are made now.
pub(crate) fn convert(
    tensors: &mut TensorSet,
    planned: &[Planned],
    quantize: &Quantize,
    progress: &mut Progress,
) -> Result<()> {
    for (planned, stored) in planned.iter().zip(cache::open_or_make(&tensors.source, planned, quantize, progress)?) {
        tensors.replace(&planned.name, stored);
    }
    Ok(())
}

/// Gives the set the formats and sizes that it will have, for a look at its totals. It must not be read from then on.
pub(crate) fn pretend(tensors: &mut TensorSet, planned: &[Planned]) {
    for planned in planned {
        let stored = Stored { format: Format::Known(planned.to), bytes: planned.bytes(), ..planned.from.clone() };
        tensors.replace(&planned.name, stored);
    }
}

/// Embeddings and the output head lose most by few bits: llama.cpp's mixtures keep them in Q6_K, too.
fn of_vocabulary(format: GgmlType) -> GgmlType {
    if format == GgmlType::Q8_0 { format } else { GgmlType::Q6K }
}

/// The format, or the next larger one whose blocks rows of `input` elements fill; `None` leaves the tensor as it is.
fn fitting(format: GgmlType, input: usize) -> Option<GgmlType> {
    let smaller_blocks = match format {
        GgmlType::Q2K | GgmlType::Q3K => GgmlType::Q4_0,
        GgmlType::Q4K => GgmlType::Q5_0,
        GgmlType::Q5K => GgmlType::Q5_1,
        _ => GgmlType::Q8_0,
    };
    [format, smaller_blocks].into_iter().find(|kind| input.is_multiple_of(kind.block_elements()))
}

fn named(tensors: &TensorSet, parts: &[Part]) -> BTreeSet<String> {
    parts.iter().map(|part| part.name(tensors.naming)).collect()
}

fn routers(tensors: &TensorSet, layers: usize) -> BTreeSet<String> {
    use DeltaPart::{Kept, Written, WrittenAndKept};
    use LayerPart::{Delta, Router, SharedRouter};
    let of_layer = |layer| {
        [Router, SharedRouter, Delta(Written), Delta(Kept), Delta(WrittenAndKept)].map(|part| Part::Layer(layer, part))
    };
    named(tensors, &(0..layers).flat_map(of_layer).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_go_by_name_and_fall_back_to_smaller_blocks() {
        for (text, input, expected) in [
            ("q8_0", 64, Some(GgmlType::Q8_0)),
            ("Q4_K", 512, Some(GgmlType::Q4K)),
            ("q4_k", 96, Some(GgmlType::Q5_0)),
            ("q5_k", 96, Some(GgmlType::Q5_1)),
            ("q6_k", 96, Some(GgmlType::Q8_0)),
            ("q2_k", 96, Some(GgmlType::Q4_0)),
            ("q4_0", 40, None),
        ] {
            assert_eq!(fitting(text.parse::<QuantFormat>().unwrap().0, input), expected, "{text} {input}");
        }
        assert!("int3".parse::<QuantFormat>().unwrap_err().contains("q4_k"));
        assert_eq!((of_vocabulary(GgmlType::Q8_0), of_vocabulary(GgmlType::Q4_0)), (GgmlType::Q8_0, GgmlType::Q6K));
    }
}
