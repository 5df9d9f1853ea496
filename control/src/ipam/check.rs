//! `millrace check ipam`: addresses that are lost, and what to do about each.
//!
//! Compares four sources that should agree: what the allocator of this node has given out, the record of attachments,
//! the pods as the cluster has them, and the blocks. A pure function of the present state; a pod that is being plugged
//! in at the very moment may show up once, what stays is a finding.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Holder;
use crate::cluster::{AssignedAddress, Cluster, NetworkName, NodeName, PodName};

/// An attachment as the check sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Who holds its addresses, as the allocator knows it.
    pub holder: Holder,
    /// The pod, if it is one of Kubernetes.
    pub pod: Option<PodName>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its network namespace is there.
    pub namespace_is_there: bool,
}

/// What sort of leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// Held by nothing that is recorded.
    HeldWithoutAttachment,
    /// Recorded for a container whose network namespace is gone.
    NamespaceGone,
    /// Recorded for a pod that the cluster does not have.
    AddressWithoutPod,
    /// Of a pod on this node that holds no such address here.
    PodWithoutAddress,
    /// In use, but in no block of this node and not assigned to it.
    OutsideOfBlocks,
    /// A block whose node does not exist.
    BlockOfVanishedNode,
    /// An address that is assigned to a node that does not exist.
    AssignedToVanishedNode,
    /// A block without its pool.
    BlockWithoutPool,
}

impl FindingKind {
    /// Stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HeldWithoutAttachment => "held_without_attachment",
            Self::NamespaceGone => "namespace_gone",
            Self::AddressWithoutPod => "address_without_pod",
            Self::PodWithoutAddress => "pod_without_address",
            Self::OutsideOfBlocks => "outside_of_blocks",
            Self::BlockOfVanishedNode => "block_of_vanished_node",
            Self::AssignedToVanishedNode => "assigned_to_vanished_node",
            Self::BlockWithoutPool => "block_without_pool",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn next_step(self) -> &'static str {
        match self {
            Self::HeldWithoutAttachment => "restart the agent: it takes up what is recorded and nothing else",
            Self::NamespaceGone => {
                "no DEL came for it; the runtime's GC or the agent's next start releases it, or run the plugin's DEL by hand"
            }
            Self::AddressWithoutPod => {
                "if the pod is gone for good, remove its sandbox (crictl rmp, podman rm); its DEL releases the address"
            }
            Self::PodWithoutAddress => {
                "the pod is not plugged in at this agent: see `millrace show ports`; delete the pod so that it is made anew"
            }
            Self::OutsideOfBlocks => {
                "its block was deleted or given to another node while in use: delete the pod so that it gets another address"
            }
            Self::BlockOfVanishedNode => {
                "agents free it a quarter of an hour after the node's object has gone; sooner: delete the IpBlock (kubectl delete ipblock, or its file)"
            }
            Self::AssignedToVanishedNode => {
                "agents free it a quarter of an hour after the node's object has gone; sooner: delete the entry from `assigned` of the IpBlock and add its place to `lendable`"
            }
            Self::BlockWithoutPool => "create the IpPool again, or delete the block once `show ipam` shows it unused",
        }
    }
}

/// One leak.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What sort.
    pub kind: FindingKind,
    /// The address or the block.
    pub subject: String,
    /// What is wrong, in a sentence.
    pub message: String,
}

/// Finds the leaks of a network; of the pods' segment for `None`. `held` and `attached` are those of this network.
/// `uses_blocks` is false where the node has addresses from its `podCIDR`.
#[must_use]
pub fn check(
    cluster: &Cluster,
    (node, network): (&NodeName, Option<&NetworkName>),
    held: &BTreeMap<IpAddr, Holder>,
    attached: &[Attached],
    uses_blocks: bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    held_addresses(held, attached, &mut findings);
    attachments(cluster, attached, &mut findings);
    pods(cluster, (node, network), held, &mut findings);
    if uses_blocks {
        places(cluster, (node, network), held, &mut findings);
    }
    blocks(cluster, network, &mut findings);
    findings.sort_unstable();
    findings
}

