//! CNI CHECK: is an attachment as ADD left it? Everything that is wrong is told, not only the first.
//!
//! In the pod: interface, kind, state, MAC address, MTU, offloads and their limit, addresses, default routes. Here: the port in
//! the tables with the same addresses, a queue of it on a worker, and the ports of the host that lead to it. What other plugins
//! of a chain added is not judged.

use millrace_engine::limits;
use millrace_engine::port::af_xdp::left_to_receiver;
use millrace_engine::port::namespace::NamespaceHandle;
use millrace_engine::tables::{PortRole, Snapshot};

use crate::cni_server::{AttachedPort, Attachment};
use crate::kernel::{KernelError, Link, Netlink};
use crate::plan::{AttachedPod, ServicesPlan};

/// What is wrong inside the pod.
pub(super) fn pod_side(attachment: &Attachment, port: &AttachedPort) -> Result<Vec<String>, KernelError> {
    let namespace = NamespaceHandle::recorded(attachment.namespace.path.clone(), attachment.namespace.inode);
    let mut netlink = Netlink::open_in(&namespace)?;
    let name = &attachment.key.interface;
    let Some(link) = netlink.link(name)? else { return Ok(vec![format!("interface {name} is missing")]) };
    let mut wrong = interface(&link, port);
    wrong.extend(offloads(&namespace, name));
    let held = netlink.addresses(name)?;
    for address in &port.addresses {
        if !held.contains(address) {
            wrong.push(format!("address {address} is missing on {name}"));
        }
    }
    // Asked of the kernel as a packet would: whatever else is in its tables.
    let routes = netlink.own_routes()?;
    for (destination, gateway) in port.routes() {
        let by_gateway = routes.iter().any(|route| {
            route.destination == destination && route.gateway == Some(gateway) && route.link == Some(link.index)
        });
        if !by_gateway {
            wrong.push(format!("the route {destination} by {gateway} is missing"));
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

/// ADD leaves checksums and the cutting of units to the switch: without, a pod sends a tenth of it. Whether TCP is cut is
/// asked of both families at once, as the kernel answers it.
fn offloads(namespace: &NamespaceHandle, name: &str) -> Vec<String> {
    let off = |what: &str| format!("{name} has {what} switched off, which ADD left on");
    match namespace.enter(|| left_to_receiver(name)) {
        Ok(Ok(left)) => {
            let checksums = (!left.checksums).then(|| off("transmit checksum offload"));
            let units = (!left.tcp_segmentation).then(|| off("TCP segmentation offload"));
            checksums.into_iter().chain(units).collect()
        }
        Ok(Err(error)) => vec![format!("the offloads of {name} cannot be read: {error}")],
        Err(error) => vec![format!("the offloads of {name} cannot be read: {error}")],
    }
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
