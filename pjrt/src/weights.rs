//! A model's weights in one order that programs and buffers share: what a program has as parameters is what is uploaded.

use half::bf16;
use sconce_models::plain::{PlainDecoder, PlainLinear, PlainMatrix};
use sconce_models::{QkNorm, Spec};

use crate::api::{Buffer, Device};
use crate::element::ElementType;
use crate::error::{Error, Result};
use crate::hlo::TensorType;

/// One `T` a weight: a shape, a program's value, a buffer.
pub struct Weights<T> {
    /// `[vocab, hidden]`
    pub embedding: T,
    pub layers: Vec<LayerWeights<T>>,
    /// `[hidden]`
    pub final_norm: T,
    /// `[vocab, hidden]`; `None` where it is the embedding.
    pub head: Option<T>,
}

pub struct LinearWeights<T> {
    /// `[out, input]`
    pub weight: T,
    /// `[out]`
    pub bias: Option<T>,
}

pub struct LayerWeights<T> {
    pub attention_norm: T,
    pub qkv: LinearWeights<T>,
    pub query_norm: Option<T>,
    pub key_norm: Option<T>,
    pub output: LinearWeights<T>,
    pub mlp_norm: T,
    pub gate_up: LinearWeights<T>,
    pub down: LinearWeights<T>,
}

impl<T> LinearWeights<T> {
    fn map<U>(&self, with: &mut impl FnMut(&T) -> Result<U>) -> Result<LinearWeights<U>> {
        Ok(LinearWeights { weight: with(&self.weight)?, bias: self.bias.as_ref().map(with).transpose()? })
    }
}

impl<T> LayerWeights<T> {
    fn map<U>(&self, with: &mut impl FnMut(&T) -> Result<U>) -> Result<LayerWeights<U>> {
        Ok(LayerWeights {
            attention_norm: with(&self.attention_norm)?,
            qkv: self.qkv.map(with)?,
            query_norm: self.query_norm.as_ref().map(&mut *with).transpose()?,
            key_norm: self.key_norm.as_ref().map(&mut *with).transpose()?,
            output: self.output.map(with)?,
            mlp_norm: with(&self.mlp_norm)?,
            gate_up: self.gate_up.map(with)?,
            down: self.down.map(with)?,
        })
    }
}

impl<T> Weights<T> {
    /// The same with another `T`; weights are met in the order that they have as parameters.
    pub fn map<U>(&self, with: &mut impl FnMut(&T) -> Result<U>) -> Result<Weights<U>> {
        Ok(Weights {
            embedding: with(&self.embedding)?,
            layers: self.layers.iter().map(|layer| layer.map(with)).collect::<Result<_>>()?,
            final_norm: with(&self.final_norm)?,
            head: self.head.as_ref().map(with).transpose()?,
        })
    }

    /// All of them in that order.
    pub fn all(&self) -> Vec<&T> {
        fn linear<'a, T>(linear: &'a LinearWeights<T>, all: &mut Vec<&'a T>) {
            all.push(&linear.weight);
            all.extend(&linear.bias);
        }
        let mut all = vec![&self.embedding];
        for layer in &self.layers {
            all.push(&layer.attention_norm);
            linear(&layer.qkv, &mut all);
            all.extend(&layer.query_norm);
            all.extend(&layer.key_norm);
            linear(&layer.output, &mut all);
            all.push(&layer.mlp_norm);
            linear(&layer.gate_up, &mut all);
            linear(&layer.down, &mut all);
        }
        all.push(&self.final_norm);
        all.extend(&self.head);
        all
    }
}

/// The shapes that a spec says: matrices of `element`, vectors in F32.
pub fn shapes(spec: &Spec, element: ElementType) -> Weights<TensorType> {
    let vector = |len: usize| TensorType::new(ElementType::F32, &[len]);
    let matrix = |out: usize, input: usize| TensorType::new(element, &[out, input]);
    let linear = |out: usize, input: usize, has_bias: bool| LinearWeights {
        weight: matrix(out, input),
        bias: has_bias.then(|| vector(out)),
    };
    let head_norm = || (spec.qk_norm == QkNorm::Heads).then(|| vector(spec.head_dim));
    let layer = || LayerWeights {
        attention_norm: vector(spec.hidden),
        qkv: linear(spec.query_width() + 2 * spec.kv_width(), spec.hidden, spec.qkv_bias),
        query_norm: head_norm(),
        key_norm: head_norm(),
        output: linear(spec.hidden, spec.query_width(), spec.output_bias),
        mlp_norm: vector(spec.hidden),
        gate_up: linear(2 * spec.ffn, spec.hidden, spec.mlp_bias),
        down: linear(spec.hidden, spec.ffn, spec.mlp_bias),
    };
    Weights {
        embedding: matrix(spec.vocab, spec.hidden),
        layers: (0..spec.layers).map(|_| layer()).collect(),
        final_norm: vector(spec.hidden),
        head: (!spec.tied_embeddings).then(|| matrix(spec.vocab, spec.hidden)),
    }
}

