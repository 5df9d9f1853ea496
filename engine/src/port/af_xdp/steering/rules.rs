//! What of an interface's frames is ours, and its form in the maps of steering.bpf.c.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// Addresses of all sorts that a program holds. Entries of its maps and of its configuration; the same numbers stand in
/// steering.bpf.c.
pub const STEERED_ADDRESSES: usize = 65_536;
/// Destinations of Services that a program holds.
pub const STEERED_DESTINATIONS: usize = 131_072;
pub(super) const KNOWN_PEERS: usize = 16_384;
pub(super) const PORT_RANGES: usize = 4;

/// Bits of `configuration.flags`.
const EVERYTHING: u8 = 1;
const HAND_BACK: u8 = 2;
const HAS_DESTINATIONS: u8 = 4;
const ANNOUNCES: u8 = 8;

/// Bits of a value in `addresses`.
const TUNNEL_END: u8 = 1;
const OWN: u8 = 2;
const RANGES: u8 = 4;
const WHOLE: u8 = 8;
const ANNOUNCED: u8 = 16;

/// What of VXLAN is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VxlanRules {
    /// UDP port; zero steers nothing.
    pub port: u16,
    /// This node's tunnel addresses.
    pub local: HashSet<IpAddr>,
    /// The other nodes' tunnel addresses; at most 16,384.
    pub peers: HashSet<IpAddr>,
}

/// An address, a protocol and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// TCP, UDP or SCTP, by its IP protocol number; others are never steered.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// Ports that are ours at some addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SteeredPorts {
    /// TCP, UDP or SCTP, by its IP protocol number.
    pub protocol: u8,
    /// The first port.
    pub first: u16,
    /// The last port, itself included.
    pub last: u16,
}

/// What else may be ours, where the host's kernel takes back what is not. Together with the tunnel's at most 65,536
/// addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedRules {
    /// Addresses whose fragments and ICMP are steered; none of them link-local.
    pub own: HashSet<IpAddr>,
    /// Destinations that are steered, at most 131,072. Fragments and ICMP to their addresses are steered too.
    pub destinations: HashSet<Destination>,
    /// Ports that are steered at the addresses of `ranged`; at most 4.
    pub ranges: Vec<SteeredPorts>,
    /// Addresses that the ranges hold for. Fragments and ICMP to them are steered too.
    pub ranged: HashSet<IpAddr>,
    /// Addresses that everything to is steered.
    pub whole: HashSet<IpAddr>,
    /// Addresses that ARP requests and neighbour solicitations for are steered.
    pub announced: HashSet<IpAddr>,
}

/// What is steered to user space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SteeringRules {
    /// Tunnels.
    pub vxlan: VxlanRules,
    /// What is shared with the host's kernel; `None` where nobody could hand anything back.
    pub shared: Option<SharedRules>,
}

impl From<VxlanRules> for SteeringRules {
    fn from(vxlan: VxlanRules) -> Self {
        Self { vxlan, shared: None }
    }
}

/// `struct address` of steering.bpf.c: family 4 or 6 in host order, then the address.
pub(super) type AddressKey = [u8; 20];
/// `struct destination`: the address, the protocol, an empty byte, the port in network order.
pub(super) type DestinationKey = [u8; 24];
/// `struct configuration`: the VXLAN port in network order, flags, an empty byte, the ranges.
pub(super) type Configuration = [u8; 4 + 6 * PORT_RANGES];

/// The contents of the maps.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) addresses: HashMap<AddressKey, u8>,
    pub(super) destinations: HashMap<DestinationKey, u8>,
    pub(super) peers: HashMap<AddressKey, u8>,
}

impl Contents {
    pub(super) fn of(rules: &SteeringRules) -> Self {
        let peers = rules.vxlan.peers.iter().map(|peer| (address_key(*peer), 1)).collect();
        let mut contents = Self { peers, ..Self::default() };
        contents.add(rules.vxlan.local.iter().copied(), TUNNEL_END);
        let Some(shared) = &rules.shared else { return contents };
        contents.add(shared.own.iter().copied(), OWN);
        contents.add(shared.destinations.iter().map(|destination| destination.address), OWN);
        contents.add(shared.ranged.iter().copied(), OWN | RANGES);
        contents.add(shared.whole.iter().copied(), WHOLE);
        contents.add(shared.announced.iter().copied(), ANNOUNCED);
        contents.destinations =
            shared.destinations.iter().map(|destination| (destination_key(destination), 1)).collect();
        contents
    }

