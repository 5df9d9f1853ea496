//! The CNI plugin of Millrace: a thin, blocking client of the node agent.
//!
//! A runtime starts this program once for each verb and waits for it, so it is std and serde_json only: no
//! executor, no argument parser, no netlink. It checks what the runtime gave it, sends one request over a unix
//! socket, and words the answer as the version of the specification that the runtime speaks. All work on the
//! network is done by the agent.
//!
//! Order of reading: [`run()`] (the verbs), [`environment`], [`spec`], [`capabilities`], [`protocol`], [`agent_client`].

#![forbid(unsafe_code)]

pub mod agent_client;
pub mod capabilities;
pub mod configuration;
pub mod environment;
pub mod pending;
pub mod protocol;
mod run;
pub mod spec;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

pub use run::run;

/// The program: reads the process environment and standard input, prints the result or the error of the
/// specification on standard output, logs to standard error. Exit code 0 on success, 1 on an error.
#[must_use]
pub fn main() -> ExitCode {
    let environment = environment::Environment::new(std::env::vars_os());
    let stdin = std::io::stdin();
    let mut stdout = std::io::stdout().lock();
    let mut log = std::io::stderr();
    // At a terminal nobody will send a configuration: somebody is asking for the version by hand.
    let code = if stdin.is_terminal() {
        run(&environment, &mut std::io::empty(), &mut stdout, &mut log)
    } else {
        run(&environment, &mut stdin.lock(), &mut stdout, &mut log)
    };
    if stdout.flush().is_err() {
        return ExitCode::FAILURE;
    }
    ExitCode::from(code)
}
