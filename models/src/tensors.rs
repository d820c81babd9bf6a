//! Named tensors of a model as they lie in their files, and how they become weights: shape checked, bytes shared.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use sconce_kernels::{GgmlType, Weight};

use crate::error::{Error, Result, shown};
use crate::family;
use crate::gguf;
use crate::names::{Expert, LayerPart, Naming, Part, is_ignorable};
use crate::quantised::{Fp8Matrix, Half, Quantisation, interleaved_bias, interleaved_expert};
use crate::weights::MappedFile;

/// Said in messages; the list itself is `GgmlType`.
const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS or MXFP4";

/// Before the names of layers that predict further tokens, where they do not stand behind the others.
const PREDICTION: &str = "mtp.";

/// An element format that kernels compute with, or the name of one that they do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    Known(GgmlType),
    Unknown(String),
}

impl Format {
    pub fn name(&self) -> &str {
        match self {
            Self::Known(kind) => kind.name(),
            Self::Unknown(name) => name,
        }
    }
}

/// Where a tensor lies. `offset` and `bytes` are inside the file: whoever fills this in has checked it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub format: Format,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    pub file: Arc<MappedFile>,
    pub offset: usize,
    pub bytes: usize,
}

impl Stored {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// All tensors of one model.
#[derive(Debug)]
pub(crate) struct TensorSet {
    /// The file or folder, for messages about tensors that are nowhere.
    pub source: PathBuf,
    pub naming: Naming,
    pub quantisation: Option<Quantisation>,
    /// See [`crate::family::FamilyTraits`].
    pub interleaved_experts: bool,
    /// See [`crate::family::FamilyTraits`].
    pub transposed_experts: bool,
    tensors: BTreeMap<String, Stored>,
}

/// What a set holds in all, tied or ignored tensors included once.
pub(crate) struct Totals {
    pub weight_format: String,
    pub parameters: u64,
    pub weight_bytes: u64,
}

impl TensorSet {
    pub fn new(source: &Path, naming: Naming) -> Self {
        Self {
            source: source.to_owned(),
            naming,
            quantisation: None,
            interleaved_experts: false,
            transposed_experts: false,
            tensors: BTreeMap::new(),
        }
    }

    /// The tensors of a mapped GGUF whose header was parsed from the same bytes.
    pub fn from_gguf(file: &Arc<MappedFile>, header: &gguf::Header) -> Self {
        let family = header.string("general.architecture").and_then(family::by_gguf);
        let mut set = Self::new(file.path(), Naming::Gguf(family.map_or(&[], |family| family.gguf_names)));
        for tensor in &header.tensors {
            let format = match GgmlType::from_id(tensor.kind.id()) {
                Some(kind) => Format::Known(kind),
                None => Format::Unknown(tensor.kind.name().to_owned()),
            };
            let stored = Stored {
                format,
                shape: tensor.shape(),
                file: Arc::clone(file),
                offset: tensor.offset as usize,
                bytes: tensor.bytes as usize,
            };
            set.tensors.insert(tensor.name.clone(), stored);
        }
        set.rename(family.map_or(&[], |family| family.renamed));
        set
    }

    pub fn is_hugging_face(&self) -> bool {
        matches!(self.naming, Naming::HuggingFace(_))
    }

    /// Leaves the text part of a model that sees images, under the names that it has alone.
    pub fn keep_text_part(&mut self) {
        const PREFIXES: [(&str, &str); 5] = [
            ("language_model.model.", "model."),
            ("language_model.lm_head.", "lm_head."),
            ("model.language_model.", "model."),
            ("lm_head.", "lm_head."),
            (PREDICTION, PREDICTION),
        ];
        let own_name = |name: &str| {
            let found = PREFIXES.iter().find_map(|(from, to)| Some((to, name.strip_prefix(from)?)));
            found.map(|(prefix, rest)| format!("{prefix}{rest}"))
        };
        let all = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = all.filter_map(|(name, stored)| Some((own_name(&name)?, stored))).collect();
    }

    /// Gives tensors the names that most families have for them.
    pub fn rename(&mut self, names: &[(&str, &str)]) {
        for (from, to) in names {
            if let Some(stored) = self.tensors.remove(*from) {
                self.tensors.insert((*to).to_owned(), stored);
            }
        }
    }

    /// Leaves out the layers from the `first` on, and those that predict further tokens. False if there are none.
    pub fn drop_layers_from(&mut self, first: usize) -> bool {
        let before = self.tensors.len();
        let is_kept = |name: &str| {
            let rest = name.strip_prefix("model.layers.").or(name.strip_prefix("blk."));
            let layer = rest.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            layer.is_none_or(|layer| layer < first) && !name.starts_with(PREDICTION)
        };
        self.tensors.retain(|name, _| is_kept(name));
        self.tensors.len() < before
    }

