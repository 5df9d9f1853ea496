//! Creating, re-attaching and removing TAP devices.
//!
//! The device is made inside the pod's network namespace under its final name: `/dev/net/tun` remembers the
//! namespace it was opened in, so no device has to be moved or renamed. It is persistent: when the agent dies it
//! stays with its addresses and routes, without carrier, and the next agent attaches to it again. Offloads, header
//! size and steering belong to the device and are set anew at each attachment.
//!
//! Costs about 10 ms a device (the kernel waits for RCU grace periods); on the control plane's threads only.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketType};

use super::vnet_header::VNET_HEADER_BYTES;
use super::{TapQueue, steering};
use crate::limits;
use crate::packet::PortIndex;
use crate::port::namespace::{NamespaceError, NamespaceHandle};

/// Why a TAP could not be made, attached or removed.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name is not one a network interface can have.
    #[error("{0:?} is no interface name: 1 to 15 bytes, no '/', '%', ':' or white space")]
    Name(String),
    /// The number of queues is zero or above [`limits::WORKERS`].
    #[error("a TAP needs 1 to {limit} queues, not {0}", limit = limits::WORKERS)]
    Queues(usize),
    /// The namespace could not be entered.
    #[error("cannot reach TAP {name}: {source}")]
    Namespace {
        /// Name of the device.
        name: String,
        /// Why not.
        source: NamespaceError,
    },
    /// An interface with this name exists, and a new one was asked for.
    #[error("an interface {0} exists already")]
    Exists(String),
    /// No interface with this name exists, and it was to be attached.
    #[error("there is no interface {0}")]
    Absent(String),
    /// A system call failed.
    #[error("cannot {attempt} for TAP {name}: {source}")]
    System {
        /// What was attempted.
        attempt: &'static str,
        /// Name of the device.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What the kernel was told that this side understands; a unit of a kind not offered never arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// UDP units (`TUN_F_USO4`, `TUN_F_USO6`; Linux 6.2 and later). TCP units and partial checksums always are.
    pub udp_segmentation: bool,
}

/// How to come by the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intent {
    Create,
    Attach,
    Either,
}

/// A TAP device with all its queues open.
#[derive(Debug)]
pub struct TapDevice {
    name: String,
    index: u32,
    offloads: Offloads,
    queues: Vec<OwnedFd>,
}

impl TapDevice {
    /// Creates a persistent TAP in `namespace`; it must not exist.
    ///
    /// # Errors
    /// [`TapError::Exists`] if any interface has the name; otherwise what failed. Nothing is left behind.
    pub fn create_in_namespace(namespace: &NamespaceHandle, name: &str, queues: usize) -> Result<Self, TapError> {
        inside(namespace, name, || Self::open_with(name, queues, Intent::Create))
    }

    /// Attaches to a persistent TAP that an earlier agent left in `namespace`.
    ///
    /// # Errors
    /// [`TapError::Absent`] if there is no such interface; otherwise what failed.
    pub fn attach_in_namespace(namespace: &NamespaceHandle, name: &str, queues: usize) -> Result<Self, TapError> {
        inside(namespace, name, || Self::open_with(name, queues, Intent::Attach))
    }

    /// Attaches to the TAP `name` in `namespace` if it exists, and creates it otherwise.
    ///
    /// # Errors
    /// What failed. A device that was created is removed again.
    pub fn open_in_namespace(namespace: &NamespaceHandle, name: &str, queues: usize) -> Result<Self, TapError> {
        inside(namespace, name, || Self::open_with(name, queues, Intent::Either))
    }

    /// As [`Self::open_in_namespace`], in the namespace of the calling thread: for the host's own port.
    ///
    /// # Errors
    /// What failed. A device that was created is removed again.
    pub fn open(name: &str, queues: usize) -> Result<Self, TapError> {
        Self::open_with(name, queues, Intent::Either)
    }

    /// The number of the interface `name` in `namespace`, whatever kind it is; `None` if there is none.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or the kernel did not answer.
    pub fn exists(namespace: &NamespaceHandle, name: &str) -> Result<Option<u32>, TapError> {
        inside(namespace, name, || interface_index(name))
    }

