//! Connections whose destination the kernel translates: what kube-proxy's rules have begun.
//!
//! The kernel's connection tracking goes on with them when the rules are gone (it keeps each translation with its
//! connection). Read by ctnetlink, both families at once; a kernel without it has none.

use std::net::IpAddr;

use millrace_engine::limits::CONNECTIONS;
use millrace_engine::packet::parse::protocol;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Status, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::KernelError;

/// Room for one answer: the kernel fills at most 32 KiB of a dump at once.
const ANSWER_BYTES: usize = 64 << 10;

/// An address and a port.
pub type End = (IpAddr, u16);

/// A connection whose destination is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TranslatedFlow {
    /// TCP, UDP or SCTP, by its IP protocol number.
    pub protocol: u8,
    /// Who opened it.
    pub client: End,
    /// Whom the client calls.
    pub called: End,
    /// Who answers.
    pub server: End,
    /// As whom the server knows the client.
    pub seen_as: End,
}

/// Every connection of TCP, UDP or SCTP whose destination is translated and that was answered, at most [`CONNECTIONS`].
///
/// # Errors
/// What the kernel said, such as that it has no connection tracking.
pub fn translated_flows() -> Result<Vec<TranslatedFlow>, KernelError> {
    let refused = |error| KernelError::file("list the connections that the kernel translates".to_owned())(error);
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(refused)?;
    socket.bind_auto().map_err(refused)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(refused)?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let asked = NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
        ConntrackMessage::Get(Vec::new()),
    );
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(asked));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map_err(refused)?;
    let (mut flows, mut answer) = (Vec::new(), vec![0; ANSWER_BYTES]);
    loop {
        let length = socket.recv(&mut answer.as_mut_slice(), 0).map_err(refused)?;
        if read_answer(answer.get(..length).unwrap_or_default(), &mut flows).map_err(refused)? {
            return Ok(flows);
        }
    }
}

/// Takes the flows out of one answer; true behind the last one.
fn read_answer(mut bytes: &[u8], flows: &mut Vec<TranslatedFlow>) -> std::io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(bytes).map_err(std::io::Error::other)?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(NetfilterMessage {
                inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                ..
            }) if flows.len() < CONNECTIONS => flows.extend(translated(&attributes)),
            _ => {}
        }
        // Messages are aligned to four bytes (netlink(7)).
        let length = (message.header.length as usize).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(false)
}

fn translated(attributes: &[ConntrackAttribute]) -> Option<TranslatedFlow> {
    let (mut status, mut original, mut reply) = (Status::empty(), None, None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaStatus(is) => status = *is,
            ConntrackAttribute::CtaTupleOrig(tuple) => original = ends(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = ends(tuple),
            _ => {}
        }
    }
    let (number, client, called) = original?;
    let (_, server, seen_as) = reply?;
    let is_open = match number {
        // Of TCP and SCTP the kernel counts what has a handshake behind it as assured.
        protocol::TCP | protocol::SCTP => status.contains(Status::Assured),
        protocol::UDP => status.contains(Status::SeenReply),
        _ => false,
    };
    let wanted = is_open && status.contains(Status::DstNat) && !status.contains(Status::Dying);
    wanted.then_some(TranslatedFlow { protocol: number, client, called, server, seen_as })
}

/// Protocol, source and destination of a tuple.
fn ends(tuple: &[Tuple]) -> Option<(u8, End, End)> {
    let (mut source, mut destination): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let (mut from, mut to, mut number) = (None, None, None);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(address) => source = Some(*address),
                IPTuple::DestinationAddress(address) => destination = Some(*address),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::Protocol(protocol) => number = Some(u8::from(*protocol)),
                ProtoTuple::SourcePort(port) => from = Some(*port),
                ProtoTuple::DestinationPort(port) => to = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    Some((number?, (source?, from?), (destination?, to?)))
}
