//! Programs of the fixtures' models: their types, what they donate, and that Neuron's compiler has nothing to refuse.

use sconce_models::{Source, Spec, read_spec};

use super::*;
use crate::hlo::lint;

fn spec(name: &str) -> Spec {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/");
    let file = format!("{fixtures}{name}");
    let source = if name.ends_with(".gguf") { Source::Gguf(file.into()) } else { Source::Folder(file.into()) };
    read_spec(&source).expect("a fixture")
}

const NAMES: [&str; 8] =
    ["llama2", "llama3", "llama3_f32.gguf", "llama_biased", "mistral", "qwen2", "qwen2_window", "qwen3"];

#[test]
fn every_program_passes_the_linter() {
    for name in NAMES {
        let spec = spec(name);
        for element in [ElementType::F32, ElementType::Bf16] {
            let sizes = Sizes { blocks: 9, block_size: 16, positions: 128, element };
            let buckets = [
                Bucket::Decode { rows: 4, context: 2 },
                Bucket::Decode { rows: 1, context: 8 },
                Bucket::Prefill { tokens: 32, context: 8 },
                Bucket::Prefill { tokens: 1, context: 1 },
                Bucket::Head { tokens: 32, samples: 16 },
            ];
            for bucket in buckets {
                let program = lower(&spec, sizes, bucket).expect("it can be lowered");
                assert_eq!(lint(&program.text), [], "{name}: {bucket:?}");
                assert!(program.text.contains(&format!("module @{} ", bucket.name())), "{name}: {bucket:?}");
            }
        }
    }
}

#[test]
fn the_types_of_a_step_are_those_that_are_said() {
    for name in NAMES {
        let spec = spec(name);
        let sizes = Sizes { blocks: 9, block_size: 16, positions: 128, element: ElementType::Bf16 };
        let integers = |len: usize| TensorType::new(ElementType::I32, &[len]);
        let cache = TensorType::new(ElementType::Bf16, &[144, spec.kv_heads, spec.head_dim]);
        for (bucket, tokens, tables, last) in [
            (Bucket::Decode { rows: 4, context: 2 }, 4, 8, [4, spec.vocab]),
            (Bucket::Prefill { tokens: 32, context: 8 }, 32, 8, [32, spec.hidden]),
        ] {
            let program = lower(&spec, sizes, bucket).expect("it can be lowered");
            let expected = [integers(tokens), integers(tokens), integers(tokens), integers(tables)];
            assert_eq!(program.parameters[..4], expected, "{name}");
            let caches = 4 + 2 * spec.layers;
            assert!(program.parameters[4..caches].iter().all(|ty| *ty == cache), "{name}");
            let weights = shapes(&spec, sizes.element);
            assert_eq!(program.parameters[caches + 2..].iter().collect::<Vec<_>>(), weights.all(), "{name}");
            assert_eq!(program.outputs.len(), 2 * spec.layers + 1, "{name}");
            assert_eq!(program.outputs.last(), Some(&TensorType::new(ElementType::F32, &last)), "{name}");
            // Every cache is donated to the output in the same place.
            for layer in 0..2 * spec.layers {
                let donated = format!("%{}: {cache} {{tf.aliasing_output = {layer} : i32}}", 4 + layer);
                assert!(program.text.contains(&donated), "{name}: {donated}");
            }
            assert_eq!(program.text.matches("tf.aliasing_output").count(), 2 * spec.layers, "{name}");
        }
    }
}

/// Layers with one window share a mask, and a window costs one more comparison.
#[test]
fn windows_are_compared_once() {
    let sizes = Sizes { blocks: 9, block_size: 16, positions: 128, element: ElementType::F32 };
    for (name, expected) in [("qwen2", 1), ("mistral", 2), ("qwen2_window", 3)] {
        let spec = spec(name);
        let text = lower(&spec, sizes, Bucket::Decode { rows: 4, context: 2 }).expect("it can be lowered").text;
        assert_eq!(text.matches("stablehlo.compare").count(), expected, "{name}: {:?}", spec.sliding_window);
    }
}
