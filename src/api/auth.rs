//! API keys: who asks, without ever keeping or logging the secret.

use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use sconce_route::Stay;
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};
use tokio::time::Instant;

use super::AppState;
use super::error::Failure;
use super::limits::Meter;
use crate::config::keys::{KeyConfig, KeyLimits};
use crate::config::pool::Budget;
use crate::error::{Error, ErrorKind};
use crate::pool::{Errand, Model, ModelCard, Pool, Trace};
use crate::request::Tenant;
use crate::store::Owner;
use crate::telemetry::access::RequestLog;

/// The accepted keys, which may change while requests run; cheap to clone.
#[derive(Clone)]
pub struct KeyRing {
    // Read once a request, written at a reload.
    keys: Arc<RwLock<Arc<Keys>>>,
}

impl KeyRing {
    pub fn new(plain: &[String], limited: &[KeyConfig]) -> Self {
        let keys = Keys::new(plain, limited, Instant::now());
        Self { keys: Arc::new(RwLock::new(Arc::new(keys))) }
    }

    /// From now on these keys are accepted. What a key has used of limits that stay the same stays used.
    pub fn replace(&self, plain: &[String], limited: &[KeyConfig]) {
        let mut next = Keys::new(plain, limited, Instant::now());
        let before = self.get();
        for key in &mut next.keys {
            let same = before.keys.iter().find(|other| other.hash == key.hash && other.limits == key.limits);
            if let Some(same) = same {
                key.meter.clone_from(&same.meter);
            }
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    pub(super) fn get(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The keys of a moment. Without keys everyone is let in.
pub(super) struct Keys {
    keys: Vec<Key>,
}

#[derive(Debug, Clone)]
struct Key {
    hash: [u8; 32],
    name: String,
    /// Names of the models that may be used; all when it is empty.
    models: Arc<[String]>,
    meter: Option<Arc<Meter>>,
    limits: KeyLimits,
    priority: Option<i32>,
    stay: Stay,
    /// Names of the members that may be used; `None` allows all.
    members: Option<Arc<[String]>>,
    budget: Budget,
    /// It is the operator's own, which sees what all use.
    is_operator: bool,
}

/// Who was let in; a request extension for handlers.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    key: Option<Key>,
}

impl Keys {
    /// Keys without limits, given in the clear, and keys with their limits, given as hashes.
    pub fn new(plain: &[String], limited: &[KeyConfig], now: Instant) -> Self {
        let plain = plain.iter().zip(1..).map(|(key, number)| Key {
            hash: Sha256::digest(key.as_bytes()).into(),
            name: format!("key-{number}"),
            models: Arc::default(),
            meter: None,
            limits: KeyLimits::default(),
            priority: None,
            stay: Stay::Anywhere,
            members: None,
            budget: Budget::default(),
            is_operator: true,
        });
        let limited = limited.iter().map(|key| Key {
            hash: key.hash,
            name: key.name.clone(),
            models: key.models.clone().into(),
            meter: Meter::new(&key.name, key.limits, now).map(Arc::new),
            limits: key.limits,
            priority: key.priority,
            stay: key.stay.clone(),
            members: (!key.members.is_empty()).then(|| key.members.clone().into()),
            budget: key.budget,
            is_operator: key.admin,
        });
        Self { keys: plain.chain(limited).collect() }
    }

    /// The caller, or 401. Compares hashes of equal length against every key, so that time tells nothing.
    fn caller(&self, headers: &HeaderMap) -> Result<Caller, Error> {
        if self.keys.is_empty() {
            return Ok(Caller { key: None });
        }
        let refused = |message| Error::new(ErrorKind::Unauthorized, message).with_code("invalid_api_key");
        let sent = sent_key(headers).ok_or_else(|| {
            refused("no API key was sent; send it as 'authorization: Bearer KEY' or as 'x-api-key: KEY'")
        })?;
        if sent.is_empty() {
            return Err(refused("the API key is empty; send it as 'authorization: Bearer KEY'"));
        }
        let sent: [u8; 32] = Sha256::digest(sent).into();
        let mut place = 0_u32;
        for (number, key) in (1_u32..).zip(&self.keys) {
            place.conditional_assign(&number, key.hash.ct_eq(&sent));
        }
        let found = usize::try_from(place).ok().and_then(|place| self.keys.get(place.checked_sub(1)?));
        match found {
            None => Err(refused("the API key is not one of this server's")),
            Some(key) => Ok(Caller { key: Some(key.clone()) }),
        }
    }
}

impl Keys {
    /// Who once was let in as `owner`; nobody when their key is not accepted any more.
    pub fn owner(&self, owner: Owner) -> Option<Caller> {
        let callers = self.keys.iter().map(|key| Caller { key: Some(key.clone()) });
        let open = self.keys.is_empty().then_some(Caller { key: None });
        callers.chain(open).find(|caller| caller.owner() == owner)
    }
}

impl Caller {
    pub fn name(&self) -> &str {
        self.key.as_ref().map_or("anonymous", |key| &key.name)
    }

    /// The use made of the key, when it is limited.
    pub fn meter(&self) -> Option<Arc<Meter>> {
        self.key.as_ref()?.meter.clone()
    }

    pub fn may_use(&self, card: &ModelCard) -> bool {
        let models = self.key.as_ref().map_or(&[][..], |key| &key.models);
        models.is_empty() || models.iter().any(|name| card.answers_to(name))
    }

    /// The member that answers for `model`, if this caller may ask it.
    pub fn member(&self, pool: &Pool, model: &str) -> Result<Arc<dyn Model>, Error> {
        let member = pool.model(model)?;
        if self.may_use(member.card()) {
            return Ok(member);
        }
        let message = format!("the API key '{}' may not use the model '{}'", self.name(), member.card().id);
        Err(Error::new(ErrorKind::Forbidden, message).with_param("model").with_code("model_not_allowed"))
    }

    /// The key's rules with the request's own demand, for the pool.
    pub fn errand(&self, stay: Stay, trace: Trace) -> Errand {
        let name = self.name().to_owned();
        match &self.key {
            None => Errand { key: name, stay, trace, ..Errand::default() },
            Some(key) => Errand {
                key: name,
                stay: key.stay.clone().and(stay),
                members: key.members.clone(),
                budget: key.budget,
                trace,
                is_batch: false,
            },
        }
    }

    /// May see what all keys use and look after the server: a key without limits, one that is an admin's, or anyone
    /// where no keys are needed.
    pub fn is_operator(&self) -> bool {
        self.key.as_ref().is_none_or(|key| key.is_operator)
    }

    /// The priority of a request that asks for `wanted`: not before its key's.
    pub fn priority(&self, wanted: i32) -> i32 {
        self.key.as_ref().and_then(|key| key.priority).map_or(wanted, |own| own.max(wanted))
    }

    /// Whose stored responses, files and batches are whose: a hash, from which neither the key nor the cache's salt can be told.
    pub fn owner(&self) -> Owner {
        let Some(Key { hash: key_hash, .. }) = &self.key else { return [0; 32] };
        let mut hash = Sha256::new();
        hash.update(b"sconce stored responses\0");
        hash.update(key_hash);
        hash.finalize().into()
    }

    /// The tenant of one request: callers with different keys, or different `cache_salt`s, share no prefix cache.
    pub fn tenant(&self, cache_salt: Option<&str>) -> Tenant {
        let name = self.name().to_owned();
        if self.key.is_none() && cache_salt.is_none() {
            return Tenant { name, salt: [0; 32] };
        }
        let mut hash = Sha256::new();
        hash.update(b"sconce prefix cache\0");
        hash.update(self.key.as_ref().map_or([0; 32], |key| key.hash));
        hash.update([u8::from(cache_salt.is_some())]);
        hash.update(cache_salt.unwrap_or_default());
        Tenant { name, salt: hash.finalize().into() }
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
    let caller = state.keys.get().caller(request.headers())?;
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
        Keys::new(&keys, &[], Instant::now()).caller(&headers)
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
    fn either_header_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", HeaderValue::from_static("b"));
        let keys = Keys::new(&["a".to_owned(), "b".to_owned()], &[], Instant::now());
        assert_eq!(keys.caller(&headers).expect("known").name(), "key-2");
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer wrong"));
        assert!(keys.caller(&headers).is_err(), "the header that everyone reads decides");
    }

    #[test]
    fn a_key_with_a_name_keeps_its_rules() {
        let config = KeyConfig {
            name: "ann".to_owned(),
            hash: Sha256::digest(b"secret").into(),
            models: vec!["tiny".to_owned()],
            limits: KeyLimits { requests_per_minute: Some(1), ..KeyLimits::default() },
            priority: Some(5),
            stay: Stay::Local,
            members: vec!["home".to_owned()],
            budget: Budget::default(),
            admin: false,
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer secret"));
        let caller = Keys::new(&["a".to_owned()], &[config], Instant::now()).caller(&headers).expect("known");
        assert_eq!((caller.name(), caller.meter().is_some()), ("ann", true));
        assert_eq!((caller.priority(-10), caller.priority(0), caller.priority(7)), (5, 5, 7));
        let errand = caller.errand(Stay::Regions(vec!["eu".to_owned()]), Trace::default());
        assert_eq!((errand.stay, errand.members.as_deref()), (Stay::Local, Some(&["home".to_owned()][..])));
        assert!(!caller.is_operator());
        let card = |id: &str, alias: &str| ModelCard {
            id: id.to_owned(),
            aliases: vec![alias.to_owned()],
            root: String::new(),
            parent: None,
            max_model_len: 8,
            created_s: 0,
            chat: true,
            task: Default::default(),
        };
        assert!(caller.may_use(&card("org/tiny", "tiny")) && !caller.may_use(&card("huge", "large")));
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
