//! Packets on their way into a packet socket: several with one call, each with its header and all its parts.
//!
//! What cannot be told to the kernel, or what it refuses, is dropped alone; the others go on. Bounds:
//! [`limits::PACKET_MESSAGES`] packets and [`PARTS`] parts of memory a call, on the stack.

use std::io::{ErrorKind, IoSlice};
use std::os::fd::OwnedFd;

use super::HEADER_BYTES;
use super::sys::{self, MESSAGES};
use crate::limits;
use crate::packet::{FrameMemory, Packet};
use crate::port::tap::vnet_header::{VNET_HEADER_BYTES, VnetHeader};

/// Parts of one packet: header, head, and a chain with some room above its limit.
const PACKET_PARTS: usize = limits::CHAIN_SEGMENTS + 8;
/// Parts of one call: any packet, or many of few parts.
const PARTS: usize = PACKET_PARTS + 2 * MESSAGES;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// So many packets, at least one, are the kernel's.
    Taken(usize),
    /// The first packet can never be sent.
    Refused,
    /// The socket is full.
    NoRoom,
}

/// Sends as many of `packets`, of which there is at least one, as one call takes.
pub(super) fn send(socket: &OwnedFd, memory: &FrameMemory, packets: &[Packet]) -> Sent {
    let mut headers = [[0; VNET_HEADER_BYTES]; MESSAGES];
    let mut parts = [IoSlice::new(&[]); PARTS];
    let mut ends = [0; MESSAGES];
    let (mut gathered, mut at) = (0, 0);
    for (header, packet) in headers.iter_mut().zip(packets) {
        let Some(told) = VnetHeader::of(packet, memory.head(packet)) else { break };
        *header = told.bytes();
        let pieces = std::iter::once(&header[..HEADER_BYTES]).chain(memory.parts(packet));
        let Some(end) = put(&mut parts, at, pieces) else { break };
        ends[gathered] = end;
        (gathered, at) = (gathered + 1, end);
    }
    if gathered == 0 {
        return Sent::Refused;
    }
    let mut messages: [&[IoSlice<'_>]; MESSAGES] = [&[]; MESSAGES];
    let mut start = 0;
    for (message, end) in messages.iter_mut().zip(&ends[..gathered]) {
        *message = &parts[start..*end];
        start = *end;
    }
    loop {
        match sys::send(socket, &messages[..gathered]) {
            Ok(sent) => return Sent::Taken(sent.max(1)),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => return Sent::NoRoom,
                // ENOBUFS: the interface's queue is full and has dropped it; ENETDOWN, EMSGSIZE, EINVAL.
                _ => return Sent::Refused,
            },
        }
    }
}

/// Puts a packet's pieces into `parts` from `start` on; where they end, or `None` if they do not fit.
fn put<'a>(parts: &mut [IoSlice<'a>; PARTS], start: usize, pieces: impl Iterator<Item = &'a [u8]>) -> Option<usize> {
    let mut end = start;
    for piece in pieces {
        *parts.get_mut(end)? = IoSlice::new(piece);
        end += 1;
    }
    (end - start <= PACKET_PARTS).then_some(end)
}
