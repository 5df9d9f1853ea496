//! The allocators of one node: one for the pods' segment, and one for each network that has pods here or had some.
//!
//! Addresses of two networks may be the same, so each network has its own blocks, claims and holders; a holder has
//! addresses in one network only. An allocator of a network is made when the first pod asks, and is a few empty maps again
//! when the last has gone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use super::maintenance::Maintained;
use super::{AddressAllocator, AddressRequest, AddressSource, Holder, IpamError};
use crate::cluster::{Cluster, NetworkName, NodeName};
use crate::store::ObjectStore;

/// All allocators of one node.
#[derive(Debug)]
pub struct AddressAllocators {
    node: NodeName,
    pods: AddressAllocator,
    networks: BTreeMap<NetworkName, AddressAllocator>,
}

impl AddressAllocators {
    /// Allocators without blocks; addresses of the pods' segment come from `source`, all others out of blocks.
    #[must_use]
    pub fn new(node: NodeName, source: AddressSource) -> Self {
        Self { pods: AddressAllocator::with_source(node.clone(), source), node, networks: BTreeMap::new() }
    }

    /// That of the pods' segment.
    #[must_use]
    pub fn pods(&self) -> &AddressAllocator {
        &self.pods
    }

    /// All of them, each with its network.
    pub fn all(&self) -> impl Iterator<Item = (Option<&NetworkName>, &AddressAllocator)> {
        let networks = self.networks.iter().map(|(network, allocator)| (Some(network), allocator));
        std::iter::once((None, &self.pods)).chain(networks)
    }

    fn of(&mut self, network: Option<&NetworkName>) -> &mut AddressAllocator {
        let Some(network) = network else { return &mut self.pods };
        let make = || AddressAllocator::of_network(self.node.clone(), network.clone());
        self.networks.entry(network.clone()).or_insert_with(make)
    }

    /// As [`AddressAllocator::restore`], in a network or the pods' segment.
    ///
    /// # Errors
    /// When somebody else holds the address there.
    pub fn restore(&mut self, network: Option<&NetworkName>, holder: &str, address: IpAddr) -> Result<(), IpamError> {
        self.of(network).restore(holder, address)
    }

    /// As [`AddressAllocator::allocate`], in a network or the pods' segment.
    ///
    /// # Errors
    /// The variant says why there is no address.
    pub fn allocate(
        &mut self,
        network: Option<&NetworkName>,
        store: &dyn ObjectStore,
        cluster: &Cluster,
        request: &AddressRequest<'_>,
    ) -> Result<Vec<IpAddr>, IpamError> {
        self.of(network).allocate(store, cluster, request)
    }

    /// As [`AddressAllocator::claim_for_node`]: the node has an address of its own in the pods' segment.
    ///
    /// # Errors
    /// See there.
    pub fn claim_for_node(&mut self, store: &dyn ObjectStore, cluster: &Cluster) -> Result<(), IpamError> {
        self.pods.claim_for_node(store, cluster)
    }

    /// Takes all addresses of the holder back, wherever it has them, and says which they were.
    pub fn release(&mut self, holder: &str) -> Vec<IpAddr> {
        let networks = self.networks.values_mut();
        let allocators = std::iter::once(&mut self.pods).chain(networks);
        allocators.flat_map(|allocator| allocator.release(holder)).collect()
    }

    /// All who hold an address.
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        self.all().flat_map(|(_, allocator)| allocator.held().values().cloned()).collect()
    }

    /// As [`AddressAllocator::maintain`]; `own` are the node's own addresses among pods.
    pub fn maintain(&mut self, store: &dyn ObjectStore, cluster: &Cluster, own: &[IpAddr], now: Instant) -> Maintained {
        let mut done = self.pods.maintain(store, cluster, own, now);
        // Blocks that an earlier process of this node claimed for a network are given back, too.
        let claimed = cluster.blocks.values().filter(|block| block.node == self.node);
        let claimed: Vec<NetworkName> = claimed.filter_map(|block| block.network.clone()).collect();
        claimed.iter().for_each(|network| {
            self.of(Some(network));
        });
        for allocator in self.networks.values_mut() {
            if done.is_cut_short() {
                break;
            }
            let more = allocator.maintain(store, cluster, &[], now);
            done.returned.extend(more.returned);
            done.given_back.extend(more.given_back);
            done.offered += more.offered;
            done.errors.extend(more.errors);
        }
        done
    }
}
