//! AWS Signature Version 4, as Bedrock wants it.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use sconce_vocabulary::calendar::rfc3339;
use sconce_vocabulary::error::{Error, Result};
use sha2::{Digest, Sha256};

use crate::secret::Secret;
use crate::transport::Call;

pub(crate) struct Keys<'a> {
    pub access_key_id: &'a Secret,
    pub secret_access_key: &'a Secret,
    pub session_token: Option<&'a Secret>,
}

const SERVICE: &str = "bedrock";
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// Adds the headers that prove whose request it is.
pub(crate) fn sign(call: &mut Call, keys: &Keys<'_>, region: &str, now: SystemTime) -> Result<()> {
    let unix_s = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let moment = moment(unix_s);
    let header = |text: &str| {
        let bad = |_| Error::internal("the AWS keys have bytes that no header may have");
        HeaderValue::from_str(text).map_err(bad)
    };
    call.headers.insert(DATE, header(&moment)?);
    if let Some(token) = keys.session_token {
        let mut token = header(token.expose())?;
        token.set_sensitive(true);
        call.headers.insert(TOKEN, token);
    }
    let host = match (call.url.host_str().unwrap_or_default(), call.url.port()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    };
    let mut headers = vec![("host", host)];
    for name in ["content-type", "x-amz-date", "x-amz-security-token"] {
        if let Some(value) = call.headers.get(name).and_then(|value| value.to_str().ok()) {
            headers.push((name, value.trim().to_owned()));
        }
    }
    headers.sort();
    let canonical = Canonical {
        method: call.method.as_str(),
        path: call.url.path(),
        query: call.url.query().unwrap_or_default(),
        headers: &headers,
        body: &call.body,
    };
    let authorization = authorization(&canonical, keys, &Scope { moment: &moment, region, service: SERVICE });
    let mut value = header(&authorization)?;
    value.set_sensitive(true);
    call.headers.insert(AUTHORIZATION, value);
    Ok(())
}

/// A request as it is signed. Headers in order of their names, which are lower case.
struct Canonical<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: &'a [(&'a str, String)],
    body: &'a [u8],
}

struct Scope<'a> {
    /// `20150830T123600Z`
    moment: &'a str,
    region: &'a str,
    service: &'a str,
}

impl Canonical<'_> {
    fn signed_headers(&self) -> String {
        self.headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";")
    }

    fn text(&self) -> String {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let mut pairs: Vec<&str> = self.query.split('&').filter(|pair| !pair.is_empty()).collect();
        pairs.sort_unstable();
        let (path, query) = (twice_encoded(self.path), pairs.join("&"));
        let (signed, body) = (self.signed_headers(), hex(&Sha256::digest(self.body)));
        format!("{}\n{path}\n{query}\n{headers}\n{signed}\n{body}", self.method)
    }
}

/// The path as it is sent is encoded already; all services but S3 sign it encoded once more.
fn twice_encoded(path: &str) -> String {
    let encoded: Vec<String> = path.split('/').map(crate::provider::encoded).collect();
    encoded.join("/")
}

fn authorization(canonical: &Canonical<'_>, keys: &Keys<'_>, scope: &Scope<'_>) -> String {
    let day = scope.moment.get(..8).unwrap_or_default();
    let place = format!("{day}/{}/{}/aws4_request", scope.region, scope.service);
    let request = hex(&Sha256::digest(canonical.text().as_bytes()));
    let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{place}\n{request}", scope.moment);
    let key = signing_key(keys.secret_access_key.expose(), day, scope);
    let signature = hex(&hmac(&key, to_sign.as_bytes()));
    let (id, signed) = (keys.access_key_id.expose(), canonical.signed_headers());
    format!("AWS4-HMAC-SHA256 Credential={id}/{place}, SignedHeaders={signed}, Signature={signature}")
}

fn signing_key(secret: &str, day: &str, scope: &Scope<'_>) -> [u8; 32] {
    let first = hmac(format!("AWS4{secret}").as_bytes(), day.as_bytes());
    [scope.region, scope.service, "aws4_request"].iter().fold(first, |key, part| hmac(&key, part.as_bytes()))
}

