//! What a monitoring system reads off a node: `/metrics` as OpenMetrics text, by default at 127.0.0.1:10249, where kube-proxy has its
//! own.
//!
//! Names of kube-proxy where a dashboard made for it finds the same thing; `millrace_*` for all else. The text is made of the
//! documents that `millrace show` prints, so the two cannot disagree ([`exposition`]); only what is over in a moment, the time
//! that changes take, is noted as it happens ([`Timings`]). Nothing is kept for a reader: who never asks costs nothing.
//! Series are bounded by what is bounded elsewhere: workers, ports, drop reasons, events.

mod exposition;
mod server;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

pub use exposition::text;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
pub use server::MetricsServer;

/// How long changes take to come into force. Written by the reconcile thread.
#[derive(Debug)]
pub struct Timings {
    /// Seconds from the first input of a batch until the tables made of it are published.
    settling: Histogram,
    /// Seconds from the arrival of an object until every worker decides by it.
    realising: [(&'static str, Histogram); 4],
    /// Seconds from a pod's change until every worker decides by the endpoints that tell it.
    programming: Histogram,
    /// Microseconds since 1970 of the last publish; 0 before the first.
    last: AtomicU64,
}

impl Default for Timings {
    /// Buckets as kube-proxy's: 1 ms, doubling 15 times.
    fn default() -> Self {
        let histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let kinds = ["Service", "EndpointSlice", "NetworkPolicy", "ClusterNetworkPolicy"];
        Self {
            settling: histogram(),
            realising: kinds.map(|kind| (kind, histogram())),
            programming: histogram(),
            last: AtomicU64::new(0),
        }
    }
}

impl Timings {
    /// A batch of changes that had come `took` ago is in force.
    pub fn settled(&self, took: Duration) {
        self.settling.observe(took.as_secs_f64());
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last.store(u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// An object of this kind that came `took` ago is in force; it tells what `happened` so long ago, where it says so.
    pub fn realised(&self, kind: &str, took: Duration, happened: Option<Duration>) {
        let of_kind = self.realising.iter().find(|(known, _)| *known == kind);
        of_kind.into_iter().for_each(|(_, histogram)| histogram.observe(took.as_secs_f64()));
        happened.into_iter().for_each(|ago| self.programming.observe(ago.as_secs_f64()));
    }

    /// Seconds since 1970 of the last publish.
    fn last_seconds(&self) -> f64 {
        self.last.load(Ordering::Relaxed) as f64 / 1e6
    }
}
