//! A watch: each kind is followed by itself; here their events become one sequence.
//!
//! Kept of each object: its name, a hash of its content and in which listing it was last seen. So a list read anew (the
//! server forgot our version, or was away for long) tells what differs and nothing else, and what no list mentions any
//! more is deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use hashbrown::HashMap;
use tokio::sync::mpsc;

use super::connection::{Connection, runtime};
use super::follow::{Told, follow};
use super::received::{NodeParts, PodParts, PolicyParts, Received, SliceParts};
use super::resource::Resource;
use super::unknown;
use crate::problem::Problem;
use crate::stable_hash::ContentHash;
use crate::store::{Event, Kind, OUR_GROUP, Object, ObjectKey, StoreError, WATCH_QUEUE, Watch};

/// What waits between the streams and here; the streams wait when it is full.
const QUEUE: usize = 256;

/// How often it is looked whether the watch still has a listener.
const ENDED: Duration = Duration::from_millis(500);

/// Starts the thread of a watch.
pub(super) fn start(connection: &Connection, kinds: &[Kind]) -> Result<Watch, StoreError> {
    let resources: Vec<_> = kinds.iter().map(|kind| (kind.clone(), Resource::of(kind))).collect();
    let mut known = Vec::new();
    for (kind, resource) in resources {
        known.push(Known::new(kind.clone(), resource.ok_or_else(|| unknown(&kind))?));
    }
    let (events, receiver) = channel::bounded(WATCH_QUEUE);
    let (running, ended) = channel::bounded(0);
    let connection = connection.clone();
    let thread = std::thread::Builder::new().name("store-watch".into());
    let failed = |source| StoreError::Io { action: "start a thread for", path: "the watch".into(), source };
    let watching =
        Watching { kinds: known, events, server: connection.server().to_owned(), synced: false, problems: Vec::new() };
    thread.spawn(move || run(&connection, watching, &ended)).map_err(failed)?;
    Ok(Watch::new(receiver, running))
}

fn run(connection: &Connection, mut watching: Watching, ended: &Receiver<()>) {
    let Ok(runtime) = runtime() else { return };
    runtime.block_on(async {
        let Ok(client) = connection.client() else { return };
        let (tell, mut told) = mpsc::channel(QUEUE);
        for (number, known) in watching.kinds.iter().enumerate() {
            let (client, path, tell) = (client.clone(), known.resource.path(None), tell.clone());
            match &*known.kind.kind {
                "Node" => tokio::spawn(follow::<NodeParts>(client, path, number, tell)),
                "Pod" => tokio::spawn(follow::<PodParts>(client, path, number, tell)),
                "EndpointSlice" => tokio::spawn(follow::<SliceParts>(client, path, number, tell)),
                "NetworkPolicy" | "ClusterNetworkPolicy" => {
                    tokio::spawn(follow::<PolicyParts>(client, path, number, tell))
                }
                _ => tokio::spawn(follow::<Received>(client, path, number, tell)),
            };
        }
        drop(tell);
        loop {
            match tokio::time::timeout(ENDED, told.recv()).await {
                Ok(Some((number, told))) => {
                    let Ok(()) = watching.take(number, told) else { return };
                }
                Ok(None) => return,
                Err(_) => {}
            }
            if ended.recv_timeout(Duration::ZERO) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    });
}

/// The watch's listener is gone.
struct Ended;

/// What is known of one object.
struct Seen {
    content: u64,
    listing: u32,
}

/// What is known of one kind.
struct Known {
    kind: Kind,
    resource: &'static Resource,
    /// By `namespace/name`.
    objects: HashMap<Box<str>, Seen>,
    /// Number of the last listing begun.
    listing: u32,
    complete: bool,
    /// What is wrong: whether with the server, and the words.
    trouble: Option<(bool, String)>,
}

impl Known {
    fn new(kind: Kind, resource: &'static Resource) -> Self {
        Self { kind, resource, objects: HashMap::new(), listing: 0, complete: false, trouble: None }
    }

    /// Takes an object in; true if it is not as it was known.
    fn differs(&mut self, object: &Object) -> bool {
        let mut hash = ContentHash::default();
        object.content.hash_into(&mut hash);
        if self.kind.group() == OUR_GROUP {
            // Ours are written by compare-and-swap: their version matters to who reads them.
            hash.update(object.resource_version.as_bytes());
        }
        #[expect(clippy::cast_possible_truncation, reason = "64 bits of the hash suffice to notice a change")]
        let content = hash.finish() as u64;
        let seen = Seen { content, listing: self.listing };
        let before = self.objects.insert(name(&object.key), seen);
        before.is_none_or(|before| before.content != content)
    }

    /// Forgets what the last listing did not mention, and returns it.
    fn unmentioned(&mut self) -> Vec<ObjectKey> {
        let listing = self.listing;
        let gone = self.objects.extract_if(|_, seen| seen.listing != listing);
        let mut gone: Vec<ObjectKey> = gone.map(|(name, _)| key(&self.kind, &name)).collect();
        gone.sort_unstable();
        gone
    }
}

fn name(key: &ObjectKey) -> Box<str> {
    format!("{}/{}", key.namespace.as_deref().unwrap_or_default(), key.name).into_boxed_str()
}

fn key(kind: &Kind, name: &str) -> ObjectKey {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty()).map(str::to_owned);
    ObjectKey { kind: kind.clone(), namespace, name: name.to_owned() }
}

struct Watching {
    kinds: Vec<Known>,
    events: Sender<Event>,
    server: String,
    synced: bool,
    problems: Vec<Problem>,
}

impl Watching {
    /// Waits while the listener is behind; the streams then wait too.
    fn send(&self, event: Event) -> Result<(), Ended> {
        self.events.send(event).map_err(|_| Ended)
    }

