//! Short runs, their lowest and median, in cycles of the time-stamp counter.
//!
//! The counter is read between fences, so that no load of the run is still under way when it is read and none of the
//! run begins before. On a shared machine most long runs are interrupted; of many runs of a tenth of a millisecond
//! most are not, so the median says what the code costs and the lowest what it costs undisturbed.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// Cycles a packet of each run.
#[derive(Default)]
pub(crate) struct Runs(Vec<f64>);

impl Runs {
    /// Times one run over `packets` packets.
    pub(crate) fn time<T>(&mut self, packets: usize, run: impl FnOnce() -> T) -> T {
        let start = now();
        let result = run();
        self.add(now().wrapping_sub(start), packets);
        result
    }

    /// Adds a run that took `cycles` over `packets` packets.
    pub(crate) fn add(&mut self, cycles: u64, packets: usize) {
        self.0.push(cycles as f64 / packets as f64);
    }

    /// Lowest and median.
    pub(crate) fn summary(&mut self) -> (f64, f64) {
        self.0.sort_by(f64::total_cmp);
        (self.0.first().copied().unwrap_or(0.0), self.0.get(self.0.len() / 2).copied().unwrap_or(0.0))
    }

    /// Lowest and median in cycles, and the median in nanoseconds.
    pub(crate) fn text(&mut self) -> String {
        let (low, median) = self.summary();
        format!("{low:5.0} {median:5.0} c {:6.1} ns", median * 1_000.0 / megahertz())
    }
}

/// The time-stamp counter; elsewhere than on x86-64 nanoseconds take its place.
pub(crate) fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_lfence, _rdtsc};
        // SAFETY: SSE2, which has the fence, is part of x86-64.
        unsafe { _mm_lfence() };
        // SAFETY: every x86-64 processor has the counter, and Linux lets user space read it.
        let cycles = unsafe { _rdtsc() };
        // SAFETY: as above.
        unsafe { _mm_lfence() };
        cycles
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: OnceLock<std::time::Instant> = OnceLock::new();
        START.get_or_init(std::time::Instant::now).elapsed().as_nanos() as u64
    }
}

/// Rate of the time-stamp counter as the kernel states it; without that, of 1 GHz, so that cycles are nanoseconds.
pub(crate) fn megahertz() -> f64 {
    static RATE: OnceLock<f64> = OnceLock::new();
    *RATE.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("cpu MHz"));
        line.and_then(|line| line.split(':').nth(1)?.trim().parse().ok()).unwrap_or(1_000.0)
    })
}
