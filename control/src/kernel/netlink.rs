//! One blocking rtnetlink socket: a request, its answers, its acknowledgement.
//!
//! Requests are answered before the next is sent, so one buffer and one sequence number suffice. The kernel answers
//! from within `send`, which is why no time-out is needed.

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{KernelError, NamespaceHandle};

/// A dump that changed while it was read is read again, this often at most.
const DUMP_ATTEMPTS: usize = 5;

/// A conversation with the kernel about one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// What one answer means for the exchange.
enum Step {
    Item(RouteNetlinkMessage),
    End,
    Nothing,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open() -> Result<Self, KernelError> {
        let refused = KernelError::file;
        let attempt = || "open a netlink socket".to_owned();
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(refused(attempt()))?;
        socket.bind_auto().map_err(refused(attempt()))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(refused(attempt()))?;
        // Both only improve error texts.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Opens a socket in `namespace`; it can be used from any thread.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or what the kernel said.
    pub fn open_in(namespace: &NamespaceHandle) -> Result<Self, KernelError> {
        namespace.enter(Self::open)?
    }

    /// Asks for a change, or for one object; returns the answers, if there are any.
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        attempt: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        Ok(self.exchange(message, flags | NLM_F_ACK, &attempt)?.0)
    }

    /// Asks for all objects of a kind.
    pub(super) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        attempt: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        let mut last = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            let (items, interrupted) = self.exchange(message.clone(), NLM_F_DUMP, &attempt)?;
            last = items;
            if !interrupted {
                break;
            }
        }
        Ok(last)
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        attempt: &dyn Fn() -> String,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(message, flags).map_err(KernelError::file(attempt()))?;
        let (mut items, mut interrupted) = (Vec::new(), false);
        loop {
            let (bytes, _) = self.socket.recv_from_full().map_err(KernelError::file(attempt()))?;
            for message in split(&bytes) {
                let (header, body) = message.map_err(|reason| KernelError::Answer { attempt: attempt(), reason })?;
                if header.sequence_number != self.sequence {
                    continue; // the rest of an exchange that was broken off
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match step(body, attempt)? {
                    Step::Item(item) => items.push(item),
                    Step::End => return Ok((items, interrupted)),
                    Step::Nothing => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> std::io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }
}

/// One message of a datagram; `None` for an object that the library cannot read.
type Body = Option<NetlinkPayload<RouteNetlinkMessage>>;

/// Splits a datagram into messages. A message whose inside cannot be read concerns a kind of object this program
/// never asks about (an exotic link on the node), so it is passed over; broken framing is an error.
pub(super) fn split(bytes: &[u8]) -> impl Iterator<Item = Result<(NetlinkHeader, Body), String>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let buffer = match NetlinkBuffer::new_checked(rest) {
            Ok(buffer) => buffer,
            Err(error) => {
                rest = &[];
                return Some(Err(error.to_string()));
            }
        };
        let mut header = NetlinkHeader::default();
        header.length = buffer.length();
        header.message_type = buffer.message_type();
        header.flags = buffer.flags();
        header.sequence_number = buffer.sequence_number();
        header.port_number = buffer.port_number();
        let length = (header.length as usize).min(rest.len());
        let body = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length]).ok();
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((header, body.map(|message| message.payload))))
    })
}

fn step(body: Body, attempt: &dyn Fn() -> String) -> Result<Step, KernelError> {
    match body {
        Some(NetlinkPayload::InnerMessage(item)) => Ok(Step::Item(item)),
        Some(NetlinkPayload::Error(error)) => match error.code {
            None => Ok(Step::End),
            Some(_) => Err(refused(&error, attempt())),
        },
        Some(NetlinkPayload::Done(done)) if done.code < 0 => Err(KernelError::Refused {
            attempt: attempt(),
            source: std::io::Error::from_raw_os_error(-done.code),
            reason: None,
        }),
        Some(NetlinkPayload::Done(_)) => Ok(Step::End),
        _ => Ok(Step::Nothing),
    }
}

fn refused(error: &ErrorMessage, attempt: String) -> KernelError {
    KernelError::Refused { attempt, source: error.to_io(), reason: reason(&error.header) }
}

/// The kernel's words in an extended acknowledgement: behind the header of the request, attribute 1
/// (`NLMSGERR_ATTR_MSG`, include/uapi/linux/netlink.h).
fn reason(acknowledgement: &[u8]) -> Option<String> {
    const REQUEST_HEADER_BYTES: usize = 16;
    const MESSAGE: u16 = 1;
    let mut rest = acknowledgement.get(REQUEST_HEADER_BYTES..)?;
    loop {
        let (length, rest_of_header) = rest.split_first_chunk::<2>()?;
        let kind = u16::from_ne_bytes(*rest_of_header.first_chunk::<2>()?);
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = rest.get(4..length)?;
        if kind == MESSAGE {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_found_behind_other_attributes() {
        let mut bytes = vec![0u8; 16];
        bytes.extend([8, 0, 2, 0, 1, 2, 3, 4]); // offset of the offending attribute
        bytes.extend([9, 0, 1, 0]);
        bytes.extend(b"nope\0\0\0\0");
        assert_eq!(reason(&bytes).as_deref(), Some("nope"));
        for cut in 0..bytes.len() - 4 {
            assert_eq!(reason(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn broken_framing_is_an_error_and_ends() {
        let outcome: Vec<_> = split(&[200, 0, 0, 0, 1, 2, 3]).collect();
        assert!(matches!(outcome.as_slice(), [Err(_)]));
    }
}
