//! The programs in front of an interface's sockets: loading, attaching, telling them what is ours.
//!
//! AF_XDP sockets get what the XDP program redirects. Packet sockets get what a filter lets in, and a classifier behind
//! them keeps the same from the kernel. All read the same tables.
//!
//! The object (steering.bpf.c) is compiled in; aya parses it and makes its maps, which takes about 50 ms, so it
//! runs off the packet threads, once an interface. The link is made by our own call: aya falls back to an attachment
//! by netlink where the kernel refuses a link, and such an attachment outlives a killed process and leaves a node
//! whose tunnel traffic goes nowhere. A kernel that has no XDP links (before 5.9), or for packet sockets no tcx links
//! (before 6.6), is refused. The link and with it the program end when this value is dropped or the process dies.

mod rules;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, XskMap};
use aya::programs::{Program, ProgramError, ProgramFd, SchedClassifier, SocketFilter, Xdp};
use thiserror::Error;

use super::sys;
use rules::{AddressKey, Configuration, Contents, DestinationKey, configuration};
pub use rules::{
    Destination, STEERED_ADDRESSES, STEERED_DESTINATIONS, SharedRules, SteeredPorts, SteeringRules, VxlanRules,
};

static PROGRAM: &[u8] = aya::include_bytes_aligned!("steering.bpf.o");

const BUSY_RETRY_TIME: Duration = Duration::from_secs(1);
const BUSY_RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver, before a packet becomes an skb.
    Native,
    /// In the kernel's stack, with any driver, at the cost of an skb for each packet.
    Generic,
    /// Behind packet sockets, with any driver.
    TrafficControl,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            AttachMode::Native => "native",
            AttachMode::Generic => "generic",
            AttachMode::TrafficControl => "tcx",
        })
    }
}

/// Which modes may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachPreference {
    /// Native, and generic if the driver cannot.
    #[default]
    NativeThenGeneric,
    /// Native or nothing.
    Native,
    /// Generic only.
    Generic,
}

impl AttachPreference {
    fn modes(self) -> &'static [AttachMode] {
        match self {
            AttachPreference::NativeThenGeneric => &[AttachMode::Native, AttachMode::Generic],
            AttachPreference::Native => &[AttachMode::Native],
            AttachPreference::Generic => &[AttachMode::Generic],
        }
    }
}

