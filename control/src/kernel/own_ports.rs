//! Ports of the host's own addresses that are the switch's: what the host's sockets send there goes by its own port.
//!
//! A packet to an own address never leaves the kernel: the table `local`, which is asked first, leads it to `lo`. So the rule
//! for that table is moved behind rules of our own ([`LOCAL_PRIORITY`]), and these lead locally made packets to such a port
//! into a table of our own, whose routes are the own addresses by the gateway of the switch (ip-rule(8); ports in rules since
//! Linux 4.17). Nothing is rewritten, so a socket knows its peer by the address that it called, in every protocol.
//!
//! The kernel walks the rules for each route it looks up. So there are few: neighbouring ports share one, and if
//! [`OWN_PORT_RULES`] do not suffice the nearest ranges become one. A port in between then goes by the switch too, and comes
//! back to the host as it would have by `lo`.
//!
//! Ports at loopback addresses (`hostIP: 127.0.0.1`) have rules for their very address and a table of their own, so that nothing
//! else that the host sends there leaves `lo`; they are never joined over a gap. IPv6 has no such way: the kernel takes nothing to
//! or from ::1 that does not come by `lo`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use millrace_engine::limits::OWN_PORT_RULES;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};

use super::routes::ROUTE_PROTOCOL;
use super::{GuardedPorts, KernelError, Netlink, Route, unless_absent};

/// Number of our table.
pub const OWN_PORTS_TABLE: u8 = 77;
/// Number of our table for loopback addresses.
pub const LOOPBACK_PORTS_TABLE: u8 = 78;
/// The kernel's table of own addresses (rtnetlink(7), `RT_TABLE_LOCAL`).
const LOCAL_TABLE: u8 = 255;
/// Priority of our rules; smaller ones are asked earlier.
const RULE_PRIORITY: u32 = 77;
/// Priority of the rule for the table `local` while there are rules of ours.
const LOCAL_PRIORITY: u32 = 100;
/// Its priority as the kernel makes it.
const LOCAL_FIRST: u32 = 0;

/// Ports of a protocol at the host's own addresses of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnPorts {
    /// Of which family.
    pub ipv4: bool,
    /// At this loopback address, instead of all that are none.
    pub loopback: Option<Ipv4Addr>,
    /// IP protocol number.
    pub protocol: u8,
    /// The first port.
    pub first: u16,
    /// The last, itself included.
    pub last: u16,
}

impl OwnPorts {
    /// As few ranges as hold all of these ports, given as family, protocol and port, and [`OWN_PORT_RULES`] at most of ports
    /// at loopback addresses (`loopback`, as address, protocol and port), the lowest.
    #[must_use]
    pub fn covering(ports: &BTreeSet<(bool, u8, u16)>, loopback: &BTreeSet<(Ipv4Addr, u8, u16)>) -> BTreeSet<OwnPorts> {
        let mut ranges = neighbours(ports.iter().map(|(ipv4, protocol, port)| (*ipv4, None, *protocol, *port)));
        join_nearest(&mut ranges);
        let apart =
            neighbours(loopback.iter().map(|(address, protocol, port)| (true, Some(*address), *protocol, *port)));
        ranges.extend(apart.into_iter().take(OWN_PORT_RULES));
        ranges.into_iter().collect()
    }

    fn is_like(&self, other: &OwnPorts) -> bool {
        (self.ipv4, self.loopback, self.protocol) == (other.ipv4, other.loopback, other.protocol)
    }

    fn rule(&self) -> RuleMessage {
        let table = if self.loopback.is_some() { LOOPBACK_PORTS_TABLE } else { OWN_PORTS_TABLE };
        let mut message = rule(self.ipv4, table, RULE_PRIORITY);
        if let Some(address) = self.loopback {
            message.header.dst_len = Ipv4Addr::BITS as u8;
            message.attributes.push(RuleAttribute::Destination(address.into()));
        }
        message.attributes.extend([
            RuleAttribute::Iifname("lo".to_owned()),
            RuleAttribute::IpProtocol(IpProtocol::from(i32::from(self.protocol))),
            RuleAttribute::DestinationPortRange(RulePortRange { start: self.first, end: self.last }),
            RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
        ]);
        message
    }

