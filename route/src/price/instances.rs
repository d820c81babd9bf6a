//! Machines that can be rented, with what they have and what an hour costs: a dated TOML file that people edit.
//!
//! What could not be read anywhere is `None`: no price is guessed.

use serde::{Deserialize, Serialize};

use super::Nanos;
use super::table::check_day;

const BUILTIN: &str = include_str!("instances.toml");
const GIB: f64 = (1_u64 << 30) as f64;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceTable {
    /// The day on which the list was looked through, `YYYY-MM-DD`.
    pub as_of: String,
    #[serde(default, rename = "chip")]
    pub chips: Vec<Chip>,
    #[serde(default, rename = "instance")]
    pub instances: Vec<Instance>,
}

/// An accelerator at best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chip {
    pub name: String,
    pub memory_gib: f64,
    pub read_gb_per_s: Option<f64>,
    /// Dense; `None` where it has no bf16, or nobody says.
    pub bf16_tflops: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// As its provider names it.
    pub name: String,
    /// One of the table's chips; without one it is a CPU instance.
    pub chip: Option<String>,
    pub chips: Option<u32>,
    pub vcpus: Option<u32>,
    /// Of the host.
    pub memory_gib: Option<f64>,
    /// On demand.
    pub usd_per_hour: Option<f64>,
}

impl InstanceTable {
    /// The list that comes with this version.
    pub fn builtin() -> Self {
        Self::parse(BUILTIN).expect("the built-in list of instances is checked by a test")
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let table: Self = toml::from_str(text).map_err(|fault| super::toml_fault(text, &fault))?;
        check_day(&table.as_of).map_err(|fault| format!("as_of: {fault}"))?;
        for (at, chip) in table.chips.iter().enumerate() {
            let place = format!("chip[{at}] ({})", chip.name);
            if table.chips[..at].iter().any(|other| other.name == chip.name) {
                return Err(format!("{place}: is there twice; remove one"));
            }
            check_positive(&place, "memory_gib", Some(chip.memory_gib))?;
            check_positive(&place, "read_gb_per_s", chip.read_gb_per_s)?;
            check_positive(&place, "bf16_tflops", chip.bf16_tflops)?;
        }
        for (at, instance) in table.instances.iter().enumerate() {
            let place = format!("instance[{at}] ({})", instance.name);
            if table.instances[..at].iter().any(|other| other.name == instance.name) {
                return Err(format!("{place}: is there twice; remove one"));
            }
            if let Some(chip) = instance.chip.as_ref().filter(|name| table.chip(name).is_none()) {
                return Err(format!("{place}: the chip '{chip}' is not in the list; add it or correct the name"));
            }
            if instance.chip.is_none() && instance.chips.is_some() {
                return Err(format!("{place}: chips without a chip; name it"));
            }
            check_positive(&place, "chips", instance.chips.map(f64::from))?;
            check_positive(&place, "vcpus", instance.vcpus.map(f64::from))?;
            check_positive(&place, "memory_gib", instance.memory_gib)?;
            check_positive(&place, "usd_per_hour", instance.usd_per_hour)?;
        }
        Ok(table)
    }

    pub fn chip(&self, name: &str) -> Option<&Chip> {
        self.chips.iter().find(|chip| chip.name == name)
    }

    /// The instance of this name, as the machine itself may tell it.
    pub fn find(&self, name: &str) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.name == name)
    }
}

/// What is not known is left out; 0 is never meant.
fn check_positive(place: &str, field: &str, value: Option<f64>) -> Result<(), String> {
    match value {
        Some(value) if !(value > 0.0 && value.is_finite()) => {
            Err(format!("{place}: {field}: must be more than 0; leave it out where it is not known"))
        }
        _ => Ok(()),
    }
}

impl Chip {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // positive, as checked
    pub fn memory_bytes(&self) -> u64 {
        (self.memory_gib * GIB) as u64
    }
}

impl Instance {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // positive, as checked
    pub fn memory_bytes(&self) -> Option<u64> {
        self.memory_gib.map(|gib| (gib * GIB) as u64)
    }

    /// What an hour costs on demand; `None` is not known.
    pub fn hourly(&self) -> Option<Nanos> {
        self.usd_per_hour.and_then(Nanos::from_dollars)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_list_has_prices_only_where_they_were_read() {
        let table = InstanceTable::builtin();
        let hourly = |name: &str| table.find(name).unwrap_or_else(|| panic!("{name}")).hourly();
        assert_eq!(hourly("inf2.xlarge"), Some(Nanos(760_000_000)));
        assert_eq!(hourly("trn1.32xlarge").map(Nanos::dollars), Some(21.5));
        for unknown in ["trn2.48xlarge", "trn3.48xlarge", "g6.xlarge", "c7i.4xlarge"] {
            assert_eq!(hourly(unknown), None, "{unknown}");
        }
        let trn3 = table.find("trn3.48xlarge").expect("listed");
        assert_eq!((trn3.chips, trn3.memory_bytes()), (None, None));
        let chip = |name: &str| table.chip(name).expect("listed").memory_bytes() >> 30;
        assert_eq!((chip("Inferentia2"), chip("Trainium2"), chip("Trainium3")), (32, 96, 144));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = |text: &str| format!("as_of = \"2026-11-21\"\n{text}");
        for (text, fault) in [
            ("[[chip]]\nname = \"A\"\nmemory_gib = 0", "chip[0] (A): memory_gib: must be more than 0"),
            ("[[instance]]\nname = \"a\"\nusd_per_hour = -1.0", "usd_per_hour: must be more than 0"),
            ("[[instance]]\nname = \"a\"\nchip = \"B\"", "the chip 'B' is not in the list"),
            ("[[instance]]\nname = \"a\"\nchips = 2", "chips without a chip"),
            ("[[instance]]\nname = \"a\"\n[[instance]]\nname = \"a\"", "is there twice"),
            ("[[instance]]\nname = \"a\"\nprice = 3", "unknown field"),
        ] {
            let error = InstanceTable::parse(&table(text)).expect_err(text);
            assert!(error.contains(fault), "{text}: {error}");
        }
        assert!(InstanceTable::parse("as_of = \"today\"").expect_err("no day").contains("YYYY-MM-DD"));
    }
}
