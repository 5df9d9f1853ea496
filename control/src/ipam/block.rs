//! One block of ours: which of its addresses are in use.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cluster::Cidr;

/// A block that this node owns. Blocks have at most 65,536 addresses.
#[derive(Debug)]
pub(super) struct OwnBlock {
    cidr: Cidr,
    used: BTreeSet<IpAddr>,
    /// Whether the observed cluster has had the block as ours; before, it may only not have got there yet.
    observed: bool,
}

impl OwnBlock {
    /// A block with all addresses free.
    pub(super) fn new(cidr: Cidr) -> Self {
        Self { cidr, used: BTreeSet::new(), observed: false }
    }

    /// Its prefix.
    pub(super) fn cidr(&self) -> Cidr {
        self.cidr
    }

    /// Takes in whether the cluster has this block as ours. False if it had and has no more, or has it as another's.
    pub(super) fn is_still_ours(&mut self, owned: Option<bool>) -> bool {
        self.observed |= owned == Some(true);
        owned.unwrap_or(!self.observed)
    }

    /// Addresses in use.
    pub(super) fn used(&self) -> usize {
        self.used.len()
    }

    /// Addresses for pods: all but the first, which is the node's.
    pub(super) fn capacity(&self) -> usize {
        (1usize << (self.cidr.address_bits() - self.cidr.length()).min(16)) - 1
    }

    /// Takes the lowest free address.
    pub(super) fn allocate(&mut self) -> Option<IpAddr> {
        let address = (1..=self.capacity() as u128)
            .map_while(|offset| self.cidr.address(offset))
            .find(|address| !self.used.contains(address))?;
        self.used.insert(address);
        Some(address)
    }

    /// Marks an address as in use, if it is one of this block.
    pub(super) fn take(&mut self, address: IpAddr) {
        if self.cidr.has(address) {
            self.used.insert(address);
        }
    }

    /// Marks an address as free.
    pub(super) fn release(&mut self, address: IpAddr) {
        self.used.remove(&address);
    }
}
