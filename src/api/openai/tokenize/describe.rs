//! What the document of endpoints says of tokens.

use serde_json::json;

use crate::api::openapi::{Dialect, Operation};
use crate::api::schema::{Schemas, for_queries};

use super::wire::{
    DetokenizeAnswer, DetokenizeBody, TokenizeAnswer, TokenizeBody, TokenizerInfoAnswer, WhichTokenizer,
};

pub(in crate::api) fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let texts = [
        ("a text", json!({"prompt": "Why is the sky blue?", "return_token_strs": true})),
        ("a conversation", json!({"messages": [{"role": "user", "content": "Why is the sky blue?"}]})),
    ];
    let ids = [("ids", json!({"tokens": [1, 2, 3]}))];
    vec![
        Operation::new("post", "/tokenize", "tokenize")
            .says("Tokens", "Text or a conversation to token ids", "Either `prompt` or `messages`.")
            .guarded(Dialect::OpenAi)
            .body(schemas.read::<TokenizeBody>(), &texts, Dialect::OpenAi)
            .answers("The ids.", schemas.written::<TokenizeAnswer>())
            .refuses(&[403, 503], Dialect::OpenAi),
        Operation::new("post", "/detokenize", "detokenize")
            .says("Tokens", "Token ids to text", "")
            .guarded(Dialect::OpenAi)
            .body(schemas.read::<DetokenizeBody>(), &ids, Dialect::OpenAi)
            .answers("The text.", schemas.written::<DetokenizeAnswer>())
            .refuses(&[403, 503], Dialect::OpenAi),
        Operation::new("get", "/tokenizer_info", "tokenizerInfo")
            .says("Tokens", "Special tokens and the chat template", "")
            .guarded(Dialect::OpenAi)
            .query::<WhichTokenizer>(for_queries())
            .answers("What the tokenizer is.", schemas.written::<TokenizerInfoAnswer>())
            .refuses(&[400, 403, 404, 503], Dialect::OpenAi),
    ]
}
