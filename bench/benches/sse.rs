//! What a chunk of a stream costs the load generator: events out of bytes, and their meaning.
//!
//! usage: cargo bench -p sconce-bench --bench sse

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sconce_bench::answer::Answer;
use sconce_bench::http::Events;

const EVENT: &[u8] = b"data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
    \"model\":\"smollm2:135m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n";

fn sse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sse");
    for count in [1_usize, 16] {
        let wire = EVENT.repeat(count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("events of a read, {count}"), |bencher| {
            let mut events = Events::with_capacity(wire.len());
            bencher.iter(|| {
                events.bytes.extend_from_slice(black_box(&wire));
                while let Some(data) = events.next_data() {
                    black_box(data.len());
                }
            });
        });
        group.bench_function(format!("events and their meaning, {count}"), |bencher| {
            let mut events = Events::with_capacity(wire.len());
            let mut answer = Answer::default();
            bencher.iter(|| {
                events.bytes.extend_from_slice(black_box(&wire));
                while let Some(data) = events.next_data() {
                    black_box(answer.take(data, false)).expect("a chunk");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, sse);
criterion_main!(benches);
