//! A server whose timing is known: it streams tokens at set times, can stall, and remembers when it really wrote.
//!
//! One thread writes what is due, in the order of the times; another takes connections and reads requests. What a
//! measurement must find is not what was set but what was written: a busy machine is late, and the server knows. On Linux
//! a request came when the kernel took it in, however late it was read.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
#[cfg(not(target_os = "linux"))]
use std::io::Read;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Clone, Copy)]
pub struct Timing {
    pub first: Duration,
    pub gap: Duration,
    pub tokens: usize,
    /// Nothing is written from the one to the other, counted from the first request.
    pub stall: Option<(Duration, Duration)>,
}

/// When a request had come, and when each token was written.
#[derive(Clone)]
pub struct Truth {
    pub came: Instant,
    pub written: Vec<Instant>,
}

pub struct KnownServer {
    pub address: SocketAddr,
    truths: Arc<Mutex<Vec<Truth>>>,
}

struct Stream {
    socket: TcpStream,
    truth: Truth,
}

const CHUNK: &str = "data: {\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"known\",\"choices\":\
    [{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n";

impl KnownServer {
    pub fn start(address: &str, timing: Timing) -> Self {
        let listener = listen(address).expect("an address to listen on");
        let address = listener.local_addr().expect("an address");
        let truths = Arc::new(Mutex::new(Vec::new()));
        let (begin, begun) = sync_channel(65_536);
        let written = Arc::clone(&truths);
        std::thread::spawn(move || write_all(timing, &begun, &written));
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                accept(socket, &begin);
            }
        });
        Self { address, truths }
    }

    /// Of the answers that are complete.
    pub fn truths(&self) -> Vec<Truth> {
        self.truths.lock().expect("no panic while it is held").clone()
    }
}

/// With room for thousands of connections that come at once; what does not fit comes again a second later.
fn listen(address: &str) -> io::Result<TcpListener> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    // Connections have the option from the socket that they came through.
    #[cfg(target_os = "linux")]
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimestampns, &true)?;
    socket.bind(&address.into())?;
    socket.listen(16_384)?;
    Ok(socket.into())
}

/// Reads, and says when the latest bytes came.
#[cfg(target_os = "linux")]
fn read(socket: &mut TcpStream, part: &mut [u8]) -> io::Result<(usize, Instant)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::AsRawFd;
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut parts = [io::IoSliceMut::new(part)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let (now, unix) = (Instant::now(), std::time::SystemTime::now());
    let unix = unix.duration_since(std::time::UNIX_EPOCH).map_err(io::Error::other)?;
    let mut came = now;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmTimestampns(time) = control {
            came = now - unix.saturating_sub(Duration::from(time));
        }
    }
    Ok((message.bytes, came))
}

#[cfg(not(target_os = "linux"))]
fn read(socket: &mut TcpStream, part: &mut [u8]) -> io::Result<(usize, Instant)> {
    Ok((socket.read(part)?, Instant::now()))
}

/// Requests come with their connection: they are read one after the other.
fn accept(mut socket: TcpStream, begin: &SyncSender<Stream>) {
    let mut request = Vec::new();
    let mut part = [0; 8192];
    let (body_at, mut came) = loop {
        match read(&mut socket, &mut part) {
            Ok((count, at)) if count > 0 => {
                request.extend_from_slice(&part[..count]);
                if let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
                    break (end + 4, at);
                }
            }
            _ => return,
        }
    };
    let head = String::from_utf8_lossy(&request[..body_at]).to_ascii_lowercase();
    if head.starts_with("get ") {
        let body = "{\"data\":[{\"id\":\"known\"}]}";
        let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        return;
    }
    if !head.contains("completions") {
        let _ = socket.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    }
    let length = head.split("content-length:").nth(1).and_then(|rest| rest.lines().next());
    let length: usize = length.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    while request.len() < body_at + length {
        match read(&mut socket, &mut part) {
            Ok((count, at)) if count > 0 => {
                came = at;
                request.extend_from_slice(&part[..count]);
            }
            _ => return,
        }
    }
    if !String::from_utf8_lossy(&request[body_at..]).contains("\"stream\":true") {
        // What calibrates the length of words: one token a word and ten of a template.
        let words = String::from_utf8_lossy(&request[body_at..])
            .split("content\":\"")
            .nth(1)
            .map_or(0, |rest| rest.split('"').next().unwrap_or_default().split_whitespace().count());
        let body = format!("{{\"choices\":[],\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":1}}}}", words + 10);
        let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        return;
    }
    socket.set_nodelay(true).expect("an open socket");
    let truth = Truth { came, written: Vec::with_capacity(64) };
    let _ = begin.send(Stream { socket, truth });
}

fn write_all(timing: Timing, begun: &Receiver<Stream>, truths: &Mutex<Vec<Truth>>) {
    let mut streams: Vec<Option<Stream>> = Vec::new();
    let mut due: BinaryHeap<Reverse<(Instant, usize)>> = BinaryHeap::new();
    let mut start = None;
    loop {
        let wait = due
            .peek()
            .map_or(Duration::from_secs(3600), |Reverse((time, _))| time.saturating_duration_since(Instant::now()));
        let came = if wait.is_zero() {
            begun.try_recv().map_err(|_| RecvTimeoutError::Timeout)
        } else {
            begun.recv_timeout(wait)
        };
        match came {
            Ok(stream) => {
                let start = *start.get_or_insert(stream.truth.came);
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
                let time = timing.moved(start, stream.truth.came + timing.first);
                let mut stream = stream;
                if stream.socket.write_all(head.as_bytes()).is_ok() {
                    due.push(Reverse((time, streams.len())));
                    streams.push(Some(stream));
                }
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let Some(Reverse((_, at))) = due.pop_if_due() else { continue };
        let Some(mut stream) = streams[at].take() else { continue };
        let last = stream.truth.written.len() + 1 == timing.tokens;
        let end = if last {
            let usage = format!(
                "data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"length\"}}]}}\n\ndata: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":8,\
                 \"completion_tokens\":{}}}}}\n\ndata: [DONE]\n\n",
                timing.tokens
            );
            format!("{:x}\r\n{usage}\r\n0\r\n\r\n", usage.len())
        } else {
            String::new()
        };
        let text = format!("{:x}\r\n{CHUNK}\r\n{end}", CHUNK.len());
        stream.truth.written.push(Instant::now());
        // Before it is written: whoever has read the last token may ask at once.
        if last {
            truths.lock().expect("no panic while it is held").push(stream.truth.clone());
        }
        if stream.socket.write_all(text.as_bytes()).is_err() {
            continue;
        }
        if !last {
            let number = stream.truth.written.len() as u32;
            let next = stream.truth.came + timing.first + timing.gap * number;
            due.push(Reverse((timing.moved(start.expect("set by the first"), next), at)));
            streams[at] = Some(stream);
        }
    }
}

trait PopIfDue {
    fn pop_if_due(&mut self) -> Option<Reverse<(Instant, usize)>>;
}

impl PopIfDue for BinaryHeap<Reverse<(Instant, usize)>> {
    fn pop_if_due(&mut self) -> Option<Reverse<(Instant, usize)>> {
        let is_due = self.peek().is_some_and(|Reverse((time, _))| *time <= Instant::now());
        if is_due { self.pop() } else { None }
    }
}

impl Timing {
    fn moved(&self, start: Instant, time: Instant) -> Instant {
        match self.stall {
            Some((from, to)) if time >= start + from && time < start + to => start + to,
            _ => time,
        }
    }
}
