//! The listening side: connections, their time limits, and a clean end.
//!
//! Every connection is bounded in number, in the time it may take to send a request's head, and in the time its
//! client may stop reading. After the shutdown signal nothing new is accepted, running answers are finished within
//! the drain timeout, and the rest is cut.

mod connection;
mod lane;
mod stall;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::error::{Error, Result};
use crate::pool::Pool;
use lane::{Arrival, Lanes};

/// Limits of the listening side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeOptions {
    /// How long running requests may take to end after the shutdown signal.
    pub drain_timeout: Duration,
    /// Longest time for the head of a request, and longest idle time of a kept connection.
    pub header_read_timeout: Duration,
    /// A client that takes no byte for this long while bytes are waiting for it is cut off.
    pub write_stall_timeout: Duration,
    /// Most connections at once; more wait in the system's queue.
    pub connections_max: usize,
    /// Threads that serve connections, each its own.
    pub threads: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(30),
            header_read_timeout: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(60),
            connections_max: 8192,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// After a failed accept, mostly for want of file descriptors: some connection must end first.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(50);

/// Serves until `shutdown` is done and the connections have ended or were cut.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    pool: Arc<Pool>,
    shutdown: impl Future<Output = ()>,
    options: ServeOptions,
) -> Result<()> {
    if options.connections_max == 0 {
        return Err(Error::invalid("connections_max", "connections_max is 0; allow at least one connection"));
    }
    if options.threads == 0 {
        return Err(Error::invalid("threads", "threads is 0; allow at least one thread for connections"));
    }
    let places = Arc::new(Semaphore::new(options.connections_max.min(Semaphore::MAX_PERMITS)));
    let (drain, draining) = watch::channel(false);
    let mut lanes = Lanes::start(&router, options, &draining)?;
    {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = accept(&listener, &places) => lanes.put(accepted?).await?,
            }
        }
    }
    // New requests are refused even on connections that are open already; new connections by the system.
    pool.drain();
    drop(listener);
    tracing::info!(running = pool.live(), timeout_s = options.drain_timeout.as_secs(), "draining");
    drain.send_replace(true);
    if tokio::time::timeout(options.drain_timeout, lanes.ended()).await.is_err() {
        tracing::warn!(
            connections = lanes.open(),
            running = pool.live(),
            "the drain timeout is over, cutting the rest"
        );
    }
    lanes.cut().await;
    Ok(())
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Result<Arrival> {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.map_err(|_| Error::internal("the connection places were closed"))?;
    loop {
        match listener.accept().await.and_then(|(stream, _peer)| stream.into_std()) {
            Ok(stream) => return Ok(Arrival { stream, place }),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY_WAIT).await;
            }
        }
    }
}
