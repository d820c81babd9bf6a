//! What the name of a GGUF file says: a model or an accessory, whole or a part, and which quantisation.

/// Quantisations to take when the user names no file, the best for its size first.
const PREFERRED: &[&str] = &["q4_k_m", "q8_0"];

/// The file to take when none is named: a preferred quantisation, or the only file there is.
pub(super) fn best_gguf(files: &[String]) -> Option<String> {
    let whole: Vec<&String> = files.iter().filter(|file| is_gguf(file) && !is_part(file)).collect();
    for quantisation in PREFERRED {
        let mut matching = whole.iter().filter(|file| has_word(file, quantisation));
        if let Some(file) = matching.next() {
            return Some((**file).clone());
        }
    }
    match whole.as_slice() {
        [only] => Some((*only).clone()),
        _ => None,
    }
}

/// Model files; projectors and importance matrices are no models.
pub(super) fn is_gguf(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    lower.ends_with(".gguf") && !lower.contains("mmproj") && !lower.contains("imatrix")
}

/// `-00001-of-00003` before the extension.
pub(super) fn is_part(file: &str) -> bool {
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let mut words = stem.rsplit('-');
    let is_number = |word: Option<&str>| word.is_some_and(|word| word.len() == 5 && word.parse::<u32>().is_ok());
    is_number(words.next()) && words.next() == Some("of") && is_number(words.next())
}

/// Whether the quantisation stands in the name by itself: `Q4_K_M` is not in `IQ4_K_M` or `Q4_K_M_L`.
fn has_word(file: &str, word: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    lower.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).map(|before| lower.as_bytes()[before]);
        let after = lower.as_bytes().get(at + word.len());
        !before.is_some_and(is_inside) && !after.copied().is_some_and(is_inside)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_file_is_taken() {
        let table = [
            ("m.Q2_K.gguf m.Q4_K_M.gguf m.Q8_0.gguf", Some("m.Q4_K_M.gguf")),
            ("m-iq4_k_m.gguf m-q4_k_m_l.gguf m-q8_0.gguf", Some("m-q8_0.gguf")),
            ("mmproj-Q8_0.gguf m-f16.gguf m.imatrix.gguf", Some("m-f16.gguf")),
            ("m-Q4_K_M-00001-of-00002.gguf m-Q8_0.gguf", Some("m-Q8_0.gguf")),
            ("m-Q2_K.gguf m-Q3_K.gguf", None),
            ("m-Q8_0-00001-of-00002.gguf", None),
            ("", None),
        ];
        for (names, expected) in table {
            let files: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
            assert_eq!(best_gguf(&files).as_deref(), expected, "{names}");
        }
    }
}
