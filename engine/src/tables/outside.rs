//! The outside: what is reached by an uplink as plain IP, outside of any tunnel.
//!
//! Routes of the segments say which destinations lie there ([`RouteTarget::Outside`](super::RouteTarget::Outside)); here
//! is what they share: the MAC addresses that the host's kernel has resolved on its uplinks, and the source ports that
//! connections get under an uplink's address. MAC addresses stand apart from the routes, so that a router that comes and
//! goes changes flows by that router alone.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{PortRange, SegmentIndex};
use crate::limits;
use crate::packet::{Mac, PortIndex};

/// What routes to the outside share.
#[derive(Clone, Debug)]
pub struct Outside {
    /// Source ports of connections that leave under an address of an uplink; the host's own sockets keep off them.
    pub ports: PortRange,
    /// Networks that know the way to pods: towards them pods keep their own addresses, and from them pods are reached. At
    /// most [`OUTSIDE_EXEMPT`](limits::OUTSIDE_EXEMPT), since all are compared.
    pub exempt: Arc<[IpNet]>,
    /// Tenants' segments whose Services are called from outside, beside that of the host's port. In order, each once.
    pub tenants: Arc<[SegmentIndex]>,
    /// Addresses that this node has on the links of uplinks for Services, in order, each once.
    pub announced: Arc<[(PortIndex, IpAddr)]>,
    /// In order of port and address, each once.
    neighbours: Arc<Vec<Neighbour>>,
}

type Neighbour = ((PortIndex, IpAddr), Mac);

impl Default for Outside {
    fn default() -> Self {
        let (first, last) = limits::OUTSIDE_PORTS;
        let ports = PortRange::new(first, last).unwrap_or_default();
        Self {
            ports,
            exempt: Arc::default(),
            tenants: Arc::default(),
            announced: Arc::default(),
            neighbours: Arc::default(),
        }
    }
}

impl Outside {
    /// Whether the address lies in a network that knows the way to pods.
    #[must_use]
    pub fn is_exempt(&self, address: IpAddr) -> bool {
        self.exempt.iter().any(|network| network.contains(&address))
    }

    /// Whether this node answers for the address on the link of this uplink.
    #[must_use]
    pub fn announces(&self, uplink: PortIndex, address: IpAddr) -> bool {
        self.announced.binary_search(&(uplink, address)).is_ok()
    }

    /// The MAC address of `address` on the link of this uplink, if the host's kernel knows it.
    #[must_use]
    pub fn neighbour(&self, uplink: PortIndex, address: IpAddr) -> Option<Mac> {
        let at = self.neighbours.binary_search_by_key(&(uplink, address), |(key, _)| *key).ok()?;
        self.neighbours.get(at).map(|(_, mac)| *mac)
    }

    /// Sets all MAC addresses; the first of one address counts.
    pub fn set_neighbours(&mut self, neighbours: impl IntoIterator<Item = ((PortIndex, IpAddr), Mac)>) {
        let mut sorted: Vec<Neighbour> = neighbours.into_iter().collect();
        sorted.sort_by_key(|(key, _)| *key);
        sorted.dedup_by_key(|(key, _)| *key);
        if *self.neighbours != sorted {
            self.neighbours = Arc::new(sorted);
        }
    }

    /// Calls `changed` with each uplink and address whose MAC address differs from `before`.
    pub fn for_each_changed_neighbour(&self, before: &Outside, mut changed: impl FnMut(PortIndex, IpAddr)) {
        if Arc::ptr_eq(&self.neighbours, &before.neighbours) {
            return;
        }
        let (mut old, mut new) = (before.neighbours.as_slice(), self.neighbours.as_slice());
        while let Some(((port, address), _)) = old.first().into_iter().chain(new.first()).min_by_key(|(key, _)| *key) {
            let of =
                |list: &[Neighbour]| list.first().filter(|(key, _)| *key == (*port, *address)).map(|(_, mac)| *mac);
            let (then, now) = (of(old), of(new));
            if then != now {
                changed(*port, *address);
            }
            old = &old[usize::from(then.is_some())..];
            new = &new[usize::from(now.is_some())..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_neighbours_are_found_one_by_one() {
        let key = |port, last| (PortIndex(port), IpAddr::from([192, 0, 2, last]));
        let mac = |last| Mac([2, 0, 0, 0, 0, last]);
        let mut before = Outside::default();
        before.set_neighbours([(key(1, 9), mac(9)), (key(1, 1), mac(1)), (key(2, 1), mac(1)), (key(2, 5), mac(5))]);
        let mut after = before.clone();
        after.set_neighbours([(key(1, 1), mac(1)), (key(1, 9), mac(8)), (key(2, 5), mac(5)), (key(3, 1), mac(1))]);
        let mut seen = Vec::new();
        after.for_each_changed_neighbour(&before, |port, address| seen.push((port, address)));
        assert_eq!(seen, [key(1, 9), key(2, 1), key(3, 1)]);
        assert_eq!(after.neighbour(PortIndex(1), key(1, 9).1), Some(mac(8)));
        assert_eq!(after.neighbour(PortIndex(2), key(1, 1).1), None);
    }
}
