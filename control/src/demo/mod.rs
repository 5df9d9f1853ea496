//! `millrace demo`: a two-node cluster in network namespaces of this machine, looked at and measured.
//!
//! [`cluster`] builds it: two nodes joined by a veth pair, an agent in each, pods plugged in by `millrace-cni`.
//! [`reachability`], [`services`], [`policies`], [`performance`], [`idle`] and [`counters`] look at it with the tools of [`traffic`];
//! [`report`] says what held. Everything a run makes hangs on the name of its [`run_directory`], so it can be removed
//! after a crash too. Progress goes to standard error. Nothing but the kernel is needed, and nothing of the machine's
//! own network is touched.

mod agent_process;
mod cluster;
mod counters;
mod idle;
pub mod interruption;
mod objects;
mod outside;
mod performance;
mod pods;
mod policies;
mod reachability;
mod reference;
mod report;
mod run_directory;
mod services;
mod table;
pub mod traffic;
mod uplinks;
mod work;

use std::io::Write;
use std::time::Duration;

use anyhow::ensure;

use cluster::Cluster;
use interruption::Interruption;
use report::Report;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Leave the cluster standing.
    pub keep: bool,
    /// How long each stream and each series of transactions lasts.
    pub duration: Duration,
    /// Workers of each agent, from 1 to 16; as many queues does the link between the nodes have.
    pub workers: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    report: Report,
    kept: Option<RunSummary>,
}

/// What stands where in a cluster that is kept.
#[derive(Debug)]
struct RunSummary {
    directory: String,
    /// Name, socket, namespace.
    nodes: Vec<(String, String, String)>,
    /// Name, namespace, addresses.
    pods: Vec<(String, String, Vec<String>)>,
}

/// Builds the cluster, looks at it, and takes it away again.
///
/// # Errors
/// If it cannot be built or looked at, or is interrupted; everything is gone then too.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    require_root()?;
    let interruption = Interruption::on_signals()?;
    for name in run_directory::remove_abandoned(false)? {
        say(&format!("removed what an earlier run left as {name}"));
    }
    let cluster = Cluster::build(options.workers, &interruption)?;
    let mut report = observe(&cluster, options, &interruption)?;
    let kept = if options.keep {
        Some(cluster.keep()?)
    } else {
        say("unplugging the pods and cleaning up");
        report.unplug_failure = cluster.unplug().err().map(|error| format!("{error:#}"));
        drop(cluster);
        None
    };
    report.judge();
    Ok(Outcome { report, kept })
}

/// Removes clusters that were kept, and what killed runs left. Returns how many there were.
///
/// # Errors
/// If something cannot be removed.
pub fn remove() -> anyhow::Result<usize> {
    require_root()?;
    let removed = run_directory::remove_abandoned(true)?;
    removed.iter().for_each(|name| say(&format!("removed {name}")));
    Ok(removed.len())
}

fn observe(cluster: &Cluster, options: &Options, interruption: &Interruption) -> anyhow::Result<Report> {
    say("checking who reaches whom");
    let reachability = reachability::check(cluster, interruption)?;
    let missed = reachability.iter().filter(|row| !row.reached).count();
    say(&format!("  {} of {} reached", reachability.len() - missed, reachability.len()));
    let mut services = None;
    if missed == 0 {
        say("checking a Service over both nodes");
        services = Some(services::check(cluster, interruption)?);
    }
    let mut policies = None;
    if missed == 0 {
        say("closing, opening and closing a pod by a policy while traffic runs");
        policies = Some(policies::check(cluster, interruption)?);
    }
    // Measuring ways that do not work would only wait.
    let (mut throughput, mut latency, mut first_packet_after_idle) = (Vec::new(), Vec::new(), Vec::new());
    let mut by_uplink = Vec::new();
    if missed == 0 {
        say("measuring TCP streams");
        throughput = performance::throughput(cluster, options.duration, interruption)?;
        say("measuring transactions");
        latency = performance::latency(cluster, options.duration, interruption)?;
        say("measuring the way between the nodes by each kind of uplink");
        by_uplink = uplinks::compare(cluster, options.duration, interruption)?;
    }
    say("measuring the idle agents");
    let idle = idle::agents(cluster, options.duration, interruption)?;
    if missed == 0 {
        say("measuring the first packet after a pause");
        first_packet_after_idle = idle::first_packets(cluster, options.duration, interruption)?;
    }
    let nodes = counters::read(cluster)?;
    Ok(Report {
        held: false,
        workers: options.workers,
        checks: Vec::new(),
        reachability,
        services,
        policies,
        throughput,
        latency,
        by_uplink,
        idle,
        first_packet_after_idle,
        nodes,
        unplug_failure: None,
    })
}

impl Outcome {
    /// Whether everything works; a goal of speed may have been missed.
    #[must_use]
    pub fn works(&self) -> bool {
        self.report.works()
    }

    /// Whether every check held.
    #[must_use]
    pub fn held(&self) -> bool {
        self.report.held
    }

    /// The report as tables.
    #[must_use]
    pub fn to_text(&self) -> String {
        table::text(&self.report)
    }

    /// The report as one JSON document.
    ///
    /// # Errors
    /// If a value cannot be written as JSON, which none of these can cause.
    pub fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(&self.report)? + "\n")
    }

    /// How to look around in a cluster that is kept, and how to remove it.
    #[must_use]
    pub fn guide(&self) -> Option<String> {
        self.kept.as_ref().map(RunSummary::guide)
    }
}

impl RunSummary {
    fn guide(&self) -> String {
        let mut lines = vec![format!("The cluster stands; its files are in {}.", self.directory), String::new()];
        for (name, socket, namespace) in &self.nodes {
            lines.push(format!("node {name}, in {namespace}:"));
            lines.extend(
                ["status", "ports", "routes", "flows", "drops"]
                    .map(|what| format!("  millrace show {what} --socket {socket}")),
            );
        }
        for (name, namespace, addresses) in &self.pods {
            lines.push(format!("pod default/{name}, in {namespace}: {}", addresses.join(", ")));
        }
        let target = self.pods.get(2).and_then(|(_, _, addresses)| addresses.first());
        if let (Some((_, socket, _)), Some((from, ..)), Some(target)) = (self.nodes.first(), self.pods.first(), target)
        {
            lines.push("a packet's way through the tables, stage by stage:".to_owned());
            lines.push(format!("  millrace trace --socket {socket} --from default/{from} --to {target}:80"));
        }
        lines.push("remove it:".to_owned());
        lines.push("  millrace demo --remove".to_owned());
        lines.join("\n") + "\n"
    }
}

fn require_root() -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces and loads a BPF program: run it as root"
    );
    Ok(())
}

/// A line of progress. Standard error may be closed; then nobody wants to know.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "demo: {line}");
}
