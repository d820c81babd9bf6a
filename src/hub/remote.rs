//! Questions to the hub: which commit and files, how large, which hash, and the bytes themselves from an offset.
//!
//! The token goes to the endpoint only: reqwest drops it on a redirect to another host or port.
//! hf-hub answers which commit a revision is and which files it holds. Its file metadata either follows the redirect
//! to the CDN, and loses the hash, or lacks it (`RepoTreeEntry` reads `lfs.sha256` where the tree API sends `lfs.oid`),
//! so the HEAD request is ours.

use std::time::Duration;

use hf_hub::{HFClient, HFError};
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, IF_RANGE, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};

use super::options::HubOptions;
use super::progress::Progress;
use super::source::Wanted;
use crate::error::{Error, ErrorKind};

/// As many redirects as browsers and reqwest follow.
const REDIRECTS_MAX: usize = 10;
const USER_AGENT: &str = concat!("sconce/", env!("CARGO_PKG_VERSION"));

/// `Error::code` of a hub that no connection could be made to.
pub(super) const UNREACHABLE: &str = "hub_unreachable";

/// A connection to one hub.
pub(super) struct Hub<'a> {
    pub options: &'a HubOptions,
    api: HFClient,
    follow: Client,
    stay: Client,
}

/// The files of a repository at one commit.
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// One file of the hub, as its headers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asset {
    pub path: String,
    /// Name of the blob in the cache.
    pub etag: String,
    pub bytes: u64,
    /// Large files have one; small ones are named by their git hash.
    pub sha256: Option<String>,
}

/// A request that failed, and whether another try can help.
#[derive(Debug)]
pub(super) struct Trouble {
    pub error: Error,
    pub retry: Retry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    /// After the usual pause, or the one that the server asked for.
    After(Option<Duration>),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self { error, retry: Retry::Never }
    }
}

