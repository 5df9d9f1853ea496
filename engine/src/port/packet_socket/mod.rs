//! A port on an interface that stays the kernel's: AF_PACKET with a virtio-net header.
//!
//! The kernel goes on to use the interface; this port gets a copy of what comes in by it, of all stations or of some
//! ([`Accept`]), and sends beside the kernel. What the kernel itself sends out of the interface does not come in here.
//! It works with any driver, and on bonds and VLAN subinterfaces. GSO units and partial checksums stay as they are, in
//! both directions, so a unit crosses as one message.
//!
//! The kernel takes a frame's outermost tag off and tells it beside the frame; it is put back here, so that a tag is
//! seen as on the wire. One socket an interface, which one worker owns; an uplink has one for each worker
//! ([`PacketSocket::open_group`]), among which the kernel divides flows whatever queues the interface has. One system
//! call for up to [`limits::PACKET_MESSAGES`] packets. A frame for another station than the host costs the kernel its
//! receive path and is then forgotten there. Beyond the MTU the kernel lets a customer tag through and no service tag
//! (`packet_extra_vlan_len_allowed`): such a frame is refused and counted.
//!
//! Sources: packet(7), Linux net/packet/af_packet.c, include/uapi/linux/if_packet.h, include/uapi/linux/virtio_net.h.

mod filter;
mod receiving;
mod sending;
mod sys;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use thiserror::Error;

use super::handover::{self, HandedKind, HandedQueue};
use super::socket::set_buffers;
use super::{Capabilities, PortQueue, QueueDescription};
use crate::counters::WorkerCounters;
use crate::drop_reason::DropReason;
use crate::limits;
use crate::packet::wire::vlan::TAG_BYTES;
use crate::packet::{FrameMemory, Mac, Packet, PortIndex};
use receiving::Intake;
use sending::Sent;

/// First byte of a received packet in its head frame: room for a tag that is put back lies before it.
const START: usize = limits::XDP_HEADROOM_BYTES;
/// Bytes of a received packet that its head frame holds.
const HEAD_BYTES: usize = limits::HEAD_FRAME_BYTES - START;
const ETHERNET_BYTES: usize = 14;
/// Bytes before a frame's outermost tag: the two MAC addresses.
const MACS_BYTES: usize = 12;
/// Bytes of the header on a packet socket: `struct virtio_net_hdr`, the longer one without its last field.
const HEADER_BYTES: usize = 10;

/// Which frames of the interface come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accept {
    /// All of them.
    Everything,
    /// Those to groups and to these stations; at most [`limits::PACKET_STATIONS`] of them.
    Stations(Vec<Mac>),
    /// None, until another filter is set: [`Steering::admit_socket`](super::af_xdp::Steering::admit_socket).
    Nothing,
}

