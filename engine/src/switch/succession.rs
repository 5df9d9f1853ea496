//! A switch that goes on in another process.
//!
//! ```text
//!  former                                   successor
//!  state_files (notes changes from here) -> Switch::following: builds, reads the connections
//!  handed_queues                         -> HandedQueue::receive, attach; publish
//!  pause: every worker stands, empty     -> catch_up, start
//!  (ends, or start: goes on)                succeed
//! ```
//! The time without forwarding is that from the end of the first worker's last turn to the successor's first one:
//! [`Switch::pause`] and [`Switch::begun`] say both, on the clock that the two share. Flow caches do not pass: entries name
//! places of tables, ports and workers of their process, and the slow path fills them again within a packet of each flow.
//! On the caller's thread; the former's caller must keep everybody else from the switch meanwhile.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;

use super::{Body, Switch, SwitchOptions, state_options};
use crate::clock::Time;
use crate::packet::PortIndex;
use crate::port::handover::HandedQueue;
use crate::state::{State, StateFiles};
use crate::worker::Command;

/// Longest time to hand out what workers hold when they are paused: a port that does not take it would never.
const FINISHING: Duration = Duration::from_micros(500);

/// Queues of a port, each with the worker that has it, or why one cannot be handed over.
pub type HandedPort = (PortIndex, io::Result<Vec<(usize, HandedQueue)>>);

impl Switch {
    /// A switch as [`Switch::new`] builds it, with the state of a process that goes on until it is told to pause. No worker of
    /// it may run before [`Switch::catch_up`].
    ///
    /// # Errors
    /// As [`Switch::new`]; or the other process keeps its connections in another layout.
    pub fn following(options: SwitchOptions, files: StateFiles) -> io::Result<Self> {
        Self::with_state(options, |options, hash_key| {
            let size = state_options(options, hash_key);
            let (state, kept, succession) =
                State::following(files, options.kept_in.as_deref(), &size, options.clock.now())?;
            Ok((Arc::new(state), kept, Some(succession)))
        })
    }

    /// The files of the state, for a successor; from now on changes are noted.
    ///
    /// # Errors
    /// The kernel refused memory or a descriptor.
    pub fn state_files(&self) -> io::Result<StateFiles> {
        self.state.hand_over()
    }

    /// What another process needs of all queues, port by port.
    pub fn handed_queues(&mut self) -> Vec<HandedPort> {
        let mut ports = std::collections::BTreeMap::new();
        for worker in 0..self.workers.len() {
            let (answer, answered) = bounded(1);
            self.command(worker, Command::HandOver(answer));
            for (port, queue) in answered.recv().unwrap_or_default() {
                let queues: &mut io::Result<Vec<_>> = ports.entry(port).or_insert_with(|| Ok(Vec::new()));
                match (queue, queues.as_mut()) {
                    (Ok(queue), Ok(queues)) => queues.push((worker, queue)),
                    (Err(error), Ok(_)) => *queues = Err(error),
                    (_, Err(_)) => {}
                }
            }
        }
        ports.into_iter().collect()
    }

    /// Stops every worker with all it had on its way handed to the ports; when the last turn of each ended. Queues stay open
    /// and hold what comes, as long as they have room. [`Switch::start`] lets them go on.
    ///
    /// # Errors
    /// A worker panicked some time ago; the others stand.
    pub fn pause(&mut self) -> io::Result<Vec<Time>> {
        for number in 0..self.workers.len() {
            self.command(number, Command::Pause);
        }
        let mut failed = None;
        for (number, slot) in self.workers.iter_mut().enumerate() {
            match std::mem::replace(&mut slot.body, Body::Gone) {
                Body::Running(thread) => match thread.join() {
                    Ok(worker) => slot.body = Body::Parked(worker),
                    Err(_) => failed = Some(number),
                },
                body => slot.body = body,
            }
        }
        let end = Instant::now() + FINISHING;
        while self.finish_turn() && Instant::now() < end {}
        match failed {
            Some(number) => Err(io::Error::other(format!("worker {number} has failed"))),
            None => {
                Ok(self.workers.iter().filter_map(|slot| slot.body.parked().map(|worker| worker.paused_at())).collect())
            }
        }
    }

    fn finish_turn(&mut self) -> bool {
        let mut busy = false;
        for slot in &mut self.workers {
            if let Body::Parked(worker) = &mut slot.body {
                busy |= worker.finish_turn();
            }
        }
        busy
    }

    /// The successor did not come up: nothing is noted any more, and the workers go on.
    ///
    /// # Errors
    /// The kernel refused a thread.
    pub fn go_on(&mut self) -> io::Result<()> {
        self.state.keep();
        self.start()
    }

    /// Takes in what the former process changed while this one was made ready. Before [`Switch::start`], and after the other
    /// has paused.
    pub fn catch_up(&mut self) {
        if let Some(succession) = &mut self.succession {
            self.state.catch_up(succession, &mut self.kept);
        }
    }

    /// The former process has ended: its place is this one's.
    pub fn succeed(&mut self) {
        if let Some(succession) = self.succession.take() {
            self.state.succeed(succession, &mut self.kept, self.options.clock.now());
        }
    }

    /// When each worker's thread took its first turn; zero where it has not.
    #[must_use]
    pub fn begun(&self) -> Vec<Time> {
        self.workers.iter().map(|slot| Time::from_nanoseconds(slot.counters.began.get())).collect()
    }
}

impl Body {
    fn parked(&self) -> Option<&crate::worker::Worker> {
        match self {
            Body::Parked(worker) => Some(worker),
            Body::Running(_) | Body::Gone => None,
        }
    }
}
