//! How a worker fares: whether it moves, how often it failed, and what a watcher concludes from it.
//!
//! A worker shows that it moves by its count of turns, and that it sleeps by [`Slept`]; both are there anyway, so being
//! watched costs it nothing. A [`Watch`] looks at both from another thread. A worker that neither turned nor slept between
//! [`STALLED_LOOKS`] looks stands still: in a loop without end, or in a call of the kernel that does not return. Nothing
//! can end it safely: it has descriptors and frames that others wait for. Who watches keeps packets away from it that the
//! host's kernel could serve, until it moves. One that only waits for a processor is not counted: its packets wait in
//! their rings and are lost by nobody's fault the sooner they are sent elsewhere.
//!
//! [`Slept`]: crate::counters::Slept

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::counters::{Event, WorkerCounters};

/// Time between two looks at the workers.
pub const LOOK_TIME: Duration = Duration::from_millis(20);

/// Looks in a row that find a worker where it was, after which it counts as standing still: with [`LOOK_TIME`], 80 ms.
pub const STALLED_LOOKS: u32 = 4;

/// Why a worker failed last, and what that cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the panic said.
    pub message: String,
    /// Frames that were lost: those that the worker was just moving.
    pub lost_frames: u64,
    /// From the failure to the first turn afterwards, the pause before a new start included.
    pub out_for: Duration,
}

/// What is known of one worker's soundness; written by the worker and by who watches it.
#[derive(Debug, Default)]
pub struct Health {
    failures: AtomicU64,
    stalls: AtomicU64,
    stalled: AtomicBool,
    ended: AtomicBool,
    sweep_missed: AtomicBool,
    /// The kernel's number of the worker's thread; 0 before it runs.
    thread: AtomicI32,
    last: Mutex<Option<Failure>>,
}

impl Health {
    /// Times the worker failed and was started again, or ended.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Times it was found to stand still.
    #[must_use]
    pub fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }

    /// Whether it stands still, as far as who watches it has seen.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    /// Whether it failed too often in a row and is not started again. Its queues are closed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The last failure.
    #[must_use]
    pub fn last_failure(&self) -> Option<Failure> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn failed(&self, failure: Failure) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The worker is run by the calling thread.
    pub(super) fn runs_here(&self) {
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// A publish could not tell the worker what changed, since too much waits for it: its flow cache must go.
    pub(crate) fn miss_sweep(&self) {
        self.sweep_missed.store(true, Ordering::Release);
    }

    pub(super) fn take_missed_sweep(&self) -> bool {
        self.sweep_missed.load(Ordering::Relaxed) && self.sweep_missed.swap(false, Ordering::AcqRel)
    }
}

/// What a look found that was otherwise before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The worker stands still, or has ended.
    Stalled(usize),
    /// It moves again.
    Moves(usize),
}

#[derive(Debug)]
struct Seen {
    counters: Arc<WorkerCounters>,
    turns: u64,
    /// Time on a processor, in nanoseconds.
    ran: Option<u64>,
    unmoved: u32,
    stalled: bool,
}

/// Watches the workers of a switch.
#[derive(Debug)]
pub struct Watch {
    workers: Vec<Seen>,
}

impl Watch {
    /// Watches those who count here, in the order of their numbers.
    pub fn new<'a>(counters: impl Iterator<Item = &'a Arc<WorkerCounters>>) -> Self {
        let seen = |counters: &Arc<WorkerCounters>| Seen {
            counters: Arc::clone(counters),
            turns: 0,
            ran: None,
            unmoved: 0,
            stalled: false,
        };
        Self { workers: counters.map(seen).collect() }
    }

    /// Looks once; to be called every [`LOOK_TIME`].
    pub fn look(&mut self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (number, seen) in self.workers.iter_mut().enumerate() {
            let stalled = seen.stands_still();
            if stalled == seen.stalled {
                continue;
            }
            seen.stalled = stalled;
            let health = &seen.counters.health;
            health.stalled.store(stalled, Ordering::Relaxed);
            health.stalls.fetch_add(u64::from(stalled), Ordering::Relaxed);
            findings.push(if stalled { Finding::Stalled(number) } else { Finding::Moves(number) });
        }
        findings
    }
}

