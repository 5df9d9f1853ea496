//! What a worker counts.
//!
//! Each worker owns one [`WorkerCounters`]; it alone writes, so a count is a plain load and store without a
//! locked instruction, and readers (CLI, metrics, tests) see values that are at most a moment old.
//!
//! Frames are conserved, and every test checks it:
//! `received + made = sent + dropped + consumed + merged + held`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::{Clock, Time};
use crate::cycles::CycleCounts;
use crate::drop_reason::DropReason;
use crate::limits;
use crate::worker::health::Health;

/// One single-writer count.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `amount`. Only the owning worker calls this.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// The present value.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Replaces the value: for gauges such as frames held.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// How long a worker has been blocked, its present sleep included, so that a worker that nobody wakes does not look busy.
///
/// One word, so that a reader never sees half of a change. Awake it holds the sum of all sleeps; asleep that sum less the
/// time at which the sleep began, modulo 2^63. The lowest bit tells which.
#[derive(Debug, Default)]
pub struct Slept {
    word: AtomicU64,
    /// The most that a reader was told.
    told: AtomicU64,
}

impl Slept {
    const NOW: u64 = 1;

    /// The worker lies down at `now`. Only the owning worker calls this.
    pub fn begin(&self, now: Time) {
        let sum = self.word.load(Ordering::Relaxed) >> 1;
        self.word.store((sum.wrapping_sub(now.nanoseconds()) << 1) | Self::NOW, Ordering::SeqCst);
    }

    /// It is up again at `now`, of the same clock. Only the owning worker calls this.
    pub fn end(&self, now: Time) {
        let sum = (self.word.load(Ordering::Relaxed) >> 1).wrapping_add(now.nanoseconds());
        self.word.store(sum << 1, Ordering::SeqCst);
    }

    /// The sum at present, by the worker's clock; never less than was told before, though a reader may look between the moment
    /// that ends a sleep and its being written.
    #[must_use]
    pub fn nanoseconds(&self, clock: &Clock) -> u64 {
        let word = self.word.load(Ordering::SeqCst);
        // Asked behind the word, so that no sleep begins later than this.
        let now = if word & Self::NOW == 0 { 0 } else { clock.now().nanoseconds() };
        let sum = (word >> 1).wrapping_add(now) & (u64::MAX >> 1);
        self.told.fetch_max(sum, Ordering::Relaxed).max(sum)
    }
}

macro_rules! events {
    ($($variant:ident $name:literal $sentence:literal;)+) => {
        /// What a worker counts besides drops and port traffic.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Event { $(#[doc = $sentence] $variant,)+ }

        impl Event {
            /// All events, in order of their number.
            pub const ALL: &'static [Event] = &[$(Event::$variant,)+];
            /// The stable name.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Event::$variant => $name,)+ } }
            /// What it counts, in one sentence.
            #[must_use]
            pub const fn sentence(self) -> &'static str { match self { $(Event::$variant => $sentence,)+ } }
        }
    };
}

events! {
    Turns "worker.turns" "Turns of the worker loop.";
    Vectors "worker.vectors" "Vectors processed.";
    Sleeps "worker.sleeps" "Times the worker blocked because nothing arrived.";
    FramesMade "frames.made" "Frames the switch created: replies, copies for a flood, segments beyond the first.";
    FramesMerged "frames.merged" "Frames that were joined into another one.";
    FramesConsumed "frames.consumed" "Frames answered or learned from, and not forwarded.";
    FlowCacheHit "flow_cache.hit" "Packets served from the flow cache.";
    FlowCacheMiss "flow_cache.miss" "Packets the slow path decided.";
    FlowCacheInserted "flow_cache.inserted" "Entries written.";
    FlowCacheExpired "flow_cache.expired" "Entries that aged out.";
    FlowCacheEvicted "flow_cache.evicted" "Entries that gave way to another because their bucket was full.";
    FlowCacheRedecided "flow_cache.redecided" "Entries removed because a publish changed what they depended on.";
    FlowCacheFull "flow_cache.full" "Decisions that could not be cached for lack of room.";
    ConnectionsNew "connections.new" "Connections opened.";
    ConnectionsExpired "connections.expired" "Connections that were silent for too long.";
    ConnectionsEvicted "connections.evicted" "Connections that gave way to a new one because there was no room.";
    ConnectionsFull "connections.full" "Packets that could not open a connection for lack of room.";
    FragmentsHeld "fragments.held" "Later fragments that came before their first one and were held until it was decided.";
    FragmentsEvicted "fragments.evicted" "Fragmented packets that gave way to another while they were followed.";
    SegmentsCut "transmit.segments_cut" "Segments cut from GSO units for ports without the offload.";
    SegmentsJoined "transmit.segments_joined" "Segments joined into GSO units for ports with the offload.";
    ChecksumsCompleted "transmit.checksums_completed" "Partial checksums completed in software.";
    LaneSent "lane.sent" "Packets handed to the worker that owns the output queue.";
    LaneReceived "lane.received" "Packets taken from another worker for a queue this one owns.";
    RepliesArp "reply.arp" "ARP requests for the gateway answered.";
    RepliesNeighbour "reply.neighbour" "ND solicitations for the gateway answered.";
    RepliesEcho "reply.echo" "Echo requests to the gateway answered.";
    RepliesTimeExceeded "reply.time_exceeded" "Time Exceeded messages sent.";
    RepliesTooBig "reply.too_big" "Fragmentation Needed and Packet Too Big messages sent.";
    RepliesUnreachable "reply.unreachable" "Destination Unreachable messages sent.";
    RepliesPortUnreachable "reply.port_unreachable" "Port Unreachable messages sent for Services.";
    RepliesReset "reply.reset" "TCP resets sent for Services.";
    ServicePicked "service.picked" "New connections that were given an endpoint of a Service.";
    ServiceAffinity "service.affinity" "Of these, those whose client had the endpoint before.";
    ServiceRetried "service.retried" "Of these, those whose first endpoint never answered.";
    ServiceAffinityFull "service.affinity_full" "Clients with session affinity that were not remembered for lack of room.";
    HandedBack "host.handed_back" "Frames of an uplink that turned out to be the host's and were given to its kernel.";
    MacLearned "bridge.learned" "MAC addresses learned.";
    MacMoved "bridge.moved" "MAC addresses seen on another port than before.";
    MacHeld "bridge.held" "Moves refused because a MAC address moved too often.";
    Flooded "bridge.flooded" "Frames flooded in their segment.";
    Mirrored "mirror.copies" "Copies made for a mirror.";
}

