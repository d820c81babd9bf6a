//! Reading JSON that strangers wrote: bounded before it is parsed, and every error names its place.
//!
//! A body becomes a [`Wire`]: the fields we know, and the first field that we must refuse. No field is dropped
//! silently: it is read, listed as being without effect, or refused by name.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{Schema, SchemaGenerator};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::error::shortened;
use crate::error::{Error, ErrorKind, Result};

/// Bounds on a document, checked in one pass that allocates nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub depth_max: usize,
    pub values_max: usize,
}

/// A set of fields of one JSON object.
pub(super) trait Fields: Default {
    /// Reads the value of `key`, when it is one of these fields.
    fn take<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error>;

    /// The fields that are known and not read.
    const POLICIES: Policies = &[];

    /// What to do with a field that is not read.
    fn policy(key: &str) -> Policy {
        Self::POLICIES.iter().find(|(name, _)| *name == key).map_or(Policy::Unknown, |(_, policy)| *policy)
    }

    /// What the document of endpoints calls such an object.
    fn schema_name() -> Cow<'static, str>;

    /// The JSON schema of these fields, with those that are known and not read.
    fn schema(generator: &mut SchemaGenerator) -> Schema;
}

/// Fields by name, with what becomes of them.
pub(super) type Policies = &'static [(&'static str, Policy)];

/// What to do with a field that is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// Accepted: it cannot change the answer here.
    Inert,
    /// Known and not supported; values in `neutral` (JSON texts; null always) ask for nothing and are accepted.
    Refused {
        neutral: &'static [&'static str],
        instead: &'static str,
    },
    Unknown,
}

pub(super) const fn refused(neutral: &'static [&'static str], instead: &'static str) -> Policy {
    Policy::Refused { neutral, instead }
}

/// A field that cannot be served.
#[derive(Debug, Clone, PartialEq)]
enum Problem {
    Unknown(String),
    Unsupported { name: String, instead: &'static str },
}

/// An object as it came: its known fields, and the first field that is not to be served.
#[derive(Debug, Default, Clone)]
pub(super) struct Wire<F> {
    fields: F,
    problem: Option<Problem>,
}

impl<F> Wire<F> {
    /// The known fields, whatever else was sent.
    pub fn peek(&self) -> &F {
        &self.fields
    }

    /// The known fields, to take some out before the others are checked.
    pub fn peek_mut(&mut self) -> &mut F {
        &mut self.fields
    }

    /// The fields, when nothing else was sent. `path` is where this object is: "" or e.g. "messages[0]".
    pub fn checked(self, path: &str) -> Result<F> {
        let full = |name: &str| if path.is_empty() { shortened(name) } else { format!("{path}.{}", shortened(name)) };
        match self.problem {
            None => Ok(self.fields),
            Some(Problem::Unknown(name)) => {
                let name = full(&name);
                let message = format!("unrecognized request argument supplied: {name}");
                Err(Error::invalid(name, message).with_code("unknown_parameter"))
            }
            Some(Problem::Unsupported { name, instead }) => {
                let name = full(&name);
                let message = format!("{name} is not supported: {instead}");
                Err(Error::invalid(name, message).with_code("unsupported_parameter"))
            }
        }
    }
}

/// Declares the optional fields of an object; null and absence are the same.
macro_rules! fields {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* } $(policy = $policy:path)?) => {
        #[derive(Debug, Default, Clone, schemars::JsonSchema)]
        $(#[$doc])*
        pub(in crate::api) struct $name {
            $($(#[$field_doc])* pub $field: Option<$type>,)*
        }

        impl $crate::api::json::Fields for $name {
            fn take<'de, A: serde::de::MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
                /// Known when this is compiled, so that a key is looked up and not compared with each.
                struct Names;
                #[allow(non_upper_case_globals)]
                impl Names {
                    $(const $field: &str = $crate::api::json::plain_name(stringify!($field));)*
                }
                match key {
                    $(Names::$field => self.$field = map.next_value()?,)*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            $(const POLICIES: $crate::api::json::Policies = $policy;)?

            fn schema_name() -> std::borrow::Cow<'static, str> {
                <Self as schemars::JsonSchema>::schema_name()
            }

            fn schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let own = <Self as schemars::JsonSchema>::json_schema(generator);
                $crate::api::schema::with_policies(own, <Self as $crate::api::json::Fields>::POLICIES)
            }
        }
    };
}
pub(super) use fields;

/// A field's name as it is in the document: without the mark of names that are also words of the language.
pub(super) const fn plain_name(name: &str) -> &str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

/// Declares what becomes of fields that are known and not read.
macro_rules! policies {
    ($(#[$doc:meta])* $name:ident { $($($key:literal)|+ => $policy:expr,)* }) => {
        $(#[$doc])*
        const $name: $crate::api::json::Policies = &[$($(($key, $policy),)+)*];
    };
}
pub(super) use policies;

/// Two sets of fields in one object.
impl<A: Fields, B: Fields> Fields for (A, B) {
    fn take<'de, M: MapAccess<'de>>(&mut self, key: &str, map: &mut M) -> Result<bool, M::Error> {
        Ok(self.0.take(key, map)? || self.1.take(key, map)?)
    }

    fn policy(key: &str) -> Policy {
        match A::policy(key) {
            Policy::Unknown => B::policy(key),
            known => known,
        }
    }

    fn schema_name() -> Cow<'static, str> {
        A::schema_name()
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let first = A::schema(generator);
        super::schema::joined(first, B::schema(generator))
    }
}

impl<'de, F: Fields> Deserialize<'de> for Wire<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WireVisitor(PhantomData))
    }
}

