//! Writes: create, update, patch, apply, delete, each one step against the version it was made from.
//!
//! What holds as in a real server: names are checked, a version that is not the present one is a conflict, an object that
//! is written as it is keeps its version, `status` is written by its own path only and leaves the rest alone (and the
//! other way round), the generation counts changes of anything but metadata and status, finalizers hold a deletion up.

use serde_json::{Value, json};

use crate::apply;
use crate::event;
use crate::failure::Failure;
use crate::patch;
use crate::reading;
use crate::request::{Parameters, Target};
use crate::resource::{DEFINITION_GROUP, Resource};
use crate::storage::{Key, Storage};

/// What was done, as it is answered: code and body.
pub(crate) type Written = (u16, Vec<u8>);

const TIME: &str = "2026-01-01T00:00:00Z";

fn key(target: &Target, name: &str) -> Key {
    (target.namespace.clone(), name.to_owned())
}

/// Checks what the body says of itself against where it was sent.
fn check(target: &Target, object: &mut Value) -> Result<(), Failure> {
    let resource = &target.resource;
    if !object.is_object() {
        return Err(Failure::bad_request("the object provided is unrecognized"));
    }
    let (kind, version) = (object["kind"].as_str(), object["apiVersion"].as_str());
    if kind.is_some_and(|kind| kind != resource.kind)
        || version.is_some_and(|version| version != resource.api_version())
    {
        let message = format!(
            "{} in version {:?} cannot be handled as a {}: no kind {:?} is registered for version {:?}",
            kind.unwrap_or_default(),
            version.unwrap_or_default(),
            resource.kind,
            kind.unwrap_or_default(),
            version.unwrap_or_default()
        );
        return Err(Failure::bad_request(message));
    }
    object["kind"] = resource.kind.clone().into();
    object["apiVersion"] = resource.api_version().into();
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let given = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    if !given.is_empty() && given != target.namespace {
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Failure::bad_request(message));
    }
    if resource.namespaced {
        object["metadata"]["namespace"] = target.namespace.clone().into();
    }
    Ok(())
}

/// Names are DNS subdomains (RFC 1123), as for most kinds.
fn check_name(resource: &Resource, name: &str) -> Result<(), Failure> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label =
        |label: &str| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner);
    if name.is_empty() {
        return Err(Failure::invalid(
            resource,
            name,
            "metadata.name",
            "Required value: name or generateName is required",
        ));
    }
    if name.len() > 253 || !name.split('.').all(label) {
        let why = format!(
            "Invalid value: {name:?}: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"
        );
        return Err(Failure::invalid(resource, name, "metadata.name", &why));
    }
    Ok(())
}

pub(crate) fn create(
    storage: &mut Storage,
    target: &Target,
    parameters: &Parameters,
    mut object: Value,
) -> Result<Written, Failure> {
    check(target, &mut object)?;
    let resource = &target.resource;
    let metadata = &mut object["metadata"];
    if let (None, Some(prefix)) =
        (metadata["name"].as_str().filter(|name| !name.is_empty()), metadata["generateName"].as_str())
    {
        metadata["name"] = format!("{prefix}{:05}", storage.unique()).into();
    }
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    check_name(resource, &name)?;
    if metadata["resourceVersion"].as_str().is_some_and(|version| !version.is_empty() && version != "0") {
        // Not one of the errors a server has a code for.
        let message = "resourceVersion should not be set on objects to be created";
        return Err(Failure::new(500, "InternalError", message));
    }
    if storage.get(resource, &key(target, &name)).is_some() {
        return Err(Failure::already_exists(resource, &name));
    }
    if resource.namespaced {
        let namespace = storage.resource("", "v1", "namespaces").ok_or_else(Failure::no_such_resource)?;
        let known = storage.get(&namespace, &(String::new(), target.namespace.clone())).is_some();
        known.then_some(()).ok_or_else(|| Failure::not_found(&namespace, &target.namespace))?;
    }
    if resource.status
        && resource.custom
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("status");
    }
    apply::record_update(&json!({}), &mut object, manager(parameters), resource.custom);
    created(storage, target, &name, object, parameters)
}

