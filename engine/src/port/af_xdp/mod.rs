//! A queue of a network interface by AF_XDP: the uplink's port.
//!
//! ```text
//!  steering.bpf.c --redirect--> receive ring --> worker --> transmit ring --> interface
//!                               fill ring    <-- free frames <-- completion ring
//! ```
//! One socket per queue per worker (`socket.rs`), all of a worker on one UMEM (`umem.rs`): a frame received here and
//! sent there is never copied in user space. [`Steering`] decides what gets here at all. Native before generic,
//! zero-copy before copy; the mode is read back and shown.
//!
//! Opening runs off the packet threads and needs no frame memory: the first `receive` fills the fill ring. All
//! other calls belong to the worker that owns the queue. Cost of a turn: no call to receive in copy mode, one call
//! per 256 packets to send.

mod receive;
mod rings;
mod socket;
mod steering;
mod sys;
mod transmit;
mod umem;
mod withheld;

use std::io;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Capabilities, PortQueue, QueueDescription};
use crate::counters::WorkerCounters;
use crate::limits;
use crate::packet::{FrameMemory, Packet, PortIndex};
use receive::Partial;
use socket::{Request, Socket};
use umem::LentFrames;

pub use socket::{Attempt, RingSizes};
pub use steering::{
    AttachMode, AttachPreference, Destination, STEERED_ADDRESSES, STEERED_DESTINATIONS, SharedRules, SteeredPorts,
    Steering, SteeringError, SteeringRules, VxlanRules, admit_by,
};
pub use sys::{receive_queues, set_receive_gathering, set_transmit_checksum};
pub use umem::Umem;
pub use withheld::{Withheld, Withholding};

/// Bytes of a received frame that fit one buffer behind the kernel's headroom.
const BUFFER_BYTES: usize = limits::HEAD_FRAME_BYTES - limits::XDP_HEADROOM_BYTES;

/// Ethernet header, and the tag that the kernel lets a frame have beyond the MTU.
const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;

/// Descriptors of one sent packet: 17 page fragments and the head in copy mode (`MAX_SKB_FRAGS`); in zero-copy mode
/// what the least of the common drivers takes.
const COPY_SEGMENTS: usize = 17;
const ZERO_COPY_SEGMENTS: usize = 8;

/// How long `close` waits for packets on their way out, and how often it looks.
const CLOSE_TIME: Duration = Duration::from_millis(20);
const CLOSE_PAUSE: Duration = Duration::from_micros(100);

/// When frames longer than one buffer are taken in several (`XDP_USE_SG`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultiBuffer {
    /// If the interface's MTU asks for it.
    WhenNeeded,
    /// In any case: more than one MTU may share the registration.
    Always,
    /// Never; longer frames are dropped by the kernel and counted.
    Never,
}

/// What to open. [`AfXdpOptions::new`] gives the usual choices.
#[derive(Clone, Debug)]
pub struct AfXdpOptions {
    /// The port the queue belongs to.
    pub port: PortIndex,
    /// The interface's name in the network namespace of the calling thread.
    pub interface: String,
    /// The queue's number, from zero.
    pub queue: u32,
    /// How the steering program is attached: words for `show ports` only.
    pub attached: AttachMode,
    /// Try zero-copy before copy.
    pub try_zero_copy: bool,
    /// Let the kernel say when it needs a call; without, every turn calls.
    pub need_wakeup: bool,
    /// Frames longer than one buffer.
    pub multi_buffer: MultiBuffer,
    /// Slots of the rings.
    pub rings: RingSizes,
    /// Packets that one call may take from the driver in the caller's own time, where the worker shall drive the card
    /// instead of interrupts; `None` leaves it to interrupts.
    pub busy_poll_budget: Option<NonZeroU16>,
}

impl AfXdpOptions {
    /// Zero-copy if the driver has it, need_wakeup, several buffers if the MTU asks for it, rings of 2048.
    #[must_use]
    pub fn new(port: PortIndex, interface: &str, queue: u32, attached: AttachMode) -> Self {
        Self {
            port,
            interface: interface.to_owned(),
            queue,
            attached,
            try_zero_copy: true,
            need_wakeup: true,
            multi_buffer: MultiBuffer::WhenNeeded,
            rings: RingSizes::default(),
            busy_poll_budget: None,
        }
    }
}

