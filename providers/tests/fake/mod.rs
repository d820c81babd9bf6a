//! A provider that answers what it is told to, or stalls, breaks and lies. HTTP/1.1 on a port of this machine.
//!
//! It needs nothing but tokio, so that any test can include it by its path:
//! `#[path = "../../providers/tests/fake/mod.rs"] mod fake;`

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Play {
    /// A whole answer.
    Answer { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// The head of a stream at once, then these steps. After the last one the stream ends as it should.
    Stream { content_type: String, steps: Vec<Step> },
    /// Closes the connection without a word.
    HangUp,
    /// Never answers, and waits until the client has gone.
    Silence,
}

#[derive(Debug, Clone)]
pub enum Step {
    Send(Vec<u8>),
    /// Says nothing for a while.
    Wait(std::time::Duration),
    /// Says no more, and waits until the client has gone.
    Stall,
    /// Closes the connection in the middle.
    Cut,
}

impl Play {
    pub fn json(status: u16, body: &str) -> Self {
        Self::Answer {
            status,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.as_bytes().to_vec(),
        }
    }

    /// A stream of server-sent events that is sent in one piece.
    pub fn sse(text: &str) -> Self {
        Self::events(vec![Step::Send(text.as_bytes().to_vec())])
    }

    pub fn events(steps: Vec<Step>) -> Self {
        Self::Stream { content_type: "text/event-stream".to_owned(), steps }
    }
}

type Script = dyn Fn(&Seen) -> Play + Send + Sync;

/// Listens until it is dropped.
pub struct FakeProvider {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Clients that went away while they were to wait.
    gone: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl FakeProvider {
    pub async fn start(script: impl Fn(&Seen) -> Play + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (sender, gone) = watch::channel(0);
        let (script, sender): (Arc<Script>, _) = (Arc::new(script), Arc::new(sender));
        let known = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, known, sender) = (Arc::clone(&script), Arc::clone(&known), Arc::clone(&sender));
                tokio::spawn(async move { connection(stream, &*script, &known, &sender).await });
            }
        });
        Self { address, seen, gone, task }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic in between").clone()
    }

    /// Waits until this many clients went away while they were to wait.
    pub async fn wait_gone(&mut self, count: usize) {
        self.gone.wait_for(|gone| *gone >= count).await.expect("the fake still listens");
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(mut stream: TcpStream, script: &Script, seen: &Mutex<Vec<Seen>>, gone: &watch::Sender<usize>) {
    let mut buffer = Vec::new();
    while let Some(request) = read(&mut stream, &mut buffer).await {
        seen.lock().expect("no panic in between").push(request.clone());
        if !played(&mut stream, script(&request), gone).await {
            return;
        }
    }
}

/// The next request of a connection.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let end = head_end + length.unwrap_or(0_usize);
    while buffer.len() < end {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = String::from_utf8_lossy(&buffer[head_end..end]).into_owned();
    buffer.drain(..end);
    Some(Seen { method, path, headers, body })
}

/// Whether the connection goes on.
async fn played(stream: &mut TcpStream, play: Play, gone: &watch::Sender<usize>) -> bool {
    match play {
        Play::Answer { status, headers, body } => {
            let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await.is_ok() && stream.write_all(&body).await.is_ok()
        }
        Play::Stream { content_type, steps } => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n");
            if stream.write_all(head.as_bytes()).await.is_err() {
                return false;
            }
            for step in steps {
                match step {
                    Step::Send(bytes) => {
                        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat();
                        if stream.write_all(&chunk).await.is_err() {
                            return false;
                        }
                    }
                    Step::Wait(pause) => tokio::time::sleep(pause).await,
                    Step::Stall => return until_gone(stream, gone).await,
                    Step::Cut => return false,
                }
            }
            stream.write_all(b"0\r\n\r\n").await.is_ok()
        }
        Play::HangUp => false,
        Play::Silence => until_gone(stream, gone).await,
    }
}

async fn until_gone(stream: &mut TcpStream, gone: &watch::Sender<usize>) -> bool {
    let mut nothing = [0; 64];
    while matches!(stream.read(&mut nothing).await, Ok(count) if count > 0) {}
    gone.send_modify(|count| *count += 1);
    false
}
