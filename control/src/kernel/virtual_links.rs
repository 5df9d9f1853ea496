//! Links made of software: veth pairs for the demo's wires, and the kernel's own bridge and VXLAN device, against
//! which the switch is tested.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use millrace_engine::packet::Mac;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::links::namespace_file;
use super::neighbours::neighbour_address;
use super::{KernelError, NamespaceHandle, Netlink};

/// The kernel's VXLAN device, one for all peers and without learning, as flannel lays it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanDevice<'a> {
    /// Name of the device, e.g. `flannel.1`.
    pub name: &'a str,
    /// VXLAN network identifier.
    pub vni: u32,
    /// This node's tunnel address.
    pub local: IpAddr,
    /// The link the tunnel runs over.
    pub underlay: &'a str,
    /// UDP port; Linux's default for flannel is 8472, IANA's is 4789.
    pub port: u16,
    /// MTU of the device.
    pub mtu: u32,
}

impl Netlink {
    /// Creates a veth pair; an end with a namespace is born there.
    ///
    /// # Errors
    /// If a name is taken, or the kernel refused; nothing is left behind.
    pub fn create_veth(
        &mut self,
        one: (&str, Option<&NamespaceHandle>),
        other: (&str, Option<&NamespaceHandle>),
    ) -> Result<(), KernelError> {
        self.create_veth_with_queues(one, other, 1)
    }

    /// Creates a veth pair with this many queues for each direction at both ends.
    ///
    /// # Errors
    /// As [`create_veth`](Self::create_veth).
    pub fn create_veth_with_queues(
        &mut self,
        one: (&str, Option<&NamespaceHandle>),
        other: (&str, Option<&NamespaceHandle>),
        queues: u32,
    ) -> Result<(), KernelError> {
        let files = [one.1.map(namespace_file).transpose()?, other.1.map(namespace_file).transpose()?];
        let end = |name: &str, file: &Option<std::fs::File>| {
            let mut message = LinkMessage::default();
            message.attributes.push(LinkAttribute::IfName(name.to_owned()));
            message.attributes.extend(file.as_ref().map(|file| LinkAttribute::NetNsFd(file.as_raw_fd())));
            message.attributes.extend([LinkAttribute::NumTxQueues(queues), LinkAttribute::NumRxQueues(queues)]);
            message
        };
        let mut message = end(one.0, &files[0]);
        let peer = InfoData::Veth(InfoVeth::Peer(end(other.0, &files[1])));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)]));
        self.create_link(message, || format!("create veth pair {} and {}", one.0, other.0))
    }

    /// Creates a bridge.
    ///
    /// # Errors
    /// If the name is taken, or the kernel refused.
    pub fn create_bridge(&mut self, name: &str) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        self.create_link(message, || format!("create bridge {name}"))
    }

    /// Creates a VXLAN device in flannel's layout. UDP checksums over IPv6 stay on, as the kernel has it.
    ///
    /// # Errors
    /// If the name is taken, the underlay is absent, or the kernel refused.
    pub fn create_vxlan(&mut self, device: &VxlanDevice<'_>) -> Result<(), KernelError> {
        let underlay = self.existing_link(device.underlay)?.index;
        let local = match device.local {
            IpAddr::V4(address) => InfoVxlan::Local(address),
            IpAddr::V6(address) => InfoVxlan::Local6(address),
        };
        let data = vec![
            InfoVxlan::Id(device.vni),
            InfoVxlan::Link(underlay),
            local,
            InfoVxlan::Port(device.port),
            InfoVxlan::Learning(false),
        ];
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(device.name.to_owned()));
        message.attributes.push(LinkAttribute::Mtu(device.mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(data)),
        ]));
        self.create_link(message, || format!("create VXLAN device {} over {}", device.name, device.underlay))
    }

    /// Tells the VXLAN device `name` that `mac` lies behind the tunnel endpoint `peer`.
    ///
    /// # Errors
    /// If the device is absent, or the kernel refused.
    pub fn append_vxlan_peer(&mut self, name: &str, mac: Mac, peer: IpAddr) -> Result<(), KernelError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.existing_link(name)?.index;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()), neighbour_address(peer)];
        let attempt = || format!("append {mac} behind {peer} to the forwarding table of {name}");
        self.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_APPEND, attempt).map(|_| ())
    }

    fn create_link(&mut self, message: LinkMessage, attempt: impl Fn() -> String) -> Result<(), KernelError> {
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, attempt).map(|_| ())
    }
}
