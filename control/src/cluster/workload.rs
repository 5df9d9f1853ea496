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
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRecord {
    /// Its name.
    pub name: NamespaceName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}
