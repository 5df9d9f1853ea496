//! Neighbours on uplinks that packets to the outside needed and nobody has resolved: workers put them in, the control
//! plane takes them out and asks the host's kernel.
//!
//! Bounded: what finds the list full is left out, and the next packet to that neighbour asks again. One lock, held for a
//! walk over at most [`WANTED_NEIGHBOURS`] entries, taken only by packets that are dropped as `neighbour_unresolved`.
//! The first entry of an empty list rings a bell (an eventfd), so that nobody has to look at an empty list.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::limits::WANTED_NEIGHBOURS;
use crate::packet::PortIndex;

/// The list.
#[derive(Debug)]
pub struct WantedNeighbours {
    list: Mutex<Vec<(PortIndex, IpAddr)>>,
    bell: OwnedFd,
}

impl WantedNeighbours {
    /// An empty list.
    ///
    /// # Errors
    /// What the kernel said to eventfd.
    pub fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { list: Mutex::new(Vec::with_capacity(WANTED_NEIGHBOURS)), bell })
    }

    /// Readable from the first [`ask`](Self::ask) after [`take`](Self::take) until [`heard`](Self::heard).
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Silences the bell; whoever does sees to it that the list is taken.
    pub fn heard(&self) {
        // Would-block says that it has not rung.
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }

    /// Notes that a packet needs this neighbour on the link of this uplink.
    pub fn ask(&self, uplink: PortIndex, neighbour: IpAddr) {
        let mut list = self.lock();
        if list.len() < WANTED_NEIGHBOURS && !list.contains(&(uplink, neighbour)) {
            list.push((uplink, neighbour));
            if list.len() == 1 {
                // Refused only when it has rung 2^64 - 2 times: then it is readable anyway.
                let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
            }
        }
    }

    /// Takes all that were noted. Never on a worker.
    #[must_use]
    pub fn take(&self) -> Vec<(PortIndex, IpAddr)> {
        let mut list = self.lock();
        let taken = list.clone();
        list.clear();
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(PortIndex, IpAddr)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn has_rung(wanted: &WantedNeighbours) -> bool {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&wanted.bell(), PollFlags::IN)], Some(&at_once)).expect("poll") == 1
    }

    #[test]
    fn each_is_noted_once_and_not_more_than_fit() {
        let wanted = WantedNeighbours::new().expect("eventfd");
        for number in 0..2 * WANTED_NEIGHBOURS {
            let neighbour = IpAddr::from([192, 0, 2, number as u8]);
            wanted.ask(PortIndex(1), neighbour);
            wanted.ask(PortIndex(1), neighbour);
        }
        assert_eq!(wanted.take().len(), WANTED_NEIGHBOURS);
        assert_eq!(wanted.take(), []);
    }

    #[test]
    fn the_bell_rings_once_for_all_that_is_wanted_until_it_is_taken() {
        let wanted = WantedNeighbours::new().expect("eventfd");
        assert!(!has_rung(&wanted));
        for _ in 0..2 {
            wanted.ask(PortIndex(1), IpAddr::from([192, 0, 2, 1]));
            assert!(has_rung(&wanted));
            wanted.heard();
            wanted.ask(PortIndex(1), IpAddr::from([192, 0, 2, 2]));
            assert!(!has_rung(&wanted));
            assert_eq!(wanted.take().len(), 2);
        }
    }
}
