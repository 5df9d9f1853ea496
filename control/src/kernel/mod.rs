//! The node's kernel as the control plane sees it: namespaces, links, addresses, routes and neighbours.
//!
//! Everything goes over one blocking rtnetlink socket, [`Netlink`]. A socket belongs to the network namespace it was
//! opened in, so work in a pod's namespace means opening a socket there and using it from the own thread; only files
//! under `/proc/sys` have to be written inside. Nothing here is asynchronous: calls take tens of microseconds and
//! are made by threads that exist for them, never by a worker.
//!
//! Each error says what was attempted, with the object's name, and what the kernel answered.
//! Sources: rtnetlink(7), include/uapi/linux/{rtnetlink,if_link,neighbour}.h.

pub mod addresses;
pub mod capabilities;
pub mod guarded_ports;
pub mod host_interface;
pub mod links;
pub mod monitor;
pub mod namespace;
pub mod neighbours;
mod netlink;
pub mod network_interface;
pub mod own_ports;
pub mod pod_interface;
pub mod reserved_ports;
pub mod routes;
pub mod sysctl;
pub mod translated_flows;
pub mod virtual_links;

use std::io;

pub use guarded_ports::GuardedPorts;
pub use host_interface::{HostInterface, configure_host_interface};
pub use links::{Link, LinkChange, LinkStatistics};
pub use millrace_engine::port::namespace::{NamespaceError, NamespaceHandle};
pub use monitor::{Change, Monitor};
pub use namespace::Namespace;
pub use neighbours::{Neighbour, NeighbourState};
pub use netlink::Netlink;
pub use network_interface::{NetworkInterface, configure_network_interface};
pub use own_ports::OwnPorts;
pub use pod_interface::{GATEWAY_IPV4, GATEWAY_IPV6, PodInterface, configure_pod_interface};
pub use reserved_ports::ReservedPorts;
pub use routes::{HostRoute, Route, RouteLookup};

/// Why the kernel's network configuration could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel refused.
    #[error("cannot {attempt}: {source}{}", reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default())]
    Refused {
        /// What was attempted, with the names of the objects.
        attempt: String,
        /// The kernel's error number.
        source: io::Error,
        /// The kernel's own words, if it gave any.
        reason: Option<String>,
    },
    /// The kernel's answer could not be read.
    #[error("cannot {attempt}: the kernel's answer is malformed: {reason}")]
    Answer {
        /// What was attempted.
        attempt: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// There is no link with this name in the namespace.
    #[error("there is no network interface {0}")]
    NoLink(String),
    /// A file or mount could not be handled.
    #[error("cannot {attempt}: {source}")]
    File {
        /// What was attempted, with the path.
        attempt: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A namespace could not be entered or made.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

impl KernelError {
    /// The kernel's error number, if it answered with one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            KernelError::Refused { source, .. } | KernelError::File { source, .. } => source.raw_os_error(),
            KernelError::Answer { .. } | KernelError::NoLink(_) | KernelError::Namespace(_) => None,
        }
    }

    /// Whether the object spoken of does not exist: what makes a deletion succeed.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, KernelError::NoLink(_))
            || matches!(self.errno(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL))
    }

    /// Whether the object spoken of exists already.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    fn file(attempt: String) -> impl FnOnce(io::Error) -> KernelError {
        move |source| KernelError::File { attempt, source }
    }
}

/// Turns "there is none" into `Ok(false)`: deletions may be repeated.
fn unless_absent(outcome: Result<(), KernelError>) -> Result<bool, KernelError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}
