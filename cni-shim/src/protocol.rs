//! What the plugin and the agent say to each other: one POST for each verb, JSON in both directions.
//!
//! Status 200 carries the answer; any other status carries a [`Failure`](crate::spec::Failure), whose code and
//! words the plugin passes on unchanged. The answer has plain facts and no version: wording them for the
//! runtime's version is the plugin's work, so an agent serves plugins of every version. New fields must be
//! optional: during an upgrade, plugin and agent differ.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::spec;

/// Path of ADD.
pub const ADD_PATH: &str = "/v1/cni/add";
/// Path of DEL.
pub const DELETE_PATH: &str = "/v1/cni/del";
/// Path of CHECK.
pub const CHECK_PATH: &str = "/v1/cni/check";
/// Path of GC.
pub const COLLECT_PATH: &str = "/v1/cni/gc";
/// Path of STATUS.
pub const STATUS_PATH: &str = "/v1/cni/status";

/// The request of ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRequest {
    /// Name of the network in the configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// CNI_NETNS.
    pub network_namespace: String,
    /// CNI_ARGS.
    #[serde(default)]
    pub arguments: BTreeMap<String, String>,
    /// The very addresses that are asked for, at most one of each family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The very hardware address that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Ports of the host that lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// How much the pod may send and receive.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
}

/// A port of the host that leads to one of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The host's port; never 0.
    pub host_port: u16,
    /// The pod's port; never 0.
    pub container_port: u16,
    /// Of which protocol.
    pub transport: Transport,
    /// At this address of the host only; without it at all that serve node ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<IpAddr>,
}

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// The protocol of this name in either case; none written is TCP.
    #[must_use]
    pub fn parse(text: &str) -> Option<Transport> {
        match text.to_ascii_lowercase().as_str() {
            "" | "tcp" => Some(Transport::Tcp),
            "udp" => Some(Transport::Udp),
            "sctp" => Some(Transport::Sctp),
            _ => None,
        }
    }
}

/// How much a pod may receive and send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// What goes into the pod; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<RateLimit>,
    /// What comes out of it; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<RateLimit>,
}

impl Bandwidth {
    /// Whether neither direction is limited.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// A rate, and how far it may be run ahead of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Bits per second, of whole frames without their checksums.
    pub bits_per_second: u64,
    /// Bits that may pass at once after a silence; as the agent thinks right if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_bits: Option<u64>,
}

/// The answer to ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddAnswer {
    /// Hardware address of the pod's interface.
    pub mac: String,
    /// MTU of the pod's interface.
    pub mtu_bytes: u32,
    /// Addresses of the pod's interface.
    pub addresses: Vec<AnswerAddress>,
    /// Routes made in the pod's namespace.
    pub routes: Vec<AnswerRoute>,
    /// The other end of the pod's interface, where it is an interface of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_interface: Option<String>,
    /// Interfaces that the pod has beside the one that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<AnswerInterface>,
}

/// An interface of the pod beside the one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerInterface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
    /// Its MTU.
    pub mtu_bytes: u32,
    /// Its addresses.
    pub addresses: Vec<AnswerAddress>,
    /// Routes made for it in the pod's namespace.
    pub routes: Vec<AnswerRoute>,
    /// Its other end, where that is an interface of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_interface: Option<String>,
}

/// An address of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerAddress {
    /// Address and prefix length.
    pub address: String,
    /// Its gateway.
    pub gateway: Option<String>,
}

/// A route of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerRoute {
    /// Destination prefix.
    pub destination: String,
    /// Gateway; absent when the destination is on the link.
    pub gateway: Option<String>,
}

/// The request of DEL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRequest {
    /// Name of the network in the configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// CNI_NETNS, if the runtime still has it.
    #[serde(default)]
    pub network_namespace: Option<String>,
}

/// The request of CHECK: what ADD answered, as the runtime remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// Name of the network in the configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// CNI_NETNS.
    pub network_namespace: String,
    /// Hardware address of the interface, if the result of ADD has one.
    #[serde(default)]
    pub mac: Option<String>,
    /// Addresses of the interface.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// MTU of the interface in bytes, if the result has it: later plugins may have lowered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u32>,
    /// Other interfaces of the result in the same namespace, each with its addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub further: Option<Vec<CheckedInterface>>,
    /// Routes of the result, which does not say of which interface they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<AnswerRoute>>,
}

/// An interface of a result of ADD beside the one that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedInterface {
    /// Its name.
    pub name: String,
    /// Its hardware address, if the result has one.
    #[serde(default)]
    pub mac: Option<String>,
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// The request of GC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectRequest {
    /// Name of the network in the configuration: attachments of others are left alone.
    pub network: String,
    /// What the runtime knows.
    pub valid: Vec<ValidAttachment>,
}

/// An attachment that the runtime knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// Its container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its interface.
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// The request of STATUS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRequest {
    /// Name of the network in the configuration.
    pub network: String,
}

impl AddAnswer {
    /// The answer as a result of the specification: interfaces in the pod, the one that was asked for first, then their ends
    /// in the host.
    #[must_use]
    pub fn into_result(self, request: &AddRequest) -> spec::NetworkResult {
        let first = AnswerInterface {
            name: request.interface.clone(),
            mac: self.mac,
            mtu_bytes: self.mtu_bytes,
            addresses: self.addresses,
            routes: self.routes,
            host_interface: self.host_interface,
        };
        let mut host_interfaces = Vec::new();
        let mut result = spec::NetworkResult::default();
        for (number, made) in (0..).zip(std::iter::once(first).chain(self.further)) {
            result.interfaces.push(spec::Interface {
                name: made.name,
                mac: Some(made.mac),
                mtu: Some(made.mtu_bytes),
                sandbox: Some(request.network_namespace.clone()),
                ..Default::default()
            });
            let address = |AnswerAddress { address, gateway }| spec::Address {
                address,
                gateway,
                interface: Some(number),
                ..Default::default()
            };
            result.ips.extend(made.addresses.into_iter().map(address));
            let route =
                |AnswerRoute { destination, gateway }| spec::Route { destination, gateway, ..Default::default() };
            result.routes.extend(made.routes.into_iter().map(route));
            let of_host = |name| spec::Interface { name, ..Default::default() };
            host_interfaces.extend(made.host_interface.map(of_host));
        }
        // Last, so that the numbers above are those of the pod's.
        result.interfaces.extend(host_interfaces);
        result
    }
}
