//! A node on a small disk, and a runtime that knows what it asked for.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use millrace_control::api::model::RouteReport;

use super::books::{self, Footing};
use super::disk::SmallDisk;
use super::sandbox::{Known, Sandbox, VETHS};
use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{POOLS, Underlay, node_object};
use crate::directory::Directory;

/// Name of the node.
pub(super) const NODE: &str = "a";

/// How long what was cut short may take to end: the agent looks for DELs that wait every ten seconds.
const PATIENCE: Duration = Duration::from_secs(25);

const OPTIONS: AgentOptions = AgentOptions { workers: 2, uplink: false, more: "", under: &[] };

/// Where the node's agent listens and keeps what it must not forget.
pub(super) struct SocketAndState {
    pub(super) socket: PathBuf,
    pub(super) state: PathBuf,
}

impl SocketAndState {
    pub(super) fn of(directory: &Directory) -> SocketAndState {
        SocketAndState {
            socket: directory.file(&format!("{NODE}.sock")),
            state: directory.file(&format!("{NODE}.state")),
        }
    }
}

/// The node. Fields go in their order.
pub(super) struct World {
    /// Its agent, unless it was killed.
    pub(super) agent: Option<Agent>,
    /// What was there before any pod.
    pub(super) footing: Footing,
    /// Where the agent's files, its objects among them, are.
    pub(super) disk: SmallDisk,
    /// The node.
    pub(super) underlay: Underlay,
    /// How many agents were started.
    pub(super) started: usize,
}

impl World {
    pub(super) fn create() -> World {
        let mut disk = None;
        let directory = Directory::create_with(|path| disk = Some(SmallDisk::mount(path)));
        let underlay = Underlay::create_in(directory, 1);
        let veths = format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {VETHS}, annotations: {{millrace.dev/interface: \
             veth}}}}\n"
        );
        let objects = [POOLS, &node_object(0), &veths].concat();
        underlay.directory.write_objects("cluster.yaml", &objects);
        let agent = underlay.start(0, OPTIONS);
        let disk = disk.expect("mounted");
        let mut world = World { agent: Some(agent), footing: Footing::default(), disk, underlay, started: 1 };
        // What comes with the first pod of a kind and stays for the next ones belongs to the footing.
        for veth in [false, true] {
            let mut sandbox = Sandbox::create(usize::from(veth), veth);
            sandbox.known = Known::Attached;
            assert!(sandbox.call("ADD", world.directory()).success, "a pod can be plugged in");
            let alone = books::resources(&world);
            world.delete(&mut sandbox);
            world.footing.learn(veth, alone, books::resources(&world));
        }
        // The node has its own address among pods a moment after it has a block.
        let own = |route: &RouteReport| route.object == "this node" && route.prefix.starts_with("10.1.");
        world.agent().wait_for_routes(|routes| routes.iter().any(own));
        let mut footing = std::mem::take(&mut world.footing);
        footing.take(&world);
        world.footing = footing;
        world
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.underlay.directory
    }

    /// The agent that runs.
    pub(super) fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("an agent runs")
    }

    /// Kills the agent, or sees to it that one that was killed is gone.
    pub(super) fn kill_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.kill();
        }
    }

    /// Starts an agent, if none runs.
    pub(super) fn start_agent(&mut self) {
        if self.agent.is_none() {
            self.agent = Some(self.underlay.start(0, OPTIONS));
            self.started += 1;
        }
    }

    /// Asks for the sandbox's DEL until it succeeds, as a runtime does. Returns how often.
    pub(super) fn delete(&self, sandbox: &mut Sandbox) -> usize {
        for tries in 1.. {
            let answer = sandbox.call("DEL", self.directory());
            sandbox.learn("DEL", &answer, true);
            if sandbox.known == Known::Detached {
                return tries;
            }
            assert!(tries < 20, "{} cannot be removed: {}", sandbox.container, answer.document);
            std::thread::sleep(Duration::from_millis(50));
        }
        unreachable!("the loop ends by an answer or an assertion")
    }

    /// Waits until calls that were cut short have ended, then compares everything with what the runtime knows.
    pub(super) fn settled(&mut self, sandboxes: &[Sandbox], when: &str) {
        let ended = self.agent.as_mut().is_some_and(Agent::has_ended);
        assert!(!ended, "{when}: the agent ended by itself");
        let end = Instant::now() + PATIENCE;
        loop {
            let differences = books::differences(self, sandboxes);
            if differences.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{when}:\n{}", differences.join("\n"));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
