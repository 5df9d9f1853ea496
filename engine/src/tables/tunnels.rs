//! Other nodes: who may send us VXLAN, and how frames reach them over the underlay.

use std::net::IpAddr;
use std::sync::Arc;

use super::lookup::PrefixTree;
use super::segments::address_bits;
use crate::packet::{Mac, PortIndex};

/// Our own tunnel end on one uplink, of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// The node's underlay address.
    pub address: IpAddr,
    /// The uplink that has the address.
    pub port: PortIndex,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node's name.
    pub name: Arc<str>,
    /// Its VTEP address; frames from any other address are no peer's.
    pub address: IpAddr,
    /// Our address towards it: the outer source.
    pub source: IpAddr,
    /// The first hop towards it, once the host's kernel has resolved it.
    pub next_hop: Option<NextHop>,
    /// Longest outer IP packet that reaches it, in bytes.
    pub mtu: u32,
}

/// The first hop towards a peer, as the host's routes and neighbours have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Uplink to leave by.
    pub port: PortIndex,
    /// MAC address of the uplink.
    pub source_mac: Mac,
    /// MAC address of the peer or of the router on the way.
    pub destination_mac: Mac,
}

/// All tunnels.
#[derive(Clone, Debug)]
pub struct Tunnels {
    /// UDP destination port of VXLAN: 8472 as flannel and Linux use it, or 4789 as IANA assigned it.
    pub udp_port: u16,
    /// Our own ends.
    pub local: Arc<Vec<Vtep>>,
    /// Peers by address; one tree for each family.
    peers: [PrefixTree<Arc<Peer>>; 2],
}

impl Default for Tunnels {
    fn default() -> Self {
        Self { udp_port: Self::UDP_PORT, local: Arc::default(), peers: Default::default() }
    }
}

impl Tunnels {
    /// The VXLAN port flannel uses, and the Linux kernel by default.
    pub const UDP_PORT: u16 = 8472;

    fn family(address: IpAddr) -> (usize, u8) {
        if address.is_ipv4() { (0, 32) } else { (1, 128) }
    }

    /// The peer with this VTEP address.
    #[must_use]
    pub fn peer(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        let (family, length) = Self::family(address);
        self.peers[family].get(address_bits(address), length)
    }

    /// Adds or replaces a peer.
    pub fn insert_peer(&mut self, peer: Peer) {
        let (family, length) = Self::family(peer.address);
        self.peers[family].insert(address_bits(peer.address), length, Arc::new(peer));
    }

    /// Removes a peer.
    pub fn remove_peer(&mut self, address: IpAddr) {
        let (family, length) = Self::family(address);
        self.peers[family].remove(address_bits(address), length);
    }

    /// Calls `visit` with each peer in order of family and address.
    pub fn for_each_peer(&self, mut visit: impl FnMut(&Arc<Peer>)) {
        for tree in &self.peers {
            tree.for_each(|_, _, peer| visit(peer));
        }
    }

    /// Calls `changed` with the address of each peer that differs from `before`.
    pub fn for_each_changed_peer(&self, before: &Tunnels, mut changed: impl FnMut(IpAddr)) {
        for (now, then) in self.peers.iter().zip(&before.peers) {
            then.for_each_difference(now, |_, _, old, new| {
                old.or(new).iter().for_each(|peer| changed(peer.address));
            });
        }
    }

    /// Whether `address` is one of our own ends.
    #[inline]
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.local.iter().any(|vtep| vtep.address == address)
    }
}
