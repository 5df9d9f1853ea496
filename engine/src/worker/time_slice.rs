//! How soon a woken worker runs where another thread holds the processor.
//!
//! The kernel's fair scheduler (EEVDF, Linux 6.6) lets a woken thread run at once only if its deadline comes before that of the
//! thread at work, and a deadline is a time slice away: 1.4 ms for both on two processors. Whoever wakes a worker by sending a
//! packet has then just begun its own slice, and the worker waits behind it. Since Linux 6.12 a thread may ask for a slice of its
//! own, and one that is shorter is also let in before the other's is over. It takes away nobody's share: a short slice is served
//! sooner and ends sooner. docs/benchmarking.md ("Idle") has what it brings.
//!
//! Two system calls at the start of a worker; no privilege. Belongs to the worker's own thread, whose slice it is.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

/// The slice asked for: the shortest that the kernel gives (it raises what is less).
const TIME_SLICE: Duration = Duration::from_micros(100);

/// Asks for a short time slice for the calling thread; its policy and niceness stay. An older kernel, or one told to refuse the
/// call, leaves everything as it was, and so does a thread of another policy, which has no slice.
pub(super) fn shorten() {
    // Nothing depends on it but how long the first packet after a pause takes.
    let _ = read().and_then(|mut attributes| {
        if ![libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&(attributes.sched_policy as libc::c_int)) {
            return Ok(());
        }
        attributes.sched_runtime = TIME_SLICE.as_nanos() as u64;
        write(&attributes)
    });
}

/// How the calling thread is scheduled (sched_getattr(2)).
fn read() -> io::Result<libc::sched_attr> {
    let mut attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most `size` bytes, which the structure has; it lives until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, attributes.size, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(attributes) }
}

/// Changes it (sched_setattr(2)).
fn write(attributes: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the kernel only reads the structure, whose size stands in it; it lives until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attributes are the thread's own, so each test has one.
    fn in_a_thread(test: fn()) {
        std::thread::spawn(test).join().expect("as described");
    }

    #[test]
    fn a_worker_has_a_short_slice_and_stays_what_it_was() {
        in_a_thread(|| {
            let mut before = read().expect("attributes");
            // Nicer than it was, which anybody may become: it has to stay so.
            before.sched_nice += 1;
            write(&before).expect("a nicer thread");
            shorten();
            let after = read().expect("attributes");
            assert_eq!(after.sched_policy, before.sched_policy);
            assert_eq!(after.sched_nice, before.sched_nice);
            // Kernels before 6.12 have no slices of threads and say 0.
            assert!([0, TIME_SLICE.as_nanos() as u64].contains(&after.sched_runtime), "{}", after.sched_runtime);
        });
    }

    #[test]
    fn a_thread_without_a_slice_is_left_alone() {
        in_a_thread(|| {
            let mut idle = read().expect("attributes");
            idle.sched_policy = libc::SCHED_IDLE as u32;
            write(&idle).expect("anybody may become idle");
            let before = read().expect("attributes");
            shorten();
            let after = read().expect("attributes");
            assert_eq!((after.sched_policy, after.sched_runtime), (before.sched_policy, before.sched_runtime));
        });
    }
}
