//! What the standard variables say.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::context::Sampler;

/// Where to send what, and how often.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `None` sends no traces.
    pub traces_url: Option<String>,
    pub metrics_url: Option<String>,
    /// With every request to the collector; may hold secrets.
    pub headers: Vec<(String, String)>,
    pub timeout: Duration,
    pub sampler: Sampler,
    /// `service.name` among them.
    pub resource: Vec<(String, String)>,
    pub queue_max: usize,
    pub batch_max: usize,
    pub traces_every: Duration,
    pub metrics_every: Duration,
}

impl Settings {
    /// `None` where no collector is named, or all is switched off. What is set and not spoken is refused.
    pub fn read(variables: &BTreeMap<String, String>) -> Result<Option<Self>, String> {
        let get = |name: &str| variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
        if get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let traces_url = url(&get, "TRACES", "traces")?;
        let metrics_url = url(&get, "METRICS", "metrics")?;
        if traces_url.is_none() && metrics_url.is_none() {
            return Ok(None);
        }
        for name in ["", "TRACES_", "METRICS_"].map(|signal| format!("OTEL_EXPORTER_OTLP_{signal}PROTOCOL")) {
            if let Some(protocol) = get(&name).filter(|protocol| *protocol != "http/json") {
                return Err(format!("{name}: '{protocol}' is not spoken; write http/json or leave it out"));
            }
        }
        let content = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT";
        if let Some(value) = get(content).filter(|value| !matches!(*value, "false" | "NO_CONTENT" | "no_content")) {
            return Err(format!(
                "{content}: '{value}' is not there: prompts and answers are never recorded; leave it out"
            ));
        }
        let milliseconds = |name: &str, usual| number(&get, name, usual).map(Duration::from_millis);
        let count = |name: &str, usual| number(&get, name, usual).map(|count| count as usize);
        Ok(Some(Self {
            traces_url,
            metrics_url,
            headers: pairs("OTEL_EXPORTER_OTLP_HEADERS", get("OTEL_EXPORTER_OTLP_HEADERS"))?,
            timeout: milliseconds("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000)?,
            sampler: sampler(get("OTEL_TRACES_SAMPLER"), get("OTEL_TRACES_SAMPLER_ARG"))?,
            resource: resource(get("OTEL_SERVICE_NAME"), get("OTEL_RESOURCE_ATTRIBUTES"))?,
            queue_max: count("OTEL_BSP_MAX_QUEUE_SIZE", 2048)?,
            batch_max: count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?,
            traces_every: milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5_000)?,
            metrics_every: milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60_000)?,
        }))
    }
}

fn url<'a>(get: &impl Fn(&str) -> Option<&'a str>, signal: &str, path: &str) -> Result<Option<String>, String> {
    let exporter = format!("OTEL_{signal}_EXPORTER");
    match get(&exporter) {
        None | Some("otlp") => {}
        Some("none") => return Ok(None),
        Some(other) => return Err(format!("{exporter}: '{other}' is not there; write otlp or none")),
    }
    let (own, shared) = (format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"), "OTEL_EXPORTER_OTLP_ENDPOINT");
    let (name, url) = match (get(&own), get(shared)) {
        (Some(url), _) => (own.as_str(), url.to_owned()),
        (None, Some(base)) => (shared, format!("{}/v1/{path}", base.trim_end_matches('/'))),
        (None, None) => return Ok(None),
    };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(format!("{name}: '{url}' is no address; write e.g. http://localhost:4318"));
    }
    Ok(Some(url))
}

fn number<'a>(get: &impl Fn(&str) -> Option<&'a str>, name: &str, usual: u64) -> Result<u64, String> {
    let Some(text) = get(name) else { return Ok(usual) };
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{name}: '{text}' is no whole number above 0")),
    }
}

fn sampler(name: Option<&str>, argument: Option<&str>) -> Result<Sampler, String> {
    let ratio = || match argument.map_or(Ok(1.0), str::parse) {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err(format!("OTEL_TRACES_SAMPLER_ARG: '{}' is no number from 0 to 1", argument.unwrap_or_default())),
    };
    let (follows_parent, ratio) = match name.unwrap_or("parentbased_always_on") {
        "always_on" => (false, 1.0),
        "always_off" => (false, 0.0),
        "traceidratio" => (false, ratio()?),
        "parentbased_always_on" => (true, 1.0),
        "parentbased_always_off" => (true, 0.0),
        "parentbased_traceidratio" => (true, ratio()?),
        other => {
            return Err(format!(
                "OTEL_TRACES_SAMPLER: '{other}' is not there; write always_on, always_off, traceidratio or one of them \
                 behind parentbased_"
            ));
        }
    };
    Ok(Sampler { follows_parent, ratio })
}

fn resource(service: Option<&str>, attributes: Option<&str>) -> Result<Vec<(String, String)>, String> {
    let mut resource = pairs("OTEL_RESOURCE_ATTRIBUTES", attributes)?;
    if let Some(service) = service {
        resource.retain(|(key, _)| key != "service.name");
        resource.push(("service.name".to_owned(), service.to_owned()));
    } else if !resource.iter().any(|(key, _)| key == "service.name") {
        resource.push(("service.name".to_owned(), "sconce".to_owned()));
    }
    Ok(resource)
}

/// `key=value,key=value`, values percent-encoded. A value is not repeated in an error: it may be a secret.
fn pairs(name: &str, text: Option<&str>) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    for (place, pair) in text.unwrap_or_default().split(',').enumerate().filter(|(_, pair)| !pair.trim().is_empty()) {
        let wrong = || format!("{name}: part {} is not key=value", place + 1);
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        let value = decoded(value.trim()).ok_or_else(wrong)?;
        if key.trim().is_empty() {
            return Err(wrong());
        }
        pairs.push((key.trim().to_owned(), value));
    }
    Ok(pairs)
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let code = rest.get(..2).and_then(|code| std::str::from_utf8(code).ok())?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::read(&pairs.collect())
    }

    const END: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");

    #[test]
    fn the_usual_variables_mean_what_they_usually_mean() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[END, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        let usual = read(&[END]).expect("sound").expect("on");
        assert_eq!(usual.traces_url.as_deref(), Some("http://collector:4318/v1/traces"));
        assert_eq!(usual.metrics_url.as_deref(), Some("http://collector:4318/v1/metrics"));
        assert_eq!(usual.resource, [("service.name".to_owned(), "sconce".to_owned())]);
        assert_eq!((usual.queue_max, usual.timeout), (2048, Duration::from_secs(10)));
        let own = read(&[
            END,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/x"),
            ("OTEL_METRICS_EXPORTER", "none"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc, x=1"),
            ("OTEL_SERVICE_NAME", "chat"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,deployment.environment=test"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
        ]);
        let own = own.expect("sound").expect("on");
        assert_eq!((own.traces_url.as_deref(), own.metrics_url), (Some("https://t/x"), None));
        assert_eq!(own.headers[0], ("authorization".to_owned(), "Bearer abc".to_owned()));
        assert_eq!(own.resource.len(), 2);
        assert_eq!(own.resource[1], ("service.name".to_owned(), "chat".to_owned()));
        assert_eq!(own.sampler, Sampler { follows_parent: false, ratio: 0.5 });
    }

    #[test]
    fn what_is_not_spoken_is_refused_by_name_and_no_secret_is_told() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "collector:4318"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "key=%zzhush"),
            ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true"),
        ] {
            let refused = read(&[END, (name, value)]).expect_err(name);
            assert!(refused.starts_with(name) && !refused.contains("hush") && !refused.contains('\n'), "{refused}");
        }
    }
}
