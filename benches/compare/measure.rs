//! One sample of a backend, and many of them as a line of text.

use std::time::Duration;

use anyhow::Context;
use millrace_control::demo::interruption::Interruption;
use millrace_control::demo::traffic::request_response::{TransactionTimes, request_response};
use millrace_control::demo::traffic::stream::{StreamResult, stream};
use millrace_control::demo::traffic::{Endpoint, Family};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::backend::Kind;

/// What was measured once.
pub(crate) struct Sample {
    stream: StreamResult,
    /// Processor seconds of this process for each second of the stream.
    processors: f64,
    transactions: TransactionTimes,
}

/// All samples of a backend.
pub(crate) struct Series {
    kind: Kind,
    pub(crate) samples: Vec<Sample>,
}

/// A stream and transactions, from the first pod to the second; both ends on core `ends`, if there is one.
pub(crate) fn measure(pods: &[Endpoint; 2], ends: Option<usize>, duration: Duration) -> anyhow::Result<Sample> {
    // Threads inherit the cores of the one that starts them.
    let before = sched_getaffinity(None)?;
    if let Some(core) = ends {
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(None, &set).with_context(|| format!("core {core}"))?;
    }
    let going_on = Interruption::default();
    let used = processor_time();
    let stream = stream(&pods[0], &pods[1], Family::Ipv4, duration, &going_on);
    let used = processor_time().saturating_sub(used);
    let transactions = request_response(&pods[0], &pods[1], Family::Ipv4, duration / 4, &going_on);
    sched_setaffinity(None, &before)?;
    let (stream, transactions) = (stream?, transactions?);
    Ok(Sample { stream, processors: used.as_secs_f64() / stream.seconds.max(1e-9), transactions })
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

impl Sample {
    fn per_gigabit(&self) -> f64 {
        self.processors / self.stream.gigabits_per_second.max(1e-9)
    }

    pub(crate) fn text(&self) -> String {
        format!(
            "{:6.2} Gbit/s, {:.2} processors, {} sent again; p50 {:.0} us, p99 {:.0} us",
            self.stream.gigabits_per_second,
            self.processors,
            self.stream.retransmitted_segments,
            self.transactions.p50_microseconds,
            self.transactions.p99_microseconds,
        )
    }
}

impl Series {
    pub(crate) fn new(kind: Kind) -> Series {
        Series { kind, samples: Vec::new() }
    }

    fn spread(&self, value: impl Fn(&Sample) -> f64) -> [f64; 3] {
        let mut values: Vec<f64> = self.samples.iter().map(value).collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
        [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
    }

    pub(crate) fn stream_median(&self) -> f64 {
        self.spread(|sample| sample.stream.gigabits_per_second)[1]
    }

    /// Medians with the lowest and highest of each in brackets; `base` is the median that ratios are of.
    pub(crate) fn text(&self, base: f64) -> String {
        let [low, median, high] = self.spread(|sample| sample.stream.gigabits_per_second);
        let [_, cost, _] = self.spread(Sample::per_gigabit);
        let [_, p50, _] = self.spread(|sample| sample.transactions.p50_microseconds);
        let [_, p99, _] = self.spread(|sample| sample.transactions.p99_microseconds);
        format!(
            "{:8} {median:6.2} Gbit/s ({low:.2} to {high:.2}), {:.2} of the first; {cost:.3} processor seconds a Gbit; \
             p50 {p50:.0} us, p99 {p99:.0} us",
            self.kind.name(),
            median / base,
        )
    }
}
