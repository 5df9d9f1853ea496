//! Discovery: what is served, in the form that every client understands.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::storage::Storage;

/// The answer at `path`, if it is one of discovery.
pub(crate) fn answer(storage: &Storage, path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api"] => Some(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
        })),
        ["apis"] => Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups(storage)})),
        ["apis", group] => groups(storage).into_iter().find(|found| found["name"] == *group).map(|mut found| {
            found["kind"] = json!("APIGroup");
            found["apiVersion"] = json!("v1");
            found
        }),
        ["api", version] => resources(storage, "", version),
        ["apis", group, version] => resources(storage, group, version),
        ["version"] => Some(json!({
            "major": "1", "minor": "34", "gitVersion": "v1.34.0-emulator", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "2025-08-27T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
        })),
        _ => None,
    }
}

fn groups(storage: &Storage) -> Vec<Value> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for resource in storage.resources.iter().filter(|resource| !resource.group.is_empty()) {
        let known = versions.entry(&resource.group).or_default();
        if !known.contains(&resource.version.as_str()) {
            known.push(&resource.version);
        }
    }
    let version =
        |group: &str, version: &str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let group = |(name, versions): (&str, Vec<&str>)| {
        let listed: Vec<Value> = versions.iter().map(|found| version(name, found)).collect();
        json!({"name": name, "versions": listed, "preferredVersion": listed[0]})
    };
    versions.into_iter().map(group).collect()
}

fn resources(storage: &Storage, group: &str, version: &str) -> Option<Value> {
    let mut listed = Vec::new();
    for resource in &storage.resources {
        if (resource.group.as_str(), resource.version.as_str()) != (group, version) {
            continue;
        }
        listed.push(resource.listed());
        if resource.status {
            let mut status = resource.listed();
            status["name"] = format!("{}/status", resource.plural).into();
            status["singularName"] = json!("");
            status["verbs"] = json!(["get", "patch", "update"]);
            listed.push(status);
        }
    }
    let name = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!listed.is_empty())
        .then(|| json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": listed}))
}
