//! Limits of pods' bandwidth where nobody says how much may pass at once.

use millrace_engine::tables::RateLimit;

/// Time at the rate that a quiet pod may send or receive at once.
const BURST_MILLISECONDS: u64 = 500;

/// The least burst: two of the largest units that a pod's kernel builds.
const LEAST_BURST_BITS: u64 = 1 << 20;

/// A limit at this rate with the burst that is chosen, or one that suits TCP: a stream whose last packets were dropped is
/// silent for its retransmission timeout, 200 ms and more, and never gets what the burst cannot hold of that time. Measured at
/// 30 and 50 Mbit/s: half of the rate with 100 ms, 85 to 103 % with 250 ms, 95 to 105 % with 500 ms.
#[must_use]
pub fn rate_limit(bits_per_second: u64, burst_bits: Option<u64>) -> RateLimit {
    let usual = (bits_per_second / 1_000).saturating_mul(BURST_MILLISECONDS).max(LEAST_BURST_BITS);
    RateLimit { bits_per_second, burst_bits: burst_bits.unwrap_or(usual) }
}
