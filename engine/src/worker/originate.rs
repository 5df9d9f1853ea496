//! Packets the switch sends of its own: answers of the gateway and ICMP errors.
//!
//! An answer to a local port goes back by that port. What must reach a sender on another node or outside is routed like
//! any packet, through stages 4 and 5. ICMP errors pass a token bucket (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).

use std::net::IpAddr;

use super::Worker;
use super::carry_out::subject;
use super::ingress::FrameReading;
use crate::clock::Time;
use crate::counters::Event;
use crate::drop_reason::DropReason;
use crate::edit::{self, CompiledRewrite};
use crate::limits::{ICMP_ERRORS_BURST, ICMP_ERRORS_PER_SECOND};
use crate::packet::parse::parse;
use crate::packet::wire::{arp, icmp, icmpv6, nd, tcp};
use crate::packet::{Checksum, Headers, Mac, Network, Packet, PortIndex, checksum};
use crate::slow_path::{self, Arrival, Rejection, Reply, Verdict};
use crate::tables::{PortRole, RoutedSegment, Segment, SegmentIndex, SegmentKind, Snapshot};
use crate::transmit::Layout;

/// TTL or hop limit of answers.
const ANSWER_TTL: u8 = 64;
/// Room for the longest answer: an ICMPv6 error fills 1,280 bytes behind its Ethernet header.
const ANSWER_BYTES: usize = 1_400;

/// A token bucket for ICMP errors.
#[derive(Debug)]
pub(super) struct IcmpBudget {
    tokens: u64,
    refilled: Time,
}

impl IcmpBudget {
    const TOKEN: u64 = 1_000_000_000;

    pub(super) fn new(now: Time) -> Self {
        Self { tokens: u64::from(ICMP_ERRORS_BURST) * Self::TOKEN, refilled: now }
    }

    /// Takes one token. Tokens are billionths, so that a nanosecond refills a whole number of them.
    fn take(&mut self, now: Time) -> bool {
        let passed = now.nanoseconds().saturating_sub(self.refilled.nanoseconds());
        self.refilled = now;
        let refill = passed.saturating_mul(u64::from(ICMP_ERRORS_PER_SECOND));
        self.tokens = self.tokens.saturating_add(refill).min(u64::from(ICMP_ERRORS_BURST) * Self::TOKEN);
        let enough = self.tokens >= Self::TOKEN;
        self.tokens -= if enough { Self::TOKEN } else { 0 };
        enough
    }
}

impl Worker {
    /// Answers in place of the gateway.
    pub(super) fn reply(&mut self, frame: &FrameReading, reply: Reply, mut packet: Packet) {
        if matches!(packet.checksum(), Checksum::Partial { .. })
            && let Err(reason) = checksum::complete(&mut self.memory, &mut packet)
        {
            return outlet!(self).drop(packet, reason);
        }
        if !packet.strip(frame.inner_offset) {
            return outlet!(self).drop(packet, DropReason::VxlanTruncated);
        }
        packet.set_tunnelled(false);
        match reply {
            Reply::Arp(mac) => self.reply_arp(frame, mac, packet),
            Reply::NeighbourAdvertisement(mac) => self.advertise(frame, mac, packet),
            Reply::Echo => self.reply_echo(frame, packet),
        }
    }

    fn reply_arp(&mut self, frame: &FrameReading, mac: Mac, mut packet: Packet) {
        let offset = usize::from(frame.headers.network_offset);
        if arp::reply_in_place(self.memory.head_mut(&mut packet), offset, mac).is_none() {
            return outlet!(self).drop(packet, DropReason::ArpMalformed);
        }
        self.counters.event(Event::RepliesArp).add(1);
        self.send_back(packet);
    }

