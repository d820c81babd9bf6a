//! How hard a prompt is, from 0 to 1, so that easy ones can go to a cheap model.
//!
//! A [`Router`] is an artefact. [`Router::builtin`] comes with this version: the length of the prompt and, with small
//! weights, a few other counts, because little else carries over from one kind of prompts to another.
//! [`fit::fit`] makes one from a user's own outcomes: a regression on features, and what the nearest fitted prompts
//! showed, by the caller's embeddings or, where there are none, by their words. A fitted artefact keeps the built-in score for prompts unlike those it was
//! fitted on: where no neighbour is near, or the prompt looks otherwise than they do, it is the built-in one.
//!
//! Give it the text that asks: the last user message, without the system prompt, the tools or what came before.
//! Embeddings are of the same text, from the embedder that the artefact names. Nothing here reads files.

pub mod curve;
pub mod eval;
pub mod features;
pub mod fit;
mod linear;
mod neighbours;
pub mod outcomes;
mod shape;
mod words;

use serde::{Deserialize, Serialize};

use curve::percentile;
use features::Features;
use linear::Linear;
use neighbours::Neighbours;
use shape::Shape;
use words::Words;

pub use outcomes::Example;

const VERSION: u32 = 2;
const BUILTIN: &str = include_str!("builtin.json");

/// What makes a difficulty of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Router {
    version: u32,
    /// The embedder whose vectors it was fitted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    embedder: Option<Embedder>,
    /// Carries over to any prompt.
    general: Scale,
    /// Holds for prompts like the fitted ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    own: Option<Own>,
    /// The raw score at 0, 1, … 100 percent of the prompts that it was fitted on.
    percentiles: Vec<f64>,
}

/// An embedding model, by the name that the fit was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Embedder {
    pub name: String,
    pub dimensions: usize,
}

/// A regression, brought to mean 0 and deviation 1 over the fitted prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Scale {
    linear: Linear,
    mean: f64,
    deviation: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Own {
    /// Its mean and deviation are those of the sum with what the neighbours say.
    scale: Scale,
    neighbours: Neighbours,
    /// Where the neighbours are compared by words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    words: Option<Words>,
    /// Familiarity below the first is strange, above the second is known; between them it is a matter of degree.
    familiar: (f64, f64),
    shape: Shape,
}

/// A difficulty and what made it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The share of the fitted prompts that are easier: 0 the easiest, 1 the hardest. A threshold of 0.7 sends about three
    /// of ten to the stronger tier, where prompts are like those.
    pub difficulty: f64,
    /// What the difficulty is made of, for comparing finely; without bounds.
    pub raw: f64,
    /// 0 where only the general score counts, 1 where only the fitted one does.
    pub familiarity: f64,
}

impl Router {
    pub fn builtin() -> Self {
        Self::parse(BUILTIN).expect("the built-in artefact is checked by a test")
    }

    pub fn parse(json: &str) -> Result<Self, String> {
        let router: Self = serde_json::from_str(json).map_err(|fault| format!("not a routing artefact: {fault}"))?;
        if router.version != VERSION {
            return Err(format!("version: {} is not read here, only {VERSION}; fit it again", router.version));
        }
        if router.percentiles.len() != 101 || !router.percentiles.is_sorted() {
            return Err("percentiles: 101 in ascending order are needed; fit it again".to_owned());
        }
        let own = router.own.as_ref();
        for scale in own.map(|own| &own.scale).into_iter().chain([&router.general]) {
            scale.check()?;
        }
        let Some(own) = own else { return Ok(router) };
        own.neighbours.check()?;
        own.shape.check()?;
        own.words.as_ref().map_or(Ok(()), Words::check)?;
        let dimensions = match (&own.words, &router.embedder) {
            (Some(_), None) => words::PLACES,
            (None, Some(embedder)) => embedder.dimensions,
            _ => return Err("embedder: either it or words must be there; fit it again".to_owned()),
        };
        if own.neighbours.dimensions() != dimensions {
            return Err("embedder: its dimensions are not those of the neighbours; fit it again".to_owned());
        }
        Ok(router)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain numbers and texts")
    }

    /// The embedder whose vectors [`Router::score`] can use.
    pub fn embedder(&self) -> Option<&Embedder> {
        self.embedder.as_ref()
    }

    /// `embedding` is asked for where there is an [`Router::embedder`]; without it, or with one of other dimensions, only
    /// the general score counts.
    pub fn score(&self, prompt: &str, embedding: Option<&[f32]>) -> Scored {
        let features = Features::of(prompt);
        let (raw, familiarity) = self.raw(prompt, &features, embedding);
        // Few decimals, so that it is read from a log as it was written.
        let difficulty = (self.share_below(raw) * 1e4).round() / 1e4;
        Scored { difficulty, raw, familiarity }
    }

    fn raw(&self, prompt: &str, features: &Features, embedding: Option<&[f32]>) -> (f64, f64) {
        let general = self.general.standardise(self.general.linear.apply(&features.values));
        let Some(own) = &self.own else { return (general, 0.0) };
        let by_words = own.words.as_ref().map(|words| words.vector(prompt));
        let vector = by_words.as_deref().or(embedding).filter(|vector| vector.len() == own.neighbours.dimensions());
        let Some(vector) = vector else { return (general, 0.0) };
        let heard = own.neighbours.hear(vector, None);
        let value = own.scale.linear.apply(&features.values) + heard.value;
        let trust = own.trust(heard.familiarity) * own.shape.likeness(features);
        (general + trust * (own.scale.standardise(value) - general), trust)
    }

    /// Where a raw score stands among the percentiles, linear between them.
    #[allow(clippy::cast_precision_loss)] // at most 101
    fn share_below(&self, raw: f64) -> f64 {
        let above = self.percentiles.partition_point(|percentile| *percentile <= raw);
        if above == 0 {
            return 0.0;
        }
        let Some(next) = self.percentiles.get(above) else { return 1.0 };
        let last = self.percentiles[above - 1];
        ((above - 1) as f64 + (raw - last) / (next - last)) / 100.0
    }

    /// Takes its percentiles from raw scores.
    fn calibrate(&mut self, mut raws: Vec<f64>) {
        raws.sort_by(f64::total_cmp);
        self.percentiles = (0..=100).map(|percent| percentile(&raws, f64::from(percent) / 100.0)).collect();
    }
}

impl Own {
    fn trust(&self, familiarity: f64) -> f64 {
        let (strange, known) = self.familiar;
        ((familiarity - strange) / (known - strange).max(1e-9)).clamp(0.0, 1.0)
    }
}

impl Scale {
    fn standardise(&self, value: f64) -> f64 {
        (value - self.mean) / self.deviation
    }

    /// Over the values that the prompts got.
    fn set(&mut self, values: &[f64]) {
        #[allow(clippy::cast_precision_loss)] // counts
        let count = values.len() as f64;
        self.mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - self.mean).powi(2)).sum::<f64>() / count;
        self.deviation = variance.sqrt().max(1e-9);
    }

    fn check(&self) -> Result<(), String> {
        let linear = &self.linear;
        let names_fit = linear.names.iter().map(String::as_str).eq(features::NAMES);
        let lengths_fit = [linear.means.len(), linear.scales.len(), linear.weights.len()] == [features::COUNT; 3];
        let is_usable = self.deviation > 0.0 && linear.scales.iter().all(|scale| *scale > 0.0);
        if names_fit && lengths_fit && is_usable {
            return Ok(());
        }
        Err("features: these are not the ones of this version; fit it again".to_owned())
    }
}
