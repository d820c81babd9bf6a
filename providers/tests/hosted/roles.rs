//! Keys of AWS roles, from a fake that hands them out as AWS documents it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use sconce_providers::{RoleSource, RoleToken};
use sconce_vocabulary::calendar::rfc3339;

use super::*;

const LIST: &str = "/latest/meta-data/iam/security-credentials/";
const LENT_KEY: &str = "lent-secret-key-of-the-role";
const LENT_TOKEN: &str = "lent-session-token==";

fn expiring(seconds: u64) -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() + seconds)
}

fn text(body: &str) -> Play {
    Play::Answer { status: 200, headers: Vec::new(), body: body.as_bytes().to_vec() }
}

/// What AWS answers to this request; anything that is not asked as it should be is refused.
fn aws(seen: &Seen, expires: &str) -> Play {
    let keys = format!(
        r#"{{"Code":"Success","AccessKeyId":"AKIDLENT","SecretAccessKey":"{LENT_KEY}","Token":"{LENT_TOKEN}","Expiration":"{expires}"}}"#
    );
    match (seen.method.as_str(), seen.path.as_str()) {
        ("PUT", "/latest/api/token") if seen.header("x-aws-ec2-metadata-token-ttl-seconds").is_some() => {
            text("session")
        }
        ("GET", path) if path.starts_with(LIST) => match (seen.header("x-aws-ec2-metadata-token"), path) {
            (Some("session"), LIST) => text("my-role\n"),
            (Some("session"), _) if path.ends_with("/my-role") => text(&keys),
            _ => Play::json(401, "{}"),
        },
        ("GET", "/v2/credentials") if seen.header("authorization") == Some("pod-token") => text(&keys),
        ("POST", "/") if seen.body.contains("Action=AssumeRoleWithWebIdentity") => {
            let asked = ["Version=2011-06-15", "RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr", "WebIdentityToken=vouched"];
            match asked.iter().all(|part| seen.body.contains(part)) {
                true => text(&format!(
                    "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
                     <SessionToken>{LENT_TOKEN}</SessionToken><SecretAccessKey>{LENT_KEY}</SecretAccessKey>\
                     <Expiration>{expires}</Expiration><AccessKeyId>AKIDLENT</AccessKeyId></Credentials>\
                     </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
                )),
                false => Play::json(400, "{}"),
            }
        }
        _ => Play::json(404, "{}"),
    }
}

fn bedrock(url: &str, source: RoleSource) -> Provider {
    let config = ProviderConfig { credentials: Credentials::AwsRole(source), ..config(Kind::Bedrock, url) };
    Provider::new(config, &HttpClient::new()).expect("good")
}

