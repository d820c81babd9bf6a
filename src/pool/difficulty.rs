//! How hard a prompt is, for routes that go by it: features of the text, and its vector where a local model makes one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sconce_route::score::Router;

use super::member::Task;
use super::node::Node;
use crate::error::{Error, Result};
use crate::request::{EmbedFinish, EmbedInput, EmbedRequest, Overlong, Prompt, Request};

/// A vector that takes longer is done without: the general score remains.
const EMBED_TIMEOUT: Duration = Duration::from_millis(500);

pub struct Scorer {
    router: Router,
    embedder: Option<Arc<Node>>,
}

impl Scorer {
    /// What was fitted, or what is built in. An embedder that the fit names must be a model of this server: the text of
    /// a prompt goes nowhere for a score.
    pub fn new(fitted: Option<&Path>, nodes: &[Arc<Node>]) -> Result<Self> {
        let Some(path) = fitted else { return Ok(Self { router: Router::builtin(), embedder: None }) };
        let wrong = |why: String| Error::invalid("route.fitted", format!("fitted {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|why| wrong(why.to_string()))?;
        let router = Router::parse(&text).map_err(wrong)?;
        let embedder = match router.embedder() {
            None => None,
            Some(wanted) => {
                let answers = |node: &&Arc<Node>| node.is_local() && node.member.card().answers_to(&wanted.name);
                let node = nodes.iter().find(answers).map(Arc::clone);
                let missing = || wrong(format!("it wants vectors of '{}', which is not served here", wanted.name));
                Some(node.ok_or_else(missing)?)
            }
        };
        Ok(Self { router, embedder })
    }

    /// From 0 to 1; `None` where there is no text to tell by.
    pub async fn difficulty(&self, request: &Request) -> Option<f64> {
        let text = asked(&request.prompt)?;
        let vector = match &self.embedder {
            Some(node) => vector(node, &text).await,
            None => None,
        };
        Some(self.router.score(&text, vector.as_deref()).difficulty)
    }
}

/// The text that asks: the last thing that the user said.
fn asked(prompt: &Prompt) -> Option<String> {
    match prompt {
        Prompt::Chat(chat) => {
            let last = chat.messages.iter().rev().find(|message| message.role == "user")?;
            Some(last.content.joined()).filter(|text| !text.is_empty())
        }
        Prompt::Text(text) => Some(text.clone()),
        Prompt::Tokens(_) => None,
    }
}

/// What is asked of an embedder for prompts. A fit and the routes that go by it must ask alike.
pub fn vectors_of(model: &str, prompts: impl IntoIterator<Item = String>) -> EmbedRequest {
    EmbedRequest {
        model: model.to_owned(),
        inputs: prompts.into_iter().map(EmbedInput::Text).collect(),
        label: |_| "messages".to_owned(),
        overlong: Overlong::Cut(None),
        add_special_tokens: true,
        finish: EmbedFinish::default(),
        priority: 0,
    }
}

async fn vector(node: &Node, text: &str) -> Option<Vec<f32>> {
    if !matches!(node.member.card().task, Task::Embed { .. }) {
        return None;
    }
    let _permit = node.admission.admit(1).ok()?;
    let request = vectors_of(&node.name, [text.to_owned()]);
    let made = tokio::time::timeout(EMBED_TIMEOUT, node.member.embed(request)).await;
    made.ok()?.ok().map(|embedded| embedded.values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Chat, Content, Message};

    #[test]
    fn the_last_thing_asked_is_what_counts() {
        let said = |role: &str, text: &str| Message {
            role: role.to_owned(),
            content: Content::Text(text.to_owned()),
            ..Message::default()
        };
        let messages = vec![said("system", "long"), said("user", "one"), said("assistant", "x"), said("user", "two")];
        assert_eq!(asked(&Prompt::Chat(Chat { messages, ..Chat::default() })).as_deref(), Some("two"));
        assert_eq!(asked(&Prompt::Tokens(vec![1])), None);
    }

    #[test]
    fn without_a_fit_the_built_in_score_tells_long_from_short() {
        let scorer = Scorer::new(None, &[]).expect("built in");
        let of = |text: &str| scorer.router.score(text, None).difficulty;
        let hard =
            "A train leaves at 7:15 and travels 212 km. ".repeat(12) + "Prove each step and compute when they meet.";
        assert!(of("Hi") < of(&hard));
    }
}