    fn read(message: &RuleMessage) -> Option<OwnPorts> {
        let loopback = message.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Destination(IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
        let ours = (message.header.table == LOOPBACK_PORTS_TABLE || message.header.table == OWN_PORTS_TABLE)
            && priority(message) == RULE_PRIORITY;
        let protocol = message.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::IpProtocol(protocol) => u8::try_from(i32::from(*protocol)).ok(),
            _ => None,
        });
        let ports = message.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::DestinationPortRange(range) => Some(*range),
            _ => None,
        });
        let (protocol, RulePortRange { start, end }) = (protocol.filter(|_| ours)?, ports?);
        let ipv4 = message.header.family == AddressFamily::Inet;
        Some(OwnPorts { ipv4, loopback, protocol, first: start, last: end })
    }
}

/// Ranges of ports that follow one another; given as family, loopback address, protocol and port, in order.
fn neighbours(ports: impl Iterator<Item = (bool, Option<Ipv4Addr>, u8, u16)>) -> Vec<OwnPorts> {
    let mut ranges: Vec<OwnPorts> = Vec::new();
    for (ipv4, loopback, protocol, port) in ports {
        let single = OwnPorts { ipv4, loopback, protocol, first: port, last: port };
        match ranges.last_mut() {
            Some(range) if range.is_like(&single) && range.last.checked_add(1) == Some(port) => range.last = port,
            _ => ranges.push(single),
        }
    }
    ranges
}

/// Joins neighbours, the nearest first, until there are few enough. There are six sorts of range at most.
fn join_nearest(ranges: &mut Vec<OwnPorts>) {
    while ranges.len() > OWN_PORT_RULES {
        let gap = |at: &usize| {
            let (one, next) = (ranges[*at], ranges[at + 1]);
            one.is_like(&next).then(|| next.first - one.last)
        };
        let nearest = (0..ranges.len() - 1).filter(|at| gap(at).is_some()).min_by_key(gap);
        let Some(at) = nearest else { return };
        ranges[at].last = ranges.remove(at + 1).last;
    }
}

pub(super) fn rule(ipv4: bool, table: u8, priority: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.table = table;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::Priority(priority)];
    message
}

/// The kernel leaves priority 0 out.
pub(super) fn priority(message: &RuleMessage) -> u32 {
    let said = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    };
    message.attributes.iter().find_map(said).unwrap_or(LOCAL_FIRST)
}