/// Bytes of all weights on a device.
pub fn bytes(spec: &Spec, element: ElementType) -> u64 {
    shapes(spec, element).all().into_iter().map(|ty| ty.bytes() as u64).sum()
}

/// Copies a model's weights to `device`, one after the other.
pub fn upload(decoder: &PlainDecoder, device: &Device, element: ElementType) -> Result<Weights<Buffer>> {
    let matrix = |matrix: &PlainMatrix| {
        let mut bytes = Vec::with_capacity(matrix.out() * matrix.input() * element.bytes());
        matrix.each_row(|row| put(row, element, &mut bytes));
        device.upload(element, &[matrix.out(), matrix.input()], &bytes)
    };
    let vector = |values: &Vec<f32>| upload_f32(device, &[values.len()], values);
    let linear = |linear: &PlainLinear| -> Result<LinearWeights<Buffer>> {
        Ok(LinearWeights { weight: matrix(&linear.weight)?, bias: linear.bias.as_ref().map(vector).transpose()? })
    };
    let mut layers = Vec::with_capacity(decoder.layers.len());
    for layer in &decoder.layers {
        let norms = layer.head_norms.as_ref();
        layers.push(LayerWeights {
            attention_norm: vector(&layer.attention_norm)?,
            qkv: linear(&layer.qkv)?,
            query_norm: norms.map(|(query, _)| vector(query)).transpose()?,
            key_norm: norms.map(|(_, key)| vector(key)).transpose()?,
            output: linear(&layer.output)?,
            mlp_norm: vector(&layer.mlp_norm)?,
            gate_up: linear(&layer.gate_up)?,
            down: linear(&layer.down)?,
        });
    }
    let weights = Weights {
        embedding: matrix(&decoder.embedding)?,
        layers,
        final_norm: vector(&decoder.final_norm)?,
        head: decoder.head.as_ref().map(matrix).transpose()?,
    };
    let expected = shapes(&decoder.spec, element);
    for (buffer, ty) in weights.all().into_iter().zip(expected.all()) {
        let found = buffer.dims()?;
        if found != ty.dims {
            let detail = format!("a weight of {found:?} is where {:?} belongs", ty.dims);
            return Err(Error::Program { operation: "upload", detail });
        }
    }
    Ok(weights)
}

/// Copies values to `device`.
pub fn upload_f32(device: &Device, dims: &[usize], values: &[f32]) -> Result<Buffer> {
    let mut bytes = Vec::with_capacity(4 * values.len());
    put(values, ElementType::F32, &mut bytes);
    device.upload(ElementType::F32, dims, &bytes)
}

fn put(values: &[f32], element: ElementType, bytes: &mut Vec<u8>) {
    match element {
        ElementType::Bf16 => bytes.extend(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes())),
        _ => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use sconce_models::{Source, read_spec};

    use super::*;

    /// `map` makes parameters, `all` gives arguments: they must go the same way.
    #[test]
    fn both_ways_through_the_weights_are_the_same() {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/");
        for name in ["llama3", "llama_biased", "qwen2", "qwen3"] {
            let spec = read_spec(&Source::Folder(format!("{fixtures}{name}").into())).expect("a fixture");
            let shapes = shapes(&spec, ElementType::Bf16);
            let mut met = Vec::new();
            let numbered = shapes
                .map(&mut |ty| {
                    met.push(ty.clone());
                    Ok(met.len() - 1)
                })
                .expect("nothing fails");
            assert!(numbered.all().into_iter().copied().eq(0..met.len()), "{name}");
            assert_eq!(met.iter().collect::<Vec<_>>(), shapes.all(), "{name}");
            assert_eq!(met[0], TensorType::new(ElementType::Bf16, &[spec.vocab, spec.hidden]));
            // What the files have, a tied head counted once.
            let elements: usize = met.iter().map(TensorType::elements).sum();
            assert_eq!(elements as u64, spec.parameters, "{name}");
        }
    }
}
