//! The cluster: two node namespaces joined by a veth pair, an agent in each, two pods on each; and a station outside.

use std::path::Path;

use anyhow::{Context, ensure};
use millrace_engine::port::af_xdp::{set_receive_gathering, set_transmit_checksum};
use rustix::thread::{CpuSet, sched_getaffinity};

use super::agent_process::AgentProcess;
use super::interruption::Interruption;
use super::objects::{self, NODES, NodePlan, PODS, UPLINK};
use super::outside::Outside;
use super::pods::{self, Pod, Runtime};
use super::run_directory::RunDirectory;
use super::traffic::Endpoint;
use super::{RunSummary, say};
use crate::kernel::{LinkChange, Namespace, Netlink};

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: &'static str,
    // Ends before its namespace does.
    pub(super) agent: AgentProcess,
    namespace: Namespace,
}

/// The cluster; gone when dropped. The order of the fields is that of their end.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    pub(super) pods: Vec<Pod>,
    /// A station outside, once there is one.
    outside: Option<Outside>,
    directory: RunDirectory,
}

impl Cluster {
    /// Builds it all; what was built is gone again after an error.
    pub(super) fn build(workers: usize, interruption: &Interruption) -> anyhow::Result<Cluster> {
        let directory = RunDirectory::create()?;
        let mut cluster = Cluster { nodes: Vec::new(), pods: Vec::new(), outside: None, directory };
        say("building two nodes, joined by a veth pair");
        let objects = cluster.directory.path().join("objects");
        objects::write(&objects)?;
        pods::install_plugin(cluster.directory.path())?;
        let namespaces = NODES.map(|node| cluster.directory.namespace(node.name));
        let [first, second] = namespaces;
        let namespaces = [first?, second?];
        join_nodes(&namespaces, workers)?;
        cluster.outside = Some(Outside::join(cluster.directory.namespace("outside")?, &namespaces)?);
        interruption.check()?;
        say("starting an agent on each node");
        let cores = cores()?;
        ensure!(
            workers <= cores.len(),
            "{workers} workers need as many processors, this process may use {}",
            cores.len()
        );
        for (number, (plan, namespace)) in NODES.iter().zip(namespaces).enumerate() {
            // Nodes begin at different cores: with one worker each, and two cores, they do not disturb each other.
            let cpus: Vec<_> = cores.iter().copied().cycle().skip(number % cores.len()).take(workers).collect();
            let agent = AgentProcess::start(plan.name, cluster.directory.path(), namespace.handle(), &cpus)?;
            cluster.nodes.push(Node { name: plan.name, agent, namespace });
        }
        for node in &mut cluster.nodes {
            node.agent.wait_until_ready(interruption)?;
        }
        say("plugging in two pods on each node with millrace-cni");
        for plan in PODS {
            interruption.check()?;
            let namespace = cluster.directory.namespace(plan.name)?;
            let pod = Pod::plug(plan.name, plan.node, namespace, cluster.runtime(plan.node)?)?;
            cluster.pods.push(pod);
        }
        Ok(cluster)
    }

    /// The pod at this place of [`PODS`].
    pub(super) fn pod(&self, number: usize) -> anyhow::Result<&Pod> {
        self.pods.get(number).context("there is no such pod")
    }

    /// Where traffic from outside starts.
    pub(super) fn outside(&self) -> anyhow::Result<&Endpoint> {
        self.outside.as_ref().map(|outside| &outside.endpoint).context("there is no station outside")
    }

    fn runtime(&self, node: &str) -> anyhow::Result<Runtime<'_>> {
        let node = self.nodes.iter().find(|candidate| candidate.name == node).context("there is no such node")?;
        Ok(Runtime { directory: self.path(), node: node.namespace.handle(), socket: node.agent.socket() })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Whether the link's kernels gather what they receive (GRO): cards do so, a veth pair's ends only if they are told.
    pub(super) fn gather_on_link(&self, on: bool) -> anyhow::Result<()> {
        for node in &self.nodes {
            let switched = node.namespace.handle().enter(|| set_receive_gathering(UPLINK, on))?;
            switched.context("cannot switch receive offload")?;
        }
        Ok(())
    }

    /// The directory of objects.
    pub(super) fn objects(&self) -> std::path::PathBuf {
        self.path().join("objects")
    }

    /// Unplugs all pods as a runtime would.
    pub(super) fn unplug(&self) -> anyhow::Result<()> {
        self.pods.iter().try_for_each(|pod| pod.unplug(self.runtime(pod.node)?))
    }

    /// Leaves it standing and says what stands where.
    pub(super) fn keep(mut self) -> anyhow::Result<RunSummary> {
        // First: from now on only the name is needed to remove it.
        self.directory.keep()?;
        let path = |namespace: &Namespace| namespace.handle().path().display().to_string();
        let addresses = |pod: &Pod| pod.endpoint.addresses.iter().map(ToString::to_string).collect();
        let summary = RunSummary {
            directory: self.path().display().to_string(),
            nodes: self
                .nodes
                .iter()
                .map(|node| {
                    let socket = node.agent.socket().display().to_string();
                    (node.name.to_owned(), socket, path(&node.namespace))
                })
                .collect(),
            pods: self
                .pods
                .iter()
                .map(|pod| (pod.name.to_owned(), pod.endpoint.namespace.path().display().to_string(), addresses(pod)))
                .collect(),
        };
        for mut node in self.nodes.drain(..) {
            node.agent.keep();
            // The handle it gives is not needed any more.
            let _ = node.namespace.keep();
        }
        self.pods.drain(..).for_each(Pod::keep);
        self.outside.take().into_iter().for_each(Outside::keep);
        Ok(summary)
    }
}

/// The underlay: one veth pair with an address of each family at both ends, and a queue for each worker.
fn join_nodes(namespaces: &[Namespace; 2], queues: usize) -> anyhow::Result<()> {
    let [first, second] = namespaces;
    let queues = u32::try_from(queues).context("too many workers")?;
    let ends = ((UPLINK, None), (UPLINK, Some(second.handle())));
    Netlink::open_in(first.handle())?.create_veth_with_queues(ends.0, ends.1, queues)?;
    for (NodePlan { ipv4, ipv6, .. }, namespace) in NODES.iter().zip(namespaces) {
        let mut netlink = Netlink::open_in(namespace.handle())?;
        netlink.change_link("lo", &LinkChange::up())?;
        netlink.change_link(UPLINK, &LinkChange::up())?;
        netlink.add_address(UPLINK, format!("{ipv4}/24").parse()?)?;
        netlink.add_address(UPLINK, format!("{ipv6}/64").parse()?)?;
        // A kernel would leave checksums to a wire that does not exist, and the node at the other end would drop them.
        let switched_off = namespace.handle().enter(|| set_transmit_checksum(UPLINK, false))?;
        switched_off.context("cannot switch checksum offload off")?;
    }
    Ok(())
}

/// The processors this process may use; never empty.
pub(super) fn cores() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("cannot read the processors this process may use")?;
    let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect();
    Ok(if cores.is_empty() { vec![0] } else { cores })
}
