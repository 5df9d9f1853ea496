//! A queue as it passes from one process to the next, while no packet of it is lost.
//!
//! A descriptor names the same open device in both processes: what the kernel holds for the queue stays where it is, and the
//! next read by either of them takes it. So a queue is handed over by its descriptors and the few facts that were settled when
//! it was opened. The former process keeps its own until the other has begun; whoever reads meanwhile takes packets away from
//! the other, so the two never run at once (`switch/succession.rs`).
//!
//! A queue that shares memory with the kernel cannot be handed over yet: [`HandedKind`] has no word for AF_XDP, whose frames the
//! kernel holds by place in the former process' memory.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::PortQueue;
use super::packet_socket::PacketSocket;
use super::tap::{Offloads, TapQueue};
use super::udp::UdpSockets;
use crate::packet::PortIndex;

/// What a queue is, without its descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandedKind {
    /// A queue of a TAP.
    Tap {
        /// Its number among the device's queues.
        number: usize,
        /// Whether UDP units come in whole.
        udp_segmentation: bool,
    },
    /// A packet socket.
    Packet {
        /// Name of the interface.
        interface: String,
        /// MTU that it was opened for.
        mtu: u32,
        /// Whether the far end is a stack.
        joins: bool,
    },
    /// UDP sockets for tunnels, and behind them a packet socket for all else.
    Udp {
        /// Name of the interface.
        interface: String,
        /// MTU that they were opened for.
        mtu: u32,
        /// Number of the interface.
        index: u32,
        /// VXLAN's port.
        udp_port: u16,
        /// Whether there are sockets of IPv6 too.
        has_ipv6: bool,
    },
}

impl HandedKind {
    /// The interface that the queue was opened on by name; a TAP's own name is not known to its queues.
    #[must_use]
    pub fn interface(&self) -> Option<&str> {
        match self {
            HandedKind::Tap { .. } => None,
            HandedKind::Packet { interface, .. } | HandedKind::Udp { interface, .. } => Some(interface),
        }
    }
}

/// A queue on its way to another process.
#[derive(Debug)]
pub struct HandedQueue {
    /// What it is.
    pub kind: HandedKind,
    /// Its descriptors, in an order that belongs to the kind; the packet socket's is the last.
    pub descriptors: Vec<OwnedFd>,
}

/// A queue made of what was handed over, and its packet socket if it has one, for whoever says what comes in by it.
pub type Received = (Box<dyn PortQueue>, Option<PacketSocket>);

impl HandedQueue {
    /// The same queue in this process, as a queue of `port`.
    ///
    /// # Errors
    /// The number of descriptors is not that of the kind, or the kernel refused an epoll set.
    pub fn receive(self, port: PortIndex) -> io::Result<Received> {
        let mut descriptors = self.descriptors;
        let last = descriptors.pop().ok_or_else(|| wrong_count(&self.kind))?;
        if !matches!(self.kind, HandedKind::Udp { .. }) && !descriptors.is_empty() {
            return Err(wrong_count(&self.kind));
        }
        match self.kind {
            HandedKind::Tap { number, udp_segmentation } => {
                Ok((Box::new(TapQueue::new(port, number, last, Offloads { udp_segmentation })), None))
            }
            HandedKind::Packet { interface, mtu, joins } => {
                let socket = PacketSocket::handed(&interface, mtu, joins, last);
                Ok((Box::new(socket.queue(port)), Some(socket)))
            }
            HandedKind::Udp { ref interface, mtu, index, udp_port, has_ipv6 } => {
                let plain = PacketSocket::handed(interface, mtu, false, last);
                let sockets = UdpSockets::handed((index, mtu, udp_port), has_ipv6, descriptors);
                let sockets = sockets.ok_or_else(|| wrong_count(&self.kind))?;
                let queue = sockets.queue(port, Box::new(plain.queue(port)))?;
                Ok((Box::new(queue), Some(plain)))
            }
        }
    }
}

fn wrong_count(kind: &HandedKind) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a queue came with the wrong number of descriptors: {kind:?}"))
}

/// Another descriptor of the same open file.
///
/// # Errors
/// The process has no room for one.
pub(super) fn another(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    descriptor.try_clone_to_owned()
}
