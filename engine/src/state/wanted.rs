//! Neighbours on uplinks that packets to the outside needed and nobody has resolved: workers put them in, the control
//! plane takes them out and asks the host's kernel.
//!
//! Bounded: what finds the list full is left out, and the next packet to that neighbour asks again. One lock, held for a
//! walk over at most [`WANTED_NEIGHBOURS`] entries, taken only by packets that are dropped as `neighbour_unresolved`.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::limits::WANTED_NEIGHBOURS;
use crate::packet::PortIndex;

/// The list.
#[derive(Debug)]
pub struct WantedNeighbours(Mutex<Vec<(PortIndex, IpAddr)>>);

impl Default for WantedNeighbours {
    fn default() -> Self {
        Self(Mutex::new(Vec::with_capacity(WANTED_NEIGHBOURS)))
    }
}

impl WantedNeighbours {
    /// Notes that a packet needs this neighbour on the link of this uplink.
    pub fn ask(&self, uplink: PortIndex, neighbour: IpAddr) {
        let mut list = self.lock();
        if list.len() < WANTED_NEIGHBOURS && !list.contains(&(uplink, neighbour)) {
            list.push((uplink, neighbour));
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_noted_once_and_not_more_than_fit() {
        let wanted = WantedNeighbours::default();
        for number in 0..2 * WANTED_NEIGHBOURS {
            let neighbour = IpAddr::from([192, 0, 2, number as u8]);
            wanted.ask(PortIndex(1), neighbour);
            wanted.ask(PortIndex(1), neighbour);
        }
        assert_eq!(wanted.take().len(), WANTED_NEIGHBOURS);
        assert_eq!(wanted.take(), []);
    }
}
