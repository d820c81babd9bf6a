//! `adapter_config.json`, as PEFT writes it: what it says of ranks and scales, and the refusal of what is more than LoRA.

use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::error::{Error, Result, shown};
use crate::spec::fields::Fields;

/// Keys that change nothing at inference, or that say what is looked at elsewhere.
const HARMLESS: [&str; 27] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];
/// Of those, keys whose value must be empty: with them a token's own place or kind decides what is added.
const EMPTY_ONLY: [&str; 1] = ["alora_invocation_tokens"];
/// Ways to begin a training that change the base model's weights, too.
const INITS_REFUSED: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];
const NEXT: &str = "export the adapter as plain LoRA, or merge it into its base model";

/// A checked adapter config.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    file: PathBuf,
    rank: usize,
    alpha: f64,
    rank_stabilised: bool,
    /// Pattern and value, the first that matches counts.
    rank_patterns: Vec<(Regex, usize)>,
    alpha_patterns: Vec<(Regex, f64)>,
    targets: Targets,
    excluded: Option<Targets>,
    /// Only these layers; all where it is empty.
    layers: Vec<usize>,
    layers_patterns: Vec<Regex>,
    pub base_model: Option<String>,
}

/// Which modules are meant.
#[derive(Debug)]
enum Targets {
    All,
    Pattern(Box<Regex>),
    Names(Vec<String>),
}

impl Targets {
    fn name(&self, module: &str) -> bool {
        match self {
            Self::All => true,
            // A pattern that gives up names nothing, and the tensor is refused.
            Self::Pattern(pattern) => pattern.is_match(module).unwrap_or(false),
            Self::Names(names) => names.iter().any(|name| {
                module.strip_suffix(name.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }),
        }
    }
}

pub(super) fn parse(text: &str, file: &Path) -> Result<AdapterConfig> {
    let wrong = |detail: String| Error::Config { file: file.to_owned(), detail };
    let object: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| wrong(format!("not a JSON object: {error}")))?;
    let fields = Fields { object: &object, file };
    refuse_more_than_lora(&fields)?;
    let rank = fields.size("r")?;
    let alpha = fields.number("lora_alpha")?.unwrap_or(8.0);
    let ranks = patterns(&fields, "rank_pattern")?.into_iter().map(|(pattern, rank)| {
        let whole = rank.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|rank| *rank > 0);
        whole.map(|rank| (pattern, rank)).ok_or_else(|| fields.wrong("rank_pattern", "whole numbers from 1 on"))
    });
    let alphas = patterns(&fields, "alpha_pattern")?.into_iter().map(|(pattern, alpha)| {
        alpha.as_f64().map(|alpha| (pattern, alpha)).ok_or_else(|| fields.wrong("alpha_pattern", "numbers"))
    });
    let targets = targets(&fields, "target_modules")?;
    Ok(AdapterConfig {
        file: file.to_owned(),
        rank,
        alpha,
        rank_stabilised: fields.bool("use_rslora")?.unwrap_or(false),
        rank_patterns: ranks.collect::<Result<_>>()?,
        alpha_patterns: alphas.collect::<Result<_>>()?,
        targets: targets.ok_or_else(|| fields.wrong("target_modules", "names of modules, or a pattern"))?,
        excluded: self::targets(&fields, "exclude_modules")?,
        layers: layers(&fields)?,
        layers_patterns: layers_patterns(&fields)?,
        base_model: fields.get("base_model_name_or_path").and_then(Value::as_str).map(shown),
    })
}

