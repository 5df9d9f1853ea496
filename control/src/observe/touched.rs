//! Which objects were applied or deleted: what a planner has to look at again.
//!
//! Only names: what became of an object is in the cluster. An object that was applied without a change is named as
//! well; to look once more costs little and changes nothing.

use std::collections::BTreeSet;

use super::Record;
use crate::cluster::{Cluster, NamespaceName, NodeName, PodName, PolicyName};

/// Names of objects, of the kinds that policies read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Pods.
    pub pods: BTreeSet<PodName>,
    /// Namespaces.
    pub namespaces: BTreeSet<NamespaceName>,
    /// Nodes.
    pub nodes: BTreeSet<NodeName>,
    /// Policies.
    pub policies: BTreeSet<PolicyName>,
}

impl Touched {
    /// Everything there is in a cluster.
    #[must_use]
    pub fn everything(cluster: &Cluster) -> Self {
        Self {
            pods: cluster.pods.keys().cloned().collect(),
            namespaces: cluster.namespaces.keys().cloned().collect(),
            nodes: cluster.nodes.keys().cloned().collect(),
            policies: cluster.policies.keys().cloned().collect(),
        }
    }

    pub(super) fn note(&mut self, record: &Record) {
        match record {
            Record::Pod(pod) => drop(self.pods.insert(pod.name.clone())),
            Record::Namespace(namespace) => drop(self.namespaces.insert(namespace.name.clone())),
            Record::Node(node) => drop(self.nodes.insert(node.name.clone())),
            Record::Policy(policy) => drop(self.policies.insert(policy.name.clone())),
            Record::Uplink(_) | Record::Pool(_) | Record::Block(_) => {}
            Record::Service(_) | Record::Slice(_) | Record::ServiceRange(..) => {}
            Record::Bridge(_) | Record::Port(_) | Record::Network(_) => {}
        }
    }
}
