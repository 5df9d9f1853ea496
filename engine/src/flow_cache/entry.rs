//! What a flow's entry holds: all a hit needs in one line (IPv4) or two (IPv6), all a change needs beside it.

use std::net::IpAddr;

use super::bucket::NO_SLOT;
use super::key::FlowKey;
use crate::edit::new_ends::{self, NewEnds};
use crate::limits;
use crate::packet::parse::protocol;
use crate::packet::{Mac, PortIndex};
use crate::slow_path::decision::{Dependencies, Forward};
use crate::state::ConnectionReference;
use crate::tables::SegmentIndex;

const IN_USE: u8 = 1;
const BRIDGED: u8 = 1 << 1;

/// The hot half. `bytes` is kept as 16 high and 32 low bits: 48 bits are 256 TiB of one flow.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Entry<K: FlowKey> {
    pub(super) key: K,
    pub(super) rewrite: u16,
    egress: u16,
    bytes_high: u16,
    flags: u8,
    /// Which sides are translated, see [`NewEnds`].
    translated: u8,
    ends: K::Ends,
    pub(super) last_seen_ms: u32,
    /// Hits since the entry was written; stays at the highest number.
    pub(super) packets: u32,
    bytes_low: u32,
}

const _: () = assert!(size_of::<Entry<super::key::Ipv4Key>>() == 64);
const _: () = assert!(size_of::<Entry<super::key::Ipv6Key>>() == 128);

impl<K: FlowKey> Entry<K> {
    /// An entry of no flow.
    pub(super) const FREE: Self = Self {
        key: K::EMPTY,
        rewrite: 0,
        egress: 0,
        bytes_high: 0,
        flags: 0,
        translated: 0,
        ends: K::NO_ENDS,
        last_seen_ms: 0,
        packets: 0,
        bytes_low: 0,
    };

    /// The entry of a flow that is seen for the first time.
    pub(super) fn new(key: K, forward: &Forward, rewrite: u16, bridged: bool, now_ms: u32) -> Self {
        let mut entry = Self { key, last_seen_ms: now_ms, ..Self::FREE };
        entry.set_action(forward, rewrite, bridged);
        entry
    }

    /// Replaces what is done to the flow; what was counted stays. `bridged`: its packets keep a learned station alive.
    pub(super) fn set_action(&mut self, forward: &Forward, rewrite: u16, bridged: bool) {
        self.flags = IN_USE | if bridged { BRIDGED } else { 0 };
        self.egress = forward.egress.0;
        self.rewrite = rewrite;
        self.ends = self.key.ends();
        self.translated = new_ends::write(self.ends.as_mut(), &forward.translation);
    }

    /// Marks the entry as no flow's; no tag leads to it any more.
    pub(super) fn set_free(&mut self) {
        self.flags = 0;
    }

    /// Whether a flow has this entry.
    #[inline]
    pub(super) fn in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }

    /// Whether a bridge decided the flow.
    #[inline]
    pub(super) fn is_bridged(&self) -> bool {
        self.flags & BRIDGED != 0
    }

    /// Whether a packet was served from it since it was written.
    #[inline]
    pub(super) fn is_established(&self) -> bool {
        self.packets != 0
    }

    /// Counts a packet.
    #[inline]
    pub(super) fn count(&mut self, bytes: usize, now_ms: u32) {
        self.last_seen_ms = now_ms;
        self.packets = self.packets.saturating_add(1);
        let (low, carry) = self.bytes_low.overflowing_add(bytes as u32);
        self.bytes_low = low;
        self.bytes_high = self.bytes_high.wrapping_add(u16::from(carry));
    }

    /// Bytes of the packets counted.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.bytes_high) << 32 | u64::from(self.bytes_low)
    }

    /// Port that packets leave by.
    #[inline]
    pub(super) fn egress(&self) -> PortIndex {
        PortIndex(self.egress)
    }

    /// New addresses and ports.
    #[inline]
    pub(super) fn ends(&self) -> NewEnds<'_> {
        NewEnds::new(self.ends.as_ref(), self.translated)
    }

    /// Milliseconds since the last packet.
    #[inline]
    pub(super) fn idle_ms(&self, now_ms: u32) -> u32 {
        elapsed_ms(now_ms, self.last_seen_ms)
    }

    /// Whether the flow has been silent for as long as its protocol allows.
    #[inline]
    pub(super) fn is_expired(&self, now_ms: u32) -> bool {
        self.idle_ms(now_ms) >= idle_limit_ms(self.key.protocol())
    }
}

/// Milliseconds from `earlier` to `now`, both counted modulo 2^32; 0 if `earlier` lies up to a minute ahead.
#[inline]
pub(super) fn elapsed_ms(now: u32, earlier: u32) -> u32 {
    const AHEAD_MS: u32 = 60_000;
    let elapsed = now.wrapping_sub(earlier);
    if elapsed > u32::MAX - AHEAD_MS { 0 } else { elapsed }
}

/// How long an entry of this protocol may stay without packets. Only the cache forgets: the connection lives on.
#[inline]
fn idle_limit_ms(number: u8) -> u32 {
    match number {
        protocol::TCP | protocol::SCTP => limits::FLOW_IDLE_TCP_MS,
        protocol::UDP => limits::FLOW_IDLE_UDP_MS,
        _ => limits::FLOW_IDLE_OTHER_MS,
    }
}

/// The cold half, read when tables change and when the flow is written back: what the verdict rests on, whose packets
/// these are, and where the flow's tag is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cold {
    /// See [`Dependencies`].
    pub(super) dependencies: Dependencies,
    /// The connection that packets of the flow belong to; [`ConnectionReference::NONE`] where none is tracked.
    pub(super) connection: ConnectionReference,
    /// The flow's home bucket; [`NO_SLOT`] where no flow has the entry.
    pub(super) home: u32,
}

const _: () = assert!(size_of::<Cold>() <= 104);

impl Cold {
    /// Of no flow.
    pub(super) const FREE: Cold = Cold {
        dependencies: Dependencies {
            ingress: PortIndex(0),
            egress: PortIndex(0),
            segment: SegmentIndex(0),
            source: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            destination: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            ingress_peer: None,
            egress_peer: None,
            source_mac: Mac::ZERO,
            destination_mac: Mac::ZERO,
            service: 0,
        },
        connection: ConnectionReference::NONE,
        home: NO_SLOT,
    };

    /// Whether a flow has this entry.
    #[inline]
    pub(super) fn in_use(&self) -> bool {
        self.home != NO_SLOT
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Ipv4Key;
    use super::*;

    #[test]
    fn bytes_carry_beyond_32_bits() {
        let mut entry = Entry::<Ipv4Key>::FREE;
        for _ in 0..70_000 {
            entry.count(65_535, 9);
        }
        assert_eq!((entry.bytes(), entry.packets, entry.last_seen_ms), (70_000 * 65_535, 70_000, 9));
    }

    #[test]
    fn time_that_wraps_still_passes() {
        let cases = [(5, 2, 3), (2, u32::MAX, 3), (100, 200, 0), (0, 59_999, 0), (0x8000_0000, 0, 0x8000_0000)];
        for (now, earlier, elapsed) in cases {
            assert_eq!(elapsed_ms(now, earlier), elapsed, "{now} - {earlier}");
        }
    }
}
