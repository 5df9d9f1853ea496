//! Pods and namespaces.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{NamespaceName, NodeName, PodName};

/// A pod, on any node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRecord {
    /// Its name.
    pub name: PodName,
    /// The node it is bound to.
    pub node: Option<NodeName>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses as its status has them.
    pub addresses: Vec<IpAddr>,
    /// Whether it lives in the network namespace of its node.
    pub host_network: bool,
    /// Ports its containers name or publish.
    pub ports: Vec<ContainerPort>,
    /// Whether it serves: as its condition says, and true where nobody has judged it.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Whether all its containers have ended for good.
    pub finished: bool,
}

/// A port of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its name; empty if it has none.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// The port in the pod.
    pub port: u16,
    /// Where the node publishes it.
    pub host: Option<HostPort>,
}

/// A port of the node that leads to one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The port.
    pub port: u16,
    /// At this address of the node only.
    pub address: Option<IpAddr>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRecord {
    /// Its name.
    pub name: NamespaceName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}
