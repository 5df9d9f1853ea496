//! What a node has around it that its objects do not say: from the captures, or made up the same way each time.
//!
//! | what | from |
//! |---|---|
//! | MAC address of a pod, of the host's own port | the source of the first frame its port captured, else a hash of its name |
//! | MAC address of an uplink | the destination of the first frame to one station it captured, else a hash |
//! | MAC address of the next hop to a node | the source of frames from the node's address, else a hash |
//! | addresses of the first uplink | the node's internal addresses; without a Node object, the addresses that VXLAN came to |
//! | the host's addresses | the node's internal addresses, and those among pods that its blocks give it |
//! | the way out | a default route of each family by the first uplink; the router's MAC address as a next hop's |
//! | the link's own IPv4 network, and neighbours on it | ARP requests that an uplink captured: the smallest network that holds who asks, what for, and the uplink; without any there is none |
//! | MTU of interfaces | 1500, unless their object says another |
//!
//! Pure functions of the objects and the captures; [`super::node`] puts what they tell on memory ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use millrace_engine::packet::parse::parse;
use millrace_engine::packet::{Headers, Mac, Network, PortIndex};
use millrace_engine::port::Capabilities;
use millrace_engine::port::memory::MemoryQueue;
use millrace_engine::port::pcap::Capture;
use millrace_engine::tables::Tunnels;

use crate::agent::{FIRST_BRIDGE_PORT, FIRST_POD_PORT, HOST_INTERFACE};
use crate::cluster::{BridgePortRecord, Cluster, DeviceKind, InterfaceName, NetworkRecord, NodeName};
use crate::plan::{
    self, AttachedPod, LocalHost, LocalPort, LocalUplink, LocalView, OutsidePath, OutsideView, UnderlayPath,
    wanted_uplinks,
};
use crate::stable_hash::hash_64;

/// MTU of interfaces whose objects do not say one.
pub(super) const MTU: u32 = 1500;
/// The routers of the way out: addresses that are nobody else's.
const ROUTERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 255, 254)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xffff))];

type Captures = BTreeMap<String, Capture>;

/// A port that a memory queue stands for.
pub(super) struct Device {
    /// Its number.
    pub(super) port: PortIndex,
    /// Its name in captures.
    pub(super) name: String,
    /// What its queue can do.
    pub(super) capabilities: Capabilities,
}

/// The uplinks that are wanted here.
pub(super) fn uplinks(
    cluster: &Cluster,
    node: &NodeName,
    captures: &Captures,
) -> (BTreeMap<PortIndex, LocalUplink>, Vec<Device>) {
    let mut interfaces: Vec<InterfaceName> =
        wanted_uplinks(cluster, node).map(|uplink| uplink.interface.clone()).collect();
    interfaces.sort_unstable();
    interfaces.dedup();
    let of_node = cluster.nodes.get(node).map(|node| node.addresses.clone());
    let (mut uplinks, mut devices) = (BTreeMap::new(), Vec::new());
    for (number, interface) in (1..FIRST_POD_PORT).zip(interfaces) {
        let (port, name) = (PortIndex(number), interface.to_string());
        let capture = captures.get(&name);
        let mac = capture.and_then(own_mac).unwrap_or_else(|| made_up(&format!("uplink {node} {interface}")));
        let told = || of_node.clone().unwrap_or_else(|| capture.map(tunnel_ends).unwrap_or_default());
        let addresses = if number == 1 { told() } else { Vec::new() };
        uplinks.insert(port, LocalUplink { interface, mac, mtu: MTU, addresses, link_up: true });
        devices.push(Device { port, name, capabilities: MemoryQueue::LIKE_AF_XDP });
    }
    (uplinks, devices)
}

/// A path to each other node: by the uplink that has an address of its family.
pub(super) fn underlay(cluster: &Cluster, local: &LocalView, captures: &Captures) -> BTreeMap<IpAddr, UnderlayPath> {
    let path = |destination: IpAddr| {
        let (port, uplink, source) = uplink_of_family(local, destination)?;
        let capture = captures.get(uplink.interface.as_str());
        let next_hop = capture.and_then(|capture| sender_of(capture, |source| source == destination));
        let path = UnderlayPath {
            on_link: false,
            port,
            source,
            source_mac: uplink.mac,
            next_hop: Some(next_hop.unwrap_or_else(|| made_up(&format!("node {destination}")))),
            mtu: uplink.mtu,
        };
        Some((destination, path))
    };
    plan::underlay_destinations(cluster, local).into_iter().filter_map(path).collect()
}

