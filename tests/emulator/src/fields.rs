//! Lists of objects whose items have names: which field names an item (`listMapKey` and `patchMergeKey` of the API).
//!
//! Kept for the kinds served. A list that is not here is one value. (The API has two keys for ports, which a patch does
//! not use either: `kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch`.)

use serde_json::Value;

/// The field that names the items of the list at `path`, if they have one.
pub(crate) fn merge_key(custom: bool, path: &[String]) -> Option<&'static str> {
    if custom {
        return None;
    }
    let parent = path.len().checked_sub(2).map_or("", |at| path[at].as_str());
    Some(match path.last()?.as_str() {
        "containers" | "initContainers" | "volumes" | "env" | "ephemeralContainers" => "name",
        "conditions" | "addresses" if path.first().is_some_and(|first| first == "status") => "type",
        "ownerReferences" => "uid",
        "podIPs" | "hostIPs" => "ip",
        "ports" if parent == "spec" => "port",
        "ports" if path.len() > 2 => "containerPort",
        "taints" => "key",
        _ => return None,
    })
}

/// The item of `list` that has `name` in the field `key`.
pub(crate) fn item<'a>(list: &'a mut [Value], key: &str, name: &Value) -> Option<&'a mut Value> {
    list.iter_mut().find(|item| item[key] == *name)
}
