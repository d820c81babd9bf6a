//! Text for models that have none (`sim`, `dummy:NAME`): every byte is a token, every further id a numbered word.

use super::text::Parts;
use crate::error::Result;
use crate::pool::local::SamplingDefaults;
use crate::text::{ChatTemplate, GgufVocab, TemplateSource, Tokenizer};

const BYTES: usize = 256;
const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// All bytes and the three special tokens.
pub const SMALLEST_VOCABULARY: usize = BYTES + SPECIALS.len();

/// GGUF's token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A tokenizer of exactly `size` ids (at least `SMALLEST_VOCABULARY`) with a ChatML template.
pub fn vocabulary(size: usize) -> Result<Parts> {
    let mut tokens: Vec<String> = byte_symbols().map(String::from).collect();
    let mut types = vec![NORMAL; BYTES];
    for special in SPECIALS {
        tokens.push(special.to_owned());
        types.push(CONTROL);
    }
    for id in tokens.len()..size {
        // U+0120 is a space in byte-level BPE.
        tokens.push(format!("\u{120}w{id}"));
        types.push(NORMAL);
    }
    let end = (BYTES + 2) as u32;
    let tokenizer = Tokenizer::from_gguf(GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens,
        types,
        bos: Some(BYTES as u32),
        eos: Some(end),
        add_bos: Some(false),
        ..GgufVocab::default()
    })?;
    let template = ChatTemplate::compile(TemplateSource::new(TEMPLATE, tokenizer.special_tokens().clone()))?;
    Ok(Parts { tokenizer, template: Some(template), defaults: SamplingDefaults::default() })
}

/// GPT-2's printable stand-ins for the 256 bytes, in byte order: printable Latin-1 stands for itself, the others are
/// numbered from U+0100 on.
fn byte_symbols() -> impl Iterator<Item = char> {
    let mut hidden = 0;
    (0..=255_u8).map(move |byte| {
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte);
        }
        hidden += 1;
        char::from_u32(0x100 + hidden - 1).expect("U+0100 to U+0143 are characters")
    })
}
