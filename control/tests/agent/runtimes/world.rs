//! Where containers live: a node with an agent, another with a pod, and the outside; and what containers of any runtime must be
//! able to do there.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use millrace_control::api::model::{IpamCheckReport, IpamReport};
use millrace_control::kernel::{NamespaceHandle, Netlink};
use serde_json::{Value, json};

use super::leftovers::Present;
use super::{containerd, image};
use crate::agent_process::Agent;
use crate::boundary::Outside;
use crate::cluster::{Cluster, Underlay};
use crate::directory::Directory;
use crate::egress::wait_for_way_out;
use crate::health;
use crate::host::{host, node};
use crate::pod::Pod;
use crate::services::{HOST_PORT, OPTIONS, PORT, Server, service_at};
use crate::traffic::Endpoint;

const PATIENCE: Duration = Duration::from_secs(15);
/// What a cluster is given; a runtime reads it as it stands there, but for where the agent is.
const NETWORK: &str = include_str!("../../../../deploy/10-millrace.conflist");
/// Addresses of the Service.
const SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
const LOAD_BALANCER: [&str; 2] = ["203.0.113.11", "2001:db8:9::11"];

/// A container that runs, or the one container of a pod.
pub(super) struct Container {
    /// What the runtime knows it by.
    pub(super) id: String,
    /// What the runtime knows its pod by.
    pub(super) pod: String,
    /// Its network, with the addresses that the runtime tells.
    pub(super) endpoint: Endpoint,
}

/// What both runtimes do.
pub(super) trait Runtime {
    /// Starts a container of the image that serves the page; with a port of the host that leads to a port of it.
    fn start(&self, name: &str, ports: Option<(u16, u16)>) -> Result<Container, String>;
    /// Runs a command inside: its output, or what went wrong.
    fn execute(&self, container: &Container, words: &[&str]) -> Result<String, String>;
    /// Takes it away with all that belongs to it.
    fn remove(&self, container: &Container);
}

/// Who answered, and the address that it was called from.
type Answer = Result<(String, IpAddr), String>;

/// Where a runtime looks for plugins.
pub(super) fn plugins(directory: &Directory) -> PathBuf {
    directory.file("plugins")
}

/// Where a runtime looks for networks.
pub(super) fn networks(directory: &Directory) -> PathBuf {
    directory.file("networks")
}

/// Both nodes, with everything but a runtime.
pub(super) struct World {
    far: Endpoint,
    _servers: [Server; 2],
    _pod: Pod,
    outside: Outside,
    before: Present,
    agents: Vec<Agent>,
    /// What it stands on.
    pub(super) underlay: Underlay,
    /// The archive of the image.
    pub(super) image: PathBuf,
}

impl World {
    pub(super) fn create() -> World {
        let Cluster { agents, underlay } = Cluster::on(Underlay::create(1), OPTIONS);
        let outside = Outside::create(&underlay);
        wait_for_way_out(&agents[0]);
        host(&underlay, 0);
        let pod = Pod::create("b1", "b");
        let far = pod.add(&underlay.directory);
        let servers = [Server::start(&far), Server::start(&outside.endpoint)];
        let image = image::write(&underlay.directory);
        configure(&underlay.directory);
        let before = Present::now(underlay.nodes[0].handle());
        let agents = Vec::from(agents);
        World { far, _servers: servers, _pod: pod, outside, before, agents, underlay, image }
    }

    /// The agent of the runtimes' node.
    pub(super) fn agent(&self) -> &Agent {
        &self.agents[0]
    }

    /// Kills the agent of the runtimes' node, has `act` done without it, and starts it again.
    pub(super) fn without_agent(&mut self, act: impl FnOnce()) {
        self.agents.remove(0).kill();
        act();
        self.agents.insert(0, self.underlay.start(0, OPTIONS));
    }

    /// Starts two containers, has everybody call everybody, and takes them away again.
    pub(super) fn check(&self, runtime: &dyn Runtime) {
        let start = |name, ports| runtime.start(name, ports).expect("started");
        let containers = [start("c1", Some((HOST_PORT, PORT))), start("c2", None)];
        containers.iter().for_each(has_what_it_was_told);
        self.write_service(&containers[1]);
        self.check_calls(runtime, &containers);
        self.check_removal(runtime, containers);
    }

