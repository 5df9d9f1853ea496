//! ARP for Ethernet and IPv4 (RFC 826).

use super::{ethernet, read_array, read_u16};
use crate::packet::Mac;
use crate::packet::parse::ethertype;

/// Bytes of the packet for Ethernet and IPv4.
pub const PACKET_BYTES: usize = 28;
/// Hardware type; 1 is Ethernet.
pub const HARDWARE_TYPE: usize = 0;
/// Protocol type, an EtherType.
pub const PROTOCOL_TYPE: usize = 2;
/// Bytes of a hardware address.
pub const HARDWARE_LENGTH: usize = 4;
/// Bytes of a protocol address.
pub const PROTOCOL_LENGTH: usize = 5;
/// Operation.
pub const OPERATION: usize = 6;
/// Sender's MAC address.
pub const SENDER_MAC: usize = 8;
/// Sender's IPv4 address.
pub const SENDER_ADDRESS: usize = 14;
/// Target's MAC address.
pub const TARGET_MAC: usize = 18;
/// Target's IPv4 address.
pub const TARGET_ADDRESS: usize = 24;
/// Operation: who has this address?
pub const REQUEST: u16 = 1;
/// Operation: I have it.
pub const REPLY: u16 = 2;
/// The first six bytes of every packet that is for Ethernet and IPv4.
pub const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What an ARP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// [`REQUEST`], [`REPLY`] or one that nobody uses.
    pub operation: u16,
    /// Sender's MAC address.
    pub sender_mac: Mac,
    /// Sender's IPv4 address; 0.0.0.0 in a probe (RFC 5227).
    pub sender_address: [u8; 4],
    /// Target's MAC address; meaningless in a request.
    pub target_mac: Mac,
    /// Target's IPv4 address.
    pub target_address: [u8; 4],
}

impl Arp {
    /// Whether sender and target address are equal: the sender announces itself (RFC 5227 section 2.3).
    #[must_use]
    pub fn is_announcement(&self) -> bool {
        self.sender_address == self.target_address
    }

    /// The reply that tells this request's sender that `mac` has the address.
    #[must_use]
    pub fn answer(&self, mac: Mac) -> Arp {
        Arp {
            operation: REPLY,
            sender_mac: mac,
            sender_address: self.target_address,
            target_mac: self.sender_mac,
            target_address: self.sender_address,
        }
    }
}

/// Reads a packet; `None` if it is cut short or not for Ethernet and IPv4.
#[must_use]
pub fn read_arp(packet: &[u8]) -> Option<Arp> {
    if read_array(packet, HARDWARE_TYPE) != Some(ETHERNET_IPV4) {
        return None;
    }
    Some(Arp {
        operation: read_u16(packet, OPERATION)?,
        sender_mac: Mac(read_array(packet, SENDER_MAC)?),
        sender_address: read_array(packet, SENDER_ADDRESS)?,
        target_mac: Mac(read_array(packet, TARGET_MAC)?),
        target_address: read_array(packet, TARGET_ADDRESS)?,
    })
}

/// Writes a packet, without its Ethernet header.
pub fn write_arp(target: &mut [u8], arp: &Arp) -> Option<usize> {
    let packet = target.first_chunk_mut::<PACKET_BYTES>()?;
    packet[..OPERATION].copy_from_slice(&ETHERNET_IPV4);
    packet[OPERATION..SENDER_MAC].copy_from_slice(&arp.operation.to_be_bytes());
    packet[SENDER_MAC..SENDER_ADDRESS].copy_from_slice(&arp.sender_mac.0);
    packet[SENDER_ADDRESS..TARGET_MAC].copy_from_slice(&arp.sender_address);
    packet[TARGET_MAC..TARGET_ADDRESS].copy_from_slice(&arp.target_mac.0);
    packet[TARGET_ADDRESS..].copy_from_slice(&arp.target_address);
    Some(PACKET_BYTES)
}

/// Writes an untagged frame that asks everybody who has `address`.
pub fn write_request_frame(
    target: &mut [u8],
    sender_mac: Mac,
    sender_address: [u8; 4],
    address: [u8; 4],
) -> Option<usize> {
    let header = ethernet::write_ethernet(target, Mac::BROADCAST, sender_mac, ethertype::ARP)?;
    let arp = Arp { operation: REQUEST, sender_mac, sender_address, target_mac: Mac::ZERO, target_address: address };
    Some(header + write_arp(target.get_mut(header..)?, &arp)?)
}

/// Writes the untagged frame that answers `request`: `mac` has the address that was asked for.
pub fn write_reply_frame(target: &mut [u8], request: &Arp, mac: Mac) -> Option<usize> {
    let header = ethernet::write_ethernet(target, request.sender_mac, mac, ethertype::ARP)?;
    Some(header + write_arp(target.get_mut(header..)?, &request.answer(mac))?)
}

/// Turns the frame of a request into the frame of its reply, tags kept; `offset` is where the ARP packet begins.
pub fn reply_in_place(frame: &mut [u8], offset: usize, mac: Mac) -> Option<()> {
    let request = read_arp(frame.get(offset..)?)?;
    write_arp(frame.get_mut(offset..)?, &request.answer(mac))?;
    ethernet::set_addresses(frame, request.sender_mac, mac)
}
