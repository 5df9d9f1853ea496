//! Server-side apply (`kubernetes.io/docs/reference/using-api/server-side-apply`): who owns which field.
//!
//! Ownership stands in `metadata.managedFields`, in the form of the API (`FieldsV1`): a tree of `f:name` and `k:{...}`.
//! Applying sets the fields of the body and owns them; what the manager owned before, nobody else owns, and the body
//! lacks, goes. Setting another value on a field of another manager is a conflict, unless forced.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::fields::{item, merge_key};

/// A field: steps from the top, each as `FieldsV1` writes it.
type Field = Vec<String>;

/// Applies `body` as `manager` to `present`, which is `{}` if the object is new.
pub(crate) fn apply(present: &Value, body: &Value, manager: &str, force: bool, custom: bool) -> Result<Value, Failure> {
    let mut configured = body.clone();
    strip(&mut configured);
    let wanted = leaves(&configured, custom);
    let mut owners = owners(present);
    let before = owners.remove(&(manager.to_owned(), "Apply".to_owned())).unwrap_or_default();
    let mut conflicts = Vec::new();
    for ((other, operation), fields) in &mut owners {
        let contested: Vec<Field> = fields
            .iter()
            .filter(|field| wanted.contains(*field))
            .filter(|field| value(present, field) != value(&configured, field))
            .cloned()
            .collect();
        for field in contested {
            // A manager's own earlier updates do not stand against it.
            let own_update = other == manager && operation == "Update";
            if !force && !own_update {
                conflicts.push((other.clone(), dotted(&field)));
            }
            fields.remove(&field);
        }
    }
    if !conflicts.is_empty() {
        return Err(Failure::apply_conflict(&conflicts));
    }
    let mut result = present.clone();
    for field in before.difference(&wanted).filter(|field| !owners.values().any(|fields| fields.contains(*field))) {
        remove(&mut result, field);
    }
    drop_emptied(&mut result, custom, &mut Vec::new());
    set(&mut result, &configured, custom, &mut Vec::new());
    owners.insert((manager.to_owned(), "Apply".to_owned()), wanted);
    write_owners(&mut result, owners, &body["apiVersion"]);
    Ok(result)
}

/// Records that `manager` wrote what differs between the two objects by an update.
pub(crate) fn record_update(before: &Value, after: &mut Value, manager: &str, custom: bool) {
    let mut stripped = after.clone();
    strip(&mut stripped);
    let mut owners = owners(before);
    let now = leaves(&stripped, custom);
    let changed: BTreeSet<Field> =
        now.iter().filter(|field| value(before, field) != value(&stripped, field)).cloned().collect();
    for fields in owners.values_mut() {
        fields.retain(|field| now.contains(field) && !changed.contains(field));
    }
    owners.entry((manager.to_owned(), "Update".to_owned())).or_default().extend(changed);
    let version = after["apiVersion"].clone();
    write_owners(after, owners, &version);
}

/// Takes away what no manager owns: names and what the server writes.
fn strip(object: &mut Value) {
    const SERVERS: [&str; 11] = [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "managedFields",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
        "selfLink",
    ];
    let Some(fields) = object.as_object_mut() else { return };
    fields.retain(|name, _| name != "kind" && name != "apiVersion");
    let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    metadata.retain(|name, _| !SERVERS.contains(&name.as_str()));
    if metadata.is_empty() {
        fields.remove("metadata");
    }
}

fn leaves(object: &Value, custom: bool) -> BTreeSet<Field> {
    let mut found = BTreeSet::new();
    collect(object, custom, &mut Vec::new(), &mut Vec::new(), &mut found);
    found
}

fn collect(value: &Value, custom: bool, names: &mut Vec<String>, field: &mut Field, found: &mut BTreeSet<Field>) {
    match (value, merge_key(custom, names)) {
        (Value::Object(fields), _) if !fields.is_empty() => {
            for (name, value) in fields {
                names.push(name.clone());
                field.push(format!("f:{name}"));
                collect(value, custom, names, field, found);
                field.pop();
                names.pop();
            }
        }
        (Value::Array(items), Some(key)) => {
            for item in items {
                field.push(format!("k:{}", json!({key: item[key]})));
                collect(item, custom, names, field, found);
                field.pop();
            }
        }
        _ => drop((!field.is_empty()).then(|| found.insert(field.clone()))),
    }
}

fn step<'a>(value: &'a Value, step: &str) -> Option<&'a Value> {
    if let Some(name) = step.strip_prefix("f:") {
        return value.get(name);
    }
    let keys: Map<String, Value> = serde_json::from_str(step.strip_prefix("k:")?).ok()?;
    value.as_array()?.iter().find(|item| keys.iter().all(|(key, name)| item[key] == *name))
}

fn value<'a>(object: &'a Value, field: &Field) -> Option<&'a Value> {
    field.iter().try_fold(object, |value, name| step(value, name))
}

fn remove(object: &mut Value, field: &Field) {
    let Some((last, parents)) = field.split_last() else { return };
    let mut target = object;
    for parent in parents {
        let next = match parent.strip_prefix("f:") {
            Some(name) => target.get_mut(name),
            None => {
                let keys: Map<String, Value> =
                    parent.strip_prefix("k:").and_then(|keys| serde_json::from_str(keys).ok()).unwrap_or_default();
                let named = keys.iter().next();
                named.and_then(|(key, name)| target.as_array_mut().and_then(|list| item(list, key, name)))
            }
        };
        let Some(next) = next else { return };
        target = next;
    }
    if let (Some(name), Some(fields)) = (last.strip_prefix("f:"), target.as_object_mut()) {
        fields.remove(name);
    }
}