struct WireVisitor<F>(PhantomData<F>);

impl<'de, F: Fields> Visitor<'de> for WireVisitor<F> {
    type Value = Wire<F>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = F::default();
        let mut problem = None;
        while let Some(key) = map.next_key::<String>()? {
            if fields.take(&key, &mut map)? {
                continue;
            }
            let found = match F::policy(&key) {
                Policy::Inert => {
                    map.next_value::<IgnoredAny>()?;
                    None
                }
                Policy::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                    Some(Problem::Unknown(key))
                }
                Policy::Refused { neutral, instead } => {
                    let value: Value = map.next_value()?;
                    (!is_neutral(&value, neutral)).then_some(Problem::Unsupported { name: key, instead })
                }
            };
            problem = problem.or(found);
        }
        Ok(Wire { fields, problem })
    }
}

fn is_neutral(value: &Value, neutral: &[&str]) -> bool {
    value.is_null() || neutral.iter().any(|text| serde_json::from_str::<Value>(text).is_ok_and(|same| same == *value))
}

/// Parses a body within bounds. Errors name the line and column, and the field where one is at fault.
pub(super) fn parse<T: for<'de> Deserialize<'de>>(body: &[u8], bounds: Bounds) -> Result<T> {
    let text = std::str::from_utf8(body).map_err(|error| {
        not_json(format!("the body is not UTF-8: byte {} does not begin a character", error.valid_up_to()))
    })?;
    if text.trim_ascii().is_empty() {
        return Err(not_json("the body is empty; send a JSON object".to_owned()));
    }
    check_bounds(body, bounds)?;
    // Keeping account of the place costs as much again as reading, and nearly every body is right.
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, error.inner())
    })?;
    deserializer.end().map_err(|error| explain(".", &error))?;
    Ok(value)
}

fn explain(path: &str, error: &serde_json::Error) -> Error {
    if !error.is_data() {
        return not_json(format!("the body is not valid JSON: {error}"));
    }
    let what = plain_words(&error.to_string());
    // The root is ".", a place that could not be followed "?".
    if path == "." || path.contains('?') {
        return Error::new(ErrorKind::InvalidRequest, format!("the body has a wrong type: {what}"));
    }
    let path = shortened(path);
    let message = format!("{path}: {what}");
    Error::invalid(path, message).with_code("invalid_type")
}

/// Serde speaks of Rust's types and repeats the whole of a client's value; clients know JSON's and sent the value.
fn plain_words(error: &str) -> String {
    const WORDS: &[(&str, &str)] = &[
        ("expected f64", "expected a number"),
        ("expected u32", "expected an integer from 0 to 4294967295"),
        ("expected i32", "expected an integer from -2147483648 to 2147483647"),
        ("expected i64", "expected a 64-bit integer"),
        ("expected a sequence", "expected an array"),
        ("expected a map", "expected an object"),
        ("invalid type: sequence", "invalid type: array"),
        ("invalid type: map", "invalid type: object"),
    ];
    let (found, expected) = match error.rfind(", expected ") {
        Some(at) => error.split_at(at),
        None => (error, ""),
    };
    WORDS.iter().fold(shortened(found) + expected, |text, (rust, json)| text.replace(rust, json))
}

