//! Short runs, their lowest and median, and time as cycles of the time-stamp counter.

use std::sync::OnceLock;
use std::time::Instant;

/// Nanoseconds a packet of each run.
#[derive(Default)]
pub(crate) struct Runs(Vec<f64>);

impl Runs {
    /// Times one run over `packets` packets.
    pub(crate) fn time<T>(&mut self, packets: usize, run: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = run();
        self.0.push(start.elapsed().as_nanos() as f64 / packets as f64);
        result
    }

    /// Lowest and median.
    pub(crate) fn summary(&mut self) -> (f64, f64) {
        self.0.sort_by(f64::total_cmp);
        (self.0.first().copied().unwrap_or(0.0), self.0.get(self.0.len() / 2).copied().unwrap_or(0.0))
    }

    /// Lowest and median in nanoseconds, and the median in cycles.
    pub(crate) fn text(&mut self) -> String {
        let (low, median) = self.summary();
        format!("{low:6.1} {median:6.1} ns {:5.0} cycles", median * megahertz() / 1_000.0)
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
