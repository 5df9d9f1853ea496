//! One worker's frame memory as the kernel's UMEM, shared by all AF_XDP sockets of that worker.
//!
//! ```text
//!  FrameMemory (head frames) --- Umem --- socket of eth0 queue 0   registers the UMEM
//!                                  |----- socket of eth1 queue 0   shares it (XDP_SHARED_UMEM)
//!                                  '----- frames in quarantine
//! ```
//! **Sharing outlives any socket.** The kernel shares a UMEM by the descriptor of a bound socket. `Umem` keeps the
//! list of live ones and shares from any that fits; if there is none (the first, or all others closed, or their
//! devices gone) the next socket registers the memory anew. Two registrations of the same memory are legal and
//! their addresses mean the same, so frames still move between all queues without a copy. An anchor socket on `lo`
//! was the other choice: it can exist only once in a namespace, so not once per worker, and it would fix the copy
//! mode for all.
//!
//! **Frames come back exactly.** [`LentFrames`] records each frame a queue lent, so after the socket is closed the
//! frames are known even where the kernel kept one outside the rings. What the kernel may still read after the close
//! (sent but not completed, or anything in zero-copy mode, where the driver lets go later) waits in quarantine until
//! a new bind to the same queue succeeds: the kernel allows it only when the old socket and its last packet are gone
//! (net/xdp/xsk.c `xsk_destruct`, net/xdp/xsk_buff_pool.c `xp_release_deferred`).
//!
//! The lock is taken when queues open and close, never while packets move. Cost: one bit a frame and direction.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::sys;
use crate::limits::HEAD_FRAME_BYTES;
use crate::packet::{Frame, FrameMemory, FrameSet, Region};

/// What all sockets that share one registration have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    pub(super) zero_copy: bool,
    pub(super) need_wakeup: bool,
    pub(super) multi_buffer: bool,
}

/// The UMEM of one worker; clones are the same UMEM.
#[derive(Clone, Debug)]
pub struct Umem(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    region: Arc<Region>,
    address: u64,
    length: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sockets: Vec<(Arc<OwnedFd>, Mode)>,
    quarantine: Vec<Quarantined>,
}

/// Frames of a closed queue that the kernel may still read.
#[derive(Debug)]
struct Quarantined {
    ifindex: u32,
    queue: u32,
    released: bool,
    addresses: Vec<u64>,
}

