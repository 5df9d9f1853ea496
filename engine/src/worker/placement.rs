//! On which processor a worker runs: its own while it works, any while it sleeps long.
//!
//! A pinned worker keeps its caches and is never moved in the middle of a burst. But who has slept for ten milliseconds finds
//! nothing in the caches any more, and the packet that ends the sleep comes from a processor that is awake, while the worker's own has
//! gone to sleep itself: to wake that takes 40 to 60 us on a virtual machine. So before a long sleep the worker gives its place up and
//! the kernel wakes it where that is cheapest; after a millisecond without sleep it goes home. Measured on a Zen 4 virtual
//! machine: the first packet after a second of silence takes 96 to 103 us instead of 137 to 142, sender's kernel included.
//!
//! Two system calls for each long sleep, none otherwise. Belongs to the worker's own thread.

use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::clock::Time;

/// A sleep beyond this is a long one: the worker's lines have left the caches.
pub(super) const LONG_SLEEP: Duration = Duration::from_millis(10);
/// A worker that has not slept for so long has work that is worth the way home.
const AT_WORK: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Placement {
    /// The worker's own processor, and those it may be woken on; `None` for a worker without a place.
    places: Option<(CpuSet, CpuSet)>,
    is_away: bool,
    awake_since: Time,
}

impl Placement {
    /// Pins the calling thread. A processor that does not exist or is not this process' leaves it where it is.
    pub(super) fn pin(core: Option<usize>) -> Self {
        let pinned = core.filter(|core| *core < CpuSet::MAX_CPU).and_then(|core| {
            let anywhere = sched_getaffinity(None).ok()?;
            let mut home = CpuSet::new();
            home.set(core);
            sched_setaffinity(None, &home).ok()?;
            Some((home, anywhere))
        });
        Self { places: pinned, ..Self::default() }
    }

    /// Whether the worker is at home and could be elsewhere.
    pub(super) fn may_leave(&self) -> bool {
        !self.is_away && self.places.as_ref().is_some_and(|(home, anywhere)| home != anywhere)
    }

    /// A long sleep begins.
    pub(super) fn leave(&mut self) {
        if let Some((_, anywhere)) = &self.places {
            self.is_away = sched_setaffinity(None, anywhere).is_ok();
        }
    }

    /// A sleep is over.
    pub(super) fn awake(&mut self, now: Time) {
        self.awake_since = now;
    }

    /// A turn moved something.
    #[inline]
    pub(super) fn at_work(&mut self, now: Time) {
        if self.is_away && now.since(self.awake_since) > AT_WORK {
            self.go_home();
        }
    }

    #[cold]
    fn go_home(&mut self) {
        if let Some((home, _)) = &self.places {
            // Refused, it stays where it is, and asks again at its next long stretch of work.
            self.is_away = sched_setaffinity(None, home).is_err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(set: &CpuSet) -> Option<usize> {
        (0..CpuSet::MAX_CPU).find(|core| set.is_set(*core))
    }

    #[test]
    fn who_sleeps_long_is_anywhere_and_who_works_is_at_home() {
        // Affinity is the thread's own.
        let walk = || {
            let now = || sched_getaffinity(None).expect("affinity");
            let anywhere = now();
            let core = first(&anywhere);
            let mut placement = Placement::pin(core);
            let home = now();
            assert_eq!((home.count(), first(&home)), (1, core));
            assert_eq!(placement.may_leave(), anywhere.count() > 1);
            placement.leave();
            assert_eq!(now(), anywhere);
            assert!(!placement.may_leave(), "it is away");
            let at = |microseconds: u64| Time::from_nanoseconds(microseconds * 1_000);
            placement.awake(at(5_000));
            placement.at_work(at(5_900));
            assert_eq!(now(), anywhere, "a packet now and then is no work");
            placement.at_work(at(6_100));
            assert_eq!(now(), home);
        };
        std::thread::spawn(walk).join().expect("as described");
    }

    #[test]
    fn without_a_place_nothing_is_asked_of_the_kernel() {
        let mut placement = Placement::pin(None);
        assert!(!placement.may_leave());
        placement.leave();
        placement.at_work(Time::from_nanoseconds(u64::MAX));
        assert!(!Placement::pin(Some(CpuSet::MAX_CPU)).may_leave());
    }
}
