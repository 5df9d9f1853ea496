//! The objects, one counter of versions for all of them as etcd has it, and the log of changes that watches read.
//!
//! Objects are kept as the bytes that are sent, so that a hundred thousand of them cost what their text costs and a list
//! is copying. A list that is continued is of the version it began at: the log says what was otherwise then. What the log
//! has forgotten is gone: 410.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::event;
use crate::failure::Failure;
use crate::resource::Resource;

/// Namespace (empty for cluster-wide kinds) and name.
pub(crate) type Key = (String, String);

/// Changes of one resource that are remembered, unless a test makes the server forget.
const REMEMBERED: usize = 200_000;

/// An object of one version: its text behind `kind` and `apiVersion`.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) version: u64,
    body: Bytes,
}

impl Stored {
    /// `object` must have the version in it.
    fn new(version: u64, object: &Value) -> Arc<Self> {
        let mut object = object.clone();
        if let Some(fields) = object.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        let text = object.to_string();
        // The brace that opens it is written with the kind.
        Arc::new(Self { version, body: Bytes::from(text.into_bytes()).slice(1..) })
    }

    /// The text behind what [`Resource::head`] gives.
    pub(crate) fn tail(&self) -> &Bytes {
        &self.body
    }

    /// The object, without kind.
    pub(crate) fn value(&self) -> Value {
        let text = [b"{".as_slice(), &self.body].concat();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// The object, with kind.
    pub(crate) fn whole(&self, resource: &Resource) -> Value {
        let mut value = self.value();
        value["kind"] = resource.kind.clone().into();
        value["apiVersion"] = resource.api_version().into();
        value
    }
}

/// One change of one object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) key: Key,
    pub(crate) before: Option<Arc<Stored>>,
    /// The object behind the change; of a deletion its last state under the version of the deletion.
    pub(crate) after: Arc<Stored>,
    pub(crate) deleted: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    objects: BTreeMap<Key, Arc<Stored>>,
    log: VecDeque<Change>,
    /// Changes up to this version are forgotten.
    forgotten: u64,
}

/// Group and plural: versions of a resource share their objects.
type TableName = (String, String);

/// Everything the server holds.
#[derive(Debug)]
pub(crate) struct Storage {
    revision: u64,
    pub(crate) resources: Vec<Arc<Resource>>,
    tables: BTreeMap<TableName, Table>,
    names: u64,
}

