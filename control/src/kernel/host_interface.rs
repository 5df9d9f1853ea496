//! The host's own port as its kernel sees it: brought from what is there to what shall be there.
//!
//! The interface is a TAP in the agent's own namespace with the node's address among pods, and all prefixes of pods are
//! routed to it by the same gateway that pods have, with that address as preferred source. Everything is compared with
//! what the kernel has and only differences are written, so the caller may call as often as it likes; what somebody
//! else put on the interface or took from it is mended. Routes, addresses and neighbours go with the interface.
//!
//! Frames that the switch hands back to the host come in here although the host sends their answers by its uplink, so
//! the reverse path filter must be loose (RFC 3704 section 2.4; ip-sysctl.rst: the stricter of `all` and the interface
//! would be the larger number, and loose is the largest). Answers of Services that the host called at an address of its own
//! come from that address, which `accept_local` lets in, and `route_localnet` where it is a loopback address; the switch lets
//! nobody else send from it. Receiving needs no forwarding.
//!
//! A handful of netlink calls, tens of microseconds each, on the underlay thread.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use millrace_engine::limits;
use millrace_engine::packet::Mac;
use millrace_engine::transmit::segmentation::segments_of_unit;

use super::{
    GATEWAY_IPV4, GATEWAY_IPV6, GuardedPorts, KernelError, Link, LinkChange, Netlink, OwnPorts, Route, own_ports,
    sysctl,
};

/// What the host's own interface shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInterface<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its MAC address.
    pub mac: Mac,
    /// MAC address of the gateway.
    pub gateway_mac: Mac,
    /// Its MTU, that of pods; `None` leaves it as it is.
    pub mtu: Option<u32>,
    /// Its addresses; others are taken away, link-local ones excepted.
    pub addresses: &'a [IpAddr],
    /// Whether the host may use it: else only what it needs to take packets is set, and addresses, routes and rules are left as
    /// they are.
    pub leads_here: bool,
    /// What is routed to it, of families it has an address of.
    pub prefixes: &'a BTreeSet<IpNet>,
    /// Addresses of the host's, of other interfaces too, at which these ports are the switch's.
    pub own_addresses: &'a BTreeSet<IpAddr>,
    /// These ports.
    pub own_ports: &'a BTreeSet<OwnPorts>,
    /// Ports that nobody answers for while there is no agent.
    pub guarded_ports: &'a BTreeSet<GuardedPorts>,
}

/// Brings the interface, which must exist in the calling thread's namespace, to what it shall be.
///
/// # Errors
/// The first thing that could not be set; the others are set all the same.
pub fn configure_host_interface(netlink: &mut Netlink, wanted: &HostInterface<'_>) -> Result<(), KernelError> {
    let link = netlink.existing_link(wanted.name)?;
    let settings = write_settings(wanted);
    let linked = set_link(netlink, &link, wanted);
    if !wanted.leads_here {
        return settings.and(linked);
    }
    let addresses = set_addresses(netlink, wanted);
    let neighbours = set_neighbours(netlink, &link, wanted);
    let routes = set_routes(netlink, &link, wanted);
    let ports = set_own_ports(netlink, &link, wanted);
    settings.and(linked).and(addresses).and(neighbours).and(routes).and(ports)
}

fn write_settings(wanted: &HostInterface<'_>) -> Result<(), KernelError> {
    let name = wanted.name;
    let ipv4 = |setting: &str, value| (format!("ipv4/conf/{name}/{setting}"), value);
    let loopback = if wanted.own_addresses.iter().any(IpAddr::is_loopback) { "1" } else { "0" };
    let settings = [ipv4("rp_filter", "2"), ipv4("accept_local", "1"), ipv4("route_localnet", loopback)];
    sysctl::write_own(&settings, false)?;
    let has_ipv6 = wanted.addresses.iter().any(IpAddr::is_ipv6);
    let ipv6 = |setting: &str, value| (format!("ipv6/conf/{name}/{setting}"), value);
    let settings = [ipv6("accept_dad", "0"), ipv6("accept_ra", "0"), ipv6("autoconf", "0"), ipv6("disable_ipv6", "0")];
    sysctl::write_own(&settings, !has_ipv6)
}

fn set_link(netlink: &mut Netlink, link: &Link, wanted: &HostInterface<'_>) -> Result<(), KernelError> {
    let gso = Some(limits::POD_GSO_BYTES);
    let right = (link.up, link.mac, link.mtu) == (true, wanted.mac, wanted.mtu.unwrap_or(link.mtu))
        && (link.gso_max_size, link.gso_ipv4_max_size) == (gso, gso);
    if right {
        return Ok(());
    }
    let change = LinkChange {
        up: Some(true),
        mac: (link.mac != wanted.mac).then_some(wanted.mac),
        mtu: wanted.mtu,
        gso_max_size: gso,
        gso_max_segments: Some(segments_of_unit(wanted.mtu.unwrap_or(link.mtu))),
        ..LinkChange::default()
    };
    netlink.change_link(wanted.name, &change)
}

