//! Following the directory: kernel notifications say when to look, a full scan says what changed.
//!
//! Editors, atomic renames, symbolic links that are swapped and bursts of writes all look different to the kernel
//! and the same to a scan. One thread for each watch; it sleeps between notifications and rescans now and then, for
//! file systems that do not notify.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::Shared;
use super::scan::{Scan, counts};
use crate::problem::Problem;
use crate::store::{Event, Kind, OUR_GROUP, Object, ObjectKey, StoreError, WATCH_QUEUE, Watch};

/// A directory that never gets quiet is read that often all the same, in multiples of the quiet time.
const IMPATIENCE: u32 = 10;

/// Starts following. The first scan is done here, so that a directory that cannot be read is an error now.
pub(super) fn start(shared: Arc<Shared>, kinds: Vec<Kind>) -> Result<Watch, StoreError> {
    let (sender, events) = channel::bounded(WATCH_QUEUE);
    let (running, stopped) = channel::bounded(0);
    let path = shared.path.clone();
    let mut follower = Follower::new(shared, kinds, sender);
    follower.notifications.renew(&path);
    let first = follower.shared.scan()?;
    let thread = std::thread::Builder::new().name("object-watch".to_owned());
    let spawned = thread.spawn(move || match follower.run(first, &stopped) {
        Ok(()) | Err(WatchEnded) => {}
    });
    spawned.map_err(|source| StoreError::Io { action: "start a thread to watch", path, source })?;
    Ok(Watch { events, _running: running })
}

/// That nobody listens any more.
struct WatchEnded;

struct Follower {
    shared: Arc<Shared>,
    kinds: Vec<Kind>,
    events: Sender<Event>,
    notifications: Notifications,
    /// The scan reported last.
    reported: Arc<Scan>,
    objects: BTreeMap<ObjectKey, Object>,
    problems: Vec<Problem>,
}

impl Follower {
    fn new(shared: Arc<Shared>, kinds: Vec<Kind>, events: Sender<Event>) -> Self {
        let notifications = Notifications::new();
        let (reported, objects, problems) = Default::default();
        Self { shared, kinds, events, notifications, reported, objects, problems }
    }

    /// Runs until the watch is dropped: then sending fails, or `stopped` is disconnected.
    fn run(mut self, first: Arc<Scan>, stopped: &Receiver<()>) -> Result<(), WatchEnded> {
        self.report(first)?;
        self.send(Event::Synced)?;
        loop {
            let notified = channel::select! {
                recv(stopped) -> _ => return Ok(()),
                recv(self.notifications.receiver) -> _ => true,
                default(self.shared.options.rescan) => false,
            };
            if notified {
                self.wait_until_quiet();
            }
            self.notifications.renew(&self.shared.path.clone());
            match self.shared.scan() {
                Ok(scan) if Arc::ptr_eq(&scan, &self.reported) => {}
                Ok(scan) => self.report(scan)?,
                // All objects stay: a directory that is away is no order to tear everything down.
                Err(error) => {
                    self.reported = Arc::default();
                    self.report_problems(vec![Problem::new(error.to_string())])?;
                }
            }
        }
    }

    /// Waits while the watcher is behind.
    fn send(&self, event: Event) -> Result<(), WatchEnded> {
        self.events.send(event).map_err(|_| WatchEnded)
    }

    fn wait_until_quiet(&self) {
        let quiet = self.shared.options.quiet;
        let deadline = Instant::now() + quiet * IMPATIENCE;
        loop {
            let wait = quiet.min(deadline.saturating_duration_since(Instant::now()));
            match self.notifications.receiver.recv_timeout(wait) {
                Ok(()) if Instant::now() < deadline => {}
                Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn report(&mut self, scan: Arc<Scan>) -> Result<(), WatchEnded> {
        let mut problems = scan.problems.clone();
        let mut present = BTreeMap::new();
        for (key, object) in &scan.objects {
            if self.kinds.contains(&key.kind) {
                present.insert(key.clone(), object.clone());
            } else if key.kind.group() == OUR_GROUP {
                problems.push(self.unknown_kind(object));
            }
        }
        problems.sort_unstable();
        for key in self.objects.keys().filter(|key| !present.contains_key(*key)) {
            self.send(Event::Deleted(key.clone()))?;
        }
        for (key, object) in &present {
            if self.objects.get(key).is_none_or(|before| differs(before, object)) {
                self.send(Event::Applied(object.clone()))?;
            }
        }
        self.objects = present;
        self.reported = scan;
        self.report_problems(problems)
    }

    fn report_problems(&mut self, problems: Vec<Problem>) -> Result<(), WatchEnded> {
        if self.problems != problems {
            self.send(Event::Problems(problems.clone()))?;
            self.problems = problems;
        }
        Ok(())
    }

    fn unknown_kind(&self, object: &Object) -> Problem {
        let kind = &object.key.kind;
        let ours = self.kinds.iter().filter(|known| known.group() == OUR_GROUP);
        let known: Vec<String> = ours.map(|known| format!("{} {}", known.api_version, known.kind)).collect();
        let message = format!("{} {} is not known here; known are {}", kind.api_version, kind.kind, known.join(", "));
        let problem = Problem::new(message).of(&object.key).at("kind");
        match &object.origin {
            Some(origin) => problem.in_file(&origin.file, object.content.line_of(&["kind"]).or(Some(origin.line))),
            None => problem,
        }
    }
}

/// Also when only the place differs: problems name it.
fn differs(before: &Object, now: &Object) -> bool {
    before.resource_version != now.resource_version || before.origin != now.origin
}

/// Notifications of the kernel, reduced to "something changed".
struct Notifications {
    receiver: Receiver<()>,
    sender: Sender<()>,
    watched: Option<(RecommendedWatcher, u64, u64)>,
}

impl Notifications {
    fn new() -> Self {
        let (sender, receiver) = channel::bounded(1);
        Self { receiver, sender, watched: None }
    }

    /// Watches the directory at `path` unless it is the one watched already. A failure leaves the periodic rescan.
    fn renew(&mut self, path: &Path) {
        let Ok(metadata) = std::fs::metadata(path) else { return };
        let identity = (metadata.dev(), metadata.ino());
        if self.watched.as_ref().is_some_and(|(_, device, inode)| (*device, *inode) == identity) {
            return;
        }
        let sender = self.sender.clone();
        let notify = move |event: notify::Result<notify::Event>| {
            if event.as_ref().map_or(true, concerns_objects) {
                // One that waits already says the same.
                let _ = sender.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(notify)
            .and_then(|mut watcher| watcher.watch(path, RecursiveMode::NonRecursive).map(|()| watcher));
        self.watched = watcher.ok().map(|watcher| (watcher, identity.0, identity.1));
    }
}

/// Leaves out our own reading, lock and temporary files; `..data` is how mounted ConfigMaps are replaced.
fn concerns_objects(event: &notify::Event) -> bool {
    let reading = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        _ => false,
    };
    let concerns = |path: &std::path::PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        counts(name) || name.starts_with("..")
    };
    !reading && (event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(concerns))
}
