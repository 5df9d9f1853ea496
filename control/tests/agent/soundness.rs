//! A worker of an agent that stands still, and what the agent may do.
//!
//! The worker's thread is stopped by ptrace(2): the product knows nothing of it.

use std::fs;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use millrace_control::api::model::WorkerReport;
use millrace_control::privileges;
use nix::sys::ptrace;
use nix::sys::ptrace::Options;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{AF_XDP, Cluster, PACKET, Underlay};
use crate::host::{node, pings};
use crate::ping::ping;
use crate::pod::Pod;
use crate::traffic;

const PATIENCE: Duration = Duration::from_secs(20);
/// Found within 100 ms, and told with the next question; the machine may have other work.
const ONE_PING: Duration = Duration::from_secs(1);

fn thread_of(process: u32, name: &str) -> Pid {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("threads");
    let mut numbers = threads.map(|thread| thread.expect("a thread").file_name().to_string_lossy().into_owned());
    let is_it = |number: &String| {
        fs::read_to_string(format!("/proc/{process}/task/{number}/comm")).is_ok_and(|said| said.trim_end() == name)
    };
    Pid::from_raw(numbers.find(is_it).expect("such a thread").parse().expect("a number"))
}

/// Runs `act` while the thread stands still.
fn while_stopped(thread: Pid, act: impl FnOnce()) {
    let ((stopped, begin), (go, over)) = (mpsc::channel(), mpsc::channel::<()>());
    std::thread::scope(|scope| {
        // All requests come from the thread that seized; when it ends, the kernel lets go of what it traced.
        scope.spawn(move || {
            ptrace::seize(thread, Options::empty()).expect("seized");
            ptrace::interrupt(thread).expect("interrupted");
            waitpid(thread, Some(WaitPidFlag::__WALL)).expect("stopped");
            stopped.send(()).expect("the caller waits");
            // An error says that the caller is done.
            let _ = over.recv();
            ptrace::detach(thread, None).expect("let go");
        });
        begin.recv().expect("the thread stands");
        act();
        drop(go);
    });
}

fn standing(agent: &Agent) -> String {
    let workers: Vec<WorkerReport> = agent.client().show("workers").expect("workers");
    workers[0].standing.clone()
}

fn wait_for(agent: &Agent, wanted: &str) -> Duration {
    let start = Instant::now();
    while standing(agent) != wanted {
        assert!(start.elapsed() < PATIENCE, "{:?}, not {wanted}", standing(agent));
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

pub(crate) fn a_worker_that_stands_still_leaves_the_host_to_its_kernel() {
    for kind in [AF_XDP, PACKET] {
        let cluster = Cluster::with_uplinks(Underlay::create(1), [kind; 2], AgentOptions::default());
        let pods = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
        let ends = [0, 1].map(|number: usize| pods[number].add(cluster.directory()));
        traffic::check(&ends[0], &ends[1]);
        let nodes = [node(&cluster.underlay, 0), node(&cluster.underlay, 1)];
        pings(&nodes[1], &nodes[0]);
        let agent = &cluster.agents[0];
        let found = std::cell::Cell::new(Duration::ZERO);
        while_stopped(thread_of(agent.process(), "worker-0"), || {
            found.set(wait_for(agent, "stalled"));
            // The answers are the kernel's: the worker stands.
            pings(&nodes[1], &nodes[0]);
            let (from, to) = (&ends[1], ends[0].addresses[0]);
            assert!(!ping(from, to, 56, ONE_PING), "nobody can reach a pod behind it ({kind})");
            let problems = agent.status().problems;
            assert!(problems.iter().any(|problem| problem.kind.as_deref() == Some("worker_stalled")), "{problems:?}");
        });
        let back = wait_for(agent, "works");
        traffic::check(&ends[0], &ends[1]);
        pings(&nodes[1], &nodes[0]);
        println!("{kind}: found and told in {:?}, told to work again in {back:?}", found.get());
        cluster.assert_sound();
    }
}

/// Of every thread, as proc_pid_status(5) tells it.
pub(crate) fn the_agent_keeps_no_right_that_it_does_not_need() {
    let cluster = Cluster::create(1, AgentOptions { workers: 2, ..AgentOptions::default() });
    let process = cluster.agents[0].process();
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task")).expect("threads") {
        let path = thread.expect("a thread").path();
        let status = fs::read_to_string(path.join("status")).expect("a status");
        let line = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line").trim().to_owned();
            u64::from_str_radix(&value, 16).expect("a number")
        };
        let kept = privileges::KEPT.bits();
        for (set, most) in [("CapBnd:", kept), ("CapPrm:", kept), ("CapEff:", kept), ("CapInh:", 0), ("CapAmb:", 0)] {
            assert_eq!(line(set) & !most, 0, "{set} of {}", path.display());
        }
        assert_eq!(line("NoNewPrivs:"), 1, "{}", path.display());
        threads += 1;
    }
    assert!(threads > 4, "{threads} threads");
    cluster.assert_sound();
}
