//! What a received packet is: parsed, and if it came through a tunnel, unwrapped and its peer known. What reached an
//! uplink outside of any tunnel is read as it stands, for admission to say whose it is.
//!
//! The hot half of admission. The peer and VNI of a tunnelled frame are looked up in the tables once and remembered
//! in a small direct-mapped memo, which a publish empties; each such pair has a number that is part of the flow key,
//! so that a frame of one peer never hits a flow of another. Numbers are given once and never again, at most
//! `limits::TUNNEL_INGRESSES` of them; beyond that, frames of further pairs take the slow path.

use std::net::IpAddr;

use hashbrown::HashMap;

use crate::clock::Time;
use crate::drop_reason::DropReason;
use crate::edit::CompiledRewrite;
use crate::limits;
use crate::packet::copy_and_checksum::Kernel;
use crate::packet::parse::plain::{Front, Outer};
use crate::packet::parse::{self, Plain, flag, plain, protocol};
use crate::packet::wire::{self, tcp, udp};
use crate::packet::{Checksum, FrameMemory, Gso, Headers, Network, Packet, checksum};
use crate::slow_path::{self, Arrival, Decision, Tunnelled};
use crate::state::State;
use crate::tables::{PortRole, Snapshot, Vni};

/// Bit that tells a tunnel ingress number from a port number in a flow key.
const TUNNEL: u32 = 1 << 31;
/// The number of pairs that got none: never cached.
const UNNUMBERED: u32 = u32::MAX;
const MEMO_SLOTS: usize = 256;

/// A packet read; a slot of a vector, written in place.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameReading {
    /// Why the packet must be dropped; then nothing else here says anything.
    pub(super) refused: Option<DropReason>,
    /// Headers of the innermost frame.
    pub(super) headers: Headers,
    /// Bytes before the innermost frame.
    pub(super) inner_offset: usize,
    /// DSCP and ECN of the outer header.
    pub(super) outer_traffic_class: u8,
    /// What the flow key says of where it came from.
    pub(super) ingress: u32,
    /// The tunnel it came out of.
    pub(super) tunnel: Option<Tunnelled>,
}

impl FrameReading {
    /// A slot that nothing was read into.
    pub(super) const EMPTY: FrameReading = FrameReading {
        refused: None,
        headers: Headers::EMPTY,
        inner_offset: 0,
        outer_traffic_class: 0,
        ingress: UNNUMBERED,
        tunnel: None,
    };

    /// Whether the flow cache may serve it.
    #[inline]
    pub(super) fn cacheable(&self) -> bool {
        matches!(self.headers.network, Network::Ipv4 | Network::Ipv6)
            && !self.headers.has(flag::UNCACHEABLE)
            && self.ingress != UNNUMBERED
    }

