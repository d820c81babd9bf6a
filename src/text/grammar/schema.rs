//! From a JSON schema to a grammar: what the library is told, and what is put right before.

use llguidance::JsonCompileOptions;
use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value, json};

use super::limits;

/// Between two tokens of JSON. Bounded, for a small model that may go on with blanks goes on with them for ever; enough
/// for what `json.dumps(indent=4)` and its like write.
const WHITESPACE: &str = r" {1,2}|\r?\n[ \t]{0,64}";

/// Formats that the specification of JSON Schema defines. Any other name is a remark that a validator ignores too.
const DEFINED_FORMATS: &[&str] = &[
    "date-time",
    "date",
    "time",
    "duration",
    "email",
    "idn-email",
    "hostname",
    "idn-hostname",
    "ipv4",
    "ipv6",
    "uri",
    "uri-reference",
    "iri",
    "iri-reference",
    "uuid",
    "uri-template",
    "json-pointer",
    "relative-json-pointer",
    "regex",
];

pub fn any_object() -> Result<TopLevelGrammar, String> {
    grammar(&json!({"type": "object"}))
}

pub fn grammar(schema: &Value) -> Result<TopLevelGrammar, String> {
    embedded(schema).map(TopLevelGrammar::from_json_schema)
}

/// A schema as it may stand in a grammar, behind `%json`.
pub fn embedded(schema: &Value) -> Result<Value, String> {
    limits::check_schema(schema)?;
    let mut schema = match schema {
        Value::Object(fields) if fields.contains_key("x-guidance") => {
            return Err("x-guidance is not supported; leave it out".to_owned());
        }
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => Value::Object(Map::new()),
        Value::Bool(false) => return Err("the schema is false, so that no value fits it".to_owned()),
        _ => return Err("the schema must be an object".to_owned()),
    };
    drop_remarks(&mut schema);
    let options =
        JsonCompileOptions { whitespace_pattern: Some(WHITESPACE.to_owned()), ..JsonCompileOptions::default() };
    options.apply_to(&mut schema);
    Ok(schema)
}

/// Removes the formats that constrain nothing. A property may be called `format`: its schema is no string.
fn drop_remarks(schema: &mut Value) {
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items.iter_mut()),
            Value::Object(fields) => {
                let is_remark = |format: &Value| format.as_str().is_some_and(|name| !DEFINED_FORMATS.contains(&name));
                if fields.get("format").is_some_and(is_remark) {
                    fields.shift_remove("format");
                }
                // What stands in these is data, not schemas.
                let schemas = fields
                    .iter_mut()
                    .filter(|(key, _)| !matches!(key.as_str(), "const" | "enum" | "default" | "examples"));
                open.extend(schemas.map(|(_, field)| field));
            }
            _ => {}
        }
    }
}
