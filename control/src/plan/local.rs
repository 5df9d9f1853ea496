//! What is plugged in at this node: facts from the CNI server and from the host's kernel, as of now.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::tables::{Bandwidth, Outside, PortRange, Tunnels, Vni};

use super::ServiceOptions;
use crate::cluster::{ContainerPort, InterfaceName, NetworkName, NodeName, PodName, PodRecord, PortName};

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalView {
    /// This node.
    pub node: NodeName,
    /// Pods that are plugged in, by the number of their port.
    pub pods: BTreeMap<PortIndex, AttachedPod>,
    /// The host's own port, once it is attached.
    pub host: Option<LocalHost>,
    /// Uplinks in use, by the number of their port.
    pub uplinks: BTreeMap<PortIndex, LocalUplink>,
    /// Ports of bridges that are plugged in, by their number.
    pub bridge_ports: BTreeMap<PortIndex, LocalPort>,
    /// How the host's kernel reaches other nodes, by their address.
    pub underlay: BTreeMap<IpAddr, UnderlayPath>,
    /// MTU of pods, if the configuration sets it.
    pub pod_mtu: Option<u32>,
    /// UDP destination port of VXLAN.
    pub vxlan_port: u16,
    /// VXLAN identifier of the pods' segment.
    pub vni: Vni,
    /// What the configuration says of Services.
    pub services: ServiceOptions,
    /// Source ports of connections masqueraded as the node's address among pods.
    pub masquerade_ports: PortRange,
    /// Whether no policy is taken to mean who is not known yet; else what one could deny is closed.
    pub unknown_pods_open: bool,
    /// Source ports of connections masqueraded as an uplink's address.
    pub outside_ports: PortRange,
    /// Networks outside that know the way to pods.
    pub exempt: Vec<IpNet>,
    /// How the host's kernel reaches what is outside.
    pub outside: OutsideView,
}

impl LocalView {
    /// A node with nothing plugged in.
    #[must_use]
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            pods: BTreeMap::new(),
            host: None,
            uplinks: BTreeMap::new(),
            bridge_ports: BTreeMap::new(),
            underlay: BTreeMap::new(),
            pod_mtu: None,
            vxlan_port: Tunnels::UDP_PORT,
            vni: Vni::new(super::POD_VNI).unwrap_or_else(|| unreachable!("the identifier has 24 bits")),
            services: ServiceOptions::default(),
            masquerade_ports: PortRange::default(),
            unknown_pods_open: false,
            outside_ports: Outside::default().ports,
            exempt: Vec::new(),
            outside: OutsideView::default(),
        }
    }

    /// The addresses of a pod's first interface; none if it is not here.
    #[must_use]
    pub fn addresses_of(&self, pod: &PodName) -> Vec<IpAddr> {
        let first = self.pods.values().filter(|attached| attached.pod == *pod && !attached.further);
        first.flat_map(|pod| pod.addresses.clone()).collect()
    }
}

/// A pod that the CNI server plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedPod {
    /// The pod.
    pub pod: PodName,
    /// What tells it from others of its name, if the runtime said so.
    pub uid: Option<Arc<str>>,
    /// The runtime's name for its sandbox.
    pub container_id: String,
    /// The interface inside the pod.
    pub interface: InterfaceName,
    /// MAC address of that interface.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MTU.
    pub mtu: u32,
    /// The network that this interface is in, instead of the pods' segment.
    pub network: Option<NetworkName>,
    /// Whether this is an interface beside the pod's first.
    pub further: bool,
    /// Ports of the node that lead to it, as the runtime asked for them; each has a host's side.
    pub host_ports: Vec<ContainerPort>,
    /// How much it may send (`from_port`) and receive (`to_port`), as the runtime asked for it.
    pub bandwidth: Bandwidth,
}

impl AttachedPod {
    /// Whether this is its object, and not that of another pod of its name.
    #[must_use]
    pub fn is_of(&self, object: &PodRecord) -> bool {
        same_pod(object.uid.as_deref(), self.uid.as_deref())
    }

    /// What its port is called: as the pod, and as the interface if it is not the pod's first.
    #[must_use]
    pub fn port_name(&self) -> String {
        if self.further { format!("{} {}", self.pod, self.interface) } else { self.pod.to_string() }
    }

    /// The families it has addresses of, true for IPv4.
    #[must_use]
    pub fn families(&self) -> Vec<bool> {
        let has = |ipv4: &bool| self.addresses.iter().any(|address| address.is_ipv4() == *ipv4);
        [true, false].into_iter().filter(has).collect()
    }
}

/// Whether an object and a plugged pod of one name are the same pod, by what tells them from others of that name. A
/// directory of files has no uids, and a runtime may tell none.
pub(super) fn same_pod(of_object: Option<&str>, of_runtime: Option<&str>) -> bool {
    of_object.is_none() || of_runtime.is_none() || of_object == of_runtime
}

/// The host's own port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalHost {
    /// Its number.
    pub port: PortIndex,
    /// The interface.
    pub interface: InterfaceName,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
    /// Addresses of this interface, which an earlier plan may have given it.
    pub own_addresses: Vec<IpAddr>,
    /// All addresses of the host that are not bound to one link, those of this interface included, sorted.
    pub addresses: Vec<IpAddr>,
}

/// A port of a bridge that is plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPort {
    /// Its object.
    pub name: PortName,
    /// Its MTU.
    pub mtu: u32,
}

/// An uplink that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalUplink {
    /// The interface.
    pub interface: InterfaceName,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it has a carrier.
    pub link_up: bool,
}

/// The host's ways by uplinks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutsideView {
    /// Routes of the host that lead by an uplink, the best of each destination.
    pub routes: BTreeMap<IpNet, OutsidePath>,
    /// Neighbours on the links of uplinks, as far as their MAC addresses may be used.
    pub neighbours: BTreeMap<(PortIndex, IpAddr), Mac>,
}

/// How the host's kernel reaches a network by an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsidePath {
    /// The uplink it leaves by.
    pub port: PortIndex,
    /// The router on the way; `None` where the network is the link's own.
    pub gateway: Option<IpAddr>,
    /// The source address the kernel prefers.
    pub source: IpAddr,
    /// Longest packet that gets there.
    pub mtu: u32,
}

/// How the host's kernel reaches an address of the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderlayPath {
    /// The uplink it leaves by.
    pub port: PortIndex,
    /// The source address the kernel prefers.
    pub source: IpAddr,
    /// MAC address of the uplink.
    pub source_mac: Mac,
    /// MAC address of the next hop, once resolved.
    pub next_hop: Option<Mac>,
    /// Longest packet that gets there.
    pub mtu: u32,
    /// Whether the address itself is on the uplink's link: the next hop is the node.
    pub on_link: bool,
}
