//! What a server says of the tokens of a prompt: their logprobs, and what it would have written instead.

use sconce_vocabulary::error::{Error, Result};
use serde_json::{Value, json};

use crate::args::{DatasetName, ServerArgs};
use crate::dataset::TEXT_FIELDS;
use crate::http::Endpoint;
use crate::load::{self, ApiKind, Client};

/// One token of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub token: String,
    pub logprob: f64,
    /// The most likely token there.
    pub best: String,
    /// Characters of the prompt before it.
    pub offset: usize,
}

/// A text, window by window, without the first token of each, which nothing predicts.
pub struct Scored {
    pub windows: Vec<Vec<Token>>,
    pub bytes: usize,
}

impl Scored {
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }
}

/// A server that is asked for logprobs.
pub struct Source {
    endpoint: Endpoint,
    path: String,
    model: String,
}

impl Source {
    pub fn open(url: &str, server: &ServerArgs, model: Option<&str>) -> Result<Self> {
        let endpoint = Endpoint::resolve(url, &server.headers()?)?;
        let shape = server.shape(DatasetName::Random)?;
        let path = if shape.kind == ApiKind::Completions { shape.path } else { "/v1/completions".to_owned() };
        let model = match model {
            Some(model) => model.to_owned(),
            None => load::control(&endpoint, async |client| {
                let (_, list) =
                    client.json("GET", "/v1/models", None).await.map_err(|failure| asked(&failure.message))?;
                let id = list["data"][0]["id"].as_str().map(str::to_owned);
                id.ok_or_else(|| Error::invalid("--model", "--model: the server lists no model; name one"))
            })?,
        };
        Ok(Self { endpoint, path, model })
    }

    /// In windows of so many tokens, by the server's own tokenizer.
    pub fn score_text(&self, text: &str, window_tokens: u32, limit: u32) -> Result<Scored> {
        load::control(&self.endpoint, async |client| {
            let ids = self.ids(client, text).await?;
            let mut scored = Scored { windows: Vec::new(), bytes: 0 };
            for window in ids.chunks(window_tokens as usize).take(limit as usize).filter(|window| window.len() > 1) {
                let tokens = self.prompt(client, json!(window)).await?;
                // What is scored is all but the first token.
                let shown: usize = tokens.iter().map(|token| token.token.len()).sum();
                scored.bytes += shown;
                scored.windows.push(tokens);
            }
            if scored.windows.is_empty() {
                return Err(Error::invalid("--file", "--file: fewer than two tokens in it"));
            }
            Ok(scored)
        })
    }

    /// A text as the server's tokens, whatever it calls the text.
    async fn ids(&self, client: &Client, text: &str) -> Result<Vec<Value>> {
        let mut last = 0;
        for field in TEXT_FIELDS {
            let body = json!({"model": self.model, field: text, "add_special_tokens": false});
            let (status, mut answer) =
                client.json("POST", "/tokenize", Some(&body)).await.map_err(|failure| asked(&failure.message))?;
            last = status;
            // A server that does not know the field may answer with success and no tokens.
            if let Value::Array(ids) = answer["tokens"].take()
                && status == 200
                && !ids.is_empty()
            {
                return Ok(ids);
            }
        }
        let why = if last == 200 {
            "--file: there is no token in it".to_owned()
        } else {
            format!("--file: the server must have /tokenize to cut windows; it answered {last}")
        };
        Err(Error::invalid("--file", why))
    }

    /// Each of some prompts.
    pub fn score_prompts(&self, prompts: &[String]) -> Result<Vec<Vec<Token>>> {
        load::control(&self.endpoint, async |client| {
            let mut all = Vec::with_capacity(prompts.len());
            for prompt in prompts {
                all.push(self.prompt(client, json!(prompt)).await?);
            }
            Ok(all)
        })
    }

    async fn prompt(&self, client: &Client, prompt: Value) -> Result<Vec<Token>> {
        // A token is generated because some servers insist; what belongs to the prompt is told by its count.
        let body = json!({"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": true, "logprobs": 1});
        let (status, answer) =
            client.json("POST", &self.path, Some(&body)).await.map_err(|failure| asked(&failure.message))?;
        if status != 200 {
            let why = answer["error"]["message"].as_str().unwrap_or("no reason given").to_owned();
            return Err(Error::invalid("A", format!("{} answered {status}: {why}", self.endpoint.authority)));
        }
        tokens_of(&answer).ok_or_else(|| {
            let why = format!("{} reports no logprobs of prompts (echo with logprobs)", self.endpoint.authority);
            Error::invalid("A", why)
        })
    }
}

fn asked(why: &str) -> Error {
    Error::invalid("A", format!("the server does not answer: {why}"))
}

/// The scored tokens of the prompt in a completion with `echo`.
fn tokens_of(answer: &Value) -> Option<Vec<Token>> {
    let logprobs = &answer["choices"][0]["logprobs"];
    let (tokens, values) = (logprobs["tokens"].as_array()?, logprobs["token_logprobs"].as_array()?);
    let count = answer["usage"]["prompt_tokens"].as_u64()? as usize;
    // Without echo only the generated token is there.
    if tokens.len() < count || values.len() < count {
        return None;
    }
    let mut found = Vec::with_capacity(count);
    let mut offset = 0;
    for at in 0..count {
        let token = tokens[at].as_str()?;
        let start = logprobs["text_offset"][at].as_u64().map_or(offset, |offset| offset as usize);
        offset += token.chars().count();
        // The first has none.
        let Some(logprob) = values[at].as_f64() else { continue };
        let top = logprobs["top_logprobs"][at].as_object();
        let best = top.and_then(|top| {
            top.iter().max_by(|left, right| {
                left.1.as_f64().unwrap_or(f64::MIN).total_cmp(&right.1.as_f64().unwrap_or(f64::MIN))
            })
        });
        let best = best.map_or_else(String::new, |(token, _)| token.clone());
        found.push(Token { token: token.to_owned(), logprob, best, offset: start });
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_calls_the_text_content_cuts_it_too() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        std::thread::spawn(move || crate::dataset::serve_content(&listener));
        let endpoint = Endpoint::resolve(&url, &[]).expect("an address");
        let source = Source { endpoint, path: "/v1/completions".into(), model: "m".into() };
        let cut = |text: &'static str| load::control(&source.endpoint, async |client| source.ids(client, text).await);
        assert_eq!(cut("three words here").expect("ids"), vec![json!(7); 3]);
        let why = cut(" ").expect_err("nothing to score").message;
        assert!(why.contains("no token"), "{why}");
    }

    #[test]
    fn prompts_are_told_from_answers() {
        let answer = json!({
            "choices": [{"logprobs": {
                "tokens": ["a", "b", "c"], "token_logprobs": [null, -1.5, -0.1], "text_offset": [0, 1, 2],
                "top_logprobs": [null, {"x": -0.5, "b": -1.5}, {"c": -0.1}],
            }}],
            "usage": {"prompt_tokens": 2},
        });
        let tokens = tokens_of(&answer).expect("logprobs");
        assert_eq!(tokens, [Token { token: "b".into(), logprob: -1.5, best: "x".into(), offset: 1 }]);
        assert_eq!(tokens_of(&json!({"choices": [{"logprobs": null}], "usage": {"prompt_tokens": 2}})), None);
    }
}
