//! Who may talk to whom: what the policies of the cluster mean for the pods of this node.
//!
//! Selectors are resolved before they get here. A rule speaks of *sets* of peers ([`PeerSet`]); an address has an
//! [`Identity`]: the sets it is a member of, and the ports its pod gives names to. Networks (`ipBlock`) are sets as
//! well, found by the longest prefix. So a packet costs one exact lookup for each end, at most one longest-prefix
//! lookup, and then a walk over the rules of those policies that select the pod: a policy that does not select it
//! costs nothing, however many there are.
//!
//! Everything is shared between one publish and the next where it did not change, and compared by address before it
//! is compared by content. Memory: 48 B an address and 24 B for each set an identity is in; identities are shared by
//! pods that no policy tells apart.

mod difference;
mod identity;
mod judge;
mod pods;
mod rules;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use difference::{PolicyChange, for_each_change};
pub use identity::{Identity, IdentityTable, NamedPort, PeerSet};
pub use judge::{Denial, Judgement, Packet, PeerView};
pub use pods::{Direction, DirectionPolicy, PodPolicies, PodPolicy};
pub use rules::{Action, Peers, PolicyInfo, PortRange, Ports, Rule, RuleCounts, RuleList};

use super::lookup::PrefixTree;
use super::{SegmentIndex, address_bits};

/// Everything the policies of the cluster say, as far as this node needs it.
#[derive(Clone, Debug, Default)]
pub struct PolicyTable {
    /// What selects each local pod, by its port.
    pub pods: PodPolicies,
    /// What is known of each pod's and node's address.
    pub identities: IdentityTable,
    /// Sets of networks by prefix, one tree for each family; a longer prefix repeats the sets of the shorter ones
    /// that hold for it.
    networks: [PrefixTree<Arc<[PeerSet]>>; 2],
    /// All sets that any rule speaks of, sorted.
    pub sets: Arc<[PeerSet]>,
    /// Where pods have their addresses, by segment, sorted, none of one inside another: what lies in there and has no identity
    /// is a pod that is not known yet. Empty if such pods are taken for nobody.
    pub pod_ranges: Arc<[(SegmentIndex, IpNet)]>,
}

impl PolicyTable {
    /// The sets of networks that `address` lies in.
    #[must_use]
    pub fn networks_of(&self, address: IpAddr) -> &[PeerSet] {
        let tree = &self.networks[family(address)];
        tree.longest(address_bits(address)).map_or(&[], |(_, sets)| sets)
    }

    /// The networks of the family of `address`, to change.
    pub fn networks_mut(&mut self, address: IpAddr) -> &mut PrefixTree<Arc<[PeerSet]>> {
        &mut self.networks[family(address)]
    }

    /// What is known of `address` in `segment`.
    #[must_use]
    pub fn peer(&self, segment: SegmentIndex, address: IpAddr) -> PeerView<'_> {
        let identity = self.identities.get(segment, address);
        PeerView { identity, is_unknown: identity.is_none() && self.is_of_pods(segment, address), address }
    }

    /// Whether `address` lies where pods of `segment` have theirs, as far as that matters.
    #[must_use]
    pub fn is_of_pods(&self, segment: SegmentIndex, address: IpAddr) -> bool {
        let behind = self.pod_ranges.partition_point(|(of, range)| (*of, range.network()) <= (segment, address));
        let before = behind.checked_sub(1).map(|at| &self.pod_ranges[at]);
        before.is_some_and(|(of, range)| *of == segment && range.contains(&address))
    }

    /// Whether this is the very table `other` is, without looking inside.
    #[must_use]
    pub fn is_same(&self, other: &PolicyTable) -> bool {
        self.pods.is_same(&other.pods)
            && self.identities.is_same(&other.identities)
            && self.networks.iter().zip(&other.networks).all(|(one, two)| one.is_same(two))
            && Arc::ptr_eq(&self.sets, &other.sets)
            && Arc::ptr_eq(&self.pod_ranges, &other.pod_ranges)
    }
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

impl PartialEq for PolicyTable {
    fn eq(&self, other: &Self) -> bool {
        let mut equal = self.sets == other.sets && self.pod_ranges == other.pod_ranges;
        self.identities.for_each_difference(&other.identities, |_, _, one, two| equal &= one == two);
        for (one, two) in self.networks.iter().zip(&other.networks) {
            one.for_each_difference(two, |_, _, _, _| equal = false);
        }
        equal && (self.pods.is_same(&other.pods) || self.pods.iter().eq(other.pods.iter()))
    }
}

impl Eq for PolicyTable {}
