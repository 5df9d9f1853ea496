//! Packets read byte by byte, for who watches: nothing of the engine's parser is used. And the label that each packet of
//! the simulation carries at its end.

use std::net::IpAddr;

use millrace_engine::packet::Mac;

/// Bytes of a label.
const LABEL_BYTES: usize = 24;
const MAGIC: u32 = 0x6d69_6c6c;
/// UDP port of VXLAN (RFC 7348).
const VXLAN: u16 = 8472;

/// Who sent a packet, for whom, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// Conversation, or probe if the first bit is set.
    pub(crate) conversation: u32,
    pub(crate) sequence: u32,
    /// The pod that sent it.
    pub(crate) from: u32,
    /// The pod that the sender meant; `u32::MAX` for whoever stands behind a Service.
    pub(crate) to: u32,
    /// Index of the sender's network.
    pub(crate) network: u8,
    /// Whether it answers.
    pub(crate) reply: bool,
}

impl Label {
    pub(crate) fn bytes(self) -> [u8; LABEL_BYTES] {
        let mut bytes = [0; LABEL_BYTES];
        let words = [MAGIC, self.conversation, self.sequence, self.from, self.to];
        for (at, word) in words.into_iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_be_bytes());
        }
        (bytes[20], bytes[21]) = (self.network, u8::from(self.reply));
        bytes
    }

    fn read(frame: &[u8]) -> Option<Self> {
        let bytes = frame.last_chunk::<LABEL_BYTES>()?;
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        (word(0) == MAGIC).then(|| Self {
            conversation: word(4),
            sequence: word(8),
            from: word(12),
            to: word(16),
            network: bytes[20],
            reply: bytes[21] != 0,
        })
    }
}

/// A packet between two pods, or to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) receiver: Mac,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Number of the IP protocol.
    pub(crate) protocol: u8,
    pub(crate) ports: [u16; 2],
    /// First byte of the flags, if it is TCP.
    pub(crate) flags: u8,
    pub(crate) label: Option<Label>,
}

impl Seen {
    /// Reads a frame with an IP packet.
    pub(crate) fn read(frame: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        let (source, destination, protocol, at) = match word(12)? {
            0x0800 => {
                let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?));
                let length = usize::from(frame.get(14)? & 15) * 4;
                (address(26)?, address(30)?, *frame.get(23)?, 14 + length)
            }
            0x86dd => {
                let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?));
                (address(22)?, address(38)?, *frame.get(20)?, 54)
            }
            _ => return None,
        };
        let has_ports = protocol == 6 || protocol == 17;
        let ports = if has_ports { [word(at)?, word(at + 2)?] } else { [0, 0] };
        let flags = if protocol == 6 { *frame.get(at + 13)? } else { 0 };
        let label = if has_ports { Label::read(frame) } else { None };
        Some(Self { receiver: Mac::read(frame), source, destination, protocol, ports, flags, label })
    }

    /// The word that policies have for its protocol.
    pub(crate) fn protocol_name(&self) -> &'static str {
        if self.protocol == 6 { "TCP" } else { "UDP" }
    }
}

/// The identifier of a tunnel and the frame inside it.
pub(crate) fn tunnelled(frame: &[u8]) -> Option<(u32, &[u8])> {
    let outer = Seen::read(frame)?;
    if outer.protocol != 17 || outer.ports[1] != VXLAN {
        return None;
    }
    let at = tunnel_header(frame);
    let vni = u32::from_be_bytes([0, *frame.get(at + 4)?, *frame.get(at + 5)?, *frame.get(at + 6)?]);
    Some((vni, frame.get(at + 8..)?))
}

/// Writes another identifier into a tunnel's header.
pub(crate) fn relabel_tunnel(frame: &mut [u8], vni: u32) {
    let at = tunnel_header(frame);
    frame[at + 4..at + 7].copy_from_slice(&vni.to_be_bytes()[1..]);
}

fn tunnel_header(frame: &[u8]) -> usize {
    if frame[12..14] == [0x08, 0x00] { 14 + 20 + 8 } else { 14 + 40 + 8 }
}
