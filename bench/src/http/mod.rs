//! An HTTP/1.1 client that knows when each byte came: one connection a request in flight, kept alive between requests.

mod body;
mod connection;
mod endpoint;
mod sse;
mod stamped;

pub use body::Body;
pub use connection::{Connection, Fault, Head};
pub use endpoint::Endpoint;
pub use sse::Events;
pub use stamped::{Stamp, StampedStream};
