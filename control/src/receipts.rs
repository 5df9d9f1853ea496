//! Receipts: which version of an object is in force on this node, since when, and how long it took.
//!
//! Of the kinds whose effect somebody waits for: Services, their endpoints, policies. [`Arrivals`] notes what the store
//! tells, on the reconcile thread; when tables made of it are published, a thread of its own waits until every worker
//! decides by them ([`ReceiptWriter`]) and only then writes the receipt: what `millrace show receipts` says is in force is
//! what packets meet. An object that is refused has a receipt that says why; its last valid version stays in force.
//!
//! One receipt an object, [`RECEIPTS`] at most, some 300 B each. Nothing here is on the way of a packet or of a publish.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{Receiver, Sender, bounded};
use jiff::Timestamp;

use crate::observe::{CLUSTER_NETWORK_POLICY, ENDPOINT_SLICE, NETWORK_POLICY, SERVICE};
use crate::problem::Problem;
use crate::store::{Document, Event, Object, ObjectKey};

/// Objects with a receipt; 300 B each, taken as they come. Further ones have none.
pub const RECEIPTS: usize = 131_072;
/// Batches that wait for workers. All of them are waited for at once; beyond, while a worker stands still, a change has no
/// receipt until its object changes again: nobody waits for receipts.
const WAITING: usize = 64;
/// How often it is asked whether the workers use the tables, and for how long.
const LOOK: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(10);
/// Annotation in which the endpoints controller says when a pod's change made it write (`EndpointsLastChangeTriggerTime`).
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Something that the store told of an object with a receipt.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// Which object.
    pub key: ObjectKey,
    /// Its version; `None` if it was deleted.
    pub version: Option<Version>,
    /// When it came.
    pub at: Instant,
    /// Whether it came as news: not with the objects that there were at the start.
    pub is_news: bool,
    /// When what it tells happened, where the object says so.
    pub triggered: Option<Timestamp>,
}

/// A version of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Its resource version.
    pub resource: Arc<str>,
    /// Its `metadata.generation`, where it has one.
    pub generation: Option<u64>,
}

/// What has come since tables were last published.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// The last of each object, with the time of the first: bounded by what there is.
    all: BTreeMap<ObjectKey, Arrival>,
    is_synced: bool,
}

impl Arrivals {
    /// Notes an event.
    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Synced => self.is_synced = true,
            Event::Applied(object) if has_receipt(&object.key) => {
                let triggered = text(object, &["metadata", "annotations", TRIGGERED]).and_then(|at| at.parse().ok());
                let generation = number(object, &["metadata", "generation"]);
                let version = Version { resource: Arc::clone(&object.resource_version), generation };
                self.push(&object.key, Some(version), triggered);
            }
            Event::Deleted(key) if has_receipt(key) => self.push(key, None, None),
            _ => {}
        }
    }

    fn push(&mut self, key: &ObjectKey, version: Option<Version>, triggered: Option<Timestamp>) {
        let waiting = self.all.get(key);
        let at = waiting.map_or_else(Instant::now, |waiting| waiting.at);
        let is_news = waiting.map_or(self.is_synced, |waiting| waiting.is_news);
        let triggered = waiting.and_then(|waiting| waiting.triggered).or(triggered);
        self.all.insert(key.clone(), Arrival { key: key.clone(), version, at, is_news, triggered });
    }

    /// All of it, once.
    pub fn take(&mut self) -> Vec<Arrival> {
        std::mem::take(&mut self.all).into_values().collect()
    }
}

fn has_receipt(key: &ObjectKey) -> bool {
    [SERVICE, ENDPOINT_SLICE, NETWORK_POLICY, CLUSTER_NETWORK_POLICY].contains(&key.kind)
}

fn text<'a>(object: &'a Object, path: &[&str]) -> Option<&'a str> {
    object.content.at(path)?.text()
}

fn number(object: &Object, path: &[&str]) -> Option<u64> {
    match object.content.at(path)?.value {
        Document::Integer(number) => u64::try_from(number).ok(),
        Document::Unsigned(number) => Some(number),
        _ => None,
    }
}

/// How the newest version of an object stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// The version that was told last.
    pub version: Version,
    /// Generation of the tables that hold it.
    pub tables: u64,
    /// Since when every worker decides by them.
    pub since: Timestamp,
    /// Time from its arrival until then; `None` for what there was at the start.
    pub took: Option<Duration>,
    /// Why it is not in force, if it is not: its last valid version is, if there was one.
    pub refused: Option<Arc<str>>,
}

