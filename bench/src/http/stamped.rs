// performance-critical: no allocation per token, no lock, no log, no format
//! A TCP connection that knows when the kernel took in the latest bytes: a reader that comes late reads no later time.
//!
//! On Linux the time is that of `SO_TIMESTAMPNS`, taken when the packet came in, on the real-time clock; it is brought to
//! the steady clock by the distance of the two, measured again every 50 ms so that neither a correction of the clock
//! nor its drift matters. Elsewhere, and where the kernel gives no time, it is the time of the read.
//!
//! Packets that one late read takes together share the time of the last: [`super::Reads`] counts the chunks of such reads.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use tokio::io::Interest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// When the latest bytes came, and how long they had lain there when they were read.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub came_at: Instant,
    /// `None`: the kernel gave no time.
    pub lain: Option<Duration>,
}

pub struct StampedStream {
    stream: TcpStream,
    #[cfg(target_os = "linux")]
    control: Vec<u8>,
    pub stamp: Stamp,
}

impl StampedStream {
    /// A connection, and how many bytes of `first` went out with it.
    ///
    /// The request is written in the same breath where the network lets it, as on the machine itself: a turn through
    /// the event loop between the two would be the generator's own time in every latency.
    pub async fn connect(address: SocketAddr, first: &[u8]) -> io::Result<(Self, usize)> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            Some(socket2::Protocol::TCP),
        )?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        ask_for_stamps(&socket);
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(why) if is_under_way(&why) => {}
            Err(why) => return Err(why),
        }
        // Nothing goes out before the connection stands; then this says how much did.
        let sent = match first.is_empty() {
            true => 0,
            false => socket.send(first).or_else(|why| if is_not_ready(&why) { Ok(0) } else { Err(why) })?,
        };
        let stream = TcpStream::from_std(socket.into())?;
        if sent == 0 {
            stream.writable().await?;
            if let Some(why) = stream.take_error()? {
                return Err(why);
            }
            // Writable after a refusal that was told already, too.
            stream.peer_addr()?;
        }
        let stamp = Stamp { came_at: Instant::now(), lain: None };
        #[cfg(target_os = "linux")]
        let control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        Ok((
            Self {
                stream,
                #[cfg(target_os = "linux")]
                control,
                stamp,
            },
            sent,
        ))
    }

    /// What has come, without waiting.
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        #[cfg(target_os = "linux")]
        let (count, unix) = {
            let (stream, control) = (&self.stream, &mut self.control);
            stream.try_io(Interest::READABLE, || linux::receive(stream, bytes, control))?
        };
        #[cfg(not(target_os = "linux"))]
        let (count, unix) = (self.stream.try_read(bytes)?, None::<Duration>);
        let now = Instant::now();
        self.stamp = match unix.and_then(|unix| clock::steady(unix, now)) {
            // Nothing can have come before what came before it.
            Some(came) => {
                let came_at = came.max(self.stamp.came_at).min(now);
                Stamp { came_at, lain: Some(now - came_at) }
            }
            None => Stamp { came_at: now, lain: None },
        };
        Ok(count)
    }
}

fn is_under_way(why: &io::Error) -> bool {
    #[cfg(unix)]
    let in_progress = why.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error());
    #[cfg(not(unix))]
    let in_progress = false;
    in_progress || why.kind() == io::ErrorKind::WouldBlock
}

/// Of a first write: the connection does not stand yet.
fn is_not_ready(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

#[cfg(target_os = "linux")]
fn ask_for_stamps(socket: &socket2::Socket) {
    // A kernel without them leaves the time of the read, which the result says.
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::ReceiveTimestampns, &true);
}

