//! Every environment variable that Sconce reads, and the only place that reads them.

use std::path::PathBuf;

/// One documented variable.
pub struct Variable {
    pub name: &'static str,
    pub help: &'static str,
}

impl Variable {
    /// Its value, when set to something that is not empty.
    pub fn get(&self) -> Option<String> {
        std::env::var(self.name).ok().filter(|value| !value.is_empty())
    }

    /// True when set to `1`, `true`, `yes` or `on` in any case, as huggingface_hub reads its flags.
    pub fn is_on(&self) -> bool {
        self.get().is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
    }

    pub fn path(&self) -> Option<PathBuf> {
        self.get().map(PathBuf::from)
    }
}

/// The user's folder for caches; without a home there is none.
pub fn caches() -> Option<PathBuf> {
    XDG_CACHE_HOME.path().or_else(|| Some(HOME.path()?.join(".cache")))
}

/// A variable whose name stands in `sconce.toml`, where a secret is wanted.
pub fn named(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Variables that are set and wanted, for a program that gets no others.
pub fn matching(is_wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let text =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    text.filter(|(name, _)| is_wanted(name)).collect()
}

pub const HF_HOME: Variable =
    Variable { name: "HF_HOME", help: "folder of the hub's token and cache (default ~/.cache/huggingface)" };
pub const HF_HUB_CACHE: Variable =
    Variable { name: "HF_HUB_CACHE", help: "folder of downloaded models (default $HF_HOME/hub)" };
pub const HF_TOKEN: Variable = Variable { name: "HF_TOKEN", help: "access token for gated or private models" };
pub const HF_TOKEN_PATH: Variable =
    Variable { name: "HF_TOKEN_PATH", help: "file that holds the token (default $HF_HOME/token)" };
pub const HF_HUB_OFFLINE: Variable =
    Variable { name: "HF_HUB_OFFLINE", help: "1: use only what is already downloaded" };
pub const HF_ENDPOINT: Variable = Variable { name: "HF_ENDPOINT", help: "address of the hub or of a mirror" };
pub const XDG_CACHE_HOME: Variable = Variable { name: "XDG_CACHE_HOME", help: "folder for caches (default ~/.cache)" };
pub const XDG_DATA_HOME: Variable = Variable {
    name: "XDG_DATA_HOME",
    help: "folder for data, e.g. stored responses and files (default ~/.local/share)",
};
pub const HOME: Variable = Variable { name: "HOME", help: "the user's folder" };
pub const PATH: Variable = Variable { name: "PATH", help: "where programs such as pip are looked for" };
pub const NO_COLOR: Variable = Variable { name: "NO_COLOR", help: "set: no colours in the terminal" };
pub const SCONCE_LOG: Variable =
    Variable { name: "SCONCE_LOG", help: "log filter, as tracing reads it (default info; e.g. sconce=debug)" };
pub const SCONCE_API_KEY: Variable =
    Variable { name: "SCONCE_API_KEY", help: "API key that clients must send, as --api-key" };

pub const OPENAI_API_KEY: Variable =
    Variable { name: "OPENAI_API_KEY", help: "key that sconce bench sends, as its --api-key" };

/// What a program's OpenTelemetry export is told by.
pub const OTEL_PREFIX: &str = "OTEL_";
pub const OTEL_EXPORTER_OTLP_ENDPOINT: Variable = Variable {
    name: "OTEL_EXPORTER_OTLP_ENDPOINT",
    help: "collector that traces and metrics go to as OTLP over HTTP in JSON, e.g. http://localhost:4318; with the other \
           standard variables: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...",
};

pub const NEURON_LOGICAL_NC_CONFIG: Variable = Variable {
    name: "NEURON_LOGICAL_NC_CONFIG",
    help: "physical Neuron cores that make a logical one, as Neuron's runtime reads it (doctor counts cores by it)",
};

pub const AWS_EC2_METADATA_SERVICE_ENDPOINT: Variable = Variable {
    name: "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    help: "where aws_role = \"instance\" asks (default http://169.254.169.254)",
};
pub const AWS_CONTAINER_CREDENTIALS_RELATIVE_URI: Variable = Variable {
    name: "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    help: "where aws_role = \"container\" asks on ECS: a path at 169.254.170.2",
};
pub const AWS_CONTAINER_CREDENTIALS_FULL_URI: Variable = Variable {
    name: "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    help: "where aws_role = \"container\" asks otherwise, e.g. on EKS",
};
pub const AWS_CONTAINER_AUTHORIZATION_TOKEN: Variable =
    Variable { name: "AWS_CONTAINER_AUTHORIZATION_TOKEN", help: "what is sent along there" };
pub const AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: Variable =
    Variable { name: "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", help: "a file that has it; it wins" };
pub const AWS_WEB_IDENTITY_TOKEN_FILE: Variable =
    Variable { name: "AWS_WEB_IDENTITY_TOKEN_FILE", help: "token for aws_role = \"web_identity\"" };
pub const AWS_ROLE_ARN: Variable = Variable { name: "AWS_ROLE_ARN", help: "role for aws_role = \"web_identity\"" };
pub const AWS_ROLE_SESSION_NAME: Variable =
    Variable { name: "AWS_ROLE_SESSION_NAME", help: "name of its sessions (default sconce)" };
pub const AWS_ENDPOINT_URL_STS: Variable = Variable {
    name: "AWS_ENDPOINT_URL_STS",
    help: "where aws_role = \"web_identity\" asks (default https://sts.REGION.amazonaws.com)",
};

/// All of them, in the order of the reference page.
pub const ALL: &[&Variable] = &[
    &HF_HOME,
    &HF_HUB_CACHE,
    &HF_TOKEN,
    &HF_TOKEN_PATH,
    &HF_HUB_OFFLINE,
    &HF_ENDPOINT,
    &XDG_CACHE_HOME,
    &XDG_DATA_HOME,
    &HOME,
    &PATH,
    &NO_COLOR,
    &SCONCE_LOG,
    &SCONCE_API_KEY,
    &OPENAI_API_KEY,
    &OTEL_EXPORTER_OTLP_ENDPOINT,
    &NEURON_LOGICAL_NC_CONFIG,
    &AWS_EC2_METADATA_SERVICE_ENDPOINT,
    &AWS_CONTAINER_CREDENTIALS_RELATIVE_URI,
    &AWS_CONTAINER_CREDENTIALS_FULL_URI,
    &AWS_CONTAINER_AUTHORIZATION_TOKEN,
    &AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE,
    &AWS_WEB_IDENTITY_TOKEN_FILE,
    &AWS_ROLE_ARN,
    &AWS_ROLE_SESSION_NAME,
    &AWS_ENDPOINT_URL_STS,
];