fn manager(parameters: &Parameters) -> &str {
    parameters.get("fieldManager").unwrap_or("unknown")
}

fn created(
    storage: &mut Storage,
    target: &Target,
    name: &str,
    mut object: Value,
    parameters: &Parameters,
) -> Result<Written, Failure> {
    let resource = &target.resource;
    let number = storage.unique();
    let metadata = &mut object["metadata"];
    metadata["uid"] = format!("00000000-0000-4000-8000-{number:012x}").into();
    metadata["creationTimestamp"] = TIME.into();
    metadata["generation"] = json!(1);
    default(resource, &mut object);
    event::check(resource, None, &object)?;
    if dry(parameters) {
        return Ok((201, object.to_string().into_bytes()));
    }
    let stored = storage.put(resource, &key(target, name), &mut object);
    if resource.group == DEFINITION_GROUP {
        storage.define(&object);
    }
    Ok((201, reading::object(target, &stored)))
}

fn dry(parameters: &Parameters) -> bool {
    parameters.get("dryRun").is_some()
}

/// The few defaults that clients count on.
fn default(resource: &Resource, object: &mut Value) {
    match resource.kind.as_str() {
        "Namespace" => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            object["status"]["phase"] = json!("Active");
        }
        "Pod" if object["status"]["phase"].is_null() => object["status"]["phase"] = json!("Pending"),
        "CustomResourceDefinition" => {
            let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "Emulated", "message": "", "lastTransitionTime": TIME});
            object["status"]["conditions"] = json!([condition("NamesAccepted"), condition("Established")]);
            object["status"]["acceptedNames"] = object["spec"]["names"].clone();
        }
        _ => {}
    }
}

pub(crate) fn update(
    storage: &mut Storage,
    target: &Target,
    parameters: &Parameters,
    mut object: Value,
) -> Result<Written, Failure> {
    check(target, &mut object)?;
    let (resource, name) = (&target.resource, target.name.as_str());
    if object["metadata"]["name"] != *name {
        let given = object["metadata"]["name"].as_str().unwrap_or_default();
        let message = format!("the name of the object ({given}) does not match the name on the URL ({name})");
        return Err(Failure::bad_request(message));
    }
    let present = storage.get(resource, &key(target, name)).ok_or_else(|| Failure::not_found(resource, name))?;
    if resource.custom && object["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty) {
        let why = "Invalid value: 0x0: must be specified for an update";
        return Err(Failure::invalid(resource, name, "metadata.resourceVersion", why));
    }
    let before = present.whole(resource);
    replace(storage, target, parameters, &before, object, Some(manager(parameters)))
}