fn not_json(message: String) -> Error {
    Error::new(ErrorKind::InvalidRequest, message).with_code("invalid_json")
}

/// Counts nesting and values outside strings. It need not be a valid document: the parser decides that afterwards.
fn check_bounds(body: &[u8], bounds: Bounds) -> Result<()> {
    let mut depth = 0_usize;
    let mut values = 1_usize;
    let mut bytes = body.iter().enumerate();
    while let Some((offset, byte)) = bytes.next() {
        match byte {
            b'"' => {
                // To the closing quote; a backslash takes the next byte with it.
                while let Some((_, byte)) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => {
                            bytes.next();
                        }
                        _ => {}
                    }
                }
            }
            b'[' | b'{' => {
                depth += 1;
                values += 1;
                if depth > bounds.depth_max {
                    let message = format!(
                        "the body is nested deeper than {} levels at byte {offset}; send it flatter",
                        bounds.depth_max
                    );
                    return Err(Error::new(ErrorKind::InvalidRequest, message).with_code("json_too_deep"));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => {
                values += 1;
                if values > bounds.values_max {
                    let message =
                        format!("the body has more than {} JSON values; send less in one request", bounds.values_max);
                    return Err(Error::new(ErrorKind::TooLarge, message).with_code("json_too_many_values"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { depth_max: 4, values_max: 20 };

    fields! {
        /// For the tests.
        Sample { count: u32, names: Vec<String>, }
        policy = SAMPLE_POLICY
    }

    policies! {
        SAMPLE_POLICY {
            "user" => Policy::Inert,
            "tools" => refused(&["[]"], "leave it out"),
        }
    }

    fn read(body: &str) -> Result<Sample> {
        parse::<Wire<Sample>>(body.as_bytes(), BOUNDS)?.checked("")
    }

    #[test]
    fn known_fields_are_read_and_neutral_ones_pass() {
        let sample = read(r#"{"count": 3, "names": ["a"], "user": {"x": 1}, "tools": []}"#).expect("good");
        assert_eq!((sample.count, sample.names), (Some(3), Some(vec!["a".to_owned()])));
        let sample = read(r#"{"count": null, "tools": null}"#).expect("good");
        assert_eq!(sample.count, None);
    }

    #[test]
    fn errors_name_the_field_and_the_place() {
        for (body, param, part) in [
            ("", None, "empty"),
            ("{", None, "line 1 column 1"),
            ("[]", None, "expected an object"),
            (r#"{"count": NaN}"#, None, "line 1 column 11"),
            (r#"{"count": 1} x"#, None, "trailing"),
            (r#"{"count": "x"}"#, Some("count"), "expected an integer from 0"),
            (r#"{"count": -1}"#, Some("count"), "integer `-1`"),
            (r#"{"count": 1.5}"#, Some("count"), "floating point"),
            (r#"{"names": ["a", 2]}"#, Some("names[1]"), "expected a string"),
            (r#"{"colour": 2}"#, Some("colour"), "unrecognized request argument supplied: colour"),
            (r#"{"tools": [1]}"#, Some("tools"), "tools is not supported: leave it out"),
            ("[[[[[1]]]]]", None, "deeper than 4 levels at byte 4"),
            ("[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", None, "more than 20 JSON values"),
        ] {
            let error = read(body).expect_err(body);
            assert_eq!(error.param.as_deref(), param, "{body}: {error}");
            assert!(error.message.contains(part), "{body}: {error}");
        }
    }

    #[test]
    fn brackets_and_commas_in_strings_do_not_count() {
        let names = r#"{"names": ["[[[[[[,,,,,,,,,,,,,,,,,,,,,,,,\"[[[[[[["]}"#;
        assert!(read(names).is_ok());
    }

    #[test]
    fn a_long_wrong_value_is_not_repeated_in_full() {
        let body = format!(r#"{{"count": "{}"}}"#, "x".repeat(100_000));
        let error = read(&body).expect_err("a wrong type");
        assert!(error.message.len() < 400, "{} bytes", error.message.len());
        assert!(error.message.contains("expected an integer"));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused() {
        let error = parse::<Wire<Sample>>(b"{\"names\": [\"\xff\"]}", BOUNDS).expect_err("not UTF-8");
        assert!(error.message.contains("byte 12"), "{error}");
    }
}
