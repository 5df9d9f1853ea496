//! TAP ports: the default port of pods, and the host's own.
//!
//! A multi-queue TAP with a virtio-net header keeps what the pod's kernel has built: a 64 KiB unit of TCP segments
//! crosses the switch as one packet, and checksums that only a wire needs are never computed. One read or write
//! system call a packet; nothing is shared between the queues of two workers.
//!
//! A read scatters into `[header | head frame from XDP_HEADROOM_BYTES on | big buffer]`. The big buffer joins the
//! packet only if it was written to, so small packets cost one head frame. Without a free head or big buffer the
//! queue reads nothing: the device's own ring (1,000 packets) holds the pod back, and no unit is cut short. Frame
//! memory therefore needs big buffers where there are TAPs.
//!
//! Sources: Linux drivers/net/tun.c, include/uapi/linux/virtio_net.h, VIRTIO 1.2 section 5.1.6.

pub mod device;
mod steering;
#[cfg(feature = "testing")]
mod steering_run;
pub mod vnet_header;

pub use device::{Offloads, TapDevice, TapError};
#[cfg(feature = "testing")]
pub use steering_run::SteeringRun;

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::io::Errno;

use self::vnet_header::{VNET_HEADER_BYTES, VnetHeader};
use super::handover::{self, HandedKind, HandedQueue};
use super::{Capabilities, PortQueue, QueueDescription};
use crate::counters::WorkerCounters;
use crate::drop_reason::DropReason;
use crate::limits;
use crate::packet::{Frame, FrameMemory, Packet, PortIndex};

/// First byte of a received packet in its head frame, as for AF_XDP.
const START: usize = limits::XDP_HEADROOM_BYTES;

/// Bytes of a received packet that its head frame holds; all headers of a unit lie in them.
const HEAD_BYTES: usize = limits::HEAD_FRAME_BYTES - START;

/// Shortest Ethernet frame: what is shorter has no header to judge.
const ETHERNET_BYTES: usize = 14;

/// Parts of one gathered write: header, head, and a chain with some room above its limit.
const PARTS: usize = limits::CHAIN_SEGMENTS + 8;

/// One queue of a TAP.
#[derive(Debug)]
pub struct TapQueue {
    port: PortIndex,
    number: usize,
    file: OwnedFd,
    offloads: Offloads,
    malformed: u64,
    gone: bool,
}

/// How one write ended.
enum Sent {
    Yes,
    Refused,
    NoRoom,
}

impl TapQueue {
    pub(super) fn new(port: PortIndex, number: usize, file: OwnedFd, offloads: Offloads) -> Self {
        Self { port, number, file, offloads, malformed: 0, gone: false }
    }

    /// Packets whose virtio-net header contradicted the frame, since the queue was made: only a raw socket in the
    /// pod writes such. They never became packets; [`DropReason::GsoMalformed`] describes them.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Whether the device was deleted under the queue.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Reads one frame into `head` and `big`. The length is that of the frame; zero for one that was no packet.
    fn read(&mut self, memory: &FrameMemory, head: &mut Frame, big: &mut Frame) -> Option<(usize, VnetHeader)> {
        let mut header = [0u8; VNET_HEADER_BYTES];
        let count = loop {
            let head_bytes = &mut memory.bytes_mut(head)[START..];
            let mut parts =
                [IoSliceMut::new(&mut header), IoSliceMut::new(head_bytes), IoSliceMut::new(memory.bytes_mut(big))];
            match rustix::io::readv(&self.file, &mut parts) {
                Ok(count) => break count,
                Err(Errno::INTR) => {}
                Err(Errno::BADFD) => {
                    self.give_up();
                    return None;
                }
                Err(_) => return None, // nothing there
            }
        };
        let length = count.saturating_sub(VNET_HEADER_BYTES);
        let parsed = VnetHeader::parse(&header, length.min(HEAD_BYTES), length).ok();
        match parsed.filter(|_| length >= ETHERNET_BYTES) {
            Some(header) => Some((length, header)),
            None => {
                self.malformed += 1;
                Some((0, VnetHeader::default()))
            }
        }
    }