/// Puts `object` in the place of `before`, as a whole or its status. `updates`: who writes, if not by applying.
fn replace(
    storage: &mut Storage,
    target: &Target,
    parameters: &Parameters,
    before: &Value,
    mut object: Value,
    updates: Option<&str>,
) -> Result<Written, Failure> {
    let (resource, name) = (&target.resource, target.name.as_str());
    let (old, given) = (&before["metadata"], object["metadata"].clone());
    let differs =
        |field: &str| given[field].as_str().is_some_and(|text| !text.is_empty()) && given[field] != old[field];
    if differs("resourceVersion") {
        return Err(Failure::stale(resource, name));
    }
    if differs("uid") {
        let (given, old) = (&given["uid"], &old["uid"]);
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {old}");
        return Err(Failure::conflict(resource, name, &why));
    }
    if target.status {
        let mut whole = before.clone();
        whole["status"] = object["status"].take();
        whole["metadata"]["managedFields"] = object["metadata"]["managedFields"].take();
        object = whole;
    } else if resource.status {
        match before.get("status") {
            Some(status) => object["status"] = status.clone(),
            None => drop(object.as_object_mut().map(|fields| fields.remove("status"))),
        }
    }
    for field in ["uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        match old.get(field) {
            Some(value) => object["metadata"][field] = value.clone(),
            None => drop(object["metadata"].as_object_mut().map(|fields| fields.remove(field))),
        }
    }
    object["metadata"]["resourceVersion"] = old["resourceVersion"].clone();
    if let Some(manager) = updates {
        object["metadata"]["managedFields"] = old["managedFields"].clone();
        let mut same = before.clone();
        same["metadata"]["managedFields"] = Value::Null;
        let mut now = object.clone();
        now["metadata"]["managedFields"] = Value::Null;
        if same != now {
            apply::record_update(before, &mut object, manager, resource.custom);
        }
    }
    if object == *before {
        // Nothing changes: no version, no event.
        return Ok((200, object.to_string().into_bytes()));
    }
    event::check(resource, Some(before), &object)?;
    let content = |object: &Value| {
        let mut object = object.clone();
        object["metadata"] = Value::Null;
        object["status"] = Value::Null;
        object
    };
    if content(&object) != content(before) {
        object["metadata"]["generation"] = (old["generation"].as_u64().unwrap_or(0) + 1).into();
    }
    if dry(parameters) {
        return Ok((200, object.to_string().into_bytes()));
    }
    let key = key(target, name);
    if resource.group == DEFINITION_GROUP {
        storage.define(&object);
    }
    let stored = storage.put(resource, &key, &mut object);
    let finished = !object["metadata"]["deletionTimestamp"].is_null() && finalizers(&object) == 0;
    if finished && resource.kind != "Pod" {
        storage.remove(resource, &key);
    }
    Ok((200, reading::object(target, &stored)))
}

fn finalizers(object: &Value) -> usize {
    object["metadata"]["finalizers"].as_array().map_or(0, Vec::len)
}

pub(crate) fn patch(
    storage: &mut Storage,
    target: &Target,
    parameters: &Parameters,
    media: &str,
    body: &Value,
) -> Result<Written, Failure> {
    let (resource, name) = (&target.resource, target.name.as_str());
    let present = storage.get(resource, &key(target, name));
    if media == "application/apply-patch+yaml" {
        return apply_patch(storage, target, parameters, present.map(|present| present.whole(resource)), body);
    }
    let before = present.ok_or_else(|| Failure::not_found(resource, name))?.whole(resource);
    let mut object = before.clone();
    match media {
        "application/merge-patch+json" => patch::merge(&mut object, body),
        "application/strategic-merge-patch+json" if !resource.custom => {
            patch::strategic(&mut object, body, &mut Vec::new());
        }
        "application/json-patch+json" => patch::json(&mut object, body)?,
        other => return Err(Failure::unsupported_media(other)),
    }
    check(target, &mut object)?;
    if object["metadata"]["name"] != *name {
        return Err(Failure::invalid(resource, name, "metadata.name", "Invalid value: field is immutable"));
    }
    replace(storage, target, parameters, &before, object, Some(manager(parameters)))
}