fn refuse_more_than_lora(fields: &Fields) -> Result<()> {
    let refused = |feature: String| Err(Error::Unsupported { file: fields.file.to_owned(), feature, next: NEXT });
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    match text("peft_type") {
        Some("LORA") => {}
        other => return refused(format!("peft_type {}", shown(other.unwrap_or("nothing")))),
    }
    if let Some(task) = text("task_type").filter(|task| *task != "CAUSAL_LM") {
        return refused(format!("task_type {}", shown(task)));
    }
    if let Some(bias) = text("bias").filter(|bias| *bias != "none") {
        return refused(format!("bias {}", shown(bias)));
    }
    if let Some(init) = text("init_lora_weights")
        && INITS_REFUSED.iter().any(|refused| init.to_lowercase().starts_with(refused))
    {
        return refused(format!("init_lora_weights {}, which changes the base model's weights,", shown(init)));
    }
    for (key, value) in fields.object {
        let is_known = HARMLESS.contains(&key.as_str()) && !EMPTY_ONLY.contains(&key.as_str());
        // PEFT writes what is not used as null, false, or empty.
        if !is_known && !is_nothing(value) {
            return refused(format!("{} {}", shown(key), shown(&value.to_string())));
        }
    }
    Ok(())
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// A pattern that must match all of a text.
fn whole(fields: &Fields, key: &str, pattern: &str) -> Result<Regex> {
    Regex::new(&format!(r"\A(?:{pattern})\z"))
        .map_err(|_| fields.wrong(key, "patterns that can be read as regular expressions"))
}

/// As PEFT matches them: the pattern is a whole name, or its end behind a dot.
fn patterns(fields: &Fields, key: &str) -> Result<Vec<(Regex, Value)>> {
    let Some(value) = fields.get(key) else { return Ok(Vec::new()) };
    let object = value.as_object().ok_or_else(|| fields.wrong(key, "patterns with values"))?;
    let entry = |(pattern, value): (&String, &Value)| {
        Ok((whole(fields, key, &format!(r"(?:.*\.)?(?:{pattern})"))?, value.clone()))
    };
    object.iter().map(entry).collect()
}

fn targets(fields: &Fields, key: &str) -> Result<Option<Targets>> {
    match fields.get(key) {
        None => Ok(None),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("all-linear") => Ok(Some(Targets::All)),
        Some(Value::String(pattern)) => Ok(Some(Targets::Pattern(Box::new(whole(fields, key, pattern)?)))),
        Some(Value::Array(names)) => {
            let names = names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
            names.map(|names| Some(Targets::Names(names))).ok_or_else(|| fields.wrong(key, "names of modules"))
        }
        Some(_) => Err(fields.wrong(key, "names of modules, or a pattern")),
    }
}

fn layers(fields: &Fields) -> Result<Vec<usize>> {
    let index = |value: &Value| value.as_u64().and_then(|index| usize::try_from(index).ok());
    let found = match fields.get("layers_to_transform") {
        None => Some(Vec::new()),
        Some(Value::Array(indices)) => indices.iter().map(index).collect(),
        Some(one) => index(one).map(|index| vec![index]),
    };
    found.ok_or_else(|| fields.wrong("layers_to_transform", "indices of layers"))
}

fn layers_patterns(fields: &Fields) -> Result<Vec<Regex>> {
    const KEY: &str = "layers_pattern";
    let expected = || fields.wrong(KEY, "names of lists of layers");
    let names: Vec<&str> = match fields.get(KEY) {
        None => Vec::new(),
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => {
            names.iter().map(Value::as_str).collect::<Option<Vec<_>>>().ok_or_else(expected)?
        }
        Some(_) => return Err(expected()),
    };
    names.iter().map(|name| whole(fields, KEY, &format!(r"(?:.*?\.)?(?:{name})"))).collect()
}

impl AdapterConfig {
    /// The rank of a module, and the factor on what is added to it. `module` is its name in the base model.
    pub fn rank_and_scale(&self, module: &str) -> (usize, f32) {
        let rank = first_match(&self.rank_patterns, module).unwrap_or(self.rank);
        let alpha = first_match(&self.alpha_patterns, module).unwrap_or(self.alpha);
        let divisor = if self.rank_stabilised { (rank as f64).sqrt() } else { rank as f64 };
        (rank, (alpha / divisor) as f32)
    }

    /// Refuses tensors of modules that the config does not mean: PEFT would leave them out without a word.
    pub fn check_target(&self, module: &str, layer: usize) -> Result<()> {
        let is_excluded = self.excluded.as_ref().is_some_and(|excluded| excluded.name(module));
        let container = module.split_once(&format!(".{layer}.")).map_or("", |(container, _)| container);
        // PEFT looks at layers only where modules are listed by name.
        let is_listed = matches!(self.targets, Targets::Names(_)) && !self.layers.is_empty();
        let is_layer = self.layers_patterns.is_empty()
            || self.layers_patterns.iter().any(|pattern| pattern.is_match(container).unwrap_or(false));
        if self.targets.name(module) && !is_excluded && (!is_listed || (self.layers.contains(&layer) && is_layer)) {
            return Ok(());
        }
        let detail = format!("target_modules does not name {}, of which the adapter has tensors", shown(module));
        Err(Error::Config { file: self.file.clone(), detail })
    }
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module).unwrap_or(false)).map(|(_, value)| *value)
}
