//! What rendering a conversation costs, template by template: once a request.
//!
//! usage: cargo bench -p sconce-text --bench templates

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use sconce_text::template::{ChatTemplate, Now, TemplateSource};
use sconce_text::tokenizer::SpecialTokens;
use sconce_vocabulary::request::{Chat, Content, Message};

const NAMES: [&str; 4] = ["chatml", "llama31_tools", "qwen25_tools", "gemma"];

fn conversation(turns: usize) -> Chat {
    let text = "The quick brown fox jumps over the lazy dog, and then it does so again. ".repeat(4);
    let message = |at: usize| Message {
        role: if at.is_multiple_of(2) { "user" } else { "assistant" }.to_owned(),
        content: Content::Text(text.clone()),
        ..Message::default()
    };
    Chat { messages: (0..2 * turns - 1).map(message).collect(), add_generation_prompt: true, ..Chat::default() }
}

fn templates(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates");
    let now = Now { unix_s: 1_741_529_107, utc_offset_s: 0 };
    let mut group = criterion.benchmark_group("templates");
    for name in NAMES {
        let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).expect("a template");
        let compile = || ChatTemplate::compile(TemplateSource::new(source.clone(), SpecialTokens::default()));
        let template = compile().expect("it compiles");
        for turns in [1, 32] {
            let chat = conversation(turns);
            group.bench_function(format!("{name}, {turns} turns"), |bencher| {
                bencher.iter(|| template.prompt(black_box(&chat), now).expect("it renders"));
            });
        }
        group.bench_function(format!("{name}, compiled"), |bencher| bencher.iter(|| compile().expect("it compiles")));
    }
    group.finish();
}

criterion_group!(benches, templates);
criterion_main!(benches);