    /// Both call each other.
    pub(super) fn check_pair(&self, one: (&dyn Runtime, &Container), other: (&dyn Runtime, &Container)) {
        for ipv4 in [true, false] {
            for ((runtime, from), (_, to)) in [(one, other), (other, one)] {
                let what = format!("{} to {}", from.name(), to.name());
                let expected = (to.name(), from.endpoint.address(ipv4));
                says(&what, expected, || page_by(runtime, from, (to.endpoint.address(ipv4), PORT).into()));
            }
        }
    }

    fn check_calls(&self, runtime: &dyn Runtime, [c1, c2]: &[Container; 2]) {
        self.check_pair((runtime, c1), (runtime, c2));
        let (own, among_pods) = (node(&self.underlay, 0), host(&self.underlay, 0));
        for ipv4 in [true, false] {
            let address = |end: &Endpoint| end.address(ipv4);
            let service: IpAddr = SERVICE[usize::from(!ipv4)].parse().expect("address");
            let seen = address(&c1.endpoint);
            says("c1 to a pod of the other node", ("b1", seen), || word_by(runtime, c1, address(&self.far)));
            says("c1 to a Service", ("c2", seen), || page_by(runtime, c1, (service, 80).into()));
            says("c1 to the outside", ("outside", address(&own)), || {
                word_by(runtime, c1, address(&self.outside.endpoint))
            });
            for (what, from) in [("a pod of the other node", &self.far), ("the node", &among_pods)] {
                let to = (address(&c1.endpoint), PORT).into();
                says(&format!("{what} to c1"), ("c1", address(from)), || page(from, to));
            }
            let outside = &self.outside.endpoint;
            let to = (address(&own), HOST_PORT).into();
            says("the outside to c1 by the node's port", ("c1", address(outside)), || page(outside, to));
        }
        self.agents.iter().for_each(Agent::assert_sound);
    }

    fn write_service(&self, container: &Container) {
        let addresses = |ipv4: bool| {
            let at = usize::from(!ipv4);
            [SERVICE[at], LOAD_BALANCER[at]].map(|text| text.parse().expect("address"))
        };
        let text = service_at(1, "Cluster", &[(&container.endpoint, "a")], addresses);
        self.underlay.directory.write_objects("service.yaml", &text);
    }

    /// The first goes while the second goes on.
    fn check_removal(&self, runtime: &dyn Runtime, [c1, c2]: [Container; 2]) {
        let outside = &self.outside.endpoint;
        let port_of = SocketAddr::new(node(&self.underlay, 0).address(true), HOST_PORT);
        self.remove(runtime, c1);
        assert!(page(outside, port_of).is_err(), "the port of the host leads on");
        let to = (c2.endpoint.address(true), PORT).into();
        says("the other pod, while c1 is gone", (c2.name(), self.far.address(true)), || page(&self.far, to));
        self.remove(runtime, c2);
    }

    /// Removes a container; its interface and its addresses go before the runtime says that it is gone.
    pub(super) fn remove(&self, runtime: &dyn Runtime, container: Container) {
        // Held, the namespace outlives the container.
        let held = File::open(container.endpoint.namespace.path()).expect("the container's network");
        let namespace = NamespaceHandle::open(format!("/proc/self/fd/{}", held.as_raw_fd())).expect("held");
        let interface = || Netlink::open_in(&namespace).expect("netlink").link("eth0").expect("asked");
        assert!(interface().is_some());
        runtime.remove(&container);
        assert_eq!(interface(), None);
        let report: IpamReport = self.agent().client().show("ipam").expect("report");
        let own: Vec<String> = container.endpoint.addresses.iter().map(IpAddr::to_string).collect();
        assert!(report.addresses.iter().all(|held| !own.contains(&held.address)), "{report:?}");
    }

