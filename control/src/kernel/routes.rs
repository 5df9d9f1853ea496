//! Routes of the main table, and where the kernel would send a packet.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{KernelError, Netlink, unless_absent};

/// The number under which the kernel remembers who made a route (rtnetlink(7), `rtm_protocol`): not assigned in
/// `/etc/iproute2/rt_protos`, and shown by `ip route` as `proto 77`.
pub const ROUTE_PROTOCOL: u8 = 77;

/// A route, of the main table unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// By which neighbour; none if the destination itself is on the link.
    pub gateway: Option<IpAddr>,
    /// Number of the link it leaves by; none for a blackhole.
    pub link: Option<u32>,
    /// The gateway is on the link although no address of the link says so.
    pub onlink: bool,
    /// Source address the host's own sockets prefer.
    pub source: Option<IpAddr>,
    /// MTU towards this destination.
    pub mtu: Option<u32>,
    /// Drops what it covers, without an ICMP error.
    pub blackhole: bool,
    /// The table it stands in, mostly the main one.
    pub table: u8,
}

impl Route {
    /// The destination is directly on `link`.
    #[must_use]
    pub fn on_link(destination: IpNet, link: u32) -> Self {
        Self { link: Some(link), ..Self::blackhole(destination) }.passable()
    }

    /// The destination lies behind `gateway`, which is on `link` whatever the addresses say.
    #[must_use]
    pub fn by_gateway(destination: IpNet, gateway: IpAddr, link: u32) -> Self {
        Self { gateway: Some(gateway), link: Some(link), onlink: true, ..Self::blackhole(destination) }.passable()
    }

    /// The destination is not reachable: what keeps an unused part of a range off the default route.
    #[must_use]
    pub fn blackhole(destination: IpNet) -> Self {
        Self {
            destination: destination.trunc(),
            gateway: None,
            link: None,
            onlink: false,
            source: None,
            mtu: None,
            blackhole: true,
            table: RouteHeader::RT_TABLE_MAIN,
        }
    }

    fn passable(mut self) -> Self {
        self.blackhole = false;
        self
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(self.destination.addr());
        header.destination_prefix_length = self.destination.prefix_len();
        header.table = self.table;
        header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        header.kind = if self.blackhole { RouteType::BlackHole } else { RouteType::Unicast };
        let direct = !self.blackhole && self.gateway.is_none() && self.destination.addr().is_ipv4();
        header.scope = if direct { RouteScope::Link } else { RouteScope::Universe };
        if self.onlink {
            header.flags |= RouteFlags::Onlink;
        }
        let attributes = [
            (self.destination.prefix_len() > 0)
                .then(|| RouteAttribute::Destination(RouteAddress::from(self.destination.addr()))),
            self.gateway.map(|address| RouteAttribute::Gateway(address.into())),
            self.link.map(RouteAttribute::Oif),
            self.source.map(|address| RouteAttribute::PrefSource(address.into())),
            self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])),
        ];
        message.attributes = attributes.into_iter().flatten().collect();
        message
    }

    pub(super) fn read(message: &RouteMessage) -> Option<Route> {
        let zero: IpAddr = match message.header.address_family {
            AddressFamily::Inet => [0u8; 4].into(),
            AddressFamily::Inet6 => [0u8; 16].into(),
            _ => return None,
        };
        let mut route = Route::blackhole(IpNet::new(zero, message.header.destination_prefix_length).ok()?);
        route.blackhole = message.header.kind == RouteType::BlackHole;
        route.table = message.header.table;
        route.onlink = message.header.flags.contains(RouteFlags::Onlink);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    route.destination = IpNet::new(ip(address)?, message.header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(address) => route.gateway = ip(address),
                RouteAttribute::Oif(index) => route.link = Some(*index),
                RouteAttribute::PrefSource(address) => route.source = ip(address),
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Some(route)
    }
}

/// Where the kernel would send a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteLookup {
    /// Number of the link it would leave by.
    pub link: u32,
    /// Whose MAC address it would carry: the gateway, or the destination itself.
    pub next_hop: IpAddr,
    /// The source address it would carry.
    pub source: Option<IpAddr>,
    /// MTU of the route, if it has one of its own.
    pub mtu: Option<u32>,
}

