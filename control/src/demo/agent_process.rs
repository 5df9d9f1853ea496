//! A node's agent as a child process: this very program as `millrace agent --config FILE`, started inside the node's
//! network namespace.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use millrace_engine::port::namespace::NamespaceHandle;
use rustix::process::{Pid, Signal};

use super::interruption::Interruption;
use crate::api::client::Client;
use crate::api::model::StatusReport;

/// How long an agent may take to have its tables in force.
const START_TIME: Duration = Duration::from_secs(20);
/// How long it may take to end.
const END_TIME: Duration = Duration::from_secs(5);
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Lines of its log that are shown when it fails.
const LOG_LINES: usize = 15;

/// A running agent; ended when dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct AgentProcess {
    node: String,
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    keep: bool,
}

impl AgentProcess {
    /// Starts it with files named after the node in `directory`; its workers run on these processors.
    pub(super) fn start(
        node: &str,
        directory: &Path,
        namespace: &NamespaceHandle,
        cpus: &[usize],
    ) -> anyhow::Result<AgentProcess> {
        let file = |suffix: &str| directory.join(format!("{node}.{suffix}"));
        let (configuration, socket, log) = (file("toml"), file("sock"), file("log"));
        fs::write(&configuration, text_of_configuration(node, directory, cpus))?;
        let output = File::create(&log)?;
        let mut command = Command::new(std::env::current_exe().context("cannot find the program's own file")?);
        command.arg("agent").arg("--config").arg(&configuration);
        // A group of its own: Ctrl-C at the terminal is for the demo, which ends its agents in order.
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child =
            namespace.enter(|| command.spawn())?.with_context(|| format!("cannot start the agent of {node}"))?;
        Ok(AgentProcess { node: node.to_owned(), child, socket, log, keep: false })
    }

    /// Waits until it serves its socket, has an uplink and tables in force.
    pub(super) fn wait_until_ready(&mut self, interruption: &Interruption) -> anyhow::Result<()> {
        let end = Instant::now() + START_TIME;
        loop {
            interruption.check()?;
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent of node {} ended with {status}; {}", self.node, self.end_of_log());
            }
            let last = match self.client().show::<StatusReport>("status") {
                Ok(status) if status.generation > 0 && status.uplinks > 0 => return Ok(()),
                Ok(status) => describe(&status),
                Err(error) => format!("{error}"),
            };
            if Instant::now() >= end {
                bail!("the agent of node {} is not ready: {last}; {}", self.node, self.end_of_log());
            }
            interruption.pause(LOOK_PAUSE)?;
        }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn client(&self) -> Client {
        Client::new(self.socket.clone())
    }

    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Leaves it running when this value is dropped.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }

    fn end_of_log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES)..];
        if shown.is_empty() {
            "it wrote no log".to_owned()
        } else {
            format!("its log ends with:\n{}", shown.join("\n"))
        }
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // The child is ours and not waited for, so its number is still its own.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let end = Instant::now() + END_TIME;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= end {
                super::say(&format!("the agent of node {} does not end and is killed", self.node));
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }
}

fn describe(status: &StatusReport) -> String {
    let problems: Vec<_> = status.problems.iter().map(|problem| problem.message.as_str()).collect();
    format!("generation {}, {} ports, problems: {problems:?}", status.generation, status.ports)
}

fn text_of_configuration(node: &str, directory: &Path, cpus: &[usize]) -> String {
    let directory = directory.display();
    format!(
        "node = \"{node}\"\n\
         objects_directory = \"{directory}/objects\"\n\
         state_directory = \"{directory}/{node}.state\"\n\
         socket = \"{directory}/{node}.sock\"\n\
         workers = {}\n\
         worker_cpus = {cpus:?}\n",
        cpus.len()
    )
}