fn finding(kind: FindingKind, subject: impl ToString, message: String) -> Finding {
    Finding { kind, subject: subject.to_string(), message }
}

fn held_addresses(held: &BTreeMap<IpAddr, Holder>, attached: &[Attached], findings: &mut Vec<Finding>) {
    let holders: BTreeSet<&Holder> = attached.iter().map(|attached| &attached.holder).collect();
    for (address, holder) in held.iter().filter(|(_, holder)| !holders.contains(holder)) {
        let message = format!("held by {holder}, of which there is no record");
        findings.push(finding(FindingKind::HeldWithoutAttachment, address, message));
    }
}

fn attachments(cluster: &Cluster, attached: &[Attached], findings: &mut Vec<Finding>) {
    for attachment in attached {
        for address in &attachment.addresses {
            if !attachment.namespace_is_there {
                let message = format!("held by {}, whose network namespace is gone", attachment.holder);
                findings.push(finding(FindingKind::NamespaceGone, address, message));
            }
            // A cluster without any Pod object is one where nobody writes them.
            let gone = |pod: &&PodName| !cluster.pods.is_empty() && !cluster.pods.contains_key(*pod);
            if let Some(pod) = attachment.pod.as_ref().filter(gone) {
                let message = format!("held by {} for pod {pod}, which does not exist", attachment.holder);
                findings.push(finding(FindingKind::AddressWithoutPod, address, message));
            }
        }
    }
}

fn pods(
    cluster: &Cluster,
    (node, network): (&NodeName, Option<&NetworkName>),
    held: &BTreeMap<IpAddr, Holder>,
    findings: &mut Vec<Finding>,
) {
    let here = cluster.pods.values().filter(|pod| pod.node.as_ref() == Some(node) && !pod.host_network);
    for pod in here.filter(|pod| cluster.memberships.of_pod(&pod.name) == network) {
        for address in pod.addresses.iter().filter(|address| !held.contains_key(*address)) {
            let message = format!("pod {} has it by its status, and nothing on this node holds it", pod.name);
            findings.push(finding(FindingKind::PodWithoutAddress, address, message));
        }
    }
}

fn places(
    cluster: &Cluster,
    (node, network): (&NodeName, Option<&NetworkName>),
    held: &BTreeMap<IpAddr, Holder>,
    findings: &mut Vec<Finding>,
) {
    for (address, holder) in held {
        let ours = cluster.blocks_of(network).any(|block| match block.assigned.get(address) {
            Some(entry) => entry.node == *node,
            None => block.node == *node && block.cidr.has(*address),
        });
        if !ours {
            let message = format!("held by {holder}, but in no block of this node and not assigned to it");
            findings.push(finding(FindingKind::OutsideOfBlocks, address, message));
        }
    }
}

fn blocks(cluster: &Cluster, network: Option<&NetworkName>, findings: &mut Vec<Finding>) {
    for block in cluster.blocks_of(network) {
        if !cluster.nodes.contains_key(&block.node) {
            let message = format!("{} belongs to node {}, which does not exist", block.cidr, block.node);
            findings.push(finding(FindingKind::BlockOfVanishedNode, &block.name, message));
        }
        if !cluster.pools.get(&block.pool).is_some_and(|pool| pool.cidr().contains(block.cidr)) {
            let message = format!("{} is not part of pool {}", block.cidr, block.pool);
            findings.push(finding(FindingKind::BlockWithoutPool, &block.name, message));
        }
        // One that is kept waits for its pod, whichever node gets it.
        let is_lost = |entry: &AssignedAddress| !cluster.nodes.contains_key(&entry.node) && entry.kept_for.is_none();
        for (address, entry) in block.assigned.iter().filter(|(_, entry)| is_lost(entry)) {
            let message = format!("of block {}, assigned to node {}, which does not exist", block.name, entry.node);
            findings.push(finding(FindingKind::AssignedToVanishedNode, address, message));
        }
    }
}
