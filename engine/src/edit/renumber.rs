//! Gives the fragments of a packet whose addresses are replaced another number to share.
//!
//! A sender's kernel numbers its packets so that no two that are under way between the same addresses have one number. Behind
//! a translation that holds no more: two pods speak to a server under one address, or a client calls an endpoint under its
//! own and under its Service's address, and the receiver would put pieces of both together. So a keyed hash of the
//! packet's own addresses is added to the number. It is the same for all fragments, on every worker, without anything to
//! remember; packets of one sender keep apart as they were (Linux counts up for each pair of addresses), and those of
//! different ones lie apart by an amount that nobody outside can foresee. Packets that are not fragmented here are left
//! alone: their number matters only if a router on the way fragments them.

use crate::drop_reason::DropReason;
use crate::packet::Network;
use crate::packet::wire::{ipv4, ipv6};

/// Adds to the number of a fragment whose IP header begins at `network` of `head`; of IPv4 the upper half is left out.
///
/// # Errors
/// The header is not there.
pub fn renumber(head: &mut [u8], network: usize, family: Network, added: u32) -> Result<(), DropReason> {
    let packet = head.get_mut(network..).unwrap_or_default();
    let done = match family {
        Network::Ipv4 => ipv4::identification(packet)
            .and_then(|number| ipv4::set_identification(packet, number.wrapping_add(added as u16))),
        Network::Ipv6 => ipv6::fragment_identification(packet)
            .and_then(|number| ipv6::set_fragment_identification(packet, number.wrapping_add(added))),
        Network::Arp | Network::Other => None,
    };
    done.ok_or(DropReason::FragmentMalformed)
}
