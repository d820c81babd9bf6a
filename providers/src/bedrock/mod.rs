//! Amazon Bedrock's Converse: one shape for the models of all its vendors, in Amazon's frames.

pub(crate) mod embed;
pub(crate) mod frames;
mod request;
pub(crate) mod role;
pub(crate) mod sign;
mod stream;

use sconce_vocabulary::error::{Error, ErrorKind, Result};
use sconce_vocabulary::request::Request;

use crate::config::{Kind, ProviderConfig};
use crate::limits::Takes;
use crate::provider::{Prepared, encoded};
use crate::stream::Framing;

/// Whose model it is, where that decides what it takes. Inference profiles have the vendor in their names; ARNs of an
/// application's own profiles do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vendor {
    Anthropic,
    Nova,
    OpenAi,
    Other,
}

impl Vendor {
    pub fn of(model: &str) -> Self {
        let names = [("anthropic.", Self::Anthropic), ("amazon.nova", Self::Nova), ("openai.", Self::OpenAi)];
        names.into_iter().find(|(name, _)| model.contains(name)).map_or(Self::Other, |(_, vendor)| vendor)
    }
}

/// The name in seals: signatures of Anthropic's models are good wherever they run.
pub(crate) fn owner(vendor: Vendor) -> &'static str {
    if vendor == Vendor::Anthropic { crate::anthropic::OWNER } else { "bedrock" }
}

pub(crate) fn takes(model: &str) -> Takes {
    let vendor = Vendor::of(model);
    Takes {
        top_k: matches!(vendor, Vendor::Anthropic | Vendor::Nova),
        json_object: true,
        prefill: vendor == Vendor::Anthropic,
        thinking: vendor != Vendor::Other,
        single_call: false,
        image_urls: false,
        tool_images: true,
        ..Takes::little(Kind::Bedrock)
    }
}

pub(crate) fn host(region: &str) -> Result<String> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if region.is_empty() || !region.bytes().all(is_plain) {
        let message = "region of a provider of the kind bedrock must be like us-east-1";
        return Err(Error::new(ErrorKind::InvalidRequest, message));
    }
    let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    Ok(format!("https://bedrock-runtime.{region}.{suffix}"))
}

pub(crate) fn prepare(config: &ProviderConfig, request: &Request) -> Result<Prepared> {
    let vendor = Vendor::of(&config.model);
    let (body, answer_tool) = request::body(config, vendor, request)?;
    Ok(Prepared {
        path: format!("/model/{}/converse-stream", encoded(&config.model)),
        body,
        framing: Framing::Amazon,
        reader: Box::new(stream::ConverseReader::new(owner(vendor), &request.params.stop)),
        answer_tool,
    })
}

#[cfg(test)]
pub(crate) fn reader() -> Box<dyn crate::stream::Reader> {
    Box::new(stream::ConverseReader::new(owner(Vendor::Anthropic), &["END".to_owned()]))
}
