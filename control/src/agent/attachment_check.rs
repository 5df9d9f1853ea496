//! CNI CHECK: is an attachment as ADD left it? Everything that is wrong is told, not only the first.
//!
//! In the pod: interface, kind, state, MAC address, MTU, offload limit, addresses, default routes. Here: the port in the
//! tables with the same addresses, a queue of it on a worker, and the ports of the host that lead to it. What other plugins
//! of a chain added is not judged.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use millrace_engine::limits;
use millrace_engine::port::namespace::NamespaceHandle;
use millrace_engine::tables::{PortRole, Snapshot};

use crate::cni_server::{AttachedPort, Attachment};
use crate::kernel::{GATEWAY_IPV4, GATEWAY_IPV6, KernelError, Link, Netlink};
use crate::plan::{AttachedPod, ServicesPlan};

/// What is wrong inside the pod.
pub(super) fn pod_side(attachment: &Attachment, port: &AttachedPort) -> Result<Vec<String>, KernelError> {
    let namespace = NamespaceHandle::recorded(attachment.namespace.path.clone(), attachment.namespace.inode);
    let mut netlink = Netlink::open_in(&namespace)?;
    let name = &attachment.key.interface;
    let Some(link) = netlink.link(name)? else { return Ok(vec![format!("interface {name} is missing")]) };
    let mut wrong = interface(&link, port);
    let held = netlink.addresses(name)?;
    for address in &port.addresses {
        if !held.contains(address) {
            wrong.push(format!("address {address} is missing on {name}"));
        }
        // Asked of the kernel as a packet would: whatever else is in its tables.
        let Some((destinations, gateway)) = routes_by_gateway(address, port) else { continue };
        let routes = netlink.own_routes()?;
        for destination in destinations {
            let by_gateway = routes.iter().any(|route| {
                route.destination == destination && route.gateway == Some(gateway) && route.link == Some(link.index)
            });
            if !by_gateway {
                wrong.push(format!("the route {destination} by {gateway} is missing"));
            }
        }
    }
    Ok(wrong)
}

fn interface(link: &Link, port: &AttachedPort) -> Vec<String> {
    let name = &link.name;
    let mut wrong = Vec::new();
    let mut expect = |right: bool, what: String| {
        if !right {
            wrong.push(what);
        }
    };
    expect(
        link.kind.as_deref() == Some(port.device.kernel_kind()),
        format!("{name} is not the interface that ADD made"),
    );
    expect(link.up, format!("{name} is down"));
    expect(link.carrier, format!("{name} has no carrier: the agent holds no queue of it"));
    expect(link.mac == port.mac, format!("{name} has the MAC address {}, not {}", link.mac, port.mac));
    expect(link.mtu == port.mtu_bytes, format!("{name} has the MTU {}, not {}", link.mtu, port.mtu_bytes));
    let longest = limits::POD_GSO_BYTES;
    let gso = link.gso_max_size.is_none_or(|size| size <= longest);
    expect(gso, format!("{name} builds GSO units longer than {longest} bytes"));
    wrong
}

/// What goes by the router of the address's family: everything, or what a further interface leads to. A network may have
/// no router.
fn routes_by_gateway(address: &IpNet, port: &AttachedPort) -> Option<(Vec<IpNet>, IpAddr)> {
    let (default, ours): (IpNet, IpAddr) = match address {
        IpNet::V4(_) => (Ipv4Net::default().into(), GATEWAY_IPV4.into()),
        IpNet::V6(_) => (Ipv6Net::default().into(), GATEWAY_IPV6.into()),
    };
    let gateway = match &port.network {
        None => Some(ours),
        Some(network) if network.routed => Some(ours),
        Some(network) => network.gateways.iter().copied().find(|gateway| gateway.is_ipv4() == ours.is_ipv4()),
    };
    let destinations = match port.network.as_ref().and_then(|network| network.destinations.as_ref()) {
        None => vec![default],
        Some(some) => some.iter().copied().filter(|prefix| prefix.addr().is_ipv4() == ours.is_ipv4()).collect(),
    };
    gateway.map(|gateway| (destinations, gateway))
}

/// What is wrong in the switch.
pub(super) fn switch_side(
    here: Option<&AttachedPod>,
    port: &AttachedPort,
    tables: &Snapshot,
    has_queue: bool,
) -> Vec<String> {
    let number = port.index.0;
    let mut wrong = Vec::new();
    if here.is_none() {
        wrong.push(format!("port {number} was not taken up by the agent"));
    }
    if !has_queue {
        wrong.push(format!("no worker has a queue of port {number}"));
    }
    match tables.ports.get(port.index).map(|port| &port.role) {
        Some(PortRole::Pod(pod)) => {
            let missing = port.addresses.iter().filter(|address| !pod.addresses.contains(&address.addr()));
            wrong.extend(missing.map(|address| format!("the tables have no {address} at port {number}")));
        }
        Some(PortRole::Bridged(_)) if port.network.as_ref().is_some_and(|network| !network.routed) => {}
        _ => wrong.push(format!("port {number} is not in the tables in force")),
    }
    wrong
}

/// Ports of the host that do not lead to the pod as its runtime asked.
pub(super) fn host_ports(here: &AttachedPod, services: &ServicesPlan) -> Vec<String> {
    let missing = services.not_leading_to(&here.pod, &here.host_ports, &here.families());
    missing.into_iter().map(|key| format!("{key} of the host does not lead to the pod")).collect()
}