/// Items that lost their last field, their name among them, go.
fn drop_emptied(value: &mut Value, custom: bool, names: &mut Vec<String>) {
    if merge_key(custom, names).is_some()
        && let Some(list) = value.as_array_mut()
    {
        list.retain(|item| item.as_object().is_none_or(|fields| !fields.is_empty()));
    }
    for (name, value) in value.as_object_mut().into_iter().flatten() {
        names.push(name.clone());
        drop_emptied(value, custom, names);
        names.pop();
    }
}

/// Sets the fields of `from`; what else is there stays.
fn set(into: &mut Value, from: &Value, custom: bool, names: &mut Vec<String>) {
    match (from, merge_key(custom, names)) {
        (Value::Object(fields), _) if !fields.is_empty() => {
            if !into.is_object() {
                *into = json!({});
            }
            for (name, value) in fields {
                names.push(name.clone());
                let Some(target) = into.as_object_mut() else { return };
                set(target.entry(name.clone()).or_insert(Value::Null), value, custom, names);
                names.pop();
            }
        }
        (Value::Array(items), Some(key)) => {
            if !into.is_array() {
                *into = json!([]);
            }
            let Some(list) = into.as_array_mut() else { return };
            for from in items {
                match item(list, key, &from[key]) {
                    Some(present) => set(present, from, custom, names),
                    None => list.push(from.clone()),
                }
            }
        }
        _ => *into = from.clone(),
    }
}

type Owners = BTreeMap<(String, String), BTreeSet<Field>>;

fn owners(object: &Value) -> Owners {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let read = |entry: &Value| {
        let mut fields = BTreeSet::new();
        read_tree(&entry["fieldsV1"], &mut Vec::new(), &mut fields);
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        ((text("manager"), text("operation")), fields)
    };
    entries.map(read).collect()
}

fn read_tree(tree: &Value, field: &mut Field, found: &mut BTreeSet<Field>) {
    for (name, below) in tree.as_object().into_iter().flatten().filter(|(name, _)| *name != ".") {
        field.push(name.clone());
        if below.as_object().is_none_or(Map::is_empty) {
            found.insert(field.clone());
        } else {
            read_tree(below, field, found);
        }
        field.pop();
    }
}

fn write_owners(object: &mut Value, owners: Owners, version: &Value) {
    let mut entries = Vec::new();
    for ((manager, operation), fields) in owners.into_iter().filter(|(_, fields)| !fields.is_empty()) {
        let mut tree = json!({});
        for field in fields {
            let mut target = &mut tree;
            for name in field {
                target = &mut target[name];
                if target.is_null() {
                    *target = json!({});
                }
            }
        }
        entries.push(json!({
            "manager": manager, "operation": operation, "apiVersion": version, "fieldsType": "FieldsV1", "fieldsV1": tree,
        }));
    }
    object["metadata"]["managedFields"] = Value::Array(entries);
}

/// `.spec.ports[containerPort=80].name`.
fn dotted(field: &Field) -> String {
    field
        .iter()
        .map(|step| step.strip_prefix("f:").map_or_else(|| format!("[{step}]"), |name| format!(".{name}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(fields: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Thing", "metadata": {"name": "x"}, "spec": fields})
    }

    #[test]
    fn what_a_manager_no_longer_says_goes_unless_another_says_it() {
        let first = apply(&json!({}), &spec(json!({"a": 1, "b": 2, "c": 3})), "one", false, true).expect("applied");
        let both = apply(&first, &spec(json!({"b": 2})), "two", false, true).expect("the same value is no conflict");
        let less = apply(&both, &spec(json!({"c": 4})), "one", false, true).expect("applied");
        assert_eq!(less["spec"], json!({"b": 2, "c": 4}), "a went, b is owned by another");
    }

    #[test]
    fn another_value_is_a_conflict_unless_forced() {
        let first = apply(&json!({}), &spec(json!({"a": 1})), "one", false, true).expect("applied");
        let refused = apply(&first, &spec(json!({"a": 2})), "two", false, true).expect_err("owned by one");
        assert_eq!(refused.body()["details"]["causes"][0]["field"], ".spec.a");
        let forced = apply(&first, &spec(json!({"a": 2})), "two", true, true).expect("forced");
        let back = apply(&forced, &spec(json!({"a": 3})), "one", false, true).expect_err("it changed hands");
        assert_eq!(back.code, 409);
    }

    #[test]
    fn items_with_names_are_owned_one_by_one() {
        let ports = |list: Value| spec(json!({"ports": list}));
        let first = apply(&json!({}), &ports(json!([{"port": 80}])), "one", false, false).expect("applied");
        let both = apply(&first, &ports(json!([{"port": 81}])), "two", false, false).expect("another item");
        assert_eq!(both["spec"]["ports"], json!([{"port": 80}, {"port": 81}]));
        let one = apply(&both, &ports(json!([{"port": 82}])), "two", false, false).expect("another item");
        assert_eq!(one["spec"]["ports"], json!([{"port": 80}, {"port": 82}]));
    }

    #[test]
    fn an_update_takes_the_fields_over() {
        let mut applied = apply(&json!({}), &spec(json!({"a": 1})), "one", false, true).expect("applied");
        let before = applied.clone();
        applied["spec"]["a"] = json!(2);
        record_update(&before, &mut applied, "editor", true);
        let refused = apply(&applied, &spec(json!({"a": 1})), "one", false, true).expect_err("owned by the editor");
        assert_eq!(refused.code, 409);
    }
}
