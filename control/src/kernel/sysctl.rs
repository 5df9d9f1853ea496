//! Kernel settings under `/proc/sys/net`, which show those of the namespace of the thread that opens them.
//!
//! Container runtimes mount `/proc/sys` read-only where a container is not privileged, and let nothing be mounted over it.
//! The same directory of the host, mounted somewhere else, can be written; which namespace's settings it shows is the
//! thread's matter all the same. So what the first of [`PLACES`] refuses as read-only is written by the second.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::{KernelError, NamespaceHandle};

/// Where the settings are; the second is where the DaemonSet mounts the host's.
const PLACES: [&str; 2] = ["/proc/sys/net", "/host/proc/sys/net"];

/// Writes settings in `namespace`: pairs of a path below `/proc/sys/net`, such as `ipv6/conf/eth0/accept_ra`, and a
/// value. A setting the kernel does not have is passed over if `optional`.
///
/// # Errors
/// The first setting that could not be written.
pub fn write(namespace: &NamespaceHandle, settings: &[(String, &str)], optional: bool) -> Result<(), KernelError> {
    namespace.enter(|| settings.iter().try_for_each(|(path, value)| write_one(path, value, optional)))?
}

/// Writes settings in the namespace of the calling thread, as [`write`] does, but only those that read otherwise.
///
/// # Errors
/// The first setting that could not be written.
pub fn write_own(settings: &[(String, &str)], optional: bool) -> Result<(), KernelError> {
    let differs = |(path, value): &&(String, &str)| {
        fs::read_to_string(format!("{}/{path}", PLACES[0])).map_or(true, |present| present.trim_end() != *value)
    };
    settings.iter().filter(differs).try_for_each(|(path, value)| write_one(path, value, optional))
}

/// Reads a setting in `namespace`, without the line's end.
///
/// # Errors
/// If there is none, or the namespace cannot be entered.
pub fn read(namespace: &NamespaceHandle, path: &str) -> Result<String, KernelError> {
    let text = namespace.enter(|| fs::read_to_string(format!("{}/{path}", PLACES[0])))?;
    text.map(|text| text.trim_end().to_owned()).map_err(KernelError::file(format!("read setting {path}")))
}

/// Reads a setting in the namespace of the calling thread, without the line's end.
///
/// # Errors
/// If there is none.
pub fn read_own(path: &str) -> Result<String, KernelError> {
    let text = fs::read_to_string(format!("{}/{path}", PLACES[0]));
    text.map(|text| text.trim_end().to_owned()).map_err(KernelError::file(format!("read setting {path}")))
}

fn write_one(path: &str, value: &str, optional: bool) -> Result<(), KernelError> {
    let [first, second] = PLACES.map(|place| format!("{place}/{path}"));
    let written = match fs::write(&first, value) {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem && Path::new(PLACES[1]).exists() => {
            fs::write(second, value)
        }
        outcome => outcome,
    };
    match written {
        Err(error) if optional && error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(KernelError::file(format!("write {value} to setting {path}"))),
    }
}
