//! Reads: one object, and lists with all the meanings that a version in the request may have.
//!
//! `kubernetes.io/docs/reference/using-api/api-concepts`, "Semantics for get and list": without a version the most recent
//! state, 0 any, a version "not older than" it, or that very one if `resourceVersionMatch=Exact` says so, or if there is
//! a limit and no word on the match.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::request::{Parameters, Target};
use crate::selector::Selection;
use crate::storage::{Key, Storage, Stored};

/// One object as it is sent.
pub(crate) fn object(target: &Target, stored: &Stored) -> Vec<u8> {
    [target.resource.head().as_bytes(), stored.tail()].concat()
}

/// One object by its name.
pub(crate) fn get(storage: &Storage, target: &Target) -> Result<Vec<u8>, Failure> {
    let key = (target.namespace.clone(), target.name.clone());
    let found = storage.get(&target.resource, &key);
    found.map(|stored| object(target, &stored)).ok_or_else(|| Failure::not_found(&target.resource, &target.name))
}

/// Where a list goes on: its version and the last object sent.
struct Position {
    version: u64,
    last: Key,
}

impl Position {
    fn token(&self) -> String {
        let text = format!("{}\n{}\n{}", self.version, self.last.0, self.last.1);
        text.bytes().map(|byte| format!("{byte:02x}")).collect()
    }

    fn read(token: &str) -> Option<Self> {
        let byte = |at| u8::from_str_radix(token.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..token.len()).step_by(2).map(byte).collect();
        let text = String::from_utf8(bytes?).ok()?;
        let mut lines = text.split('\n').map(str::to_owned);
        let version = lines.next()?.parse().ok()?;
        Some(Self { version, last: (lines.next()?, lines.next()?) })
    }
}

/// The version a list is to be of, and where it begins.
fn start(storage: &Storage, parameters: &Parameters, limit: Option<u64>) -> Result<(u64, Option<Key>), Failure> {
    let current = storage.revision();
    let version = parameters.number("resourceVersion")?;
    let matching = parameters.get("resourceVersionMatch");
    if let Some(token) = parameters.get("continue") {
        if matching.is_some() {
            return Err(Failure::invalid_options(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for continue",
            ));
        }
        if version.is_some_and(|version| version != 0) {
            return Err(Failure::bad_request("specifying resource version is not allowed when using continue"));
        }
        let position = Position::read(token).ok_or_else(|| Failure::bad_request("continue key is not valid"))?;
        return Ok((position.version, Some(position.last)));
    }
    match (version, matching) {
        (None, Some(_)) => {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            Err(Failure::invalid_options("resourceVersionMatch", why))
        }
        (Some(0), Some("Exact")) => {
            let why = "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
            Err(Failure::invalid_options("resourceVersionMatch", why))
        }
        (_, Some(word)) if !["Exact", "NotOlderThan"].contains(&word) => {
            Err(Failure::invalid_options("resourceVersionMatch", "supported values: \"Exact\", \"NotOlderThan\""))
        }
        (Some(version), _) if version > current => Err(Failure::too_new(version, current)),
        (Some(version), Some("Exact")) => Ok((version, None)),
        (Some(version), None) if version != 0 && limit.is_some() => Ok((version, None)),
        _ => Ok((current, None)),
    }
}

/// The objects of a collection.
pub(crate) fn list(storage: &Storage, target: &Target, parameters: &Parameters) -> Result<Vec<u8>, Failure> {
    if parameters.get("sendInitialEvents").is_some() {
        return Err(Failure::invalid_options("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    let limit = parameters.number("limit")?.filter(|limit| *limit != 0);
    let selection = Selection::parse(parameters.text("labelSelector"), parameters.text("fieldSelector"))?;
    let (version, last) = start(storage, parameters, limit)?;
    let most = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let everything = selection.is_everything();
    let takes = |stored: &Stored| everything || selection.takes(&stored.value());
    let place = (target.namespace.as_str(), last.as_ref());
    let mut page = match storage.page(&target.resource, version, place, most.saturating_add(1), takes) {
        // The rest can still be had, only not from the same moment.
        Err(failure) => {
            let last = last.filter(|_| failure.code == 410);
            let token = last.map(|last| Position { version: storage.revision(), last }.token());
            return Err(token.map_or(failure.clone(), |token| failure.with_continue(token)));
        }
        Ok(page) => page,
    };
    let more = page.len() > most;
    page.truncate(most);
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some((key, _)) = page.last().filter(|_| more) {
        metadata["continue"] = Position { version, last: key.clone() }.token().into();
        if everything && target.namespace.is_empty() && last.is_none() {
            metadata["remainingItemCount"] = (storage.count(&target.resource) - page.len()).into();
        }
    }
    Ok(write(target, &metadata, &page))
}

/// Items of built-in kinds do not say what they are, items of others do, as a real server has it.
fn write(target: &Target, metadata: &Value, page: &[(Key, Arc<Stored>)]) -> Vec<u8> {
    let resource = &target.resource;
    let head = if resource.custom { resource.head() } else { "{".to_owned() };
    let room: usize = page.iter().map(|(_, stored)| stored.tail().len() + head.len() + 1).sum();
    let mut text = Vec::with_capacity(room + 256);
    let list = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        resource.kind,
        resource.api_version()
    );
    text.extend_from_slice(list.as_bytes());
    for (at, (_, stored)) in page.iter().enumerate() {
        text.extend_from_slice(if at == 0 { b"" } else { b"," });
        text.extend_from_slice(head.as_bytes());
        text.extend_from_slice(stored.tail());
    }
    text.extend_from_slice(b"]}\n");
    text
}