impl Storage {
    pub(crate) fn new() -> Self {
        Self { revision: 1, resources: Resource::built_in(), tables: BTreeMap::new(), names: 0 }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// A number that was not given before.
    pub(crate) fn unique(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    pub(crate) fn resource(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let same = |resource: &&Arc<Resource>| {
            (resource.group.as_str(), resource.version.as_str(), resource.plural.as_str()) == (group, version, plural)
        };
        self.resources.iter().find(same).cloned()
    }

    /// Takes the resources of a definition in, in place of those it defined before.
    pub(crate) fn define(&mut self, definition: &Value) {
        let Some(defined) = Resource::defined_by(definition) else { return };
        self.undefine(definition);
        self.resources.extend(defined);
    }

    pub(crate) fn undefine(&mut self, definition: &Value) {
        let (group, plural) = (&definition["spec"]["group"], &definition["spec"]["names"]["plural"]);
        self.resources.retain(|resource| !resource.custom || resource.group != *group || resource.plural != *plural);
    }

    fn name(resource: &Resource) -> TableName {
        (resource.group.clone(), resource.plural.clone())
    }

    pub(crate) fn get(&self, resource: &Resource, key: &Key) -> Option<Arc<Stored>> {
        self.tables.get(&Self::name(resource))?.objects.get(key).cloned()
    }

    pub(crate) fn count(&self, resource: &Resource) -> usize {
        self.tables.get(&Self::name(resource)).map_or(0, |table| table.objects.len())
    }

    /// Writes an object; the one written has the new version.
    pub(crate) fn put(&mut self, resource: &Resource, key: &Key, object: &mut Value) -> Arc<Stored> {
        self.revision += 1;
        let version = self.revision;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let after = Stored::new(version, object);
        let table = self.tables.entry(Self::name(resource)).or_default();
        let before = table.objects.insert(key.clone(), Arc::clone(&after));
        table.remember(Change { version, key: key.clone(), before, after: Arc::clone(&after), deleted: false });
        if let (Some(mut same), Some(core)) = (event::of_core(resource, object), self.resource("", "v1", "events")) {
            self.put(&core, key, &mut same);
        }
        after
    }

    /// Removes an object; returns its last state.
    pub(crate) fn remove(&mut self, resource: &Resource, key: &Key) -> Option<Arc<Stored>> {
        let table = self.tables.get_mut(&Self::name(resource))?;
        let before = table.objects.remove(key)?;
        self.revision += 1;
        let mut last = before.value();
        last["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let after = Stored::new(self.revision, &last);
        let change = Change { version: self.revision, key: key.clone(), before: Some(before), after, deleted: true };
        let last = Arc::clone(&change.after);
        table.remember(change);
        Some(last)
    }

    /// Objects of a resource as they were at `version`, in order from behind `start`, that `takes` lets through; at most
    /// `most`.
    pub(crate) fn page(
        &self,
        resource: &Resource,
        version: u64,
        (namespace, start): (&str, Option<&Key>),
        most: usize,
        takes: impl Fn(&Stored) -> bool,
    ) -> Result<Vec<(Key, Arc<Stored>)>, Failure> {
        let empty = Table::default();
        let table = self.tables.get(&Self::name(resource)).unwrap_or(&empty);
        if version < table.forgotten {
            return Err(Failure::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list \
                 without the continue parameter, or use the continue token in this response to retrieve the remainder of \
                 the results.",
            ));
        }
        // What was otherwise at that version: the oldest state behind it counts, so it is written last.
        let mut otherwise: BTreeMap<&Key, Option<&Arc<Stored>>> = BTreeMap::new();
        for change in table.log.iter().rev().take_while(|change| change.version > version) {
            otherwise.insert(&change.key, change.before.as_ref());
        }
        let from = match start {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Included((namespace.to_owned(), String::new())),
        };
        let wanted = |key: &Key| namespace.is_empty() || key.0 == namespace;
        let present = table.objects.range((from, Bound::Unbounded)).take_while(|(key, _)| wanted(key));
        if otherwise.is_empty() {
            let taken = present.filter(|(_, stored)| takes(stored)).take(most);
            return Ok(taken.map(|(key, stored)| (key.clone(), Arc::clone(stored))).collect());
        }
        let mut page: BTreeMap<Key, Arc<Stored>> =
            present.map(|(key, stored)| (key.clone(), Arc::clone(stored))).collect();
        for (key, stored) in
            otherwise.into_iter().filter(|(key, _)| wanted(key) && start.is_none_or(|start| *key > start))
        {
            match stored {
                Some(stored) => drop(page.insert(key.clone(), Arc::clone(stored))),
                None => drop(page.remove(key)),
            }
        }
        Ok(page.into_iter().filter(|(_, stored)| takes(stored)).take(most).collect())
    }

    /// Changes behind `version`, oldest first.
    pub(crate) fn changes(&self, resource: &Resource, version: u64) -> Result<Vec<Change>, Failure> {
        let Some(table) = self.tables.get(&Self::name(resource)) else { return Ok(Vec::new()) };
        if version < table.forgotten {
            return Err(Failure::expired(format!("too old resource version: {version} ({})", table.forgotten)));
        }
        let first = table.log.partition_point(|change| change.version <= version);
        Ok(table.log.range(first..).cloned().collect())
    }

    /// Forgets all changes so far.
    pub(crate) fn forget(&mut self) {
        let resources = self.resources.clone();
        for resource in resources {
            self.tables.entry(Self::name(&resource)).or_default();
        }
        for table in self.tables.values_mut() {
            table.log.clear();
            table.forgotten = self.revision;
        }
    }
}

impl Table {
    fn remember(&mut self, change: Change) {
        self.log.push_back(change);
        if self.log.len() > REMEMBERED {
            self.forgotten = self.log.pop_front().map_or(0, |change| change.version);
        }
    }
}
