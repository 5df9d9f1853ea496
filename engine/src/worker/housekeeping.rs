//! What time asks for: new tables, sweeps, ageing, gauges. Each turn does a bounded step of each.

use std::sync::Arc;

use super::Worker;
use crate::counters::Event;
use crate::limits::{AGEING_STEP, SWEEP_STEP};

impl Worker {
    /// Takes a new generation up. What it changed is swept in steps from the turn on in which the sweep's command
    /// comes, this one or the next; commands are taken before tables, so that no sweep runs ahead of its tables.
    pub(super) fn refresh_tables(&mut self) {
        let fresh = self.subscription.refresh();
        if fresh.generation == self.tables.generation {
            return;
        }
        self.tables = Arc::clone(fresh);
        self.ingress.refresh(&self.tables);
        self.counters.generation.set(self.tables.generation);
    }

    /// One bounded step of everything that is not a packet.
    pub(super) fn housekeeping(&mut self) {
        if self.cache.sweeping() {
            let redecided = self.cache.sweep_step(SWEEP_STEP);
            self.counters.event(Event::FlowCacheRedecided).add(redecided as u64);
        }
        let expired = self.cache.age_step(AGEING_STEP, self.now_ms);
        self.counters.event(Event::FlowCacheExpired).add(expired as u64);
        self.count_gauges();
    }

    pub(super) fn count_gauges(&self) {
        self.counters.held.set(self.transmit.held(&self.ports) as u64);
        self.counters.flows.set(self.cache.len() as u64);
        self.counters.free_frames.set(self.memory.free_heads() as u64);
    }

    /// Whether anything but packets still needs turns.
    pub(super) fn has_work(&self) -> bool {
        self.cache.sweeping() || !self.commands.is_empty() || self.lanes.iter().any(|lane| !lane.is_empty())
    }

    /// Whether the worker was told to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Obeys the commands that wait, without moving packets: for a switch that is driven by hand.
    pub fn obey_waiting(&mut self) {
        self.now = self.clock.now();
        self.take_commands();
    }

    /// Frames of this worker's memory that are neither free, lent to the kernel nor held: zero in a sound worker.
    #[must_use]
    pub fn lost_frames(&self) -> i64 {
        let lent: usize = self.ports.queues().map(|queue| queue.lent_frames()).sum();
        let lanes: usize = self.lanes.iter().map(|lane| lane.held_frames()).sum();
        let known = self.memory.free_heads() + lent + lanes + self.transmit.held(&self.ports);
        self.memory.layout().head_frames as i64 - known as i64
    }
}
