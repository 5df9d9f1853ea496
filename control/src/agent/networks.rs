//! Networks on this node: which frames of their wires come in, and how the host and their pods meet.
//!
//! The ports of a network are made and kept as any bridge's ([`super::bridge_ports`]). What follows the pods that come and
//! go is here: the filter at the wire, and the addresses and routes of the host's interface. Runs on the underlay thread.

use std::net::IpAddr;

use super::bridge_ports::BridgePorts;
use crate::cluster::{Cluster, NetworkRecord, NodeName};
use crate::kernel::{KernelError, Netlink, NetworkInterface, configure_network_interface};
use crate::plan::{AttachedPod, LocalView};

/// Brings all networks of this node into step; what is wrong.
pub(super) fn follow(
    cluster: &Cluster,
    node: &NodeName,
    local: &LocalView,
    ports: &mut BridgePorts,
    netlink: &mut Netlink,
) -> Vec<String> {
    let mut problems = Vec::new();
    for network in cluster.networks.values().filter(|network| network.is_for(node)) {
        let Some([wire, _]) = network.wire_ports() else { continue };
        let pods = || local.pods.values().filter(|pod| pod.network.as_ref() == Some(&network.name));
        ports.listen_for(&wire.name, pods().map(|pod| pod.mac).collect());
        if let Err(error) = follow_host(network, pods(), netlink) {
            problems.push(format!("the host and the pods of network {} do not meet: {error}", network.name));
        }
    }
    problems
}

fn follow_host<'a>(
    network: &NetworkRecord,
    pods: impl Iterator<Item = &'a AttachedPod>,
    netlink: &mut Netlink,
) -> Result<(), KernelError> {
    let interface = network.host_interface();
    // Without it the port says what is wrong.
    let Some(link) = netlink.link(interface.as_str())? else { return Ok(()) };
    let all = netlink.all_addresses()?;
    let elsewhere = all.iter().filter(|(index, _)| *index != link.index).map(|(_, address)| address.addr());
    let mut addresses: Vec<IpAddr> = elsewhere.filter(|address| network.subnet_of(*address).is_some()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let source = |pod: &IpAddr| {
        let subnet = network.subnet_of(*pod)?;
        addresses.iter().copied().find(|address| subnet.cidr.has(*address))
    };
    let pods: Vec<_> = pods.flat_map(|pod| &pod.addresses).map(|address| (*address, source(address))).collect();
    let wanted = NetworkInterface { name: interface.as_str(), addresses: &addresses, pods: &pods };
    configure_network_interface(netlink, &wanted)
}
