//! What is plugged in at a node and how its kernel reaches others, as plain values.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::tables::{Bandwidth, PortRange, RateLimit, Vni};
use serde::{Deserialize, Serialize};

use super::SupportError;
use crate::cluster::{ContainerPort, HostPort, InterfaceName, NameError, NetworkName, NodeName, PodName, PortName};
use crate::plan::{
    AttachedPod, LocalHost, LocalPort, LocalUplink, LocalView, OutsidePath, OutsideView, ServiceOptions, UnderlayPath,
};

/// All of a [`LocalView`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LocalRecord {
    node: String,
    pods: Vec<Pod>,
    host: Option<Host>,
    uplinks: Vec<Uplink>,
    bridge_ports: Vec<BridgePort>,
    underlay: Vec<Underlay>,
    pod_mtu: Option<u32>,
    vxlan_port: u16,
    vni: u32,
    service_ranges: Vec<IpNet>,
    node_port_addresses: Vec<IpNet>,
    masquerade_all: bool,
    masquerade_ports: (u16, u16),
    unknown_pods_open: bool,
    outside_ports: (u16, u16),
    exempt: Vec<IpNet>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pod {
    port: u16,
    namespace: String,
    name: String,
    uid: Option<String>,
    container_id: String,
    interface: String,
    mac: String,
    addresses: Vec<IpAddr>,
    mtu: u32,
    network: Option<String>,
    further: bool,
    host_ports: Vec<HostPortRecord>,
    from_port: Option<(u64, u64)>,
    to_port: Option<(u64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct HostPortRecord {
    name: String,
    protocol: u8,
    port: u16,
    host: Option<(u16, Option<IpAddr>)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Host {
    port: u16,
    interface: String,
    mac: String,
    mtu: u32,
    own_addresses: Vec<IpAddr>,
    addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Uplink {
    port: u16,
    interface: String,
    mac: String,
    mtu: u32,
    addresses: Vec<IpAddr>,
    link_up: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct BridgePort {
    port: u16,
    name: String,
    mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Underlay {
    to: IpAddr,
    port: u16,
    source: IpAddr,
    source_mac: String,
    next_hop: Option<String>,
    mtu: u32,
    on_link: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Route {
    to: IpNet,
    port: u16,
    gateway: Option<IpAddr>,
    source: IpAddr,
    mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Neighbour {
    port: u16,
    address: IpAddr,
    mac: String,
}

impl LocalRecord {
    pub(super) fn of(local: &LocalView) -> Self {
        Self {
            node: local.node.to_string(),
            pods: local.pods.iter().map(|(port, pod)| Pod::of(*port, pod)).collect(),
            host: local.host.as_ref().map(Host::of),
            uplinks: local.uplinks.iter().map(|(port, uplink)| Uplink::of(*port, uplink)).collect(),
            bridge_ports: local
                .bridge_ports
                .iter()
                .map(|(port, at)| BridgePort { port: port.0, name: at.name.to_string(), mtu: at.mtu })
                .collect(),
            underlay: local.underlay.iter().map(|(to, path)| Underlay::of(*to, path)).collect(),
            pod_mtu: local.pod_mtu,
            vxlan_port: local.vxlan_port,
            vni: local.vni.number(),
            service_ranges: local.services.ranges.clone(),
            node_port_addresses: local.services.node_port_addresses.clone(),
            masquerade_all: local.services.masquerade_all,
            masquerade_ports: (local.masquerade_ports.first(), local.masquerade_ports.last()),
            unknown_pods_open: local.unknown_pods_open,
            outside_ports: (local.outside_ports.first(), local.outside_ports.last()),
            exempt: local.exempt.clone(),
            routes: local.outside.routes.iter().map(|(to, path)| Route::of(*to, path)).collect(),
            neighbours: local
                .outside
                .neighbours
                .iter()
                .map(|((port, address), mac)| Neighbour { port: port.0, address: *address, mac: mac.to_string() })
                .collect(),
        }
    }

    /// # Errors
    /// When a value is none of its sort: the file was changed.
    pub(super) fn view(&self) -> Result<LocalView, SupportError> {
        let services = ServiceOptions {
            ranges: self.service_ranges.clone(),
            node_port_addresses: self.node_port_addresses.clone(),
            masquerade_all: self.masquerade_all,
        };
        let underlay = |path: &Underlay| Ok((path.to, path.path()?));
        let bridge_port = |at: &BridgePort| {
            Ok((PortIndex(at.port), LocalPort { name: named(PortName::new(&at.name))?, mtu: at.mtu }))
        };
        Ok(LocalView {
            node: named(NodeName::new(&self.node))?,
            pods: self
                .pods
                .iter()
                .map(|pod| Ok((PortIndex(pod.port), pod.attached()?)))
                .collect::<Result<_, SupportError>>()?,
            host: self.host.as_ref().map(Host::local).transpose()?,
            uplinks: self
                .uplinks
                .iter()
                .map(|at| Ok((PortIndex(at.port), at.local()?)))
                .collect::<Result<_, SupportError>>()?,
            bridge_ports: self.bridge_ports.iter().map(bridge_port).collect::<Result<_, SupportError>>()?,
            underlay: self.underlay.iter().map(underlay).collect::<Result<_, SupportError>>()?,
            pod_mtu: self.pod_mtu,
            vxlan_port: self.vxlan_port,
            vni: Vni::new(self.vni).ok_or_else(|| wrong(self.vni, "a vni"))?,
            services,
            masquerade_ports: range(self.masquerade_ports)?,
            unknown_pods_open: self.unknown_pods_open,
            outside_ports: range(self.outside_ports)?,
            exempt: self.exempt.clone(),
            outside: OutsideView {
                routes: self.routes.iter().map(|route| (route.to, route.path())).collect(),
                neighbours: self
                    .neighbours
                    .iter()
                    .map(|at| Ok(((PortIndex(at.port), at.address), mac(&at.mac)?)))
                    .collect::<Result<_, SupportError>>()?,
            },
        })
    }
}

impl Pod {
    fn of(port: PortIndex, pod: &AttachedPod) -> Self {
        let limit = |limit: Option<RateLimit>| limit.map(|limit| (limit.bits_per_second, limit.burst_bits));
        let host_port = |at: &ContainerPort| HostPortRecord {
            name: at.name.clone(),
            protocol: at.protocol,
            port: at.port,
            host: at.host.map(|host| (host.port, host.address)),
        };
        Self {
            port: port.0,
            namespace: pod.pod.namespace().to_string(),
            name: pod.pod.name().to_owned(),
            uid: pod.uid.as_deref().map(str::to_owned),
            container_id: pod.container_id.clone(),
            interface: pod.interface.to_string(),
            mac: pod.mac.to_string(),
            addresses: pod.addresses.clone(),
            mtu: pod.mtu,
            network: pod.network.as_ref().map(ToString::to_string),
            further: pod.further,
            host_ports: pod.host_ports.iter().map(host_port).collect(),
            from_port: limit(pod.bandwidth.from_port),
            to_port: limit(pod.bandwidth.to_port),
        }
    }

    fn attached(&self) -> Result<AttachedPod, SupportError> {
        let limit = |limit: Option<(u64, u64)>| {
            limit.map(|(bits_per_second, burst_bits)| RateLimit { bits_per_second, burst_bits })
        };
        let host_port = |at: &HostPortRecord| ContainerPort {
            name: at.name.clone(),
            protocol: at.protocol,
            port: at.port,
            host: at.host.map(|(port, address)| HostPort { port, address }),
        };
        Ok(AttachedPod {
            pod: named(PodName::new(&self.namespace, &self.name))?,
            uid: self.uid.as_deref().map(Into::into),
            container_id: self.container_id.clone(),
            interface: named(InterfaceName::new(&self.interface))?,
            mac: mac(&self.mac)?,
            addresses: self.addresses.clone(),
            mtu: self.mtu,
            network: self.network.as_deref().map(|name| named(NetworkName::new(name))).transpose()?,
            further: self.further,
            host_ports: self.host_ports.iter().map(host_port).collect(),
            bandwidth: Bandwidth { from_port: limit(self.from_port), to_port: limit(self.to_port) },
        })
    }
}

impl Host {
    fn of(host: &LocalHost) -> Self {
        Self {
            port: host.port.0,
            interface: host.interface.to_string(),
            mac: host.mac.to_string(),
            mtu: host.mtu,
            own_addresses: host.own_addresses.clone(),
            addresses: host.addresses.clone(),
        }
    }

    fn local(&self) -> Result<LocalHost, SupportError> {
        Ok(LocalHost {
            port: PortIndex(self.port),
            interface: named(InterfaceName::new(&self.interface))?,
            mac: mac(&self.mac)?,
            mtu: self.mtu,
            own_addresses: self.own_addresses.clone(),
            addresses: self.addresses.clone(),
        })
    }
}

impl Uplink {
    fn of(port: PortIndex, uplink: &LocalUplink) -> Self {
        Self {
            port: port.0,
            interface: uplink.interface.to_string(),
            mac: uplink.mac.to_string(),
            mtu: uplink.mtu,
            addresses: uplink.addresses.clone(),
            link_up: uplink.link_up,
        }
    }

    fn local(&self) -> Result<LocalUplink, SupportError> {
        Ok(LocalUplink {
            interface: named(InterfaceName::new(&self.interface))?,
            mac: mac(&self.mac)?,
            mtu: self.mtu,
            addresses: self.addresses.clone(),
            link_up: self.link_up,
        })
    }
}

impl Underlay {
    fn of(to: IpAddr, path: &UnderlayPath) -> Self {
        Self {
            to,
            port: path.port.0,
            source: path.source,
            source_mac: path.source_mac.to_string(),
            next_hop: path.next_hop.map(|mac| mac.to_string()),
            mtu: path.mtu,
            on_link: path.on_link,
        }
    }

    fn path(&self) -> Result<UnderlayPath, SupportError> {
        Ok(UnderlayPath {
            port: PortIndex(self.port),
            source: self.source,
            source_mac: mac(&self.source_mac)?,
            next_hop: self.next_hop.as_deref().map(mac).transpose()?,
            mtu: self.mtu,
            on_link: self.on_link,
        })
    }
}

impl Route {
    fn of(to: IpNet, path: &OutsidePath) -> Self {
        Self { to, port: path.port.0, gateway: path.gateway, source: path.source, mtu: path.mtu }
    }

    fn path(&self) -> OutsidePath {
        OutsidePath { port: PortIndex(self.port), gateway: self.gateway, source: self.source, mtu: self.mtu }
    }
}

fn wrong(value: impl std::fmt::Display, what: &'static str) -> SupportError {
    SupportError::Value { value: value.to_string(), what }
}

fn named<Name>(name: Result<Name, NameError>) -> Result<Name, SupportError> {
    name.map_err(|error| wrong(error, "a name"))
}

fn mac(text: &str) -> Result<Mac, SupportError> {
    Mac::from_str(text).map_err(|_| wrong(text, "a MAC address"))
}

fn range((first, last): (u16, u16)) -> Result<PortRange, SupportError> {
    PortRange::new(first, last).ok_or_else(|| wrong(format!("{first}-{last}"), "a range of ports"))
}
