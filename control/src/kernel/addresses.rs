//! Addresses of links.
//!
//! IPv6 addresses are set without duplicate address detection: it needs a carrier for a second, and a TAP loses
//! its carrier whenever the agent restarts. Addresses are unique because they are allocated.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

use super::routes::family;
use super::{KernelError, Netlink, unless_absent};

impl Netlink {
    /// Gives `address` to the link `name`; the prefix length says what is on-link. May be repeated.
    ///
    /// # Errors
    /// If the link is absent, or the kernel refused.
    pub fn add_address(&mut self, name: &str, address: IpNet) -> Result<(), KernelError> {
        let mut message = self.address_message(name, address)?;
        if address.addr().is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let attempt = || format!("add address {address} to link {name}");
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE, attempt).map(|_| ())
    }

    /// Takes `address` from the link `name`. False if it did not have it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn delete_address(&mut self, name: &str, address: IpNet) -> Result<bool, KernelError> {
        let message = match self.address_message(name, address) {
            Ok(message) => message,
            Err(error) if error.is_absent() => return Ok(false),
            Err(error) => return Err(error),
        };
        let attempt = || format!("delete address {address} of link {name}");
        unless_absent(self.request(RouteNetlinkMessage::DelAddress(message), 0, attempt).map(|_| ()))
    }

    /// All addresses of the link `name`, in the kernel's order, link-local ones included.
    ///
    /// # Errors
    /// If the link is absent, or what the kernel said.
    pub fn addresses(&mut self, name: &str) -> Result<Vec<IpNet>, KernelError> {
        let index = self.existing_link(name)?.index;
        let items = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), || {
            format!("list the addresses of link {name}")
        })?;
        Ok(items
            .iter()
            .filter_map(|item| match item {
                RouteNetlinkMessage::NewAddress(message) if message.header.index == index => read(message),
                _ => None,
            })
            .collect())
    }

    /// All addresses of the namespace that are not bound to one link, each with the number of its link, in the kernel's
    /// order; those of the loopback network left out.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn all_addresses(&mut self) -> Result<Vec<(u32, IpNet)>, KernelError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let items = self.dump(request, || "list all addresses".to_owned())?;
        let wide = |address: &IpNet| match address.addr() {
            IpAddr::V4(address) => !address.is_link_local() && !address.is_loopback(),
            IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_loopback(),
        };
        let read = |item: &RouteNetlinkMessage| match item {
            RouteNetlinkMessage::NewAddress(message) => Some((message.header.index, read(message).filter(wide)?)),
            _ => None,
        };
        Ok(items.iter().filter_map(read).collect())
    }

    fn address_message(&mut self, name: &str, address: IpNet) -> Result<AddressMessage, KernelError> {
        let mut message = AddressMessage::default();
        message.header.index = self.existing_link(name)?.index;
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        let link_local = match address.addr() {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        message.header.scope = if link_local { AddressScope::Link } else { AddressScope::Universe };
        message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        Ok(message)
    }
}

/// An IPv4 address has its own attribute beside that of the peer; an IPv6 address has only the latter.
fn read(message: &AddressMessage) -> Option<IpNet> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    IpNet::new(find(true).or_else(|| find(false))?, message.header.prefix_len).ok()
}
