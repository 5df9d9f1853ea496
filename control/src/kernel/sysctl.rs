//! Kernel settings under `/proc/sys/net`, which show those of the namespace of the thread that opens them.

use std::fs;

use super::{KernelError, NamespaceHandle};

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
        fs::read_to_string(format!("/proc/sys/net/{path}")).map_or(true, |present| present.trim_end() != *value)
    };
    settings.iter().filter(differs).try_for_each(|(path, value)| write_one(path, value, optional))
}

/// Reads a setting in `namespace`, without the line's end.
///
/// # Errors
/// If there is none, or the namespace cannot be entered.
pub fn read(namespace: &NamespaceHandle, path: &str) -> Result<String, KernelError> {
    let text = namespace.enter(|| fs::read_to_string(format!("/proc/sys/net/{path}")))?;
    text.map(|text| text.trim_end().to_owned()).map_err(KernelError::file(format!("read setting {path}")))
}

/// Reads a setting in the namespace of the calling thread, without the line's end.
///
/// # Errors
/// If there is none.
pub fn read_own(path: &str) -> Result<String, KernelError> {
    let text = fs::read_to_string(format!("/proc/sys/net/{path}"));
    text.map(|text| text.trim_end().to_owned()).map_err(KernelError::file(format!("read setting {path}")))
}

fn write_one(path: &str, value: &str, optional: bool) -> Result<(), KernelError> {
    match fs::write(format!("/proc/sys/net/{path}"), value) {
        Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(KernelError::file(format!("write {value} to setting {path}"))),
    }
}