/// A default route of each family that an uplink has an address of.
pub(super) fn outside(cluster: &Cluster, local: &LocalView, captures: &Captures) -> OutsideView {
    let mut view = OutsideView::default();
    for router in ROUTERS {
        let Some((port, uplink, source)) = uplink_of_family(local, router) else { continue };
        let is_node = |address| cluster.nodes.values().any(|node| node.addresses.contains(&address));
        let from_outside = |address: IpAddr| address.is_ipv4() == router.is_ipv4() && !is_node(address);
        let capture = captures.get(uplink.interface.as_str());
        let mac = capture.and_then(|capture| sender_of(capture, from_outside));
        view.neighbours.insert((port, router), mac.unwrap_or_else(|| made_up(&format!("router {router}"))));
        let everything = match router {
            IpAddr::V4(_) => IpNet::from(ipnet::Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::from(ipnet::Ipv6Net::default()),
        };
        view.routes.insert(everything, OutsidePath { port, gateway: Some(router), source, mtu: uplink.mtu });
        let asked = capture.map(|capture| askers(capture, source)).unwrap_or_default();
        if let Some(network) = asked.iter().map(|(network, ..)| *network).min_by_key(IpNet::prefix_len) {
            view.routes.insert(network, OutsidePath { port, gateway: None, source, mtu: uplink.mtu });
            view.neighbours.extend(asked.into_iter().map(|(_, asker, mac)| ((port, asker), mac)));
        }
    }
    view
}

/// The host's own port.
pub(super) fn host(cluster: &Cluster, node: &NodeName, captures: &Captures) -> (LocalHost, Device) {
    let port = PortIndex(0);
    let mac = captures.get(HOST_INTERFACE).and_then(sender);
    let interface = InterfaceName::new(HOST_INTERFACE).unwrap_or_else(|_| unreachable!("the name is a valid one"));
    let mut addresses = cluster.nodes.get(node).map(|node| node.addresses.clone()).unwrap_or_default();
    addresses.sort_unstable();
    let host = LocalHost {
        port,
        interface,
        mac: mac.unwrap_or_else(|| made_up(&format!("host {node}"))),
        mtu: MTU,
        own_addresses: Vec::new(),
        addresses,
    };
    (host, Device { port, name: HOST_INTERFACE.to_owned(), capabilities: MemoryQueue::LIKE_TAP })
}

/// Ports of bridges, and of networks.
pub(super) fn bridge_ports(cluster: &Cluster, node: &NodeName) -> (BTreeMap<PortIndex, LocalPort>, Vec<Device>) {
    let networks = cluster.networks.values().filter(|network| network.is_for(node));
    let made = networks.filter_map(NetworkRecord::wire_ports).flatten();
    let mut records: Vec<BridgePortRecord> = cluster.ports.values().filter(|port| port.is_for(node)).cloned().collect();
    records.extend(made);
    records.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let (mut ports, mut devices) = (BTreeMap::new(), Vec::new());
    for (number, record) in (FIRST_BRIDGE_PORT..).zip(records) {
        let port = PortIndex(number);
        let mtu = record.mtu.unwrap_or(MTU);
        let capabilities = match record.device.kind {
            DeviceKind::Tap | DeviceKind::Packet => MemoryQueue::LIKE_TAP,
            // One tag beyond the MTU, as a socket of the interface has room for.
            DeviceKind::AfXdp => Capabilities { frame_bytes: mtu as usize + 18, ..MemoryQueue::LIKE_AF_XDP },
        };
        devices.push(Device { port, name: record.name.to_string(), capabilities });
        ports.insert(port, LocalPort { name: record.name, mtu });
    }
    (ports, devices)
}

/// Pods that are bound here: those with addresses, and those of a network that may ask for theirs.
pub(super) fn pods(
    cluster: &Cluster,
    node: &NodeName,
    mtu: u32,
    captures: &Captures,
) -> (BTreeMap<PortIndex, AttachedPod>, Vec<Device>) {
    let here = cluster.pods.values().filter(|pod| pod.node.as_ref() == Some(node) && !pod.host_network);
    let here = here.filter(|pod| !pod.addresses.is_empty() || cluster.memberships.of_pod(&pod.name).is_some());
    let eth0 = InterfaceName::new("eth0").unwrap_or_else(|_| unreachable!("the name is a valid one"));
    let (mut pods, mut devices) = (BTreeMap::new(), Vec::new());
    for (number, pod) in (FIRST_POD_PORT..FIRST_BRIDGE_PORT).zip(here) {
        let (port, name) = (PortIndex(number), pod.name.to_string());
        let mac = captures.get(&name).and_then(sender).unwrap_or_else(|| made_up(&format!("pod {name}")));
        let network = cluster.memberships.of_pod(&pod.name).cloned();
        let on_wire = network.as_ref().and_then(|network| cluster.networks.get(network)?.wire()).is_some();
        let mtu = if on_wire { MTU } else { mtu };
        let attached = AttachedPod {
            host_ports: Vec::new(),
            bandwidth: Default::default(),
            pod: pod.name.clone(),
            uid: None,
            container_id: pod.name.name().to_owned(),
            interface: eth0.clone(),
            mac,
            addresses: pod.addresses.clone(),
            mtu,
            network,
            further: false,
        };
        pods.insert(port, attached);
        devices.push(Device { port, name, capabilities: MemoryQueue::LIKE_TAP });
    }
    (pods, devices)
}

fn uplink_of_family(local: &LocalView, like: IpAddr) -> Option<(PortIndex, &LocalUplink, IpAddr)> {
    local.uplinks.iter().find_map(|(port, uplink)| {
        let source = uplink.addresses.iter().find(|address| address.is_ipv4() == like.is_ipv4())?;
        Some((*port, uplink, *source))
    })
}

fn mac_at(frame: &[u8], at: usize) -> Option<Mac> {
    frame.get(at..at + 6).map(Mac::read).filter(|mac| !mac.is_group() && *mac != Mac::ZERO)
}

/// Source of the first frame.
fn sender(capture: &Capture) -> Option<Mac> {
    capture.frames().find_map(|frame| mac_at(frame.bytes, 6))
}

/// Destination of the first frame that is for one station.
fn own_mac(capture: &Capture) -> Option<Mac> {
    capture.frames().find_map(|frame| mac_at(frame.bytes, 0))
}

fn headers(bytes: &[u8]) -> Option<Headers> {
    parse(bytes, bytes.len()).ok()
}

/// Source MAC address of the first frame from such an address.
fn sender_of(capture: &Capture, is_wanted: impl Fn(IpAddr) -> bool) -> Option<Mac> {
    let from = |bytes: &[u8]| headers(bytes).is_some_and(|headers| is_wanted(headers.source_address()));
    capture.frames().find(|frame| from(frame.bytes)).and_then(|frame| mac_at(frame.bytes, 6))
}

/// By each ARP request of the capture: the smallest network that holds its sender, its target and this address; the sender,
/// and its MAC address.
fn askers(capture: &Capture, own: IpAddr) -> Vec<(IpNet, IpAddr, Mac)> {
    let asker = |bytes: &[u8]| {
        let headers = headers(bytes).filter(|headers| headers.network == Network::Arp)?;
        let (IpAddr::V4(asker), IpAddr::V4(target), IpAddr::V4(own)) =
            (headers.source_address(), headers.destination_address(), own)
        else {
            return None;
        };
        let differ = (asker.to_bits() ^ own.to_bits()) | (target.to_bits() ^ own.to_bits());
        let network = Ipv4Net::new(own, differ.leading_zeros() as u8).ok()?.trunc();
        Some((IpNet::V4(network), IpAddr::V4(asker), mac_at(bytes, 6)?))
    };
    capture.frames().filter_map(|frame| asker(frame.bytes)).collect()
}

/// The first destination of VXLAN in each family.
fn tunnel_ends(capture: &Capture) -> Vec<IpAddr> {
    let mut ends: Vec<IpAddr> = Vec::new();
    let arrived = capture.frames().filter_map(|frame| headers(frame.bytes));
    for headers in arrived.filter(|headers| headers.ports[1] == Tunnels::UDP_PORT) {
        let end = headers.destination_address();
        if !ends.iter().any(|known| known.is_ipv4() == end.is_ipv4()) {
            ends.push(end);
        }
    }
    ends
}

fn made_up(name: &str) -> Mac {
    let [.., a, b, c, d, e] = hash_64(name).to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}
