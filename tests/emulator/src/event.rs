//! Events: one object in two groups, and what may be written of one.
//!
//! A server has each Event once and shows it as `events.k8s.io/v1` and as `v1`, whose fields have other names; here an
//! Event of the new group is kept a second time as the old one, which is what `kubectl get events` reads. Checks are those
//! of `pkg/apis/core/validation/events.go`.

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::resource::Resource;

/// The group that Events are written to today.
pub(crate) const EVENT_GROUP: &str = "events.k8s.io";

/// Longest note, and longest of the names, in bytes.
const NOTE_BYTES: usize = 1024;
const NAME_BYTES: usize = 128;

/// Whether an Event may become `after`; anything else may.
pub(crate) fn check(resource: &Resource, before: Option<&Value>, after: &Value) -> Result<(), Failure> {
    if resource.group != EVENT_GROUP {
        return Ok(());
    }
    let name = after["metadata"]["name"].as_str().unwrap_or_default();
    let invalid = |field: &str, why: &str| Err(Failure::invalid(resource, name, field, why));
    let text = |field: &str| after[field].as_str().unwrap_or_default();
    for field in ["reportingController", "reportingInstance", "action", "reason", "eventTime"] {
        if text(field).is_empty() || text(field).len() > NAME_BYTES {
            return invalid(field, "Required value, of at most 128 characters");
        }
    }
    if !matches!(text("type"), "Normal" | "Warning") {
        return invalid("type", "has invalid value");
    }
    if text("note").len() > NOTE_BYTES {
        return invalid("note", "can have at most 1024 characters");
    }
    let (own, regarding) = (after["metadata"]["namespace"].as_str(), after["regarding"]["namespace"].as_str());
    let right = match regarding.filter(|namespace| !namespace.is_empty()) {
        Some(regarding) => own == Some(regarding),
        None => matches!(own, Some("default" | "kube-system")),
    };
    if !right {
        return invalid("regarding.namespace", "does not match event.namespace");
    }
    let series = &after["series"];
    if !series.is_null() && (series["count"].as_u64().unwrap_or(0) < 2 || !series["lastObservedTime"].is_string()) {
        return invalid("series.count", "should be at least 2");
    }
    let fixed = |event: &Value| {
        let mut event = event.clone();
        (event["series"], event["metadata"]) = (Value::Null, Value::Null);
        event
    };
    if before.is_some_and(|before| fixed(before) != fixed(after)) {
        return invalid("", "field is immutable");
    }
    Ok(())
}

/// The Event as the core group has it; `None` of anything else.
pub(crate) fn of_core(resource: &Resource, event: &Value) -> Option<Value> {
    if resource.group != EVENT_GROUP {
        return None;
    }
    let mut metadata = event["metadata"].clone();
    metadata["managedFields"] = Value::Null;
    Some(json!({
        "apiVersion": "v1", "kind": "Event", "metadata": metadata,
        "involvedObject": event["regarding"], "reason": event["reason"], "message": event["note"],
        "type": event["type"], "action": event["action"], "eventTime": event["eventTime"], "series": event["series"],
        "reportingComponent": event["reportingController"], "reportingInstance": event["reportingInstance"],
        "firstTimestamp": null, "lastTimestamp": null, "source": {},
    }))
}
