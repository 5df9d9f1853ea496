//! The one store of a cluster: compare-and-swap for whoever writes, and a watch for each node that lags, tells kinds in
//! any order, breaks and is read anew, or is away.
//!
//! A watch tells each kind in order and for itself, as the streams of an API server do. What is read anew after a break
//! (410) tells what differs from what the node was told, as the agent's own watch does; states between are never seen
//! by it. Writes of a node go through its [`Client`], which cannot reach the store while the node is cut off from it,
//! and may lose an answer after the write was done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::{Sender, bounded, unbounded};
use millrace_control::observe::KINDS;
use millrace_control::store::{Event, Kind, Located, Object, ObjectKey, ObjectStore, StoreError, Watch};
use millrace_tests::random::Random;
use serde_json::Value;

/// Longest time that an event of a watch is under way, in ticks.
pub(crate) const WATCH_LAG: usize = 20;
/// Longest time until a broken watch is read anew.
pub(crate) const READ_ANEW: usize = 50;

/// A change that a node is told: the object as it is, or nothing if it is gone.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) key: ObjectKey,
    pub(crate) present: Option<Stored>,
}

/// An object and its text.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    object: Object,
    pub(crate) value: Arc<Value>,
}

/// One kind of one watch.
#[derive(Debug, Default)]
struct Stream {
    under_way: VecDeque<(usize, Change)>,
    /// When the kind is read (anew); until then nothing comes.
    read_at: Option<usize>,
    told: BTreeMap<ObjectKey, Arc<str>>,
}

/// The watch of one node.
#[derive(Debug)]
struct Feed {
    events: Option<Sender<Event>>,
    streams: Vec<Stream>,
    unread: BTreeSet<usize>,
    away: bool,
    /// Kinds of which nothing is told any more: a test's own mistake.
    deaf_to: Option<&'static str>,
}

#[derive(Debug)]
struct Content {
    objects: BTreeMap<ObjectKey, Stored>,
    writes: u64,
    now: usize,
    random: Random,
    feeds: Vec<Feed>,
    /// Longest lag at present.
    lag: usize,
    /// Answers lost after a write, in a thousand.
    lost_answers: usize,
    /// Whether the store forgets to compare: a test's own mistake.
    blind: bool,
}

impl Content {
    fn put(&mut self, mut object: Object) -> Object {
        self.writes += 1;
        object.resource_version = self.writes.to_string().into();
        let mut value = object.to_json();
        value["metadata"]["resourceVersion"] = Value::from(&*object.resource_version);
        let stored = Stored { object: object.clone(), value: Arc::new(value) };
        self.objects.insert(object.key.clone(), stored.clone());
        self.tell(&Change { key: object.key.clone(), present: Some(stored) });
        object
    }

    fn tell(&mut self, change: &Change) {
        let Some(kind) = KINDS.iter().position(|kind| *kind == change.key.kind) else { return };
        let Self { feeds, random, now, lag, .. } = self;
        for stream in feeds.iter_mut().filter_map(|feed| feed.streams.get_mut(kind)) {
            let due = *now + random.below(*lag + 1);
            if stream.read_at.is_none() {
                let due = stream.under_way.back().map_or(due, |(last, _)| due.max(*last));
                stream.under_way.push_back((due, change.clone()));
            }
        }
    }

    fn expect_version(&self, key: &ObjectKey, expected: &str) -> Result<(), StoreError> {
        let Some(stored) = self.objects.get(key) else {
            return Err(StoreError::NotFound { key: Box::new(key.clone()) });
        };
        let found = &stored.object.resource_version;
        if **found == *expected || self.blind {
            return Ok(());
        }
        Err(StoreError::Conflict {
            key: Box::new(key.clone()),
            expected: expected.to_owned(),
            found: found.to_string(),
        })
    }

    /// Reads a kind for a node: what differs from what it was told.
    fn read_anew(&mut self, node: usize, kind: usize) -> Vec<Change> {
        let present: Vec<(&ObjectKey, &Stored)> =
            self.objects.iter().filter(|(key, _)| key.kind == KINDS[kind]).collect();
        let told = &self.feeds[node].streams[kind].told;
        let gone = told.keys().filter(|key| !self.objects.contains_key(*key));
        let mut changes: Vec<Change> = gone.map(|key| Change { key: key.clone(), present: None }).collect();
        for (key, stored) in present {
            if told.get(key) != Some(&stored.object.resource_version) {
                changes.push(Change { key: key.clone(), present: Some(stored.clone()) });
            }
        }
        changes
    }

