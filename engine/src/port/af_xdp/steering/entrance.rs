//! What of an interface's frames reaches sockets at this moment, and the way to shut it for a worker that stands still.
//!
//! Shutting it is quick and needs nobody but the caller: by AF_XDP the worker's queue loses its place in the program's table,
//! so that the program's redirect passes the frames on to the kernel. Packet sockets share all frames among them, and who
//! gets which cannot be said beforehand: there everything but tunnels passes to the kernel, for all workers of the
//! interface. Nothing is lost that the kernel could serve; what only the switch serves is lost either way.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use aya::maps::{Array, MapData, MapError, XskMap};

use super::super::umem::Umem;
use super::rules::{Configuration, SteeringRules, configuration};

/// The socket of a queue, for as long as the queue is open: a second descriptor would keep the kernel writing into frames
/// that the closed queue gave back.
pub(in crate::port::af_xdp) struct Place {
    pub(in crate::port::af_xdp) umem: Umem,
    pub(in crate::port::af_xdp) socket: Weak<OwnedFd>,
}

/// The tables that are changed for a stalled worker.
pub(super) struct Entrance {
    configuration: Array<MapData, Configuration>,
    /// What the configuration is with everything, and with tunnels only.
    wanted: [Configuration; 2],
    sockets: XskMap<MapData>,
    bound: BTreeMap<u32, Place>,
    shut: Vec<usize>,
}

impl Entrance {
    /// Nothing is ours yet, but for `everything`.
    pub(super) fn new(
        configuration_map: Array<MapData, Configuration>,
        sockets: XskMap<MapData>,
        everything: bool,
    ) -> Result<Self, MapError> {
        let nothing = configuration(&SteeringRules::default(), everything);
        let mut entrance = Self {
            configuration: configuration_map,
            wanted: [nothing; 2],
            sockets,
            bound: BTreeMap::new(),
            shut: Vec::new(),
        };
        entrance.configuration.set(0, nothing, 0)?;
        Ok(entrance)
    }

    /// Steers by the flags and ranges of `rules` from now on.
    pub(super) fn set(&mut self, rules: &SteeringRules, everything: bool) -> Result<(), MapError> {
        let tunnels = SteeringRules { vxlan: rules.vxlan.clone(), shared: None };
        let wanted = [configuration(rules, everything), configuration(&tunnels, everything)];
        let before = self.in_force();
        let present = std::mem::replace(&mut self.wanted, wanted);
        if before == self.in_force() {
            return Ok(());
        }
        self.write().inspect_err(|_| self.wanted = present)
    }

    fn in_force(&self) -> Configuration {
        self.wanted[usize::from(self.bound.is_empty() && !self.shut.is_empty())]
    }

    fn write(&mut self) -> Result<(), MapError> {
        let bytes = self.in_force();
        self.configuration.set(0, bytes, 0)
    }

    pub(super) fn insert(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), MapError> {
        self.sockets.set(queue, socket.as_raw_fd(), 0)
    }

    /// As [`Self::insert`]; the socket can be shut out and let in again for as long as its queue is open.
    pub(super) fn insert_place(&mut self, queue: u32, place: Place) -> Result<(), MapError> {
        let sockets = &mut self.sockets;
        let set = |socket: BorrowedFd<'_>| sockets.set(queue, socket.as_raw_fd(), 0);
        place.umem.while_open(&place.socket, set).unwrap_or(Ok(()))?;
        self.bound.insert(queue, place);
        Ok(())
    }

    pub(super) fn remove(&mut self, queue: u32) -> Result<(), MapError> {
        self.bound.remove(&queue);
        self.unset(queue)
    }

    fn unset(&mut self, queue: u32) -> Result<(), MapError> {
        match self.sockets.unset(queue) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(MapError::KeyNotFound) => Ok(()),
            other => other,
        }
    }

    /// Nothing is ours any more.
    pub(super) fn end(&mut self) {
        let _ = self.configuration.set(0, configuration(&SteeringRules::default(), false), 0);
    }

    /// Queue number N is that of worker N.
    fn shut(&mut self, worker: usize) -> Result<(), MapError> {
        if !self.shut.contains(&worker) {
            self.shut.push(worker);
        }
        if self.bound.is_empty() { self.write() } else { self.unset(worker as u32) }
    }

    fn open(&mut self, worker: usize) -> Result<(), MapError> {
        self.shut.retain(|other| *other != worker);
        let queue = worker as u32;
        let Some(place) = self.bound.get(&queue) else {
            return if self.bound.is_empty() { self.write() } else { Ok(()) };
        };
        let sockets = &mut self.sockets;
        let set = |socket: BorrowedFd<'_>| sockets.set(queue, socket.as_raw_fd(), 0);
        // A queue that was closed meanwhile has no place to come back to.
        place.umem.while_open(&place.socket, set).unwrap_or(Ok(()))
    }
}

/// The entrance of one interface, for as long as its steering lives; any thread may shut and open it.
#[derive(Clone)]
pub struct Gate(Weak<Mutex<Entrance>>);

impl std::fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Gate").finish()
    }
}

impl Gate {
    pub(super) fn of(entrance: &Arc<Mutex<Entrance>>) -> Self {
        Self(Arc::downgrade(entrance))
    }

    /// Whether the interface is still steered.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Lets what would go to `worker` pass to the kernel, where the kernel may have it.
    ///
    /// # Errors
    /// What the kernel said of the program's tables.
    pub fn shut(&self, worker: usize) -> io::Result<()> {
        self.with(|entrance| entrance.shut(worker))
    }

    /// Steers to `worker` again.
    ///
    /// # Errors
    /// As [`Self::shut`].
    pub fn open(&self, worker: usize) -> io::Result<()> {
        self.with(|entrance| entrance.open(worker))
    }

    fn with(&self, act: impl FnOnce(&mut Entrance) -> Result<(), MapError>) -> io::Result<()> {
        self.0.upgrade().map_or(Ok(()), |entrance| act(&mut lock(&entrance)).map_err(io::Error::other))
    }
}

/// Each change is one call of the kernel, so that a panic of a holder leaves nothing half done.
pub(super) fn lock(entrance: &Mutex<Entrance>) -> MutexGuard<'_, Entrance> {
    entrance.lock().unwrap_or_else(PoisonError::into_inner)
}
