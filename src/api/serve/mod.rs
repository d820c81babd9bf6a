//! The listening side: connections, their time limits, and a clean end.
//!
//! Every connection is bounded in number, in the time it may take to send a request's head, and in the time its
//! client may stop reading. After the shutdown signal nothing new is accepted, running answers are finished within
//! the drain timeout, and the rest is cut.

mod connection;
mod stall;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::pool::Pool;

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
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(30),
            header_read_timeout: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(60),
            connections_max: 8192,
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
    let places = Arc::new(Semaphore::new(options.connections_max.min(Semaphore::MAX_PERMITS)));
    let (drain, draining) = watch::channel(false);
    let mut connections = JoinSet::new();
    {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => report(ended),
                accepted = accept(&listener, &places) => {
                    let (stream, place) = accepted?;
                    let serving = connection::serve(stream, router.clone(), options, draining.clone());
                    connections.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
            }
        }
    }
    // New requests are refused even on connections that are open already; new connections by the system.
    pool.drain();
    drop(listener);
    tracing::info!(running = pool.live(), timeout_s = options.drain_timeout.as_secs(), "draining");
    drain.send_replace(true);
    let all_ended = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(options.drain_timeout, all_ended).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            running = pool.live(),
            "the drain timeout is over, cutting the rest"
        );
        connections.shutdown().await;
    }
    Ok(())
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.map_err(|_| Error::internal("the connection places were closed"))?;
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => return Ok((stream, place)),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY_WAIT).await;
            }
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}