#[cfg(not(target_os = "linux"))]
fn ask_for_stamps(_socket: &socket2::Socket) {}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use tokio::net::TcpStream;

    /// How many bytes came, and when the last of them did, since 1970.
    pub(super) fn receive(
        stream: &TcpStream,
        bytes: &mut [u8],
        control: &mut [u8],
    ) -> io::Result<(usize, Option<Duration>)> {
        let mut parts = [io::IoSliceMut::new(bytes)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(control), MsgFlags::MSG_DONTWAIT)?;
        let mut came = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmTimestampns(time) = control {
                let (seconds, nanoseconds) = (u64::try_from(time.tv_sec()), u32::try_from(time.tv_nsec()));
                came = seconds.ok().zip(nanoseconds.ok()).map(|(s, ns)| Duration::new(s, ns));
            }
        }
        // A time of zero is none.
        Ok((message.bytes, came.filter(|came| !came.is_zero())))
    }
}

/// From the real-time clock to the steady one.
mod clock {
    use std::cell::Cell;
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    const KEPT: Duration = Duration::from_millis(50);
    /// A stamp that is older than this is of another clock.
    const AGE_MAX: Duration = Duration::from_secs(60);
    const TRIES: usize = 4;

    thread_local! {
        /// The same moment on both clocks.
        static ANCHOR: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
    }

    pub(super) fn steady(unix: Duration, now: Instant) -> Option<Instant> {
        let kept = ANCHOR.get().filter(|(instant, _)| now.saturating_duration_since(*instant) < KEPT);
        let (instant, anchor) = kept.or_else(measure)?;
        let came = if unix >= anchor { instant + (unix - anchor) } else { instant.checked_sub(anchor - unix)? };
        (came <= now + AGE_MAX && now.saturating_duration_since(came) <= AGE_MAX).then_some(came)
    }

    /// The tightest of some tries: whoever is interrupted between two readings of clocks measures the interruption.
    fn measure() -> Option<(Instant, Duration)> {
        let mut best: Option<(Duration, Instant, Duration)> = None;
        for _ in 0..TRIES {
            let before = Instant::now();
            let unix = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
            let width = before.elapsed();
            if best.is_none_or(|(least, ..)| width < least) {
                best = Some((width, before + width / 2, unix));
            }
        }
        let anchor = best.map(|(_, instant, unix)| (instant, unix));
        ANCHOR.set(anchor);
        anchor
    }
}

impl AsyncRead for StampedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            ready!(this.stream.poll_read_ready(cx))?;
            match this.receive(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // The readiness was an old one, and is cleared now.
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Poll::Ready(Err(why)),
            }
        }
    }
}

impl AsyncWrite for StampedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use tokio::io::AsyncReadExt;

    use super::*;

    /// Bytes that lie for a while are dated by when they came, and the request went out with the connection.
    #[test]
    fn late_reads_have_the_time_of_the_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("an address to listen on");
        let address = listener.local_addr().expect("an address");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (mut stream, sent) = StampedStream::connect(address, b"ask").await.expect("somebody listens");
            let (mut server, _) = listener.accept().expect("a connection");
            let mut found = false;
            // The kernel begins to date packets a moment after it was first asked to.
            for _ in 0..50 {
                let before = Instant::now();
                server.write_all(b"x").expect("written");
                let after = Instant::now();
                std::thread::sleep(Duration::from_millis(5));
                let mut bytes = [0; 16];
                assert_eq!(stream.read(&mut bytes).await.expect("read"), 1);
                let slack = Duration::from_millis(1);
                let Some(lain) = stream.stamp.lain else { continue };
                let is_between = stream.stamp.came_at + slack >= before && stream.stamp.came_at <= after + slack;
                found = is_between && lain >= Duration::from_millis(4);
                if found {
                    break;
                }
            }
            assert!(found, "no read had the time of its bytes: {:?}", stream.stamp);
            assert_eq!(sent, 3, "on one machine the request goes out with the connection");
        });
    }

    #[test]
    fn nobody_there_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("an address to listen on");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            for first in [&b""[..], b"ask"] {
                let error = StampedStream::connect(address, first).await.err().expect("refused");
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            }
        });
    }
}
