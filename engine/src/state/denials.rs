//! Denied packets that wait to be logged.
//!
//! A bounded queue between the workers and whoever writes logs: a worker never waits, and what finds the queue full is
//! only counted. Only denials by a policy that asks for it get here, those for want of knowledge among them. 1,024 places of 104 bytes.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::limits;
use crate::packet::Headers;
use crate::tables::policy::{Denial, Direction};

/// One denied packet.
#[derive(Clone, Debug)]
pub struct DeniedPacket {
    /// The pod's direction in which it was denied.
    pub direction: Direction,
    /// Why.
    pub denial: Denial,
    /// Source address, as the packet came in.
    pub source: IpAddr,
    /// Destination address, as the packet came in.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source and destination port; zero where the protocol has none.
    pub ports: [u16; 2],
}

/// The queue.
#[derive(Debug)]
pub struct Denials {
    waiting: ArrayQueue<DeniedPacket>,
    lost: AtomicU64,
}

impl Default for Denials {
    fn default() -> Self {
        Self { waiting: ArrayQueue::new(limits::DENIALS_WAITING), lost: AtomicU64::new(0) }
    }
}

impl Denials {
    /// Notes a denied packet, if a policy that denies it asks for it.
    pub(crate) fn note(&self, direction: Direction, denial: &Denial, headers: &Headers) {
        if !denial.lists().iter().any(|list| list.policy.logs_denied) {
            return;
        }
        let packet = DeniedPacket {
            direction,
            denial: denial.clone(),
            source: headers.source_address(),
            destination: headers.destination_address(),
            protocol: headers.protocol,
            ports: headers.ports,
        };
        self.put(packet);
    }

    /// Puts a denied packet into the queue.
    pub fn put(&self, packet: DeniedPacket) {
        if self.waiting.push(packet).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The denial that waits longest.
    pub fn take(&self) -> Option<DeniedPacket> {
        self.waiting.pop()
    }

    /// Denials that found the queue full since this was last asked.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}
