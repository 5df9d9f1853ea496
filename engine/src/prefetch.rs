//! Asking the processor for memory some time before it is used.
//!
//! The one thing that makes a vector of packets faster than packets one by one: a miss in the processor's caches takes
//! as long as forwarding five packets, and twenty of them can be under way at once.
#![allow(unsafe_code)]

/// Asks for the line of `target`; a hint, without effect on what the program means.
#[inline]
pub(crate) fn prefetch<T>(target: &T) {
    prefetch_address(std::ptr::from_ref(target).cast());
}

/// Asks for the line at an address, whatever is there; the same hint.
#[inline]
pub(crate) fn prefetch_address(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching any address is allowed, mapped or not.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
