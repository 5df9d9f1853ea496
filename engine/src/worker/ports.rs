//! The ports of one worker: their queues, what waits for them, and which of them to poll.
//!
//! Queues that are polled for the price of a load (AF_XDP rings, queues in memory) are polled every turn. Queues that
//! cost a system call (TAPs) are polled when epoll named them or when they delivered in the turn before; epoll itself
//! is asked after a turn in which no queue delivered, and every 16th turn: asking costs as much as five packets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;

use super::bandwidth::Limiter;
use crate::clock::Time;
use crate::counters::WorkerCounters;
use crate::limits;
use crate::packet::{FrameMemory, Packet, PortIndex};
use crate::port::{Capabilities, PortQueue};
use crate::state::{BandwidthBudgets, Way};
use crate::tables::BandwidthTable;
use crate::transmit::LaneSender;

/// Turns between two looks at epoll while some queue delivers.
const EPOLL_TURNS: u32 = 16;
/// Packets in a port's list below which nobody asks whose they are.
const AMPLE_PACKETS: usize = limits::TRANSMIT_QUEUE_PACKETS / 2;
/// Events taken from epoll at once.
const EPOLL_EVENTS: usize = 64;
/// What epoll says for the worker's own wake-up descriptor.
pub(super) const WAKE_UP: u64 = u64::MAX;

#[derive(Default)]
struct Slot {
    queue: Option<Box<dyn PortQueue>>,
    lane: Option<usize>,
    capabilities: Option<Capabilities>,
    pending: Vec<Packet>,
    /// Longest frame that this worker's own queue takes; 0 without one, and where packets are copied for a mirror or counted
    /// against a limit.
    longest_own: usize,
    /// The vector that `share` was computed for.
    sharing: u64,
    /// How long the list may become by that vector.
    share: usize,
    active: bool,
    hot: bool,
}

/// The ports of one worker.
pub struct Ports {
    slots: Box<[Slot]>,
    cheap: Vec<PortIndex>,
    hot: Vec<PortIndex>,
    ready: Vec<PortIndex>,
    lanes: Vec<Option<LaneSender>>,
    epoll: OwnedFd,
    turns: u32,
    /// Counts vectors, empty ones too.
    vector: u64,
    /// Some queue delivered since epoll was last thought of, or epoll has just named one.
    delivered: bool,
    /// Ports whose packets are copied as they leave.
    watched: Vec<PortIndex>,
    limiter: Limiter,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Ports").field("cheap", &self.cheap).field("hot", &self.hot).finish_non_exhaustive()
    }
}

impl Ports {
    /// No ports yet; `lanes[n]` leads to worker `n`, where there is one. The budgets are those of all workers.
    ///
    /// # Errors
    /// What the kernel said to epoll_create.
    pub fn new(lanes: Vec<Option<LaneSender>>, budgets: BandwidthBudgets) -> io::Result<Self> {
        Ok(Self {
            slots: (0..limits::PORTS).map(|_| Slot::default()).collect(),
            cheap: Vec::with_capacity(limits::PORTS),
            hot: Vec::with_capacity(limits::PORTS),
            ready: Vec::with_capacity(limits::PORTS),
            lanes,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            turns: 0,
            vector: 0,
            delivered: false,
            watched: Vec::new(),
            limiter: Limiter::new(budgets),
        })
    }