/// All receipts.
#[derive(Debug, Default)]
pub struct Receipts(Mutex<BTreeMap<ObjectKey, Receipt>>);

impl Receipts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, Receipt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, by kind and name.
    #[must_use]
    pub fn all(&self) -> Vec<(ObjectKey, Receipt)> {
        self.lock().iter().map(|(key, receipt)| (key.clone(), receipt.clone())).collect()
    }

    fn write(&self, batch: &Batch, since: Timestamp, now: Instant) {
        let problems = batch.problems_by_key();
        let mut receipts = self.lock();
        for arrival in &batch.arrivals {
            let Some(version) = &arrival.version else {
                receipts.remove(&arrival.key);
                continue;
            };
            if receipts.len() >= RECEIPTS && !receipts.contains_key(&arrival.key) {
                continue;
            }
            let refused = problems.get(&arrival.key).copied().or((!batch.in_use).then_some(NOT_YET));
            let receipt = Receipt {
                version: version.clone(),
                tables: batch.tables,
                since,
                took: arrival.is_news.then(|| now.saturating_duration_since(arrival.at)),
                refused: refused.map(Into::into),
            };
            receipts.insert(arrival.key.clone(), receipt);
        }
    }
}

/// What was published at once.
#[derive(Debug)]
struct Batch {
    arrivals: Vec<Arrival>,
    tables: u64,
    /// What is wrong with objects, as far as it is about these.
    problems: Vec<Problem>,
    /// Whether every worker decides by the tables.
    in_use: bool,
}

/// Why a version is not in force where a worker stands still.
const NOT_YET: &str = "a worker does not decide by it yet";

impl Batch {
    fn problems_by_key(&self) -> BTreeMap<&ObjectKey, &str> {
        // The first of an object is told.
        let problems = self.problems.iter().rev();
        problems.filter_map(|problem| Some((problem.object.as_ref()?, problem.message.as_str()))).collect()
    }
}

/// What is told of each arrival that came as news and is in force: its kind, the time since it came, and since it
/// happened where that is known.
pub type Told = Box<dyn Fn(&str, Duration, Option<Duration>) + Send>;

