//! How a worker sleeps and is woken.
//!
//! A worker without work spins for a short while, since the next packet of a burst is a few microseconds away, and
//! then blocks in epoll on all its queues and on a wake-up descriptor. Whoever puts something before a worker (a lane,
//! a command) calls [`Waker::wake`], which costs one load unless the worker sleeps.
//!
//! Order matters: the worker first says that it sleeps, then looks once more for work; the other side first puts the
//! work there, then looks whether the worker sleeps. Sequentially consistent, so one of the two sees the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, eventfd};

use super::Worker;
use super::placement::{LONG_SLEEP, Placement};
use super::time_slice;
use crate::clock::Time;
use crate::counters::Event;

/// What a worker does without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Spins so long, then blocks. The default: an idle node costs next to nothing.
    Adaptive {
        /// How long to spin after the last packet.
        spin: Duration,
    },
    /// Never blocks: the lowest latency, a whole core.
    BusyPoll,
}

impl Default for IdlePolicy {
    fn default() -> Self {
        IdlePolicy::Adaptive { spin: Duration::from_micros(20) }
    }
}

/// Longest sleep without any event: housekeeping wants a turn now and then.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// Sleep while a queue still has completions to reap or a slow receiver.
const UNFINISHED_SLEEP: Duration = Duration::from_micros(50);

#[derive(Debug)]
struct Bed {
    descriptor: OwnedFd,
    sleeping: AtomicBool,
}

/// Ends a worker's sleep.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Bed>);

impl Waker {
    /// Makes the worker take a turn soon.
    #[inline]
    pub fn wake(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.0.sleeping.load(Ordering::SeqCst) && self.0.sleeping.swap(false, Ordering::SeqCst) {
            // An eventfd refuses a write only when its count is at the maximum: then the worker is awake anyway.
            let _ = rustix::io::write(&self.0.descriptor, &1u64.to_ne_bytes());
        }
    }
}

/// A worker's own side.
#[derive(Debug)]
pub struct Sleeper {
    bed: Arc<Bed>,
    policy: IdlePolicy,
    /// Since when nothing moves; `None` after a turn in which something did.
    idle_since: Option<Time>,
    placement: Placement,
}

impl Sleeper {
    /// A sleeper and the way to wake it.
    ///
    /// # Errors
    /// What the kernel said to eventfd.
    pub fn new(policy: IdlePolicy) -> io::Result<(Self, Waker)> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let bed = Arc::new(Bed { descriptor, sleeping: AtomicBool::new(false) });
        let waker = Waker(Arc::clone(&bed));
        Ok((Self { bed, policy, idle_since: None, placement: Placement::default() }, waker))
    }

    pub(super) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.bed.descriptor.as_fd()
    }
}

impl Worker {
    /// Takes turns until told to stop, sleeping in between; the body of the worker's thread, which is pinned to `core`
    /// while it works.
    pub fn run(&mut self, core: Option<usize>) {
        self.sleeper.placement = Placement::pin(core);
        if self.sleeper.policy != IdlePolicy::BusyPoll {
            time_slice::shorten();
        }
        while !self.stopping {
            if self.turn() {
                self.sleeper.idle_since = None;
                self.sleeper.placement.at_work(self.now);
            } else {
                self.idle();
            }
        }
        self.close();
    }

    /// Spins or blocks, after a turn in which nothing moved.
    fn idle(&mut self) {
        let IdlePolicy::Adaptive { spin } = self.sleeper.policy else {
            return std::hint::spin_loop();
        };
        // A turn's time is that of its beginning: a long busy turn must not count as idleness.
        if self.now.since(*self.sleeper.idle_since.get_or_insert(self.now)) < spin {
            return std::hint::spin_loop();
        }
        self.sleeper.bed.sleeping.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        if !self.has_work() && self.ports.prepare_to_sleep() {
            self.block();
        }
        self.sleeper.bed.sleeping.store(false, Ordering::SeqCst);
    }

    fn block(&mut self) {
        let may_leave = self.sleeper.placement.may_leave();
        let longest = match self.transmit.is_idle() {
            true if may_leave => LONG_SLEEP,
            true => LONGEST_SLEEP,
            false => UNFINISHED_SLEEP,
        };
        let timeout = Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: i64::from(longest.subsec_nanos()) };
        let before = self.clock.now();
        self.counters.slept.begin(before);
        let called = self.ports.wait(Some(timeout));
        let now = self.clock.now();
        self.counters.slept.end(now);
        self.sleeper.placement.awake(now);
        if may_leave && now.since(before) >= LONG_SLEEP {
            self.sleeper.placement.leave();
        }
        self.counters.event(Event::Sleeps).add(1);
        if called {
            // Nobody else reads it; if this failed, the next sleep would end at once.
            let _ = rustix::io::read(&self.sleeper.bed.descriptor, &mut [0u8; 8]);
        }
    }
}
