//! The control plane of Millrace, in the order a change of configuration travels.
//!
//! Objects come in from a [`store`], are read by [`observe`] into the plain types of [`cluster`], [`plan`] says what
//! this node needs, [`compile`] turns that into the engine's tables and [`publish`] puts them into force.
//! [`reconcile`] runs the path; each step is a function of the present state, never of how it came about. [`agent`]
//! puts it all together on a node.

#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod cli;
pub mod cluster;
pub mod cni_server;
pub mod compile;
pub mod configuration;
pub mod demo;
pub mod events;
pub mod health_check;
pub mod installation;
pub mod ipam;
pub mod kernel;
pub mod metrics;
pub mod observe;
mod plain_http;
pub mod plan;
pub mod policy_preview;
pub mod privileges;
pub mod problem;
pub mod publish;
pub mod receipts;
pub mod reconcile;
pub mod replay;
pub mod stable_hash;
pub mod store;

use std::path::Path;
use std::process::ExitCode;

/// The `millrace` program, and `millrace-cni` when it is called by that name: one file can be installed as both.
#[must_use]
pub fn main() -> ExitCode {
    let called = std::env::args_os().next();
    let name = called.as_deref().and_then(|path| Path::new(path).file_name());
    if name.is_some_and(|name| name == "millrace-cni") { millrace_cni::main() } else { cli::main() }
}