    pub fn insert(&mut self, name: String, stored: Stored) -> Result<()> {
        if let Some(first) = self.tensors.get(&name) {
            let detail = format!("tensor {} is also in {}", shown(&name), first.file.path().display());
            return Err(Error::Damaged { file: stored.file.path().to_owned(), format: "safetensors", detail });
        }
        self.tensors.insert(name, stored);
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Stored)> {
        self.tensors.iter()
    }

    /// The tensor lies elsewhere, or in another format, from now on.
    pub fn replace(&mut self, name: &str, stored: Stored) {
        self.tensors.insert(name.to_owned(), stored);
    }

    /// Whether some layer holds all experts in one tensor whose name ends so.
    pub fn has_experts_in_one(&self, end: &str) -> bool {
        self.tensors.keys().any(|name| name.ends_with(end))
    }

    pub fn has(&self, part: Part) -> bool {
        self.tensors.contains_key(&part.name(self.naming))
    }

    pub fn totals(&self) -> Totals {
        let mut bytes_by_format: BTreeMap<&str, u64> = BTreeMap::new();
        let (mut parameters, mut weight_bytes) = (0, 0);
        for (name, stored) in &self.tensors {
            let plain = (stored.elements() as u64, stored.bytes as u64);
            let is_plain = matches!(stored.format, Format::Known(_));
            let (elements, bytes) = self.quantisation.map_or(plain, |how| how.true_size(name, stored));
            let format = match self.quantisation {
                Some(how) if !is_plain => how.name(),
                _ => stored.format.name(),
            };
            *bytes_by_format.entry(format).or_default() += stored.bytes as u64;
            parameters += elements;
            weight_bytes += bytes;
        }
        let commonest = bytes_by_format.into_iter().max_by_key(|&(_, bytes)| bytes);
        let weight_format = commonest.map_or_else(String::new, |(name, _)| name.to_owned());
        Totals { weight_format, parameters, weight_bytes }
    }

    fn find(&self, part: Part) -> Result<(String, &Stored)> {
        let name = part.name(self.naming);
        match self.tensors.get(&name) {
            Some(stored) => Ok((name, stored)),
            None => Err(Error::MissingTensor { file: self.source.clone(), tensor: name }),
        }
    }

    /// Elements of a block of the part as it will be read; `None` where a layer has no such part, as far as its name says.
    #[cfg(feature = "gpu")]
    pub fn block_elements(&self, part: Part) -> Option<usize> {
        /// Of what formats of groups and MXFP4 are read as.
        const OF_GROUPS: usize = 32;
        match (self.tensors.get(&part.name(self.naming)), self.quantisation) {
            (Some(Stored { format: Format::Known(kind), .. }), _) => Some(kind.block_elements()),
            (Some(_), Some(Quantisation::Fp8)) => Some(1),
            (None, None) => None,
            _ => Some(OF_GROUPS),
        }
    }

    /// Whether the experts' rows must be picked from tensors that hold those of gate and up in turn.
    fn half_of(&self, part: Part) -> Option<(Expert, Half)> {
        if !(self.interleaved_experts && self.is_hugging_face()) {
            return None;
        }
        let half = match part {
            Part::Layer(_, LayerPart::ExpertGate(_) | LayerPart::ExpertGateBias(_)) => Half::Even,
            Part::Layer(_, LayerPart::ExpertUp(_) | LayerPart::ExpertUpBias(_)) => Half::Odd,
            _ => Half::All,
        };
        part.expert().map(|expert| (expert, half))
    }

    /// The part as a matrix in its file's format.
    pub fn matrix(&self, part: Part, out: usize, input: usize) -> Result<Weight> {
        if let Some(quantisation) = self.quantisation
            && let Some(weight) = quantisation.matrix(self, &part.name(self.naming), out, input)?
        {
            return Ok(weight);
        }
        if let Some((expert, half)) = self.half_of(part) {
            return interleaved_expert(self, &part.name(self.naming), expert, half, (out, input));
        }
        if let Some(weight) = self.transposed_expert(part, out, input)? {
            return Ok(weight);
        }
        let (name, stored) = self.find(part)?;
        let stored = one_of(&name, stored, part, &[out, input])?;
        read_in(&name, &stored, out, input)
    }

    /// The part as it lies in its file, if that is FP8.
    pub fn fp8(&self, part: Part, out: usize, input: usize) -> Result<Option<Fp8Matrix>> {
        let Some(quantisation) = self.quantisation else { return Ok(None) };
        quantisation.fp8(self, &part.name(self.naming), out, input)
    }

    /// Bytes of what lies in FP8.
    pub fn fp8_bytes(&self) -> u64 {
        let Some(quantisation) = self.quantisation else { return 0 };
        let all = self.tensors.iter().filter(|(name, stored)| quantisation.is_fp8(name, stored));
        all.map(|(_, stored)| stored.bytes as u64).sum()
    }

