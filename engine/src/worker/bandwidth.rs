//! Limits of bandwidth, as one worker keeps to them.
//!
//! A packet of a port without limits meets one test of a bit: once a vector as it comes in, and as it leaves none at all,
//! since only limited ports are kept off the shortcut to their list. What is over the rate drops as `over_bandwidth`.

use std::collections::BTreeMap;

use super::Worker;
use crate::clock::Time;
use crate::drop_reason::DropReason;
use crate::limits;
use crate::packet::parse::{Headers, parse_into};
use crate::packet::{FrameMemory, Packet, PortIndex};
use crate::state::{BandwidthBudgets, Meter, Way};
use crate::tables::Bandwidth;

const WORDS: usize = limits::PORTS.div_ceil(64);

/// The limits of all ports, and the time that this worker goes by.
#[derive(Debug)]
pub(super) struct Limiter {
    /// A bit for each port that is limited.
    limited: [[u64; WORDS]; Way::COUNT],
    meters: Box<[[Option<Meter>; Way::COUNT]]>,
    budgets: BandwidthBudgets,
    now: Time,
}

impl Limiter {
    /// Without limits.
    pub(super) fn new(budgets: BandwidthBudgets) -> Self {
        let meters = vec![[None; Way::COUNT]; limits::PORTS].into_boxed_slice();
        Self { limited: [[0; WORDS]; Way::COUNT], meters, budgets, now: Time::ZERO }
    }

    pub(super) fn set_time(&mut self, now: Time) {
        self.now = now;
    }

    /// Whether packets that go this way are counted.
    #[inline]
    pub(super) fn limits(&self, port: PortIndex, way: Way) -> bool {
        let word = self.limited[way as usize].get(usize::from(port.0) / 64).copied().unwrap_or_default();
        word >> (port.0 % 64) & 1 != 0
    }

    /// Takes new limits up; tells the ports whose limits differ. What went through under another limit is forgotten.
    pub(super) fn change(
        &mut self,
        old: &BTreeMap<PortIndex, Bandwidth>,
        new: &BTreeMap<PortIndex, Bandwidth>,
        mut changed: impl FnMut(PortIndex),
    ) {
        let gone = old.keys().filter(|port| !new.contains_key(port)).map(|port| (*port, Bandwidth::default()));
        for (port, bandwidth) in gone.chain(new.iter().map(|(port, bandwidth)| (*port, *bandwidth))) {
            let number = usize::from(port.0);
            let Some(meters) = self.meters.get_mut(number) else { continue };
            for (way, limit) in Way::ALL.into_iter().zip([bandwidth.from_port, bandwidth.to_port]) {
                let meter = limit.map(Meter::from);
                if meters[way as usize] == meter {
                    continue;
                }
                meters[way as usize] = meter;
                let bit = 1 << (number % 64);
                let word = &mut self.limited[way as usize][number / 64];
                *word = if meter.is_some() { *word | bit } else { *word & !bit };
                self.budgets.reset(port, way);
                changed(port);
            }
        }
    }

    /// Whether the packet is within the port's rate, if it has one; it is counted then.
    pub(super) fn take(&self, port: PortIndex, way: Way, memory: &FrameMemory, packet: &Packet) -> bool {
        let meter = self.meters.get(usize::from(port.0)).and_then(|meters| meters[way as usize]);
        meter.is_none_or(|meter| self.budgets.take(port, way, meter, wire_bytes(memory, packet), self.now))
    }
}

/// Bytes of the frames that the packet is or will be cut into.
fn wire_bytes(memory: &FrameMemory, packet: &Packet) -> u32 {
    let length = packet.length();
    let Some(gso) = packet.gso() else { return length as u32 };
    let mut headers = Headers::EMPTY;
    if parse_into(&mut headers, memory.head(packet), length).is_err() {
        // It drops later, with a reason of its own.
        return length as u32;
    }
    let repeated = usize::from(headers.payload_offset);
    let segments = length.saturating_sub(repeated).div_ceil(usize::from(gso.size)).max(1);
    (length + (segments - 1) * repeated) as u32
}

impl Worker {
    /// Drops what came in by a port beyond its rate.
    pub(super) fn keep_to_rate(&mut self, port: PortIndex) {
        let mut vector = std::mem::take(&mut self.vector);
        for packet in vector.drain(..) {
            if self.ports.take_bandwidth(port, Way::FromPort, &self.memory, &packet) {
                // The list of misses is empty between vectors, and as long as a vector.
                self.misses.push(packet);
            } else {
                outlet!(self).drop(packet, DropReason::OverBandwidth);
            }
        }
        self.vector = std::mem::replace(&mut self.misses, vector);
    }
}
