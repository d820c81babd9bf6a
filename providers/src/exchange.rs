//! What is asked of a provider as a part of somebody's trace: what the provider is told of it, and what is noted of it.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};

use http::{HeaderValue, StatusCode};

use crate::provider::Provider;

tokio::task_local! {
    /// What is asked of a provider within its scope belongs to it.
    pub static EXCHANGE: Arc<Exchange>;
}

/// Made by who asks, and filled in on the way.
#[derive(Debug)]
pub struct Exchange {
    /// W3C trace context, passed on as it is.
    traceparent: String,
    provider: OnceLock<Provider>,
    /// 0 before there is one.
    status: AtomicU16,
}

impl Exchange {
    pub fn new(traceparent: String) -> Self {
        Self { traceparent, provider: OnceLock::new(), status: AtomicU16::new(0) }
    }

    /// Who was asked, once somebody was.
    pub fn provider(&self) -> Option<&Provider> {
        self.provider.get()
    }

    /// Of the last answer, good or bad, once its head was there.
    pub fn status(&self) -> Option<u16> {
        Some(self.status.load(Ordering::Relaxed)).filter(|status| *status != 0)
    }
}

/// Outside of any exchange this and the following do nothing.
pub(crate) fn asks(provider: &Provider) {
    // The first of several stands for all.
    let _ = EXCHANGE.try_with(|exchange| exchange.provider.set(provider.clone()));
}

pub(crate) fn answered(status: StatusCode) {
    let _ = EXCHANGE.try_with(|exchange| exchange.status.store(status.as_u16(), Ordering::Relaxed));
}

pub(crate) fn traceparent() -> Option<HeaderValue> {
    EXCHANGE.try_with(|exchange| HeaderValue::from_str(&exchange.traceparent).ok()).ok().flatten()
}
