//! Weight files with altered bytes either load or are refused; a model that loads also runs. Nothing panics, and loading
//! takes no more memory than the file's size explains.
//!
//! A longer run: `SCONCE_FUZZ_CASES=100000 cargo nextest run -p sconce-models --test altered_files`.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use sconce_models::{BatchInput, KvDtype, LoadOptions, Logits, Source, load};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Cases of each test, in a run of all tests short.
fn cases() -> u32 {
    std::env::var("SCONCE_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400)
}

/// Peak of the memory that is really used, since [`forget_peak`]: `None` where the system does not tell.
fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn forget_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Loading may take so much beside what was there: a few times the file (it is mapped, packed, perhaps dequantised to
/// F32 from 2 bits), and tables that do not depend on it.
fn bound(file_bytes: u64) -> u64 {
    64 * file_bytes + (48 << 20)
}

fn bytes_of(source: &Source) -> u64 {
    let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    match source {
        Source::Gguf(path) => size(path),
        Source::Folder(folder) => size(&folder.join("model.safetensors")) + size(&folder.join("config.json")),
        Source::Dummy(_) => 0,
    }
}

/// One token through whatever the file became. Errors are fine, and so are odd numbers in the logits.
fn load_and_run(source: &Source) {
    let before = if forget_peak() { peak_bytes() } else { None };
    let loaded = load(source, LoadOptions::default());
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        let (grown, most) = (after.saturating_sub(before), bound(bytes_of(source)));
        assert!(grown <= most, "loading took {grown} bytes, expected at most {most}");
    }
    let Ok(model) = loaded else { return };
    let Ok(mut kv) = model.new_kv_cache(1, 1, KvDtype::F16) else { return };
    let batch = BatchInput {
        tokens: vec![5],
        positions: vec![0],
        slots: vec![0],
        row_ends: vec![1],
        context_lens: vec![1],
        block_tables: vec![0],
        block_table_ends: vec![1],
        sample_rows: vec![0],
        ..BatchInput::default()
    };
    let mut logits = Logits::default();
    if model.forward(&batch, &mut kv, &mut logits).is_ok() {
        assert_eq!(logits.values.len(), model.spec().vocab);
    }
}

fn alter(sound: &[u8], header_bytes: usize, changes: &[(Index, u8)], cut: Option<Index>) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for (at, byte) in changes {
        bytes[at.index(header_bytes)] = *byte;
    }
    if let Some(length) = cut {
        bytes.truncate(length.index(sound.len()));
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(Index, u8)>> {
    // Digits and brackets keep more of a JSON header readable than any byte would.
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"0123456789[]{},:\"".to_vec())];
    prop::collection::vec((any::<Index>(), byte), 1..4)
}

fn rarely_cut() -> impl Strategy<Value = Option<Index>> {
    prop::option::weighted(0.1, any::<Index>())
}

const GGUFS: [&str; 10] = [
    "qwen3_q4_0",
    "gemma3_q4_0",
    "gpt_oss_gguf",
    "phi3_q8_0",
    "granite_moe_q8_0",
    "cohere2_q4_0",
    "deepseek2_q8_0",
    "deepseek3_q8_0",
    "gemma4_q8_0",
    "lfm2_q8_0",
];
const TENSORS: [&str; 11] = [
    "llama_biased",
    "gptq_desc_act",
    "gptq_sym",
    "awq",
    "fp8_blocks",
    "compressed_int4",
    "gpt_oss_mxfp4",
    "granite_moe",
    "deepseek3",
    "gemma4",
    "lfm2",
];
const CONFIGS: [&str; 13] = [
    "qwen2_window",
    "gemma3",
    "gpt_oss_mxfp4",
    "phi3_long",
    "qwen3_moe",
    "ministral3_text_part",
    "olmo3",
    "smollm3",
    "deepseek2_groups",
    "deepseek3",
    "gemma4",
    "gemma4_text_part",
    "lfm2",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn altered_ggufs_never_panic(which in any::<Index>(), changes in changes(), cut in rarely_cut()) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.gguf");
        let sound = fs::read(fixtures().join(format!("{}.gguf", which.get(&GGUFS)))).unwrap();
        fs::write(&file, alter(&sound, 2600, &changes, cut)).unwrap();
        load_and_run(&Source::Gguf(file));
    }

    #[test]
    fn altered_safetensors_never_panic(which in any::<Index>(), changes in changes(), cut in rarely_cut()) {
        let folder = tempfile::tempdir().unwrap();
        let from = fixtures().join(which.get(&TENSORS));
        fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
        let sound = fs::read(from.join("model.safetensors")).unwrap();
        fs::write(folder.path().join("model.safetensors"), alter(&sound, 3000, &changes, cut)).unwrap();
        load_and_run(&Source::Folder(folder.path().to_owned()));
    }

    #[test]
    fn altered_configs_never_panic(which in any::<Index>(), changes in changes(), cut in rarely_cut()) {
        let folder = tempfile::tempdir().unwrap();
        let from = fixtures().join(which.get(&CONFIGS));
        fs::copy(from.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let sound = fs::read(from.join("config.json")).unwrap();
        fs::write(folder.path().join("config.json"), alter(&sound, sound.len(), &changes, cut)).unwrap();
        load_and_run(&Source::Folder(folder.path().to_owned()));
    }
}