    /// The MAC addresses of a frame that the flow cache may serve; `head` is the packet's head.
    #[inline]
    pub(super) fn macs_of_cacheable<'a>(&self, head: &'a [u8]) -> Option<&'a [u8; 12]> {
        let known = self.refused.is_none() && self.cacheable();
        head.get(self.inner_offset..).filter(|_| known)?.first_chunk()
    }

    /// Whether a cached rewrite may be applied: hops are left and the packet fits. Otherwise the slow path tells why.
    #[inline]
    pub(super) fn fits(&self, rewrite: &CompiledRewrite, gso: Option<Gso>) -> bool {
        (!rewrite.routes() || self.headers.ttl > 1) && self.headers.network_bytes(gso) <= rewrite.mtu
    }

    /// The packet as the stages see it; `head` is the packet's head with all outer headers.
    pub(super) fn arrival<'a>(&'a self, head: &'a [u8], packet: &Packet) -> Arrival<'a> {
        Arrival {
            port: packet.ingress,
            tunnel: self.tunnel,
            frame: head.get(self.inner_offset..).unwrap_or_default(),
            headers: &self.headers,
            gso: packet.gso(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Absent,
    Local,
    Uplink,
}

/// Outer addresses and VNI that were found to be right, and their number.
#[derive(Clone, Copy, Debug)]
struct PlainTunnel {
    addresses: [u8; 8],
    vni: u32,
    number: u32,
}

impl PlainTunnel {
    /// Of no tunnel: no packet has such a VNI.
    const NONE: PlainTunnel = PlainTunnel { addresses: [0; 8], vni: u32::MAX, number: UNNUMBERED };

    #[inline]
    fn number_of(&self, outer: &Outer) -> Option<u32> {
        (self.addresses == outer.addresses && self.vni == outer.vni).then_some(self.number)
    }
}

/// The hot half of admission.
#[derive(Debug)]
pub(super) struct IngressTable {
    roles: Box<[Role]>,
    memo: Box<[Option<(Tunnelled, u32)>]>,
    plain_memo: Box<[PlainTunnel; MEMO_SLOTS]>,
    numbers: HashMap<Tunnelled, u32>,
}

impl IngressTable {
    pub(super) fn new() -> Self {
        Self {
            roles: vec![Role::Absent; limits::PORTS].into_boxed_slice(),
            memo: vec![None; MEMO_SLOTS].into_boxed_slice(),
            plain_memo: Box::new([PlainTunnel::NONE; MEMO_SLOTS]),
            numbers: HashMap::with_capacity(limits::TUNNEL_INGRESSES),
        }
    }

    /// Takes new tables up.
    pub(super) fn refresh(&mut self, tables: &Snapshot) {
        self.memo.fill(None);
        self.plain_memo.fill(PlainTunnel::NONE);
        self.roles.fill(Role::Absent);
        for port in tables.ports.iter() {
            if let Some(role) = self.roles.get_mut(port.index.0 as usize) {
                *role = if matches!(port.role, PortRole::Uplink(_)) { Role::Uplink } else { Role::Local };
            }
        }
    }

    /// Reads a packet that is plain, with its ingress number for the flow key; `None` if it has to be read as any other.
    /// A tunnelled one is plain only if a packet of its peer and VNI was read before.
    #[inline]
    pub(super) fn read_plain<'a>(
        &self,
        tables: &Snapshot,
        memory: &'a FrameMemory,
        packet: &'a Packet,
    ) -> Option<(Plain, Front<'a>, u32)> {
        if !packet.is_finished() {
            return None;
        }
        let head = memory.head(packet);
        match self.roles.get(packet.ingress.0 as usize)? {
            Role::Absent => None,
            Role::Local => {
                let (plain, front) = plain::read(head, packet.length())?;
                Some((plain, front, u32::from(packet.ingress.0)))
            }
            Role::Uplink => {
                let outer = Outer::read(head, packet.length(), tables.tunnels.udp_port)?;
                let ingress = self.plain_memo[plain_memo_slot(&outer)].number_of(&outer)?;
                let inner = head.get(Outer::BYTES..outer.end.min(head.len()))?;
                let (plain, front) = plain::read(inner, outer.end - Outer::BYTES)?;
                let tunnelled = Plain { offset: Outer::BYTES as u8, outer_traffic_class: outer.traffic_class, ..plain };
                Some((tunnelled, front, ingress))
            }
        }
    }

    /// Reads one packet into `frame`.
    #[inline]
    pub(super) fn read(&mut self, frame: &mut FrameReading, tables: &Snapshot, memory: &FrameMemory, packet: &Packet) {
        let role = self.roles.get(packet.ingress.0 as usize).copied().unwrap_or(Role::Absent);
        let read = match role {
            Role::Absent => Err(DropReason::PortUnknown),
            Role::Local => read_local(frame, memory, packet),
            Role::Uplink => self.read_uplink(frame, tables, memory, packet),
        };
        frame.refused = read.err();
    }

    fn read_uplink(
        &mut self,
        frame: &mut FrameReading,
        tables: &Snapshot,
        memory: &FrameMemory,
        packet: &Packet,
    ) -> Result<(), DropReason> {
        let head = memory.head(packet);
        let mut outer = Headers::EMPTY;
        parse::parse_into(&mut outer, head, packet.length())?;
        let for_tunnel = outer.protocol == protocol::UDP
            && outer.ports[1] == tables.tunnels.udp_port
            && !outer.has(flag::FRAGMENT)
            && outer.vlan_tags == 0
            && tables.tunnels.is_local(outer.destination_address());
        if !for_tunnel {
            verify_offload(packet, 0, &outer)?;
            *frame = FrameReading { headers: outer, ingress: u32::from(packet.ingress.0), ..FrameReading::EMPTY };
            return Ok(());
        }
        let (vni, inner_offset) = parse::parse_vxlan(head, &outer)?;
        let vni = Vni::new(vni).ok_or(DropReason::VxlanFlags)?;
        let tunnel = Tunnelled { peer: outer.source_address(), vni };
        frame.ingress = self.number(tables, tunnel)?;
        verify_outer(memory, packet, &outer)?;
        self.remember_plain(head, packet.length(), tables.tunnels.udp_port, frame.ingress);
        let end = (usize::from(outer.network_offset) + outer.network_length as usize).min(packet.length());
        let inner = head.get(inner_offset..).unwrap_or_default();
        parse::parse_into(&mut frame.headers, inner, end.saturating_sub(inner_offset))?;
        verify_offload(packet, inner_offset, &frame.headers)?;
        frame.inner_offset = inner_offset;
        frame.outer_traffic_class = outer.traffic_class;
        frame.tunnel = Some(tunnel);
        Ok(())
    }

    /// Notes the number of a tunnel whose outer headers were just found right, for the next packet that is plain.
    fn remember_plain(&mut self, head: &[u8], length: usize, udp_port: u16, number: u32) {
        if let Some(outer) = Outer::read(head, length, udp_port).filter(|_| number != UNNUMBERED) {
            self.plain_memo[plain_memo_slot(&outer)] =
                PlainTunnel { addresses: outer.addresses, vni: outer.vni, number };
        }
    }

    /// The number of a peer and VNI, both known to the tables.
    #[inline]
    fn number(&mut self, tables: &Snapshot, tunnel: Tunnelled) -> Result<u32, DropReason> {
        let slot = memo_slot(&tunnel);
        if let Some((known, number)) = self.memo[slot]
            && known == tunnel
        {
            return Ok(number);
        }
        tables.tunnels.peer(tunnel.peer).ok_or(DropReason::VxlanUnknownPeer)?;
        tables.segments.by_vni(tunnel.vni).ok_or(DropReason::VxlanUnknownVni)?;
        let next = TUNNEL | self.numbers.len() as u32;
        let number = match self.numbers.get(&tunnel) {
            Some(number) => *number,
            None if self.numbers.len() >= limits::TUNNEL_INGRESSES => UNNUMBERED,
            None => *self.numbers.entry(tunnel).insert(next).get(),
        };
        self.memo[slot] = Some((tunnel, number));
        Ok(number)
    }
}

/// What the slow path decides of a packet at this moment, without carrying it out, and the headers that it is decided
/// by: the reading and the stages are the very ones a worker uses, the flow cache is not asked.
///
/// # Errors
/// Why the packet is refused before any stage sees it.
pub fn explain(
    tables: &Snapshot,
    state: &State,
    memory: &FrameMemory,
    packet: &Packet,
    now: Time,
) -> Result<(Headers, Decision), DropReason> {
    let mut ingress = IngressTable::new();
    ingress.refresh(tables);
    let mut frame = FrameReading::EMPTY;
    ingress.read(&mut frame, tables, memory, packet);
    match frame.refused {
        None => {
            let decision = slow_path::decide(tables, state, &frame.arrival(memory.head(packet), packet), now);
            Ok((frame.headers, decision))
        }
        Some(reason) => Err(reason),
    }
}

#[inline]
fn plain_memo_slot(outer: &Outer) -> usize {
    let mixed = (u64::from_le_bytes(outer.addresses) ^ u64::from(outer.vni) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as usize % MEMO_SLOTS
}

fn memo_slot(tunnel: &Tunnelled) -> usize {
    let address = match tunnel.peer {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64 ^ address.to_bits() as u64,
    };
    let mixed = (address ^ u64::from(tunnel.vni.number()) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as usize % MEMO_SLOTS
}

#[inline]
fn read_local(frame: &mut FrameReading, memory: &FrameMemory, packet: &Packet) -> Result<(), DropReason> {
    parse::parse_into(&mut frame.headers, memory.head(packet), packet.length())?;
    verify_offload(packet, 0, &frame.headers)?;
    frame.inner_offset = 0;
    frame.outer_traffic_class = 0;
    frame.ingress = u32::from(packet.ingress.0);
    frame.tunnel = None;
    Ok(())
}

/// Where a partial checksum would be written, as the sender has it. A field among the headers that were just believed
/// (addresses, ports) would let a pod change them behind anti-spoofing; one before them would be cut off with a tag.
/// So the sum is the layer-4 header's own, or one of a tunnel that the pod itself runs, which lies behind that header.
#[inline]
fn verify_offload(packet: &Packet, inner_offset: usize, headers: &Headers) -> Result<(), DropReason> {
    let Checksum::Partial { start, offset } = packet.checksum() else { return Ok(()) };
    let frame = packet.start() + inner_offset;
    let start = usize::from(start);
    let behind = match headers.network {
        Network::Ipv4 | Network::Ipv6 => usize::from(headers.transport_offset),
        Network::Arp | Network::Other => return Err(DropReason::GsoMalformed),
    };
    let own_field = match headers.protocol {
        protocol::TCP => Some(tcp::CHECKSUM),
        protocol::UDP => Some(udp::CHECKSUM),
        _ => None,
    };
    let own = start == frame + behind && own_field == Some(usize::from(offset));
    if own || start >= frame + behind + udp::HEADER_BYTES { Ok(()) } else { Err(DropReason::GsoMalformed) }
}

/// A zero outer checksum is usual over IPv4 and forbidden over IPv6 (RFC 7348 section 5); any other must be right. Where the
/// kernel took the outer headers off, it has seen to that.
fn verify_outer(memory: &FrameMemory, packet: &Packet, outer: &Headers) -> Result<(), DropReason> {
    if packet.is_tunnelled() {
        return Ok(());
    }
    let offset = usize::from(outer.transport_offset);
    let head = memory.head(packet);
    let field = wire::read_u16(head, offset + udp::CHECKSUM).ok_or(DropReason::VxlanTruncated)?;
    if field == 0 {
        return if outer.network == Network::Ipv4 { Ok(()) } else { Err(DropReason::VxlanChecksum) };
    }
    let length = usize::from(wire::read_u16(head, offset + udp::LENGTH).ok_or(DropReason::VxlanTruncated)?);
    let pseudo = match outer.network {
        Network::Ipv6 => checksum::pseudo_header_v6(&outer.source, &outer.destination, protocol::UDP, length as u32),
        _ => {
            let four = |bytes: &[u8; 16]| [bytes[0], bytes[1], bytes[2], bytes[3]];
            checksum::pseudo_header_v4(four(&outer.source), four(&outer.destination), protocol::UDP, length as u32)
        }
    };
    let sum = checksum::sum_from(Kernel::detect(), memory, packet, offset).sum();
    if checksum::fold(u64::from(pseudo) + u64::from(sum)) == 0xffff { Ok(()) } else { Err(DropReason::VxlanChecksum) }
}