    /// One expert's part of a tensor `[experts, input, out]`, where gate and up stand side by side in `out`.
    fn transposed_expert(&self, part: Part, out: usize, input: usize) -> Result<Option<Weight>> {
        let is_transposed = self.transposed_experts && self.is_hugging_face();
        let Some(expert) = part.expert().filter(|_| is_transposed) else { return Ok(None) };
        let (wide, first) = match part {
            Part::Layer(_, LayerPart::ExpertGate(_)) => (2 * out, 0),
            Part::Layer(_, LayerPart::ExpertUp(_)) => (2 * out, out),
            _ => (out, 0),
        };
        let (name, stored) = self.find(part)?;
        check_shape(&name, stored, &[expert.of, input, wide])?;
        let bytes = stored.bytes / expert.of;
        let offset = stored.offset + expert.index * bytes;
        let one = Stored { shape: vec![input, wide], offset, bytes, ..stored.clone() };
        Ok(Some(read_in(&name, &one, input, wide)?.transposed()?.rows(first, out)))
    }

    /// The part was copied and will not be read again: its pages need not stay in memory.
    pub fn read_once(&self, part: Part) {
        if let Ok((_, stored)) = self.find(part) {
            // Of tensors that several experts share, each gives back its part.
            let (shares, share) = part.expert().map_or((1, 0), |expert| (expert.of, expert.index));
            let shares = if stored.shape.len() > 2 { shares } else { 1 };
            let bytes = stored.bytes / shares;
            let first = if shares > 1 { share * bytes } else { 0 };
            stored.file.let_go(stored.offset + first, bytes);
        }
    }

    /// As [`Self::read_once`], for a tensor by its name.
    pub fn let_go(&self, name: &str) {
        if let Some(stored) = self.tensors.get(name) {
            stored.file.let_go(stored.offset, stored.bytes);
        }
    }

    /// As [`Self::matrix`], for a tensor by its name.
    pub fn named_matrix(&self, name: &str, out: usize, input: usize) -> Result<Weight> {
        let stored = self.named(name)?;
        check_matrix(name, stored, &[out, input])?;
        read_in(name, stored, out, input)
    }

    /// As [`Self::vector`], for a tensor by its name.
    pub fn named_vector(&self, name: &str, len: usize, device: &Device) -> Result<(Tensor, u64)> {
        let stored = self.named(name)?;
        check_shape(name, stored, &[len])?;
        let values = row(&read_in(name, stored, 1, len)?);
        Ok((Tensor::from_vec(values, len, device)?, stored.bytes as u64))
    }

    /// The same tensors, `prefix` before every name.
    pub fn prefixed(self, prefix: &str) -> Self {
        let tensors = self.tensors.into_iter().map(|(name, stored)| (format!("{prefix}{name}"), stored)).collect();
        Self { tensors, ..self }
    }

    /// The part as f32 `[len]`, whatever its format, and its bytes in the file.
    pub fn vector(&self, part: Part, len: usize, device: &Device) -> Result<(Tensor, u64)> {
        if let Some((expert, half)) = self.half_of(part) {
            return interleaved_bias(self, &part.name(self.naming), expert, half, (len, device));
        }
        let (name, stored) = self.find(part)?;
        let stored = one_of(&name, stored, part, &[len])?;
        let values = row(&read_in(&name, &stored, 1, len)?);
        Ok((Tensor::from_vec(values, len, device)?, stored.bytes as u64))
    }

    /// The bytes of a tensor whose shape is known.
    pub fn bytes_of(&self, name: &str, shape: &[usize]) -> Result<&[u8]> {
        let stored = self.named(name)?;
        check_shape(name, stored, shape)?;
        Ok(&(*stored.file).as_ref()[stored.offset..stored.offset + stored.bytes])
    }

    /// The 32-bit words of a tensor whose shape is known.
    pub fn words_of(&self, name: &str, shape: &[usize]) -> Result<&[[u8; 4]]> {
        let bytes = self.bytes_of(name, shape)?;
        if bytes.len() != 4 * shape.iter().product::<usize>() {
            return Err(self.wrong_format(name));
        }
        Ok(bytes.as_chunks().0)
    }

    /// Shape and values of a tensor of plain numbers.
    pub fn floats_of(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let stored = self.named(name)?;
        if !matches!(stored.format, Format::Known(GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16)) {
            return Err(self.wrong_format(name));
        }
        Ok((stored.shape.clone(), row(&read_in(name, stored, 1, stored.elements())?)))
    }