#[tokio::test]
async fn lent_keys_sign_requests_whoever_lends_them() {
    let lender = FakeProvider::start(|seen| aws(seen, &expiring(3600))).await;
    let member =
        FakeProvider::start(|_| Play::json(500, &format!(r#"{{"message":"{LENT_TOKEN} and {LENT_KEY}"}}"#))).await;
    let sources = [
        RoleSource::Instance { endpoint: format!("{}/", lender.url()) },
        RoleSource::Container {
            uri: format!("{}/v2/credentials", lender.url()),
            token: Some(RoleToken::new("a variable", || Ok("pod-token".to_owned()))),
        },
        RoleSource::WebIdentity {
            endpoint: lender.url(),
            role_arn: "arn:aws:iam::1:role/r".into(),
            session_name: "sconce".into(),
            token: RoleToken::new("a file", || Ok("vouched\n".to_owned())),
        },
    ];
    for source in sources {
        let (name, before) = (format!("{source:?}"), lender.seen().len());
        let provider = bedrock(&member.url(), source);
        let errors = futures_util::future::join_all((0..20).map(|_| ask(&provider))).await;
        for error in errors {
            let error = error.expect_err("the member is out of order");
            assert_eq!(error.code, Some("upstream_failed"), "{name}: {error}");
            assert!(!error.message.contains("lent-"), "{name}: {error}");
        }
        let fetched = lender.seen().len() - before;
        assert!(fetched <= 3, "{name}: twenty requests need one fetch, not {fetched} requests");
        let seen = member.seen().pop().expect("a request");
        assert_eq!(seen.header("x-amz-security-token"), Some(LENT_TOKEN), "{name}");
        let signed = seen.header("authorization").expect("a signature");
        assert!(signed.contains("Credential=AKIDLENT/") && signed.contains("x-amz-security-token"), "{name}: {signed}");
    }
}

#[tokio::test]
async fn keys_are_renewed_before_they_expire_and_kept_while_that_fails() {
    let (fetches, is_down) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, down) = (Arc::clone(&fetches), Arc::clone(&is_down));
    let lender = FakeProvider::start(move |seen| {
        counted.fetch_add(usize::from(seen.method == "PUT"), Ordering::Relaxed);
        if down.load(Ordering::Relaxed) { Play::json(500, "{}") } else { aws(seen, &expiring(3)) }
    })
    .await;
    let member = FakeProvider::start(|_| Play::json(500, "{}")).await;
    let provider = bedrock(&member.url(), RoleSource::Instance { endpoint: lender.url() });
    let is_signed = async || ask(&provider).await.expect_err("out of order").code == Some("upstream_failed");
    while fetches.load(Ordering::Relaxed) < 2 {
        assert!(is_signed().await, "the old keys are good meanwhile");
    }
    is_down.store(true, Ordering::Relaxed);
    while fetches.load(Ordering::Relaxed) < 3 {
        assert!(is_signed().await, "the old keys are good still");
    }
    for _ in 0..5 {
        assert!(is_signed().await, "a failed renewal costs nobody anything");
    }
    assert_eq!(fetches.load(Ordering::Relaxed), 3, "and is not repeated at once");
}

#[tokio::test]
async fn without_keys_nothing_is_sent_and_the_error_says_why() {
    let lender = FakeProvider::start(|_| Play::json(404, "{}")).await;
    let member = FakeProvider::start(|_| Play::json(500, "{}")).await;
    let provider = bedrock(&member.url(), RoleSource::Instance { endpoint: lender.url() });
    for _ in 0..5 {
        let error = ask(&provider).await.expect_err("no keys");
        assert_eq!((error.kind, error.code), (ErrorKind::Unavailable, Some("upstream_role")), "{error}");
        assert!(error.message.contains("metadata service") && error.message.contains("404"), "{error}");
    }
    assert_eq!((lender.seen().len(), member.seen().len()), (1, 0), "one try for all that come at once");
    for wrong in [r#"{"Code":"Failed"}"#, "{}", "[", r#"{"AccessKeyId":"a","SecretAccessKey":"b"}"#] {
        let lender = FakeProvider::start(move |_| Play::json(200, wrong)).await;
        let uri = format!("{}/v2/credentials", lender.url());
        let provider = bedrock(&member.url(), RoleSource::Container { uri, token: None });
        assert_eq!(ask(&provider).await.expect_err("no keys").code, Some("upstream_role"), "{wrong}");
    }
    let gone = RoleToken::new("/run/token", || Err(std::io::ErrorKind::NotFound.into()));
    let source = RoleSource::Container { uri: format!("{}/v2/credentials", lender.url()), token: Some(gone) };
    let error = ask(&bedrock(&member.url(), source)).await.expect_err("no token");
    assert!(error.message.contains("/run/token") && error.code == Some("upstream_role"), "{error}");
    let expired = FakeProvider::start(|seen| aws(seen, "2020-01-01T00:00:00Z")).await;
    let provider = bedrock(&member.url(), RoleSource::Instance { endpoint: expired.url() });
    assert!(ask(&provider).await.expect_err("no keys").message.contains("clock"));
    assert_eq!(member.seen().len(), 0);
    for uri in ["http://example.com/keys", "http://169.254.169.254/keys", "ftp://x", "http://user:pass@127.0.0.1/"] {
        let source = RoleSource::Container { uri: uri.into(), token: None };
        let config = ProviderConfig { credentials: Credentials::AwsRole(source), ..config(Kind::Bedrock, "http://x") };
        assert!(Provider::new(config, &HttpClient::new()).is_err(), "{uri}");
    }
}
