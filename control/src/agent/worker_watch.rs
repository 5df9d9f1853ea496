//! The thread that watches the workers, and what it does when one stands still or has ended.
//!
//! It looks every 15 ms ([`LOOK_TIME`]) and so finds a worker that stands still within 100 ms. It lets what uplinks would
//! bring that worker pass to the host's kernel until the worker moves: host pings, fragments and whatever else the
//! kernel can serve go on. It takes no lock that a worker or a call to one may hold, so nothing that hangs hangs it. Pods
//! behind the worker are cut off meanwhile; nothing is opened for them.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam::channel::{self, RecvTimeoutError, Sender};
use millrace_engine::counters::WorkerCounters;
use millrace_engine::port::af_xdp::Gate;
use millrace_engine::worker::health::{Finding, LOOK_TIME, Watch};

use crate::api::model::Problem;

/// The entrances of the uplinks, to shut for a worker.
#[derive(Debug, Default)]
pub(super) struct Gates(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    gates: Vec<Gate>,
    stalled: Vec<usize>,
}

impl Gates {
    /// Notes the entrance of an uplink that was taken; it is shut at once for a worker that stands still.
    pub(super) fn add(&self, gate: Gate) {
        self.with(|state| {
            state.gates.retain(Gate::is_there);
            state.stalled.iter().for_each(|worker| drop(gate.shut(*worker)));
            state.gates.push(gate);
        });
    }

    fn follow(&self, finding: Finding) {
        self.with(|state| {
            state.gates.retain(Gate::is_there);
            for gate in &state.gates {
                // An entrance that cannot be changed is that of an interface that is gone.
                let _ = match finding {
                    Finding::Stalled(worker) => gate.shut(worker),
                    Finding::Moves(worker) => gate.open(worker),
                };
            }
            match finding {
                Finding::Stalled(worker) => state.stalled.push(worker),
                Finding::Moves(worker) => state.stalled.retain(|other| *other != worker),
            }
        });
    }

    fn with(&self, act: impl FnOnce(&mut State)) {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The running thread.
pub(super) struct WorkerWatch {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl WorkerWatch {
    /// Starts it.
    pub(super) fn start(mut watch: Watch, gates: Arc<Gates>) -> std::io::Result<Self> {
        let (stop, stopped) = channel::bounded(0);
        let thread = std::thread::Builder::new().name("worker-watch".into()).spawn(move || {
            while stopped.recv_timeout(LOOK_TIME) == Err(RecvTimeoutError::Timeout) {
                watch.look().into_iter().for_each(|finding| gates.follow(finding));
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub(super) fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

/// What is wrong with the workers.
pub(super) fn problems(workers: &[Arc<WorkerCounters>]) -> Vec<Problem> {
    workers.iter().enumerate().flat_map(|(number, counters)| of_worker(number, counters)).collect()
}

fn of_worker(number: usize, counters: &WorkerCounters) -> Vec<Problem> {
    let health = &counters.health;
    let mut problems = Vec::new();
    let mut add = |kind: &str, message: String| {
        problems.push(Problem { kind: Some(kind.to_owned()), ..Problem::from(message) });
    };
    let said = health.last_failure().map_or_else(String::new, |failure| failure.message);
    if health.has_ended() {
        let cut = "its queues are closed: packets of pods that it served are lost; restart the agent";
        add(
            "worker_ended",
            format!("worker {number} failed too often in a row and has ended, {cut}; the last failure: {said}"),
        );
    } else if health.failures() > 0 {
        let times = health.failures();
        add(
            "worker_failed",
            format!("worker {number} failed and was started again, {times} times by now; the last failure: {said}"),
        );
    }
    if health.is_stalled() && !health.has_ended() {
        let cut = "what uplinks bring it goes to the host's kernel, and pods behind it are cut off, until it moves";
        add("worker_stalled", format!("worker {number} stands still: {cut}"));
    }
    problems
}
