//! `sconce route fit` and `eval`: what prompts are hard, learnt from recorded outcomes, and how well that is known.

use std::path::{Path, PathBuf};

use clap::Args;
use sconce_route::score::eval::evaluate;
use sconce_route::score::fit::{Embeddings, FitOptions, fit as fitted_to};
use sconce_route::score::outcomes::{is_test, parse};
use sconce_route::score::{Example, Router};

use super::vectors::{self, Made};
use crate::error::{Error, Result};

/// Resamples behind an interval.
const ROUNDS: u32 = 500;

#[derive(Args)]
pub struct FitArgs {
    /// Outcomes of a weak and a strong model on the same prompts: JSON lines or CSV with prompt, weak and strong (0 to 1)
    #[arg(value_name = "OUTCOMES")]
    outcomes: PathBuf,
    /// The file to write, for `fitted` of a route
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Compare prompts by the vectors of this local embedding model, such as minilm; the server must serve it, too
    /// [default: compare them by their words]
    #[arg(long, value_name = "MODEL")]
    embedder: Option<String>,
}

#[derive(Args)]
pub struct EvalArgs {
    /// Outcomes, as `fit` takes them; not those that it was given
    #[arg(value_name = "OUTCOMES")]
    outcomes: PathBuf,
    /// What `fit` wrote [default: what is built in]
    #[arg(long, value_name = "FILE")]
    fitted: Option<PathBuf>,
    /// The model that makes the vectors, where the fit compares those [default: by the name that the fit was given]
    #[arg(long, value_name = "MODEL")]
    embedder: Option<String>,
}

/// Fits on four fifths and says what that reaches on the last; what is written is fitted on all.
pub async fn fit(args: &FitArgs) -> Result<String> {
    let examples = outcomes(&args.outcomes)?;
    let made = match &args.embedder {
        None => None,
        Some(model) => Some(vectors::of(model, &prompts(&examples)).await?),
    };
    let wrong = |why: String| Error::invalid("OUTCOMES", format!("{}: {why}", args.outcomes.display()));
    let report = held_out(&examples, made.as_ref()).map_err(wrong)?;
    let given = made.as_ref().map(|made| Embeddings { name: &made.name, vectors: &made.vectors });
    let router = fitted_to(&examples, given, &FitOptions::default()).map_err(wrong)?;
    std::fs::write(&args.out, router.to_json())
        .map_err(|why| Error::invalid("--out", format!("cannot write {}: {why}", args.out.display())))?;
    let needs =
        made.map_or_else(String::new, |made| format!("; a route that uses it needs '{}' served here", made.name));
    let out = args.out.display();
    Ok(format!("fitted on four fifths, judged on the last:\n{report}written: {out}, fitted on all{needs}\n"))
}

/// What a fit on four fifths reaches on the last.
fn held_out(examples: &[Example], made: Option<&Made>) -> Result<String, String> {
    let (mut fitting, mut judged) = (Part::default(), Part::default());
    for (at, example) in examples.iter().enumerate() {
        let part = if is_test(&example.id) { &mut judged } else { &mut fitting };
        part.examples.push(example.clone());
        part.vectors.extend(made.map(|made| made.vectors[at].clone()));
    }
    let given = made.map(|made| Embeddings { name: &made.name, vectors: &fitting.vectors });
    let router = fitted_to(&fitting.examples, given, &FitOptions::default())?;
    reached(&router, &judged.examples, made.map(|_| judged.vectors.as_slice()))
}

/// Some of the outcomes, with the vectors of their prompts where there are any.
#[derive(Default)]
struct Part {
    examples: Vec<Example>,
    vectors: Vec<Vec<f32>>,
}

pub async fn eval(args: &EvalArgs) -> Result<String> {
    let router = match &args.fitted {
        None => Router::builtin(),
        Some(path) => {
            let wrong = |why: String| Error::invalid("--fitted", format!("{}: {why}", path.display()));
            Router::parse(&read(path, "--fitted")?).map_err(wrong)?
        }
    };
    let examples = outcomes(&args.outcomes)?;
    let made = match (router.embedder(), &args.embedder) {
        (None, None) => None,
        (None, Some(_)) => {
            let message = "what is judged compares no vectors; leave --embedder out";
            return Err(Error::invalid("--embedder", message));
        }
        (Some(wanted), model) => {
            let model = model.as_ref().unwrap_or(&wanted.name);
            let made = vectors::of(model, &prompts(&examples)).await?;
            if let Some(other) = made.vectors.iter().map(Vec::len).find(|width| *width != wanted.dimensions) {
                let message = format!(
                    "{model} makes vectors of {other} values, and it was fitted with {} values of '{}'; name that model",
                    wanted.dimensions, wanted.name
                );
                return Err(Error::invalid("--embedder", message));
            }
            Some(made.vectors)
        }
    };
    let wrong = |why: String| Error::invalid("OUTCOMES", format!("{}: {why}", args.outcomes.display()));
    reached(&router, &examples, made.as_deref()).map_err(wrong)
}

fn prompts(examples: &[Example]) -> Vec<&str> {
    examples.iter().map(|example| example.prompt.as_str()).collect()
}

fn reached(router: &Router, examples: &[Example], vectors: Option<&[Vec<f32>]>) -> Result<String, String> {
    let score = |(at, example): (usize, &Example)| {
        router.score(&example.prompt, vectors.map(|vectors| vectors[at].as_slice())).raw
    };
    let scores: Vec<f64> = examples.iter().enumerate().map(score).collect();
    Ok(evaluate(&scores, examples, ROUNDS)?.to_string())
}

fn outcomes(path: &Path) -> Result<Vec<Example>> {
    let wrong = |why: String| Error::invalid("OUTCOMES", format!("{}: {why}", path.display()));
    parse(&read(path, "OUTCOMES")?).map_err(wrong)
}

fn read(path: &Path, what: &str) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|why| Error::invalid(what, format!("cannot read {}: {why}; check {what}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_fitted_is_written_and_judged() {
        let folder = tempfile::tempdir().expect("a folder");
        let (outcomes, out) = (folder.path().join("outcomes.jsonl"), folder.path().join("fitted.json"));
        // Long prompts are those that only the strong model answers.
        let line = |number: usize| {
            let words = if number.is_multiple_of(2) { 3 } else { 60 };
            let prompt = format!("question {number} {}", "and then more ".repeat(words));
            let weak = u8::from(number.is_multiple_of(2));
            format!("{{\"id\": \"{number}\", \"prompt\": \"{prompt}\", \"weak\": {weak}, \"strong\": 1}}\n")
        };
        std::fs::write(&outcomes, (0..200).map(line).collect::<String>()).expect("written");
        let told =
            fit(&FitArgs { outcomes: outcomes.clone(), out: out.clone(), embedder: None }).await.expect("fitted");
        assert!(told.contains("APGR") && told.contains("written"), "{told}");
        let judged = eval(&EvalArgs { outcomes: outcomes.clone(), fitted: Some(out.clone()), embedder: None })
            .await
            .expect("judged");
        assert!(judged.contains("200 prompts"), "{judged}");
        std::fs::write(&out, "{}").expect("written");
        assert!(eval(&EvalArgs { outcomes, fitted: Some(out), embedder: None }).await.is_err(), "it is no artefact");
    }
}