    fn advertise(&mut self, frame: &FrameReading, mac: Mac, packet: Packet) {
        let head = self.memory.head(&packet);
        let message = head.get(usize::from(frame.headers.transport_offset)..).unwrap_or_default();
        let asker_mac = Mac::read(head.get(6..).unwrap_or_default());
        let mut bytes = [0u8; ANSWER_BYTES];
        let written = nd::read_solicitation(message).and_then(|solicitation| {
            let asker = &frame.headers.source;
            nd::write_advertisement_frame(&mut bytes, asker_mac, asker, &solicitation, mac, true)
        });
        let Some(length) = written else {
            return outlet!(self).drop(packet, DropReason::NeighbourSolicitationNotForUs);
        };
        let Some(mut answer) = self.memory.packet_from(&bytes[..length]) else {
            return outlet!(self).drop(packet, DropReason::FramesExhausted);
        };
        answer.ingress = packet.ingress;
        self.memory.release(packet);
        self.counters.event(Event::FramesConsumed).add(1);
        self.counters.event(Event::FramesMade).add(1);
        self.counters.event(Event::RepliesNeighbour).add(1);
        self.send_back(answer);
    }

    fn reply_echo(&mut self, frame: &FrameReading, mut packet: Packet) {
        let Some(mac) = gateway_mac(&self.tables, frame, &packet) else {
            return outlet!(self).drop(packet, DropReason::PortUnknown);
        };
        let head = self.memory.head_mut(&mut packet);
        let done = match frame.headers.network {
            Network::Ipv4 => icmp::echo_reply_in_place(head, &frame.headers, mac, ANSWER_TTL),
            _ => icmpv6::echo_reply_in_place(head, &frame.headers, mac, ANSWER_TTL),
        };
        if done.is_none() {
            return outlet!(self).drop(packet, DropReason::IcmpNotServed);
        }
        self.counters.event(Event::RepliesEcho).add(1);
        match frame.tunnel {
            None => self.send_back(packet),
            Some(_) => self.route_own(frame, packet),
        }
    }

    /// Drops the packet and tells its sender.
    pub(super) fn reject(&mut self, frame: &FrameReading, reason: DropReason, rejection: Rejection, packet: Packet) {
        if !self.icmp_budget.take(self.now) {
            return outlet!(self).drop(packet, DropReason::IcmpErrorLimited);
        }
        let mut bytes = [0u8; ANSWER_BYTES];
        let head = self.memory.head(&packet);
        let inner = head.get(frame.inner_offset..).unwrap_or_default();
        let written = routed_segment(&self.tables, frame, &packet)
            .and_then(|(_, routed)| write_rejection(&mut bytes, rejection, inner, &frame.headers, routed));
        let answer = written.and_then(|length| self.memory.packet_from(&bytes[..length]));
        let ingress = packet.ingress;
        outlet!(self).drop(packet, reason);
        let Some(mut answer) = answer else { return };
        answer.ingress = ingress;
        self.counters.event(Event::FramesMade).add(1);
        self.counters.event(event_of(rejection)).add(1);
        if frame.tunnel.is_none() && !self.is_uplink(ingress) {
            self.send_back(answer)
        } else {
            self.route_own(frame, answer)
        }
    }

    fn is_uplink(&self, port: PortIndex) -> bool {
        self.tables.ports.get(port).is_some_and(|port| matches!(port.role, PortRole::Uplink(_)))
    }

    /// Sends a frame that somebody else made; one that finds no memory is not made.
    pub(super) fn send_own(&mut self, port: PortIndex, frame: &[u8]) {
        let Some(mut packet) = self.memory.packet_from(frame) else { return };
        packet.ingress = port;
        self.counters.event(Event::FramesMade).add(1);
        self.send_back(packet);
    }

    /// Sends a frame out of the port it came by, as it is.
    fn send_back(&mut self, packet: Packet) {
        let egress = packet.ingress;
        self.transmit.enqueue(&mut outlet!(self), egress, packet, &Layout::default());
    }

