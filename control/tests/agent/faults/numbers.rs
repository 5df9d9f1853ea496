//! Numbers by chance that are the same for the same seed.

use std::time::Duration;

pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    /// A number below `below`.
    pub(super) fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    /// Whether something happens that does so many times of a hundred.
    pub(super) fn percent(&mut self, share: u64) -> bool {
        self.next(100) < share
    }

    /// A time up to `longest`.
    pub(super) fn time(&mut self, longest: Duration) -> Duration {
        Duration::from_micros(self.next(longest.as_micros() as u64))
    }

    /// One of these.
    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.next(all.len() as u64) as usize]
    }
}
