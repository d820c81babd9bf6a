//! Makes a routing artefact of outcomes: what a prompt gains by the strong model, from its features and its neighbours.

use std::collections::BTreeMap;

use crate::hash::{mix, spread};
use crate::score::features::{COUNT, Features, NAMES};
use crate::score::linear::Linear;
use crate::score::neighbours::Neighbours;
use crate::score::shape::Shape;
use crate::score::words::Words;
use crate::score::{Embedder, Example, Own, Router, Scale, VERSION, percentile};

/// How closely a fit follows its data. The defaults were chosen on data of another kind than they are used on.
#[derive(Debug, Clone, PartialEq)]
pub struct FitOptions {
    /// Penalty on the weights of the features: 0 fits freely, 1 is half of everything.
    pub shrink: f64,
    /// Axes along which embeddings are compared.
    pub axes: usize,
    /// Prompts that are kept as neighbours: what bounds the artefact's size, 64 bytes each and their digits.
    pub points_max: usize,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self { shrink: 0.1, axes: 64, points_max: 8192 }
    }
}

/// Vectors of the examples' prompts, in their order.
#[derive(Debug, Clone, Copy)]
pub struct Embeddings<'a> {
    /// The embedder's name, as the server knows it.
    pub name: &'a str,
    pub vectors: &'a [Vec<f32>],
}

/// The general score: the length, in characters and in distinct words, and little else. Set by hand, in round numbers:
/// each of the small ones helped on most of the outcome sets it was tried on (they are named where results are
/// reported), and none was fitted freely, because what is fitted freely on one kind of prompts misleads on another.
const GENERAL: &[(&str, f64)] = &[
    ("characters", 0.5),
    ("distinct_words", 0.5),
    ("quantities", 0.3),
    ("sentences", 0.2),
    ("negations", 0.1),
    ("questions", 0.1),
];

const EXAMPLES_MIN: usize = 50;
/// Examples of which each is asked what the others say of it, for the scales; all would take minutes and change nothing.
const SAMPLED: usize = 1000;

/// A prompt whose neighbours are as far as those of this share of the fitted prompts is foreign, and wholly familiar from
/// the second share on. Chosen so that a fit does not lose to length on groups that were left out: words tell less than
/// embeddings, so they are trusted less.
const FAMILIAR_BY_EMBEDDING: (f64, f64) = (0.02, 0.20);
const FAMILIAR_BY_WORDS: (f64, f64) = (0.10, 0.40);

/// The artefact without a fit of its own, with the scales of these prompts. [`Router::builtin`] is made by this.
pub fn general(examples: &[Example]) -> Result<Router, String> {
    if examples.len() < EXAMPLES_MIN {
        return Err(format!("{} outcomes; at least {EXAMPLES_MIN} are needed", examples.len()));
    }
    let rows: Vec<Features> = examples.iter().map(|example| Features::of(&example.prompt)).collect();
    let general = general_scale(&rows);
    let mut router = Router { version: VERSION, embedder: None, general, own: None, percentiles: Vec::new() };
    let raw = |(example, features): (&Example, &Features)| router.raw(&example.prompt, features, None).0;
    let raws = examples.iter().zip(&rows).map(raw).collect();
    router.calibrate(raws);
    Ok(router)
}

/// Fits an artefact to outcomes.
pub fn fit(examples: &[Example], embeddings: Option<Embeddings<'_>>, options: &FitOptions) -> Result<Router, String> {
    check(examples, embeddings)?;
    let rows: Vec<Features> = examples.iter().map(|example| Features::of(&example.prompt)).collect();
    let gains: Vec<f64> = examples.iter().map(|example| example.strong - example.weak).collect();
    let values: Vec<Vec<f64>> = rows.iter().map(|row| row.values.to_vec()).collect();
    let linear = Linear::fit(&NAMES, &values, &gains, options.shrink)?;
    let explained: Vec<f64> = values.iter().map(|row| linear.apply(row)).collect();
    let mut scale = Scale { linear, mean: 0.0, deviation: 1.0 };
    let sample = sample(examples.len());
    let mut own_values: Vec<f64> = sample.iter().map(|at| explained[*at]).collect();
    let words = embeddings.is_none().then(|| Words::fit(examples.iter().map(|example| example.prompt.as_str())));
    let by_words: Option<Vec<Vec<f32>>> =
        words.as_ref().map(|words| examples.iter().map(|example| words.vector(&example.prompt)).collect());
    let vectors = embeddings.map(|given| given.vectors).or(by_words.as_deref()).expect("one of both is there");
    let rest: Vec<f64> = gains.iter().zip(&explained).map(|(gain, explained)| gain - explained).collect();
    let (neighbours, places) = Neighbours::fit(vectors, &rest, options.axes, options.points_max);
    let mut familiarities = Vec::new();
    for (value, at) in own_values.iter_mut().zip(&sample) {
        let heard = neighbours.hear(&vectors[*at], places[*at]);
        *value += heard.value;
        familiarities.push(heard.familiarity);
    }
    familiarities.sort_by(f64::total_cmp);
    let (strange, known) = if embeddings.is_some() { FAMILIAR_BY_EMBEDDING } else { FAMILIAR_BY_WORDS };
    let familiar = (percentile(&familiarities, strange), percentile(&familiarities, known));
    scale.set(&own_values);
    let embedder = embeddings
        .map(|given| Embedder { name: given.name.to_owned(), dimensions: given.vectors.first().map_or(0, Vec::len) });
    let general = general_scale(&rows);
    let own = Some(Own { scale, neighbours, words, familiar, shape: Shape::fit(&rows) });
    let mut router = Router { version: VERSION, embedder, general, own, percentiles: Vec::new() };
    // A prompt's own point is among its neighbours here, one of a hundred: good enough for percentiles.
    let raw = |at: &usize| {
        router.raw(&examples[*at].prompt, &rows[*at], embeddings.map(|given| given.vectors[*at].as_slice())).0
    };
    let raws = sample.iter().map(raw).collect();
    router.calibrate(raws);
    Ok(router)
}