/// HMAC-SHA256 (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    const BLOCK_BYTES: usize = 64;
    let mut block = [0_u8; BLOCK_BYTES];
    match key.len() {
        ..=BLOCK_BYTES => block[..key.len()].copy_from_slice(key),
        _ => block[..32].copy_from_slice(&Sha256::digest(key)),
    }
    let padded = |pad: u8| block.map(|byte| byte ^ pad);
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `20150830T123600Z`
fn moment(unix_s: u64) -> String {
    rfc3339(unix_s).replace(['-', ':'], "")
}

#[cfg(test)]
mod tests {
    use http::Method;
    use http::header::CONTENT_TYPE;
    use url::Url;

    use super::*;

    const MOMENT: &str = "20150830T123600Z";

    fn keys() -> (Secret, Secret) {
        (Secret::new("AKIDEXAMPLE"), Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"))
    }

    /// AWS's published test suite for version 4: the request is of `example.amazonaws.com`, the service is `service`.
    #[test]
    fn signatures_are_those_that_aws_published() {
        let (id, secret) = keys();
        let keys = Keys { access_key_id: &id, secret_access_key: &secret, session_token: None };
        let scope = Scope { moment: MOMENT, region: "us-east-1", service: "service" };
        let headers = [("host", "example.amazonaws.com".to_owned()), ("x-amz-date", MOMENT.to_owned())];
        for (name, method, query, signature) in [
            ("get-vanilla", "GET", "", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("post-vanilla", "POST", "", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
            (
                "get-vanilla-query-order-key-case",
                "GET",
                "Param2=value2&Param1=value1",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
        ] {
            let canonical = Canonical { method, path: "/", query, headers: &headers, body: b"" };
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                 SignedHeaders=host;x-amz-date, Signature={signature}"
            );
            assert_eq!(authorization(&canonical, &keys, &scope), expected, "{name}");
        }
        let scope = Scope { region: "us-east-1", service: "iam", ..scope };
        let key = signing_key(secret.expose(), "20150830", &scope);
        assert_eq!(hex(&key), "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9");
    }

    /// RFC 4231, cases 1 and 6.
    #[test]
    fn hmacs_are_those_of_the_rfc() {
        let first = hmac(&[0x0b; 20], b"Hi There");
        assert_eq!(hex(&first), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
        let long = hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(hex(&long), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    }

    #[test]
    fn moments_are_utc() {
        for (unix_s, expected) in [
            (0, "19700101T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (1_440_938_160, MOMENT),
            (1_735_689_599, "20241231T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(moment(unix_s), expected);
        }
    }

    /// As botocore signs the same requests (see `providers/tests/oracle/sign.py`).
    #[test]
    fn requests_are_signed_as_botocore_does() {
        let cases: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/oracle/sign.json")).expect("JSON of the script");
        for case in cases.as_array().expect("cases") {
            let text = |name: &str| case[name].as_str().unwrap_or_default();
            let (id, secret) = keys();
            let token = case["token"].as_str().map(Secret::new);
            let keys = Keys { access_key_id: &id, secret_access_key: &secret, session_token: token.as_ref() };
            let model = crate::provider::encoded(text("model"));
            let url = format!("{}/model/{model}/{}", text("base"), text("after"));
            let kind = case["type"].as_str().map(|kind| HeaderValue::from_str(kind).expect("a header"));
            let mut call = Call {
                method: Method::from_bytes(text("method").as_bytes()).expect("a method"),
                url: Url::parse(&url).expect("an address"),
                headers: kind.into_iter().map(|kind| (CONTENT_TYPE, kind)).collect(),
                body: text("body").as_bytes().to_vec(),
            };
            let now = UNIX_EPOCH + std::time::Duration::from_secs(1_440_938_160);
            sign(&mut call, &keys, text("region"), now).expect("signs");
            let signed = call.headers[AUTHORIZATION].to_str().expect("text");
            assert_eq!(signed, text("authorization"), "{}", text("name"));
        }
    }
}
