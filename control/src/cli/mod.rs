//! The command line: what an operator types.
//!
//! Exit codes, for all commands:
//!
//! | code | means |
//! |---|---|
//! | 0 | done |
//! | 1 | failed; standard error says why |
//! | 2 | the command line is wrong |
//! | 3 | no agent is reachable on the socket |
//! | 4 | `demo`: everything works, but a goal of speed was missed on this machine at this time |
//! | 5 | `check`: something is not as it should be; `policy diff --exit-code`: a verdict would change; `replay --against` and `--expect`: a packet's fate differs; standard output says what |
//!
//! Results go to standard output, as a table or with `-o json` as the very document of the API; everything else
//! goes to standard error.

mod agent;
mod check;
mod demo;
mod install;
mod policy;
mod replay;
mod show;
mod table;
mod top;
mod trace;

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::api::client::{ApiError, Client};

/// Exit code when no agent is reachable.
const NOT_REACHABLE: u8 = 3;

/// Exit code of a demo that works, but missed a goal of speed.
const GOAL_MISSED: u8 = 4;

/// Exit code of a check that found something.
const FOUND: u8 = 5;

/// Userspace virtual switch for Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(
    name = "millrace",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 no agent reachable, 4 demo missed a goal of speed, 5 check, policy diff --exit-code, replay --against or --expect found something."
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node agent, or print or check its configuration
    Agent(agent::AgentOptions),
    /// Look for what should not be: lost addresses
    Check(check::CheckOptions),
    /// Build a two-node cluster on this machine, check and measure it, and take it away again
    Demo(demo::DemoOptions),
    /// Put the plugin and, once an agent can plug pods in, the network configuration where the container runtime looks
    Install(install::InstallOptions),
    /// Ask what policies would do, and what they let through
    Policy(policy::PolicyOptions),
    /// Send captures through the engine and the objects, offline and without root
    Replay(replay::ReplayArguments),
    /// Show what the agent of this node knows and counts
    Show(show::ShowOptions),
    /// Watch what workers, ports and pods cost, interval by interval
    Top(top::TopOptions),
    /// Follow an imagined packet through the live tables, stage by stage
    Trace(trace::TraceOptions),
    /// Restore the node: take away the network configuration, the plugin, and what agents left in the kernel
    Uninstall(install::UninstallOptions),
}

/// How to reach the agent and how to print.
#[derive(Debug, Args)]
struct Output {
    /// How to print the result
    #[arg(short = 'o', long = "output", value_enum, default_value_t, global = true)]
    format: Format,
    /// The agent's socket
    #[arg(long, value_name = "PATH", default_value = millrace_cni::configuration::DEFAULT_SOCKET, global = true)]
    socket: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: the documents of the API
    Json,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match CommandLine::parse().command {
        Command::Agent(options) => agent::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Install(options) => install::install(&options),
        Command::Policy(options) => policy::run(&options),
        Command::Replay(options) => replay::run(&options),
        Command::Show(options) => show::run(&options),
        Command::Top(options) => top::run(&options),
        Command::Trace(options) => trace::run(&options),
        Command::Uninstall(options) => install::uninstall(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Prints an error with its causes. Standard error may be closed; then nobody wants to know.
fn report(error: &anyhow::Error) {
    let _ = writeln!(io::stderr(), "millrace: {error:#}");
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ApiError>() {
        Some(ApiError::NotReachable(_)) => NOT_REACHABLE,
        _ if error.is::<demo::GoalMissed>() => GOAL_MISSED,
        _ if error.is::<check::Found>() => FOUND,
        _ => 1,
    }
}

impl Output {
    fn client(&self) -> Client {
        Client::new(self.socket.clone())
    }

    /// Prints the document, as itself or as the text `table` makes of it.
    fn print<Report: Serialize>(&self, report: &Report, table: impl FnOnce(&Report) -> String) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Table => table(report),
            Format::Json => serde_json::to_string_pretty(report)? + "\n",
        };
        print_text(&text)
    }
}

/// Prints on standard output. That the reader has seen enough (`millrace show flows | head`) is no failure.
fn print_text(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }
}
