//! Which instructions beyond the plain ones this processor has, asked in one place.
//!
//! Every vector kernel has plain code beside it that gives the same bytes. A process may be told to go without the
//! others (`millrace replay --plain-code`), so that this can be shown of whole packets on a machine that has them all.
//! One load and one test where a kernel is chosen; any thread.

use std::sync::atomic::{AtomicBool, Ordering};

/// Instructions that some kernel uses. SSE2, which every x86-64 has, is not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Rounds of AES: the flow hash.
    Aes,
    /// CRC32c: the checksum of SCTP.
    Sse42,
    /// 32-byte vectors: copy and checksum.
    Avx2,
    /// 64-byte vectors: copy and checksum.
    Avx512,
}

static PLAIN_CODE: AtomicBool = AtomicBool::new(false);

/// From now on this process chooses plain code, as on a processor without any of [`Feature`]. What has chosen before keeps
/// its choice, so it is said first of all.
pub fn use_plain_code() {
    PLAIN_CODE.store(true, Ordering::Relaxed);
}

/// True if kernels may use it.
#[inline]
#[must_use]
pub fn has(feature: Feature) -> bool {
    !PLAIN_CODE.load(Ordering::Relaxed) && is_present(feature)
}

/// True if the processor has it.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn is_present(feature: Feature) -> bool {
    match feature {
        Feature::Aes => std::arch::is_x86_feature_detected!("aes"),
        Feature::Sse42 => std::arch::is_x86_feature_detected!("sse4.2"),
        Feature::Avx2 => std::arch::is_x86_feature_detected!("avx2"),
        Feature::Avx512 => std::arch::is_x86_feature_detected!("avx512f"),
    }
}

/// True if the processor has it.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const fn is_present(_: Feature) -> bool {
    false
}
