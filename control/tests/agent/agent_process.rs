//! A node's agent: the real program as a child process, inside the node's namespace.

use std::fmt::Debug;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use millrace_control::api::client::Client;
use millrace_control::api::model::{RouteReport, StatusReport};
use millrace_control::kernel::NamespaceHandle;
use rustix::process::{Pid, Signal};
use serde::de::DeserializeOwned;

use crate::directory::Directory;

/// How long an agent may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running agent; ended when dropped. After a failed test it first prints what it knew.
pub(crate) struct Agent {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

/// What differs between agents of tests.
#[derive(Clone, Copy)]
pub(crate) struct AgentOptions {
    /// Worker threads.
    pub(crate) workers: usize,
    /// Whether to wait for an uplink.
    pub(crate) uplink: bool,
    /// What else stands in its configuration.
    pub(crate) more: &'static str,
    /// Words before the program's: what takes rights from it.
    pub(crate) under: &'static [&'static str],
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self { workers: 1, uplink: true, more: "", under: &[] }
    }
}

impl Agent {
    /// Starts the agent of `node` and waits until its tables are in force.
    pub(crate) fn start(
        node: &str,
        directory: &Directory,
        namespace: &NamespaceHandle,
        options: AgentOptions,
    ) -> Agent {
        let file = |suffix: &str| directory.file(&format!("{node}.{suffix}"));
        let shown = directory.path().display();
        let configuration = format!(
            "node = \"{node}\"\nobjects_directory = \"{shown}/objects\"\nstate_directory = \"{shown}/{node}.state\"\n\
             socket = \"{shown}/{node}.sock\"\nworkers = {}\n{}\n",
            options.workers, options.more
        );
        // Where it is there already it is not written again: the disk may be full.
        if fs::read_to_string(file("toml")).ok().as_ref() != Some(&configuration) {
            fs::write(file("toml"), configuration).expect("configuration");
        }
        let log = File::options().create(true).append(true).open(file("log")).expect("log");
        let words = [options.under, &[env!("CARGO_BIN_EXE_millrace"), "agent", "--config"]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(file("toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        let child = namespace.enter(|| command.spawn()).expect("entered").expect("agent");
        let mut agent = Agent { child, socket: file("sock"), log: file("log") };
        agent.wait_until_ready(options);
        agent
    }

    /// Starts the successor of this agent, and waits until it has taken over: this one has ended by itself then.
    pub(crate) fn succeeded(
        mut self,
        node: &str,
        directory: &Directory,
        namespace: &NamespaceHandle,
        options: AgentOptions,
    ) -> Agent {
        let log = File::options().append(true).open(&self.log).expect("log");
        let mut command = successor(node, directory);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        let child = namespace.enter(|| command.spawn()).expect("entered").expect("agent");
        let mut next = Agent { child, socket: self.socket.clone(), log: self.log.clone() };
        let end = Instant::now() + 2 * PATIENCE;
        loop {
            if let Some(ended) = self.child.try_wait().expect("child") {
                assert!(ended.success(), "the agent before ended with {ended:?}");
                break;
            }
            let ended = next.child.try_wait().expect("child");
            assert!(ended.is_none(), "the successor ended with {ended:?}");
            assert!(Instant::now() < end, "nobody took over");
            std::thread::sleep(Duration::from_millis(5));
        }
        next.wait_until_ready(options);
        next
    }

    /// Starts a successor that is refused; what it says.
    pub(crate) fn refused(node: &str, directory: &Directory, namespace: &NamespaceHandle) -> String {
        let mut command = successor(node, directory);
        let output = namespace.enter(|| command.output()).expect("entered").expect("agent");
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn wait_until_ready(&mut self, options: AgentOptions) {
        let ready = |status: &StatusReport| status.generation > 0 && (!options.uplink || status.uplinks > 0);
        let end = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().expect("child");
            assert!(ended.is_none(), "the agent ended with {ended:?}");
            let status = self.client().show::<StatusReport>("status");
            if status.as_ref().is_ok_and(ready) {
                return;
            }
            assert!(Instant::now() < end, "the agent is not ready: {status:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A client of its API.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.socket.clone())
    }

    /// Its status now.
    pub(crate) fn status(&self) -> StatusReport {
        self.client().show("status").expect("status")
    }

    /// Waits until its status is as wanted.
    pub(crate) fn wait_for_status(&self, wanted: impl Fn(&StatusReport) -> bool) -> StatusReport {
        self.wait_for("status", wanted)
    }

    /// Waits until its routes are as wanted.
    pub(crate) fn wait_for_routes(&self, wanted: impl Fn(&[RouteReport]) -> bool) -> Vec<RouteReport> {
        self.wait_for("routes", |routes: &Vec<RouteReport>| wanted(routes))
    }

    fn wait_for<Report: DeserializeOwned + Debug>(&self, what: &str, wanted: impl Fn(&Report) -> bool) -> Report {
        let end = Instant::now() + PATIENCE;
        loop {
            let report = self.client().show(what).expect("report");
            if wanted(&report) {
                return report;
            }
            assert!(Instant::now() < end, "{what} does not become as wanted: {report:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// That it lost no frame and knows of no problem.
    pub(crate) fn assert_sound(&self) {
        let status = self.status();
        assert_eq!((status.unaccounted_frames, &status.problems), (0, &Vec::new()), "{status:#?}");
    }

    /// Runs the real program with these words against this agent.
    pub(crate) fn program(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        command.args(words).arg("--socket").arg(&self.socket).stdin(Stdio::null());
        command.output().expect("program")
    }

    /// Its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("child").is_some()
    }

    /// Kills it, as the kernel would when memory runs out.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }
}

/// The program as the successor of the agent that runs on `node`.
fn successor(node: &str, directory: &Directory) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.args(["agent", "--takeover", "--config"]).arg(directory.file(&format!("{node}.toml")));
    command
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let client = self.client();
            eprintln!("{:?}", client.show::<StatusReport>("status"));
            for what in ["drops", "ports", "neighbours", "routes"] {
                eprintln!("{what}: {:?}", client.show::<serde_json::Value>(what).map(|value| value.to_string()));
            }
            eprintln!("log: {}", fs::read_to_string(&self.log).unwrap_or_default());
        }
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // The child is ours and not waited for, so its number is still its own.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let end = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= end {
                let _ = self.child.kill();
                let _ = self.child.wait();
                assert!(std::thread::panicking(), "the agent does not end when told to");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
