//! Neighbours: which MAC address a next hop has.
//!
//! The switch sends tunnel packets past the kernel, so no kernel traffic keeps the uplink's neighbour entries fresh.
//! The entries of next hops are therefore made *managed* (`NTF_EXT_MANAGED`, Linux 5.16 and later): the kernel
//! resolves them at once and probes them again on its own, and the monitor reports each change.

use std::net::IpAddr;

use millrace_engine::packet::Mac;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState as KernelState,
};
use netlink_packet_route::route::RouteProtocol;

use super::routes::{ROUTE_PROTOCOL, family};
use super::{KernelError, Netlink, unless_absent};

/// How far an entry can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Set by hand, or needs no resolution.
    Permanent,
    /// Confirmed lately.
    Reachable,
    /// Was confirmed once; may be used while it is being probed.
    Stale,
    /// Being asked for; there is no address yet.
    Incomplete,
    /// Did not answer.
    Failed,
}

/// A neighbour entry of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Number of the link it is on.
    pub link: u32,
    /// Its IP address.
    pub address: IpAddr,
    /// Its MAC address, unless it was never resolved.
    pub mac: Option<Mac>,
    /// How far that can be trusted.
    pub state: NeighbourState,
    /// Whether the kernel keeps it fresh on its own.
    pub managed: bool,
    /// Whether this program made it so (`NDA_PROTOCOL`).
    pub ours: bool,
}

impl Neighbour {
    /// The MAC address, if it may be used: not while incomplete, and not after the neighbour failed to answer.
    #[must_use]
    pub fn usable_mac(&self) -> Option<Mac> {
        match self.state {
            NeighbourState::Permanent | NeighbourState::Reachable | NeighbourState::Stale => self.mac,
            NeighbourState::Incomplete | NeighbourState::Failed => None,
        }
    }

    pub(super) fn read(message: &NeighbourMessage) -> Option<Neighbour> {
        let mut address = None;
        let (mut mac, mut managed, mut ours) = (None, false, false);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(IpAddr::V4(*found)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some(IpAddr::V6(*found)),
                NeighbourAttribute::LinkLayerAddress(bytes) if bytes.len() == 6 => mac = Some(Mac::read(bytes)),
                NeighbourAttribute::Protocol(protocol) => ours = *protocol == RouteProtocol::Other(ROUTE_PROTOCOL),
                NeighbourAttribute::ExtFlags(flags) => managed = flags.contains(NeighbourExtFlags::Managed),
                _ => {}
            }
        }
        let state = match message.header.state {
            KernelState::Permanent | KernelState::Noarp => NeighbourState::Permanent,
            KernelState::Reachable => NeighbourState::Reachable,
            KernelState::Stale | KernelState::Delay | KernelState::Probe => NeighbourState::Stale,
            KernelState::Failed => NeighbourState::Failed,
            _ => NeighbourState::Incomplete,
        };
        Some(Neighbour { link: message.header.ifindex, address: address?, mac, state, managed, ours })
    }
}

impl Netlink {
    /// Fixes the MAC address of `address` on the link `name`. May be repeated.
    ///
    /// # Errors
    /// If the link is absent, or the kernel refused.
    pub fn set_permanent_neighbour(&mut self, name: &str, address: IpAddr, mac: Mac) -> Result<(), KernelError> {
        let link = self.existing_link(name)?.index;
        let mut message = neighbour_message(link, address);
        message.header.state = KernelState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.set_neighbour(message, || format!("set neighbour {address} {mac} on link {name}"))
    }

    /// Lets the kernel resolve `address` on link number `link` and keep it fresh. May be repeated. The entry is marked as
    /// this program's, so that [`forget_managed_neighbours`](Self::forget_managed_neighbours) finds it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_managed_neighbour(&mut self, link: u32, address: IpAddr) -> Result<(), KernelError> {
        let mut message = neighbour_message(link, address);
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)));
        self.set_neighbour(message, || format!("have neighbour {address} on link number {link} kept fresh"))
    }

    /// Deletes the managed neighbours of this program, on all links: whoever is spoken to is resolved anew. How many there
    /// were.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn forget_managed_neighbours(&mut self) -> Result<usize, KernelError> {
        let known = self.neighbours()?;
        let ours = known.iter().filter(|neighbour| neighbour.managed && neighbour.ours);
        ours.map(|neighbour| self.delete_neighbour(neighbour.link, neighbour.address))
            .try_fold(0, |count, deleted| Ok(count + usize::from(deleted?)))
    }

    /// Has the kernel resolve `address` on link number `link` now, as if it had a packet for it. May be repeated.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn resolve_neighbour(&mut self, link: u32, address: IpAddr) -> Result<(), KernelError> {
        let mut message = neighbour_message(link, address);
        message.header.flags |= NeighbourFlags::Use;
        self.set_neighbour(message, || format!("have neighbour {address} on link number {link} resolved"))
    }

    /// Deletes the entry. False if there was none.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn delete_neighbour(&mut self, link: u32, address: IpAddr) -> Result<bool, KernelError> {
        let message = RouteNetlinkMessage::DelNeighbour(neighbour_message(link, address));
        let attempt = || format!("delete neighbour {address} of link number {link}");
        unless_absent(self.request(message, 0, attempt).map(|_| ()))
    }

    /// All neighbours of both IP versions.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, KernelError> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let items = self.dump(request, || "list the neighbours".to_owned())?;
        Ok(items
            .iter()
            .filter_map(|item| match item {
                RouteNetlinkMessage::NewNeighbour(message) => Neighbour::read(message),
                _ => None,
            })
            .collect())
    }

    fn set_neighbour(&mut self, message: NeighbourMessage, attempt: impl Fn() -> String) -> Result<(), KernelError> {
        self.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, attempt).map(|_| ())
    }
}

fn neighbour_message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    message.attributes.push(neighbour_address(address));
    message
}

pub(super) fn neighbour_address(address: IpAddr) -> NeighbourAttribute {
    NeighbourAttribute::Destination(match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    })
}