    /// Routes a frame of the switch's own in the segment that `frame` came by.
    fn route_own(&mut self, frame: &FrameReading, mut packet: Packet) {
        let Ok(headers) = parse(self.memory.head(&packet), packet.length()) else {
            return outlet!(self).drop(packet, DropReason::NoRoute);
        };
        let Some(segment) = routed_segment(&self.tables, frame, &packet).map(|(index, _)| index) else {
            return outlet!(self).drop(packet, DropReason::NoRoute);
        };
        let own = FrameReading { headers, inner_offset: 0, outer_traffic_class: 0, tunnel: None, ..*frame };
        let head = self.memory.head(&packet);
        let arrival = Arrival { port: packet.ingress, tunnel: None, frame: head, headers: &own.headers, gso: None };
        let decision = slow_path::route_own(&self.tables, &self.state, &arrival, segment, self.now);
        let outlet = &mut outlet!(self);
        let Verdict::Forward(forward) = decision.verdict else {
            return outlet.drop(packet, DropReason::NoRoute);
        };
        let subject = subject(&own, u64::from(headers.source[3]) << 17);
        let compiled = CompiledRewrite::new(&forward.rewrite);
        match edit::apply(outlet.memory, &mut packet, &subject, &compiled, &forward.translation) {
            Ok(layout) => self.transmit.enqueue(outlet, forward.egress, packet, &layout),
            Err(reason) => outlet.drop(packet, reason),
        }
    }
}

fn event_of(rejection: Rejection) -> Event {
    match rejection {
        Rejection::TimeExceeded => Event::RepliesTimeExceeded,
        Rejection::TooBig { .. } => Event::RepliesTooBig,
        Rejection::NoRoute => Event::RepliesUnreachable,
        Rejection::PortUnreachable => Event::RepliesPortUnreachable,
        Rejection::Reset => Event::RepliesReset,
    }
}

/// The routed segment a packet came by.
fn routed_segment<'a>(
    tables: &'a Snapshot,
    frame: &FrameReading,
    packet: &Packet,
) -> Option<(SegmentIndex, &'a RoutedSegment)> {
    let index = match frame.tunnel {
        Some(tunnel) => tables.segments.by_vni(tunnel.vni)?,
        None => match &tables.ports.get(packet.ingress)?.role {
            PortRole::Pod(pod) => pod.segment,
            PortRole::Host(host) => host.segment,
            // From outside: what it calls is in the host's segment.
            PortRole::Uplink(uplink) => match &tables.ports.get(uplink.hand_back?.port)?.role {
                PortRole::Host(host) => host.segment,
                _ => return None,
            },
            PortRole::Bridged(_) | PortRole::Mirror => return None,
        },
    };
    match tables.segments.get(index).map(AsRef::as_ref) {
        Some(Segment { kind: SegmentKind::Routed(routed), .. }) => Some((index, routed)),
        _ => None,
    }
}

fn gateway_mac(tables: &Snapshot, frame: &FrameReading, packet: &Packet) -> Option<Mac> {
    routed_segment(tables, frame, packet).map(|(_, routed)| routed.gateway_mac)
}

fn write_rejection(
    target: &mut [u8],
    rejection: Rejection,
    inner: &[u8],
    about: &Headers,
    routed: &RoutedSegment,
) -> Option<usize> {
    if rejection == Rejection::Reset {
        return tcp::write_reset_frame(target, inner, about, routed.gateway_mac);
    }
    match routed.source_towards(about.source_address())? {
        IpAddr::V4(source) => {
            let error = match rejection {
                Rejection::TimeExceeded => icmp::Error::TimeExceeded,
                Rejection::TooBig { mtu } => icmp::Error::FragmentationNeeded { mtu: mtu.min(65535) as u16 },
                Rejection::NoRoute => icmp::Error::Unreachable { code: icmp::unreachable::HOST },
                Rejection::PortUnreachable | Rejection::Reset => {
                    icmp::Error::Unreachable { code: icmp::unreachable::PORT }
                }
            };
            icmp::write_error_frame(target, error, inner, about, routed.gateway_mac, source.octets())
        }
        IpAddr::V6(source) => {
            let error = match rejection {
                Rejection::TimeExceeded => icmpv6::Error::TimeExceeded,
                Rejection::TooBig { mtu } => icmpv6::Error::PacketTooBig { mtu },
                Rejection::NoRoute => icmpv6::Error::Unreachable { code: icmpv6::unreachable::NO_ROUTE },
                Rejection::PortUnreachable | Rejection::Reset => {
                    icmpv6::Error::Unreachable { code: icmpv6::unreachable::PORT }
                }
            };
            icmpv6::write_error_frame(target, error, inner, about, routed.gateway_mac, &source.octets())
        }
    }
}
