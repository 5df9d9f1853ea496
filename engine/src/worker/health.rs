//! How a worker fares: whether it moves, how often it failed, and what a watcher concludes from it.
//!
//! A worker shows that it moves by its count of turns, which is there anyway. A [`Watch`] looks at it from another thread.
//! One that sleeps does not turn, and whether it would wake cannot be seen: so who was not seen to move is woken, some
//! thirty times a second, which costs an idle worker a turn each time. A worker that has made no turn for
//! [`STALLED_LOOKS`] looks stands still: in a loop without end, in a call of the kernel that does not return, or without
//! the processor. Which of them cannot be told from outside, and nothing can end it safely: it has descriptors and frames
//! that others wait for. Who watches keeps packets away from it that the host's kernel could serve, until it moves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Waker;
use crate::counters::{Event, WorkerCounters};

/// Time between two looks at the workers.
pub const LOOK_TIME: Duration = Duration::from_millis(15);

/// Looks in a row that find a worker where it was, after which it counts as standing still: with [`LOOK_TIME`], 75 to 90 ms.
pub const STALLED_LOOKS: u32 = 5;

/// Looks in a row after which it is woken.
const WOKEN_LOOKS: u32 = 2;

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
    waker: Waker,
    turns: u64,
    unmoved: u32,
    stalled: bool,
}

/// Watches the workers of a switch.
#[derive(Debug)]
pub struct Watch {
    workers: Vec<Seen>,
}

impl Watch {
    /// Watches those who count here, each with what wakes it, in the order of their numbers.
    pub(crate) fn new(workers: impl Iterator<Item = (Arc<WorkerCounters>, Waker)>) -> Self {
        let seen = |(counters, waker)| Seen { counters, waker, turns: 0, unmoved: 0, stalled: false };
        Self { workers: workers.map(seen).collect() }
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
        self.unmoved = if turns == self.turns { self.unmoved.saturating_add(1) } else { 0 };
        self.turns = turns;
        if self.unmoved >= WOKEN_LOOKS {
            self.waker.wake();
        }
        self.counters.health.has_ended() || self.unmoved >= STALLED_LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{IdlePolicy, Sleeper};

    fn watched(count: usize) -> (Vec<Arc<WorkerCounters>>, Watch) {
        let counters: Vec<_> = (0..count).map(|_| Arc::new(WorkerCounters::default())).collect();
        let waker = || Sleeper::new(IdlePolicy::default()).expect("an eventfd").1;
        let watch = Watch::new(counters.iter().map(|counters| (Arc::clone(counters), waker())));
        (counters, watch)
    }

    #[test]
    fn who_makes_no_turn_stands_still() {
        let (counters, mut watch) = watched(2);
        for _ in 0..10 {
            counters.iter().for_each(|counters| counters.event(Event::Turns).add(1));
            assert_eq!(watch.look(), [], "both turn");
        }
        let mut turn_and_look = || {
            counters[1].event(Event::Turns).add(1);
            watch.look()
        };
        let found: Vec<Finding> = (0..STALLED_LOOKS).flat_map(|_| turn_and_look()).collect();
        assert_eq!(found, [Finding::Stalled(0)], "once, and not before the last look");
        assert_eq!((turn_and_look(), counters[0].health.stalls(), counters[0].health.is_stalled()), (vec![], 1, true));
        counters[0].event(Event::Turns).add(1);
        assert_eq!((turn_and_look(), counters[0].health.is_stalled()), (vec![Finding::Moves(0)], false));
        assert!(LOOK_TIME * (STALLED_LOOKS + 1) <= Duration::from_millis(100), "found within 100 ms");
    }

    #[test]
    fn who_has_ended_stands_still_at_once() {
        let (counters, mut watch) = watched(1);
        counters[0].health.end();
        assert_eq!(watch.look(), [Finding::Stalled(0)]);
    }
}
