//! The XDP program in front of an interface's AF_XDP sockets: loading, attaching, telling it what is ours.
//!
//! The program (steering.bpf.c) is compiled in; aya parses it and makes its maps, which takes about 50 ms, so it
//! runs off the packet threads, once an interface. The link is made by our own call: aya falls back to an attachment
//! by netlink where the kernel refuses a link, and such an attachment outlives a killed process and leaves a node
//! whose tunnel traffic goes nowhere. A kernel that has no XDP links (before 5.9) is refused. The link and with it the
//! program end when this value is dropped or the process dies.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, XskMap};
use aya::programs::Xdp;
use thiserror::Error;

use super::sys;

static PROGRAM: &[u8] = aya::include_bytes_aligned!("steering.bpf.o");

const BUSY_RETRY_TIME: Duration = Duration::from_secs(1);
const BUSY_RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Entries of the program's maps; the same numbers stand in steering.bpf.c.
const LOCAL_ADDRESSES: usize = 64;
const KNOWN_PEERS: usize = 16_384;

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver, before a packet becomes an skb.
    Native,
    /// In the kernel's stack, with any driver, at the cost of an skb for each packet.
    Generic,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            AttachMode::Native => "native",
            AttachMode::Generic => "generic",
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

/// What of VXLAN is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VxlanRules {
    /// UDP port; zero steers nothing.
    pub port: u16,
    /// This node's tunnel addresses; at most 64.
    pub local: HashSet<IpAddr>,
    /// The other nodes' tunnel addresses; at most 16,384.
    pub peers: HashSet<IpAddr>,
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
    /// More addresses than the program's tables hold.
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

/// `struct address` of steering.bpf.c: family 4 or 6 in host order, then the address.
type AddressKey = [u8; 20];

fn address_key(address: IpAddr) -> AddressKey {
    let mut key = [0; 20];
    match address {
        IpAddr::V4(address) => {
            key[..4].copy_from_slice(&4u32.to_ne_bytes());
            key[4..8].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            key[..4].copy_from_slice(&6u32.to_ne_bytes());
            key[4..].copy_from_slice(&address.octets());
        }
    }
    key
}

/// `struct configuration` of steering.bpf.c.
fn configuration(port: u16, everything: bool) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, u8::from(everything), 0]
}

/// The steering program of one interface; detached when dropped.
pub struct Steering {
    interface: String,
    mode: AttachMode,
    rules: VxlanRules,
    everything: bool,
    configuration: Array<MapData, [u8; 4]>,
    local: HashMap<MapData, AddressKey, u8>,
    peers: HashMap<MapData, AddressKey, u8>,
    sockets: XskMap<MapData>,
    link: OwnedFd,
    _program: Ebpf,
}

impl Steering {
    /// Steers VXLAN as `rules` say; everything else passes to the kernel. Blocks for up to a second while another
    /// program is on the interface.
    ///
    /// # Errors
    /// [`SteeringError`], naming the interface.
    pub fn vxlan(interface: &str, rules: VxlanRules, preference: AttachPreference) -> Result<Self, SteeringError> {
        Self::attach(interface, rules, false, preference)
    }

    /// Steers every frame: for ports that belong to the switch alone.
    ///
    /// # Errors
    /// [`SteeringError`], naming the interface.
    pub fn everything(interface: &str, preference: AttachPreference) -> Result<Self, SteeringError> {
        Self::attach(interface, VxlanRules::default(), true, preference)
    }