/// Why a port could not be opened or changed.
#[derive(Debug, Error)]
pub enum PacketError {
    /// The interface does not exist in this thread's network namespace.
    #[error("packet socket on {interface}: no such interface: {error}")]
    Interface {
        /// The interface's name.
        interface: String,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The kernel refused a step; CAP_NET_RAW is needed.
    #[error("packet socket on {interface}: could not {attempt}: {error}")]
    System {
        /// The interface's name.
        interface: String,
        /// What was attempted, as an infinitive.
        attempt: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// More stations than a filter holds.
    #[error("packet socket on {interface}: {count} stations, and at most {} are possible", limits::PACKET_STATIONS)]
    TooMany {
        /// The interface's name.
        interface: String,
        /// How many were given.
        count: usize,
    },
}

/// The port's socket, as the control plane keeps it to say what comes in.
#[derive(Clone, Debug)]
pub struct PacketSocket {
    interface: Arc<str>,
    socket: Arc<OwnedFd>,
    mtu: usize,
    /// Whether the receiver profits from segments joined to units: not a wire, for which they are cut again.
    joins: bool,
}

impl PacketSocket {
    /// Opens a socket on an interface of this thread's network namespace. `mtu` is the interface's.
    ///
    /// # Errors
    /// [`PacketError`], naming the interface.
    pub fn open(interface: &str, mtu: u32, accept: &Accept) -> Result<Self, PacketError> {
        let failed = |attempt| move |error| PacketError::System { interface: interface.to_owned(), attempt, error };
        let socket = sys::socket().map_err(failed("make a packet socket"))?;
        let index = sys::interface_index(&socket, interface)
            .map_err(|error| PacketError::Interface { interface: interface.to_owned(), error })?;
        sys::set_up(&socket).map_err(failed("ask for headers and tags beside the frames"))?;
        let opened = Self { interface: interface.into(), socket: Arc::new(socket), mtu: mtu as usize, joins: true };
        // Before the socket is bound, so that nothing comes in that is not wanted.
        opened.accept(accept)?;
        sys::bind(&opened.socket, index).map_err(failed("bind to the interface"))?;
        Ok(opened)
    }

    /// Opens `count` sockets on an interface of this thread's network namespace, a wire. Each flow comes in by one of them,
    /// the same for both directions. They hear nothing yet, so that no frame is taken twice while they are opened.
    ///
    /// # Errors
    /// [`PacketError`], naming the interface.
    pub fn open_group(interface: &str, mtu: u32, count: usize) -> Result<Vec<Self>, PacketError> {
        let failed = |attempt| move |error| PacketError::System { interface: interface.to_owned(), attempt, error };
        let mut group = None;
        let mut sockets = Vec::with_capacity(count);
        for _ in 0..count {
            let opened = Self { joins: false, ..Self::open(interface, mtu, &Accept::Nothing)? };
            set_buffers(&opened.socket).map_err(failed("set the sizes of buffers"))?;
            if count > 1 {
                group = Some(sys::join_group(&opened.socket, group).map_err(failed("join the fanout group"))?);
            }
            sockets.push(opened);
        }
        Ok(sockets)
    }

    /// A socket that another process opened on `interface`, and what it settled.
    pub(super) fn handed(interface: &str, mtu: u32, joins: bool, socket: OwnedFd) -> Self {
        Self { interface: interface.into(), socket: Arc::new(socket), mtu: mtu as usize, joins }
    }

    /// Says that the far end is a stack, which profits from segments joined to units, and not a wire.
    #[must_use]
    pub fn towards_stack(self) -> Self {
        Self { joins: true, ..self }
    }

    /// Says anew which frames come in, from this call on.
    ///
    /// # Errors
    /// [`PacketError`], and what came in before comes in still.
    pub fn accept(&self, accept: &Accept) -> Result<(), PacketError> {
        let interface = || self.interface.to_string();
        let program = match accept {
            Accept::Everything => filter::everything(),
            Accept::Nothing => filter::nothing(),
            Accept::Stations(stations) if stations.len() > limits::PACKET_STATIONS => {
                return Err(PacketError::TooMany { interface: interface(), count: stations.len() });
            }
            Accept::Stations(stations) => filter::stations(stations),
        };
        sys::set_filter(&self.socket, &program).map_err(|error| PacketError::System {
            interface: interface(),
            attempt: "say which frames come in",
            error,
        })
    }

    /// The queue for the worker that owns the port.
    #[must_use]
    pub fn queue(&self, port: PortIndex) -> PacketQueue {
        PacketQueue { port, socket: self.clone(), intake: Intake::new(), lost: Cell::new(0) }
    }
}

/// Sets a filter that lets nothing into a socket of any kind.
pub(super) fn take_nothing(socket: &OwnedFd) -> io::Result<()> {
    sys::set_filter(socket, &filter::nothing())
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The one queue of the port, or that of one worker.
#[derive(Debug)]
pub struct PacketQueue {
    port: PortIndex,
    socket: PacketSocket,
    intake: Intake,
    /// What the kernel said it lost; it forgets when it is asked.
    lost: Cell<u64>,
}

impl PortQueue for PacketQueue {
    fn receive(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize {
        let before = vector.len();
        self.intake.receive(&self.socket.socket, self.port, memory, vector);
        vector.len() - before
    }

    fn transmit(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>, counters: &WorkerCounters) {
        let port = counters.port(self.port.0 as usize);
        let mut taken = 0;
        while let Some(waiting) = packets.get(taken..).filter(|waiting| !waiting.is_empty()) {
            match sending::send(&self.socket.socket, memory, waiting) {
                Sent::Taken(count) => {
                    let bytes: usize = waiting.iter().take(count).map(Packet::length).sum();
                    port.sent_frames.add(count as u64);
                    port.sent_bytes.add(bytes as u64);
                    taken += count;
                }
                Sent::Refused => {
                    counters.drops(DropReason::PortRefused).add(1);
                    port.dropped_frames.add(1);
                    taken += 1;
                }
                Sent::NoRoom => break,
            }
        }
        for packet in packets.drain(..taken) {
            memory.release(packet);
        }
    }

    /// The kernel has copied what it took; nothing waits.
    fn flush(&mut self, _memory: &mut FrameMemory) -> bool {
        false
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            tcp_segmentation: true,
            udp_segmentation: false,
            partial_checksum: true,
            chained: true,
            joins: self.socket.joins,
            joins_datagrams: false,
            tunnels: false,
            frame_bytes: self.socket.mtu + ETHERNET_BYTES + TAG_BYTES,
        }
    }

    fn readable_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.socket.as_fd())
    }

    /// The descriptor is readable as long as a packet waits, so a level-triggered wait needs no request.
    fn prepare_to_sleep(&mut self) -> bool {
        true
    }

    fn lent_frames(&self) -> usize {
        0
    }

    fn port(&self) -> PortIndex {
        self.port
    }

    fn describe(&self) -> QueueDescription {
        QueueDescription { kind: "packet", mode: "beside the kernel csum tso".to_owned() }
    }

    fn kernel_drops(&self) -> u64 {
        self.lost.set(self.lost.get() + sys::take_lost(&self.socket.socket).unwrap_or(0));
        self.lost.get() + self.intake.malformed()
    }

    fn hand_over(&self) -> io::Result<HandedQueue> {
        let PacketSocket { interface, mtu, joins, .. } = &self.socket;
        let kind = HandedKind::Packet { interface: interface.to_string(), mtu: *mtu as u32, joins: *joins };
        Ok(HandedQueue { kind, descriptors: vec![handover::another(self.socket.as_fd())?] })
    }

    fn close(&mut self, _memory: &mut FrameMemory) {}
}
