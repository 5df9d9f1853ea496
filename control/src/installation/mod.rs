//! Millrace on a node and off it again: the files that the container runtime looks for, and what agents left in the kernel.
//!
//! Whoever finds a network configuration calls the plugin it names, and that asks the agent. So the plugin comes first
//! ([`plugin`]), then the agent, and the network configuration ([`network_configuration`]) only when pods can be plugged in;
//! removal ([`removal`]) goes the other way round. A restart of the agent takes nothing away: a runtime that lost its
//! configuration would call the node unready. Each file appears whole or not at all ([`whole_file`]).
//!
//! Used by `millrace install` and `millrace uninstall`, and by the agent where its file names the runtime's directory.

pub mod network_configuration;
pub mod plugin;
pub mod removal;
#[cfg(test)]
mod tests;
mod whole_file;

use std::io;
use std::path::{Path, PathBuf};

/// Where container runtimes look for plugins.
pub const PLUGIN_DIRECTORY: &str = "/opt/cni/bin";
/// Where container runtimes look for network configurations.
pub const CONFIGURATION_DIRECTORY: &str = "/etc/cni/net.d";

/// Why a file of the host is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The directory is not there, or is none.
    #[error("{} is no directory: {source}; the container runtime must look for files there, so it is not made", path.display())]
    NoDirectory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What was to be copied cannot be read.
    #[error("could not read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What was to be copied has no content.
    #[error("{} is empty", .0.display())]
    Empty(PathBuf),
    /// The file cannot be written; what stood there before still stands there.
    #[error("could not {attempt} {}: {source}", path.display())]
    Write {
        /// What was tried: "write", "replace".
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl InstallError {
    fn write(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
        let path = path.to_owned();
        move |source| InstallError::Write { attempt, path, source }
    }
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// It was there already, with this content.
    Unchanged,
    /// It was written, or replaced.
    Written,
}
