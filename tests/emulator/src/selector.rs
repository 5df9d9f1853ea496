//! Label and field selectors (`labels.Parse` and `fields.ParseSelector` of apimachinery).

use serde_json::Value;

use crate::failure::Failure;

/// What objects are asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selection {
    pub(crate) fn parse(labels: &str, fields: &str) -> Result<Self, Failure> {
        let labels = split(labels).into_iter().map(requirement).collect::<Result<_, _>>()?;
        let fields = split(fields).into_iter().map(field).collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn takes(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        let meets = |requirement: &Requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|label| values.iter().any(|value| value == label)),
            Requirement::NotIn(key, values) => {
                !label(key).is_some_and(|label| values.iter().any(|value| value == label))
            }
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        };
        let equals = |(path, equal, value): &(String, bool, String)| {
            let found = path.split('.').fold(object, |object, name| &object[name]);
            (found.as_str().unwrap_or_default() == value) == *equal
        };
        self.labels.iter().all(meets) && self.fields.iter().all(equals)
    }
}

/// The requirements: at commas that stand in no brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn requirement(text: &str) -> Result<Requirement, Failure> {
    let text = text.trim();
    let values =
        |list: &str| list.trim().trim_matches(['(', ')']).split(',').map(|value| value.trim().to_owned()).collect();
    let key = |key: &str| key.trim().to_owned();
    if let Some((name, list)) = text.split_once(" notin ") {
        return Ok(Requirement::NotIn(key(name), values(list)));
    }
    if let Some((name, list)) = text.split_once(" in ") {
        return Ok(Requirement::In(key(name), values(list)));
    }
    if let Some((name, value)) = text.split_once("!=") {
        return Ok(Requirement::NotIn(key(name), vec![key(value)]));
    }
    if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Requirement::In(key(name), vec![key(value)]));
    }
    match text.strip_prefix('!') {
        Some(name) => Ok(Requirement::Absent(key(name))),
        None if text.contains([' ', '(', ')']) => {
            Err(Failure::bad_request(format!("unable to parse requirement: found {text:?}")))
        }
        None => Ok(Requirement::Exists(key(text))),
    }
}

fn field(text: &str) -> Result<(String, bool, String), Failure> {
    let parts = match text.split_once("!=") {
        Some((path, value)) => Some((path, false, value)),
        None => text.split_once("==").or_else(|| text.split_once('=')).map(|(path, value)| (path, true, value)),
    };
    let Some((path, equal, value)) = parts else {
        return Err(Failure::bad_request(format!("invalid selector: {text:?}; can't understand {text:?}")));
    };
    const KNOWN: [&str; 5] = ["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "spec.type"];
    if !KNOWN.contains(&path) {
        return Err(Failure::bad_request(format!("field label not supported: {path}")));
    }
    Ok((path.to_owned(), equal, value.to_owned()))
}
