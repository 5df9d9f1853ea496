//! Later fragments that came before their first one: held until that one is decided, or for a moment.
//!
//! Only the first fragment names a connection, so a later one cannot be judged, translated or handed back before it. The
//! shared table of fragments notes which workers hold some of a packet (`state/fragments.rs`). Whoever decides the first
//! one releases them, itself or by a command to that worker: a network card may send the first fragment, which has ports,
//! to another queue than the later ones. A TAP steers all by their addresses. Those released are decided in the order in
//! which they came, as if they had come behind it.
//!
//! Bounded: [`LATE_FRAGMENTS`] of a worker, [`LATE_FRAGMENTS_CHAINED`] of them longer than a frame, for
//! [`LATE_FRAGMENT_TIMEOUT`]. One more makes the oldest give way, so a flood of orphans costs those that wait a place but
//! nobody else anything. What an uplink brought and nobody claims goes to the host's kernel, as it would have at once.

use std::collections::VecDeque;

use super::Worker;
use super::commands::Command;
use super::ingress::FrameReading;
use crate::clock::Time;
use crate::counters::Event;
use crate::drop_reason::DropReason;
use crate::limits::{LATE_FRAGMENT_TIMEOUT, LATE_FRAGMENTS, LATE_FRAGMENTS_CHAINED};
use crate::packet::Packet;
use crate::state::{Awaited, FragmentKey, WorkerSet};
use crate::tables::HandBack;

/// A fragment that waits.
#[derive(Debug)]
pub(super) struct Held {
    key: FragmentKey,
    packet: Packet,
    since: Time,
    /// Where it goes if its first one does not come; nowhere if `None`.
    otherwise: Option<HandBack>,
}

/// Those of one worker, oldest first.
#[derive(Debug)]
pub(super) struct LateFragments {
    held: VecDeque<Held>,
    chained: usize,
}

impl LateFragments {
    /// None, and room for all.
    pub(super) fn new() -> Self {
        Self { held: VecDeque::with_capacity(LATE_FRAGMENTS), chained: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Those that wait.
    pub(super) fn packets(&self) -> impl Iterator<Item = &Packet> {
        self.held.iter().map(|held| &held.packet)
    }

    /// Counts anew what a panic may have left miscounted.
    pub(super) fn recount(&mut self) {
        self.chained = self.held.iter().filter(|held| held.packet.is_chained()).count();
    }

    /// Keeps one; returns the one that gives way to it.
    #[must_use]
    fn push(&mut self, held: Held) -> Option<Held> {
        let too_many_chained = held.packet.is_chained() && self.chained == LATE_FRAGMENTS_CHAINED;
        let gone = if too_many_chained {
            self.take(|held| held.packet.is_chained())
        } else if self.held.len() == LATE_FRAGMENTS {
            self.take(|_| true)
        } else {
            None
        };
        self.chained += usize::from(held.packet.is_chained());
        self.held.push_back(held);
        gone
    }

    /// Takes the oldest of which `is_wanted` holds.
    fn take(&mut self, is_wanted: impl Fn(&Held) -> bool) -> Option<Held> {
        let place = self.held.iter().position(is_wanted)?;
        let taken = self.held.remove(place);
        self.chained -= usize::from(taken.as_ref().is_some_and(|held| held.packet.is_chained()));
        taken
    }
}

impl Worker {
    /// Holds a later fragment until its first one was decided.
    pub(super) fn hold(&mut self, key: FragmentKey, otherwise: Option<HandBack>, packet: Packet) {
        let held = Held { key, packet, since: self.now, otherwise };
        match self.state.fragments.await_first(&key, self.number, self.now) {
            Awaited::Noted => {
                self.counters.event(Event::FragmentsHeld).add(1);
                if let Some(gone) = self.late.push(held) {
                    self.give_up(gone, DropReason::FragmentsHeldFull);
                }
            }
            // The first one was decided by another worker just now.
            Awaited::Known => self.decide_held(held),
            Awaited::Full => self.give_up(held, DropReason::FragmentsHeldFull),
        }
    }

    /// Releases what waits for the first fragment of this packet, on each of `workers`.
    pub(super) fn first_fragment_came(&mut self, key: FragmentKey, workers: WorkerSet) {
        for worker in workers.iter() {
            if worker == self.number {
                self.release_held(&key);
            } else if let Some(Some(other)) = self.others.get(worker) {
                // A full queue means that worker is overloaded; its fragments time out instead.
                let _ = other.try_send(Command::FirstFragment(key));
                self.ports.wake(worker);
            }
        }
    }

    /// Decides what waits for the first fragment of this packet, in the order in which it came.
    pub(super) fn release_held(&mut self, key: &FragmentKey) {
        while let Some(held) = self.late.take(|held| held.key == *key) {
            self.decide_held(held);
        }
    }

    fn decide_held(&mut self, held: Held) {
        let mut frame = FrameReading::EMPTY;
        self.ingress.read(&mut frame, &self.tables, &self.memory, &held.packet);
        if let Some(reason) = frame.refused {
            return outlet!(self).drop(held.packet, reason);
        }
        if let Some(held) = self.decide_read(0, &frame, held.packet) {
            // What the first one said is forgotten already: there is no end to waiting for it.
            let (_, otherwise, packet) = held;
            self.give_up_packet(otherwise, packet, DropReason::FragmentWithoutFirst);
        }
    }

    fn give_up(&mut self, held: Held, reason: DropReason) {
        self.give_up_packet(held.otherwise, held.packet, reason);
    }

    fn give_up_packet(&mut self, otherwise: Option<HandBack>, packet: Packet, reason: DropReason) {
        match otherwise {
            Some(target) => self.hand_back(target, packet),
            None => outlet!(self).drop(packet, reason),
        }
    }

    /// Gives up what has waited for long enough; at a worker's end, what waits at all.
    pub(super) fn expire_held(&mut self, all: bool) {
        let now = self.now;
        let is_over = |held: &Held| all || now.since(held.since) >= LATE_FRAGMENT_TIMEOUT;
        while self.late.held.front().is_some_and(is_over) {
            let Some(held) = self.late.take(|_| true) else { return };
            self.give_up(held, DropReason::FragmentWithoutFirst);
        }
    }
}