impl<'a> Hub<'a> {
    pub fn new(options: &'a HubOptions) -> Result<Self, Error> {
        let builder = || {
            let builder = Client::builder()
                .user_agent(USER_AGENT)
                .connect_timeout(Duration::from_millis(options.patience.connect_ms))
                .read_timeout(Duration::from_millis(options.patience.idle_ms));
            // A mirror on this machine is not behind the proxy.
            if is_loopback(options.host()) { builder.no_proxy() } else { builder }
        };
        let fail = |error: &dyn std::error::Error| {
            Error::internal(format!("cannot set up the hub client: {}; check HF_ENDPOINT and proxy", root_cause(error)))
        };
        let follow = builder().redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX)).build();
        let follow = follow.map_err(|error| fail(&error))?;
        let stay = builder().redirect(reqwest::redirect::Policy::none()).build().map_err(|error| fail(&error))?;
        let api = HFClient::builder()
            .endpoint(&options.endpoint)
            .cache_dir(&options.cache)
            .client(follow.clone())
            // Tries are counted here, where the server's Retry-After is heeded.
            .retry_max_attempts(0);
        let api = match &options.token {
            Some(token) => api.token(token),
            None => api,
        };
        let api = api.build().map_err(|error| fail(&error))?;
        Ok(Self { options, api, follow, stay })
    }

    /// The commit and the file names of a revision.
    pub async fn list(&self, wanted: &Wanted<'_>, progress: &dyn Progress) -> Result<Listing, Error> {
        let mut failures = 0;
        loop {
            match self.ask_listing(wanted).await {
                Ok(listing) => return Ok(listing),
                Err(trouble) => {
                    failures += 1;
                    self.pause(progress, &trouble, failures).await?;
                }
            }
        }
    }

    /// Size and hash of one file.
    pub async fn describe(
        &self,
        repo: &str,
        commit: &str,
        path: &str,
        progress: &dyn Progress,
    ) -> Result<Asset, Error> {
        let mut failures = 0;
        loop {
            match self.ask_asset(repo, commit, path).await {
                Ok(asset) => return Ok(asset),
                Err(trouble) => {
                    failures += 1;
                    self.pause(progress, &trouble, failures).await?;
                }
            }
        }
    }

    /// Waits before the next try, or gives the error back when there is none.
    pub async fn pause(&self, progress: &dyn Progress, trouble: &Trouble, failures: u32) -> Result<(), Error> {
        let patience = &self.options.patience;
        match trouble.retry {
            Retry::After(asked) if failures < patience.tries => {
                let wait = patience.pause(failures, asked);
                progress.note(&format!("{}; trying again in {:.1} s", trouble.error, wait.as_secs_f64()));
                tokio::time::sleep(wait).await;
                Ok(())
            }
            _ => Err(trouble.error.clone()),
        }
    }

    async fn ask_listing(&self, wanted: &Wanted<'_>) -> Result<Listing, Trouble> {
        let (owner, name) = hf_hub::split_id(wanted.repo);
        let repository = self.api.model(owner, name);
        let info = repository.info().revision(wanted.revision_or_main()).send().await;
        let info = info.map_err(|error| self.api_trouble(error, wanted))?;
        let commit = info.sha.filter(|sha| super::cache::is_commit(sha));
        let commit = commit.ok_or_else(|| self.malformed(wanted.repo, "the repository has no commit"))?;
        let siblings = info.siblings.unwrap_or_default();
        let files = siblings.into_iter().map(|sibling| sibling.rfilename);
        Ok(Listing { commit, files: files.filter(|file| super::reference::is_safe_relative(file)).collect() })
    }

    async fn ask_asset(&self, repo: &str, commit: &str, path: &str) -> Result<Asset, Trouble> {
        let what = format!("{path} of {repo}");
        let mut url = self.resolve_url(repo, commit, path)?;
        for _ in 0..REDIRECTS_MAX {
            let request = self.request(&self.stay, Method::HEAD, url.clone());
            let response = request.send().await.map_err(|error| self.transport_trouble(&error, &what))?;
            let status = response.status();
            let next = redirect_target(&url, response.headers());
            if status.is_redirection()
                && let Some(next) = next.filter(|next| next.origin() == url.origin())
            {
                // A renamed repository, or another spelling of it: the answer is one step further.
                url = next;
                continue;
            }
            if !status.is_success() && !status.is_redirection() {
                return Err(self.status_trouble(&response, repo, Some(path)));
            }
            return self.asset(path, response.headers(), &what);
        }
        Err(self.malformed(&what, "too many redirects").into())
    }

    fn asset(&self, path: &str, headers: &HeaderMap, what: &str) -> Result<Asset, Trouble> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let etag = text("x-linked-etag").or(text("etag")).map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let is_name = |etag: &&str| (8..=128).contains(&etag.len()) && etag.bytes().all(|b| b.is_ascii_alphanumeric());
        let etag = etag.filter(is_name).ok_or_else(|| self.malformed(what, "no usable etag"))?;
        let bytes = text("x-linked-size").or(text("content-length")).and_then(|bytes| bytes.parse().ok());
        let bytes = bytes.ok_or_else(|| self.malformed(what, "no size"))?;
        let is_sha256 = etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let sha256 = is_sha256.then(|| etag.to_ascii_lowercase());
        Ok(Asset { path: path.to_owned(), etag: etag.to_owned(), bytes, sha256 })
    }

    /// The answer that carries the bytes of a file from `offset` on.
    pub async fn open(&self, repo: &str, commit: &str, asset: &Asset, offset: u64) -> Result<Response, Trouble> {
        let url = self.resolve_url(repo, commit, &asset.path)?;
        let mut request = self.request(&self.follow, Method::GET, url);
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
            // A large file is checked by its hash at the end and its address names the commit, while the CDN that
            // sends it has etags of its own. A small file comes from the hub itself under the etag we know.
            if asset.sha256.is_none() {
                request = request.header(IF_RANGE, format!("\"{}\"", asset.etag));
            }
        }
        let what = format!("{} of {repo}", asset.path);
        let response = request.send().await.map_err(|error| self.transport_trouble(&error, &what))?;
        if response.status().is_success() || response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        Err(self.status_trouble(&response, repo, Some(&asset.path)))
    }

    fn request(&self, client: &Client, method: Method, url: Url) -> RequestBuilder {
        // A compressed answer would have another length than the file.
        let request = client.request(method, url).header(ACCEPT_ENCODING, "identity");
        match &self.options.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn resolve_url(&self, repo: &str, commit: &str, path: &str) -> Result<Url, Error> {
        let base = format!("{}/{repo}/resolve/{commit}", self.options.endpoint);
        let mut url = Url::parse(&base).map_err(|_| self.malformed(&base, "HF_ENDPOINT is not an address"))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path.split('/'));
        }
        Ok(url)
    }

    fn malformed(&self, what: &str, problem: &str) -> Error {
        let message = format!("{} sent a wrong answer for {what} ({problem}): check HF_ENDPOINT", self.options.host());
        Error::new(ErrorKind::Unavailable, message)
    }

    /// No answer at all, or one that broke off.
    pub fn transport_trouble(&self, error: &reqwest::Error, what: &str) -> Trouble {
        let (host, cause) = (self.options.host(), root_cause(error));
        if error.is_connect() {
            let message = format!(
                "cannot reach {host} ({cause}): \
                 check network and proxy, set HF_ENDPOINT to a mirror, or give a local path"
            );
            // A hub that was never reached is given up at once: there may be a second source.
            return Error::new(ErrorKind::Unavailable, message).with_code(UNREACHABLE).into();
        }
        let cause = if error.is_timeout() {
            format!("nothing came for {} s", self.options.patience.idle_ms as f64 / 1e3)
        } else {
            cause
        };
        let message =
            format!("the connection to {host} broke while fetching {what} ({cause}): start again to go on from there");
        let error = Error::new(ErrorKind::Unavailable, message);
        Trouble { error, retry: Retry::After(None) }
    }

    fn status_trouble(&self, response: &Response, repo: &str, file: Option<&str>) -> Trouble {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let asked = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let answer =
            Answer { status: response.status(), code: header("x-error-code"), asked, repo, file, revision: None };
        self.refusal(&answer)
    }

    fn api_trouble(&self, error: HFError, wanted: &Wanted<'_>) -> Trouble {
        let (context, asked) = match &error {
            HFError::Request { source, .. } => return self.transport_trouble(source, wanted.repo),
            HFError::RateLimited { context, retry_after } => (context, *retry_after),
            HFError::Http { context } | HFError::AuthRequired { context } | HFError::Forbidden { context } => {
                (context, None)
            }
            HFError::RepoNotFound { context: Some(context), .. }
            | HFError::RevisionNotFound { context: Some(context), .. } => (context, None),
            _ => return self.malformed(wanted.repo, &root_cause(&error)).into(),
        };
        let answer = Answer {
            status: context.status,
            code: context.error_code.as_deref(),
            asked: asked.map(|pause| pause.as_secs()),
            repo: wanted.repo,
            file: None,
            revision: wanted.revision,
        };
        self.refusal(&answer)
    }

    /// What a status means, and the next step.
    fn refusal(&self, answer: &Answer<'_>) -> Trouble {
        let (host, repo, has_token) = (self.options.host(), answer.repo, self.options.token.is_some());
        let page = format!("{}/{repo}", self.options.endpoint);
        let what = answer.file.map_or_else(|| format!("'{repo}'"), |file| format!("'{file}' of '{repo}'"));
        let never = |kind, message: String| Trouble::from(Error::new(kind, message));
        match answer.status.as_u16() {
            401 if has_token => never(
                ErrorKind::Unauthorized,
                format!("{host} refuses the token for {what}: renew HF_TOKEN or unset it"),
            ),
            // The hub also answers 401 for a model that does not exist.
            401 => never(
                ErrorKind::Unauthorized,
                format!(
                    "{host} asks for a login for {what}: check the name, accept its licence at {page}, set HF_TOKEN"
                ),
            ),
            403 => {
                let and_token = if has_token { "with the account of HF_TOKEN" } else { "and set HF_TOKEN" };
                never(ErrorKind::Forbidden, format!("no access to {what}: accept its licence at {page} {and_token}"))
            }
            404 => {
                let message = match (answer.file, answer.revision) {
                    (Some(file), _) => format!("no file '{file}' in '{repo}' on {host}: look at {page}/tree/main"),
                    (None, Some(revision)) if answer.code != Some("RepoNotFound") => {
                        format!("no revision '{revision}' of '{repo}' on {host}: look at {page}")
                    }
                    _ => format!("no model '{repo}' on {host}: check the spelling"),
                };
                never(ErrorKind::NotFound, message)
            }
            status @ (408 | 429 | 500..=599) => {
                let reason = if status == 429 { "limits requests" } else { "has trouble" };
                let message = format!("{host} {reason} (status {status}) for {what}: try again later");
                let mut error = Error::new(ErrorKind::Unavailable, message);
                error.retry_after_s = answer.asked.and_then(|seconds| u32::try_from(seconds).ok());
                Trouble { error, retry: Retry::After(answer.asked.map(Duration::from_secs)) }
            }
            status => never(
                ErrorKind::Unavailable,
                format!("{host} answered with status {status} for {what}: check HF_ENDPOINT and proxy"),
            ),
        }
    }
}

struct Answer<'a> {
    status: StatusCode,
    /// The hub's `X-Error-Code`.
    code: Option<&'a str>,
    /// Seconds of `Retry-After`.
    asked: Option<u64>,
    repo: &'a str,
    file: Option<&'a str>,
    revision: Option<&'a str>,
}

/// `localhost` or a loopback address, with or without a port.
fn is_loopback(host: &str) -> bool {
    let address = host.rsplit_once(':').map_or(host, |(address, _)| address).trim_matches(['[', ']']);
    address == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn redirect_target(from: &Url, headers: &HeaderMap) -> Option<Url> {
    from.join(headers.get(LOCATION)?.to_str().ok()?).ok()
}

/// The innermost reason, on one line. The outer layers hold the address, which may be signed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for (host, expected) in [
            ("localhost", true),
            ("localhost:8080", true),
            ("127.0.0.1:80", true),
            ("[::1]:80", true),
            ("127.0.0.1.example", false),
            ("hub.example:443", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }
}
