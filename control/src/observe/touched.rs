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
    /// Whether pools, blocks, networks or prefixes assigned to nodes came, went or became others: where pods and nodes have
    /// their addresses.
    pub addressing: bool,
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
            addressing: true,
        }
    }

    /// Notes a record that is about to come into `cluster`.
    pub(super) fn note(&mut self, record: &Record, cluster: &Cluster) {
        match record {
            Record::Pod(pod) => drop(self.pods.insert(pod.name.clone())),
            Record::Namespace(namespace) => drop(self.namespaces.insert(namespace.name.clone())),
            Record::Node(node) => {
                let before = cluster.nodes.get(&node.name);
                self.addressing |= before.is_none_or(|before| before.pod_cidrs != node.pod_cidrs);
                self.nodes.insert(node.name.clone());
            }
            Record::Policy(policy) => drop(self.policies.insert(policy.name.clone())),
            Record::Pool(pool) => self.addressing |= cluster.pools.get(pool.name()) != Some(pool),
            Record::Block(block) => {
                let place = |block: &crate::cluster::BlockRecord| {
                    (block.cidr, block.pool.clone(), block.network.clone(), block.node.clone())
                };
                self.addressing |= cluster.blocks.get(&block.name).map(place) != Some(place(block));
            }
            Record::Uplink(_) | Record::Service(_) | Record::Slice(_) | Record::ServiceRange(..) => {}
            Record::Network(network) => self.addressing |= cluster.networks.get(&network.name) != Some(network),
            Record::Bridge(_) | Record::Port(_) => {}
        }
    }
}
