//! What time asks for: new tables, sweeps, ageing, gauges. Each turn does a bounded step of each.

use std::sync::Arc;

use super::Worker;
use crate::clock::Time;
use crate::counters::Event;
use crate::limits::{AGEING_STEP, CONNECTION_SCAN_STEP, SWEEP_STEP};
use crate::slow_path::{Dependencies, Location};
use crate::transmit::Mirrors;

impl Worker {
    /// Takes a new generation up. What it changed is swept in steps from the turn on in which the sweep's command
    /// comes, this one or the next; commands are taken before tables, so that no sweep runs ahead of its tables.
    pub(super) fn refresh_tables(&mut self) {
        let fresh = self.subscription.refresh();
        if fresh.generation == self.tables.generation {
            return;
        }
        self.ports.set_bandwidth(&self.tables.bandwidth, &fresh.bandwidth);
        self.tables = Arc::clone(fresh);
        self.ingress.refresh(&self.tables);
        let watched = self.tables.mirrors.iter().filter(|mirror| mirror.egress.is_some());
        self.ports.set_watched(watched.map(|mirror| mirror.source).collect());
        self.transmit.set_mirrors(Mirrors::new(&self.tables.mirrors));
        self.counters.generation.set(self.tables.generation);
    }

    /// One bounded step of everything that is not a packet.
    pub(super) fn housekeeping(&mut self) {
        if self.cache.sweeping() {
            let redecided = self.cache.sweep_step(SWEEP_STEP);
            self.counters.event(Event::FlowCacheRedecided).add(redecided as u64);
        }
        let (now, stations) = (self.now, &self.state.stations);
        let heard = |flow: &Dependencies, idle_ms: u32| {
            let place = flow.ingress_peer.map_or(Location::Port(flow.ingress), Location::Peer);
            let seen = Time::from_nanoseconds(now.nanoseconds().saturating_sub(u64::from(idle_ms) * 1_000_000));
            stations.keep_alive(flow.segment, flow.source_mac, place, seen);
        };
        let expired = self.cache.age_step(AGEING_STEP, self.now_ms, heard);
        self.counters.event(Event::FlowCacheExpired).add(expired as u64);
        self.state.stations.age_step(self.now);
        self.expire_connections();
        self.expire_held(false);
        self.count_gauges();
    }

    /// One step of the scan that all workers share. What the caches know must have been written back before.
    fn expire_connections(&mut self) {
        let connections = &self.state.connections;
        if let Some(time_ms) = self.cache.written_back_ms(self.now.milliseconds32()) {
            connections.written_back(self.number, time_ms);
        }
        let mut ended = std::mem::take(&mut self.ended);
        connections.expire_step(CONNECTION_SCAN_STEP, self.now, |removed| ended.push(removed));
        self.counters.event(Event::ConnectionsExpired).add(ended.len() as u64);
        for removed in ended.drain(..) {
            self.connection_ended(&removed);
        }
        self.ended = ended;
    }

    pub(super) fn count_gauges(&self) {
        self.counters.held.set((self.transmit.held(&self.ports) + self.late.len()) as u64);
        self.counters.flows.set(self.cache.len() as u64);
        self.counters.free_frames.set(self.memory.free_heads() as u64);
    }

    /// Whether anything but packets still needs turns.
    pub(super) fn has_work(&self) -> bool {
        self.cache.sweeping()
            || self.cache.is_ageing()
            || self.state.connections.is_expiring()
            || !self.commands.is_empty()
            || self.lanes.iter().any(|lane| !lane.is_empty())
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
        let known = self.memory.free_heads() + lent + lanes + self.transmit.held(&self.ports) + self.late.len();
        self.memory.layout().head_frames as i64 - known as i64
    }
}
