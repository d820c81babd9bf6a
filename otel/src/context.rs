//! Who called whom: W3C trace context, and which traces are recorded.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

/// A place in a trace, as the header `traceparent` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: u128,
    pub span_id: u64,
    pub is_sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent`. Later versions may have more behind the four parts; what is damaged is no parent.
    pub fn parse(header: &str) -> Option<Self> {
        let header = header.trim();
        let mut parts = header.split('-');
        let (version, trace_id) = (parts.next()?, parts.next()?);
        let (span_id, flags) = (parts.next()?, parts.next()?);
        let is_hex = |text: &str, length| {
            text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        let is_known = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        if !is_known || !is_hex(trace_id, 32) || !is_hex(span_id, 16) || !is_hex(flags, 2) {
            return None;
        }
        let context = Self {
            trace_id: u128::from_str_radix(trace_id, 16).ok()?,
            span_id: u64::from_str_radix(span_id, 16).ok()?,
            is_sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
        };
        (context.trace_id != 0 && context.span_id != 0).then_some(context)
    }

    pub fn header(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.is_sampled))
    }

    /// A new span: of the parent's trace where there is one.
    pub(crate) fn child(parent: Option<&Self>, sampler: Sampler) -> Self {
        let trace_id =
            parent.map_or_else(|| u128::from(random()) << 64 | u128::from(random()), |parent| parent.trace_id);
        Self { trace_id, span_id: random(), is_sampled: sampler.samples(trace_id, parent) }
    }

    /// A new span of the same trace, recorded if this one is.
    pub(crate) fn below(&self) -> Self {
        Self { span_id: random(), ..*self }
    }
}

/// Not zero, and not guessable from outside; no key is made of it.
fn random() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    thread_local!(static KEYS: RandomState = RandomState::new());
    KEYS.with(|keys| keys.hash_one((NEXT.fetch_add(1, Ordering::Relaxed), std::process::id()))).max(1)
}

/// Which traces are recorded: `OTEL_TRACES_SAMPLER`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// What the caller says of its trace holds for our part of it.
    pub follows_parent: bool,
    /// Share of the others, 0..=1.
    pub ratio: f64,
}

impl Sampler {
    fn samples(self, trace_id: u128, parent: Option<&TraceContext>) -> bool {
        match parent {
            Some(parent) if self.follows_parent => parent.is_sampled,
            // By the low 63 bits of the trace, so that all its parts decide alike.
            _ => ((trace_id as u64) >> 1) as f64 / (u64::MAX >> 1) as f64 <= self.ratio && self.ratio > 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn parents_are_read_and_written() {
        let context = TraceContext::parse(PARENT).expect("it is sound");
        assert_eq!((context.header().as_str(), context.is_sampled), (PARENT, true));
        for (header, is_read) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", false),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("00-4bf92f-00f067aa0ba902b7-01", false),
            ("", false),
        ] {
            assert_eq!(TraceContext::parse(header).is_some(), is_read, "{header}");
        }
    }

    #[test]
    fn samplers_decide_as_their_names_say() {
        let parent = |is_sampled| TraceContext { is_sampled, ..TraceContext::parse(PARENT).expect("sound") };
        for (follows_parent, ratio, alone, below_sampled, below_unsampled) in [
            (true, 1.0, true, true, false),
            (true, 0.0, false, true, false),
            (false, 1.0, true, true, true),
            (false, 0.0, false, false, false),
        ] {
            let sampler = Sampler { follows_parent, ratio };
            assert_eq!(TraceContext::child(None, sampler).is_sampled, alone);
            let child = TraceContext::child(Some(&parent(true)), sampler);
            assert_eq!((child.is_sampled, child.trace_id), (below_sampled, parent(true).trace_id));
            assert_ne!(child.span_id, parent(true).span_id);
            assert_eq!(TraceContext::child(Some(&parent(false)), sampler).is_sampled, below_unsampled);
        }
        let some = Sampler { follows_parent: true, ratio: 0.25 };
        let sampled = (0..4000).filter(|_| TraceContext::child(None, some).is_sampled).count();
        assert!((800..1200).contains(&sampled), "{sampled} of 4000");
    }
}
