//! One block of ours: which of its addresses are in use, and which are not ours to give without asking.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use crate::cluster::{BlockRecord, Cidr, Offsets};

/// A block that this node owns. Blocks have at most 65,536 addresses.
#[derive(Debug)]
pub(super) struct OwnBlock {
    cidr: Cidr,
    used: BTreeSet<IpAddr>,
    /// Places that the object lends or assigns, as of our last write or read of it. Others only ever move a place
    /// from one to the other, so this is right whatever they did since.
    shared: Offsets,
    /// Whether the observed cluster has had the block as ours; before, it may only not have got there yet.
    observed: bool,
    /// Since when no address is in use.
    pub(super) empty_since: Option<Instant>,
}

impl OwnBlock {
    /// A block with all addresses free and all of them ours to give.
    pub(super) fn new(cidr: Cidr) -> Self {
        Self { cidr, used: BTreeSet::new(), shared: Offsets::default(), observed: false, empty_since: None }
    }

    /// A block as its object has it.
    pub(super) fn of(record: &BlockRecord) -> Self {
        let mut block = Self::new(record.cidr);
        block.follow(record);
        block
    }

    /// Takes over what the object, just read or written, lends and assigns.
    pub(super) fn follow(&mut self, record: &BlockRecord) {
        self.shared = record.lendable.clone();
        record.assigned.keys().filter_map(|address| record.offset(*address)).for_each(|at| self.shared.insert(at));
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
        usize::from(last_offset(self.cidr))
    }

    /// Whether the address is in use.
    pub(super) fn is_in_use(&self, address: IpAddr) -> bool {
        self.used.contains(&address)
    }

    /// Whether the address is lent, assigned or may be taken by others.
    pub(super) fn is_shared(&self, address: IpAddr) -> bool {
        self.place(address).is_some_and(|offset| self.shared.has(offset))
    }

    /// The place of an address.
    pub(super) fn place(&self, address: IpAddr) -> Option<u16> {
        self.cidr.offset(address).and_then(|offset| u16::try_from(offset).ok())
    }

    /// The lowest address that is free, ours to give, and not reserved.
    pub(super) fn lowest_free(&self, reserved: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        self.free_places().filter_map(|at| self.cidr.address(u128::from(at))).find(|address| !reserved(*address))
    }

    /// Places that are free and ours to give.
    pub(super) fn free_places(&self) -> impl Iterator<Item = u16> {
        let free = |offset: &u16| {
            let address = self.cidr.address(u128::from(*offset));
            !self.shared.has(*offset) && address.is_some_and(|address| !self.used.contains(&address))
        };
        (1..=last_offset(self.cidr)).filter(free)
    }

    /// Marks an address as in use, if it is one of this block.
    pub(super) fn take(&mut self, address: IpAddr) {
        if self.cidr.has(address) {
            self.used.insert(address);
            self.empty_since = None;
        }
    }

    /// Marks an address as free.
    pub(super) fn release(&mut self, address: IpAddr) {
        self.used.remove(&address);
    }
}

/// The last place of a block.
pub(super) fn last_offset(cidr: Cidr) -> u16 {
    let bits = u32::from(cidr.address_bits() - cidr.length()).min(16);
    ((1u32 << bits) - 1) as u16
}
