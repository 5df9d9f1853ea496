//! The sets of peers that any rule speaks of, each once, with how many rules do.
//!
//! A set comes with the first rule that speaks of it and goes with the last. What came and went since the last look
//! is what pods have to be asked about again.

use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::HashSet;
use millrace_engine::tables::policy::{Direction, PeerSet};

use super::label_index::{Certainty, PodIndex, Scope};
use crate::cluster::{Labels, NetworkBlock, Peer, PodSelection, PolicyRecord, PortRecord, Selector};

/// Something and how many rules speak of it.
type Counted<T> = HashMap<T, usize>;

/// All sets in use.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerSets {
    pods: Counted<PodSelection>,
    index: PodIndex<PeerSet>,
    nodes: Counted<Selector>,
    networks: Counted<NetworkBlock>,
    names: Counted<Arc<str>>,
    changed: SetChanges,
}

/// What came or went; what did both is named, too, which costs a look and changes nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct SetChanges {
    pub(super) pods: HashSet<PodSelection>,
    pub(super) nodes: bool,
    pub(super) networks: bool,
    pub(super) names: HashSet<Arc<str>>,
}

impl SetChanges {
    /// Whether the list of all sets is another one.
    pub(super) fn any_set(&self) -> bool {
        !self.pods.is_empty() || self.nodes || self.networks
    }
}

/// The set of pods. Named by its structure: what people read is not the same for each two selections, for the empty
/// selector is `all` there, as is one that asks for the label `all`.
pub(super) fn pod_set(selection: &PodSelection) -> PeerSet {
    PeerSet::new(&format!("{selection:?}"))
}

/// The set of nodes.
pub(super) fn node_set(selector: &Selector) -> PeerSet {
    PeerSet::new(&format!("nodes {selector:?}"))
}

/// The set of addresses.
pub(super) fn network_set(block: &NetworkBlock) -> PeerSet {
    PeerSet::new(&block.to_string())
}

/// One more; true if it is the first.
fn more<T: Clone + Eq + std::hash::Hash>(counts: &mut Counted<T>, key: &T) -> bool {
    let count = counts.entry_ref(key).or_insert(0);
    *count += 1;
    *count == 1
}

/// One less; true if it was the last.
fn less<T: Eq + std::hash::Hash>(counts: &mut Counted<T>, key: &T) -> bool {
    let Some(count) = counts.get_mut(key) else { return false };
    *count -= 1;
    let last = *count == 0;
    if last {
        counts.remove(key);
    }
    last
}

fn peers(policy: &PolicyRecord) -> impl Iterator<Item = &Peer> {
    rules(policy).flat_map(|rule| rule.peers.iter().flatten())
}

fn names(policy: &PolicyRecord) -> impl Iterator<Item = &Arc<str>> {
    rules(policy).flat_map(|rule| rule.ports.iter().flatten()).filter_map(|port| match port {
        PortRecord::Named(name, _) => Some(name),
        PortRecord::Range(_) => None,
    })
}

fn rules(policy: &PolicyRecord) -> impl Iterator<Item = &crate::cluster::RuleRecord> {
    [Direction::Ingress, Direction::Egress].into_iter().filter_map(|direction| policy.rules(direction)).flatten()
}

impl PeerSets {
    /// Counts what a policy speaks of.
    pub(super) fn acquire(&mut self, policy: &PolicyRecord) {
        for peer in peers(policy) {
            match peer {
                Peer::Pods(selection) => {
                    if more(&mut self.pods, selection) {
                        self.index.insert(selection, pod_set(selection));
                        self.changed.pods.insert(selection.clone());
                    }
                }
                Peer::Nodes(selector) => self.changed.nodes |= more(&mut self.nodes, selector),
                Peer::Network(block) => self.changed.networks |= more(&mut self.networks, block),
            }
        }
        for name in names(policy) {
            if more(&mut self.names, name) {
                self.changed.names.insert(Arc::clone(name));
            }
        }
    }

    /// Takes back what [`PeerSets::acquire`] counted.
    pub(super) fn release(&mut self, policy: &PolicyRecord) {
        for peer in peers(policy) {
            match peer {
                Peer::Pods(selection) => {
                    if less(&mut self.pods, selection) {
                        self.index.remove(selection, &pod_set(selection));
                        self.changed.pods.insert(selection.clone());
                    }
                }
                Peer::Nodes(selector) => self.changed.nodes |= less(&mut self.nodes, selector),
                Peer::Network(block) => self.changed.networks |= less(&mut self.networks, block),
            }
        }
        for name in names(policy) {
            if less(&mut self.names, name) {
                self.changed.names.insert(Arc::clone(name));
            }
        }
    }

    /// What changed since this was last asked.
    pub(super) fn take_changes(&mut self) -> SetChanges {
        std::mem::take(&mut self.changed)
    }

    /// The sets that a pod is in, and those that it may be in for all that is known; both sorted.
    pub(super) fn of_pod(&self, scope: &Scope<'_>, labels: Option<&Labels>) -> [Box<[PeerSet]>; 2] {
        let [mut certain, mut possible] = [Vec::new(), Vec::new()];
        self.index.for_each_match(scope, labels, &mut |set, certainty| match certainty {
            Certainty::Certain => certain.push(set.clone()),
            Certainty::Possible => possible.push(set.clone()),
        });
        [certain, possible].map(|mut sets| {
            sets.sort_unstable();
            sets.dedup();
            sets.into()
        })
    }

    /// The sets that a node is in, sorted.
    pub(super) fn of_node(&self, labels: &Labels) -> Box<[PeerSet]> {
        let mut sets: Vec<PeerSet> =
            self.nodes.keys().filter(|selector| selector.selects(labels)).map(node_set).collect();
        sets.sort_unstable();
        sets.into()
    }

    /// Whether some rule asks for a port by this name.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// All networks, in no order.
    pub(super) fn networks(&self) -> impl Iterator<Item = &NetworkBlock> {
        self.networks.keys()
    }

    /// All sets, sorted.
    pub(super) fn all(&self) -> Arc<[PeerSet]> {
        let pods = self.pods.keys().map(pod_set);
        let mut sets: Vec<PeerSet> =
            pods.chain(self.nodes.keys().map(node_set)).chain(self.networks.keys().map(network_set)).collect();
        sets.sort_unstable();
        sets.into()
    }
}
