//! Interfaces whose every received frame is kept from the host's kernel.
//!
//! The host's end of a pod's veth pair stays the kernel's, and a packet socket on it only gets copies. A classifier on tcx,
//! which runs behind packet sockets, drops all of them: so a pod meets the switch and nothing else, no socket of the host
//! and no answer to its ARP. The program is two instructions, loaded once for any number of interfaces; each attachment
//! is a BPF link, which ends with its descriptor, and with the process. Needs CAP_BPF, CAP_NET_ADMIN and Linux 6.6.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::sys;

/// The program.
#[derive(Debug)]
pub struct Withholding(OwnedFd);

/// An interface that it is attached to; detached when dropped.
#[derive(Debug)]
pub struct Withheld {
    _link: OwnedFd,
}

impl Withholding {
    /// Loads the program.
    ///
    /// # Errors
    /// What the kernel said: `EPERM` without the capabilities.
    pub fn load() -> io::Result<Self> {
        sys::load_drop_program().map(Self)
    }

    /// Keeps everything that `interface`, of this thread's network namespace, receives from the kernel.
    ///
    /// # Errors
    /// What the kernel said: no such interface, or no tcx (`EINVAL` before Linux 6.6).
    pub fn keep(&self, interface: &str) -> io::Result<Withheld> {
        let index = sys::interface_index(interface)?;
        Ok(Withheld { _link: sys::attach_tcx_link(self.0.as_fd(), index)? })
    }
}
