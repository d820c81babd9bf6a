//! API keys with limits: `[[keys]]` in `sconce.toml`, where only a key's hash stands.

use std::io::Read;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use sconce_route::Stay;

use super::pool::{self, Budget, BudgetSection, StaySection};
use crate::error::{Error, ErrorKind, Result};

const HASH_PREFIX: &str = "sha256:";
/// What every key begins with that this program makes, so that scanners for leaked secrets can know one.
const KEY_PREFIX: &str = "sk-sconce-";
const KEY_BYTES: usize = 32;

/// One `[[keys]]` table.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySection {
    /// Shown in logs and metrics.
    pub name: String,
    /// `sha256:` and the hash in hexadecimal, as `sconce keys new` prints it.
    pub hash: String,
    /// Names of the models that may be used; all when it is empty.
    #[serde(default)]
    pub models: Vec<String>,
    pub requests_per_minute: Option<u32>,
    /// Of prompts and answers together.
    pub tokens_per_minute: Option<u32>,
    pub concurrent_requests: Option<u32>,
    /// Lower is served earlier, as in a request's own `priority`; a request may only ask to be served later.
    pub priority: Option<i32>,
    /// Where its requests may be worked on: `"local"` or a list of regions.
    pub stay: Option<StaySection>,
    /// Names of the members that its requests may be sent to; all when it is empty.
    #[serde(default)]
    pub members: Vec<String>,
    pub budget: Option<BudgetSection>,
    /// May load and unload models, change what is logged, and see what all keys use.
    #[serde(default)]
    pub admin: bool,
}

/// A checked key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyConfig {
    pub name: String,
    pub hash: [u8; 32],
    pub models: Vec<String>,
    pub limits: KeyLimits,
    pub priority: Option<i32>,
    pub stay: Stay,
    pub members: Vec<String>,
    pub budget: Budget,
    pub admin: bool,
}

/// `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyLimits {
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u32>,
    pub concurrent_requests: Option<u32>,
}

/// Checks every key. Errors name the key.
pub fn checked(sections: &[KeySection]) -> Result<Vec<KeyConfig>> {
    let mut keys: Vec<KeyConfig> = Vec::with_capacity(sections.len());
    for section in sections {
        let key = key(section)?;
        let wrong = |what: &str| Err(Error::invalid("keys", format!("two [[keys]] have {what} '{}'", key.name)));
        if keys.iter().any(|other| other.name == key.name) {
            return wrong("the name");
        }
        if keys.iter().any(|other| other.hash == key.hash) {
            return wrong("the same hash; the second is");
        }
        keys.push(key);
    }
    Ok(keys)
}

fn key(section: &KeySection) -> Result<KeyConfig> {
    let name = section.name.clone();
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(harmless) {
        let message =
            "the name of a [[keys]] table must be 1 to 64 letters, digits, dots, underscores or hyphens: it is logged";
        return Err(Error::invalid("keys.name", message));
    }
    let hash = parse_hash(&section.hash).ok_or_else(|| {
        let message = format!(
            "the hash of the key '{name}' is not {HASH_PREFIX} and 64 hexadecimal digits; make it with 'sconce keys'"
        );
        Error::invalid("keys.hash", message)
    })?;
    let limits = [
        ("requests_per_minute", section.requests_per_minute),
        ("tokens_per_minute", section.tokens_per_minute),
        ("concurrent_requests", section.concurrent_requests),
    ];
    if let Some((field, _)) = limits.iter().find(|(_, limit)| *limit == Some(0)) {
        let message = format!("{field} of the key '{name}' is 0; leave it out for no limit, or take the key out");
        return Err(Error::invalid(format!("keys.{field}"), message));
    }
    let wrong = |field: &str, why: &str| Error::invalid(format!("keys.{field}"), format!("the key '{name}': {why}"));
    Ok(KeyConfig {
        name: name.clone(),
        hash,
        models: section.models.clone(),
        limits: KeyLimits {
            requests_per_minute: section.requests_per_minute,
            tokens_per_minute: section.tokens_per_minute,
            concurrent_requests: section.concurrent_requests,
        },
        priority: section.priority,
        stay: pool::stay(section.stay.as_ref()).map_err(|why| wrong("stay", &why))?,
        members: section.members.clone(),
        admin: section.admin,
        budget: Budget::from_section(section.budget.as_ref()).map_err(|why| wrong("budget", &why))?,
    })
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix(HASH_PREFIX)?;
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// The hash of a key, as `[[keys]]` wants it.
pub fn hash_text(key: &str) -> String {
    format!("{HASH_PREFIX}{}", hex(&Sha256::digest(key.as_bytes())))
}

/// A new key: 256 bits from the operating system.
pub fn generate() -> Result<String> {
    let mut bytes = [0; KEY_BYTES];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|why| Error::new(ErrorKind::Internal, format!("cannot read random bytes from /dev/urandom: {why}")))?;
    Ok(format!("{KEY_PREFIX}{}", hex(&bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(name: &str, key: &str) -> KeySection {
        KeySection { name: name.to_owned(), hash: hash_text(key), ..KeySection::default() }
    }

    #[test]
    fn a_hash_is_written_and_read() {
        // Of "abc", from FIPS 180-4's examples.
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_text("abc"), text);
        let keys = checked(&[section("ann", "abc")]).expect("good");
        assert_eq!(keys[0].hash[..2], [0xba, 0x78]);
    }

    #[test]
    fn made_keys_differ_and_are_long() {
        let (one, two) = (generate().expect("random"), generate().expect("random"));
        assert!(one != two && one.len() == KEY_PREFIX.len() + 64 && one.starts_with(KEY_PREFIX));
    }

    #[test]
    fn bad_keys_are_named() {
        let good = section("ann", "a");
        for (sections, param) in [
            (vec![KeySection { name: "a b".into(), ..good.clone() }], "keys.name"),
            (vec![KeySection { name: String::new(), ..good.clone() }], "keys.name"),
            (vec![KeySection { hash: "abc".into(), ..good.clone() }], "keys.hash"),
            (vec![KeySection { hash: format!("sha256:{}", "x".repeat(64)), ..good.clone() }], "keys.hash"),
            (vec![KeySection { hash: format!("sha256:{}", "é".repeat(32)), ..good.clone() }], "keys.hash"),
            (vec![KeySection { requests_per_minute: Some(0), ..good.clone() }], "keys.requests_per_minute"),
            (vec![good.clone(), section("ann", "b")], "keys"),
            (vec![good.clone(), section("bob", "a")], "keys"),
        ] {
            assert_eq!(checked(&sections).expect_err(param).param.as_deref(), Some(param));
        }
    }
}
