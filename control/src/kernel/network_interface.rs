//! The host's interface towards pods that stand on a wire of the host.
//!
//! The switch is beside the kernel on the wire's interface, and no kernel hears its own frames there. So the host and the
//! pods meet at a TAP: it has the host's addresses of the wire's subnets once more, so that the host answers for them,
//! and a route to each pod with that address as source. Everything is compared with what the kernel has and only
//! differences are written; what somebody else put there or took away is mended. A handful of netlink calls on the
//! underlay thread.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{KernelError, Netlink, Route, sysctl};

/// What the interface shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkInterface<'a> {
    /// Its name.
    pub name: &'a str,
    /// The host's addresses at the wire.
    pub addresses: &'a [IpAddr],
    /// The pods, each with the host's address of its subnet, if the host has one.
    pub pods: &'a [(IpAddr, Option<IpAddr>)],
}

/// Brings the interface, which must exist in the calling thread's namespace, to what it shall be.
///
/// # Errors
/// The first thing that could not be set.
pub fn configure_network_interface(netlink: &mut Netlink, wanted: &NetworkInterface<'_>) -> Result<(), KernelError> {
    let link = netlink.existing_link(wanted.name)?;
    let name = wanted.name;
    let setting = |path: &str, value| (path.replace("NAME", name), value);
    sysctl::write_own(&[setting("ipv4/conf/NAME/rp_filter", "2")], false)?;
    let ipv6 = [setting("ipv6/conf/NAME/accept_dad", "0"), setting("ipv6/conf/NAME/accept_ra", "0")];
    sysctl::write_own(&ipv6, true)?;
    let single: Vec<IpNet> = wanted.addresses.iter().map(|address| IpNet::from(*address)).collect();
    let present = netlink.addresses(name)?;
    for address in single.iter().filter(|address| !present.contains(address)) {
        netlink.add_address(name, *address)?;
    }
    let is_local = |address: IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    for address in present.iter().filter(|address| !single.contains(address) && !is_local(address.addr())) {
        netlink.delete_address(name, *address)?;
    }
    set_routes(netlink, link.index, wanted)
}

fn set_routes(netlink: &mut Netlink, link: u32, wanted: &NetworkInterface<'_>) -> Result<(), KernelError> {
    let present: Vec<Route> = netlink.own_routes()?.into_iter().filter(|route| route.link == Some(link)).collect();
    let route =
        |(pod, source): &(IpAddr, Option<IpAddr>)| Route { source: *source, ..Route::on_link(IpNet::from(*pod), link) };
    let desired: Vec<Route> = wanted.pods.iter().map(route).collect();
    let same = |one: &Route, other: &Route| (one.destination, one.source) == (other.destination, other.source);
    for route in desired.iter().filter(|route| !present.iter().any(|there| same(there, route))) {
        netlink.set_route(route)?;
    }
    for route in present.iter().filter(|route| !desired.iter().any(|kept| kept.destination == route.destination)) {
        netlink.delete_route(route)?;
    }
    Ok(())
}
