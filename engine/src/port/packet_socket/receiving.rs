//! Frames on their way from a packet socket into packets: several with one call.
//!
//! Each message goes into a head frame and, what does not fit, a big buffer behind it, both taken before the call and
//! given back behind it if nothing came. So that a socket with little to say costs little, the number asked for follows what
//! came last: twice as many when all that was asked for came, else one more than came, so that the call itself tells that
//! no more is there.
//!
//! Bounds: [`limits::PACKET_MESSAGES`] frames of each kind, while a call lasts.

use std::io::{ErrorKind, IoSliceMut};
use std::os::fd::OwnedFd;

use super::sys::{self, MESSAGES, Message, Tag};
use super::{ETHERNET_BYTES, HEAD_BYTES, HEADER_BYTES, MACS_BYTES, START};
use crate::limits;
use crate::packet::wire::vlan::TAG_BYTES;
use crate::packet::{Frame, FrameMemory, Packet, PortIndex};
use crate::port::tap::vnet_header::{VNET_HEADER_BYTES, VnetHeader};

/// See the module.
#[derive(Debug)]
pub(super) struct Intake {
    frames: [Option<(Frame, Frame)>; MESSAGES],
    messages: [Message; MESSAGES],
    headers: [[u8; VNET_HEADER_BYTES]; MESSAGES],
    /// Messages to ask for next.
    most: usize,
    /// Bytes of the longest frame of the last call.
    longest: usize,
    malformed: u64,
}

impl Intake {
    pub(super) fn new() -> Self {
        Self {
            frames: [const { None }; MESSAGES],
            messages: [Message::NONE; MESSAGES],
            headers: [[0; VNET_HEADER_BYTES]; MESSAGES],
            most: 1,
            longest: 0,
            malformed: 0,
        }
    }

    /// Messages that were no frames.
    pub(super) fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Takes what is there, as much as a vector holds.
    pub(super) fn receive(
        &mut self,
        socket: &OwnedFd,
        port: PortIndex,
        memory: &mut FrameMemory,
        vector: &mut Vec<Packet>,
    ) {
        let (mut bytes, mut taken) = (0, 0);
        while vector.len() < limits::VECTOR_PACKETS && bytes < limits::VECTOR_BYTES && taken < limits::VECTOR_PACKETS {
            let room = (limits::VECTOR_BYTES - bytes) / self.longest.max(1);
            let asked = self.most.min(limits::VECTOR_PACKETS - vector.len()).min(room.max(1));
            let asked = self.supply(memory, asked);
            let came = self.fill(socket, memory, asked);
            self.longest = 0;
            for number in 0..came {
                bytes += self.hand_over(number, port, memory, vector);
            }
            taken += came;
            if came < asked || asked == 0 {
                self.most = came + 1;
                break;
            }
            self.most = (2 * asked).min(MESSAGES);
        }
        for (head, big) in self.frames.iter_mut().filter_map(Option::take) {
            memory.release_frame(head);
            memory.release_frame(big);
        }
    }

    /// Takes frames for at most `wanted` messages; for how many there are some.
    fn supply(&mut self, memory: &mut FrameMemory, wanted: usize) -> usize {
        for (number, slot) in self.frames.iter_mut().take(wanted).enumerate() {
            if slot.is_some() {
                continue;
            }
            let Some(head) = memory.allocate_head() else { return number };
            let Some(big) = memory.allocate_big() else {
                memory.release_frame(head);
                return number;
            };
            *slot = Some((head, big));
        }
        wanted.min(MESSAGES)
    }

    /// Reads at most `asked` messages; how many there were.
    fn fill(&mut self, socket: &OwnedFd, memory: &FrameMemory, asked: usize) -> usize {
        let mut parts: [[IoSliceMut<'_>; 3]; MESSAGES] =
            std::array::from_fn(|_| std::array::from_fn(|_| IoSliceMut::new(&mut [])));
        let room = self.frames.iter_mut().take(asked).flatten().zip(&mut self.headers);
        for (parts, ((head, big), header)) in parts.iter_mut().zip(room) {
            *parts = [
                IoSliceMut::new(&mut header[..HEADER_BYTES]),
                IoSliceMut::new(&mut memory.bytes_mut(head)[START..]),
                IoSliceMut::new(memory.bytes_mut(big)),
            ];
        }
        if asked == 0 {
            return 0;
        }
        loop {
            match sys::receive(socket, &mut parts[..asked], &mut self.messages) {
                Ok(received) => return received,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return 0, // nothing there, or the interface went down, which is told once
            }
        }
    }

    /// Makes a packet of a message; its bytes.
    fn hand_over(
        &mut self,
        number: usize,
        port: PortIndex,
        memory: &mut FrameMemory,
        vector: &mut Vec<Packet>,
    ) -> usize {
        let Message { length, tag } = self.messages[number];
        let length = length.saturating_sub(HEADER_BYTES);
        let header = VnetHeader::parse(&self.headers[number], length.min(HEAD_BYTES), length).ok();
        let Some(mut header) = header.filter(|_| length >= ETHERNET_BYTES) else {
            self.malformed += 1;
            return 0;
        };
        let Some((mut head, big)) = self.frames[number].take() else { return 0 };
        let mut start = START;
        if let Some(tag) = tag {
            put_back(memory.bytes_mut(&mut head), tag);
            start -= TAG_BYTES;
            header = header.moved(TAG_BYTES as u16);
        }
        let mut packet = Packet::new(head, start, length.min(HEAD_BYTES) + START - start);
        if length > HEAD_BYTES {
            memory.append(&mut packet, big, 0, length - HEAD_BYTES);
        } else {
            memory.release_frame(big);
        }
        packet.ingress = port;
        header.apply(&mut packet);
        self.longest = self.longest.max(length);
        vector.push(packet);
        length
    }
}

/// Puts a tag back where it was on the wire. The head frame has room for it before [`START`].
fn put_back(bytes: &mut [u8], tag: Tag) {
    let at = START - TAG_BYTES;
    bytes.copy_within(START..START + MACS_BYTES, at);
    bytes[at + MACS_BYTES..at + MACS_BYTES + 2].copy_from_slice(&tag.protocol.to_be_bytes());
    bytes[at + MACS_BYTES + 2..at + MACS_BYTES + 4].copy_from_slice(&tag.control.to_be_bytes());
}
