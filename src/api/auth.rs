//! API keys: who asks, without ever keeping or logging the secret.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::AppState;
use super::error::Failure;
use crate::error::{Error, ErrorKind};
use crate::request::Tenant;
use crate::store::Owner;
use crate::telemetry::access::RequestLog;

/// The accepted keys as hashes. Without keys everyone is let in.
pub(super) struct Keys {
    hashes: Vec<[u8; 32]>,
}

/// Who was let in; a request extension for handlers.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    name: String,
    key_hash: Option<[u8; 32]>,
}

impl Keys {
    pub fn new(keys: &[String]) -> Self {
        Self { hashes: keys.iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect() }
    }

    /// The caller, or 401. Compares hashes of equal length against every key, so that time tells nothing.
    fn caller(&self, headers: &HeaderMap) -> Result<Caller, Error> {
        if self.hashes.is_empty() {
            return Ok(Caller { name: "anonymous".to_owned(), key_hash: None });
        }
        let refused = |message| Error::new(ErrorKind::Unauthorized, message).with_code("invalid_api_key");
        let key =
            sent_key(headers).ok_or_else(|| refused("no API key was sent; send it as 'authorization: Bearer KEY'"))?;
        if key.is_empty() {
            return Err(refused("the API key is empty; send it as 'authorization: Bearer KEY'"));
        }
        let sent: [u8; 32] = Sha256::digest(key).into();
        let mut found = Choice::from(0);
        let mut number = 0_u32;
        for (index, hash) in (1_u32..).zip(&self.hashes) {
            let equal = hash.ct_eq(&sent);
            number.conditional_assign(&index, equal);
            found |= equal;
        }
        if !bool::from(found) {
            return Err(refused("the API key is not one of this server's"));
        }
        Ok(Caller { name: format!("key-{number}"), key_hash: Some(sent) })
    }
}

impl Caller {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whose stored responses are whose: a hash, from which neither the key nor the cache's salt can be told.
    pub fn owner(&self) -> Owner {
        let Some(key_hash) = self.key_hash else { return [0; 32] };
        let mut hash = Sha256::new();
        hash.update(b"sconce stored responses\0");
        hash.update(key_hash);
        hash.finalize().into()
    }

    /// The tenant of one request: callers with different keys, or different `cache_salt`s, share no prefix cache.
    pub fn tenant(&self, cache_salt: Option<&str>) -> Tenant {
        if self.key_hash.is_none() && cache_salt.is_none() {
            return Tenant { name: self.name.clone(), salt: [0; 32] };
        }
        let mut hash = Sha256::new();
        hash.update(b"sconce prefix cache\0");
        hash.update(self.key_hash.unwrap_or([0; 32]));
        hash.update([u8::from(cache_salt.is_some())]);
        hash.update(cache_salt.unwrap_or_default());
        Tenant { name: self.name.clone(), salt: hash.finalize().into() }
    }
}

/// The key as OpenAI's clients send it, or as Anthropic's do.
fn sent_key(headers: &HeaderMap) -> Option<&[u8]> {
    bearer(headers).or_else(|| headers.get("x-api-key").map(|key| key.as_bytes().trim_ascii()))
}

/// The token of an `Authorization: Bearer …` header; the scheme's case does not matter (RFC 9110, 11.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Lets a request with a good key through, with its [`Caller`] as extension.
pub(super) async fn require_key(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let caller = state.keys.caller(request.headers())?;
    if let Some(log) = request.extensions().get::<RequestLog>() {
        log.tenant(caller.name());
    }
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn ask(keys: &[&str], header: Option<&'static str>) -> Result<Caller, Error> {
        let keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(header));
        }
        Keys::new(&keys).caller(&headers)
    }

    #[test]
    fn only_a_right_key_gets_in() {
        assert_eq!(ask(&[], None).expect("open").name(), "anonymous");
        assert_eq!(ask(&["a", "b"], Some("Bearer b")).expect("known").name(), "key-2");
        assert_eq!(ask(&["a", "b"], Some("bearer  a ")).expect("known").name(), "key-1");
        for bad in [None, Some("b"), Some("Bearer"), Some("Bearer "), Some("Bearer c"), Some("Basic b")] {
            assert_eq!(ask(&["a", "b"], bad).expect_err("refused").kind, ErrorKind::Unauthorized, "{bad:?}");
        }
        assert!(ask(&[""], Some("Bearer ")).is_err(), "an empty key opens nothing");
    }

    #[test]
    fn salts_separate_keys_and_cache_salts() {
        let open = ask(&[], None).expect("open");
        let one = ask(&["a", "b"], Some("Bearer a")).expect("known");
        let two = ask(&["a", "b"], Some("Bearer b")).expect("known");
        assert_eq!(open.tenant(None).salt, [0; 32]);
        let salts = [
            open.tenant(None).salt,
            open.tenant(Some("x")).salt,
            open.tenant(Some("")).salt,
            one.tenant(None).salt,
            one.tenant(Some("x")).salt,
            two.tenant(None).salt,
        ];
        for (index, salt) in salts.iter().enumerate() {
            assert!(!salts[..index].contains(salt), "salt {index} repeats");
        }
        assert!(!format!("{:?}", one.tenant(None)).contains("\"a\""));
    }
}
