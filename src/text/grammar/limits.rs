//! How large a constraint may be. Checked before anything is compiled, so that a refusal costs next to nothing.

use serde_json::Value;

const EXPRESSION_BYTES_MAX: usize = 16 * 1024;
const GRAMMAR_BYTES_MAX: usize = 256 * 1024;
/// Brackets in an expression or a grammar: compiling recurses over them.
const BRACKET_DEPTH_MAX: usize = 100;
const CHOICES_MAX: usize = 10_000;
const CHOICES_BYTES_MAX: usize = 256 * 1024;
const SCHEMA_BYTES_MAX: usize = 512 * 1024;
const SCHEMA_DEPTH_MAX: usize = 100;
const SCHEMA_VALUES_MAX: usize = 50_000;
/// Following a reference recurses, and a chain of them is as long as their number.
const REFERENCES_MAX: usize = 2_000;
/// Texts of one `enum` together: each becomes states of the lexer.
const ENUM_BYTES_MAX: usize = 128 * 1024;
/// A bound like `{1,50000}` is unrolled.
const REPETITIONS_MAX: u64 = 20_000;

pub fn check_expression(expression: &str) -> Result<(), String> {
    if expression.is_empty() {
        return Err("the expression is empty; send one that matches an answer".to_owned());
    }
    within("the expression has", expression.len(), EXPRESSION_BYTES_MAX, "bytes")?;
    check_brackets(expression)?;
    check_repetitions(expression)
}

pub fn check_choices(choices: &[String]) -> Result<(), String> {
    if choices.is_empty() {
        return Err("there is no choice; send at least one".to_owned());
    }
    if let Some(at) = choices.iter().position(String::is_empty) {
        return Err(format!("choice {at} is empty; leave it out"));
    }
    within("there are", choices.len(), CHOICES_MAX, "choices")?;
    within("the choices have", choices.iter().map(String::len).sum(), CHOICES_BYTES_MAX, "bytes together")
}

pub fn check_grammar(lark: &str) -> Result<(), String> {
    if lark.trim().is_empty() {
        return Err("the grammar is empty; send one with a rule `start`".to_owned());
    }
    within("the grammar has", lark.len(), GRAMMAR_BYTES_MAX, "bytes")?;
    check_brackets(lark)
}

/// Bounds a schema by one walk that does not recurse.
pub fn check_schema(schema: &Value) -> Result<(), String> {
    let (mut values, mut references, mut bytes) = (0_usize, 0_usize, 0_usize);
    let mut open = vec![(schema, 0_usize)];
    while let Some((value, depth)) = open.pop() {
        within("the schema is nested", depth, SCHEMA_DEPTH_MAX, "levels deep")?;
        values += 1;
        within("the schema has", values, SCHEMA_VALUES_MAX, "values")?;
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => {
                references += usize::from(fields.get("$ref").is_some_and(Value::is_string));
                within("the schema has", references, REFERENCES_MAX, "references")?;
                check_keywords(fields)?;
                bytes += fields.keys().map(String::len).sum::<usize>();
                open.extend(fields.values().map(|field| (field, depth + 1)));
            }
            _ => {}
        }
        within("the schema has", bytes, SCHEMA_BYTES_MAX, "bytes of text")?;
    }
    Ok(())
}

fn check_keywords(fields: &serde_json::Map<String, Value>) -> Result<(), String> {
    if let Some(Value::Array(items)) = fields.get("enum") {
        let bytes = items.iter().map(|item| item.as_str().map_or(8, str::len)).sum();
        within("an enum of the schema has", bytes, ENUM_BYTES_MAX, "bytes together")?;
    }
    if let Some(Value::String(pattern)) = fields.get("pattern") {
        check_expression(pattern).map_err(|why| format!("in pattern: {why}"))?;
    }
    if let Some(Value::Object(patterns)) = fields.get("patternProperties") {
        patterns
            .keys()
            .try_for_each(|pattern| check_expression(pattern).map_err(|why| format!("in patternProperties: {why}")))?;
    }
    for keyword in ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"] {
        if let Some(bound) = fields.get(keyword).and_then(Value::as_f64).filter(|bound| *bound > REPETITIONS_MAX as f64)
        {
            return Err(format!("{keyword} is {bound}; the limit is {REPETITIONS_MAX}, lower it or leave it out"));
        }
    }
    Ok(())
}

/// Brackets outside of classes and escapes would be fewer: this counts all, which is enough for a bound.
fn check_brackets(text: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        within("brackets are nested", depth, BRACKET_DEPTH_MAX, "levels deep")?;
    }
    Ok(())
}

/// Counted repetitions are copies; nested ones multiply.
fn check_repetitions(expression: &str) -> Result<(), String> {
    let bytes = expression.as_bytes();
    // Of the group that is open at each level: the most copies that something inside it becomes.
    let mut levels = vec![1_u64];
    // What the latest closed group or single item becomes by itself.
    let mut latest = 1_u64;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                at += 1;
                latest = 1;
            }
            b'(' => levels.push(1),
            b')' => {
                latest = if levels.len() > 1 { levels.pop().unwrap_or(1) } else { 1 };
            }
            b'{' => {
                if let Some((bound, end)) = counted(bytes, at) {
                    latest = latest.saturating_mul(bound.max(1));
                    at = end;
                    within(
                        "the expression's repetitions come to",
                        latest as usize,
                        REPETITIONS_MAX as usize,
                        "copies",
                    )?;
                }
            }
            b'*' | b'+' | b'?' => {}
            _ => latest = 1,
        }
        if let Some(level) = levels.last_mut() {
            *level = (*level).max(latest);
        }
        at += 1;
    }
    Ok(())
}

/// The larger bound of `{n}`, `{n,}` or `{n,m}` at `start`, and where its closing brace is.
fn counted(bytes: &[u8], start: usize) -> Option<(u64, usize)> {
    let end = start + bytes[start..].iter().take(48).position(|byte| *byte == b'}')?;
    let inner = std::str::from_utf8(&bytes[start + 1..end]).ok()?;
    let mut bounds = inner.split(',').map(str::trim);
    let (low, high) = (bounds.next()?, bounds.next().unwrap_or(""));
    if bounds.next().is_some() || low.is_empty() && high.is_empty() {
        return None;
    }
    let parse = |text: &str| match text {
        "" => Some(0),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().unwrap_or(u64::MAX)),
        _ => None,
    };
    Some((parse(low)?.max(parse(high)?), end))
}

fn within(what: &str, count: usize, limit: usize, unit: &str) -> Result<(), String> {
    if count <= limit {
        return Ok(());
    }
    Err(format!("{what} {count} {unit} or more, the limit is {limit}; send a smaller one"))
}
