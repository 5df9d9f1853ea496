//! What becomes of a worker that panics: it goes on, alone, with its ports and tables.
//!
//! The panic is caught at the root of the worker's thread. What the worker was moving is lost: at most the packets of one
//! vector, which [`DropReason::WorkerFailed`] counts. All else it keeps: its queues and what waits for them, its lanes,
//! its tables, and what all workers share, connections above all. Two things are made anew, since the panic may have left
//! them half written: the flow cache, which fills again from connections and tables, and the lists of free frames.
//!
//! The lists are rebuilt from who holds frames: the kernel (each queue knows), the lanes, the lists of ports, fragments that
//! wait. Whatever nobody holds is free, so a failure loses packets and never frames.
//!
//! Who fails again and again pauses before each new start, twice as long each time. After [`WORKER_FAILURES`] in a row it
//! ends: its queues are closed, so pods behind it are cut off, and the host's kernel gets what the uplink brings. Nothing
//! that a policy denies is ever let through by a failure: a packet leaves only by a decision.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::Worker;
use super::health::Failure;
use crate::clock::Time;
use crate::counters::Event;
use crate::cycles::Stopwatch;
use crate::drop_reason::DropReason;
use crate::flow_cache::FlowCache;
use crate::limits::WORKER_FAILURES;
use crate::packet::FrameSet;
use crate::transmit::{Mirrors, Transmit};

/// Pause before the second start in a row; twice as long before each further one.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// Longest pause before a start.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Failures further apart than this are not in a row.
const FORGIVEN: Duration = Duration::from_secs(10);

/// When a worker that fails may start again.
#[derive(Debug, Default)]
struct Restarts {
    in_a_row: u32,
    last: Option<Time>,
}

impl Restarts {
    /// The pause before the next start; `None` if there is none.
    fn next(&mut self, now: Time) -> Option<Duration> {
        let again = self.last.is_some_and(|last| now.since(last) < FORGIVEN);
        self.in_a_row = if again { self.in_a_row + 1 } else { 1 };
        self.last = Some(now);
        match self.in_a_row {
            1 => Some(Duration::ZERO),
            number if number > WORKER_FAILURES => None,
            number => Some(SHORTEST_PAUSE.saturating_mul(1 << (number - 2).min(16)).min(LONGEST_PAUSE)),
        }
    }
}

impl Worker {
    /// As [`Worker::run`], and goes on after a panic; the body of the worker's thread.
    pub fn run_and_recover(&mut self, core: Option<usize>) {
        let mut restarts = Restarts::default();
        self.counters.health.runs_here();
        // What a panic leaves half done is made whole or anew by `recover`.
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run(core))) {
            let failed_at = self.clock.now();
            let pause = restarts.next(failed_at);
            std::thread::sleep(pause.unwrap_or_default());
            let recovered = catch_unwind(AssertUnwindSafe(|| self.recover()));
            let lost_frames = *recovered.as_ref().unwrap_or(&0);
            let out_for = self.clock.now().since(failed_at);
            self.counters.health.failed(Failure { message: said(panic.as_ref()), lost_frames, out_for });
            if pause.is_none() || recovered.is_err() {
                self.counters.health.end();
                // A queue that cannot even be closed is closed by the end of its owner.
                let _ = catch_unwind(AssertUnwindSafe(|| self.close()));
                return;
            }
        }
    }

    /// Makes the worker whole after a panic; the frames that were lost.
    fn recover(&mut self) -> u64 {
        self.vector.clear();
        self.misses.clear();
        self.missed.clear();
        self.ended.clear();
        self.batch.clear();
        self.hits = 0;
        self.stopwatch = Stopwatch::default();
        self.late.recount();
        self.transmit = Transmit::default();
        self.transmit.set_mirrors(Mirrors::new(&self.tables.mirrors));
        self.ports.begin_anew(|port| self.transmit.resume(port));
        self.reclaim_frames();
        self.renew_cache();
        self.count_lost()
    }

    /// Frees every frame that nobody holds.
    fn reclaim_frames(&mut self) {
        let mut held = FrameSet::new(self.memory.frames());
        self.umem.mark_quarantined(&mut held);
        self.lanes.iter().for_each(|lane| lane.mark_held(&mut held));
        self.ports.mark_held(&self.memory, &mut held);
        self.late.packets().for_each(|packet| self.memory.mark(packet, &mut held));
        self.memory.reclaim_all_but(&held);
    }

    /// A flow cache without flows in place of the present one.
    pub(super) fn renew_cache(&mut self) {
        let (flows, hash_key) = self.cache_plan;
        self.cache = FlowCache::new(flows, hash_key).writing_back_to(&self.state.connections);
    }

    /// Counts what the failure cost, so that frames are conserved.
    fn count_lost(&self) -> u64 {
        self.count_gauges();
        let unaccounted = self.counters.unaccounted();
        let lost = u64::try_from(unaccounted).unwrap_or(0);
        self.counters.drops(DropReason::WorkerFailed).add(lost);
        // Sent by a call that did not come back to say so: it is sent once more.
        self.counters.event(Event::FramesMade).add(u64::try_from(-unaccounted).unwrap_or(0));
        lost
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end_and_a_quiet_time_is_forgiven() {
        let mut restarts = Restarts::default();
        let at = |milliseconds: u64| Time::from_nanoseconds(milliseconds * 1_000_000);
        let pauses: Vec<Option<u128>> =
            (0..4).map(|number| restarts.next(at(number)).map(|pause| pause.as_millis())).collect();
        assert_eq!(pauses, [Some(0), Some(1), Some(2), Some(4)]);
        let more: Vec<Option<Duration>> =
            (4..=u64::from(WORKER_FAILURES)).map(|number| restarts.next(at(number))).collect();
        let (last, before) = more.split_last().expect("some");
        assert!(
            last.is_none() && before.iter().all(|pause| pause.is_some_and(|pause| pause <= LONGEST_PAUSE)),
            "{more:?}"
        );
        assert_eq!(restarts.next(at(60_000)), Some(Duration::ZERO));
    }
}