/// Why steering could not be set up or changed.
#[derive(Debug, Error)]
pub enum SteeringError {
    /// The interface does not exist in this thread's network namespace.
    #[error("steering {interface}: no such interface: {error}")]
    Interface {
        /// The interface's name.
        interface: String,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The program or its maps could not be loaded; CAP_BPF and CAP_NET_ADMIN are needed.
    #[error("steering {interface}: cannot load the XDP program: {error}")]
    Load {
        /// The interface's name.
        interface: String,
        /// What the loader said.
        #[source]
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The interface has an XDP program already, which may be another agent's.
    #[error("steering {interface}: another XDP program is attached ({mode}): {error}")]
    Occupied {
        /// The interface's name.
        interface: String,
        /// The mode that was tried.
        mode: AttachMode,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// No allowed mode works as a BPF link.
    #[error("steering {interface}: cannot attach as a BPF link: {tried}")]
    Attach {
        /// The interface's name.
        interface: String,
        /// Each mode with what the kernel said.
        tried: String,
    },
    /// More than the program's tables hold.
    #[error("steering {interface}: {count} {what}, and at most {limit} are possible")]
    TooMany {
        /// The interface's name.
        interface: String,
        /// Which table.
        what: &'static str,
        /// How many were given.
        count: usize,
        /// How many fit.
        limit: usize,
    },
    /// A table of the program could not be changed.
    #[error("steering {interface}: cannot change {what}: {error}")]
    Map {
        /// The interface's name.
        interface: String,
        /// Which table.
        what: &'static str,
        /// What the kernel said.
        #[source]
        error: MapError,
    },
}

/// The steering program of one interface; detached when dropped.
pub struct Steering {
    interface: String,
    mode: AttachMode,
    rules: SteeringRules,
    /// What the maps hold, also after a change that failed half way.
    present: Contents,
    everything: bool,
    configuration: Array<MapData, Configuration>,
    addresses: HashMap<MapData, AddressKey, u8>,
    destinations: HashMap<MapData, DestinationKey, u8>,
    peers: HashMap<MapData, AddressKey, u8>,
    sockets: XskMap<MapData>,
    link: OwnedFd,
    /// What packet sockets let in.
    filter: Option<ProgramFd>,
    _program: Ebpf,
}

/// How frames reach user space.
#[derive(Clone, Copy)]
enum Way {
    AfXdp(AttachPreference),
    PacketSockets,
}

impl Steering {
    /// Steers what `rules` say; everything else passes to the kernel. Blocks for up to a second while another program
    /// is on the interface.
    ///
    /// # Errors
    /// [`SteeringError`], naming the interface.
    pub fn by_rules(
        interface: &str,
        rules: impl Into<SteeringRules>,
        preference: AttachPreference,
    ) -> Result<Self, SteeringError> {
        Self::attach(interface, &rules.into(), false, Way::AfXdp(preference))
    }

    /// Steers what `rules` say to packet sockets, see [`Self::admit_socket`]; everything else passes to the kernel.
    ///
    /// # Errors
    /// [`SteeringError`], naming the interface.
    pub fn for_packet_sockets(interface: &str, rules: impl Into<SteeringRules>) -> Result<Self, SteeringError> {
        Self::attach(interface, &rules.into(), false, Way::PacketSockets)
    }

    /// Steers every frame: for ports that belong to the switch alone.
    ///
    /// # Errors
    /// [`SteeringError`], naming the interface.
    pub fn everything(interface: &str, preference: AttachPreference) -> Result<Self, SteeringError> {
        Self::attach(interface, &SteeringRules::default(), true, Way::AfXdp(preference))
    }

    fn attach(interface: &str, rules: &SteeringRules, everything: bool, way: Way) -> Result<Self, SteeringError> {
        let ifindex = sys::interface_index(interface)
            .map_err(|error| SteeringError::Interface { interface: interface.to_owned(), error })?;
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| SteeringError::Load {
            interface: interface.to_owned(),
            error,
        };
        let mut program = Ebpf::load(PROGRAM).map_err(|error| failed(error.into()))?;
        let (entry, filter) = match way {
            Way::AfXdp(_) => (loaded::<Xdp>(&mut program, "millrace_steering").map_err(failed)?, None),
            Way::PacketSockets => {
                let filter = loaded::<SocketFilter>(&mut program, "millrace_admit").map_err(failed)?;
                (loaded::<SchedClassifier>(&mut program, "millrace_withhold").map_err(failed)?, Some(filter))
            }
        };
        let mut map = |name: &'static str| {
            program.take_map(name).ok_or_else(|| failed(format!("the object has no map {name}").into()))
        };
        let wrong = |error: MapError| failed(error.into());
        let mut configuration_map = Array::try_from(map("configuration")?).map_err(wrong)?;
        let addresses = HashMap::try_from(map("addresses")?).map_err(wrong)?;
        let destinations = HashMap::try_from(map("destinations")?).map_err(wrong)?;
        let peers = HashMap::try_from(map("known_peers")?).map_err(wrong)?;
        let sockets = XskMap::try_from(map("xsks_map")?).map_err(wrong)?;
        configuration_map.set(0, configuration(&SteeringRules::default(), everything), 0).map_err(wrong)?;
        let (link, mode) = match way {
            Way::AfXdp(preference) => make_link(interface, entry.as_fd(), ifindex, preference)?,
            Way::PacketSockets => (make_tcx_link(interface, entry.as_fd(), ifindex)?, AttachMode::TrafficControl),
        };
        let mut steering = Self {
            interface: interface.to_owned(),
            mode,
            rules: SteeringRules::default(),
            present: Contents::default(),
            everything,
            configuration: configuration_map,
            addresses,
            destinations,
            peers,
            sockets,
            link,
            filter,
            _program: program,
        };
        steering.set_rules(rules)?;
        Ok(steering)
    }

    /// Where the program runs.
    #[must_use]
    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// What is steered at this moment.
    #[must_use]
    pub fn rules(&self) -> &SteeringRules {
        &self.rules
    }

    /// Whether the program is still attached; not if the interface is gone.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        matches!(sys::link_interface(self.link.as_fd()), Ok(Some(ifindex)) if ifindex != 0)
    }

    fn map_error(&self, what: &'static str) -> impl Fn(MapError) -> SteeringError + use<> {
        let interface = self.interface.clone();
        move |error| SteeringError::Map { interface: interface.clone(), what, error }
    }

    /// Sends what is steered from `queue` to `socket`, which must be bound to that queue. Frames of a queue without a
    /// socket pass to the kernel.
    ///
    /// # Errors
    /// [`SteeringError::Map`], also for a queue beyond 255.
    pub fn insert_socket(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SteeringError> {
        let failed = self.map_error("the socket of a queue");
        self.sockets.set(queue, socket.as_raw_fd(), 0).map_err(failed)
    }

    /// Lets what is steered into a packet socket, and nothing else.
    ///
    /// # Errors
    /// What the kernel said; [`io::ErrorKind::Unsupported`] if this steers to AF_XDP sockets.
    pub fn admit_socket(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let filter = self.filter.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        admit_by(filter.as_fd(), socket)
    }

    /// Another descriptor of the filter that [`Self::admit_socket`] sets, for a socket that shall have it later; `None` if this
    /// steers to AF_XDP sockets.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn filter(&self) -> io::Result<Option<OwnedFd>> {
        self.filter.as_ref().map(|filter| filter.as_fd().try_clone_to_owned()).transpose()
    }

    /// Lets the frames of `queue` pass to the kernel again. The kernel itself does so when the socket closes, so a
    /// queue without a socket is no error.
    ///
    /// # Errors
    /// [`SteeringError::Map`].
    pub fn remove_socket(&mut self, queue: u32) -> Result<(), SteeringError> {
        let failed = self.map_error("the socket of a queue");
        match self.sockets.unset(queue) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(MapError::KeyNotFound) => Ok(()),
            other => other.map_err(failed),
        }
    }

