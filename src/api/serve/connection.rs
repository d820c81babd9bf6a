//! One connection, HTTP/1.1 or HTTP/2, from its first byte to its last.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower::ServiceExt;

use super::ServeOptions;
use super::stall::StallGuard;

/// Streams a client may open at once on one HTTP/2 connection.
const HTTP2_STREAMS_MAX: u32 = 256;

/// Serves one connection until it ends, times out or `draining` turns true and its requests are done.
pub(super) async fn serve(
    stream: TcpStream,
    router: Router,
    options: ServeOptions,
    mut draining: watch::Receiver<bool>,
) {
    // Small events must leave at once. Failing means the peer is gone already, which the next read will say.
    let _gone = stream.set_nodelay(true);
    let started = Arc::new(AtomicBool::new(false));
    let service = {
        let started = Arc::clone(&started);
        hyper::service::service_fn(move |request: Request<Incoming>| {
            started.store(true, Ordering::Relaxed);
            answer(router.clone(), request)
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(options.header_read_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .keep_alive_interval(options.header_read_timeout)
        .keep_alive_timeout(options.header_read_timeout);
    let io = TokioIo::new(StallGuard::new(stream, options.write_stall_timeout));
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    // hyper times a head only after it knows the protocol, so a silent peer is timed here.
    let mut first_head = std::pin::pin!(tokio::time::sleep(options.header_read_timeout));
    let mut first_head_timed = true;
    let mut drained = *draining.borrow();
    if drained {
        connection.as_mut().graceful_shutdown();
    }
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            () = first_head.as_mut(), if first_head_timed => {
                if !started.load(Ordering::Relaxed) {
                    tracing::debug!("a connection sent no request in time");
                    return;
                }
                first_head_timed = false;
            }
            // An error means the server is gone, which is as good as draining.
            _ = draining.changed(), if !drained => {
                drained = true;
                if !started.load(Ordering::Relaxed) {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn answer(router: Router, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    router.oneshot(request.map(Body::new)).await
}