/// Why a queue could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The interface does not exist here, or says no MTU.
    #[error("AF_XDP on {interface} queue {queue}: cannot look up the interface: {error}")]
    Interface {
        /// The interface's name.
        interface: String,
        /// The queue's number.
        queue: u32,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// A ring size is no power of two or out of range.
    #[error("AF_XDP on {interface} queue {queue}: ring size {size} is not a power of two from 64 to 32768")]
    RingSize {
        /// The interface's name.
        interface: String,
        /// The queue's number.
        queue: u32,
        /// The size that was asked for.
        size: u32,
    },
    /// The kernel refused every way of binding.
    #[error("AF_XDP on {interface} queue {queue} refused: {}", join(.attempts))]
    Refused {
        /// The interface's name.
        interface: String,
        /// The queue's number.
        queue: u32,
        /// What was tried, in order.
        attempts: Vec<Attempt>,
    },
}

fn join(attempts: &[Attempt]) -> String {
    attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// One queue of an interface. See the module's description.
pub struct AfXdpQueue {
    socket: Option<Socket>,
    umem: Umem,
    options: AfXdpOptions,
    ifindex: u32,
    frame_bytes: usize,
    multi_buffer: bool,
    zero_copy: bool,
    /// Frames in the fill and receive rings or between them.
    receiving: LentFrames,
    /// Frames in the transmit and completion rings or between them.
    sending: LentFrames,
    partial: Partial,
    scratch: Vec<libc::xdp_desc>,
    /// Descriptors the kernel returned that make no sense, and frames longer than a packet may be.
    malformed: u64,
    drops_at_close: u64,
}

impl AfXdpQueue {
    /// Binds to a queue of an interface. Blocks for up to a second while the queue is busy, so it is not called on a
    /// packet thread. The worker that gets the queue must own the memory `umem` stands on.
    ///
    /// # Errors
    /// [`OpenError`], naming the interface, the queue and what was tried.
    pub fn open(options: AfXdpOptions, umem: &Umem) -> Result<Self, OpenError> {
        let AfXdpOptions { interface, queue, .. } = &options;
        let lookup = |error| OpenError::Interface { interface: interface.clone(), queue: *queue, error };
        if let Some(size) = options.rings.illegal() {
            return Err(OpenError::RingSize { interface: interface.clone(), queue: *queue, size });
        }
        let ifindex = sys::interface_index(interface).map_err(lookup)?;
        let mtu = sys::interface_mtu(interface).map_err(lookup)?;
        let multi_buffer = match options.multi_buffer {
            MultiBuffer::WhenNeeded => mtu + ETHERNET_BYTES + TAG_BYTES > BUFFER_BYTES,
            MultiBuffer::Always => true,
            MultiBuffer::Never => false,
        };
        let request = Request {
            ifindex,
            queue: *queue,
            rings: options.rings,
            try_zero_copy: options.try_zero_copy,
            need_wakeup: options.need_wakeup,
            multi_buffer,
            busy_poll_budget: options.busy_poll_budget,
        };
        let refused = |attempts| OpenError::Refused { interface: interface.clone(), queue: *queue, attempts };
        let socket = Socket::open(&request, umem).map_err(refused)?;
        let zero_copy = socket.mode.zero_copy;
        let segments = match (multi_buffer, zero_copy) {
            (false, _) => 1,
            (true, false) => COPY_SEGMENTS,
            (true, true) => ZERO_COPY_SEGMENTS,
        };
        let frame_bytes = (mtu + ETHERNET_BYTES + TAG_BYTES).min(segments * BUFFER_BYTES);
        let mut opened = Self::without_socket(options, umem);
        opened.socket = Some(socket);
        (opened.ifindex, opened.frame_bytes) = (ifindex, frame_bytes);
        (opened.multi_buffer, opened.zero_copy) = (multi_buffer, zero_copy);
        Ok(opened)
    }

    /// A queue that holds and moves nothing yet.
    fn without_socket(options: AfXdpOptions, umem: &Umem) -> Self {
        Self {
            socket: None,
            umem: umem.clone(),
            options,
            ifindex: 0,
            frame_bytes: 0,
            multi_buffer: false,
            zero_copy: false,
            receiving: LentFrames::new(umem.frames()),
            sending: LentFrames::new(umem.frames()),
            partial: Partial::None,
            scratch: Vec::with_capacity(2 * limits::CHAIN_SEGMENTS),
            malformed: 0,
            drops_at_close: 0,
        }
    }

    /// The socket, for [`Steering::insert_socket`]; `None` after `close`.
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Whether the driver moves packets without a copy in the kernel.
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Whether the queue shares its registration of the memory with an earlier one.
    #[must_use]
    pub fn shares_umem(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.shared)
    }

    fn check_memory(&self, memory: &FrameMemory) {
        assert!(self.umem.is_of(memory), "an AF_XDP queue was used with another worker's memory");
    }

    /// Waits a moment for packets on their way out.
    fn drain(&mut self, memory: &mut FrameMemory) {
        let deadline = Instant::now() + CLOSE_TIME;
        loop {
            let stuck = !self.push_out(memory);
            if self.sending.count() == 0 || Instant::now() >= deadline {
                return;
            }
            // A ring the kernel refuses to send (link down, device gone) never completes.
            if stuck && self.socket.as_mut().is_some_and(|socket| socket.transmit.waiting() > 0) {
                return;
            }
            std::thread::sleep(CLOSE_PAUSE);
        }
    }

    /// Closes the socket and returns the frames of which the kernel may still read: in zero-copy mode all, since the
    /// driver lets go a moment after the close; in copy mode those sent and not completed, which a device may hold
    /// by reference. The others come back through `give_back`.
    fn close_socket(&mut self, mut give_back: impl FnMut(u64)) -> Vec<u64> {
        let Some(mut socket) = self.socket.take() else { return Vec::new() };
        self.drops_at_close = socket.kernel_drops().unwrap_or(0);
        if !self.zero_copy {
            // What the kernel has not consumed it never will.
            while let Some(descriptor) = socket.transmit.take_back() {
                if self.sending.forget(descriptor.addr) {
                    give_back(descriptor.addr);
                }
            }
        }
        drop(socket);
        let mut held = self.sending.take();
        let received = self.receiving.take();
        if self.zero_copy {
            held.extend(received);
        } else {
            received.into_iter().for_each(&mut give_back);
        }
        held
    }
}