    fn due(&mut self, node: usize, kind: usize) -> Vec<Change> {
        let now = self.now;
        let mut changes = Vec::new();
        if self.feeds[node].streams[kind].read_at.is_some_and(|at| at <= now) {
            changes = self.read_anew(node, kind);
            self.feeds[node].unread.remove(&kind);
            self.feeds[node].streams[kind].read_at = None;
        }
        let stream = &mut self.feeds[node].streams[kind];
        while stream.under_way.front().is_some_and(|(due, _)| *due <= now) {
            changes.extend(stream.under_way.pop_front().map(|(_, change)| change));
        }
        for change in &changes {
            match &change.present {
                Some(stored) => drop(stream.told.insert(change.key.clone(), stored.object.resource_version.clone())),
                None => drop(stream.told.remove(&change.key)),
            }
        }
        changes
    }
}

/// What a node was told in one tick.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) changes: Vec<Change>,
    /// Whether it has read every kind now, and had not before.
    pub(crate) synced: bool,
}

/// The store.
#[derive(Clone, Debug)]
pub(crate) struct Store(Arc<Mutex<Content>>);

impl Store {
    pub(crate) fn new(seed: u64, nodes: usize) -> Self {
        let feeds = (0..nodes).map(|_| Feed {
            events: None,
            streams: Vec::new(),
            unread: BTreeSet::new(),
            away: false,
            deaf_to: None,
        });
        Self(Arc::new(Mutex::new(Content {
            objects: BTreeMap::new(),
            writes: 0,
            now: 0,
            random: Random::new(seed ^ 0x5170),
            feeds: feeds.collect(),
            lag: WATCH_LAG,
            lost_answers: 0,
            blind: false,
        })))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How node `number` reaches the store.
    pub(crate) fn client(&self, number: usize) -> Client {
        Client { store: self.clone(), node: Some(number) }
    }

    /// How people and controllers do.
    pub(crate) fn controller(&self) -> Client {
        Client { store: self.clone(), node: None }
    }

    pub(crate) fn set_now(&self, now: usize) {
        self.content().now = now;
    }

    /// Cuts a node off from the store, or ends that. Its streams break if they were silent for long.
    pub(crate) fn set_away(&self, node: usize, away: bool) {
        self.content().feeds[node].away = away;
    }

    pub(crate) fn is_away(&self, node: usize) -> bool {
        self.content().feeds[node].away
    }

    /// Loses so many answers in a thousand.
    pub(crate) fn lose_answers(&self, per_mille: usize) {
        self.content().lost_answers = per_mille;
    }

    /// Says how long events are under way at most from now on.
    pub(crate) fn set_lag(&self, ticks: usize) {
        self.content().lag = ticks;
    }

    /// Does not compare any more: a mistake that a test makes.
    pub(crate) fn be_blind(&self) {
        self.content().blind = true;
    }

    /// Tells a node nothing of a kind any more: a mistake that a test makes.
    pub(crate) fn be_silent(&self, node: usize, kind: &'static str) {
        self.content().feeds[node].deaf_to = Some(kind);
    }

    /// Breaks the watch of a kind: what is under way is lost, and it is read anew later.
    pub(crate) fn break_watch(&self, node: usize, kind: usize) {
        let mut content = self.content();
        let read_at = content.now + 1 + content.random.below(READ_ANEW);
        if let Some(stream) = content.feeds[node].streams.get_mut(kind) {
            stream.under_way.clear();
            stream.read_at = Some(stream.read_at.unwrap_or(read_at));
        }
    }

    /// Ends a node's watch.
    pub(crate) fn end_watch(&self, node: usize) {
        let mut content = self.content();
        content.feeds[node].events = None;
        content.feeds[node].streams.clear();
    }

    /// What is due for a node now; its control plane finds the same in its queue of events.
    pub(crate) fn deliver(&self, node: usize) -> Told {
        let mut content = self.content();
        let content = &mut *content;
        if content.feeds[node].away || content.feeds[node].events.is_none() {
            return Told::default();
        }
        let was_unread = !content.feeds[node].unread.is_empty();
        let mut changes = Vec::new();
        for kind in 0..KINDS.len() {
            changes.extend(content.due(node, kind));
        }
        let feed = &content.feeds[node];
        let synced = was_unread && feed.unread.is_empty();
        let is_told = |change: &&Change| feed.deaf_to.is_none_or(|deaf| change.key.kind.kind != deaf);
        let events = changes.iter().filter(is_told).map(|change| match &change.present {
            Some(stored) => Event::Applied(stored.object.clone()),
            None => Event::Deleted(change.key.clone()),
        });
        let events = events.chain(synced.then_some(Event::Synced));
        if let Some(sender) = &feed.events {
            // The node's end lives as long as the node.
            events.for_each(|event| drop(sender.send(event)));
        }
        Told { changes, synced }
    }

    /// Whether some node has not been told all.
    pub(crate) fn is_behind(&self, node: usize) -> bool {
        let content = self.content();
        content.feeds[node].streams.iter().any(|stream| stream.read_at.is_some() || !stream.under_way.is_empty())
    }

    /// All objects.
    pub(crate) fn objects(&self) -> Vec<(ObjectKey, Arc<Value>)> {
        self.content().objects.iter().map(|(key, stored)| (key.clone(), Arc::clone(&stored.value))).collect()
    }

    /// Sees to it that an object is there as it is given, or is not there.
    pub(crate) fn put(&self, object: &Value) {
        let key = ObjectKey::read(&Located::from(object)).expect("an object");
        let client = self.controller();
        match client.get(&key).expect("controllers reach the store") {
            Some(known) => drop(client.update(object, &known.resource_version).expect("update")),
            None => drop(client.create(object).expect("create")),
        }
    }

    pub(crate) fn remove(&self, key: &ObjectKey) {
        let client = self.controller();
        if let Some(known) = client.get(key).expect("controllers reach the store") {
            client.delete(key, &known.resource_version).expect("delete");
        }
    }
}

/// The store as one node, or a controller, has it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    store: Store,
    node: Option<usize>,
}

