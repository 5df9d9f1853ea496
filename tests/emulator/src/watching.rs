//! Watches: what happened behind a version, as it happens.
//!
//! `kubernetes.io/docs/reference/using-api/api-concepts`, "Efficient detection of changes", "Watch bookmarks" and
//! "Streaming lists". Without a version, or with 0, a watch first tells every object as added. With `sendInitialEvents`
//! it does so too and then sends a bookmark with the annotation `k8s.io/initial-events-end`. A version that is forgotten
//! is answered by an `ERROR` event with a `Status` of code 410, and the stream ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::request::{Parameters, Target};
use crate::resource::Resource;
use crate::selector::Selection;
use crate::storage::{Change, Storage, Stored};

/// Longest time a server keeps a watch that does not say how long (`--min-request-timeout`).
const LONGEST: Duration = Duration::from_secs(1800);

/// A watch that was accepted.
#[derive(Debug)]
pub(crate) struct Watching {
    target: Target,
    selection: Selection,
    version: u64,
    /// Whether all objects come first, and whether their end is marked.
    initial: Initial,
    pub(crate) bookmarks: bool,
    pub(crate) longest: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Initial {
    None,
    Objects,
    ObjectsAndMark,
}

impl Watching {
    /// Reads the request. `streaming` says whether the server has streaming lists.
    pub(crate) fn of(target: Target, parameters: &Parameters, streaming: bool) -> Result<Watching, Failure> {
        let selection = Selection::parse(parameters.text("labelSelector"), parameters.text("fieldSelector"))?;
        // A watch of one object by its path is one with a selector.
        let selection = if target.name.is_empty() {
            selection
        } else {
            Selection::parse(parameters.text("labelSelector"), &format!("metadata.name={}", target.name))?
        };
        let version = parameters.number("resourceVersion")?.unwrap_or(0);
        let matching = parameters.get("resourceVersionMatch");
        let bookmarks = parameters.flag("allowWatchBookmarks");
        let initial = match (parameters.get("sendInitialEvents"), matching) {
            (Some(_), _) if !streaming => {
                let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
                return Err(Failure::invalid_options("sendInitialEvents", why));
            }
            (Some(_), Some("NotOlderThan")) if parameters.flag("sendInitialEvents") => Initial::ObjectsAndMark,
            (Some(_), Some("NotOlderThan")) => Initial::None,
            (Some(_), _) => {
                let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return Err(Failure::invalid_options("resourceVersionMatch", why));
            }
            (None, Some(_)) => {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                return Err(Failure::invalid_options("resourceVersionMatch", why));
            }
            (None, None) if version == 0 => Initial::Objects,
            (None, None) => Initial::None,
        };
        let longest = parameters.number("timeoutSeconds")?.filter(|seconds| *seconds != 0);
        let longest = longest.map_or(LONGEST, Duration::from_secs);
        Ok(Watching { target, selection, version, initial, bookmarks, longest })
    }

    /// The events there are by now, and whether the stream ends with them.
    pub(crate) fn advance(&mut self, storage: &Storage) -> (Vec<Bytes>, bool) {
        match std::mem::replace(&mut self.initial, Initial::None) {
            Initial::None => {}
            kind => match self.objects(storage) {
                Ok(mut lines) => {
                    self.version = storage.revision();
                    if kind == Initial::ObjectsAndMark && self.bookmarks {
                        lines.push(self.bookmark(true));
                    }
                    return (lines, false);
                }
                Err(failure) => return (vec![error(&failure)], true),
            },
        }
        match storage.changes(&self.target.resource, self.version) {
            Ok(changes) => {
                let lines = changes.iter().filter_map(|change| self.event(change)).collect();
                self.version = storage.revision().max(self.version);
                (lines, false)
            }
            Err(failure) => (vec![error(&failure)], true),
        }
    }

    fn objects(&self, storage: &Storage) -> Result<Vec<Bytes>, Failure> {
        if self.version > storage.revision() {
            return Err(Failure::too_new(self.version, storage.revision()));
        }
        let place = (self.target.namespace.as_str(), None);
        let takes = |stored: &Stored| self.takes(stored);
        let page = storage.page(&self.target.resource, storage.revision(), place, usize::MAX, takes)?;
        Ok(page.iter().map(|(_, stored)| line("ADDED", &self.target.resource, stored)).collect())
    }

    fn takes(&self, stored: &Stored) -> bool {
        self.selection.is_everything() || self.selection.takes(&stored.value())
    }

    /// What a change is to this watch: an object that leaves the selection is deleted for it.
    fn event(&self, change: &Change) -> Option<Bytes> {
        if !self.target.namespace.is_empty() && change.key.0 != self.target.namespace {
            return None;
        }
        let before = change.before.as_ref().is_some_and(|before| self.takes(before));
        let after = !change.deleted && self.takes(&change.after);
        let word = match (before, after) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        Some(line(word, &self.target.resource, &change.after))
    }

    /// A bookmark of the version reached.
    pub(crate) fn bookmark(&self, ends_initial: bool) -> Bytes {
        let resource: &Arc<Resource> = &self.target.resource;
        let mut metadata = json!({"resourceVersion": self.version.to_string(), "creationTimestamp": Value::Null});
        if ends_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata});
        text(&json!({"type": "BOOKMARK", "object": object}))
    }
}

/// An `ERROR` event.
pub(crate) fn error(failure: &Failure) -> Bytes {
    text(&json!({"type": "ERROR", "object": failure.body()}))
}

fn text(event: &Value) -> Bytes {
    // The type comes first, as a real server writes it.
    let line = format!("{{\"type\":{},\"object\":{}}}\n", event["type"], event["object"]);
    Bytes::from(line)
}

fn line(word: &str, resource: &Resource, stored: &Stored) -> Bytes {
    let head = format!("{{\"type\":\"{word}\",\"object\":{}", resource.head());
    Bytes::from([head.as_bytes(), stored.tail(), b"}\n"].concat())
}