/// Scores each example by a fit on the groups that it does not belong to, in `folds` turns: what the fit is worth on
/// kinds of prompts that it has not seen. Examples without a group count as groups of their own.
pub fn leave_groups_out(
    examples: &[Example],
    embeddings: Option<Embeddings<'_>>,
    options: &FitOptions,
    folds: usize,
) -> Result<Vec<f64>, String> {
    let name = |example: &Example| if example.group.is_empty() { example.id.clone() } else { example.group.clone() };
    let mut groups: Vec<String> = examples.iter().map(name).collect();
    groups.sort_by_cached_key(|name| (name.bytes().fold(spread(0), |hash, byte| mix(hash, byte.into())), name.clone()));
    groups.dedup();
    if groups.len() < 2 {
        return Err("all outcomes are of one group, so none can be left out; name groups, or give ids".to_owned());
    }
    let folds = folds.clamp(2, groups.len());
    let fold_of: BTreeMap<String, usize> =
        groups.into_iter().enumerate().map(|(place, name)| (name, place % folds)).collect();
    let turns: Vec<usize> = examples.iter().map(|example| fold_of[&name(example)]).collect();
    let mut scores = vec![0.0; examples.len()];
    for turn in 0..folds {
        let (inside, outside): (Vec<usize>, Vec<usize>) = (0..examples.len()).partition(|at| turns[*at] != turn);
        let kept: Vec<Example> = inside.iter().map(|at| examples[*at].clone()).collect();
        let vectors: Option<Vec<Vec<f32>>> =
            embeddings.map(|given| inside.iter().map(|at| given.vectors[*at].clone()).collect());
        let given = embeddings.zip(vectors.as_ref()).map(|(given, vectors)| Embeddings { name: given.name, vectors });
        let router = fit(&kept, given, options)?;
        for at in outside {
            let vector = embeddings.map(|given| given.vectors[at].as_slice());
            scores[at] = router.score(&examples[at].prompt, vector).raw;
        }
    }
    Ok(scores)
}

fn check(examples: &[Example], embeddings: Option<Embeddings<'_>>) -> Result<(), String> {
    if examples.len() < EXAMPLES_MIN {
        return Err(format!("{} outcomes; at least {EXAMPLES_MIN} are needed", examples.len()));
    }
    if examples.iter().all(|example| (example.strong - example.weak).abs() < 1e-12) {
        return Err("weak and strong are equal on every prompt, so there is nothing to fit".to_owned());
    }
    let Some(given) = embeddings else { return Ok(()) };
    if given.vectors.len() != examples.len() {
        return Err(format!("{} embeddings for {} outcomes", given.vectors.len(), examples.len()));
    }
    let width = given.vectors[0].len();
    let is_sound = |vector: &Vec<f32>| vector.len() == width && vector.iter().all(|value| value.is_finite());
    match given.vectors.iter().position(|vector| !is_sound(vector)) {
        Some(at) => Err(format!("embedding {}: not {width} finite numbers", at + 1)),
        None if width < 2 => Err("embeddings: at least two dimensions are needed".to_owned()),
        None => Ok(()),
    }
}

fn sample(count: usize) -> Vec<usize> {
    (0..count).step_by(count.div_ceil(SAMPLED).max(1)).collect()
}

fn general_scale(rows: &[Features]) -> Scale {
    let weight = |name: &&str| GENERAL.iter().find(|(known, _)| known == name).map_or(0.0, |(_, weight)| *weight);
    let linear = Linear {
        names: NAMES.iter().map(|name| (*name).to_owned()).collect(),
        means: vec![0.0; COUNT],
        scales: vec![1.0; COUNT],
        weights: NAMES.iter().map(weight).collect(),
        offset: 0.0,
    };
    let values: Vec<f64> = rows.iter().map(|features| linear.apply(&features.values)).collect();
    let mut scale = Scale { linear, mean: 0.0, deviation: 1.0 };
    scale.set(&values);
    scale
}
