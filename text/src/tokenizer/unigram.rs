//! Unigram vocabularies of GGUF files (`tokenizer.ggml.model` t5): XLM-RoBERTa's, as BGE-M3 and its reranker have them.

use tokenizers::Tokenizer as Pipeline;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

use super::gguf::{GgufVocab, broken};
use sconce_vocabulary::error::Result;

pub(super) fn build(vocab: &GgufVocab) -> Result<Pipeline> {
    if vocab.scores.len() != vocab.tokens.len() {
        return Err(broken("a `t5` vocabulary needs tokenizer.ggml.scores"));
    }
    if vocab.add_space_prefix == Some(false) || vocab.remove_extra_whitespaces == Some(false) {
        return Err(broken(
            "a `t5` vocabulary that keeps white space as it is (add_space_prefix or remove_extra_whitespaces false) is \
             not supported",
        ));
    }
    let unknown = vocab.unk.map(|id| id as usize).or_else(|| vocab.tokens.iter().position(|token| token == "<unk>"));
    let pieces = vocab.tokens.iter().cloned().zip(vocab.scores.iter().map(|score| f64::from(*score))).collect();
    let mut pipeline = Pipeline::new(Unigram::from(pieces, unknown, false).map_err(broken)?);
    if !vocab.precompiled_charsmap.is_empty() {
        check_charsmap(&vocab.precompiled_charsmap).map_err(broken)?;
        let rules = Precompiled::from(&vocab.precompiled_charsmap).map_err(broken)?;
        pipeline.with_normalizer(Some(rules)).map_err(broken)?;
    }
    let words = Metaspace::new('▁', PrependScheme::Always, true);
    let steps = vec![PreTokenizerWrapper::WhitespaceSplit(WhitespaceSplit), words.clone().into()];
    pipeline.with_pre_tokenizer(Some(Sequence::new(steps)));
    pipeline.with_decoder(Some(words));
    Ok(pipeline)
}

/// The library follows SentencePiece's trie without looking where it leads: everything that a text can reach must lie
/// inside. Format: the trie's bytes as u32, its units, and the replacements that the leaves point into.
fn check_charsmap(bytes: &[u8]) -> Result<(), String> {
    let outside = || "precompiled_charsmap leads outside itself".to_owned();
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(outside)?;
    let size = u32::from_le_bytes(*size) as usize;
    let trie = rest.get(..size).filter(|trie| !trie.is_empty() && trie.len().is_multiple_of(4)).ok_or_else(outside)?;
    let texts = std::str::from_utf8(&rest[size..]).map_err(|_| "precompiled_charsmap is no text".to_owned())?;
    let units: Vec<usize> = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let mut is_seen = vec![false; units.len()];
    let mut open = vec![0];
    while let Some(place) = open.pop() {
        if std::mem::replace(&mut is_seen[place], true) {
            continue;
        }
        let base = place ^ offset(units[place]);
        // Children stand within 256 places of their base; which of them a text looks at is not known.
        if base | 0xff >= units.len() {
            return Err(outside());
        }
        let has_leaf = place != 0 && (units[place] >> 8) & 1 == 1;
        if has_leaf && !texts.is_char_boundary(units[base] & ((1 << 31) - 1)) {
            return Err(outside());
        }
        open.extend((1..=0xff).filter(|byte| units[base ^ byte] & ((1 << 31) | 0xff) == *byte).map(|byte| base ^ byte));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_charsmap;

    #[test]
    fn rules_that_lead_outside_are_refused() {
        let map = |units: &[u32], texts: &[u8]| {
            let mut bytes = (4 * units.len() as u32).to_le_bytes().to_vec();
            units.iter().for_each(|unit| bytes.extend(unit.to_le_bytes()));
            bytes.extend_from_slice(texts);
            bytes
        };
        // The root's base is 0, `a` is a leaf whose value stands at the base that it names.
        let mut units = vec![0_u32; 512];
        let a = usize::from(b'a');
        units[a] = u32::from(b'a') | 1 << 8 | (256 << 10);
        units[a ^ 256] = 2;
        assert_eq!(check_charsmap(&map(&units, b"x\0y\0")), Ok(()));
        let value = |value: u32| {
            let mut units = units.clone();
            units[a ^ 256] = value;
            map(&units, "é\0y\0".as_bytes())
        };
        assert_eq!(check_charsmap(&value(3)), Ok(()));
        let far = {
            let mut units = units.clone();
            units[a] = u32::from(b'a') | (4096 << 10);
            map(&units, b"")
        };
        for (what, bytes) in [
            ("nothing", vec![]),
            ("no units", map(&[], b"")),
            ("a trie that is cut short", map(&units, b"")[..90].to_vec()),
            ("a root without room", map(&units[..200], b"")),
            ("no text", map(&units, &[0xff])),
            ("within a character", value(1)),
            ("beyond the texts", value(90)),
            ("beyond the trie", far),
        ] {
            assert!(check_charsmap(&bytes).is_err(), "{what}");
        }
    }
}