fn apply_patch(
    storage: &mut Storage,
    target: &Target,
    parameters: &Parameters,
    present: Option<Value>,
    body: &Value,
) -> Result<Written, Failure> {
    let (resource, name) = (&target.resource, target.name.as_str());
    let Some(manager) = parameters.get("fieldManager") else {
        let message =
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
        return Err(Failure::new(422, "Invalid", message));
    };
    let mut body = body.clone();
    check(target, &mut body)?;
    if !body["metadata"]["managedFields"].is_null() {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    if body["metadata"]["name"].as_str().is_some_and(|given| given != name) {
        let message = format!("name in body does not match the name on the URL ({name})");
        return Err(Failure::bad_request(message));
    }
    body["metadata"]["name"] = name.into();
    let force = parameters.flag("force");
    let Some(before) = present else {
        let version = body["metadata"]["resourceVersion"].as_str().is_some_and(|version| !version.is_empty());
        if version || target.status {
            return Err(Failure::not_found(resource, name));
        }
        check_name(resource, name)?;
        let mut object = apply::apply(&json!({}), &body, manager, force, resource.custom)?;
        check(target, &mut object)?;
        object["metadata"]["name"] = name.into();
        return created(storage, target, name, object, parameters);
    };
    let mut object = apply::apply(&before, &body, manager, force, resource.custom)?;
    if let Some(version) = body["metadata"].get("resourceVersion") {
        object["metadata"]["resourceVersion"] = version.clone();
    }
    replace(storage, target, parameters, &before, object, None)
}

pub(crate) fn delete(
    storage: &mut Storage,
    target: &Target,
    parameters: &Parameters,
    options: &Value,
) -> Result<Written, Failure> {
    let (resource, name) = (&target.resource, target.name.as_str());
    let key = key(target, name);
    let present = storage.get(resource, &key).ok_or_else(|| Failure::not_found(resource, name))?;
    let mut object = present.whole(resource);
    for (field, words) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
        let wanted = &options["preconditions"][field];
        let found = &object["metadata"][field];
        if wanted.is_string() && wanted != found {
            let (wanted, found) = (wanted.as_str().unwrap_or_default(), found.as_str().unwrap_or_default());
            let why = if field == "uid" {
                format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}")
            } else {
                format!(
                    "the {words} in the precondition ({wanted}) does not match the {words} in record ({found}). The object \
                     might have been modified"
                )
            };
            return Err(Failure::conflict(resource, name, &why));
        }
    }
    let grace = parameters.number("gracePeriodSeconds")?.or(options["gracePeriodSeconds"].as_u64());
    // A pod that runs somewhere is deleted by who runs it.
    let runs = resource.kind == "Pod" && object["spec"]["nodeName"].is_string() && grace != Some(0);
    if finalizers(&object) > 0 || runs {
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = TIME.into();
            object["metadata"]["deletionGracePeriodSeconds"] = if runs { grace.unwrap_or(30) } else { 0 }.into();
            let stored = storage.put(resource, &key, &mut object);
            return Ok((200, reading::object(target, &stored)));
        }
        return Ok((200, reading::object(target, &present)));
    }
    storage.remove(resource, &key);
    if resource.group == DEFINITION_GROUP {
        clear_definition(storage, &object);
    }
    if resource.kind == "Namespace" {
        clear_namespace(storage, name)?;
    }
    let mut details = json!({"name": name, "kind": resource.plural, "uid": object["metadata"]["uid"]});
    if !resource.group.is_empty() {
        details["group"] = json!(resource.group);
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok((200, status.to_string().into_bytes()))
}

/// Objects go with what defines them.
fn clear_definition(storage: &mut Storage, definition: &Value) {
    let same = |resource: &Resource| {
        resource.custom
            && resource.group == definition["spec"]["group"]
            && resource.plural == definition["spec"]["names"]["plural"]
    };
    let defined = storage.resources.iter().find(|resource| same(resource)).cloned();
    if let Some(resource) = defined {
        let everything = storage.page(&resource, storage.revision(), ("", None), usize::MAX, |_| true);
        for (key, _) in everything.unwrap_or_default() {
            storage.remove(&resource, &key);
        }
    }
    storage.undefine(definition);
}

fn clear_namespace(storage: &mut Storage, namespace: &str) -> Result<(), Failure> {
    for resource in storage.resources.clone().iter().filter(|resource| resource.namespaced) {
        for (key, _) in storage.page(resource, storage.revision(), (namespace, None), usize::MAX, |_| true)? {
            storage.remove(resource, &key);
        }
    }
    Ok(())
}

/// Deletes what a list with the same parameters would show.
pub(crate) fn delete_collection(
    storage: &mut Storage,
    target: &Target,
    parameters: &Parameters,
    options: &Value,
) -> Result<Written, Failure> {
    let selection =
        crate::selector::Selection::parse(parameters.text("labelSelector"), parameters.text("fieldSelector"))?;
    let place = (target.namespace.as_str(), None);
    let takes = |stored: &crate::storage::Stored| selection.takes(&stored.value());
    for ((namespace, name), _) in storage.page(&target.resource, storage.revision(), place, usize::MAX, takes)? {
        let one = Target { resource: target.resource.clone(), namespace, name, status: false };
        delete(storage, &one, parameters, options)?;
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    Ok((200, status.to_string().into_bytes()))
}
