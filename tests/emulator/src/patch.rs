//! Patches: RFC 6902 (JSON patch), RFC 7386 (merge patch), and strategic merge patches of built-in kinds.

use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::fields::{item, merge_key};

/// A merge patch.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// A strategic merge patch: as a merge patch, but lists whose items have names are merged item by item.
pub(crate) fn strategic(target: &mut Value, patch: &Value, path: &mut Vec<String>) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if patch.get("$patch").is_some_and(|word| word == "replace") || !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (name, value) in patch {
        // Orders and retained keys only matter to lists that are shown in an order.
        if name.starts_with('$') {
            if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
                remove_values(fields, list, value);
            }
            continue;
        }
        path.push(name.clone());
        match (value, merge_key(false, path)) {
            (Value::Null, _) => drop(fields.remove(name)),
            (Value::Array(items), Some(key)) => {
                let list = fields.entry(name.clone()).or_insert_with(|| Value::Array(Vec::new()));
                merge_items(list, items, key, path);
            }
            _ => strategic(fields.entry(name.clone()).or_insert(Value::Null), value, path),
        }
        path.pop();
    }
}

fn merge_items(list: &mut Value, items: &[Value], key: &str, path: &mut Vec<String>) {
    if items.iter().any(|item| item["$patch"] == "replace") {
        *list = items.iter().filter(|item| item["$patch"].is_null()).cloned().collect();
        return;
    }
    let Some(list) = list.as_array_mut() else { return };
    for patch in items {
        let name = &patch[key];
        if patch["$patch"] == "delete" {
            list.retain(|present| present[key] != *name);
        } else if let Some(present) = item(list, key, name) {
            strategic(present, patch, path);
        } else {
            list.push(patch.clone());
        }
    }
}

fn remove_values(fields: &mut Map<String, Value>, list: &str, values: &Value) {
    if let (Some(Value::Array(list)), Some(values)) = (fields.get_mut(list), values.as_array()) {
        list.retain(|value| !values.contains(value));
    }
}

/// A JSON patch: all operations or none.
pub(crate) fn json(target: &mut Value, patch: &Value) -> Result<(), Failure> {
    let refused = |why: String| {
        Failure::new(422, "Invalid", format!("the server rejected our request due to an error in our request: {why}"))
    };
    let operations = patch.as_array().ok_or_else(|| Failure::bad_request("a JSON patch is a list"))?;
    let mut result = target.clone();
    for operation in operations {
        let text = |name: &str| operation[name].as_str().ok_or_else(|| refused(format!("{name} is missing")));
        let (word, path) = (text("op")?, text("path")?);
        let value = || operation.get("value").cloned().ok_or_else(|| refused("value is missing".to_owned()));
        let failed = || refused(format!("{word} {path} is not possible"));
        match word {
            "test" if result.pointer(path) == Some(&value()?) => {}
            "test" => return Err(refused(format!("testing value {path} failed"))),
            "add" => add(&mut result, path, value()?).ok_or_else(failed)?,
            "replace" => *result.pointer_mut(path).ok_or_else(failed)? = value()?,
            "remove" => drop(remove(&mut result, path).ok_or_else(failed)?),
            "move" => {
                let moved = remove(&mut result, text("from")?).ok_or_else(failed)?;
                add(&mut result, path, moved).ok_or_else(failed)?;
            }
            "copy" => {
                let copied = result.pointer(text("from")?).cloned().ok_or_else(failed)?;
                add(&mut result, path, copied).ok_or_else(failed)?;
            }
            _ => return Err(refused(format!("unknown operation {word}"))),
        }
    }
    *target = result;
    Ok(())
}

fn place(path: &str) -> Option<(&str, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn add(target: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *target = value;
        return Some(());
    }
    let (parent, last) = place(path)?;
    match target.pointer_mut(parent)? {
        Value::Object(fields) => drop(fields.insert(last, value)),
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => {
            let at = last.parse().ok().filter(|at| *at <= items.len())?;
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(target: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = place(path)?;
    match target.pointer_mut(parent)? {
        Value::Object(fields) => fields.remove(&last),
        Value::Array(items) => {
            let at: usize = last.parse().ok().filter(|at| *at < items.len())?;
            Some(items.remove(at))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Rows of RFC 7386, appendix A.
    #[test]
    fn merge_patches_are_those_of_the_rfc() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, result, "{target} with {patch}");
        }
    }

    #[test]
    fn json_patches_are_all_or_nothing() {
        let mut target = json!({"a": {"b": [1, 2]}});
        let patch = json!([{"op": "add", "path": "/a/b/1", "value": 9}, {"op": "replace", "path": "/a/x", "value": 1}]);
        assert!(json(&mut target, &patch).is_err());
        assert_eq!(target, json!({"a": {"b": [1, 2]}}));
        let patch = json!([
            {"op": "test", "path": "/a/b/0", "value": 1}, {"op": "add", "path": "/a/b/-", "value": 3},
            {"op": "move", "from": "/a/b/0", "path": "/a/c~1d"}, {"op": "remove", "path": "/a/b/0"},
        ]);
        json(&mut target, &patch).expect("possible");
        assert_eq!(target, json!({"a": {"b": [3], "c/d": 1}}));
    }

    #[test]
    fn strategic_patches_merge_items_by_their_names() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}});
        let patch = json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "a", "$patch": "delete"}, {"name": "c"}]}});
        strategic(&mut pod, &patch, &mut Vec::new());
        assert_eq!(pod, json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c"}]}}));
    }
}
