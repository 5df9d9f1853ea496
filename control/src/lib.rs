//! The control plane of Millrace.

#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod cni_server;
pub mod configuration;

use std::path::Path;
use std::process::ExitCode;

/// The `millrace` program, and `millrace-cni` when it is called by that name: one file can be installed as both.
#[must_use]
pub fn main() -> ExitCode {
    let called = std::env::args_os().next();
    let name = called.as_deref().and_then(|path| Path::new(path).file_name());
    if name.is_some_and(|name| name == "millrace-cni") { millrace_cni::main() } else { cli::main() }
}
