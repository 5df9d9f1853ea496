//! How much has gone through each limited port lately.
//!
//! One number for each port and direction, shared by all workers, so that a limit holds however a port's packets are spread
//! over them, and whoever's packet comes first gets what is left. The number is the time at which everything let through
//! would be paid for at the rate: a token bucket written as the generic cell rate algorithm (ITU-T I.371), one atomic
//! exchange for each packet of a limited port. Workers bring their own time of the turn; one that is a turn behind the
//! others finds the bucket a little emptier.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Time;
use crate::limits;
use crate::packet::PortIndex;
use crate::tables::RateLimit;

/// Parts of a nanosecond that are counted: at 100 Gbit/s the shortest frame takes 77 of them. The count of 64 bits lasts 36
/// years.
const TICKS: u64 = 16;
const TICKS_PER_SECOND: u64 = TICKS * 1_000_000_000;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Way {
    /// They came in by the port.
    FromPort = 0,
    /// They leave by it.
    ToPort = 1,
}

impl Way {
    /// How many there are.
    pub const COUNT: usize = 2;
    /// Both, in order of their numbers.
    pub const ALL: [Way; Way::COUNT] = [Way::FromPort, Way::ToPort];
}

/// A limit in the terms of the budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meter {
    bits_per_second: u64,
    burst_ticks: u64,
}

impl From<RateLimit> for Meter {
    fn from(limit: RateLimit) -> Self {
        let bits_per_second = limit.bits_per_second.max(1);
        let burst = u128::from(limit.burst_bits) * u128::from(TICKS_PER_SECOND) / u128::from(bits_per_second);
        // At least one, so that a packet passes after every silence.
        Self { bits_per_second, burst_ticks: u64::try_from(burst).unwrap_or(u64::MAX).max(1) }
    }
}

impl Meter {
    /// What a packet of so many bytes takes of the time.
    fn ticks(self, bytes: u32) -> u64 {
        // At most 2^32 * 8 * 16e9, which has 70 bits; of packets that there are, 55.
        let ticks = u128::from(bytes) * 8 * u128::from(TICKS_PER_SECOND) / u128::from(self.bits_per_second);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

/// The budgets of all ports; 16 B for each.
#[derive(Clone, Debug)]
pub struct BandwidthBudgets {
    paid: Arc<[[AtomicU64; Way::COUNT]]>,
}

impl Default for BandwidthBudgets {
    fn default() -> Self {
        Self { paid: (0..limits::PORTS).map(|_| Default::default()).collect() }
    }
}

impl BandwidthBudgets {
    fn paid(&self, port: PortIndex, way: Way) -> &AtomicU64 {
        &self.paid[usize::from(port.0).min(limits::PORTS - 1)][way as usize]
    }

    /// Takes a packet of so many bytes out of the budget; false, and nothing taken, if none is left at `now`.
    #[must_use]
    pub fn take(&self, port: PortIndex, way: Way, meter: Meter, bytes: u32, now: Time) -> bool {
        let (now, cost) = (now.nanoseconds().saturating_mul(TICKS), meter.ticks(bytes));
        let step = |paid: u64| {
            let start = paid.max(now);
            (start - now < meter.burst_ticks).then(|| start.saturating_add(cost))
        };
        self.paid(port, way).fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }

    /// Forgets what went through: the port is another one, or has another limit.
    pub fn reset(&self, port: PortIndex, way: Way) {
        self.paid(port, way).store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PORT: PortIndex = PortIndex(3);

    fn meter(bits_per_second: u64, burst_bits: u64) -> Meter {
        RateLimit { bits_per_second, burst_bits }.into()
    }

    /// Bytes let through in so many seconds, of packets of so many bytes that come every `pace` and always find a new time.
    fn passed(meter: Meter, bytes: u32, pace: Duration, seconds: u64) -> u64 {
        let budgets = BandwidthBudgets::default();
        let start = Time::ZERO + Duration::from_secs(5);
        let count = Duration::from_secs(seconds).as_nanos() / pace.as_nanos();
        let taken =
            (0..count as u32).filter(|number| budgets.take(PORT, Way::ToPort, meter, bytes, start + pace * *number));
        taken.count() as u64 * u64::from(bytes)
    }

    #[test]
    fn the_rate_holds_whatever_the_sizes() {
        for (rate, burst, bytes, pace_us, seconds) in [
            (50_000_000, 5_000_000, 1_514, 10, 4),
            (50_000_000, 5_000_000, 63_000, 100, 4),
            // Bursts that are smaller than the packet, and than any packet.
            (50_000_000, 8_000, 63_000, 100, 4),
            (10_000_000, 0, 60, 5, 2),
            (1_000, 1_000, 60, 1_000, 60),
            (100_000_000_000, 1_000_000, 9_014, 1, 1),
        ] {
            let got = passed(meter(rate, burst), bytes, Duration::from_micros(pace_us), seconds);
            let (least, most) = (rate * seconds / 8, (rate * seconds + burst) / 8 + 2 * u64::from(bytes));
            // What comes in steps of `pace` wastes at most a step for each packet where there is no burst to save it in.
            let least = least - least / 20;
            let offered = u64::from(bytes) * (seconds * 1_000_000 / pace_us);
            assert!((least.min(offered)..=most).contains(&got), "{rate} bit/s, {bytes} B: {got} of {least}..={most}");
        }
    }

    #[test]
    fn ways_ports_and_changes_stand_alone() {
        let budgets = BandwidthBudgets::default();
        let slow = meter(1_000, 8);
        assert!(budgets.take(PORT, Way::FromPort, slow, 1_500, Time::ZERO));
        assert!(!budgets.take(PORT, Way::FromPort, slow, 1, Time::ZERO + Duration::from_secs(11)));
        assert!(budgets.take(PORT, Way::ToPort, slow, 1_500, Time::ZERO));
        assert!(budgets.take(PortIndex(4), Way::FromPort, slow, 1_500, Time::ZERO));
        assert!(
            budgets.take(PORT, Way::FromPort, slow, 1, Time::ZERO + Duration::from_secs(12)),
            "12,000 bits are paid"
        );
        budgets.reset(PORT, Way::ToPort);
        assert!(budgets.take(PORT, Way::ToPort, slow, 1_500, Time::ZERO));
    }

    #[test]
    fn threads_share_a_rate() {
        let (budgets, shared) = (BandwidthBudgets::default(), meter(8_000_000, 800));
        let passed: Vec<u64> = std::thread::scope(|scope| {
            let worker = |_| {
                let budgets = budgets.clone();
                scope.spawn(move || {
                    let times = (0..1_000_000).map(|microseconds| Time::ZERO + Duration::from_micros(microseconds));
                    times.filter(|now| budgets.take(PORT, Way::ToPort, shared, 100, *now)).count() as u64
                })
            };
            let threads: Vec<_> = (0..2).map(worker).collect();
            threads.into_iter().map(|thread| thread.join().expect("a worker")).collect()
        });
        // A second of 1,000,000 B/s and a burst of 100 B.
        let total = passed.iter().sum::<u64>() * 100;
        assert!((999_000..=1_000_300).contains(&total), "{passed:?}");
    }
}
