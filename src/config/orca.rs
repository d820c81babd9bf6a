//! When answers carry a load report (ORCA) for the balancer in front.

use std::str::FromStr;

use serde::Deserialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadReports {
    /// To requests with `endpoint-load-metrics-format`, as vLLM does it.
    #[default]
    Asked,
    /// On every answer: Envoy reads the reports and never asks for them.
    Always,
    Off,
}

impl FromStr for LoadReports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "asked" => Ok(Self::Asked),
            "always" => Ok(Self::Always),
            "off" => Ok(Self::Off),
            _ => Err(format!("'{text}' is none of asked, always and off")),
        }
    }
}
