//! How many tokens a text has: asked of the server, of a tokenizer file, or estimated from what the server reported.

use std::path::Path;

use sconce_vocabulary::error::{Error, Result};
use serde_json::json;
use tokenizers::Tokenizer;

use crate::load::{ApiKind, Client, RequestShape};
use crate::random::Random;

/// Common English words: one token each in most vocabularies.
const WORDS: &str = "time year people way day man thing woman life child world school state family student group country \
    problem hand part place case week company system program question work government number night point home water \
    room mother area money story fact month lot right study book eye job word business issue side kind head house \
    service friend father power hour game line end member law car city community name president team minute idea kid \
    body information back parent face others level office door health person art war history party result change \
    morning reason research girl guy moment air teacher force education";

/// What servers call the text to count: vLLM and Sconce, then llama-server.
pub const TEXT_FIELDS: [&str; 2] = ["prompt", "content"];

/// Where token counts come from.
pub enum Counter<'a> {
    /// The server's `/tokenize`. `field` is what it calls the text.
    Server {
        client: &'a Client,
        model: String,
        field: &'static str,
    },
    File(Box<Tokenizer>),
    /// So many tokens a word, from what the server reported for two prompts.
    Words {
        tokens_per_word: f64,
    },
}

impl<'a> Counter<'a> {
    fn of_file(path: &Path) -> Result<Self> {
        let wrong = |why| {
            Error::invalid("--tokenizer", format!("--tokenizer: {}: {why}; name a tokenizer.json", path.display()))
        };
        let mut tokenizer = Tokenizer::from_file(path).map_err(wrong)?;
        // Files of embedding models bring every text to one length.
        tokenizer.with_padding(None).with_truncation(None).map_err(wrong)?;
        Ok(Self::File(Box::new(tokenizer)))
    }

    /// The tokenizer file where one is named, else the server's `/tokenize`, else a calibration.
    pub async fn choose(client: &'a Client, shape: &RequestShape, file: Option<&Path>) -> Result<Self> {
        if let Some(path) = file {
            return Self::of_file(path);
        }
        for field in TEXT_FIELDS {
            let server = Self::Server { client, model: shape.model.clone(), field };
            // A server that does not know the field may answer with success and no tokens.
            if server.count("a b").await.is_ok_and(|tokens| tokens > 0) {
                return Ok(server);
            }
        }
        Self::calibrate(client, shape).await
    }

    async fn calibrate(client: &Client, shape: &RequestShape) -> Result<Self> {
        let mut random = Random::new(0);
        let mut reported = [0.0; 2];
        const SIZES: [usize; 2] = [40, 160];
        for (size, tokens) in SIZES.into_iter().zip(&mut reported) {
            let prompt = words(&mut random, size);
            let body = match shape.kind {
                ApiKind::Chat => json!({"model": shape.model, "messages": [{"role": "user", "content": prompt}],
                    shape.max_tokens_field: 1}),
                ApiKind::Completions => json!({"model": shape.model, "prompt": prompt, shape.max_tokens_field: 1}),
            };
            let (status, answer) = client.json("POST", &shape.path, Some(&body)).await.map_err(|failure| {
                Error::invalid("--url", format!("--url: the first request failed: {}", failure.message))
            })?;
            if status != 200 {
                let why = answer["error"]["message"].as_str().unwrap_or("no reason given").to_owned();
                return Err(Error::invalid("--url", format!("--url: the first request got {status}: {why}")));
            }
            *tokens = answer["usage"]["prompt_tokens"].as_f64().ok_or_else(|| {
                let why = "--tokenizer: the server has no /tokenize and reports no usage; name a tokenizer.json";
                Error::invalid("--tokenizer", why)
            })?;
        }
        // The difference has nothing of the template in it.
        let tokens_per_word = (reported[1] - reported[0]) / (SIZES[1] - SIZES[0]) as f64;
        if tokens_per_word <= 0.0 {
            let why = "--tokenizer: the server reports the same usage for prompts of any length; name a tokenizer.json";
            return Err(Error::invalid("--tokenizer", why));
        }
        Ok(Self::Words { tokens_per_word })
    }

    /// How it counts, for the report.
    pub fn describe(&self) -> String {
        match self {
            Self::Server { .. } => "input lengths are exact by the server's /tokenize".to_owned(),
            Self::File(_) => "input lengths are exact by the tokenizer file".to_owned(),
            Self::Words { tokens_per_word } => format!(
                "input lengths are estimates of {tokens_per_word:.2} tokens a word, from the usage that the server reports"
            ),
        }
    }

    pub async fn count(&self, text: &str) -> Result<u32> {
        match self {
            Self::Server { client, model, field } => {
                let body = json!({"model": model, *field: text, "add_special_tokens": false});
                let (status, answer) = client
                    .json("POST", "/tokenize", Some(&body))
                    .await
                    .map_err(|failure| Error::internal(format!("/tokenize: {}", failure.message)))?;
                let count = answer["count"].as_u64().or_else(|| Some(answer["tokens"].as_array()?.len() as u64));
                match count {
                    Some(count) if status == 200 => Ok(count as u32),
                    _ => Err(Error::internal(format!("/tokenize: status {status}; name a --tokenizer file"))),
                }
            }
            Self::File(tokenizer) => {
                let encoded = tokenizer.encode(text, false);
                let encoded = encoded.map_err(|why| Error::internal(format!("the tokenizer failed: {why}")))?;
                Ok(encoded.len() as u32)
            }
            Self::Words { tokens_per_word } => Ok((text.split_whitespace().count() as f64 * tokens_per_word) as u32),
        }
    }

