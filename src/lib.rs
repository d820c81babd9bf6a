//! Sconce serves open-weight models on your own hardware behind the OpenAI and Anthropic APIs.
//!
//! # One request, as data
//!
//! | hop | value | made in | runs on |
//! |---|---|---|---|
//! | 1 | HTTP bytes | axum | tokio |
//! | 2 | wire struct, then [`request::Request`] or [`error::Error`] naming the field | `api/{openai/*,anthropic}/convert.rs` | tokio |
//! | 3 | a decision: members in the order of attempts; then a permit, one place in a bounded queue, held by the event stream | `route/` (pure), `pool/dispatch`, `pool/admission.rs` | tokio |
//! | 4 | prompt token ids (rendered and tokenised once) and resolved parameters | `pool/local/prepare.rs` | tokio, or the blocking pool for long prompts |
//! | 5 | [`engine::Submit`], with a token filter where the answer has a form (`pool/local/constraint.rs`), through a bounded channel | `engine/src/handle.rs` | engine thread from here on |
//! | 6 | a step: how many tokens of which sequence, in which blocks | `engine/src/scheduler` (pure) | engine |
//! | 7 | `BatchInput`: flat arrays | `engine/src/batch.rs` (pure) | engine |
//! | 8 | logits of the sampled rows | `models` on `kernels` | engine + device |
//! | 9 | sampled tokens, then [`engine::Progress`] per sequence | `engine/src/sampler`, `scheduler.commit` | engine |
//! | 10 | [`request::Event`]s: text, finish, usage | `pool/local/{choice,stream}.rs` on `text` | the request's task |
//! | 11 | SSE or one JSON document | `api/openai/*`, `api/anthropic` | tokio |
//!
//! A LoRA adapter is a model of its own by name (`pool/local/adapters.rs`); from hop 5 on its id travels with the sequence, and
//! `models/src/adapter` adds what it says to the rows of a batch that name it.
//!
//! An embedding or reranking request takes the same way up to hop 4 as a [`request::EmbedRequest`] (`pool/local/embed.rs`),
//! then one job in `engine/src/embed`: whole texts in ragged batches, no KV cache, one answer.
//!
//! Dropping the response drops the receivers; the engine sees it at its next step and frees the sequences. A full
//! channel parks that sequence, never the step.
//!
//! # Rooms
//!
//! - [`request`], [`error`] (package `vocabulary/`): the words that every room shares. They use nothing of ours.
//! - [`config`]: flags, file and environment, checked.
//! - [`cli`]: one file a command.
//! - [`api`]: HTTP. Knows the pool and the vocabulary, not the engine. `api/openapi` describes it, from the types;
//!   `api/web` are the pages for people.
//!   `api/serve` gives each connection to one of a few threads, each with a runtime of its own: what a request does stays
//!   there, and what computes for long goes to blocking threads or to the engine's.
//! - [`pool`]: members that can answer, routes over them, admission in front of each. `pool/dispatch` makes the attempts that
//!   `sconce-route` decides on; `pool/local` joins engine and text, `pool/remote` is a hosted model; `pool/lifecycle` brings
//!   models into memory and out of it.
//! - [`text`] (package `text/`): tokenizers, chat templates, detokenisation, stop strings, grammars, and the parsers that part an answer
//!   into reasoning, text and function calls. No I/O, no clock.
//! - [`engine`] (package `engine/`): scheduler, blocks, sampler (pure), and the one thread that runs them.
//! - `sconce-providers` (package `providers/`): hosted providers behind the vocabulary. One model at one provider each: a
//!   request goes out in its wire format, events come back.
//! - `sconce-route` (package `route/`): which member answers, why, and at what price: filters, policies, health, prices,
//!   difficulty. Pure: the clock and the seed are arguments.
//! - `sconce-worker` (package `worker/`): other engines as members. Starts, watches and ends any program that serves the OpenAI
//!   API; its states are a pure machine, its processes stand behind a guard. `pool/worker.rs` is the member.
//! - [`store`]: what outlives its request, in SQLite with one thread each: answers that clients may come back to
//!   (`/v1/responses`), a ledger of what was used, and a folder of files and batches. `api/openai/batches` runs those through the same handlers.
//! - [`hub`]: a model reference becomes local files.
//! - [`device`] (package `device/`): what hardware is here, read from roots that tests replace; its `fit` says what fits, as a
//!   pure function.
//! - [`launch`]: assembly. The only place where hub, models, engine and text meet.
//! - [`bench`]: the engine and the machine, measured. `sconce-bench` measures any server from outside, and makes reports.
//! - [`telemetry`]: logs and metrics. `sconce-otel` (package `otel/`): the same requests as OpenTelemetry traces and metrics.
//! - `sconce-models`: spec, weights, one file an architecture family, and `embedder/` for models that make vectors.
//!   `sconce-kernels`: one function an operation, on the CPU. `sconce-cuda` (package `cuda/`): NVIDIA GPUs, their kernels, and a
//!   stand-in that runs the same kernels on the CPU; `models/src/cuda` is the decoder there, step by step recorded as graphs.
//!   `sconce-pjrt` (package `pjrt/`, feature `pjrt`, experimental): plain decoders as StableHLO text through a PJRT plugin.
//!
//! Rooms that need little of the others are packages, so that work on one builds only that one; this package puts
//! them together. `tests/architecture.rs` enforces who may import whom.
//!
//! # Invariants
//!
//! 1. One OS thread owns all mutable inference state of a replica. Nothing of it is shared, so nothing of it is locked. A model
//!    shared out among GPUs has a thread a rank: the engine's is the first, and the others own their GPU's part and get each batch.
//! 2. `schedule` and `commit` are pure: same inputs and seed, same outputs. A bug that the simulator finds replays from
//!    its seed.
//! 3. There are no prefill and decode phases, only "how many tokens of each sequence this step", under one token
//!    budget. Chunked prefill, prefix hits and preemption are the same mechanism.
//! 4. After each step every KV block is free, cached or owned, counted once; the scheduled tokens are within budget;
//!    waiting + running + parked = live.
//! 5. A request ends in exactly one terminal event, also on panic, cancel, timeout and shutdown.
//! 6. No queue is unbounded; every limit is a named configuration value with its unit.
//! 7. A field that is not implemented is refused by name when it would change the answer, never silently ignored.
//! 8. On the CPU the greedy output of a sequence does not depend on its batch mates nor on how its prompt was chunked.
//! 9. Tests need no network but the package registries, no GPU and no committed weights. A test that cannot run says
//!    "skipped: why".
//! 10. The server opens no accelerator that it was not told to use, and no secret reaches a log.

#![forbid(unsafe_code)]

pub mod api;
pub mod bench;
pub mod cli;
pub mod config;
pub mod hub;
pub mod launch;
pub mod pool;
pub mod store;
pub mod telemetry;

pub use sconce_device as device;
pub use sconce_engine as engine;
pub use sconce_text as text;
pub use sconce_vocabulary::{calendar, error, request};
