//! What the agent may do: as little of root's power as its work needs.
//!
//! The kernel keeps capabilities for each thread and hands a thread's to those it starts, so they are given up before the
//! first one is started. What the agent was not given it does not get: in a container that adds four capabilities it has
//! these four.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// What the agent keeps, as far as it has it. The first four are what it needs at all; the last two are for runtimes that
/// name a pod's network namespace by a process (`/proc/PID/ns/net`), and only there granted (`deploy/millrace.service`).
pub const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// Last capability that a kernel may know, with room for those to come (`CAP_LAST_CAP` is 40 in Linux 6.12).
const LAST: u32 = 62;

/// Gives up all but [`KEPT`], in the bounding, permitted, effective, inheritable and ambient sets of the calling thread,
/// and the right to gain any by running a program. To be called before any other thread is started.
///
/// # Errors
/// What the kernel said; the capabilities may be given up in part.
pub fn reduce() -> Result<(), Errno> {
    for number in 0..=LAST {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Not one of this kernel's, or there is no right to narrow the set: then what follows has to do.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
    match rustix::thread::clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error),
    }
    rustix::thread::set_no_new_privs(true)?;
    let held = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: held.effective & KEPT,
            permitted: held.permitted & KEPT,
            inheritable: CapabilitySet::empty(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_no_more_and_can_do_so_twice() {
        let reduced = std::thread::spawn(|| {
            reduce().and_then(|()| reduce()).expect("reduced");
            (rustix::thread::capabilities(None).expect("told"), rustix::thread::no_new_privs().expect("told"))
        });
        let (sets, no_new_privileges) = reduced.join().expect("a thread");
        assert!(KEPT.contains(sets.permitted) && KEPT.contains(sets.effective), "{sets:?}");
        assert!(sets.inheritable.is_empty() && no_new_privileges, "{sets:?}");
    }
}
