//! Names for requests: unguessable enough to be unique over processes, cheap enough to make for each.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest `x-request-id` of a client that is repeated back.
const CLIENT_ID_BYTES_MAX: usize = 128;

/// 32 hexadecimal digits that no other request of this or another process has.
///
/// A keyed hash of a counter: the keys come from the operating system once a process. An id names, it grants nothing.
pub(super) fn unique() -> String {
    static KEYS: OnceLock<(RandomState, RandomState)> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (high, low) = KEYS.get_or_init(|| (RandomState::new(), RandomState::new()));
    let number = (NEXT.fetch_add(1, Ordering::Relaxed), std::process::id());
    format!("{:016x}{:016x}", high.hash_one(number), low.hash_one(number))
}

/// A client's own request id, when it can be repeated in a header and a log line without harm.
pub(super) fn sane(client_id: &[u8]) -> Option<&str> {
    let id = std::str::from_utf8(client_id).ok()?;
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte);
    (!id.is_empty() && id.len() <= CLIENT_ID_BYTES_MAX && id.bytes().all(harmless)).then_some(id)
}

/// Seconds since 1970, as `created` wants them.
pub(super) fn unix_time_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_do_not_repeat() {
        let ids: HashSet<_> = (0..10_000).map(|_| unique()).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(ids.iter().all(|id| id.len() == 32));
    }

    #[test]
    fn only_harmless_client_ids_are_kept() {
        assert_eq!(sane(b"req-1.a_B"), Some("req-1.a_B"));
        for bad in [&b""[..], b"a b", b"a\nb", b"\xff", b"<x>", &[b'a'; 129]] {
            assert_eq!(sane(bad), None, "{bad:?}");
        }
    }
}