impl PortQueue for AfXdpQueue {
    fn receive(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize {
        self.check_memory(memory);
        self.take_vector(memory, vector)
    }

    fn transmit(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>, counters: &WorkerCounters) {
        self.check_memory(memory);
        self.send(memory, packets, counters);
    }

    fn flush(&mut self, memory: &mut FrameMemory) -> bool {
        self.check_memory(memory);
        self.push_out(memory)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            tcp_segmentation: false,
            udp_segmentation: false,
            partial_checksum: false,
            chained: self.multi_buffer,
            joins: false,
            joins_datagrams: false,
            tunnels: false,
            frame_bytes: self.frame_bytes,
        }
    }

    fn readable_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.socket()
    }

    fn is_cheap_to_poll(&self) -> bool {
        true
    }

    fn prepare_to_sleep(&mut self) -> bool {
        let Some(socket) = &mut self.socket else { return true };
        if socket.fill.needs_wakeup() {
            sys::kick_receive(socket.as_fd());
        }
        socket.receive.available() == 0
    }

    fn lent_frames(&self) -> usize {
        self.receiving.count() + self.sending.count()
    }

    fn port(&self) -> PortIndex {
        self.options.port
    }

    fn describe(&self) -> QueueDescription {
        let copy = if self.zero_copy { "zero-copy" } else { "copy" };
        let wakeup = if self.options.need_wakeup { " need_wakeup" } else { "" };
        let several = if self.multi_buffer { " multi_buffer" } else { "" };
        let shared = if self.shares_umem() { " shared_umem" } else { "" };
        let busy = self.options.busy_poll_budget.map_or_else(String::new, |budget| format!(" busy_poll {budget}"));
        let (attached, queue) = (self.options.attached, self.options.queue);
        let mode = format!("{attached} {copy}{wakeup}{several}{shared}{busy} queue {queue}");
        QueueDescription { kind: "af_xdp", mode }
    }

    fn kernel_drops(&self) -> u64 {
        let dropped = self.socket.as_ref().and_then(Socket::kernel_drops).unwrap_or(self.drops_at_close);
        dropped + self.malformed
    }

    fn close(&mut self, memory: &mut FrameMemory) {
        self.check_memory(memory);
        if let Partial::Building(packet, _) = std::mem::replace(&mut self.partial, Partial::None) {
            memory.release(packet);
        }
        if self.socket.is_none() {
            return;
        }
        self.drain(memory);
        let held = self.close_socket(|address| {
            if let Some(frame) = memory.reclaim(address) {
                memory.release_frame(frame);
            }
        });
        if held.is_empty() {
            return;
        }
        self.umem.quarantine(self.ifindex, self.options.queue, held);
        let deadline = Instant::now() + CLOSE_TIME;
        while self.umem.settle(memory) > 0 && Instant::now() < deadline {
            std::thread::sleep(CLOSE_PAUSE);
        }
    }
}

impl Drop for AfXdpQueue {
    /// A queue that was not closed leaves its frames in quarantine, whence [`Umem::settle`] brings them back. Only
    /// the buffers of a frame that had arrived in part are lost.
    fn drop(&mut self) {
        let mut rest = Vec::new();
        let mut held = self.close_socket(|address| rest.push(address));
        held.append(&mut rest);
        self.umem.quarantine(self.ifindex, self.options.queue, held);
    }
}
