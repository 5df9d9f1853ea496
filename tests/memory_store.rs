//! An object store in memory: what an API server is to a cluster, for nodes that live in one test.
//!
//! Versions count every write, as an API server's do, so that compare-and-swap is told from compare-content. Events
//! wait in the queue of each watch until the test lets that node look: a slow control plane is a queue not read.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use millrace_control::store::{Event, Kind, Located, Object, ObjectKey, ObjectStore, StoreError, Watch};

/// The store.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    objects: BTreeMap<ObjectKey, Object>,
    writes: u64,
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    kinds: Vec<Kind>,
    events: Sender<Event>,
    /// Kept so that the watch's end can be dropped at any time.
    _ended: Receiver<()>,
}

impl Content {
    fn tell(&mut self, kind: &Kind, event: &Event) {
        // A watcher that is gone takes no more events.
        self.watchers.retain(|watcher| !watcher.kinds.contains(kind) || watcher.events.send(event.clone()).is_ok());
    }

    fn put(&mut self, mut object: Object) -> Object {
        self.writes += 1;
        object.resource_version = self.writes.to_string().into();
        self.objects.insert(object.key.clone(), object.clone());
        self.tell(&object.key.kind, &Event::Applied(object.clone()));
        object
    }

    fn expect_version(&self, key: &ObjectKey, expected: &str) -> Result<(), StoreError> {
        let Some(object) = self.objects.get(key) else {
            return Err(StoreError::NotFound { key: Box::new(key.clone()) });
        };
        if *object.resource_version == *expected {
            return Ok(());
        }
        let found = object.resource_version.to_string();
        Err(StoreError::Conflict { key: Box::new(key.clone()), expected: expected.to_owned(), found })
    }
}

impl MemoryStore {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All objects, in order of their keys.
    #[must_use]
    pub fn objects(&self) -> Vec<Object> {
        self.content().objects.values().cloned().collect()
    }
}

fn read(object: &serde_json::Value) -> Result<Object, StoreError> {
    Object::read(Located::from(object), None).map_err(StoreError::Malformed)
}

impl ObjectStore for MemoryStore {
    fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        Ok(self.content().objects.get(key).cloned())
    }

    fn list(&self, kind: &Kind) -> Result<Vec<Object>, StoreError> {
        Ok(self.content().objects.values().filter(|object| object.key.kind == *kind).cloned().collect())
    }

    fn create(&self, object: &serde_json::Value) -> Result<Object, StoreError> {
        let object = read(object)?;
        let mut content = self.content();
        if content.objects.contains_key(&object.key) {
            return Err(StoreError::AlreadyExists { key: Box::new(object.key) });
        }
        Ok(content.put(object))
    }

    fn update(&self, object: &serde_json::Value, resource_version: &str) -> Result<Object, StoreError> {
        let object = read(object)?;
        let mut content = self.content();
        content.expect_version(&object.key, resource_version)?;
        Ok(content.put(object))
    }

    fn delete(&self, key: &ObjectKey, resource_version: &str) -> Result<(), StoreError> {
        let mut content = self.content();
        content.expect_version(key, resource_version)?;
        content.objects.remove(key);
        content.tell(&key.kind, &Event::Deleted(key.clone()));
        Ok(())
    }

    fn watch(&self, kinds: &[Kind]) -> Result<Watch, StoreError> {
        let ((events, receiver), (running, ended)) = (unbounded(), bounded(0));
        let mut content = self.content();
        for object in content.objects.values().filter(|object| kinds.contains(&object.key.kind)) {
            // The receiver is right here: it cannot be gone.
            let _ = events.send(Event::Applied(object.clone()));
        }
        let _ = events.send(Event::Synced);
        content.watchers.push(Watcher { kinds: kinds.to_vec(), events, _ended: ended });
        Ok(Watch::new(receiver, running))
    }
}