    /// Removes the TAP `name` from `namespace`: at once, or when the last queue somebody holds is closed. False if
    /// there was none; an interface of the name that is no such TAP is somebody else's and stays.
    ///
    /// # Errors
    /// If the kernel refused.
    pub fn remove_in_namespace(namespace: &NamespaceHandle, name: &str) -> Result<bool, TapError> {
        inside(namespace, name, || match interface_index(name)? {
            None => Ok(false),
            Some(_) => match open_queue(name, false) {
                // The driver's word for an interface of another driver or of another kind of its own.
                Err(TapError::System { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => Ok(false),
                opened => {
                    control(&opened?, libc::TUNSETPERSIST, 0, "unset persistence", name)?;
                    Ok(true)
                }
            },
        })
    }

    fn open_with(name: &str, queues: usize, intent: Intent) -> Result<Self, TapError> {
        if queues == 0 || queues > limits::WORKERS {
            return Err(TapError::Queues(queues));
        }
        let before = interface_index(name)?;
        match (intent, before) {
            (Intent::Create, Some(_)) => return Err(TapError::Exists(name.to_owned())),
            (Intent::Attach, None) => return Err(TapError::Absent(name.to_owned())),
            _ => {}
        }
        let first = open_queue(name, before.is_none())?;
        let offloads = set_offloads(&first, name)?;
        let header_bytes = VNET_HEADER_BYTES as libc::c_int;
        control_by_pointer(&first, libc::TUNSETVNETHDRSZ, &header_bytes, "set the header size", name)?;
        let mut files = vec![first];
        while files.len() < queues {
            files.push(open_queue(name, false)?);
        }
        steer(&files[0], name)?;
        let index = interface_index(name)?.ok_or_else(|| TapError::Absent(name.to_owned()))?;
        if before.is_some_and(|before| before != index) {
            return Err(TapError::Absent(name.to_owned()));
        }
        // Last, so that a device which could not be set up vanishes with its descriptors.
        control(&files[0], libc::TUNSETPERSIST, 1, "set persistence", name)?;
        Ok(Self { name: name.to_owned(), index, offloads, queues: files })
    }

    /// Name of the device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its interface number in its namespace.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What the kernel was told.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// The queues, in order: queue `n` receives the flows whose steering sum is `n` modulo their number.
    #[must_use]
    pub fn into_queues(self, port: PortIndex) -> Vec<TapQueue> {
        let Self { offloads, queues, .. } = self;
        queues.into_iter().enumerate().map(|(number, file)| TapQueue::new(port, number, file, offloads)).collect()
    }

    /// Removes the device.
    ///
    /// # Errors
    /// If the kernel refused, which it does not for a device it has just let us open.
    pub fn remove(self) -> Result<(), TapError> {
        match self.queues.first() {
            Some(file) => control(file, libc::TUNSETPERSIST, 0, "unset persistence", &self.name),
            None => Ok(()),
        }
    }
}

fn inside<T: Send>(
    namespace: &NamespaceHandle,
    name: &str,
    act: impl FnOnce() -> Result<T, TapError> + Send,
) -> Result<T, TapError> {
    namespace.enter(act).map_err(|source| TapError::Namespace { name: name.to_owned(), source })?
}

fn failed(attempt: &'static str, name: &str) -> impl FnOnce(io::Error) -> TapError {
    move |source| TapError::System { attempt, name: name.to_owned(), source }
}

fn check_name(name: &str) -> Result<(), TapError> {
    let forbidden = |byte: u8| matches!(byte, b'/' | b'%' | b':' | 0) || byte.is_ascii_whitespace();
    let dots = name == "." || name == "..";
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(forbidden) || dots {
        return Err(TapError::Name(name.to_owned()));
    }
    Ok(())
}

fn interface_index(name: &str) -> Result<Option<u32>, TapError> {
    check_name(name)?;
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)
        .map_err(|error| failed("open a socket", name)(error.into()))?;
    match rustix::net::netdevice::name_to_index(&socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(failed("look up the interface", name)(error.into())),
    }
}

fn open_queue(name: &str, exclusive: bool) -> Result<OwnedFd, TapError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(failed("open /dev/net/tun", name))?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    if exclusive {
        flags |= libc::IFF_TUN_EXCL;
    }
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    };
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *target = byte as libc::c_char;
    }
    match control_by_pointer(&file, libc::TUNSETIFF, &request, "attach a queue", name) {
        Err(TapError::System { source, .. }) if exclusive && source.raw_os_error() == Some(libc::EBUSY) => {
            Err(TapError::Exists(name.to_owned()))
        }
        outcome => outcome.map(|()| file.into()),
    }
}

fn set_offloads(file: &OwnedFd, name: &str) -> Result<Offloads, TapError> {
    let always = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let with_udp = always | libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let attempt = "set offloads";
    if control(file, libc::TUNSETOFFLOAD, libc::c_ulong::from(with_udp), attempt, name).is_ok() {
        return Ok(Offloads { udp_segmentation: true });
    }
    control(file, libc::TUNSETOFFLOAD, libc::c_ulong::from(always), attempt, name)?;
    Ok(Offloads { udp_segmentation: false })
}

fn steer(file: &OwnedFd, name: &str) -> Result<(), TapError> {
    let program = steering::load().map_err(failed("load the steering program", name))?;
    control_by_pointer(file, libc::TUNSETSTEERINGEBPF, &program.as_raw_fd(), "set the steering program", name)
}

/// An ioctl of the TUN driver that takes a number.
fn control(
    file: &OwnedFd,
    request: libc::Ioctl,
    value: libc::c_ulong,
    attempt: &'static str,
    name: &str,
) -> Result<(), TapError> {
    // SAFETY: these requests take their argument by value and touch no memory of ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, value) };
    if result < 0 { Err(failed(attempt, name)(io::Error::last_os_error())) } else { Ok(()) }
}

/// An ioctl of the TUN driver that reads a value; TUNSETIFF also writes back, into a copy nobody looks at.
fn control_by_pointer<F: AsRawFd, T: Copy>(
    file: &F,
    request: libc::Ioctl,
    value: &T,
    attempt: &'static str,
    name: &str,
) -> Result<(), TapError> {
    let mut copy = *value;
    // SAFETY: the copy lives until the call returns and is at least as large as what each of these requests reads
    // or writes: a c_int, or an ifreq for TUNSETIFF.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut copy) };
    if result < 0 { Err(failed(attempt, name)(io::Error::last_os_error())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_expand_or_refuse_are_refused_here() {
        for wrong in ["", "tap%d", "a/b", "a b", "..", "sixteen-bytes-xx", "nul\0"] {
            assert!(matches!(check_name(wrong), Err(TapError::Name(_))), "{wrong:?}");
        }
        assert!(check_name("fifteen-bytes-x").is_ok());
        assert!(matches!(TapDevice::open("tap0", 0), Err(TapError::Queues(0))));
        assert!(matches!(TapDevice::open("tap0", 17), Err(TapError::Queues(17))));
    }
}