/// New ones come first, so that a moment without an address is never seen.
fn set_addresses(netlink: &mut Netlink, wanted: &HostInterface<'_>) -> Result<(), KernelError> {
    let present = netlink.addresses(wanted.name)?;
    for address in wanted.addresses.iter().map(|address| IpNet::from(*address)) {
        if !present.contains(&address) {
            netlink.add_address(wanted.name, address)?;
        }
    }
    for address in present {
        if !wanted.addresses.contains(&address.addr()) && !is_link_local(address.addr()) {
            netlink.delete_address(wanted.name, address)?;
        }
    }
    Ok(())
}

fn set_neighbours(netlink: &mut Netlink, link: &Link, wanted: &HostInterface<'_>) -> Result<(), KernelError> {
    let present = netlink.neighbours()?;
    for gateway in gateways(wanted) {
        let right = present.iter().any(|neighbour| {
            let fixed =
                neighbour.state == super::NeighbourState::Permanent && neighbour.mac == Some(wanted.gateway_mac);
            neighbour.link == link.index && neighbour.address == gateway && fixed
        });
        if !right {
            netlink.set_permanent_neighbour(wanted.name, gateway, wanted.gateway_mac)?;
        }
    }
    Ok(())
}

fn set_routes(netlink: &mut Netlink, link: &Link, wanted: &HostInterface<'_>) -> Result<(), KernelError> {
    // The kernel reports neither the flag "on link" nor the scope for both families.
    let said = |route: &Route| (route.destination, (route.gateway, route.source));
    let present: Vec<Route> =
        netlink.own_routes()?.into_iter().filter(|route| route.link == Some(link.index)).collect();
    let known: BTreeMap<_, _> = present.iter().map(said).collect();
    let mut desired: BTreeMap<IpNet, Route> = BTreeMap::new();
    for gateway in gateways(wanted) {
        let source = own_source(wanted, gateway.is_ipv4());
        let prefixes = wanted.prefixes.iter().filter(|prefix| prefix.addr().is_ipv4() == gateway.is_ipv4());
        let route = |prefix: &IpNet| Route { source, ..Route::by_gateway(*prefix, gateway, link.index) };
        desired.extend(prefixes.map(|prefix| (*prefix, route(prefix))));
    }
    for route in desired.values() {
        let (destination, way) = said(route);
        if known.get(&destination) != Some(&way) {
            netlink.set_route(route)?;
        }
    }
    for route in present.iter().filter(|route| !desired.contains_key(&route.destination)) {
        netlink.delete_route(route)?;
    }
    Ok(())
}

/// The source that the host's sockets prefer towards the switch.
fn own_source(wanted: &HostInterface<'_>, ipv4: bool) -> Option<IpAddr> {
    wanted.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4)
}

fn set_own_ports(netlink: &mut Netlink, link: &Link, wanted: &HostInterface<'_>) -> Result<(), KernelError> {
    let gateways: Vec<IpAddr> = gateways(wanted).collect();
    let gateway = |ipv4: bool| {
        let gateway = gateways.iter().copied().find(|gateway| gateway.is_ipv4() == ipv4)?;
        Some((gateway, own_source(wanted, ipv4)?))
    };
    let routes = own_ports::own_routes(wanted.own_addresses, gateway, link.index);
    let served = |ports: &&OwnPorts| {
        routes
            .keys()
            .any(|address| address.is_ipv4() == ports.ipv4 && address.is_loopback() == ports.loopback.is_some())
    };
    let served = wanted.own_ports.iter().filter(served).copied().collect();
    netlink.set_own_ports(&routes, &served, Some(wanted.guarded_ports))
}

/// Gateways of the families that the interface has an address of.
fn gateways(wanted: &HostInterface<'_>) -> impl Iterator<Item = IpAddr> {
    let has = |ipv4: bool| wanted.addresses.iter().any(|address| address.is_ipv4() == ipv4);
    let (ipv4, ipv6) = (has(true), has(false));
    let gateways = [(ipv4, IpAddr::V4(GATEWAY_IPV4)), (ipv6, IpAddr::V6(GATEWAY_IPV6))];
    gateways.into_iter().filter_map(|(used, gateway)| used.then_some(gateway))
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