    /// Steers by `rules` from now on. Only what differs is changed, so nothing that both the old and the new rules
    /// want passes by meanwhile.
    ///
    /// # Errors
    /// [`SteeringError::TooMany`], and nothing changed; [`SteeringError::Map`], after which the same call may be
    /// repeated.
    pub fn set_rules(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        let wanted = Contents::of(rules);
        let ranges = rules.shared.as_ref().map_or(0, |shared| shared.ranges.len());
        self.check_size("addresses", wanted.addresses.len(), rules::STEERED_ADDRESSES)?;
        self.check_size("destinations", wanted.destinations.len(), rules::STEERED_DESTINATIONS)?;
        self.check_size("tunnel peers", wanted.peers.len(), rules::KNOWN_PEERS)?;
        self.check_size("port ranges", ranges, rules::PORT_RANGES)?;
        let failed = self.map_error("addresses");
        replace(&mut self.addresses, &mut self.present.addresses, &wanted.addresses).map_err(failed)?;
        let failed = self.map_error("destinations");
        replace(&mut self.destinations, &mut self.present.destinations, &wanted.destinations).map_err(failed)?;
        let failed = self.map_error("tunnel peers");
        replace(&mut self.peers, &mut self.present.peers, &wanted.peers).map_err(failed)?;
        let bytes = configuration(rules, self.everything);
        if configuration(&self.rules, self.everything) != bytes {
            let failed = self.map_error("the configuration");
            self.configuration.set(0, bytes, 0).map_err(failed)?;
        }
        self.rules = rules.clone();
        Ok(())
    }

    /// Replaces the known peers only.
    ///
    /// # Errors
    /// As [`Self::set_rules`].
    pub fn set_peers(&mut self, peers: HashSet<IpAddr>) -> Result<(), SteeringError> {
        let mut rules = self.rules.clone();
        rules.vxlan.peers = peers;
        self.set_rules(&rules)
    }

    fn check_size(&self, what: &'static str, count: usize, limit: usize) -> Result<(), SteeringError> {
        if count > limit {
            return Err(SteeringError::TooMany { interface: self.interface.clone(), what, count, limit });
        }
        Ok(())
    }
}

