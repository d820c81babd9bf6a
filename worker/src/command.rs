//! The command that starts a worker: an operator's own, or one of the templates, with placeholders.

/// Programs whose command line is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// AWS' plugin for vLLM (Trn2, Trn3; with NxD Inference also Inf2 and Trn1).
    VllmNeuron,
    /// `optimum-cli neuron serve`.
    OptimumNeuron,
    LlamaServer,
    Vllm,
}

impl Engine {
    pub const NAMES: [&str; 4] = ["vllm-neuron", "optimum-neuron", "llama-server", "vllm"];
    const ALL: [Self; 4] = [Self::VllmNeuron, Self::OptimumNeuron, Self::LlamaServer, Self::Vllm];

    pub fn from_name(name: &str) -> Option<Self> {
        let at = Self::NAMES.iter().position(|known| *known == name)?;
        Some(Self::ALL[at])
    }

    /// Whether it runs on Neuron cores and nowhere else: unless told which, it would take all.
    pub fn needs_cores(self) -> bool {
        matches!(self, Self::VllmNeuron | Self::OptimumNeuron)
    }

    /// With placeholders. `model` decides how llama-server is told of it: a file, or a name on the hub.
    pub fn command(self, model: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::VllmNeuron => &[
                "vllm",
                "serve",
                "{model}",
                "--host",
                "127.0.0.1",
                "--port",
                "{port}",
                "--tensor-parallel-size",
                "{core_count}",
            ],
            Self::OptimumNeuron => &[
                "optimum-cli",
                "neuron",
                "serve",
                "--model",
                "{model}",
                "--host",
                "127.0.0.1",
                "--port",
                "{port}",
                "--tensor-parallel-size",
                "{core_count}",
            ],
            Self::LlamaServer if model.ends_with(".gguf") => {
                &["llama-server", "--model", "{model}", "--host", "127.0.0.1", "--port", "{port}"]
            }
            Self::LlamaServer => &["llama-server", "--hf-repo", "{model}", "--host", "127.0.0.1", "--port", "{port}"],
            Self::Vllm => &["vllm", "serve", "{model}", "--host", "127.0.0.1", "--port", "{port}"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}

/// What stands for a placeholder.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    pub port: u16,
    pub model: &'a str,
    /// Empty where the worker has no Neuron cores.
    pub cores: &'a str,
    pub core_count: usize,
    pub cache: &'a str,
}

pub const PLACEHOLDERS: [&str; 5] = ["port", "model", "cores", "core_count", "cache"];

/// The names between braces that could be meant as placeholders; braces of JSON are none.
fn named(word: &str) -> impl Iterator<Item = &str> {
    word.split('{').skip(1).filter_map(|rest| {
        let name = rest.split_once('}')?.0;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        is_name.then_some(name)
    })
}

/// Faults of a command, before it is ever run.
pub fn check(command: &[String], has_cores: bool, has_port: bool) -> Result<(), String> {
    if command.first().is_none_or(String::is_empty) {
        return Err("command is empty; name the program and its arguments".to_owned());
    }
    let names = || command.iter().flat_map(|word| named(word));
    if let Some(unknown) = names().find(|name| !PLACEHOLDERS.contains(name)) {
        let known = PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(" ");
        return Err(format!("command has {{{unknown}}}, which stands for nothing; there are {known}"));
    }
    if !has_cores && names().any(|name| name.starts_with("core")) {
        return Err("command has {cores} or {core_count} and the member no device; add device = \"neuron:0-1\"".into());
    }
    if !has_port && !names().any(|name| name == "port") {
        return Err("command has no {port}, so nobody tells the worker where to listen; add it, or set port".into());
    }
    Ok(())
}

/// The command with its placeholders filled in.
pub fn filled(command: &[String], values: Values<'_>) -> Vec<String> {
    let fill = |word: &String| {
        let mut out = String::with_capacity(word.len());
        let mut rest = word.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            out.push_str(before);
            let value = after.split_once('}').and_then(|(name, behind)| Some((value(name, values)?, behind)));
            match value {
                Some((value, behind)) => {
                    out.push_str(&value);
                    rest = behind;
                }
                None => {
                    out.push('{');
                    rest = after;
                }
            }
        }
        out + rest
    };
    command.iter().map(fill).collect()
}

fn value(name: &str, values: Values<'_>) -> Option<String> {
    Some(match name {
        "port" => values.port.to_string(),
        "model" => values.model.to_owned(),
        "cores" => values.cores.to_owned(),
        "core_count" => values.core_count.to_string(),
        "cache" => values.cache.to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn placeholders_are_filled_once_and_json_is_left_alone() {
        let values = Values { port: 81, model: "a/{port}", cores: "0-1", core_count: 2, cache: "/c" };
        let command = words("run {model} --port={port} {cores}:{core_count} {cache}/x {\"a\":{\"b\":1}} {} {Z}");
        let meant = words("run a/{port} --port=81 0-1:2 /c/x {\"a\":{\"b\":1}} {} {Z}");
        assert_eq!(filled(&command, values), meant);
        assert_eq!(check(&command, true, false), Ok(()));
    }

    #[test]
    fn faults_of_commands_are_found_before_they_run() {
        for (command, has_cores, has_port, meant) in [
            ("", false, false, "command is empty"),
            ("run {prot}", false, false, "{prot}"),
            ("run", false, false, "no {port}"),
            ("run {port} {cores}", false, false, "device"),
        ] {
            let fault = check(&words(command), has_cores, has_port).expect_err(command);
            assert!(fault.contains(meant), "{command}: {fault}");
        }
        assert_eq!(check(&words("run"), false, true), Ok(()));
    }

    #[test]
    fn templates_have_no_faults() {
        for name in Engine::NAMES {
            let engine = Engine::from_name(name).expect("known");
            for model in ["org/name", "/m.gguf"] {
                assert_eq!(check(&engine.command(model), engine.needs_cores(), false), Ok(()), "{name}");
            }
        }
        assert_eq!(Engine::from_name("vlm"), None);
    }
}
