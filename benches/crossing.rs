//! Packets across a switch of one worker, from one ring to another, a run at a time.

use std::sync::Arc;

use millrace_engine::counters::Event;
use millrace_engine::limits::VECTOR_PACKETS;
use millrace_engine::switch::Switch;

use crate::ring_queue::Control;

/// Packets of one run.
pub(crate) const RUN: usize = 64 * VECTOR_PACKETS;

/// A switch, the port where packets come in and the one where they go.
pub(crate) struct Crossing {
    pub(crate) switch: Switch,
    pub(crate) source: Arc<Control>,
    pub(crate) target: Arc<Control>,
}

impl Crossing {
    /// Frees what was sent and lets a run's packets arrive: not timed.
    pub(crate) fn prepare(&mut self) {
        self.target.take_sent();
        self.switch.turn();
        self.source.let_arrive(RUN);
        self.switch.turn();
    }

    /// Turns until all packets that arrived have crossed the switch or were dropped; how many were sent.
    pub(crate) fn run(&mut self) -> u64 {
        let before = self.target.sent();
        for _ in 0..RUN / VECTOR_PACKETS {
            self.switch.turn();
        }
        self.target.sent() - before
    }

    /// How often this was counted.
    pub(crate) fn event(&self, event: Event) -> u64 {
        self.switch.counters().map(|counters| counters.event(event).get()).sum()
    }
}
