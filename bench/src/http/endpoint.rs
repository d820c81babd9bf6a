//! Where a server is: an address parsed and resolved once, before anything is measured.

use std::net::SocketAddr;

use sconce_vocabulary::error::{Error, Result};

/// A server, ready to be connected to.
#[derive(Clone)]
pub struct Endpoint {
    /// What stands in the Host header.
    pub authority: String,
    /// The path before `/v1/...`; empty, or without a slash at its end.
    pub base: String,
    pub addresses: Vec<SocketAddr>,
    pub(super) security: Security,
    /// Header lines that every request carries, each with its line end.
    pub headers: String,
}

#[derive(Clone)]
pub(super) enum Security {
    None,
    #[cfg(feature = "tls")]
    Tls {
        connector: tokio_rustls::TlsConnector,
        name: rustls::pki_types::ServerName<'static>,
    },
}

/// The parts of `http[s]://host[:port][/base]`.
#[derive(Debug, PartialEq)]
struct Parts {
    secure: bool,
    host: String,
    port: u16,
    authority: String,
    base: String,
}

impl Endpoint {
    /// Parses and resolves `url`. A trailing `/v1` is dropped: paths of requests carry it.
    pub fn resolve(url: &str, headers: &[(String, String)]) -> Result<Self> {
        let parts = parse(url)?;
        let addresses: Vec<SocketAddr> = std::net::ToSocketAddrs::to_socket_addrs(&(parts.host.as_str(), parts.port))
            .map_err(|why| Error::invalid("--url", format!("--url: cannot find the host of {url}: {why}")))?
            .collect();
        if addresses.is_empty() {
            return Err(Error::invalid("--url", format!("--url: the host of {url} has no address")));
        }
        let mut lines = String::new();
        for (name, value) in headers {
            let clean = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
            if !clean || value.bytes().any(|byte| byte < b' ' && byte != b'\t') {
                return Err(Error::invalid("--header", format!("--header: '{name}' is no header; write NAME=VALUE")));
            }
            lines.push_str(&format!("{name}: {value}\r\n"));
        }
        let security = if parts.secure { secure(&parts.host)? } else { Security::None };
        Ok(Self { authority: parts.authority, base: parts.base, addresses, security, headers: lines })
    }

    pub fn is_secure(&self) -> bool {
        match self.security {
            Security::None => false,
            #[cfg(feature = "tls")]
            Security::Tls { .. } => true,
        }
    }

    /// A whole request.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = format!(
            "{method} {}{path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: sconce-bench\r\nAccept: */*\r\n{}",
            self.base, self.authority, self.headers
        )
        .into_bytes();
        if method != "GET" {
            let length = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
            bytes.extend_from_slice(length.as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        bytes
    }
}

fn parse(url: &str) -> Result<Parts> {
    let wrong = || Error::invalid("--url", format!("--url: '{url}' is no address; write http://HOST:PORT"));
    let (secure, rest) = match url.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        None if !url.is_empty() => (false, url),
        _ => return Err(wrong()),
    };
    let (authority, base) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    if authority.contains('@') || base.contains(['?', '#', ' ']) {
        return Err(wrong());
    }
    let base = base.trim_end_matches('/');
    let base = base.strip_suffix("/v1").unwrap_or(base);
    let default_port = if secure { 443 } else { 80 };
    let after_bracket = authority.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match authority[after_bracket..].rfind(':') {
        Some(at) => {
            let (host, port) = authority.split_at(after_bracket + at);
            (host, port[1..].parse().map_err(|_| wrong())?)
        }
        None => (authority, default_port),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        return Err(wrong());
    }
    Ok(Parts { secure, host, port, authority: authority.to_owned(), base: base.to_owned() })
}

#[cfg(feature = "tls")]
fn secure(host: &str) -> Result<Security> {
    use rustls_platform_verifier::BuilderVerifierExt;
    let broken = |why: rustls::Error| Error::internal(format!("cannot set up TLS: {why}"));
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .with_platform_verifier()
        .map_err(broken)?
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(host.to_owned())
        .map_err(|_| Error::invalid("--url", format!("--url: '{host}' is no name that a certificate can have")))?;
    Ok(Security::Tls { connector: std::sync::Arc::new(config).into(), name })
}

#[cfg(not(feature = "tls"))]
fn secure(_host: &str) -> Result<Security> {
    Err(Error::invalid("--url", "--url: https needs the feature hub, which this binary was built without"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed() {
        let cases = [
            ("http://a:8080", Some((false, "a", 8080, ""))),
            ("http://a:8080/v1/", Some((false, "a", 8080, ""))),
            ("https://api.x.com/openai/v1", Some((true, "api.x.com", 443, "/openai"))),
            ("localhost:9", Some((false, "localhost", 9, ""))),
            ("http://[::1]:5/x", Some((false, "::1", 5, "/x"))),
            ("http://[::1]", Some((false, "::1", 80, ""))),
            ("ftp://a", None),
            ("http://", None),
            ("http://a:b", None),
            ("http://user@a", None),
            ("", None),
        ];
        for (url, expected) in cases {
            let parts = parse(url).ok();
            let found = parts.as_ref().map(|p| (p.secure, p.host.as_str(), p.port, p.base.as_str()));
            assert_eq!(found, expected, "{url}");
        }
    }

    #[test]
    fn headers_cannot_break_out() {
        let header = |name: &str, value: &str| {
            Endpoint::resolve("http://127.0.0.1:1", &[(name.to_owned(), value.to_owned())]).is_ok()
        };
        assert!(header("Authorization", "Bearer x y"));
        assert!(!header("A", "b\r\nC: d") && !header("A:", "b") && !header("", "b") && !header("A B", "c"));
    }
}
