//! The kernel calls of a packet socket that std and rustix have not: thin, one call each.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::filter::Instruction;
use crate::packet::parse::ethertype;
use crate::port::socket::{control_bytes, set_option};

/// `PACKET_VNET_HDR` and `PACKET_IGNORE_OUTGOING` (include/uapi/linux/if_packet.h).
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// `PACKET_FANOUT_FLAG_IGNORE_OUTGOING`.
const FANOUT_IGNORE_OUTGOING: libc::c_uint = 0x4000;
/// `TP_STATUS_VLAN_VALID` and `TP_STATUS_VLAN_TPID_VALID`.
const VLAN_VALID: u32 = 1 << 4;
const VLAN_PROTOCOL_VALID: u32 = 1 << 6;

/// Room for the one control message: a header of 16 bytes and `struct tpacket_auxdata`, 20 bytes.
const CONTROL_BYTES: usize = 40;

/// Most messages of one call.
pub(super) const MESSAGES: usize = crate::limits::PACKET_MESSAGES;

/// Control messages, aligned as the kernel writes them.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// A VLAN tag that the kernel has taken off a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// Its EtherType.
    pub(super) protocol: u16,
    /// Priority and identifier.
    pub(super) control: u16,
}

/// A socket that gets nothing until it is bound.
pub(super) fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?)
}

pub(super) fn interface_index(socket: &OwnedFd, interface: &str) -> io::Result<u32> {
    Ok(rustix::net::netdevice::name_to_index(socket, interface)?)
}

/// The header before each frame, tags beside it, and nothing of what the host sends itself.
pub(super) fn set_up(socket: &OwnedFd) -> io::Result<()> {
    for option in [PACKET_VNET_HDR, libc::PACKET_AUXDATA, PACKET_IGNORE_OUTGOING] {
        set_option(socket, libc::SOL_PACKET, option, 1)?;
    }
    Ok(())
}

/// Joins the fanout group `group`, or one that the kernel numbers; its number. The socket must be bound.
pub(super) fn join_group(socket: &OwnedFd, group: Option<u16>) -> io::Result<u16> {
    let numbered = if group.is_none() { libc::PACKET_FANOUT_FLAG_UNIQUEID } else { 0 };
    // What its sockets ignore each by itself does not count in a group.
    let kind = libc::PACKET_FANOUT_HASH | FANOUT_IGNORE_OUTGOING | numbered;
    let value = u32::from(group.unwrap_or(0)) | kind << 16;
    set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, value as libc::c_int)?;
    let mut joined: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, option) = (libc::SOL_PACKET, libc::PACKET_FANOUT);
    // SAFETY: the number lives until the call returns, and the kernel writes at most as many bytes as it is told.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut joined).cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(joined as u16) }
}