    fn attach(
        interface: &str,
        rules: VxlanRules,
        everything: bool,
        preference: AttachPreference,
    ) -> Result<Self, SteeringError> {
        let ifindex = sys::interface_index(interface)
            .map_err(|error| SteeringError::Interface { interface: interface.to_owned(), error })?;
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| SteeringError::Load {
            interface: interface.to_owned(),
            error,
        };
        let mut program = Ebpf::load(PROGRAM).map_err(|error| failed(error.into()))?;
        let entry: &mut Xdp = program
            .program_mut("millrace_steering")
            .ok_or_else(|| failed("the object has no program millrace_steering".into()))?
            .try_into()
            .map_err(|error: aya::programs::ProgramError| failed(error.into()))?;
        entry.load().map_err(|error| failed(error.into()))?;
        let descriptor = entry.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(|error| failed(error.into()))?;
        let mut map = |name: &'static str| {
            program.take_map(name).ok_or_else(|| failed(format!("the object has no map {name}").into()))
        };
        let wrong = |error: MapError| failed(error.into());
        let mut configuration_map = Array::try_from(map("configuration")?).map_err(wrong)?;
        let local = HashMap::try_from(map("local_addresses")?).map_err(wrong)?;
        let peers = HashMap::try_from(map("known_peers")?).map_err(wrong)?;
        let sockets = XskMap::try_from(map("xsks_map")?).map_err(wrong)?;
        configuration_map.set(0, configuration(0, everything), 0).map_err(wrong)?;
        let (link, mode) = make_link(interface, descriptor.as_fd(), ifindex, preference)?;
        let mut steering = Self {
            interface: interface.to_owned(),
            mode,
            rules: VxlanRules::default(),
            everything,
            configuration: configuration_map,
            local,
            peers,
            sockets,
            link,
            _program: program,
        };
        steering.set_rules(&rules)?;
        Ok(steering)
    }

    /// Where the program runs.
    #[must_use]
    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// What is steered at this moment.
    #[must_use]
    pub fn rules(&self) -> &VxlanRules {
        &self.rules
    }

    /// Whether the program is still attached; not if the interface is gone.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        matches!(sys::xdp_link_interface(self.link.as_fd()), Ok(Some(ifindex)) if ifindex != 0)
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
    pub fn set_rules(&mut self, rules: &VxlanRules) -> Result<(), SteeringError> {
        self.check_size("local tunnel addresses", rules.local.len(), LOCAL_ADDRESSES)?;
        self.check_size("tunnel peers", rules.peers.len(), KNOWN_PEERS)?;
        let changed_local = self.map_error("local tunnel addresses");
        replace(&mut self.local, &mut self.rules.local, &rules.local).map_err(changed_local)?;
        let changed_peers = self.map_error("tunnel peers");
        replace(&mut self.peers, &mut self.rules.peers, &rules.peers).map_err(changed_peers)?;
        if self.rules.port != rules.port {
            let changed_port = self.map_error("the VXLAN port");
            self.configuration.set(0, configuration(rules.port, self.everything), 0).map_err(changed_port)?;
            self.rules.port = rules.port;
        }
        Ok(())
    }

    /// Replaces the known peers only.
    ///
    /// # Errors
    /// As [`Self::set_rules`].
    pub fn set_peers(&mut self, peers: HashSet<IpAddr>) -> Result<(), SteeringError> {
        let rules = VxlanRules { peers, ..self.rules.clone() };
        self.set_rules(&rules)
    }

    fn check_size(&self, what: &'static str, count: usize, limit: usize) -> Result<(), SteeringError> {
        if count > limit {
            return Err(SteeringError::TooMany { interface: self.interface.clone(), what, count, limit });
        }
        Ok(())
    }
}

/// Brings `map` from `present` to `wanted`, keeping `present` true after each step. Removals come first, since the
/// map may be too full for both sets.
fn replace(
    map: &mut HashMap<MapData, AddressKey, u8>,
    present: &mut HashSet<IpAddr>,
    wanted: &HashSet<IpAddr>,
) -> Result<(), MapError> {
    for address in difference(present, wanted) {
        map.remove(&address_key(address))?;
        present.remove(&address);
    }
    for address in difference(wanted, present) {
        map.insert(address_key(address), 1, 0)?;
        present.insert(address);
    }
    Ok(())
}

fn difference<T: Copy + Eq + Hash>(left: &HashSet<T>, right: &HashSet<T>) -> Vec<T> {
    left.difference(right).copied().collect()
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
            AttachMode::Generic => sys::XDP_FLAGS_SKB_MODE,
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

fn is_occupied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_the_program() {
        let four = address_key(IpAddr::from([192, 0, 2, 1]));
        assert_eq!(four[..8], [&4u32.to_ne_bytes()[..], &[192, 0, 2, 1][..]].concat());
        assert!(four[8..].iter().all(|byte| *byte == 0));
        let six = address_key(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]));
        assert_eq!(six[..8], [&6u32.to_ne_bytes()[..], &[0x20, 0x01, 0x0d, 0xb8][..]].concat());
        assert_eq!(configuration(8472, false), [0x21, 0x18, 0, 0]);
        assert_eq!(configuration(0, true), [0, 0, 1, 0]);
    }

    #[test]
    fn the_object_is_whole() {
        let object = String::from_utf8_lossy(PROGRAM);
        for name in ["configuration", "local_addresses", "known_peers", "xsks_map", "xdp.frags", "Apache-2.0"] {
            assert!(object.contains(name), "{name}");
        }
    }
}
