//! The C API with a plugin that is really there: programs written by hand.

use sconce_pjrt::ElementType;
use sconce_pjrt::api::{Client, Plugin};

fn client() -> Client {
    Client::new(Plugin::open(&super::plugin()).expect("a plugin")).expect("a client")
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes a row into a cache that is its own output, and multiplies by it.
const CACHE: &str = r"
module @cache {
  func.func public @main(%cache: tensor<4x2xf32> {tf.aliasing_output = 0 : i32}, %row: tensor<1x2xf32>, %at: tensor<i32>)
      -> (tensor<4x2xf32>, tensor<4xf32>) {
    %zero = stablehlo.constant dense<0> : tensor<i32>
    %new = stablehlo.dynamic_update_slice %cache, %row, %at, %zero
        : (tensor<4x2xf32>, tensor<1x2xf32>, tensor<i32>, tensor<i32>) -> tensor<4x2xf32>
    %flat = stablehlo.reshape %row : (tensor<1x2xf32>) -> tensor<2xf32>
    %seen = stablehlo.dot_general %new, %flat, contracting_dims = [1] x [0] : (tensor<4x2xf32>, tensor<2xf32>) -> tensor<4xf32>
    return %new, %seen : tensor<4x2xf32>, tensor<4xf32>
  }
}
";

#[test]
#[ignore = "needs a PJRT plugin: SCONCE_PJRT_PLUGIN"]
fn a_donated_cache_is_updated_in_place() {
    let client = client();
    let device = client.device().unwrap();
    assert!(!client.platform().unwrap().is_empty() && !device.kind().unwrap().is_empty());
    let program = client.compile(CACHE).unwrap();
    assert_eq!(program.outputs(), 2);
    let mut cache = device.upload(ElementType::F32, &[4, 2], &bytes(&[0.0; 8])).unwrap();
    for (at, row) in [(0_i32, [1.0, 2.0]), (3, [5.0, 7.0])] {
        let row = device.upload(ElementType::F32, &[1, 2], &bytes(&row)).unwrap();
        let at = device.upload(ElementType::I32, &[], &at.to_le_bytes()).unwrap();
        let mut outputs = program.execute(&[&cache, &row, &at]).unwrap();
        assert!(cache.is_deleted().unwrap(), "the old cache was donated");
        assert!(!row.is_deleted().unwrap() && !outputs[1].is_deleted().unwrap());
        let mut seen = Vec::new();
        outputs[1].read_f32(&mut seen).unwrap();
        assert_eq!(seen, if seen[3] == 0.0 { [5.0, 0.0, 0.0, 0.0] } else { [19.0, 0.0, 0.0, 74.0] });
        cache = outputs.remove(0);
    }
    let mut all = Vec::new();
    cache.read_f32(&mut all).unwrap();
    assert_eq!((all, cache.dims().unwrap()), (vec![1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 5.0, 7.0], vec![4, 2]));
}

#[test]
#[ignore = "needs a PJRT plugin: SCONCE_PJRT_PLUGIN"]
fn errors_carry_the_words_of_the_plugin() {
    let client = client();
    let why = client.compile("module { func.func @main() -> tensor<f32> { return %x : tensor<f32> } }").err().unwrap();
    let why = why.to_string();
    assert!(why.starts_with("PJRT_Client_Compile of the pjrt plugin failed: ") && !why.contains('\n'), "{why}");
    let program = client.compile(CACHE).unwrap();
    let why = program.execute(&[]).err().unwrap().to_string();
    assert!(why.starts_with("PJRT_LoadedExecutable_Execute of the pjrt plugin failed: "), "{why}");
}

#[test]
#[ignore = "needs a PJRT plugin: SCONCE_PJRT_PLUGIN"]
fn a_buffer_of_another_client_is_refused() {
    let (client, other) = (client(), client());
    let program = client.compile(CACHE).unwrap();
    let buffer = other.device().unwrap().upload(ElementType::F32, &[1], &bytes(&[1.0])).unwrap();
    let why = program.execute(&[&buffer, &buffer, &buffer]).err().unwrap().to_string();
    assert!(why.contains("one pjrt client"), "{why}");
    let why = client.device().unwrap().upload(ElementType::F32, &[2], &bytes(&[1.0])).err().unwrap().to_string();
    assert!(why.contains("4 bytes for a tensor of [2] of f32"), "{why}");
}