/// Sets a filter of [`Steering::filter`] on a packet socket, in place of the one that it has, at once.
///
/// # Errors
/// What the kernel said.
pub fn admit_by(filter: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Result<()> {
    sys::set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &filter.as_raw_fd())
}

/// Brings `map` from `present` to `wanted`, keeping `present` true after each step. Removals come first, since the
/// map may be too full for both sets.
fn replace<const BYTES: usize>(
    map: &mut HashMap<MapData, [u8; BYTES], u8>,
    present: &mut std::collections::HashMap<[u8; BYTES], u8>,
    wanted: &std::collections::HashMap<[u8; BYTES], u8>,
) -> Result<(), MapError> {
    let gone: Vec<[u8; BYTES]> = present.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
    for key in gone {
        map.remove(&key)?;
        present.remove(&key);
    }
    for (key, value) in wanted {
        if present.get(key) != Some(value) {
            map.insert(key, value, 0)?;
            present.insert(*key, *value);
        }
    }
    Ok(())
}

/// Kinds of programs we load.
trait Loadable {
    fn load(&mut self) -> Result<(), ProgramError>;
    fn descriptor(&self) -> Result<&ProgramFd, ProgramError>;
}

macro_rules! loadable {
    ($($kind:ty),*) => {$(
        impl Loadable for $kind {
            fn load(&mut self) -> Result<(), ProgramError> {
                <$kind>::load(self)
            }

            fn descriptor(&self) -> Result<&ProgramFd, ProgramError> {
                self.fd()
            }
        }
    )*};
}

loadable!(Xdp, SchedClassifier, SocketFilter);

/// Loads one program of the object.
fn loaded<'a, Kind: Loadable + 'a>(
    object: &'a mut Ebpf,
    name: &'static str,
) -> Result<ProgramFd, Box<dyn std::error::Error + Send + Sync>>
where
    &'a mut Kind: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = object.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
    let program: &mut Kind = program.try_into()?;
    program.load()?;
    Ok(program.descriptor()?.try_clone()?)
}

fn make_tcx_link(interface: &str, program: BorrowedFd<'_>, ifindex: u32) -> Result<OwnedFd, SteeringError> {
    let refused = |error| SteeringError::Attach {
        interface: interface.to_owned(),
        tried: format!("{}: {error}", AttachMode::TrafficControl),
    };
    sys::attach_tcx_link(program, ifindex).map_err(refused)
}

/// Attaches in the first mode of `preference` that works, waiting a moment for an earlier program to go.
fn make_link(
    interface: &str,
    program: BorrowedFd<'_>,
    ifindex: u32,
    preference: AttachPreference,
) -> Result<(OwnedFd, AttachMode), SteeringError> {
    let mut tried = Vec::new();
    for &mode in preference.modes() {
        let flags = match mode {
            AttachMode::Native => sys::XDP_FLAGS_DRV_MODE,
            AttachMode::Generic | AttachMode::TrafficControl => sys::XDP_FLAGS_SKB_MODE,
        };
        match link_when_free(program, ifindex, flags) {
            Ok(link) => return Ok((link, mode)),
            Err(error) if is_occupied(&error) => {
                return Err(SteeringError::Occupied { interface: interface.to_owned(), mode, error });
            }
            Err(error) => tried.push(format!("{mode}: {error}")),
        }
    }
    Err(SteeringError::Attach { interface: interface.to_owned(), tried: tried.join("; ") })
}

fn link_when_free(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + BUSY_RETRY_TIME;
    loop {
        match sys::attach_xdp_link(program, ifindex, flags) {
            Err(error) if is_occupied(&error) && Instant::now() < deadline => {
                std::thread::sleep(BUSY_RETRY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

impl Drop for Steering {
    /// Nothing is ours any more before the sockets and the kernel would for a moment both have it.
    fn drop(&mut self) {
        let _ = self.configuration.set(0, configuration(&SteeringRules::default(), false), 0);
    }
}

fn is_occupied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_whole() {
        let object = String::from_utf8_lossy(PROGRAM);
        for name in [
            "configuration",
            "addresses",
            "destinations",
            "known_peers",
            "xsks_map",
            "xdp.frags",
            "classifier",
            "socket",
            "Apache-2.0",
        ] {
            assert!(object.contains(name), "{name}");
        }
    }
}
