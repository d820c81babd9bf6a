//! Tokenizers, chat templates, incremental detokenisation and stop strings: text in, ids out, and back. No I/O.