fn unreachable() -> StoreError {
    StoreError::Unreachable { server: "simulated".to_owned(), message: "no answer".to_owned() }
}

fn read(object: &Value) -> Result<Object, StoreError> {
    Object::read(Located::from(object), None).map_err(StoreError::Malformed)
}

impl Client {
    fn reach(&self) -> Result<MutexGuard<'_, Content>, StoreError> {
        let content = self.store.content();
        match self.node {
            Some(node) if content.feeds[node].away => Err(unreachable()),
            _ => Ok(content),
        }
    }

    /// The answer to a write that is done, if it arrives.
    fn answer<T>(&self, content: &mut Content, answer: T) -> Result<T, StoreError> {
        let lost = content.lost_answers;
        if self.node.is_some() && lost > 0 && content.random.per_mille(lost) { Err(unreachable()) } else { Ok(answer) }
    }
}

impl ObjectStore for Client {
    fn get(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        Ok(self.reach()?.objects.get(key).map(|stored| stored.object.clone()))
    }

    fn list(&self, kind: &Kind) -> Result<Vec<Object>, StoreError> {
        let content = self.reach()?;
        if content.blind && self.node.is_some() {
            return Ok(Vec::new());
        }
        let of_kind = content.objects.values().filter(|stored| stored.object.key.kind == *kind);
        Ok(of_kind.map(|stored| stored.object.clone()).collect())
    }

    fn create(&self, object: &Value) -> Result<Object, StoreError> {
        let object = read(object)?;
        let mut content = self.reach()?;
        if content.objects.contains_key(&object.key) && !content.blind {
            return Err(StoreError::AlreadyExists { key: Box::new(object.key) });
        }
        let object = content.put(object);
        self.answer(&mut content, object)
    }

    fn update(&self, object: &Value, resource_version: &str) -> Result<Object, StoreError> {
        let object = read(object)?;
        let mut content = self.reach()?;
        content.expect_version(&object.key, resource_version)?;
        let object = content.put(object);
        self.answer(&mut content, object)
    }

    fn delete(&self, key: &ObjectKey, resource_version: &str) -> Result<(), StoreError> {
        let mut content = self.reach()?;
        content.expect_version(key, resource_version)?;
        content.objects.remove(key);
        content.tell(&Change { key: key.clone(), present: None });
        self.answer(&mut content, ())
    }

    fn watch(&self, kinds: &[Kind]) -> Result<Watch, StoreError> {
        assert!(kinds == KINDS, "nodes follow all kinds");
        let ((events, receiver), (running, _)) = (unbounded(), bounded(0));
        let mut content = self.store.content();
        let content = &mut *content;
        if let Some(node) = self.node {
            let (now, lag) = (content.now, content.lag);
            let mut stream = || Stream { read_at: Some(now + content.random.below(lag + 1)), ..Stream::default() };
            let feed = &mut content.feeds[node];
            feed.streams = KINDS.iter().map(|_| stream()).collect();
            feed.unread = (0..KINDS.len()).collect();
            feed.events = Some(events);
        }
        Ok(Watch::new(receiver, running))
    }
}