/// A route of the host's own, as far as the way of a packet goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// Where to, by which neighbour and link. Of several next hops it is the first.
    pub route: Route,
    /// Of two routes to one destination the one with the smaller number counts (`metric` of `ip route`).
    pub metric: u32,
}

impl HostRoute {
    fn read(message: &RouteMessage) -> Option<HostRoute> {
        let mut found = HostRoute { route: Route::read(message)?, metric: 0 };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Priority(metric) => found.metric = *metric,
                RouteAttribute::MultiPath(hops) => {
                    let hop = hops.first()?;
                    found.route.link = Some(hop.interface_index);
                    found.route.gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Gateway(address) => ip(address),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Some(found)
    }
}

impl Netlink {
    /// The routes of the main table that lead by a link.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn host_routes(&mut self) -> Result<Vec<HostRoute>, KernelError> {
        let items =
            self.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()), || "list the routes".to_owned())?;
        let counts = |message: &RouteMessage| {
            message.header.kind == RouteType::Unicast && message.header.table == RouteHeader::RT_TABLE_MAIN
        };
        Ok(items
            .iter()
            .filter_map(|item| match item {
                RouteNetlinkMessage::NewRoute(message) if counts(message) => HostRoute::read(message),
                _ => None,
            })
            .collect())
    }

    /// Sets a route, in place of one with the same destination. May be repeated.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_route(&mut self, route: &Route) -> Result<(), KernelError> {
        let attempt = || format!("set route {route}");
        self.request(RouteNetlinkMessage::NewRoute(route.message()), NLM_F_CREATE | NLM_F_REPLACE, attempt).map(|_| ())
    }

    /// Deletes a route. False if there was none.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn delete_route(&mut self, route: &Route) -> Result<bool, KernelError> {
        let attempt = || format!("delete route {route}");
        unless_absent(self.request(RouteNetlinkMessage::DelRoute(route.message()), 0, attempt).map(|_| ()))
    }

    /// The routes of the main table that this program made.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn own_routes(&mut self) -> Result<Vec<Route>, KernelError> {
        self.routes_of(RouteHeader::RT_TABLE_MAIN)
    }

    /// The routes of this table that this program made.
    pub(super) fn routes_of(&mut self, table: u8) -> Result<Vec<Route>, KernelError> {
        let items =
            self.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()), || "list the routes".to_owned())?;
        Ok(items
            .iter()
            .filter_map(|item| match item {
                RouteNetlinkMessage::NewRoute(message)
                    if message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
                        && message.header.table == table =>
                {
                    Route::read(message)
                }
                _ => None,
            })
            .collect())
    }

    /// Where the kernel would send a packet to `destination`; `None` if nowhere.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn lookup_route(&mut self, destination: IpAddr) -> Result<Option<RouteLookup>, KernelError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        let request = RouteNetlinkMessage::GetRoute(message);
        let answer = match self.request(request, 0, || format!("look up the route to {destination}")) {
            Ok(answer) => answer,
            Err(error) => {
                const NOWHERE: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL, libc::EACCES];
                return if error.errno().is_some_and(|errno| NOWHERE.contains(&errno)) { Ok(None) } else { Err(error) };
            }
        };
        Ok(answer.iter().find_map(|item| match item {
            RouteNetlinkMessage::NewRoute(message) if message.header.kind == RouteType::Unicast => {
                let route = Route::read(message)?;
                Some(RouteLookup {
                    link: route.link?,
                    next_hop: route.gateway.unwrap_or(destination),
                    source: route.source,
                    mtu: route.mtu,
                })
            }
            _ => None,
        }))
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blackhole = if self.blackhole { "blackhole " } else { "" };
        write!(formatter, "{blackhole}{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(formatter, " via {gateway}")?;
        }
        if let Some(link) = self.link {
            write!(formatter, " by link number {link}")?;
        }
        Ok(())
    }
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
