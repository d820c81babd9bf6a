//! Texts for embedding models: one or a pair, with their token types, cut to a length where that is wanted.

use super::{Tokenizer, fenced};
use sconce_vocabulary::error::{Error, Result};

/// A text, or a pair of texts, as one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// 0 for the first text, and for what the tokenizer says of the second.
    pub types: Vec<u32>,
    /// Which text each token is of; `None` for those that the model's own template adds. `[tokens]`
    texts: Vec<Option<usize>>,
}

/// What is longer than a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// So many tokens.
    Tokens(usize),
    /// More than this many; the text was not read to its end.
    MoreThan(usize),
}

impl Tokenizer {
    /// One sequence of at most `tokens_max` tokens, the template's own included, or how long it is.
    pub fn encode_whole(
        &self,
        texts: (&str, Option<&str>),
        add_special: bool,
        tokens_max: usize,
    ) -> Result<Result<Encoded, Excess>> {
        for text in std::iter::once(texts.0).chain(texts.1) {
            if self.beginning(text, tokens_max)?.len() < text.len() {
                return Ok(Err(Excess::MoreThan(tokens_max.saturating_mul(2))));
            }
        }
        let encoded = self.encode_texts(texts, add_special)?;
        let tokens = encoded.ids.len();
        Ok(if tokens <= tokens_max { Ok(encoded) } else { Err(Excess::Tokens(tokens)) })
    }

    /// As [`Self::encode_whole`], cut at the end as Transformers does (`longest_first` where there are two texts); the
    /// template's own tokens stay.
    pub fn encode_cut(&self, texts: (&str, Option<&str>), add_special: bool, tokens_max: usize) -> Result<Encoded> {
        let first = self.beginning(texts.0, tokens_max)?;
        let second = texts.1.map(|text| self.beginning(text, tokens_max)).transpose()?;
        let mut encoded = self.encode_texts((first, second), add_special)?;
        encoded.cut(tokens_max);
        Ok(encoded)
    }

    /// The text, or as much of its beginning as has clearly more than `tokens_max` tokens: more than twice as many. The
    /// library takes some 200 bytes of memory a byte of text, and a text that is cut or refused must not cost that.
    fn beginning<'t>(&self, text: &'t str, tokens_max: usize) -> Result<&'t str> {
        // A query may be cut again for each of thousands of documents, so little of it is looked at.
        const BEGINNING_BYTES_MIN: usize = 4 * 1024;
        let mut bytes = tokens_max.saturating_mul(8).max(BEGINNING_BYTES_MIN);
        while bytes < text.len() {
            let beginning = &text[..text.floor_char_boundary(bytes)];
            if self.encode(beginning, false)?.len() / 2 > tokens_max {
                return Ok(beginning);
            }
            bytes = bytes.saturating_mul(4);
        }
        Ok(text)
    }

    fn encode_texts(&self, texts: (&str, Option<&str>), add_special: bool) -> Result<Encoded> {
        let encoding = match texts {
            (first, None) => fenced(|| self.pipeline.encode_fast(first, add_special)),
            (first, Some(second)) => fenced(|| self.pipeline.encode_fast((first, second), add_special)),
        };
        let encoding =
            encoding.map_err(|error| Error::internal(format!("the tokenizer failed on the text: {error}")))?;
        let mut encoded = Encoded {
            ids: encoding.get_ids().to_vec(),
            types: encoding.get_type_ids().to_vec(),
            texts: encoding.get_sequence_ids(),
        };
        if add_special {
            encoded.surround(&self.prefix, &self.suffix);
        }
        Ok(encoded)
    }
}

impl Encoded {
    /// Adds what a tokenizer without a template of its own puts around a text.
    fn surround(&mut self, prefix: &[u32], suffix: &[u32]) {
        let last = self.types.last().copied().unwrap_or(0);
        self.ids.splice(..0, prefix.iter().copied());
        self.types.splice(..0, prefix.iter().map(|_| 0));
        self.texts.splice(..0, prefix.iter().map(|_| None));
        self.ids.extend_from_slice(suffix);
        self.types.extend(suffix.iter().map(|_| last));
        self.texts.extend(suffix.iter().map(|_| None));
    }

    fn cut(&mut self, tokens_max: usize) {
        if self.ids.len() <= tokens_max {
            return;
        }
        let count = |text| self.texts.iter().filter(|of| **of == Some(text)).count();
        let (first, second) = (count(0), count(1));
        let room = tokens_max.saturating_sub(self.ids.len() - first - second);
        let mut left = kept(first, second, room);
        let keep: Vec<bool> = self
            .texts
            .iter()
            .map(|text| match text {
                None => true,
                Some(text) => {
                    let left = if *text == 0 { &mut left.0 } else { &mut left.1 };
                    let is_kept = *left > 0;
                    *left = left.saturating_sub(1);
                    is_kept
                }
            })
            .collect();
        let mut places = keep.iter();
        self.ids.retain(|_| *places.next().expect("a place for each"));
        let mut places = keep.iter();
        self.types.retain(|_| *places.next().expect("a place for each"));
        let mut places = keep.iter();
        self.texts.retain(|_| *places.next().expect("a place for each"));
    }
}

/// How much of two texts is kept in `room` tokens: the longer one is cut until both have half of it.
fn kept(first: usize, second: usize, room: usize) -> (usize, usize) {
    if first + second <= room {
        return (first, second);
    }
    let (shorter, longer) = (first.min(second), first.max(second));
    let (shorter, longer) = if shorter <= room - shorter.min(room) {
        (shorter, longer.min(room - shorter))
    } else {
        (room / 2, room - room / 2)
    };
    if first <= second { (shorter, longer) } else { (longer, shorter) }
}

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn the_longer_text_is_cut_first() {
        for (first, second, room, expected) in [
            (3, 4, 7, (3, 4)),
            (3, 4, 6, (3, 3)),
            (3, 40, 10, (3, 7)),
            (40, 3, 10, (7, 3)),
            (40, 30, 11, (6, 5)),
            (30, 40, 11, (5, 6)),
            (9, 0, 4, (4, 0)),
            (5, 5, 0, (0, 0)),
        ] {
            assert_eq!(kept(first, second, room), expected, "{first} and {second} in {room}");
        }
    }
}
