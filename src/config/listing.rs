//! `[[listing]]`: models that are offered to others for money, in the words of OpenRouter's directory of providers.
//!
//! What is sold, under which name and at what price is the operator's to say; only what the server knows is added.

use sconce_route::price::PerToken;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One model in the directory.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    /// A name under which it is served here; requests will come for this name.
    pub model: String,
    /// What people read.
    pub name: String,
    pub hugging_face_id: Option<String>,
    /// As the weights are; left out it is undeclared.
    pub quantization: Option<Quantization>,
    /// The family of its tokenizer, e.g. `Llama3`.
    pub tokenizer: Option<String>,
    pub description: Option<String>,
    pub price: ListingPrice,
    /// Longest answer that is sold; the whole context without it.
    pub output_tokens_max: Option<u32>,
    /// It thinks before it answers.
    #[serde(default)]
    pub reasoning: bool,
    /// The directory's own name of the model.
    pub slug: Option<String>,
    #[serde(default)]
    pub datacenters: Vec<Datacenter>,
    /// `YYYY-MM-DD`, or with an hour `YYYY-MM-DDTHH:00:00Z`.
    pub deprecation_date: Option<String>,
    /// False hides it, also when it is live already.
    pub is_ready: Option<bool>,
}

/// US dollars for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListingPrice {
    pub input: PerToken,
    /// Of models that generate.
    pub output: Option<PerToken>,
    /// Of prompt tokens that were found in the prefix cache.
    pub cached_input: Option<PerToken>,
}

/// Where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Datacenter {
    /// Two letters (ISO 3166-1).
    pub country_code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// The directory's words for the precision of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    Int4,
    Int8,
    Fp4,
    Mxfp4,
    Nvfp4,
    Fp6,
    Fp8,
    Mxfp8,
    Fp16,
    Bf16,
    Fp32,
}

/// Each model is served here and listed once.
pub fn checked(listings: &[Listing], served: &[String]) -> Result<Vec<Listing>> {
    for (index, listing) in listings.iter().enumerate() {
        let model = &listing.model;
        let fault = if !served.contains(model) {
            Some(format!("the listing of '{model}' is of no model that is served here: {}", served.join(", ")))
        } else if listings[..index].iter().any(|earlier| earlier.model == *model) {
            Some(format!("'{model}' is listed twice; leave one out"))
        } else if listing.name.trim().is_empty() {
            Some(format!("the listing of '{model}' has no name for people; write one"))
        } else {
            let is_code = |code: &str| code.len() == 2 && code.bytes().all(|byte| byte.is_ascii_uppercase());
            let wrong = listing.datacenters.iter().find(|datacenter| !is_code(&datacenter.country_code));
            wrong.map(|datacenter| {
                format!(
                    "the listing of '{model}' has the country_code '{}'; write two capitals",
                    datacenter.country_code
                )
            })
        };
        if let Some(fault) = fault {
            return Err(Error::invalid("listing", fault));
        }
    }
    Ok(listings.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_checked() {
        let price = ListingPrice {
            input: PerToken::from_dollars_a_million(0.02).expect("a price"),
            output: None,
            cached_input: None,
        };
        let good: Listing =
            toml::from_str("model = \"a\"\nname = \"A\"\nquantization = \"mxfp4\"\nprice = { input = 0.02 }")
                .expect("as written in a file");
        assert_eq!((good.price, good.quantization), (price, Some(Quantization::Mxfp4)));
        let served = ["a".to_owned()];
        assert!(checked(std::slice::from_ref(&good), &served).is_ok());
        let place = |code: &str| Datacenter { country_code: code.to_owned(), region: None };
        for (listings, word) in [
            (vec![Listing { model: "b".into(), ..good.clone() }], "'b'"),
            (vec![good.clone(), good.clone()], "twice"),
            (vec![Listing { name: " ".into(), ..good.clone() }], "name"),
            (vec![Listing { datacenters: vec![place("de")], ..good.clone() }], "'de'"),
        ] {
            let error = checked(&listings, &served).expect_err(word);
            assert!(error.message.contains(word), "{error}");
        }
    }
}