/// Frames of every protocol come in by the interface from now on.
pub(super) fn bind(socket: &OwnedFd, interface: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: interface as libc::c_int,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address lives until the call returns, its length is given, and the kernel only reads it.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Replaces the program that says which frames come in, in one step.
pub(super) fn set_filter(socket: &OwnedFd, program: &[Instruction]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // The kernel's structure has a pointer to what it may write; it writes nothing.
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    let (start, size) = ((&raw const program).cast(), size_of::<libc::sock_fprog>() as libc::socklen_t);
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: the structure and the instructions, laid out as the kernel's, live until the call returns, and the kernel
    // copies as many of them as it is told.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, start, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A message that came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    /// Its bytes, those of the header before the frame among them.
    pub(super) length: usize,
    /// The tag that was taken off the frame.
    pub(super) tag: Option<Tag>,
}

impl Message {
    pub(super) const NONE: Message = Message { length: 0, tag: None };
}

/// Receives messages, each into its parts; how many there were.
pub(super) fn receive(
    socket: &OwnedFd,
    parts: &mut [[IoSliceMut<'_>; 3]],
    messages: &mut [Message; MESSAGES],
) -> io::Result<usize> {
    let mut controls = [Control([0; CONTROL_BYTES]); MESSAGES];
    // SAFETY: headers of zeros are valid ones: no name, no parts, no control messages.
    let mut headers: [libc::mmsghdr; MESSAGES] = unsafe { std::mem::zeroed() };
    let count = parts.len().min(MESSAGES);
    for ((header, parts), control) in headers.iter_mut().zip(parts).zip(&mut controls) {
        let header = &mut header.msg_hdr;
        // IoSliceMut has the layout of iovec, by its documentation.
        (header.msg_iov, header.msg_iovlen) = (parts.as_mut_ptr().cast(), parts.len() as _);
        (header.msg_control, header.msg_controllen) = (control.0.as_mut_ptr().cast(), CONTROL_BYTES as _);
    }
    let (start, no_limit) = (headers.as_mut_ptr(), std::ptr::null_mut());
    // SAFETY: `count` headers, with the parts and the room that they point to, live until the call returns, lengths given.
    let received = unsafe { libc::recvmmsg(socket.as_raw_fd(), start, count as libc::c_uint, 0, no_limit) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    for ((header, control), message) in headers.iter().zip(&controls).zip(messages).take(received) {
        let control = control.0.get(..control_bytes(&header.msg_hdr)).unwrap_or_default();
        *message = Message { length: header.msg_len as usize, tag: tag(control) };
    }
    Ok(received)
}

/// Sends messages of these parts; how many the kernel took. The error is that of the first one.
pub(super) fn send(socket: &OwnedFd, messages: &[&[IoSlice<'_>]]) -> io::Result<usize> {
    // SAFETY: headers of zeros are valid ones: no name, no parts, no control messages.
    let mut headers: [libc::mmsghdr; MESSAGES] = unsafe { std::mem::zeroed() };
    let count = messages.len().min(MESSAGES);
    for (header, parts) in headers.iter_mut().zip(messages) {
        // IoSlice has the layout of iovec, by its documentation; the kernel only reads it.
        (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (parts.as_ptr().cast_mut().cast(), parts.len() as _);
    }
    let start = headers.as_mut_ptr();
    // The kernel's call itself: musl's function of this name makes a call for each message.
    let (number, count, flags) = (libc::SYS_sendmmsg, count as libc::c_uint, libc::MSG_NOSIGNAL);
    // SAFETY: `count` headers, with the parts that they point to, live until the call returns, lengths given.
    let sent = unsafe { libc::syscall(number, socket.as_raw_fd(), start, count, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// The tag of `struct tpacket_auxdata`, the one control message that was asked for.
fn tag(message: &[u8]) -> Option<Tag> {
    let kind = message.get(8..16)?;
    let wanted = [libc::SOL_PACKET.to_ne_bytes(), libc::PACKET_AUXDATA.to_ne_bytes()].concat();
    let content = message.get(16..36).filter(|_| kind == wanted)?;
    let status = u32::from_ne_bytes(content[..4].try_into().ok()?);
    let half = |at: usize| u16::from_ne_bytes([content[at], content[at + 1]]);
    let protocol = if status & VLAN_PROTOCOL_VALID == 0 { ethertype::VLAN } else { half(18) };
    (status & VLAN_VALID != 0).then(|| Tag { protocol, control: half(16) })
}

/// Frames that the kernel dropped since this was asked last, since nobody took the earlier ones.
pub(super) fn take_lost(socket: &OwnedFd) -> io::Result<u64> {
    let mut counts = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    let (level, option) = (libc::SOL_PACKET, libc::PACKET_STATISTICS);
    // SAFETY: the counts live until the call returns, and the kernel writes at most as many bytes as it is told.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut counts).cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(u64::from(counts.tp_drops)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_which_tag_it_took_off() {
        let message = |status: u32, control: u16, protocol: u16| {
            let head =
                [&36usize.to_ne_bytes()[..], &libc::SOL_PACKET.to_ne_bytes(), &libc::PACKET_AUXDATA.to_ne_bytes()];
            let content = [&status.to_ne_bytes()[..], &[0; 12], &control.to_ne_bytes(), &protocol.to_ne_bytes()];
            [head.concat(), content.concat()].concat()
        };
        let seen = |status| tag(&message(status, 0x6014, 0x88a8));
        assert_eq!(seen(0), None);
        assert_eq!(seen(VLAN_VALID), Some(Tag { protocol: 0x8100, control: 0x6014 }));
        assert_eq!(seen(VLAN_VALID | VLAN_PROTOCOL_VALID), Some(Tag { protocol: 0x88a8, control: 0x6014 }));
        let mut other = message(VLAN_VALID, 1, 0);
        other[12] ^= 1;
        assert_eq!((tag(&other), tag(&message(VLAN_VALID, 1, 0)[..35]), tag(&[])), (None, None, None));
    }
}
