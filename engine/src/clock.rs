//! Time as an argument.
//!
//! A worker reads its clock once a vector and hands the result down; no stage reads time itself. Tests,
//! replay and simulation drive a [`ManualClock`], so a timer is tested by moving it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Nanoseconds since an origin that only its clock knows; never wall time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The clock's origin.
    pub const ZERO: Time = Time(0);

    /// A time that lies `nanoseconds` after the origin.
    #[must_use]
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the origin.
    #[must_use]
    pub const fn nanoseconds(self) -> u64 {
        self.0
    }

    /// Milliseconds since the origin, truncated to 32 bits: what flow-cache entries keep. Wraps after 49 days;
    /// compare with [`u32::wrapping_sub`].
    #[must_use]
    pub const fn milliseconds32(self) -> u32 {
        (self.0 / 1_000_000) as u32
    }

    /// Time passed since `earlier`, zero if `earlier` lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Time;
    fn add(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A clock somebody else moves.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that stands at its origin.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the clock forward.
    pub fn advance(&self, duration: Duration) {
        self.0.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Sets the clock; replay sets it to each capture's time stamps.
    pub fn set(&self, time: Time) {
        self.0.store(time.nanoseconds(), Ordering::Relaxed);
    }
}

/// What a worker asks for the time.
#[derive(Clone, Debug)]
pub enum Clock {
    /// CLOCK_MONOTONIC by way of the vDSO (23 ns a read, once a vector).
    Monotonic,
    /// Moved by a test, a replay or a simulation.
    Manual(ManualClock),
}

impl Clock {
    /// The present time.
    #[must_use]
    pub fn now(&self) -> Time {
        match self {
            Clock::Monotonic => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
                let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
                let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
                Time(seconds * 1_000_000_000 + nanoseconds)
            }
            Clock::Manual(clock) => Time(clock.0.load(Ordering::Relaxed)),
        }
    }
}
