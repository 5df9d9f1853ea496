//! The misses of a vector are gathered and decided behind its hits; this asks the processor for the memory that deciding
//! them will look at, before the first of them is decided.
//!
//! A new connection touches lines at random in tables of many megabytes: a chain's head, the entries on it, the entry
//! it gets. One by one each costs a trip to memory; for a vector of new connections (a load test, a flood, a node
//! that just started) the trips overlap. Only hints: what is guessed wrong here costs nothing but a line that nobody needs.
//! Two passes over at most one vector; no memory of its own but hashes on the stack.

use super::Worker;
use super::ingress::FrameReading;
use crate::limits::VECTOR_PACKETS;
use crate::packet::{Network, Packet};
use crate::state::Tuple;
use crate::tables::{PortRole, SegmentIndex};

impl Worker {
    /// Reads the misses whole, which are these numbers of the vector, and asks for what their connections will need.
    pub(super) fn anticipate(&mut self, misses: &[Packet], numbers: &[u8]) {
        let mut hashes = [0; VECTOR_PACKETS];
        let mut count = 0;
        for (packet, number) in misses.iter().zip(numbers) {
            self.read_whole(usize::from(*number), packet);
            if let Some(tuple) = self.likely_tuple(&self.readings[usize::from(*number)], packet) {
                hashes[count] = self.state.connections.keyed_hash(&tuple);
                self.state.connections.prefetch_chain(hashes[count]);
                count += 1;
            }
        }
        hashes[..count].iter().for_each(|hash| self.state.connections.prefetch_entries(*hash));
    }

    /// The tuple that a packet's connection will most likely be asked for by.
    fn likely_tuple(&self, frame: &FrameReading, packet: &Packet) -> Option<Tuple> {
        let is_ip = matches!(frame.headers.network, Network::Ipv4 | Network::Ipv6);
        if frame.refused.is_some() || !is_ip {
            return None;
        }
        let segment = match frame.tunnel {
            Some(tunnel) => self.tables.segments.by_vni(tunnel.vni)?,
            None => match &self.tables.ports.get(packet.ingress)?.role {
                PortRole::Pod(pod) => pod.segment,
                PortRole::Host(host) => host.segment,
                PortRole::Uplink(_) => SegmentIndex::OUTSIDE,
                PortRole::Bridged(_) | PortRole::Mirror => return None,
            },
        };
        Some(Tuple::of(&frame.headers, segment))
    }
}