impl Netlink {
    /// Has what the host sends to these ports of its own addresses go by these routes of our tables, and nothing else; and
    /// nobody answer for the `guarded` ones, which are left as they are without a set. May be repeated, and writes only what differs.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_own_ports(
        &mut self,
        routes: &BTreeMap<IpAddr, Route>,
        ports: &BTreeSet<OwnPorts>,
        guarded: Option<&BTreeSet<GuardedPorts>>,
    ) -> Result<(), KernelError> {
        let rules = self.rules()?;
        let left_alone: BTreeSet<GuardedPorts> = rules.iter().filter_map(GuardedPorts::read).collect();
        let guarded = guarded.unwrap_or(&left_alone);
        self.set_own_routes(routes)?;
        for ipv4 in [true, false] {
            let guarded = || guarded.iter().filter(|ports| ports.address.is_ipv4() == ipv4);
            let wanted = ports.iter().any(|ports| ports.ipv4 == ipv4) || guarded().next().is_some();
            let known = || rules.iter().filter(|rule| (rule.header.family == AddressFamily::Inet) == ipv4);
            if wanted {
                self.move_local_table(ipv4, known(), LOCAL_FIRST, LOCAL_PRIORITY)?;
            }
            let present: BTreeSet<OwnPorts> = known().filter_map(OwnPorts::read).collect();
            let present_guarded: BTreeSet<GuardedPorts> = known().filter_map(GuardedPorts::read).collect();
            // Only what this program moved is moved back, and first: a process that ends in between leaves its mark.
            let has_rules = !present.is_empty() || !present_guarded.is_empty();
            if !wanted && has_rules {
                self.move_local_table(ipv4, known(), LOCAL_PRIORITY, LOCAL_FIRST)?;
            }
            self.set_guarded_ports(&guarded().cloned().collect(), &present_guarded)?;
            for added in ports.iter().filter(|ports| ports.ipv4 == ipv4 && !present.contains(ports)) {
                let attempt = || format!("have {added:?} go by the switch");
                self.request(RouteNetlinkMessage::NewRule(added.rule()), NLM_F_CREATE | NLM_F_EXCL, attempt)?;
            }
            for gone in present.difference(ports) {
                let attempt = || format!("have {gone:?} go by the host again");
                unless_absent(self.request(RouteNetlinkMessage::DelRule(gone.rule()), 0, attempt).map(|_| ()))?;
            }
        }
        Ok(())
    }

    fn set_guarded_ports(
        &mut self,
        wanted: &BTreeSet<GuardedPorts>,
        present: &BTreeSet<GuardedPorts>,
    ) -> Result<(), KernelError> {
        for added in wanted.difference(present) {
            let attempt = || format!("have nobody answer for {added:?} without an agent");
            self.request(RouteNetlinkMessage::NewRule(added.rule()), NLM_F_CREATE | NLM_F_EXCL, attempt)?;
        }
        for gone in present.difference(wanted) {
            let attempt = || format!("have the host answer for {gone:?} again");
            unless_absent(self.request(RouteNetlinkMessage::DelRule(gone.rule()), 0, attempt).map(|_| ()))?;
        }
        Ok(())
    }

    fn set_own_routes(&mut self, wanted: &BTreeMap<IpAddr, Route>) -> Result<(), KernelError> {
        let mut present = self.routes_of(OWN_PORTS_TABLE)?;
        present.extend(self.routes_of(LOOPBACK_PORTS_TABLE)?);
        for route in wanted.values() {
            let same = |known: &Route| {
                (known.destination, known.link, known.source) == (route.destination, route.link, route.source)
            };
            if !present.iter().any(same) {
                self.set_route(route)?;
            }
        }
        for route in present.iter().filter(|route| !wanted.contains_key(&route.destination.addr())) {
            self.delete_route(route)?;
        }
        Ok(())
    }

    /// First the new place, then the old one is left: there is no moment without.
    fn move_local_table<'a>(
        &mut self,
        ipv4: bool,
        mut known: impl Iterator<Item = &'a RuleMessage> + Clone,
        from: u32,
        to: u32,
    ) -> Result<(), KernelError> {
        let is_local = |rule: &RuleMessage, at| rule.header.table == LOCAL_TABLE && priority(rule) == at;
        if !known.clone().any(|rule| is_local(rule, to)) {
            let attempt = || format!("ask the table `local` at priority {to}");
            let message = rule(ipv4, LOCAL_TABLE, to);
            self.request(RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL, attempt)?;
        }
        if known.any(|rule| is_local(rule, from)) {
            let attempt = || format!("ask the table `local` no more at priority {from}");
            let message = rule(ipv4, LOCAL_TABLE, from);
            unless_absent(self.request(RouteNetlinkMessage::DelRule(message), 0, attempt).map(|_| ()))?;
        }
        Ok(())
    }

    fn rules(&mut self) -> Result<Vec<RuleMessage>, KernelError> {
        let items = self.dump(RouteNetlinkMessage::GetRule(RuleMessage::default()), || "list the rules".to_owned())?;
        Ok(items
            .into_iter()
            .filter_map(|item| match item {
                RouteNetlinkMessage::NewRule(message) => Some(message),
                _ => None,
            })
            .collect())
    }
}