    fn add(&mut self, addresses: impl Iterator<Item = IpAddr>, kind: u8) {
        for address in addresses {
            *self.addresses.entry(address_key(address)).or_default() |= kind;
        }
    }
}

pub(super) fn address_key(address: IpAddr) -> AddressKey {
    let mut key = [0; 20];
    match address {
        IpAddr::V4(address) => {
            key[..4].copy_from_slice(&4u32.to_ne_bytes());
            key[4..8].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            key[..4].copy_from_slice(&6u32.to_ne_bytes());
            key[4..].copy_from_slice(&address.octets());
        }
    }
    key
}

fn destination_key(destination: &Destination) -> DestinationKey {
    let mut key = [0; 24];
    key[..20].copy_from_slice(&address_key(destination.address));
    key[20] = destination.protocol;
    key[22..].copy_from_slice(&destination.port.to_be_bytes());
    key
}

pub(super) fn configuration(rules: &SteeringRules, everything: bool) -> Configuration {
    let mut bytes = [0; _];
    bytes[..2].copy_from_slice(&rules.vxlan.port.to_be_bytes());
    bytes[2] = u8::from(everything) * EVERYTHING;
    let Some(shared) = &rules.shared else { return bytes };
    bytes[2] |= HAND_BACK | (u8::from(!shared.destinations.is_empty()) * HAS_DESTINATIONS);
    bytes[2] |= u8::from(!shared.announced.is_empty()) * ANNOUNCES;
    for (range, target) in shared.ranges.iter().zip(bytes[4..].chunks_exact_mut(6)) {
        target[0] = range.protocol;
        target[2..4].copy_from_slice(&range.first.to_ne_bytes());
        target[4..].copy_from_slice(&range.last.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_the_program() {
        let four = address_key(IpAddr::from([192, 0, 2, 1]));
        assert_eq!(four[..8], [&4u32.to_ne_bytes()[..], &[192, 0, 2, 1][..]].concat());
        assert!(four[8..].iter().all(|byte| *byte == 0));
        let six = address_key(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]));
        assert_eq!(six[..8], [&6u32.to_ne_bytes()[..], &[0x20, 0x01, 0x0d, 0xb8][..]].concat());
        let destination = Destination { address: IpAddr::from([192, 0, 2, 1]), protocol: 6, port: 80 };
        assert_eq!(destination_key(&destination), *[&four[..], &[6, 0, 0, 80]].concat());
    }

    #[test]
    fn the_configuration_matches_the_program() {
        let vxlan = VxlanRules { port: 8472, ..VxlanRules::default() };
        let tunnels = SteeringRules::from(vxlan.clone());
        assert_eq!(configuration(&tunnels, false)[..4], [0x21, 0x18, 0, 0]);
        assert_eq!(configuration(&SteeringRules::default(), true)[..4], [0, 0, EVERYTHING, 0]);
        let ranges = vec![SteeredPorts { protocol: 17, first: 0x0102, last: 0x0304 }];
        let rules = SteeringRules { vxlan, shared: Some(SharedRules { ranges, ..SharedRules::default() }) };
        let bytes = configuration(&rules, false);
        assert_eq!(bytes[..6], [0x21, 0x18, HAND_BACK, 0, 17, 0]);
        assert_eq!(bytes[6..10], *[0x0102u16.to_ne_bytes(), 0x0304u16.to_ne_bytes()].concat());
        assert!(bytes[10..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_address_may_be_several_things() {
        let [one, two] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        let destinations = HashSet::from([Destination { address: two, protocol: 6, port: 80 }]);
        let rules = SteeringRules {
            vxlan: VxlanRules { port: 1, local: HashSet::from([one]), peers: HashSet::new() },
            shared: Some(SharedRules { ranged: HashSet::from([one]), destinations, ..SharedRules::default() }),
        };
        let contents = Contents::of(&rules);
        let expected = [(address_key(one), TUNNEL_END | OWN | RANGES), (address_key(two), OWN)];
        assert_eq!(contents.addresses, HashMap::from(expected));
    }
}