/// Frames and bytes of one port on one worker.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct PortCounters {
    /// Frames received; a GSO unit counts once.
    pub received_frames: Count,
    /// Bytes received.
    pub received_bytes: Count,
    /// Frames sent; a GSO unit counts once.
    pub sent_frames: Count,
    /// Bytes sent.
    pub sent_bytes: Count,
    /// Frames dropped on their way in or out of this port.
    pub dropped_frames: Count,
    /// Cycles of measured turns spent on vectors received from this port, up to their being handed to other ports.
    pub measured_cycles: Count,
    /// Frames of those vectors.
    pub measured_frames: Count,
}

/// Everything one worker counts; 64 KiB of ports, 2 KiB of the rest.
#[derive(Debug)]
pub struct WorkerCounters {
    events: [Count; Event::ALL.len()],
    drops: [Count; DropReason::COUNT],
    ports: Box<[PortCounters]>,
    /// Frames the worker holds at this moment: queued for a port or a lane.
    pub held: Count,
    /// Flow-cache entries in use.
    pub flows: Count,
    /// Free head frames.
    pub free_frames: Count,
    /// Time spent blocked.
    pub slept: Slept,
    /// Generation of the tables the worker last used.
    pub generation: Count,
    /// Where its time goes.
    pub cycles: CycleCounts,
    /// How it fares.
    pub health: Health,
}

impl Default for WorkerCounters {
    fn default() -> Self {
        Self {
            events: std::array::from_fn(|_| Count::default()),
            drops: std::array::from_fn(|_| Count::default()),
            ports: (0..limits::PORTS).map(|_| PortCounters::default()).collect(),
            held: Count::default(),
            flows: Count::default(),
            free_frames: Count::default(),
            slept: Slept::default(),
            health: Health::default(),
            generation: Count::default(),
            cycles: CycleCounts::default(),
        }
    }
}

impl WorkerCounters {
    /// The count of one event.
    #[inline]
    #[must_use]
    pub fn event(&self, event: Event) -> &Count {
        &self.events[event as usize]
    }

    /// The count of one drop reason.
    #[inline]
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> &Count {
        &self.drops[reason as usize]
    }

    /// The counters of one port; ports beyond the limit share the last one, which cannot be attached.
    #[inline]
    #[must_use]
    pub fn port(&self, port: usize) -> &PortCounters {
        &self.ports[port.min(limits::PORTS - 1)]
    }

    /// A measured vector of `frames` frames from this port took so many cycles.
    pub(crate) fn measured(&self, port: usize, frames: usize, cycles: u64) {
        self.port(port).measured_cycles.add(cycles);
        self.port(port).measured_frames.add(frames as u64);
    }

    /// Frames that are neither sent, dropped, consumed, merged nor held: zero in a sound engine.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        let ports = |pick: fn(&PortCounters) -> &Count| self.ports.iter().map(|port| pick(port).get()).sum::<u64>();
        let entered = ports(|port| &port.received_frames)
            + self.event(Event::FramesMade).get()
            + self.event(Event::LaneReceived).get();
        let left = ports(|port| &port.sent_frames)
            + self.drops.iter().map(Count::get).sum::<u64>()
            + self.event(Event::FramesConsumed).get()
            + self.event(Event::FramesMerged).get()
            + self.event(Event::LaneSent).get()
            + self.held.get();
        entered as i64 - left as i64
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_sleep_counts_while_it_lasts() {
        let slept = Slept::default();
        let hands = ManualClock::new();
        let clock = Clock::Manual(hands.clone());
        let at = |nanoseconds| {
            hands.set(Time::from_nanoseconds(nanoseconds));
            slept.nanoseconds(&clock)
        };
        assert_eq!(at(500), 0);
        slept.begin(Time::from_nanoseconds(1_000));
        assert_eq!([1_000, 1_700].map(at), [0, 700]);
        slept.end(Time::from_nanoseconds(2_000));
        assert_eq!(at(9_000), 1_000);
        slept.begin(Time::from_nanoseconds(9_000));
        assert_eq!(at(9_001), 1_001);
        slept.end(Time::from_nanoseconds(9_010));
        assert_eq!(at(10_000), 1_010);
    }

    /// Readers may look at any moment: what they are told never falls, or a monitoring system would take it for a restart.
    #[test]
    fn readers_never_see_less_than_before() {
        let (slept, clock, done) = (Slept::default(), Clock::Monotonic, AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut before = 0;
                while !done.load(Ordering::Relaxed) {
                    let now = slept.nanoseconds(&clock);
                    assert!(now >= before && now < 1 << 60, "{now} after {before}");
                    before = now;
                }
            });
            for _ in 0..200_000 {
                slept.begin(clock.now());
                slept.end(clock.now());
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