/// The thread that waits for workers.
#[derive(Debug)]
pub struct ReceiptWriter {
    batches: Option<Sender<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl ReceiptWriter {
    /// Starts it. `in_use` says by which generation of tables all workers decide.
    ///
    /// # Errors
    /// The kernel refused a thread.
    pub fn start(
        receipts: Arc<Receipts>,
        in_use: impl Fn() -> u64 + Send + 'static,
        told: Told,
    ) -> std::io::Result<ReceiptWriter> {
        let (batches, taken) = bounded::<Batch>(WAITING);
        let thread = std::thread::Builder::new().name("receipts".into());
        let thread = thread.spawn(move || write_all(&receipts, &taken, &in_use, &told))?;
        Ok(ReceiptWriter { batches: Some(batches), thread: Some(thread) })
    }

    /// Takes what came before tables of generation `tables` were published, which hold it.
    pub fn published(&self, arrivals: Vec<Arrival>, tables: u64, problems: &[Problem]) {
        if arrivals.is_empty() {
            return;
        }
        let keys: BTreeSet<&ObjectKey> = arrivals.iter().map(|arrival| &arrival.key).collect();
        let about = |problem: &&Problem| problem.object.as_ref().is_some_and(|key| keys.contains(key));
        // Problems are few but for a cluster in which nothing is right.
        let problems = problems.iter().take(RECEIPTS).filter(about).cloned().collect();
        if let Some(batches) = &self.batches {
            let _ = batches.try_send(Batch { arrivals, tables, problems, in_use: false });
        }
    }
}

impl Drop for ReceiptWriter {
    fn drop(&mut self) {
        self.batches = None;
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

fn write_all(receipts: &Receipts, batches: &Receiver<Batch>, in_use: &dyn Fn() -> u64, told: &Told) {
    while let Ok(first) = batches.recv() {
        let waiting: Vec<Batch> = std::iter::once(first).chain(batches.try_iter()).collect();
        let newest = waiting.iter().map(|batch| batch.tables).max().unwrap_or_default();
        let begun = Instant::now();
        while in_use() < newest && begun.elapsed() < PATIENCE {
            std::thread::sleep(LOOK);
        }
        let (now, since, used) = (Instant::now(), Timestamp::now(), in_use());
        for batch in waiting {
            let batch = Batch { in_use: used >= batch.tables, ..batch };
            receipts.write(&batch, since, now);
            tell(&batch, now, since, told);
        }
    }
}

/// Tells of what came as news and is in force.
fn tell(batch: &Batch, now: Instant, since: Timestamp, told: &Told) {
    let problems = batch.problems_by_key();
    let in_force = |arrival: &&Arrival| batch.in_use && arrival.is_news && !problems.contains_key(&arrival.key);
    for arrival in batch.arrivals.iter().filter(in_force) {
        let happened = arrival.triggered.and_then(|at| SystemTime::from(since).duration_since(at.into()).ok());
        told(&arrival.key.kind.kind, now.saturating_duration_since(arrival.at), happened);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use serde_json::json;

    use super::*;
    use crate::store::Located;

    fn object(kind: &str, version: &str) -> Object {
        let api = if kind == "Service" { "v1" } else { "networking.k8s.io/v1" };
        let content = json!({
            "apiVersion": api, "kind": kind,
            "metadata": {"name": "web", "namespace": "shop", "generation": 4},
        });
        Object { resource_version: version.into(), ..Object::read(Located::from(&content), None).expect("an object") }
    }

    #[test]
    fn a_receipt_is_written_when_workers_decide_by_it() {
        let (receipts, in_use) = (Arc::new(Receipts::default()), Arc::new(AtomicU64::new(1)));
        let told = Arc::new(Mutex::new(Vec::new()));
        let (used, heard) = (Arc::clone(&in_use), Arc::clone(&told));
        let writer = ReceiptWriter::start(
            Arc::clone(&receipts),
            move || used.load(Ordering::Relaxed),
            Box::new(move |kind, took, happened| heard.lock().expect("lock").push((kind.to_owned(), took, happened))),
        )
        .expect("a thread");
        let mut arrivals = Arrivals::default();
        arrivals.note(&Event::Applied(object("Service", "7")));
        arrivals.note(&Event::Synced);
        arrivals.note(&Event::Applied(object("NetworkPolicy", "6")));
        arrivals.note(&Event::Applied(object("NetworkPolicy", "8")));
        arrivals.note(&Event::Deleted(object("Pod", "9").key));
        let wrong = object("NetworkPolicy", "8").key;
        let problems = [Problem::new("no such field").of(&wrong), Problem::new("another").of(&object("Pod", "9").key)];
        writer.published(arrivals.take(), 2, &problems);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(receipts.all(), [], "a worker decides by older tables");
        in_use.store(2, Ordering::Relaxed);
        drop(writer);
        let all = receipts.all();
        let short = |(key, receipt): &(ObjectKey, Receipt)| {
            let version = (receipt.version.resource.to_string(), receipt.version.generation);
            (key.to_string(), version, receipt.tables, receipt.took.is_some(), receipt.refused.clone())
        };
        let expected = [
            ("NetworkPolicy shop/web".to_owned(), ("8".to_owned(), Some(4)), 2, true, Some("no such field".into())),
            ("Service shop/web".to_owned(), ("7".to_owned(), Some(4)), 2, false, None),
        ];
        let mut all: Vec<_> = all.iter().map(short).collect();
        all.sort();
        assert_eq!(all, expected);
        let told = told.lock().expect("lock");
        assert!(
            told.is_empty(),
            "what there was at the start is no news, and what is refused is not in force: {told:?}"
        );
    }

    #[test]
    fn what_is_deleted_has_no_receipt() {
        let receipts = Receipts::default();
        let write = |event: Event, tables| {
            let mut arrivals = Arrivals::default();
            arrivals.note(&event);
            let batch = Batch { arrivals: arrivals.take(), tables, problems: Vec::new(), in_use: true };
            receipts.write(&batch, Timestamp::now(), Instant::now());
        };
        write(Event::Applied(object("Service", "7")), 1);
        assert_eq!(receipts.all().len(), 1);
        write(Event::Deleted(object("Service", "7").key), 2);
        assert_eq!(receipts.all(), []);
    }
}
