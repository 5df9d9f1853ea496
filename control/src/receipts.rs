//! Receipts: which version of an object is in force on this node, since when, and how long it took.
//!
//! Of the kinds whose effect somebody waits for: Services, their endpoints, policies. [`Arrivals`] notes what the store
//! tells, on the reconcile thread; when tables made of it are published, a thread of its own waits until every worker
//! decides by them ([`ReceiptWriter`]) and only then writes the receipt: what `millrace show receipts` says is in force is
//! what packets meet. An object that is refused has a receipt that says why; its last valid version stays in force. Whether an object
//! is refused may hang on others: with every publish the receipts of those follow whose answer changed.
//!
//! One receipt an object, [`RECEIPTS`] at most, some 300 B each. Nothing here is on the way of a packet or of a publish.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
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
/// How often it is asked after that.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
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
        let mut receipts = self.lock();
        for (key, refused) in batch.changed.iter().filter(|_| batch.in_use) {
            if let Some(receipt) = receipts.get_mut(key) {
                *receipt = Receipt { tables: batch.tables, since, refused: refused.clone(), ..receipt.clone() };
            }
        }
        for arrival in &batch.arrivals {
            let Some(version) = &arrival.version else {
                receipts.remove(&arrival.key);
                continue;
            };
            if receipts.len() >= RECEIPTS && !receipts.contains_key(&arrival.key) {
                continue;
            }
            let refused = batch.refused.get(&arrival.key).cloned().or_else(|| (!batch.in_use).then(|| NOT_YET.into()));
            let receipt = Receipt {
                version: version.clone(),
                tables: batch.tables,
                since,
                took: arrival.is_news.then(|| now.saturating_duration_since(arrival.at)),
                refused,
            };
            receipts.insert(arrival.key.clone(), receipt);
        }
    }
}

/// What was published at once.
#[derive(Debug, Default, PartialEq)]
struct Batch {
    arrivals: Vec<Arrival>,
    tables: u64,
    /// Objects that are refused, and why.
    refused: Arc<Refused>,
    /// Those of which that changed since the batch before.
    changed: Refusals,
    /// Whether every worker decides by the tables.
    in_use: bool,
}

/// Why a version is not in force where a worker stands still.
const NOT_YET: &str = "a worker does not decide by it yet";

type Refused = BTreeMap<ObjectKey, Arc<str>>;
type Refusals = Vec<(ObjectKey, Option<Arc<str>>)>;

/// Objects that are refused, with the first problem of each. They are few but for a cluster in which nothing is right.
fn refused(problems: &[Problem]) -> Refused {
    let about = problems.iter().take(RECEIPTS).rev().filter_map(|problem| {
        let key = problem.object.as_ref().filter(|key| has_receipt(key))?;
        Some((key.clone(), problem.message.as_str().into()))
    });
    about.collect()
}

/// What differs, as it is now.
fn differences(before: &Refused, now: &Refused) -> Refusals {
    let gone = before.keys().filter(|key| !now.contains_key(key)).map(|key| (key.clone(), None));
    let others = now.iter().filter(|(key, why)| before.get(key) != Some(why));
    gone.chain(others.map(|(key, why)| (key.clone(), Some(Arc::clone(why))))).collect()
}

/// What is told of each arrival that came as news and is in force: its kind, the time since it came, and since it
/// happened where that is known.
pub type Told = Box<dyn Fn(&str, Duration, Option<Duration>) + Send>;

