//! Threads that serve connections, each with a runtime of its own.
//!
//! A connection stays where it was put: its requests, their timers and the connections to hosted members that they use
//! are driven by one thread. So an answer that passes through wakes no second thread, which costs more than everything
//! that is computed for it. Work that takes long belongs on the blocking threads, as on any async runtime.

use std::io;
use std::net::TcpStream as SystemStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};

use super::{ServeOptions, connection};
use crate::error::{Error, Result};

/// Connections that were accepted and that a lane has not taken up yet.
const ARRIVALS_MAX: usize = 1024;
/// Blocking threads of all lanes together, as many as one runtime has; few are ever there.
const BLOCKING_THREADS_MAX: usize = 512;

/// An accepted connection, with its place among the connections.
pub(super) struct Arrival {
    pub stream: SystemStream,
    pub place: OwnedSemaphorePermit,
}

/// All of them. Dropping it cuts what they still serve.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    next: usize,
    alive: watch::Sender<()>,
}

struct Lane {
    arrivals: Option<mpsc::Sender<Arrival>>,
    open: Arc<AtomicUsize>,
    ended: oneshot::Receiver<()>,
}

/// What a lane serves, and until when.
#[derive(Clone)]
struct Duty {
    router: Router,
    options: ServeOptions,
    draining: watch::Receiver<bool>,
    alive: watch::Receiver<()>,
    open: Arc<AtomicUsize>,
}

impl Lanes {
    /// `draining` is told to every connection.
    pub fn start(router: &Router, options: ServeOptions, draining: &watch::Receiver<bool>) -> Result<Self> {
        let (alive, lives) = watch::channel(());
        let duty = || Duty {
            router: router.clone(),
            options,
            draining: draining.clone(),
            alive: lives.clone(),
            open: Arc::default(),
        };
        let lanes: io::Result<Vec<Lane>> = (0..options.threads).map(|number| start(number, duty())).collect();
        let lanes = lanes.map_err(|why| Error::internal(format!("cannot start a thread for connections: {why}")))?;
        Ok(Self { lanes, next: 0, alive })
    }

    /// Connections that are being served.
    pub fn open(&self) -> usize {
        self.lanes.iter().map(|lane| lane.open.load(Ordering::Relaxed)).sum()
    }

    /// Gives a connection to the lane that has the fewest; among equals they take turns.
    pub async fn put(&mut self, arrival: Arrival) -> Result<()> {
        let count = self.lanes.len();
        let order = (0..count).map(|step| (self.next + step) % count);
        let chosen = order.min_by_key(|at| self.lanes[*at].open.load(Ordering::Relaxed)).unwrap_or(0);
        self.next = (chosen + 1) % count;
        let lane = &self.lanes[chosen];
        let gone = || Error::internal("a thread for connections has ended");
        lane.open.fetch_add(1, Ordering::Relaxed);
        lane.arrivals.as_ref().ok_or_else(gone)?.send(arrival).await.map_err(|_| gone())
    }

    /// Comes back when the connections have ended; there will be no others.
    pub async fn ended(&mut self) {
        for lane in &mut self.lanes {
            lane.arrivals = None;
        }
        for lane in &mut self.lanes {
            // One that ended without a word has ended as well. Each is heard once.
            if !lane.ended.is_terminated() {
                let _ = (&mut lane.ended).await;
            }
        }
    }

    /// Ends what is still served.
    pub async fn cut(mut self) {
        drop(std::mem::replace(&mut self.alive, watch::Sender::new(())));
        self.ended().await;
    }
}

fn start(number: usize, duty: Duty) -> io::Result<Lane> {
    let (arrivals, arriving) = mpsc::channel(ARRIVALS_MAX);
    let (end, ended) = oneshot::channel();
    let open = Arc::clone(&duty.open);
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX.div_ceil(duty.options.threads))
        .thread_name(format!("http-{number}-blocking"))
        .build()?;
    std::thread::Builder::new().name(format!("http-{number}")).spawn(move || {
        runtime.block_on(duty.serve(arriving));
        // A file that is being written in a blocking thread is not waited for.
        runtime.shutdown_background();
        // Nobody may be there any more to hear it.
        let _ = end.send(());
    })?;
    Ok(Lane { arrivals: Some(arrivals), open, ended })
}

impl Duty {
    /// The life of one lane.
    async fn serve(mut self, mut arriving: mpsc::Receiver<Arrival>) {
        let mut connections = JoinSet::new();
        let mut is_last = false;
        while !(is_last && connections.is_empty()) {
            tokio::select! {
                // Nothing is ever sent: it comes back when the server is gone.
                _ = self.alive.changed() => return connections.shutdown().await,
                Some(ended) = connections.join_next(), if !connections.is_empty() => self.report(ended),
                arrival = arriving.recv(), if !is_last => match arrival {
                    Some(arrival) => self.take_up(arrival, &mut connections),
                    None => is_last = true,
                },
            }
        }
    }

    fn take_up(&self, Arrival { stream, place }: Arrival, connections: &mut JoinSet<()>) {
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                self.open.fetch_sub(1, Ordering::Relaxed);
                return tracing::warn!(%error, "a connection could not be taken up");
            }
        };
        let serving = connection::serve(stream, self.router.clone(), self.options, self.draining.clone());
        connections.spawn(async move {
            serving.await;
            drop(place);
        });
    }

    fn report(&self, ended: std::result::Result<(), JoinError>) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, "a connection's task panicked");
        }
    }
}