    /// Watches a descriptor that only ends the worker's sleep.
    pub(super) fn watch_wake_up(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, descriptor, epoll::EventData::new_u64(WAKE_UP), epoll::EventFlags::IN)?)
    }

    /// Adds this worker's queue of a port.
    ///
    /// # Errors
    /// The port number is out of range or taken, or epoll refused its descriptor; the queue is given back.
    pub fn attach(&mut self, queue: Box<dyn PortQueue>) -> Result<(), (Box<dyn PortQueue>, io::Error)> {
        let port = queue.port();
        let Some(slot) = self.slots.get_mut(port.0 as usize).filter(|slot| slot.capabilities.is_none()) else {
            return Err((queue, io::Error::other("the port number is taken or out of range")));
        };
        if let Some(descriptor) = queue.readable_descriptor() {
            let data = epoll::EventData::new_u64(u64::from(port.0));
            if let Err(error) = epoll::add(&self.epoll, descriptor, data, epoll::EventFlags::IN) {
                return Err((queue, error.into()));
            }
        }
        if queue.is_cheap_to_poll() {
            self.cheap.push(port);
        }
        slot.capabilities = Some(queue.capabilities());
        slot.pending.reserve_exact(limits::TRANSMIT_QUEUE_PACKETS);
        slot.queue = Some(queue);
        self.set_shortcut(port);
        Ok(())
    }

    /// Notes that another worker owns the port's queue.
    pub fn attach_by_lane(&mut self, port: PortIndex, capabilities: Capabilities, worker: usize) {
        if let Some(slot) = self.slots.get_mut(port.0 as usize) {
            slot.capabilities = Some(capabilities);
            slot.lane = Some(worker);
        }
    }

    /// Says which ports' packets are copied as they leave: those take no shortcut to their queue.
    pub(super) fn set_watched(&mut self, watched: Vec<PortIndex>) {
        if self.watched == watched {
            return;
        }
        self.watched = watched;
        (0..self.slots.len()).for_each(|number| self.set_shortcut(PortIndex(number as u16)));
    }

    /// Says which limits of bandwidth follow on which. Packets to a limited port take no shortcut.
    pub(super) fn set_bandwidth(&mut self, old: &BandwidthTable, new: &BandwidthTable) {
        if std::sync::Arc::ptr_eq(old, new) {
            return;
        }
        let mut changed = [false; limits::PORTS];
        self.limiter.change(old, new, |port| changed[usize::from(port.0)] = true);
        for port in (0..limits::PORTS).filter(|number| changed[*number]).map(|number| PortIndex(number as u16)) {
            self.set_shortcut(port);
        }
    }

    /// Lets packets to the port's own queue take the shortcut, if nobody has to see them.
    fn set_shortcut(&mut self, port: PortIndex) {
        let is_seen = self.watched.contains(&port) || self.limiter.limits(port, Way::ToPort);
        let Some(slot) = self.slots.get_mut(port.0 as usize) else { return };
        let longest = slot.queue.as_ref().map_or(0, |queue| queue.capabilities().frame_bytes);
        slot.longest_own = if is_seen { 0 } else { longest };
    }

    /// The time that limits are counted by from now on.
    pub(super) fn set_time(&mut self, now: Time) {
        self.limiter.set_time(now);
    }

    /// Whether packets that go this way are counted against a limit.
    #[inline]
    pub(crate) fn limits_bandwidth(&self, port: PortIndex, way: Way) -> bool {
        self.limiter.limits(port, way)
    }

    /// Whether the packet is within the port's limit, if it has one; it is counted then.
    pub(crate) fn take_bandwidth(&self, port: PortIndex, way: Way, memory: &FrameMemory, packet: &Packet) -> bool {
        self.limiter.take(port, way, memory, packet)
    }

    /// Takes the port away; its queue, if this worker had it, and what waited for it are the caller's to close.
    pub fn detach(&mut self, port: PortIndex) -> (Option<Box<dyn PortQueue>>, Vec<Packet>) {
        let Some(slot) = self.slots.get_mut(port.0 as usize) else { return (None, Vec::new()) };
        let taken = std::mem::take(slot);
        slot.active = taken.active;
        self.cheap.retain(|other| *other != port);
        self.hot.retain(|other| *other != port);
        self.ready.retain(|other| *other != port);
        if let Some(descriptor) = taken.queue.as_ref().and_then(|queue| queue.readable_descriptor()) {
            // A descriptor that is gone already has left epoll by itself.
            let _ = epoll::delete(&self.epoll, descriptor);
        }
        (taken.queue, taken.pending)
    }

    /// All queues this worker owns.
    pub fn queues(&self) -> impl Iterator<Item = &dyn PortQueue> {
        self.slots.iter().filter_map(|slot| slot.queue.as_deref()).map(|queue| queue as &dyn PortQueue)
    }

    /// Numbers of all ports this worker knows, owned or by lane.
    pub fn numbers(&self) -> impl Iterator<Item = PortIndex> {
        let known = self.slots.iter().enumerate().filter(|(_, slot)| slot.capabilities.is_some());
        known.map(|(number, _)| PortIndex(number as u16))
    }

    /// Lists the queues to poll in this turn.
    pub(super) fn poll_ready(&mut self) {
        self.ready.extend_from_slice(&self.cheap);
        self.ready.extend_from_slice(&self.hot);
        self.turns = self.turns.wrapping_add(1);
        // Nobody is always the first to find room.
        let first = self.turns as usize % self.ready.len().max(1);
        self.ready.rotate_left(first);
        let delivered = std::mem::replace(&mut self.delivered, false);
        if !delivered || self.turns.is_multiple_of(EPOLL_TURNS) {
            self.wait(Some(rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
        }
    }

    /// Waits for a readable queue or a wake-up and lists the readable ones for the next turn. True if somebody called.
    pub(super) fn wait(&mut self, timeout: Option<rustix::event::Timespec>) -> bool {
        let mut room = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; EPOLL_EVENTS];
        // An interrupted wait is one that found nothing.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut room, timeout.as_ref()) else { return false };
        let mut called = false;
        for event in events {
            let data = event.data.u64();
            let port = PortIndex(data as u16);
            if data == WAKE_UP {
                called = true;
            } else if !self.ready.contains(&port) {
                self.ready.push(port);
                self.delivered = true;
            }
        }
        called
    }

    /// What is handed to ports from now on belongs to another vector.
    pub(super) fn begin_vector(&mut self) {
        self.vector += 1;
    }

    /// The next queue to poll.
    pub(super) fn next_ready(&mut self) -> Option<PortIndex> {
        self.ready.pop()
    }

    /// Receives from the port's queue into `vector` and counts.
    pub(super) fn receive(
        &mut self,
        port: PortIndex,
        memory: &mut FrameMemory,
        vector: &mut Vec<Packet>,
        counters: &WorkerCounters,
    ) -> usize {
        self.begin_vector();
        let Some(slot) = self.slots.get_mut(port.0 as usize) else { return 0 };
        let Some(queue) = slot.queue.as_mut() else { return 0 };
        let received = queue.receive(memory, vector);
        self.delivered |= received > 0;
        let hot = received > 0 && !queue.is_cheap_to_poll();
        if hot != slot.hot {
            slot.hot = hot;
            if hot { self.hot.push(port) } else { self.hot.retain(|other| *other != port) }
        }
        count_received(port, received, vector, counters);
        received
    }

    /// As [`Ports::receive`], of what the port's queue took from the kernel already.
    pub(super) fn receive_held(
        &mut self,
        port: PortIndex,
        memory: &mut FrameMemory,
        vector: &mut Vec<Packet>,
        counters: &WorkerCounters,
    ) -> usize {
        self.begin_vector();
        let queue = self.slots.get_mut(port.0 as usize).and_then(|slot| slot.queue.as_mut());
        let received = queue.map_or(0, |queue| queue.receive_held(memory, vector));
        count_received(port, received, vector, counters);
        received
    }

    /// Whether every cheap queue agrees to be slept on.
    pub(super) fn prepare_to_sleep(&mut self) -> bool {
        let slots = &mut self.slots;
        self.cheap.iter().all(|port| slots[port.0 as usize].queue.as_mut().is_none_or(|queue| queue.prepare_to_sleep()))
    }

    /// What the port's queue takes; `None` for a port this node does not have.
    #[inline]
    pub(crate) fn capabilities(&self, port: PortIndex) -> Option<Capabilities> {
        self.slots.get(port.0 as usize)?.capabilities
    }

    /// The worker whose lane leads to the port's queue, if it is not this one's own.
    #[inline]
    pub(crate) fn lane(&self, port: PortIndex) -> Option<usize> {
        self.slots.get(port.0 as usize)?.lane
    }

    /// Wakes another worker, which was given something to do.
    pub(crate) fn wake(&self, worker: usize) {
        if let Some(Some(lane)) = self.lanes.get(worker) {
            lane.wake();
        }
    }

    pub(crate) fn lane_sender(&mut self, worker: usize) -> Option<&mut LaneSender> {
        self.lanes.get_mut(worker)?.as_mut()
    }

    /// Puts a packet with nothing left to do into the list of a port of this worker's own; true if the port was not
    /// marked as one to flush before. Gives the packet back if there is no such queue, no room, or the frame is too long.
    #[inline]
    pub(crate) fn push(&mut self, port: PortIndex, packet: Packet) -> Result<bool, Packet> {
        match self.slots.get_mut(port.0 as usize) {
            Some(slot) if packet.length() <= slot.longest_own && slot.pending.len() < AMPLE_PACKETS => {
                slot.pending.push(packet);
                Ok(!std::mem::replace(&mut slot.active, true))
            }
            Some(_) | None => Err(packet),
        }
    }

    /// Whether the port's list takes one more packet of the vector that is being forwarded. Half of a list is there for
    /// whoever comes first; of what is left then, each vector gets at most half. So whoever floods a port that sends too
    /// slowly leaves room for the vectors of others, and loses its own packets.
    pub(crate) fn has_room(&mut self, port: PortIndex) -> bool {
        let vector = self.vector;
        let Some(slot) = self.slots.get_mut(port.0 as usize) else { return false };
        let waiting = slot.pending.len();
        if waiting < AMPLE_PACKETS {
            return true;
        }
        if slot.sharing != vector {
            slot.sharing = vector;
            slot.share = waiting + limits::TRANSMIT_QUEUE_PACKETS.saturating_sub(waiting).div_ceil(2);
        }
        waiting < slot.share
    }

    /// Packets that wait for the port.
    #[inline]
    pub(crate) fn pending(&mut self, port: PortIndex) -> Option<&mut Vec<Packet>> {
        let slot = self.slots.get_mut(port.0 as usize)?;
        slot.queue.is_some().then_some(&mut slot.pending)
    }

    pub(crate) fn pending_length(&self, port: PortIndex) -> usize {
        self.slots.get(port.0 as usize).map_or(0, |slot| slot.pending.len())
    }

    /// Marks the port as one to flush; true if it was not marked before.
    #[inline]
    pub(crate) fn activate(&mut self, port: PortIndex) -> bool {
        self.slots.get_mut(port.0 as usize).is_some_and(|slot| !std::mem::replace(&mut slot.active, true))
    }

    pub(crate) fn deactivate(&mut self, port: PortIndex) {
        if let Some(slot) = self.slots.get_mut(port.0 as usize) {
            slot.active = false;
        }
    }

    /// The port's queue and what waits for it.
    pub(crate) fn output(&mut self, port: PortIndex) -> Option<(&mut dyn PortQueue, &mut Vec<Packet>, Capabilities)> {
        let slot = self.slots.get_mut(port.0 as usize)?;
        Some((slot.queue.as_mut()?.as_mut(), &mut slot.pending, slot.capabilities?))
    }

    /// The descriptor of epoll itself, readable when a queue is.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[inline]
fn count_received(port: PortIndex, received: usize, vector: &[Packet], counters: &WorkerCounters) {
    if received > 0 {
        let bytes: usize = vector.iter().map(Packet::length).sum();
        counters.port(port.0 as usize).received_frames.add(received as u64);
        counters.port(port.0 as usize).received_bytes.add(bytes as u64);
    }
}
