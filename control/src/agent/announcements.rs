//! Tells the stations on the uplinks' links of addresses that this node announces now: by gratuitous ARP and unsolicited
//! neighbour advertisements, three of each a look apart, so that one that is lost does no harm (RFC 5227 section 2.3, RFC 4861
//! section 7.2.6). Requests are answered by the workers.
//!
//! For IPv6 the host joins the group that solicitations for the address are sent to, so that the card lets them in and switches
//! forward them. Runs on the underlay thread.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use millrace_engine::packet::wire::{arp, nd};
use millrace_engine::packet::{Mac, PortIndex};

use super::shared::Shared;
use super::uplinks::Uplinks;
use crate::plan::{LocalUplink, NodePlan};

/// How often an address is told of.
const TIMES: u8 = 3;
/// Enough for either frame.
const FRAME_BYTES: usize = 128;

/// What is being announced, and how often it is still to be told of.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    left: BTreeMap<(IpAddr, PortIndex), u8>,
    /// Holds the memberships of groups.
    groups: Option<UdpSocket>,
}

impl Announcements {
    /// Follows the plan; what is wrong. Called at each look.
    pub(super) fn follow(
        &mut self,
        plan: &NodePlan,
        taken: &Uplinks,
        uplinks: &BTreeMap<PortIndex, LocalUplink>,
        shared: &Shared,
    ) -> Option<String> {
        let wanted = &plan.outside.announced;
        let gone: Vec<_> =
            self.left.keys().filter(|(address, port)| wanted.get(address) != Some(port)).copied().collect();
        for (address, port) in gone {
            self.left.remove(&(address, port));
            // A link that is gone took the membership with it.
            let _ = self.change_group(address, port, taken, UdpSocket::leave_multicast_v6);
        }
        let mut problem = None;
        for (address, port) in wanted {
            if !self.left.contains_key(&(*address, *port)) {
                let joined = self.change_group(*address, *port, taken, UdpSocket::join_multicast_v6);
                problem = problem.or(joined.err().map(|error| format!("{address} is not announced: {error}")));
            }
            let left = self.left.entry((*address, *port)).or_insert(TIMES);
            if let Some(uplink) = uplinks.get(port).filter(|_| *left > 0) {
                *left -= 1;
                let frame = frame(*address, uplink.mac);
                shared.switch.with(|switch| frame.iter().for_each(|frame| switch.send(*port, frame)));
            }
        }
        problem
    }

    fn change_group(
        &mut self,
        address: IpAddr,
        port: PortIndex,
        taken: &Uplinks,
        change: fn(&UdpSocket, &Ipv6Addr, u32) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let (IpAddr::V6(address), Some(link)) = (address, taken.link(port)) else { return Ok(()) };
        if self.groups.is_none() {
            self.groups = Some(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?);
        }
        let group = nd::solicited_node(&address.octets()).into();
        self.groups.as_ref().map_or(Ok(()), |socket| change(socket, &group, link))
    }
}

/// The frame by which `mac` has the address now.
fn frame(address: IpAddr, mac: Mac) -> Option<Vec<u8>> {
    let mut bytes = [0; FRAME_BYTES];
    let length = match address {
        IpAddr::V4(address) => arp::write_request_frame(&mut bytes, mac, address.octets(), address.octets()),
        IpAddr::V6(address) => {
            let own = nd::Solicitation { target: address.octets(), source_mac: None };
            nd::write_advertisement_frame(&mut bytes, Mac::ZERO, &Ipv6Addr::UNSPECIFIED.octets(), &own, mac, true)
        }
    };
    Some(bytes[..length?].to_vec())
}