    /// Random words of so many tokens, and how many they really are.
    pub async fn text(&self, random: &mut Random, tokens: u32) -> Result<(String, u32)> {
        if let Self::Words { tokens_per_word } = self {
            let count = (f64::from(tokens) / tokens_per_word).round().max(1.0);
            return Ok((words(random, count as usize), tokens));
        }
        let mut text = words(random, tokens as usize);
        let mut best = (u32::MAX, String::new(), 0);
        // Each round comes closer by the tokens a character that it found; words of one token need two rounds.
        for _ in 0..TRIES {
            let found = self.count(&text).await?;
            if found.abs_diff(tokens) < best.0 {
                best = (found.abs_diff(tokens), text.clone(), found);
            }
            if found == tokens {
                break;
            }
            if found < tokens {
                let missing = (tokens - found) as usize;
                // Words overshoot where each is several tokens: the last few come as letters.
                let per_word = f64::from(found.max(1)) / text.split(' ').count() as f64;
                match (missing as f64 / per_word) as usize {
                    0 => text.extend(std::iter::repeat_n(" a", missing.div_ceil(2))),
                    count => text = text + " " + &words(random, count),
                }
            } else if text.len() < 2 {
                break;
            } else {
                let keep = text.len() as f64 * f64::from(tokens) / f64::from(found);
                let mut keep = (keep.round() as usize).clamp(1, text.len() - 1);
                while !text.is_char_boundary(keep) {
                    keep -= 1;
                }
                text.truncate(keep);
            }
        }
        Ok((best.1, best.2))
    }
}

const TRIES: usize = 24;

/// So many random words. Each prompt begins with another, so that none is the prefix of a second by chance.
pub fn words(random: &mut Random, count: usize) -> String {
    let list: Vec<&str> = WORDS.split_whitespace().collect();
    let mut text = String::with_capacity(count * 6);
    for at in 0..count {
        if at > 0 {
            text.push(' ');
        }
        text.push_str(list[random.below(list.len())]);
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn tokenizer(model: serde_json::Value, pre: serde_json::Value) -> Counter<'static> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let padding = json!({
            "strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "x",
        });
        let truncation = json!({"direction": "Right", "max_length": 128, "strategy": "LongestFirst", "stride": 0});
        let json = json!({
            "version": "1.0", "model": model, "pre_tokenizer": pre, "added_tokens": [], "padding": padding,
            "truncation": truncation,
        });
        std::fs::write(file.path(), json.to_string()).expect("written");
        Counter::of_file(file.path()).expect("a tokenizer")
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
    }

    /// A token a word, and a token a character: the two ends of real vocabularies.
    #[test]
    fn texts_have_exactly_the_tokens_asked_for() {
        let by_word =
            tokenizer(json!({"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}), json!({"type": "Whitespace"}));
        let by_letter = tokenizer(
            json!({"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}),
            json!({"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false}),
        );
        let mut random = Random::new(1);
        for (name, counter) in [("word", by_word), ("letter", by_letter)] {
            for tokens in [1, 2, 7, 100, 513] {
                let (text, counted) = block_on(counter.text(&mut random, tokens)).expect("a text");
                assert_eq!(
                    (counted, block_on(counter.count(&text)).expect("a count")),
                    (tokens, tokens),
                    "{name}: {text}"
                );
            }
        }
    }

    /// Counts the words of `content`, as llama-server does: it knows no `prompt`, and says so with no tokens.
    pub fn serve_content(listener: &std::net::TcpListener) -> std::io::Result<()> {
        use std::io::{BufRead, BufReader, Read, Write};
        for socket in listener.incoming() {
            let mut reader = BufReader::new(socket?);
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line)? > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().map_err(std::io::Error::other)?;
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let body: serde_json::Value = serde_json::from_slice(&body)?;
            let words = body["content"].as_str().map_or(0, |text| text.split_whitespace().count());
            let answer = json!({"tokens": vec![7; words]}).to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
            reader.get_mut().write_all((head + &answer).as_bytes())?;
        }
        Ok(())
    }

    #[test]
    fn a_server_that_calls_the_text_content_counts_too() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        std::thread::spawn(move || serve_content(&listener));
        let endpoint = crate::http::Endpoint::resolve(&url, &[]).expect("an address");
        let shape = RequestShape {
            kind: ApiKind::Chat,
            path: "/v1/chat/completions".into(),
            model: "m".into(),
            ignore_eos: true,
            max_tokens_field: "max_tokens",
            extra: serde_json::Map::new(),
            timeout: std::time::Duration::from_secs(20),
        };
        let counted = crate::load::control(&endpoint, async |client| {
            let counter = Counter::choose(client, &shape, None).await?;
            let (text, counted) = counter.text(&mut Random::new(3), 57).await?;
            Ok((counter.describe(), counted, text.split_whitespace().count()))
        });
        let (how, counted, words) = counted.expect("counts");
        assert_eq!((counted, words), (57, 57));
        assert!(how.contains("/tokenize"), "{how}");
    }
}
