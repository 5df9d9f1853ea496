//! A node without us: the Linux kernel's VXLAN device as flannel lays it out, and a pod behind it.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use millrace_control::kernel::virtual_links::VxlanDevice;
use millrace_control::kernel::{LinkChange, Namespace, NamespaceHandle, Netlink, Route, sysctl};
use millrace_engine::packet::Mac;

use crate::cluster::{NODES, UPLINK};
use crate::directory::unique;
use crate::traffic::Endpoint;

/// MAC address of the device, as in the node's annotation.
pub(crate) const DEVICE_MAC: Mac = Mac([0x12, 0, 0, 0, 0, 0x0b]);
/// Prefixes of the node's pods.
pub(crate) const PREFIXES: [&str; 2] = ["10.9.1.0/24", "fd09:1::/64"];

const DEVICE: &str = "flannel.1";
/// The node's end of the pod's veth pair: address of the gateway, then of the pod.
const ADDRESSES: [[&str; 2]; 2] = [["10.9.1.1", "10.9.1.2"], ["fd09:1::1", "fd09:1::2"]];
/// MTU of a pod on an underlay of 1500 bytes.
const MTU: u32 = 1450;

/// The node's object, as flannel annotates it.
pub(crate) fn object() -> String {
    let (name, [address, _]) = NODES[1];
    let [ipv4, ipv6] = PREFIXES;
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  annotations:\n    \
         flannel.alpha.coreos.com/backend-type: vxlan\n    \
         flannel.alpha.coreos.com/backend-data: '{{\"VNI\":1,\"VtepMAC\":\"{DEVICE_MAC}\"}}'\n    \
         flannel.alpha.coreos.com/public-ip: {address}\n\
         spec: {{podCIDR: {ipv4}, podCIDRs: [{ipv4}, '{ipv6}']}}\n\
         status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n"
    )
}

/// The pod behind it.
pub(crate) struct KernelPod {
    /// Where its traffic starts and ends.
    pub(crate) endpoint: Endpoint,
    _namespace: Namespace,
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// Makes the device and the pod in the node's namespace.
pub(crate) fn create(node: &NamespaceHandle) -> KernelPod {
    let setting = |path: &str| (path.to_owned(), "1");
    sysctl::write(node, &[setting("ipv4/ip_forward"), setting("ipv6/conf/all/forwarding")], false).expect("forwarding");
    let mut netlink = Netlink::open_in(node).expect("netlink");
    let (_, [local, _]) = NODES[1];
    let device = VxlanDevice { name: DEVICE, vni: 1, local: address(local), underlay: UPLINK, port: 8472, mtu: MTU };
    netlink.create_vxlan(&device).expect("vxlan");
    let change = LinkChange { mac: Some(DEVICE_MAC), ..LinkChange::up() };
    netlink.change_link(DEVICE, &change).expect("up");
    for own in ["10.9.1.0/32", "fd09:1::/128"] {
        netlink.add_address(DEVICE, own.parse().expect("prefix")).expect("address");
    }

    let namespace = Namespace::create_named(&unique("kernel-pod")).expect("namespace");
    netlink.create_veth(("pod0", None), ("eth0", Some(namespace.handle()))).expect("veth");
    let mut inside = Netlink::open_in(namespace.handle()).expect("netlink");
    let change = LinkChange { mtu: Some(MTU), ..LinkChange::up() };
    netlink.change_link("pod0", &change).expect("up");
    inside.change_link("lo", &LinkChange::up()).expect("up");
    inside.change_link("eth0", &change).expect("up");
    let link = inside.existing_link("eth0").expect("link").index;
    for ([gateway, own], length) in ADDRESSES.iter().zip([24, 64]) {
        netlink.add_address("pod0", IpNet::new(address(gateway), length).expect("prefix")).expect("address");
        inside.add_address("eth0", IpNet::new(address(own), length).expect("prefix")).expect("address");
        let all: IpNet = if length == 24 { Ipv4Net::default().into() } else { Ipv6Net::default().into() };
        inside.set_route(&Route::by_gateway(all, address(gateway), link)).expect("route");
    }
    let addresses = ADDRESSES.map(|[_, own]| address(own)).to_vec();
    let endpoint = Endpoint { name: "pod of a kernel".to_owned(), namespace: namespace.handle().clone(), addresses };
    KernelPod { endpoint, _namespace: namespace }
}

/// Tells the device that these blocks are behind the node with this tunnel end.
pub(crate) fn lead(node: &NamespaceHandle, blocks: &[IpNet], end: IpAddr, mac: Mac) {
    let mut netlink = Netlink::open_in(node).expect("netlink");
    netlink.append_vxlan_peer(DEVICE, mac, end).expect("forwarding entry");
    let link = netlink.existing_link(DEVICE).expect("device").index;
    for block in blocks {
        netlink.set_permanent_neighbour(DEVICE, block.network(), mac).expect("neighbour");
        netlink.set_route(&Route::by_gateway(*block, block.network(), link)).expect("route");
    }
}