/// The routes of our tables: each own address by the switch's gateway.
#[must_use]
pub fn own_routes<'a>(
    addresses: impl IntoIterator<Item = &'a IpAddr>,
    gateway: impl Fn(bool) -> Option<(IpAddr, IpAddr)>,
    link: u32,
) -> BTreeMap<IpAddr, Route> {
    let route = |address: &IpAddr| {
        let (gateway, source) = gateway(address.is_ipv4())?;
        let route = Route::by_gateway(IpNet::from(*address), gateway, link);
        let table = if address.is_loopback() { LOOPBACK_PORTS_TABLE } else { OWN_PORTS_TABLE };
        Some((*address, Route { source: Some(source), table, ..route }))
    };
    addresses.into_iter().filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covering(ports: impl IntoIterator<Item = (bool, u8, u16)>) -> Vec<(bool, u8, u16, u16)> {
        let ranges = OwnPorts::covering(&ports.into_iter().collect(), &BTreeSet::new());
        ranges.into_iter().map(|range| (range.ipv4, range.protocol, range.first, range.last)).collect()
    }

    #[test]
    fn neighbouring_ports_share_a_rule() {
        let ports = [(true, 6, 30_001), (true, 6, 30_000), (true, 6, 30_003), (true, 17, 30_002), (false, 6, 65_535)];
        let expected = [
            (false, 6, 65_535, 65_535),
            (true, 6, 30_000, 30_001),
            (true, 6, 30_003, 30_003),
            (true, 17, 30_002, 30_002),
        ];
        assert_eq!(covering(ports), expected);
        assert_eq!(covering([]), []);
    }

    #[test]
    fn too_many_ranges_are_joined_where_little_lies_between() {
        let scattered = (0..OWN_PORT_RULES as u16).map(|number| (true, 6, 1_000 + 10 * number));
        let near = [(true, 6, 40_000), (true, 6, 40_002), (true, 17, 1_000)];
        let ranges = covering(scattered.chain(near));
        assert_eq!(ranges.len(), OWN_PORT_RULES);
        assert!(
            ranges.contains(&(true, 6, 40_000, 40_002)) && ranges.contains(&(true, 17, 1_000, 1_000)),
            "{ranges:?}"
        );
        assert!(ranges.contains(&(true, 6, 1_000 + 630, 1_000 + 630)), "{ranges:?}");
    }
    #[test]
    fn ports_at_loopback_addresses_are_never_joined_over_a_gap() {
        let (one, other) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 9));
        let scattered = (0..100).map(|number| (one, 6, 1_000 + 2 * number));
        let ports: BTreeSet<(Ipv4Addr, u8, u16)> = scattered.chain([(one, 6, 1_001)]).collect();
        let ranges: Vec<OwnPorts> =
            OwnPorts::covering(&BTreeSet::from([(true, 6, 1_003)]), &ports).into_iter().collect();
        let (apart, plain): (Vec<OwnPorts>, Vec<OwnPorts>) =
            ranges.into_iter().partition(|range| range.loopback.is_some());
        assert_eq!(plain, [OwnPorts { ipv4: true, loopback: None, protocol: 6, first: 1_003, last: 1_003 }]);
        assert_eq!(apart.len(), OWN_PORT_RULES);
        assert_eq!((apart[0].first, apart[0].last), (1_000, 1_002));
        assert!(apart[1..].iter().all(|range| range.first == range.last));
        let two = OwnPorts::covering(&BTreeSet::new(), &BTreeSet::from([(one, 6, 80), (other, 6, 81)]));
        assert_eq!(two.len(), 2, "of different addresses none is the other's neighbour");
        for ports in two {
            assert_eq!(OwnPorts::read(&ports.rule()), Some(ports));
        }
    }
}