    /// That nothing of any container is left.
    pub(super) fn wait_until_clean(&self) {
        let agent = self.agent();
        assert_eq!(agent.status().pods, 0);
        let report: IpamReport = agent.client().show("ipam").expect("report");
        assert!(report.addresses.is_empty(), "{report:?}");
        let found: IpamCheckReport = agent.client().document("/v1/check/ipam").expect("report");
        assert!(found.findings.is_empty(), "{found:?}");
        let state = self.underlay.directory.file("a.state");
        let record = fs::read_to_string(state.join("attachments.json")).expect("the record");
        assert!(!record.contains("eth0"), "{record}");
        let pending = fs::read_dir(state.join("pending")).map_or(0, Iterator::count);
        assert_eq!(pending, 0, "requests are left for the agent");
        self.agents.iter().for_each(Agent::assert_sound);
        self.before.wait_until_nothing_else(self.underlay.nodes[0].handle());
    }
}

impl Container {
    /// Its name.
    fn name(&self) -> &str {
        &self.endpoint.name
    }
}

/// Gives a runtime its plugins and its network.
fn configure(directory: &Directory) {
    let (plugins, networks) = (plugins(directory), networks(directory));
    [&plugins, &networks].into_iter().for_each(|place| fs::create_dir(place).expect("directory"));
    symlink(directory.plugin(), plugins.join("millrace-cni")).expect("link");
    symlink(containerd::LOOPBACK_PLUGIN, plugins.join("loopback")).expect("link");
    let mut network: Value = serde_json::from_str(NETWORK).expect("a document");
    let plugin = network["plugins"][0].as_object_mut().expect("a plugin");
    plugin.insert("socket".to_owned(), json!(directory.file("a.sock")));
    plugin.insert("stateDirectory".to_owned(), json!(directory.file("a.state")));
    fs::write(networks.join("10-millrace.conflist"), network.to_string()).expect("written");
}

/// That the addresses of the interface are those that the runtime knows.
fn has_what_it_was_told(container: &Container) {
    let mut netlink = Netlink::open_in(&container.endpoint.namespace).expect("netlink");
    let local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let held = netlink.addresses("eth0").expect("addresses").into_iter().map(|prefix| prefix.addr());
    let mut held: Vec<IpAddr> = held.filter(|address| !local(address)).collect();
    held.sort();
    assert_eq!((held.len(), &held), (2, &container.endpoint.addresses));
}

/// Waits until the answer is as expected.
fn says(what: &str, (name, seen): (&str, IpAddr), ask: impl Fn() -> Answer) {
    let expected = Ok((name.to_owned(), seen));
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if answer == expected {
            return println!("{what}: {name} answers {seen}");
        }
        assert!(Instant::now() < end, "{what}: {answer:?}, not {expected:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The page, asked for by a process of a container.
fn page_by(runtime: &dyn Runtime, from: &Container, to: SocketAddr) -> Answer {
    let url = format!("http://{to}{}", image::PAGE);
    // The option -T of this wget ends it by a segmentation fault (1.35.0-4+deb12u1).
    heard(&runtime.execute(from, &["timeout", "2", "wget", "-q", "-O", "-", &url])?)
}

/// What a server of the test says to a process of a container.
fn word_by(runtime: &dyn Runtime, from: &Container, to: IpAddr) -> Answer {
    heard(&runtime.execute(from, &["nc", "-w", "2", &to.to_string(), &PORT.to_string()])?)
}

/// The page, asked for by the test itself.
fn page(from: &Endpoint, to: SocketAddr) -> Answer {
    let (status, body) = health::get(&from.namespace, to, image::PAGE).ok_or("no answer")?;
    if status == 200 { heard(&body) } else { Err(format!("status {status}: {body}")) }
}

/// `c1 [::ffff:192.0.2.1]` or `b1 192.0.2.1`.
fn heard(text: &str) -> Answer {
    let (name, address) = text.trim().split_once(' ').ok_or_else(|| format!("{text:?}"))?;
    let address: IpAddr = address.trim_matches(['[', ']']).parse().map_err(|_| format!("{text:?}"))?;
    Ok((name.to_owned(), address.to_canonical()))
}