    fn take(&mut self, number: usize, told: Told) -> Result<(), Ended> {
        let Some(known) = self.kinds.get_mut(number) else { return Ok(()) };
        match told {
            Told::Begin => known.listing = known.listing.wrapping_add(1),
            Told::Present(received) | Told::Applied(received) => {
                let Some(object) = received.object(&known.kind) else { return Ok(()) };
                if known.differs(&object) {
                    self.send(Event::Applied(object))?;
                }
            }
            Told::Deleted(received) => {
                let Some(object) = received.object(&known.kind) else { return Ok(()) };
                if known.objects.remove(&name(&object.key)).is_some() {
                    self.send(Event::Deleted(object.key))?;
                }
            }
            Told::Complete => {
                known.complete = true;
                for key in known.unmentioned() {
                    self.send(Event::Deleted(key))?;
                }
            }
            Told::Well => known.trouble = None,
            // Nothing of it was ever seen: there is none. Else the server has only just started, and will know it again.
            Told::Unknown if known.resource.optional && known.objects.is_empty() => {
                known.complete = true;
                known.trouble = None;
            }
            Told::Unknown => {
                let message = "the server does not know the kind; are the CustomResourceDefinitions installed?";
                known.trouble = Some((false, message.to_owned()));
            }
            Told::Trouble { server, message } => known.trouble = Some((server, message)),
        }
        if !self.synced && self.kinds.iter().all(|known| known.complete) {
            self.synced = true;
            self.send(Event::Synced)?;
        }
        self.report()
    }

    /// Tells what is wrong, if that changed. What concerns the server is told once, not for each kind.
    fn report(&mut self) -> Result<(), Ended> {
        let mut problems = BTreeMap::new();
        for known in &self.kinds {
            let Some((server, message)) = &known.trouble else { continue };
            let (order, text) = if *server {
                ("", format!("the API server {} does not answer: {message}; what is known stays in force", self.server))
            } else {
                (
                    known.resource.plural,
                    format!("{} cannot be read from {}: {message}", known.resource.plural, self.server),
                )
            };
            problems.entry(order).or_insert_with(|| Problem::new(text));
        }
        let problems: Vec<Problem> = problems.into_values().collect();
        if problems != self.problems {
            self.send(Event::Problems(problems.clone()))?;
            self.problems = problems;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::observe::{CLUSTER_NETWORK_POLICY, IP_BLOCK, NODE};

    fn watching(kinds: &[Kind]) -> (Watching, Receiver<Event>) {
        let (events, receiver) = channel::bounded(64);
        let known = |kind: &Kind| Known::new(kind.clone(), Resource::of(kind).expect("known"));
        let kinds = kinds.iter().map(known).collect();
        (Watching { kinds, events, server: "https://test".to_owned(), synced: false, problems: Vec::new() }, receiver)
    }

    fn received(name: &str, version: u32, spec: u32) -> Received {
        let value = json!({"metadata": {"name": name, "resourceVersion": version.to_string()}, "spec": {"x": spec}});
        serde_json::from_str(&value.to_string()).expect("decoded")
    }

    fn told(watching: &mut Watching, events: &Receiver<Event>, sequence: Vec<Told>) -> Vec<String> {
        for told in sequence {
            assert!(watching.take(0, told).is_ok());
        }
        let line = |event| match event {
            Event::Applied(object) => format!("applied {}", object.key),
            Event::Deleted(key) => format!("deleted {key}"),
            Event::Synced => "synced".to_owned(),
            Event::Problems(problems) => format!("{} problems", problems.len()),
        };
        events.try_iter().map(line).collect()
    }

    #[test]
    fn a_list_read_anew_tells_what_differs() {
        let (mut watching, events) = watching(&[NODE]);
        let first =
            vec![Told::Begin, Told::Present(received("a", 1, 1)), Told::Present(received("b", 2, 1)), Told::Complete];
        assert_eq!(told(&mut watching, &events, first), ["applied Node a", "applied Node b", "synced"]);
        let heartbeat = vec![Told::Applied(received("a", 3, 1))];
        assert_eq!(told(&mut watching, &events, heartbeat), Vec::<String>::new());
        let again =
            vec![Told::Begin, Told::Present(received("a", 9, 2)), Told::Present(received("c", 8, 1)), Told::Complete];
        assert_eq!(told(&mut watching, &events, again), ["applied Node a", "applied Node c", "deleted Node b"]);
        let broken = vec![Told::Begin, Told::Present(received("a", 9, 2))];
        assert_eq!(told(&mut watching, &events, broken), Vec::<String>::new(), "half a list deletes nothing");
    }

    #[test]
    fn versions_of_our_own_objects_matter() {
        let (mut watching, events) = watching(&[IP_BLOCK]);
        let sequence =
            vec![Told::Begin, Told::Present(received("a", 1, 1)), Told::Complete, Told::Applied(received("a", 2, 1))];
        assert_eq!(told(&mut watching, &events, sequence), ["applied IpBlock a", "synced", "applied IpBlock a"]);
    }

    #[test]
    fn a_kind_the_server_lacks_is_empty_or_a_problem() {
        let (mut optional, events) = watching(&[CLUSTER_NETWORK_POLICY]);
        assert_eq!(told(&mut optional, &events, vec![Told::Unknown]), ["synced"]);
        let (mut needed, events) = watching(&[IP_BLOCK]);
        assert_eq!(told(&mut needed, &events, vec![Told::Unknown]), ["1 problems"]);
        let known = vec![Told::Well, Told::Begin, Told::Complete];
        assert_eq!(told(&mut needed, &events, known), ["0 problems", "synced"]);
    }
}
