//! The smallest objects that still show something, as YAML to try by hand.

use std::fmt::Write as _;

use serde_json::Value;

/// Leaves out whatever can be left out while `shows` holds: objects behind the first `kept`, then fields and items of
/// what is left, again and again.
#[must_use]
pub fn smallest(mut objects: Vec<Value>, kept: usize, shows: &dyn Fn(&[Value]) -> bool) -> Vec<Value> {
    loop {
        let before = objects.clone();
        for at in (kept..objects.len()).rev() {
            let mut fewer = objects.clone();
            fewer.remove(at);
            if shows(&fewer) {
                objects = fewer;
            }
        }
        for at in kept..objects.len() {
            for pointer in parts(&objects[at]) {
                let mut fewer = objects.clone();
                if remove(&mut fewer[at], &pointer) && shows(&fewer) {
                    objects = fewer;
                }
            }
        }
        if objects == before {
            return objects;
        }
    }
}

/// Places of everything that may be left out of an object, what holds much before what it holds; of a list the last
/// item first, so that the places of the others stay.
fn parts(object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for at in ["/spec", "/metadata/labels"] {
        let Some(value) = object.pointer(at) else { continue };
        collect(value, at, &mut found);
    }
    found
}

fn collect(value: &Value, at: &str, found: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => {
            let place = |name: &String| format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
            fields.iter().map(|(name, value)| (place(name), value)).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().rev().map(|(number, value)| (format!("{at}/{number}"), value)).collect()
        }
        _ => return,
    };
    for (place, value) in inner {
        found.push(place.clone());
        collect(value, &place, found);
    }
}

/// Whether there was something at this place.
fn remove(object: &mut Value, pointer: &str) -> bool {
    let Some((parent, name)) = pointer.rsplit_once('/') else { return false };
    match object.pointer_mut(parent) {
        Some(Value::Object(fields)) => fields.remove(&name.replace("~1", "/").replace("~0", "~")).is_some(),
        Some(Value::Array(items)) => {
            let at = name.parse().ok().filter(|at| *at < items.len());
            at.map(|at: usize| items.remove(at)).is_some()
        }
        _ => false,
    }
}

/// Objects as a file of YAML.
#[must_use]
pub fn yaml(objects: &[Value]) -> String {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        write(&mut text, object, 0);
    }
    text
}

fn write(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let _ = write!(text, "{indent}{}:", scalar(&Value::String(name.clone())));
                write_inner(text, value, depth);
            }
        }
        Value::Array(items) => {
            for value in items {
                let _ = write!(text, "{indent}-");
                write_inner(text, value, depth);
            }
        }
        scalar_value => {
            let _ = writeln!(text, "{indent}{}", scalar(scalar_value));
        }
    }
}

fn write_inner(text: &mut String, value: &Value, depth: usize) {
    let is_block = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if is_block {
        text.push('\n');
        write(text, value, depth + 1);
    } else {
        let _ = writeln!(text, " {}", scalar(value));
    }
}

/// In JSON's words, which are YAML's too, without the quotes where they are not needed.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if text.starts_with(|first: char| first.is_ascii_alphabetic()) && is_plain(text) => {
            text.clone()
        }
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let word = !["true", "false", "null", "yes", "no", "on", "off"].contains(&text.to_ascii_lowercase().as_str());
    word && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_./".contains(letter))
}