impl Umem {
    /// Bytes of it, which the kernel locks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.length
    }

    /// The UMEM that stands on the head frames of `memory`. Registers nothing yet.
    #[must_use]
    pub fn new(memory: &FrameMemory) -> Self {
        let (base, length) = memory.umem();
        Self(Arc::new(Inner {
            region: Arc::clone(memory.region()),
            address: base as u64,
            length: length as u64,
            state: Mutex::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Head frames in all.
    pub(super) fn frames(&self) -> usize {
        self.0.length as usize / HEAD_FRAME_BYTES
    }

    /// Whether `memory` is the one this UMEM stands on.
    #[inline]
    pub(super) fn is_of(&self, memory: &FrameMemory) -> bool {
        Arc::ptr_eq(&self.0.region, memory.region())
    }

    /// Registers the memory with `socket`.
    pub(super) fn register(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let registration = libc::xdp_umem_reg {
            addr: self.0.address,
            len: self.0.length,
            chunk_size: HEAD_FRAME_BYTES as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        sys::set_option(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
    }

    /// Calls `attempt` with each live socket whose registration has `mode` until one succeeds. No socket of the list
    /// can close meanwhile. `None` if there is none to share from, otherwise the last outcome.
    pub(super) fn share<T, E>(
        &self,
        mode: Mode,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        let state = self.state();
        let mut last = None;
        for (socket, _) in state.sockets.iter().filter(|(_, other)| *other == mode) {
            let outcome = attempt(socket.as_fd());
            if outcome.is_ok() {
                return Some(outcome);
            }
            last = Some(outcome);
        }
        last
    }

    /// Enters a socket that was bound to `queue` of `ifindex`. That the kernel let it bind proves that an earlier
    /// socket of this queue is gone with all its packets.
    pub(super) fn enter(&self, socket: &Arc<OwnedFd>, mode: Mode, ifindex: u32, queue: u32) {
        let mut state = self.state();
        state.sockets.push((Arc::clone(socket), mode));
        for held in state.quarantine.iter_mut().filter(|held| (held.ifindex, held.queue) == (ifindex, queue)) {
            held.released = true;
        }
    }

    /// Calls `act` with the socket, which cannot close meanwhile; `None` if it has been closed.
    pub(super) fn while_open<T>(&self, socket: &Weak<OwnedFd>, act: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        let state = self.state();
        let is_it = |other: &Arc<OwnedFd>| Weak::as_ptr(socket) == Arc::as_ptr(other);
        let (socket, _) = state.sockets.iter().find(|(other, _)| is_it(other))?;
        Some(act(socket.as_fd()))
    }

    /// Takes a socket off the list; afterwards its owner holds the only reference.
    pub(super) fn leave(&self, socket: &Arc<OwnedFd>) {
        self.state().sockets.retain(|(other, _)| other.as_raw_fd() != socket.as_raw_fd());
    }

    /// Holds frames of a closed queue until the kernel has let go of them.
    pub(super) fn quarantine(&self, ifindex: u32, queue: u32, addresses: Vec<u64>) {
        if !addresses.is_empty() {
            self.state().quarantine.push(Quarantined { ifindex, queue, released: false, addresses });
        }
    }

    /// Enters the frames in quarantine into `held`.
    pub(crate) fn mark_quarantined(&self, held: &mut FrameSet) {
        let state = self.state();
        let addresses = state.quarantine.iter().flat_map(|quarantined| &quarantined.addresses);
        addresses.for_each(|address| held.insert((address / HEAD_FRAME_BYTES as u64) as u32));
    }

    /// Frames in quarantine.
    #[must_use]
    pub fn quarantined_frames(&self) -> usize {
        self.state().quarantine.iter().map(|held| held.addresses.len()).sum()
    }

    /// Gives quarantined frames back to `memory` where the kernel has let go of them; the rest stays. Returns how
    /// many are left. Queues call it when they close; housekeeping may call it at leisure, on a thread in the network
    /// namespace of the interfaces. Costs a socket and a bind for each queue in quarantine.
    ///
    /// # Panics
    /// If `memory` is not the one of this UMEM: a programmer's mistake.
    pub fn settle(&self, memory: &mut FrameMemory) -> usize {
        assert!(self.is_of(memory), "a UMEM was used with another worker's memory");
        let mut state = self.state();
        for held in &mut state.quarantine {
            held.released = held.released || queue_is_free(held.ifindex, held.queue);
        }
        for held in state.quarantine.extract_if(.., |held| held.released) {
            for address in held.addresses {
                if let Some(frame) = memory.reclaim(address) {
                    memory.release_frame(frame);
                }
            }
        }
        state.quarantine.iter().map(|held| held.addresses.len()).sum()
    }
}

/// Whether the kernel has let go of the last socket of a queue: a probe can bind to it, or the device is gone.
fn queue_is_free(ifindex: u32, queue: u32) -> bool {
    match probe(ifindex, queue) {
        Ok(()) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENODEV),
    }
}

fn probe(ifindex: u32, queue: u32) -> io::Result<()> {
    let page = sys::Mapping::anonymous(4096)?;
    let registration = libc::xdp_umem_reg {
        addr: page.base().as_ptr() as u64,
        len: page.length() as u64,
        chunk_size: 2048,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    let socket = sys::socket()?;
    sys::set_option(socket.as_fd(), libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)?;
    for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_TX_RING] {
        sys::set_option(socket.as_fd(), libc::SOL_XDP, ring, &64u32)?;
    }
    sys::bind(socket.as_fd(), ifindex, queue, libc::XDP_COPY, 0)
}

/// Which frames one queue has lent to the kernel in one direction.
#[derive(Debug)]
pub(super) struct LentFrames {
    words: Box<[u64]>,
    count: usize,
}

impl LentFrames {
    /// None of `frames` frames lent.
    pub(super) fn new(frames: usize) -> Self {
        Self { words: vec![0; frames.div_ceil(64)].into_boxed_slice(), count: 0 }
    }

    /// How many are lent.
    #[inline]
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Lends a head frame of `memory`; its address for the kernel.
    #[inline]
    pub(super) fn lend(&mut self, memory: &mut FrameMemory, frame: Frame) -> u64 {
        let index = frame.index() as usize;
        let address = memory.lend(frame);
        self.words[index / 64] |= 1 << (index % 64);
        self.count += 1;
        address
    }

    /// Takes back the frame that holds `address`. `None` if it was not lent: the kernel gave an address twice or one
    /// we never gave, and following it would make two owners of one frame.
    #[inline]
    pub(super) fn reclaim(&mut self, memory: &mut FrameMemory, address: u64) -> Option<Frame> {
        if self.forget(address) { memory.reclaim(address) } else { None }
    }

    /// Strikes the frame that holds `address` off the record. False if it was not on it.
    #[inline]
    pub(super) fn forget(&mut self, address: u64) -> bool {
        let index = address / HEAD_FRAME_BYTES as u64;
        let Some(word) = usize::try_from(index / 64).ok().and_then(|word| self.words.get_mut(word)) else {
            return false;
        };
        let bit = 1 << (index % 64);
        let lent = *word & bit != 0;
        if lent {
            *word &= !bit;
            self.count -= 1;
        }
        lent
    }

    /// Enters all lent frames into `held`.
    pub(super) fn mark(&self, held: &mut FrameSet) {
        for (number, word) in self.words.iter().enumerate() {
            let lent = (0..64u32).filter(|bit| word & (1 << bit) != 0);
            lent.for_each(|bit| held.insert(number as u32 * 64 + bit));
        }
    }

    /// Forgets all lent frames and returns their addresses.
    pub(super) fn take(&mut self) -> Vec<u64> {
        let mut addresses = Vec::with_capacity(self.count);
        for (number, word) in self.words.iter_mut().enumerate() {
            while *word != 0 {
                let index = number * 64 + word.trailing_zeros() as usize;
                addresses.push((index * HEAD_FRAME_BYTES) as u64);
                *word &= *word - 1;
            }
        }
        self.count = 0;
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::FrameMemoryLayout;

    fn memory() -> FrameMemory {
        FrameMemory::new(FrameMemoryLayout { head_frames: 128, big_buffers: 0 }).expect("memory")
    }

    #[test]
    fn a_lent_frame_comes_back_once_from_any_address_inside_it() {
        let mut memory = memory();
        let mut lent = LentFrames::new(128);
        let frames: Vec<Frame> = std::iter::from_fn(|| memory.allocate_head()).collect();
        let addresses: Vec<u64> = frames.into_iter().map(|frame| lent.lend(&mut memory, frame)).collect();
        assert_eq!((lent.count(), memory.free_heads()), (128, 0));
        let frame = lent.reclaim(&mut memory, addresses[70] + 300).expect("lent");
        assert_eq!(u64::from(frame.index()) * 2048, addresses[70]);
        memory.release_frame(frame);
        assert!(lent.reclaim(&mut memory, addresses[70]).is_none(), "given twice");
        assert!(lent.reclaim(&mut memory, 128 * 2048).is_none(), "outside the memory");
        assert!(lent.reclaim(&mut memory, u64::MAX).is_none(), "far outside");
        let rest = lent.take();
        assert_eq!((rest.len(), lent.count()), (127, 0));
        assert!(!rest.contains(&addresses[70]) && rest.iter().all(|address| address % 2048 == 0));
    }

    #[test]
    fn quarantined_frames_return_when_the_device_is_gone() {
        let mut memory = memory();
        let umem = Umem::new(&memory);
        let mut lent = LentFrames::new(umem.frames());
        for _ in 0..5 {
            let frame = memory.allocate_head().expect("frame");
            lent.lend(&mut memory, frame);
        }
        umem.quarantine(u32::MAX - 7, 0, lent.take());
        assert_eq!((umem.quarantined_frames(), memory.free_heads()), (5, 123));
        // Without the right to open AF_XDP sockets nothing can be proven, and nothing may come back.
        let left = umem.settle(&mut memory);
        if sys::socket().is_ok() {
            assert_eq!((left, memory.free_heads()), (0, 128));
        } else {
            assert_eq!((left, memory.free_heads()), (5, 123));
        }
    }
}
