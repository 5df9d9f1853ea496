//! Pods and namespaces.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use millrace_engine::tables::Bandwidth;

use super::selector::{Labels, NAMESPACE_NAME_LABEL};

use super::{InterfaceName, NamespaceName, NetworkName, NodeName, PodName, PoolName};

/// A pod, on any node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRecord {
    /// Its name.
    pub name: PodName,
    /// What tells it from others of its name, as the runtime has it: of a static pod that of the pod, not of its mirror.
    pub uid: Option<Arc<str>>,
    /// When it was created, in seconds of Unix time; 0 if nobody says.
    pub created: i64,
    /// The node it is bound to.
    pub node: Option<NodeName>,
    /// Its labels.
    pub labels: Arc<Labels>,
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
    /// Whether all its containers have ended for good: its addresses may be another pod's by now.
    pub finished: bool,
    /// What it asks of address management.
    pub address_wishes: AddressWishes,
    /// How much it may send (`from_port`) and receive (`to_port`), by its annotations.
    pub bandwidth: Bandwidth,
}

impl PodRecord {
    /// Whether it has its status's addresses for itself: it has not ended, and is not its node.
    #[must_use]
    pub fn has_addresses(&self) -> bool {
        !self.host_network && !self.finished
    }

    /// Which of several pods has an address that stands in the status of each: the one with the least of this, then the
    /// first by name. One that is not being deleted comes first, and the newer before the older, for an address is given
    /// again when its pod is gone while the status may be late.
    #[must_use]
    pub fn precedence(&self) -> PodPrecedence {
        PodPrecedence { terminating: self.terminating, created: Reverse(self.created) }
    }
}

/// See [`PodRecord::precedence`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodPrecedence {
    terminating: bool,
    created: Reverse<i64>,
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

/// What a pod asks of its place and of address management, by its annotations and its owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressWishes {
    /// The very addresses it wants, at most one of each family.
    pub fixed: Vec<IpAddr>,
    /// The pools its addresses are to come from; empty for those of its namespace, or of everybody.
    pub pools: Vec<PoolName>,
    /// The network that its first interface is in; `None` as its namespace says.
    pub network: Option<NetworkName>,
    /// Its further interfaces.
    pub further: Vec<FurtherInterface>,
    /// Whether its interface must be a veth; `None` as its namespace says.
    pub veth: Option<bool>,
    /// The StatefulSet that owns it: its addresses are kept while it is made anew.
    pub stateful_set: Option<Arc<str>>,
}

/// An interface that a pod has beside the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FurtherInterface {
    /// Its name in the pod.
    pub interface: InterfaceName,
    /// The network it is in.
    pub network: NetworkName,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRecord {
    /// Its name.
    pub name: NamespaceName,
    /// The pools that addresses of its pods come from; empty for those of everybody.
    pub pools: Vec<PoolName>,
    /// The network that its pods are in, unless they say otherwise, and its Services; `None` for the pods' segment.
    pub network: Option<NetworkName>,
    /// Whether interfaces of its pods must be veths, unless they say otherwise.
    pub veth: bool,
    /// Its labels, with the one that says its name.
    pub labels: Arc<Labels>,
    /// Whether denials of its policies are logged.
    pub logs_denied: bool,
}

impl NamespaceRecord {
    /// What is known of a namespace without an object: its name.
    #[must_use]
    pub fn unlabelled(name: NamespaceName) -> Self {
        let labels = Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), name.to_string())]);
        Self { name, labels: Arc::new(labels), pools: Vec::new(), network: None, veth: false, logs_denied: false }
    }
}
