//! The thread that writes Events: looks at the problems once a second and does what the ledger says (`events`).
//!
//! It waits for the server's answers, and nobody waits for it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, RecvTimeoutError, Sender};

use super::shared::Shared;
use crate::api::model::EventsReport;
use crate::events::{EventSink, Ledger, Notice, Reporter};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// The running thread.
pub(super) struct EventWriter {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl EventWriter {
    /// Starts it, writing to `sink`.
    pub(super) fn start(shared: Arc<Shared>, sink: Arc<dyn EventSink>) -> std::io::Result<Self> {
        let (stop, stopped) = channel::bounded(0);
        let reporter = Reporter::new(shared.node.clone());
        let thread = std::thread::Builder::new().name("events".into()).spawn(move || {
            let mut ledger = Ledger::new(Instant::now());
            let mut announced = false;
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let nodes = shared.standing().cluster.map_or(0, |cluster| cluster.nodes.len());
                ledger.stagger(reporter.stagger(nodes));
                if !announced && shared.standing().published.is_some() {
                    announced = true;
                    ledger.announce(Notice::started(&shared.node, env!("CARGO_PKG_VERSION")), Instant::now());
                }
                ledger.observe(&notices(&shared), Instant::now());
                // One at a time, so that the end of the agent waits for one answer at most.
                if let Some(due) = ledger.next(Instant::now()) {
                    let outcome = reporter.write(sink.as_ref(), &due);
                    ledger.done(&due, outcome, Instant::now());
                }
                let counts = ledger.counts();
                let (written, refused, dropped) = (counts.written, counts.refused, counts.dropped);
                let report = EventsReport { written, refused, dropped, waiting: ledger.waiting() as u64 };
                *shared.events.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it; a write at work is finished first.
    pub(super) fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

/// What became of Events; `None` where there are none.
pub(super) type Events = Mutex<Option<EventsReport>>;

/// Everything there is to tell now.
fn notices(shared: &Shared) -> BTreeSet<Notice> {
    let (of_objects, of_node) = shared.problems_apart();
    let of_objects = of_objects.iter().map(|problem| Notice::of(problem, &shared.node));
    of_objects.chain(of_node.iter().map(|problem| Notice::of_node(problem, &shared.node))).collect()
}