impl Seen {
    fn stands_still(&mut self) -> bool {
        let turns = self.counters.event(Event::Turns).get();
        let moved = turns != self.turns || self.counters.slept.is_asleep();
        self.turns = turns;
        self.unmoved = match moved {
            true => 0,
            false if self.waits_for_a_processor() => self.unmoved,
            false => self.unmoved.saturating_add(1),
        };
        if moved {
            self.ran = None;
        }
        self.counters.health.has_ended() || self.unmoved >= STALLED_LOOKS
    }

    /// Whether it could run, and did not since the look before.
    fn waits_for_a_processor(&mut self) -> bool {
        let thread = Thread::of(self.counters.health.thread.load(Ordering::Relaxed));
        let waits = thread.as_ref().is_some_and(|thread| thread.is_runnable && self.ran == Some(thread.ran));
        self.ran = thread.map(|thread| thread.ran);
        waits
    }
}

/// What the kernel says of a thread of this process (`state` of proc(5), and the first number of `schedstat`,
/// Documentation/scheduler/sched-stats.rst).
struct Thread {
    is_runnable: bool,
    ran: u64,
}

impl Thread {
    fn of(number: i32) -> Option<Thread> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/self/task/{number}/{file}")).ok();
        let ran = read("schedstat")?.split_whitespace().next()?.parse().ok()?;
        // The name stands in brackets and may hold anything.
        let is_runnable = read("stat")?.rsplit_once(')')?.1.trim_start().starts_with('R');
        Some(Thread { is_runnable, ran })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;

    #[test]
    fn who_neither_turns_nor_sleeps_stands_still() {
        let counters = [Arc::new(WorkerCounters::default()), Arc::new(WorkerCounters::default())];
        let mut watch = Watch::new(counters.iter());
        counters[1].slept.begin(Time::from_nanoseconds(5));
        for _ in 0..10 {
            counters[0].event(Event::Turns).add(1);
            assert_eq!(watch.look(), [], "one turns, the other sleeps");
        }
        let found: Vec<Finding> = (0..STALLED_LOOKS).flat_map(|_| watch.look()).collect();
        assert_eq!(found, [Finding::Stalled(0)], "once, and not before the last look");
        assert_eq!((watch.look(), counters[0].health.stalls(), counters[0].health.is_stalled()), (vec![], 1, true));
        counters[0].event(Event::Turns).add(1);
        counters[1].slept.end(Time::from_nanoseconds(9));
        assert_eq!((watch.look(), counters[0].health.is_stalled()), (vec![Finding::Moves(0)], false));
        assert!(LOOK_TIME * (STALLED_LOOKS + 1) <= Duration::from_millis(100), "found within 100 ms");
    }

    #[test]
    fn the_kernel_tells_who_runs_and_who_waits() {
        let (told, number) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            told.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("told");
            ended.recv().expect_err("nobody sends");
        });
        let number = number.recv().expect("a number");
        let end_by = std::time::Instant::now() + Duration::from_secs(60);
        while Thread::of(number).expect("a thread").is_runnable {
            assert!(std::time::Instant::now() < end_by, "it sleeps");
        }
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        let before = Thread::of(own).expect("a thread");
        assert!(before.is_runnable);
        while Thread::of(own).expect("a thread").ran == before.ran {
            assert!(std::time::Instant::now() < end_by, "it runs");
        }
        drop(end);
        sleeper.join().expect("ended");
        assert!(Thread::of(0).is_none());
    }

    #[test]
    fn who_has_ended_stands_still_at_once() {
        let counters = [Arc::new(WorkerCounters::default())];
        let mut watch = Watch::new(counters.iter());
        counters[0].health.end();
        assert_eq!(watch.look(), [Finding::Stalled(0)]);
    }
}