/// The thread that waits for workers.
#[derive(Debug)]
pub struct ReceiptWriter {
    batches: Option<Sender<Batch>>,
    thread: Option<JoinHandle<()>>,
    /// As the last batch had it.
    refused: Arc<Refused>,
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
        Ok(ReceiptWriter { batches: Some(batches), thread: Some(thread), refused: Arc::default() })
    }

    /// Takes what came before tables of generation `tables` were published, which hold it, and all that is wrong with objects.
    pub fn published(&mut self, arrivals: Vec<Arrival>, tables: u64, problems: &[Problem]) {
        let refused = Arc::new(refused(problems));
        let changed = differences(&self.refused, &refused);
        if arrivals.is_empty() && changed.is_empty() {
            return;
        }
        let batch = Batch { arrivals, tables, refused: Arc::clone(&refused), changed, in_use: false };
        // What does not get through is a change the next time too.
        if self.batches.as_ref().is_some_and(|batches| batches.try_send(batch).is_ok()) {
            self.refused = refused;
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
    // Batches that no worker had taken up when patience ended, the oldest first.
    let mut late: Vec<Batch> = Vec::new();
    loop {
        let first = match late.is_empty() {
            true => batches.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => batches.recv_timeout(LOOK_AGAIN),
        };
        if first == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        let new: Vec<Batch> = first.into_iter().chain(batches.try_iter()).collect();
        let newest = new.iter().map(|batch| batch.tables).max().unwrap_or_default();
        let begun = Instant::now();
        while in_use() < newest && begun.elapsed() < PATIENCE {
            std::thread::sleep(LOOK);
        }
        let (now, since, used) = (Instant::now(), Timestamp::now(), in_use());
        let is_new = late.len();
        for (number, mut batch) in std::mem::take(&mut late).into_iter().chain(new).enumerate() {
            batch.in_use = used >= batch.tables;
            if batch.in_use || number >= is_new {
                receipts.write(&batch, since, now);
                tell(&batch, now, since, told);
            }
            if !batch.in_use && late.len() < WAITING {
                late.push(batch);
            }
        }
    }
}

/// Tells of what came as news and is in force.
fn tell(batch: &Batch, now: Instant, since: Timestamp, told: &Told) {
    let in_force = |arrival: &&Arrival| batch.in_use && arrival.is_news && !batch.refused.contains_key(&arrival.key);
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
        let mut writer = ReceiptWriter::start(
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

    /// A writer whose workers use what `in_use` says, and what it tells of a Service.
    fn writer(in_use: &Arc<AtomicU64>) -> (ReceiptWriter, impl Fn(u64) -> Option<Arc<str>> + use<>) {
        let (receipts, used) = (Arc::new(Receipts::default()), Arc::clone(in_use));
        let written = Arc::clone(&receipts);
        let told = Box::new(|_: &str, _, _| ());
        let writer = ReceiptWriter::start(receipts, move || used.load(Ordering::Relaxed), told).expect("a thread");
        let refused = move |tables| {
            let end = Instant::now() + Duration::from_secs(60);
            loop {
                match written.all().as_slice() {
                    [(_, receipt)] if receipt.tables == tables => return receipt.refused.clone(),
                    all => assert!(Instant::now() < end, "{all:?}"),
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        (writer, refused)
    }

    fn service() -> (ObjectKey, Vec<Arrival>) {
        let mut arrivals = Arrivals::default();
        arrivals.note(&Event::Applied(object("Service", "7")));
        (object("Service", "7").key, arrivals.take())
    }

    #[test]
    fn a_receipt_follows_what_other_objects_do_to_its_object() {
        let (mut writer, refused) = writer(&Arc::new(AtomicU64::new(9)));
        let (key, arrivals) = service();
        let taken = [Problem::new("its address is another's").of(&key)];
        writer.published(arrivals, 1, &taken);
        assert_eq!(refused(1).as_deref(), Some("its address is another's"));
        writer.published(Vec::new(), 2, &taken);
        writer.published(Vec::new(), 3, &[]);
        assert_eq!(refused(3), None);
        writer.published(Vec::new(), 4, &taken);
        assert_eq!(refused(4).as_deref(), Some("its address is another's"));
    }

    #[test]
    fn a_receipt_follows_a_worker_that_moves_again() {
        let in_use = Arc::new(AtomicU64::new(0));
        let (mut writer, refused) = writer(&in_use);
        writer.published(service().1, 1, &[]);
        assert_eq!(refused(1).as_deref(), Some(NOT_YET));
        in_use.store(1, Ordering::Relaxed);
        let end = Instant::now() + Duration::from_secs(60);
        while refused(1).is_some() {
            assert!(Instant::now() < end, "it stays not in force");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_is_deleted_has_no_receipt() {
        let receipts = Receipts::default();
        let write = |event: Event, tables| {
            let mut arrivals = Arrivals::default();
            arrivals.note(&event);
            let batch = Batch { arrivals: arrivals.take(), tables, in_use: true, ..Batch::default() };
            receipts.write(&batch, Timestamp::now(), Instant::now());
        };
        write(Event::Applied(object("Service", "7")), 1);
        assert_eq!(receipts.all().len(), 1);
        write(Event::Deleted(object("Service", "7").key), 2);
        assert_eq!(receipts.all(), []);
    }
}
