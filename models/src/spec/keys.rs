//! GGUF metadata under the architecture's prefix, with complaints that name the file and the key.

use std::path::Path;

use crate::error::{Error, Result};
use crate::gguf::{Header, Value};
use crate::tensors::TensorSet;

const NEXT: &str = "use another version of the model";

#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub header: &'a Header,
    pub file: &'a Path,
    pub architecture: &'a str,
    /// The file's tensors, under the family's names.
    pub tensors: &'a TensorSet,
}

impl<'a> Keys<'a> {
    pub fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.header.get(&self.full(key))
    }

    pub fn wrong(&self, detail: String) -> Error {
        Error::Config { file: self.file.to_owned(), detail }
    }

    pub fn unsupported(&self, feature: String, next: &'static str) -> Error {
        Error::Unsupported { file: self.file.to_owned(), feature, next }
    }

    /// A size, given once or as an array with one entry a layer, all equal.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = match value {
            Value::Array(array) => {
                let sizes = array.to_u64s().unwrap_or_default();
                if sizes.windows(2).any(|pair| pair[0] != pair[1]) {
                    let feature = format!("{} that differs from layer to layer", self.full(key));
                    return Err(self.unsupported(feature, NEXT));
                }
                sizes.first().copied()
            }
            value => value.as_u64(),
        };
        match size.and_then(|size| usize::try_from(size).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(self.wrong(format!("metadata key {} is not a whole number", self.full(key)))),
        }
    }

    /// A size, or a list of one a layer, as it stands.
    pub fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let sizes = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array(array)) => array.to_u64s(),
            Some(value) => value.as_u64().map(|size| vec![size]),
        };
        let sizes = sizes.and_then(|all| all.into_iter().map(|size| usize::try_from(size).ok()).collect());
        let wrong = || self.wrong(format!("metadata key {} is no list of whole numbers", self.full(key)));
        sizes.map(Some).ok_or_else(wrong)
    }

    pub fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.wrong(format!("metadata key {} is missing", self.full(key))))
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(format!("metadata key {} is not a number", self.full(key)))),
        }
    }

    pub fn required_number(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.wrong(format!("metadata key {} is missing", self.full(key))))
    }

    pub fn bool(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(Value::as_bool)
    }
}
