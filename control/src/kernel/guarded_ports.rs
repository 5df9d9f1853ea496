//! Ports of the host's own addresses that only the switch serves: while there is no agent, nobody answers for them.
//!
//! While an agent runs, the steering program takes what comes for them by an uplink before the kernel sees it. Without one
//! the kernel has no socket there: it would reset TCP connections that are masqueraded or go to a node port, and refuse
//! datagrams with ICMP, and what was to outlive a restart is gone. So rules of the routing drop it (ip-rule(8),
//! `blackhole`), for the very addresses, protocols and ports, where it comes in by an uplink: what the switch hands back
//! comes by the host's own port and passes. A peer then sends once more, as after any loss.
//!
//! Ranges are never joined over a gap, since a port in between is the host's. [`GUARD_RULES`] at most; a port beyond them is
//! refused while there is no agent, and so is 65535, which no range of the kernel's rules may hold.

use std::collections::BTreeSet;
use std::net::IpAddr;

use millrace_engine::limits::GUARD_RULES;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol};

use super::own_ports;
use super::routes::ROUTE_PROTOCOL;

/// The last port that a rule may name (net/core/fib_rules.c, `fib_rule_port_range_valid`).
const LAST_PORT: u16 = u16::MAX - 1;
/// Priority of these rules: before all others of ours, and before the kernel's table of own addresses.
const GUARD_PRIORITY: u32 = 76;

/// Ports of a protocol at one of the host's own addresses, as they come in by one interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuardedPorts {
    /// The interface.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The first port.
    pub first: u16,
    /// The last, itself included.
    pub last: u16,
}

impl GuardedPorts {
    /// These ranges, and as few more as hold these single ports (address, protocol, port), at each of these interfaces; as
    /// many as there may be, the given ranges first.
    #[must_use]
    pub fn covering(
        interfaces: &BTreeSet<String>,
        ranges: impl IntoIterator<Item = (IpAddr, u8, u16, u16)>,
        ports: &BTreeSet<(IpAddr, u8, u16)>,
    ) -> BTreeSet<GuardedPorts> {
        let mut all: Vec<(IpAddr, u8, u16, u16)> = ranges.into_iter().collect();
        let given = all.len();
        for (address, protocol, port) in ports {
            match all[given..].last_mut() {
                Some((at, of, _, last))
                    if (&*at, &*of) == (address, protocol) && last.checked_add(1) == Some(*port) =>
                {
                    *last = *port;
                }
                _ => all.push((*address, *protocol, *port, *port)),
            }
        }
        let named = all.into_iter().map(|(address, of, first, last)| (address, of, first, last.min(LAST_PORT)));
        let each = named.filter(|(_, _, first, last)| first <= last).flat_map(|(address, protocol, first, last)| {
            let guarded = move |interface: &String| {
                let interface = interface.clone();
                GuardedPorts { interface, address, protocol, first, last }
            };
            interfaces.iter().map(guarded)
        });
        each.take(GUARD_RULES).collect()
    }

    pub(super) fn rule(&self) -> RuleMessage {
        let mut message = own_ports::rule(self.address.is_ipv4(), 0, GUARD_PRIORITY);
        message.header.action = RuleAction::Blackhole;
        message.header.dst_len = if self.address.is_ipv4() { 32 } else { 128 };
        message.attributes.extend([
            RuleAttribute::Destination(self.address),
            RuleAttribute::Iifname(self.interface.clone()),
            RuleAttribute::IpProtocol(IpProtocol::from(i32::from(self.protocol))),
            RuleAttribute::DestinationPortRange(RulePortRange { start: self.first, end: self.last }),
            RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
        ]);
        message
    }

    pub(super) fn read(message: &RuleMessage) -> Option<GuardedPorts> {
        let ours = message.header.action == RuleAction::Blackhole && own_ports::priority(message) == GUARD_PRIORITY;
        let (mut interface, mut address, mut protocol, mut ports) = (None, None, None, None);
        for attribute in message.attributes.iter().filter(|_| ours) {
            match attribute {
                RuleAttribute::Iifname(name) => interface = Some(name.clone()),
                RuleAttribute::Destination(to) => address = Some(*to),
                RuleAttribute::IpProtocol(number) => protocol = u8::try_from(i32::from(*number)).ok(),
                RuleAttribute::DestinationPortRange(range) => ports = Some(*range),
                _ => {}
            }
        }
        let RulePortRange { start: first, end: last } = ports?;
        let address = address?;
        debug_assert!((message.header.family == AddressFamily::Inet) == address.is_ipv4());
        Some(GuardedPorts { interface: interface?, address, protocol: protocol?, first, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_rule_and_gaps_are_the_hosts() {
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), "2001:db8::1".parse().expect("address"));
        let ports = [
            (one, 6, 30_000),
            (one, 6, 30_001),
            (one, 6, 30_003),
            (one, 17, 30_002),
            (other, 6, 65_534),
            (other, 6, 65_535),
        ];
        let interfaces = BTreeSet::from(["eth1".to_owned()]);
        let ranges = [(one, 6, 50_000, 59_999)];
        let guarded = GuardedPorts::covering(&interfaces, ranges, &ports.into_iter().collect());
        let short = |guarded: &GuardedPorts| (guarded.address, guarded.protocol, guarded.first, guarded.last);
        let expected = [
            (one, 6, 30_000, 30_001),
            (one, 6, 30_003, 30_003),
            (one, 6, 50_000, 59_999),
            (one, 17, 30_002, 30_002),
            (other, 6, 65_534, 65_534),
        ];
        assert_eq!(guarded.iter().map(short).collect::<Vec<_>>(), expected);
        for ports in guarded {
            assert_eq!(GuardedPorts::read(&ports.rule()), Some(ports));
        }
    }

    #[test]
    fn there_are_only_so_many() {
        let one = IpAddr::from([192, 0, 2, 1]);
        let scattered: BTreeSet<_> = (0..1000).map(|number| (one, 6, 2 * number)).collect();
        let interfaces = BTreeSet::from(["eth1".to_owned(), "eth2".to_owned()]);
        let guarded = GuardedPorts::covering(&interfaces, [(one, 17, 50_000, 59_999)], &scattered);
        assert_eq!(guarded.len(), GUARD_RULES);
        assert_eq!(guarded.iter().filter(|ports| ports.protocol == 17).count(), 2, "ranges come first");
    }
}
