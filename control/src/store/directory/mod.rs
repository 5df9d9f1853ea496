//! The directory store: a directory of YAML files serves as the API server.
//!
//! People write files as they like, several objects in one if they want; a change takes effect when the file is
//! saved. The program writes files of its own, one for each object, and never rewrites a file that people wrote.
//! Several processes may share a directory: writes are serialised by a lock file, made durable, and put in place by
//! an atomic rename, so that compare-and-swap holds between them and readers see whole files only.
//!
//! Rules: files directly in the directory count (`*.yaml`, `*.yml`, `*.json`; none whose name begins with a dot).
//! An object written twice counts where it comes first, by file name and then by line; the other place is a problem.
//! While a document cannot be read, objects its file held before stay as they were ("last good"); they go when the
//! file goes or is readable without them. The last good version lives in this process: after a restart an unreadable
//! object is absent.

mod scan;
mod watch;
mod write;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use super::{FieldError, Kind, Located, Object, ObjectKey, ObjectStore, StoreError, Watch};
use scan::{Cache, Scan};
use write::{DirectoryLock, create_file, remove_abandoned, remove_abandoned_unless_busy, remove_file, replace_file};

/// How the store follows its directory.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryOptions {
    /// Files must be quiet for so long before they are read; writers that pause longer are read half-way.
    pub quiet: Duration,
    /// The directory is read at least that often, whatever the kernel reports.
    pub rescan: Duration,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(100), rescan: Duration::from_secs(3) }
    }
}

/// A directory of objects.
#[derive(Clone, Debug)]
pub struct DirectoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    options: DirectoryOptions,
    cache: Mutex<Cache>,
    /// Done before the first write: files that writers who died left behind are removed.
    swept: Once,
}

impl Shared {
    /// Reads what changed since the last call and returns the whole.
    fn scan(&self) -> Result<Arc<Scan>, StoreError> {
        // A panic elsewhere cannot leave the cache half changed: entries are replaced whole.
        let mut cache: MutexGuard<'_, Cache> = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.refresh(&self.path)
    }
}

impl DirectoryStore {
    /// Opens an existing directory.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::with_options(path, DirectoryOptions::default())
    }

    /// Opens an existing directory, followed as `options` say.
    pub fn with_options(path: impl Into<PathBuf>, options: DirectoryOptions) -> Result<Self, StoreError> {
        let path = path.into();
        let shared = Shared { path, options, cache: Mutex::default(), swept: Once::new() };
        shared.scan()?;
        remove_abandoned_unless_busy(&shared.path);
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    fn lock(&self) -> Result<DirectoryLock, StoreError> {
        let lock = DirectoryLock::acquire(&self.shared.path)?;
        self.shared.swept.call_once(|| remove_abandoned(&self.shared.path));
        Ok(lock)
    }

    /// The object to change, if its version is the expected one and its file is ours alone.
    fn checked(&self, key: &ObjectKey, expected: &str) -> Result<(), StoreError> {
        let scan = self.shared.scan()?;
        let Some(found) = scan.objects.get(key) else {
            return Err(StoreError::NotFound { key: Box::new(key.clone()) });
        };
        if found.resource_version.as_ref() != expected {
            let (expected, found) = (expected.to_owned(), found.resource_version.to_string());
            return Err(StoreError::Conflict { key: Box::new(key.clone()), expected, found });
        }
        let refused = |file: &Arc<str>, reason| StoreError::NotOurs {
            key: Box::new(key.clone()),
            file: Arc::clone(file),
            reason,
        };
        match &found.origin {
            Some(origin) if origin.file.as_ref() != key.file_name() => {
                Err(refused(&origin.file, "only files with the name the program gives them are"))
            }
            Some(origin) if scan.is_alone(&origin.file) => Ok(()),
            Some(origin) => Err(refused(&origin.file, "it holds more than this object, or cannot be read")),
            None => Err(refused(&Arc::from(key.file_name()), "it cannot be read")),
        }
    }
}

fn readable(object: &serde_json::Value) -> Result<Object, StoreError> {
    let mut object = object.clone();
    // Versions are computed, never stored: a stored one would be stale after an edit by hand.
    if let Some(metadata) = object.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    Object::read(Located::from(&object), None).map_err(StoreError::Malformed)
}

impl ObjectStore for DirectoryStore {
    fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        Ok(self.shared.scan()?.objects.get(key).cloned())
    }

    fn list(&self, kind: &Kind) -> Result<Vec<Object>, StoreError> {
        let scan = self.shared.scan()?;
        Ok(scan.objects.values().filter(|object| object.key.kind == *kind).cloned().collect())
    }

    fn create(&self, object: &serde_json::Value) -> Result<Object, StoreError> {
        let object = readable(object)?;
        let text = to_yaml(&object)?;
        let _lock = self.lock()?;
        if self.shared.scan()?.objects.contains_key(&object.key) {
            return Err(StoreError::AlreadyExists { key: Box::new(object.key) });
        }
        create_file(&self.shared.path, &object.key, &text)?;
        Ok(object)
    }

    fn update(&self, object: &serde_json::Value, resource_version: &str) -> Result<Object, StoreError> {
        let object = readable(object)?;
        let text = to_yaml(&object)?;
        let _lock = self.lock()?;
        self.checked(&object.key, resource_version)?;
        replace_file(&self.shared.path, &object.key, &text)?;
        Ok(object)
    }

    fn delete(&self, key: &ObjectKey, resource_version: &str) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        self.checked(key, resource_version)?;
        remove_file(&self.shared.path, key)
    }

    fn watch(&self, kinds: &[Kind]) -> Result<Watch, StoreError> {
        watch::start(Arc::clone(&self.shared), kinds.to_vec())
    }
}

/// The text of the file for one object, read back before it is trusted.
fn to_yaml(object: &Object) -> Result<String, StoreError> {
    let refused = |message: String| {
        let error = FieldError { path: String::new(), line: None, message };
        StoreError::Malformed(error)
    };
    let yaml = serde_saphyr::to_string(&object.to_json()).map_err(|error| refused(error.to_string()))?;
    let text = format!("# Written by millrace. Delete the file to delete the object.\n{yaml}");
    let read = super::yaml::read_objects(&Arc::from(""), &text);
    match read.objects.as_slice() {
        [same] if same.resource_version == object.resource_version => Ok(text),
        _ => Err(refused("its YAML form does not read back as the same object".to_owned())),
    }
}