    /// The device was deleted. Its descriptor would stay readable for ever, so an event that never happens takes
    /// its place under the same number, which also takes it out of the worker's epoll set.
    fn give_up(&mut self) {
        self.gone = true;
        if let Ok(silent) = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
            let _ = rustix::io::dup3(&silent, &mut self.file, rustix::io::DupFlags::CLOEXEC);
        }
    }

    fn write(&mut self, memory: &FrameMemory, packet: &Packet) -> Sent {
        let Some(header) = VnetHeader::of(packet, memory.head(packet)).map(VnetHeader::bytes) else {
            return Sent::Refused;
        };
        let mut parts = [IoSlice::new(&[]); PARTS];
        let mut count = 1;
        parts[0] = IoSlice::new(&header);
        for part in memory.parts(packet) {
            let Some(slot) = parts.get_mut(count) else { return Sent::Refused };
            *slot = IoSlice::new(part);
            count += 1;
        }
        loop {
            match rustix::io::writev(&self.file, &parts[..count]) {
                Ok(_) => return Sent::Yes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Sent::NoRoom,
                Err(Errno::BADFD) => {
                    self.give_up();
                    return Sent::Refused;
                }
                Err(_) => return Sent::Refused, // EIO: interface down; EINVAL: the kernel disbelieves the header
            }
        }
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl PortQueue for TapQueue {
    fn receive(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize {
        if self.gone {
            return 0;
        }
        let (before, mut bytes, mut malformed) = (vector.len(), 0, 0);
        let (mut spare_head, mut spare_big) = (None, None);
        while vector.len() < limits::VECTOR_PACKETS
            && bytes < limits::VECTOR_BYTES
            && malformed < limits::VECTOR_PACKETS
        {
            let Some(mut head) = spare_head.take().or_else(|| memory.allocate_head()) else { break };
            let Some(mut big) = spare_big.take().or_else(|| memory.allocate_big()) else {
                spare_head = Some(head);
                break;
            };
            let outcome = self.read(memory, &mut head, &mut big);
            let Some((length, header)) = outcome.filter(|(length, _)| *length > 0) else {
                (spare_head, spare_big) = (Some(head), Some(big));
                if outcome.is_none() {
                    break;
                }
                malformed += 1;
                continue;
            };
            let mut packet = Packet::new(head, START, length.min(HEAD_BYTES));
            if length > HEAD_BYTES {
                memory.append(&mut packet, big, 0, length - HEAD_BYTES);
            } else {
                spare_big = Some(big);
            }
            packet.ingress = self.port;
            header.apply(&mut packet);
            bytes += length;
            vector.push(packet);
        }
        for spare in [spare_head, spare_big].into_iter().flatten() {
            memory.release_frame(spare);
        }
        vector.len() - before
    }

    fn transmit(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>, counters: &WorkerCounters) {
        let port = counters.port(self.port.0 as usize);
        let mut taken = 0;
        for packet in packets.iter() {
            let sent = if self.gone { Sent::Refused } else { self.write(memory, packet) };
            match sent {
                Sent::Yes => {
                    port.sent_frames.add(1);
                    port.sent_bytes.add(packet.length() as u64);
                }
                Sent::Refused => {
                    counters.drops(DropReason::PortRefused).add(1);
                    port.dropped_frames.add(1);
                }
                Sent::NoRoom => break,
            }
            taken += 1;
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
            udp_segmentation: self.offloads.udp_segmentation,
            partial_checksum: true,
            chained: true,
            joins: true,
            joins_datagrams: self.offloads.udp_segmentation,
            tunnels: false,
            frame_bytes: limits::PACKET_BYTES,
        }
    }

    fn readable_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
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
        let state = if self.gone { " device gone" } else { "" };
        let uso = if self.offloads.udp_segmentation { " uso" } else { "" };
        QueueDescription { kind: "tap", mode: format!("queue {} csum tso{uso}{state}", self.number) }
    }

    /// Packets that were refused for their header; what the device's ring lost is in the interface's own counters.
    fn kernel_drops(&self) -> u64 {
        self.malformed
    }

    fn hand_over(&self) -> std::io::Result<HandedQueue> {
        if self.gone {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        let kind = HandedKind::Tap { number: self.number, udp_segmentation: self.offloads.udp_segmentation };
        Ok(HandedQueue { kind, descriptors: vec![handover::another(self.file.as_fd())?] })
    }

    fn close(&mut self, _memory: &mut FrameMemory) {}
}
