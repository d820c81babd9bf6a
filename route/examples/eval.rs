//! Fits and judges routing scores on files of outcomes: what `benches/results` reports about routing quality.
//!
//! ```text
//! eval builtin FILE                         the artefact that is built in, made from these prompts (to stdout)
//! eval general FILE...                      the built-in score on each file
//! eval fit FILE [VECTORS] [--folds N]       fitted on the dev part, judged on the test part; and by left-out groups
//! eval scores FILE [VECTORS]                id,score of a fit on the dev part, for other programs to judge
//! eval carry FILE VECTORS [FILE VECTORS]... fitted on the dev part of the first, judged on the others
//! ```
//!
//! FILE is CSV or JSON lines with the fields id, prompt, weak, strong and, optionally, subject; `-` is standard input.
//! VECTORS are little-endian f32, one vector a prompt, in the file's order; `-` compares words.

use std::io::Read;

use sconce_route::score::eval::evaluate;
use sconce_route::score::fit::{Embeddings, FitOptions, fit, general, leave_groups_out};
use sconce_route::score::{Example, Router, outcomes};

type Fault = Box<dyn std::error::Error>;

const ROUNDS: u32 = 200;

fn main() -> Result<(), Fault> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut folds = 10;
    if let Some(at) = arguments.iter().position(|argument| argument == "--folds") {
        folds = arguments.get(at + 1).ok_or("--folds: a number is needed")?.parse()?;
        arguments.drain(at..at + 2);
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["builtin", file] => println!("{}", general(&read(file)?)?.to_json()),
        ["general", files @ ..] if !files.is_empty() => {
            for file in files {
                let examples = read(file)?;
                let router = Router::builtin();
                let scores: Vec<f64> = examples.iter().map(|one| router.score(&one.prompt, None).raw).collect();
                println!("{file}: built-in score\n{}", evaluate(&scores, &examples, ROUNDS)?);
            }
        }
        ["fit", file, vectors @ ..] => {
            let data = Data::read(file, vectors)?;
            let router = data.fit_on_dev()?;
            println!("artefact: {} bytes", router.to_json().len());
            let scores: Vec<f64> = (0..data.examples.len()).map(|at| data.score(&router, at)).collect();
            data.judge("fitted on the dev part", &scores)?;
            let options = FitOptions::default();
            let left_out = leave_groups_out(&data.examples, data.embeddings(), &options, folds)?;
            println!("groups left out by turns, all\n{}", evaluate(&left_out, &data.examples, ROUNDS)?);
        }
        ["scores", file, vectors @ ..] => {
            let data = Data::read(file, vectors)?;
            let router = data.fit_on_dev()?;
            println!("id,score");
            for (at, example) in data.examples.iter().enumerate() {
                println!("\"{}\",{}", example.id, data.score(&router, at));
            }
        }
        ["carry", file, vectors, others @ ..] if !others.is_empty() => {
            let router = Data::read(file, &[vectors])?.fit_on_dev()?;
            for pair in others.chunks(2) {
                let other = Data::read(pair[0], &pair[1..])?;
                let scores: Vec<f64> = (0..other.examples.len()).map(|at| other.score(&router, at)).collect();
                println!("{}: fitted on {file}\n{}", pair[0], evaluate(&scores, &other.examples, ROUNDS)?);
            }
        }
        _ => return Err("usage: eval builtin|general|fit|scores|carry FILE... (see the file's head)".into()),
    }
    Ok(())
}

fn read(file: &str) -> Result<Vec<Example>, Fault> {
    let mut text = String::new();
    if file == "-" {
        std::io::stdin().read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(file).map_err(|fault| format!("{file}: {fault}"))?;
    }
    Ok(outcomes::parse(&text).map_err(|fault| format!("{file}: {fault}"))?)
}

struct Data {
    examples: Vec<Example>,
    vectors: Option<Vec<Vec<f32>>>,
}

impl Data {
    fn read(file: &str, vectors: &[&str]) -> Result<Self, Fault> {
        let examples = read(file)?;
        let Some(path) = vectors.first().filter(|path| **path != "-") else {
            return Ok(Self { examples, vectors: None });
        };
        let bytes = std::fs::read(path).map_err(|fault| format!("{path}: {fault}"))?;
        let width = bytes.len() / 4 / examples.len();
        if width == 0 || bytes.len() != width * 4 * examples.len() {
            return Err(format!("{path}: {} bytes are no vectors of {} prompts", bytes.len(), examples.len()).into());
        }
        let number = |four: &[u8]| f32::from_le_bytes(four.try_into().expect("chunks of four"));
        let vector = |chunk: &[u8]| chunk.chunks_exact(4).map(number).collect();
        Ok(Self { examples, vectors: Some(bytes.chunks_exact(width * 4).map(vector).collect()) })
    }

    fn embeddings(&self) -> Option<Embeddings<'_>> {
        self.vectors.as_ref().map(|vectors| Embeddings { name: "given", vectors })
    }

    fn fit_on_dev(&self) -> Result<Router, Fault> {
        let is_dev = |at: &usize| !outcomes::is_test(&self.examples[*at].id);
        let dev: Vec<usize> = (0..self.examples.len()).filter(is_dev).collect();
        let examples: Vec<Example> = dev.iter().map(|at| self.examples[*at].clone()).collect();
        let vectors: Option<Vec<Vec<f32>>> =
            self.vectors.as_ref().map(|vectors| dev.iter().map(|at| vectors[*at].clone()).collect());
        let embeddings = vectors.as_ref().map(|vectors| Embeddings { name: "given", vectors });
        Ok(fit(&examples, embeddings, &FitOptions::default())?)
    }

    fn score(&self, router: &Router, at: usize) -> f64 {
        let vector = self.vectors.as_ref().map(|vectors| vectors[at].as_slice());
        router.score(&self.examples[at].prompt, vector).raw
    }

    fn judge(&self, what: &str, scores: &[f64]) -> Result<(), Fault> {
        let test: Vec<usize> =
            (0..self.examples.len()).filter(|at| outcomes::is_test(&self.examples[*at].id)).collect();
        let examples: Vec<Example> = test.iter().map(|at| self.examples[*at].clone()).collect();
        let scores: Vec<f64> = test.iter().map(|at| scores[*at]).collect();
        println!("{what}, judged on the test part\n{}", evaluate(&scores, &examples, ROUNDS)?);
        Ok(())
    }
}