    /// A list of indices, if there is one.
    pub fn order_of(&self, name: &str, len: usize) -> Result<Option<Vec<usize>>> {
        if self.get(name).is_none() {
            return Ok(None);
        }
        let words = self.words_of(name, &[len])?;
        Ok(Some(words.iter().map(|word| u32::from_le_bytes(*word) as usize).collect()))
    }

    fn named(&self, name: &str) -> Result<&Stored> {
        let missing = || Error::MissingTensor { file: self.source.clone(), tensor: name.to_owned() };
        self.tensors.get(name).ok_or_else(missing)
    }

    fn wrong_format(&self, name: &str) -> Error {
        let format = self.tensors.get(name).map_or("nothing", |stored| stored.format.name()).to_owned();
        let file = self.source.clone();
        Error::TensorFormat { file, tensor: shown(name), format, supported: SUPPORTED }
    }

    /// A named vector that need not be there.
    pub fn optional_vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(stored) = self.tensors.get(name) else { return Ok(None) };
        let len = stored.elements();
        check_shape(name, stored, &[len])?;
        Ok(Some(row(&read_in(name, stored, 1, len)?)))
    }

    /// Refuses tensors that no part of the model reads: they stand for a feature that is not implemented.
    pub fn refuse_unused(&self, used: &[Part], tied_embeddings: bool) -> Result<()> {
        let used: BTreeSet<String> = used.iter().map(|part| part.name(self.naming)).collect();
        let is_part = |tensor: &str| Quantisation::owner(tensor).is_some_and(|owner| used.contains(&owner));
        let is_ignorable =
            |name: &str| (self.quantisation.is_some() && is_part(name)) || is_ignorable(name, tied_embeddings);
        self.refuse_others(&used, is_ignorable)
    }

    /// As [`Self::refuse_unused`], with names.
    pub fn refuse_others(&self, used: &BTreeSet<String>, is_ignorable: impl Fn(&str) -> bool) -> Result<()> {
        match self.tensors.iter().find(|(name, _)| !used.contains(*name) && !is_ignorable(name)) {
            None => Ok(()),
            Some((name, stored)) => Err(Error::Unsupported {
                file: stored.file.path().to_owned(),
                feature: format!("tensor {}, which this architecture does not have,", shown(name)),
                next: "use a plain version of the model",
            }),
        }
    }
}

fn row(weight: &Weight) -> Vec<f32> {
    let mut values = vec![0.0; weight.input()];
    weight.row_f32(0, &mut values);
    values
}

/// The tensor with its shape checked; of a tensor that holds all experts of a layer, the slice of one, which may be the
/// upper or lower half of gate above up.
fn one_of<'a>(name: &str, stored: &'a Stored, part: Part, shape: &[usize]) -> Result<Cow<'a, Stored>> {
    let Some(expert) = part.expert().filter(|_| stored.shape.len() > shape.len()) else {
        check_matrix(name, stored, shape)?;
        return Ok(Cow::Borrowed(stored));
    };
    let wide = [&[expert.of, 2 * shape[0]], &shape[1..]].concat();
    let (halves, half) = match part {
        Part::Layer(_, LayerPart::ExpertGate(_)) if stored.shape == wide => (2, 0),
        Part::Layer(_, LayerPart::ExpertUp(_)) if stored.shape == wide => (2, 1),
        _ => {
            check_shape(name, stored, &[&[expert.of], shape].concat())?;
            (1, 0)
        }
    };
    let bytes = stored.bytes / (expert.of * halves);
    let offset = stored.offset + (expert.index * halves + half) * bytes;
    let file = Arc::clone(&stored.file);
    Ok(Cow::Owned(Stored { format: stored.format.clone(), shape: shape.to_vec(), file, offset, bytes }))
}

/// A matrix of one row may be stored as a vector.
fn check_matrix(name: &str, stored: &Stored, shape: &[usize]) -> Result<()> {
    let row = if shape.len() == 2 && shape[0] == 1 && stored.shape.len() == 1 { &shape[1..] } else { shape };
    check_shape(name, stored, row)
}

fn check_shape(name: &str, stored: &Stored, expected: &[usize]) -> Result<()> {
    if stored.shape == expected {
        return Ok(());
    }
    Err(Error::TensorShape {
        file: stored.file.path().to_owned(),
        tensor: shown(name),
        expected: expected.to_vec(),
        found: stored.shape.clone(),
    })
}

fn read_in(name: &str, stored: &Stored, out: usize, input: usize) -> Result<Weight> {
    let Format::Known(kind) = stored.format else {
        return Err(Error::TensorFormat {
            file: stored.file.path().to_owned(),
            tensor: shown(name),
            format: stored.format.name().to_owned(),
            supported: SUPPORTED,
        });
    };
    let weight = Weight::new(kind, out, input, Arc::clone(&stored.file) as _, stored.offset)?;
    stored.file.read_ahead(stored.offset, stored.bytes);
    Ok(weight)
}
