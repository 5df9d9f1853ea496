//! What a worker sees of a port: a queue it alone receives from and transmits to.
//!
//! A port (a pod's TAP, an uplink) has one queue per worker where the device can, otherwise one queue with an
//! owner; other workers reach it through the owner's lane. A queue never blocks and never allocates after it was
//! made; what the device cannot take stays in the caller's list.

pub mod af_xdp;
pub mod handover;
pub mod memory;
pub mod namespace;
pub mod packet_socket;
pub mod pcap;
pub mod socket;
pub mod tap;
pub mod udp;

use std::os::fd::BorrowedFd;

use crate::counters::WorkerCounters;
use crate::packet::{FrameMemory, Packet, PortIndex};
use handover::HandedQueue;

/// What a queue can take from `transmit`; `transmit.rs` brings packets into that form before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Takes TCP GSO units whole.
    pub tcp_segmentation: bool,
    /// Takes UDP GSO units whole.
    pub udp_segmentation: bool,
    /// Takes packets with a partial checksum; says so to the receiver.
    pub partial_checksum: bool,
    /// Takes chained packets.
    pub chained: bool,
    /// Wants consecutive TCP segments joined: the receiver profits from GSO units and can be told of them.
    pub joins: bool,
    /// Whether that holds of UDP datagrams too: a kernel behind it cuts units for sockets that take none.
    pub joins_datagrams: bool,
    /// Sends tunnelled packets by sockets, so that the kernel makes their outer headers, UDP checksum included.
    pub tunnels: bool,
    /// Longest frame it takes when the packet is no GSO unit: Ethernet header included, and on a wire one VLAN tag, which
    /// is no part of an MTU (IEEE 802.3 section 3.2.7).
    pub frame_bytes: usize,
}

/// How a queue moves packets, in words for `show ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDescription {
    /// `tap`, `af_xdp`, `packet`, `udp`, `memory`, `pcap`.
    pub kind: &'static str,
    /// Mode read back from the kernel, e.g. `native copy need_wakeup queue 0`.
    pub mode: String,
}

/// One queue of a port, owned by one worker.
pub trait PortQueue: Send {
    /// Moves received packets behind those in `vector`, at most until it holds `limits::VECTOR_PACKETS` packets or
    /// this call has added `limits::VECTOR_BYTES` bytes. Sets each packet's `ingress` to the queue's port, its
    /// `checksum` and its `gso`. Returns how many were added.
    fn receive(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize;

    /// Takes packets off the front of `packets`, in order, as many as the device accepts; sent packets' frames
    /// return to `memory` now or when the kernel is done with them. A packet the kernel refuses for good is taken,
    /// counted with `DropReason::PortRefused` and released. Sent frames and bytes are counted in the port's counters.
    fn transmit(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>, counters: &WorkerCounters);

    /// Reaps completions and kicks the kernel if transmitted packets still wait for it. Called once a turn for
    /// queues that transmitted. True if it must be called again although nothing new is sent.
    fn flush(&mut self, memory: &mut FrameMemory) -> bool;

    /// What `transmit` takes.
    fn capabilities(&self) -> Capabilities;

    /// The descriptor that becomes readable when a packet arrives; `None` for queues in memory.
    fn readable_descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Whether an empty `receive` costs no system call, so that the queue is polled every turn.
    fn is_cheap_to_poll(&self) -> bool {
        false
    }

    /// Called before the worker blocks: asks the kernel for a wake-up. False if packets are there already.
    fn prepare_to_sleep(&mut self) -> bool;

    /// Frames of `memory` that the kernel holds at this moment (fill, receive, transmit, completion rings).
    fn lent_frames(&self) -> usize;

    /// The port this queue belongs to.
    fn port(&self) -> PortIndex;

    /// Words for `show ports`.
    fn describe(&self) -> QueueDescription;

    /// Packets the kernel dropped before this queue could take them, since it was made.
    fn kernel_drops(&self) -> u64;

    /// As [`PortQueue::receive`], of packets that were taken from the kernel already: so that a worker can finish what it began.
    fn receive_held(&mut self, _memory: &mut FrameMemory, _vector: &mut Vec<Packet>) -> usize {
        0
    }

    /// What another process needs to go on with this queue; the queue itself goes on as before.
    ///
    /// # Errors
    /// [`std::io::ErrorKind::Unsupported`] for a kind that cannot be handed over; or the process has no descriptors left.
    fn hand_over(&self) -> std::io::Result<HandedQueue> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// Gives back all frames it can; the queue is dropped afterwards.
    fn close(&mut self, memory: &mut FrameMemory);
}
