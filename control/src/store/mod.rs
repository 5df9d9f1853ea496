//! Where objects live: an API server (`api_server`), or a directory of files with the same objects (`directory`).
//!
//! The contract is the part of the Kubernetes API this program needs: a watch that first lists and then follows,
//! reads, and writes that are compare-and-swap on an opaque resource version. Whatever nodes must agree upon is an
//! object written through this trait; there is no other channel between nodes. Calls block; they are made on control
//! threads only.

pub mod api_server;
pub mod directory;
mod document;
mod fields;
mod json;
mod object;
pub(crate) mod yaml;

use std::path::PathBuf;
use std::sync::Arc;

use crossbeam::channel::Receiver;

pub use api_server::ApiServerStore;
pub use directory::DirectoryStore;
pub use document::{Document, Located};
pub use fields::FieldError;
pub use object::{Kind, OUR_GROUP, Object, ObjectKey, Origin};
pub(crate) use object::{dns_label, dns_subdomain};

use crate::problem::Problem;

/// The objects that the text of a file holds, YAML or JSON, and what of it cannot be read; `file` is the name that they
/// and the problems are given.
#[must_use]
pub fn read_text(file: &str, text: &str) -> (Vec<Object>, Vec<Problem>) {
    let content = yaml::read_objects(&Arc::from(file), text);
    (content.objects, content.problems)
}

/// Longest queue of events between a store and its watcher; the store waits when it is full.
pub const WATCH_QUEUE: usize = 1024;

/// A store of objects. One value serves any number of threads.
pub trait ObjectStore: Send + Sync {
    /// The object with this key.
    fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError>;

    /// All objects of a kind, in order of their keys, as of now: a write that has returned is seen.
    fn list(&self, kind: &Kind) -> Result<Vec<Object>, StoreError>;

    /// Writes an object that must not exist yet. Of several writers of one key exactly one succeeds; the others get
    /// [`StoreError::AlreadyExists`].
    fn create(&self, object: &serde_json::Value) -> Result<Object, StoreError>;

    /// Replaces an object if its resource version still is `resource_version`; else [`StoreError::Conflict`].
    fn update(&self, object: &serde_json::Value, resource_version: &str) -> Result<Object, StoreError>;

    /// Replaces the `status` of an object and leaves the rest as it is in the store; else as [`ObjectStore::update`].
    fn update_status(&self, object: &serde_json::Value, resource_version: &str) -> Result<Object, StoreError> {
        let key = ObjectKey::read(&Located::from(object)).map_err(StoreError::Malformed)?;
        let present = self.get(&key)?.ok_or_else(|| StoreError::NotFound { key: Box::new(key) })?;
        let mut whole = present.to_json();
        whole["status"] = object["status"].clone();
        self.update(&whole, resource_version)
    }

    /// Deletes an object if its resource version still is `resource_version`; else [`StoreError::Conflict`].
    fn delete(&self, key: &ObjectKey, resource_version: &str) -> Result<(), StoreError>;

    /// Follows the objects of `kinds`: all present ones first, then [`Event::Synced`], then every change. Changes in
    /// quick succession may come as one. The watch ends when it is dropped.
    fn watch(&self, kinds: &[Kind]) -> Result<Watch, StoreError>;
}

/// What a watch reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The object exists with this content.
    Applied(Object),
    /// The object is gone.
    Deleted(ObjectKey),
    /// All objects that existed at the start have been reported.
    Synced,
    /// What the store cannot read at present; replaces the list reported before.
    Problems(Vec<Problem>),
}

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    /// The events, in order.
    pub events: Receiver<Event>,
    /// Dropped with the watch, which tells its thread to end.
    _running: crossbeam::channel::Sender<()>,
}

impl Watch {
    /// A watch whose events come by `events`; `running` is dropped with it, so that its source sees the end.
    #[must_use]
    pub fn new(events: Receiver<Event>, running: crossbeam::channel::Sender<()>) -> Self {
        Self { events, _running: running }
    }
}

/// Why a store refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The object to change is not there.
    #[error("{key} does not exist")]
    NotFound {
        /// Which object.
        key: Box<ObjectKey>,
    },
    /// The object to create is there already.
    #[error("{key} exists already")]
    AlreadyExists {
        /// Which object.
        key: Box<ObjectKey>,
    },
    /// Somebody else changed the object since it was read.
    #[error("{key} changed meanwhile: expected version {expected}, found {found}")]
    Conflict {
        /// Which object.
        key: Box<ObjectKey>,
        /// The version the writer had read.
        expected: String,
        /// The version in the store.
        found: String,
    },
    /// The object lives in a file that people write; the program only writes files of its own, one for each object.
    #[error("{key} is written in {file}, which is not rewritten: {reason}")]
    NotOurs {
        /// Which object.
        key: Box<ObjectKey>,
        /// The file.
        file: Arc<str>,
        /// What keeps the file from being rewritten.
        reason: &'static str,
    },
    /// The object given is none: a part that every object needs is missing or malformed.
    #[error("not an object: {0}")]
    Malformed(FieldError),
    /// The server refused for a reason of its own: a right that is missing, a field that is wrong, overload.
    #[error("the API server refused {what}: {message} ({code})")]
    Refused {
        /// The object, or the kind of a list.
        what: String,
        /// The code of the answer.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// The server does not answer.
    #[error("the API server {server} does not answer: {message}")]
    Unreachable {
        /// Its address.
        server: String,
        /// What happened.
        message: String,
    },
    /// Another process holds the lock of the directory for too long.
    #[error("the lock {} is held by another process for more than {seconds} s", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long this process waited.
        seconds: u64,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl StoreError {
    /// Whether another writer was faster: read again and decide again.
    #[must_use]
    pub fn is_race(&self) -> bool {
        matches!(self, Self::AlreadyExists { .. } | Self::Conflict { .. } | Self::NotFound { .. })
    }
}
