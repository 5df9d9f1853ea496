//! How much each port has flooded lately.
//!
//! One number for each port and class, shared by all workers, so that a limit holds however a port's frames are
//! spread over them: the generic cell rate algorithm (ITU-T I.371), which keeps the time at which the next frame would
//! conform at a steady rate. A port may run ahead of its rate by [`STORM_BURST`](limits::STORM_BURST). Touched by the
//! slow path for frames that are flooded, one atomic exchange each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Time;
use crate::limits;
use crate::packet::PortIndex;
use crate::tables::FloodClass;

/// The budgets of all ports; 24 B for each.
#[derive(Debug)]
pub struct Storms {
    due: Box<[[AtomicU64; FloodClass::COUNT]]>,
}

impl Default for Storms {
    fn default() -> Self {
        Self { due: (0..limits::PORTS).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect() }
    }
}

impl Storms {
    fn due(&self, port: PortIndex, class: FloodClass) -> &AtomicU64 {
        &self.due[usize::from(port.0).min(limits::PORTS - 1)][class as usize]
    }

    /// Whether a frame may be flooded at `now` where `limit` frames a second are allowed. Takes nothing.
    #[must_use]
    pub fn allow(&self, port: PortIndex, class: FloodClass, limit: u32, now: Time) -> bool {
        next(self.due(port, class).load(Ordering::Relaxed), limit, now).is_some()
    }

    /// Takes one frame out of the budget; false if there is none left.
    #[must_use]
    pub fn take(&self, port: PortIndex, class: FloodClass, limit: u32, now: Time) -> bool {
        let step = |due| next(due, limit, now);
        self.due(port, class).fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }
}

/// When the frame after this one is due; `None` if this one does not conform.
fn next(due: u64, limit: u32, now: Time) -> Option<u64> {
    const SECOND: u64 = Duration::from_secs(1).as_nanos() as u64;
    let interval = SECOND / u64::from(limit).max(1);
    let now = now.nanoseconds();
    let ahead = (limits::STORM_BURST.as_nanos() as u64).max(interval);
    let start = due.max(now);
    (limit > 0 && start - now < ahead).then(|| start.saturating_add(interval))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: PortIndex = PortIndex(3);

    /// Frames let through when `offered` come in each of `milliseconds`.
    fn passed(limit: u32, offered: u32, milliseconds: u64) -> u32 {
        let storms = Storms::default();
        let start = Time::ZERO + Duration::from_secs(5);
        let times = (0..milliseconds).flat_map(|at| (0..offered).map(move |_| start + Duration::from_millis(at)));
        let taken = times.filter(|now| storms.take(PORT, FloodClass::Broadcast, limit, *now));
        taken.count() as u32
    }

    #[test]
    fn a_storm_is_cut_to_its_rate_and_a_little_more_at_first() {
        for (limit, seconds) in [(1_000, 3), (50, 4), (1, 10), (200_000, 1)] {
            let (expected, most) = (limit * seconds, limit * seconds + (limit / 10).max(1) + 1);
            let count = passed(limit, 300, u64::from(seconds) * 1_000);
            assert!((expected..=most).contains(&count), "{limit}/s for {seconds} s: {count}");
        }
        assert_eq!(passed(0, 10, 100), 0);
        assert_eq!(passed(1_000, 1, 2_000), 2_000);
    }

    #[test]
    fn ports_and_classes_have_budgets_of_their_own() {
        let storms = Storms::default();
        assert!(storms.allow(PORT, FloodClass::Broadcast, 1, Time::ZERO));
        assert!(storms.take(PORT, FloodClass::Broadcast, 1, Time::ZERO));
        assert!(!storms.allow(PORT, FloodClass::Broadcast, 1, Time::ZERO));
        assert!(!storms.take(PORT, FloodClass::Broadcast, 1, Time::ZERO));
        assert!(storms.take(PORT, FloodClass::Multicast, 1, Time::ZERO));
        assert!(storms.take(PortIndex(4), FloodClass::Broadcast, 1, Time::ZERO));
    }
}
