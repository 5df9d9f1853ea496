//! Nodes `a` and `b`: namespaces joined by a veth pair, and the objects that describe them.

use millrace_control::kernel::{LinkChange, Namespace, Netlink};
use millrace_engine::port::af_xdp::set_transmit_checksum;

use crate::agent_process::{Agent, AgentOptions};
use crate::directory::{Directory, unique};

/// Name of the interface the nodes are joined by.
pub(crate) const UPLINK: &str = "up0";

/// The nodes, by name and underlay addresses.
pub(crate) const NODES: [(&str, [&str; 2]); 2] =
    [("a", ["192.0.2.1", "2001:db8::1"]), ("b", ["192.0.2.2", "2001:db8::2"])];

/// Pools for both families.
pub(crate) const POOLS: &str = "\
apiVersion: millrace.dev/v1alpha1
kind: IpPool
metadata: {name: pods-ipv4}
spec: {cidr: 10.1.0.0/16}
---
apiVersion: millrace.dev/v1alpha1
kind: IpPool
metadata: {name: pods-ipv6}
spec: {cidr: 'fd00:1::/64'}
";

/// Object of a node without pods of its own knowledge.
pub(crate) fn node_object(number: usize) -> String {
    let (name, [ipv4, _]) = NODES[number];
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus:\n  addresses:\n  \
         - {{type: InternalIP, address: {ipv4}}}\n"
    )
}

/// Field of an uplink's `spec` by which AF_XDP serves it: on a veth pair an agent would choose otherwise.
pub(crate) const AF_XDP: &str = ", port: af_xdp";
/// By which packet sockets serve it.
pub(crate) const PACKET: &str = ", port: packet";
/// By which its agent chooses.
pub(crate) const AUTOMATIC: &str = "";

/// Object of a node's uplink by AF_XDP.
pub(crate) fn uplink_object(number: usize) -> String {
    uplink_object_of(number, UPLINK, AF_XDP)
}

/// Object of a node's uplink by this interface, with more fields of its `spec`.
pub(crate) fn uplink_object_of(number: usize, interface: &str, more: &str) -> String {
    let (name, _) = NODES[number];
    format!(
        "---\napiVersion: millrace.dev/v1alpha1\nkind: Uplink\nmetadata: {{name: {name}-{interface}}}\n\
         spec: {{node: {name}, interface: {interface}{more}}}\n"
    )
}

/// A veth pair between the nodes, of this name at both ends, up.
pub(crate) fn join(nodes: &[Namespace; 2], name: &str, queues: u32) {
    let ends = [(name, None), (name, Some(nodes[1].handle()))];
    let mut netlink = Netlink::open_in(nodes[0].handle()).expect("netlink");
    netlink.create_veth_with_queues(ends[0], ends[1], queues).expect("veth");
    for node in nodes {
        // A kernel would leave checksums to a wire that does not exist.
        node.handle().enter(|| set_transmit_checksum(name, false)).expect("entered").expect("set");
        let mut netlink = Netlink::open_in(node.handle()).expect("netlink");
        netlink.change_link(name, &LinkChange::up()).expect("up");
    }
}

/// Two node namespaces, joined; the order of the fields is that of their end.
pub(crate) struct Underlay {
    /// The nodes.
    pub(crate) nodes: [Namespace; 2],
    /// Files of the test.
    pub(crate) directory: Directory,
}

impl Underlay {
    /// Joins two nodes by a veth pair of this many queues.
    pub(crate) fn create(queues: u32) -> Underlay {
        Self::create_in(Directory::create(), queues)
    }

    /// The same with files in this directory.
    pub(crate) fn create_in(directory: Directory, queues: u32) -> Underlay {
        let underlay = Self::without_link_in(directory);
        join(&underlay.nodes, UPLINK, queues);
        underlay.raise();
        underlay
    }

    /// Two nodes with what `make` makes between them, an interface [`UPLINK`] on each among it; `None` if it cannot.
    pub(crate) fn create_over(make: impl FnOnce(&[Namespace; 2]) -> bool) -> Option<Underlay> {
        let underlay = Self::without_link();
        if !make(&underlay.nodes) {
            return None;
        }
        underlay.raise();
        Some(underlay)
    }

    /// The nodes, each by itself.
    pub(crate) fn without_link() -> Underlay {
        Self::without_link_in(Directory::create())
    }

    fn without_link_in(directory: Directory) -> Underlay {
        let nodes = NODES.map(|(name, _)| Namespace::create_named(&unique(name)).expect("namespace"));
        Underlay { nodes, directory }
    }

    /// Sets their ends of the link up, with their addresses.
    pub(crate) fn raise(&self) {
        for ((_, addresses), node) in NODES.iter().zip(&self.nodes) {
            let mut netlink = Netlink::open_in(node.handle()).expect("netlink");
            netlink.change_link("lo", &LinkChange::up()).expect("up");
            netlink.change_link(UPLINK, &LinkChange::up()).expect("up");
            for (address, length) in addresses.iter().zip([24, 64]) {
                netlink.add_address(UPLINK, format!("{address}/{length}").parse().expect("prefix")).expect("address");
            }
        }
    }

    /// Starts a successor of `agent`, the one of this node, and waits until it has taken over.
    pub(crate) fn take_over(&self, number: usize, agent: Agent, options: AgentOptions) -> Agent {
        agent.succeeded(NODES[number].0, &self.directory, self.nodes[number].handle(), options)
    }

    /// What a successor says that is refused.
    pub(crate) fn refused_successor(&self, number: usize) -> String {
        Agent::refused(NODES[number].0, &self.directory, self.nodes[number].handle())
    }

    /// Starts the agent of a node.
    pub(crate) fn start(&self, number: usize, options: AgentOptions) -> Agent {
        Agent::start(NODES[number].0, &self.directory, self.nodes[number].handle(), options)
    }
}

/// Both nodes with an agent.
pub(crate) struct Cluster {
    /// The agents, of `a` and `b`.
    pub(crate) agents: [Agent; 2],
    /// What they stand on.
    pub(crate) underlay: Underlay,
}

impl Cluster {
    /// Builds it.
    pub(crate) fn create(queues: u32, options: AgentOptions) -> Cluster {
        Self::on(Underlay::create(queues), options)
    }

    /// Starts both agents on this underlay.
    pub(crate) fn on(underlay: Underlay, options: AgentOptions) -> Cluster {
        Self::with_uplinks(underlay, [AF_XDP; 2], options)
    }

    /// The same with more fields in the objects of the uplinks.
    pub(crate) fn with_uplinks(underlay: Underlay, more: [&str; 2], options: AgentOptions) -> Cluster {
        let uplinks = [0, 1].map(|number| uplink_object_of(number, UPLINK, more[number]));
        let objects = [POOLS.to_owned(), node_object(0), node_object(1), uplinks.concat()];
        underlay.directory.write_objects("cluster.yaml", &objects.concat());
        let agents = [0, 1].map(|number| underlay.start(number, options));
        Cluster { agents, underlay }
    }

    /// Its files.
    pub(crate) fn directory(&self) -> &Directory {
        &self.underlay.directory
    }

    /// That no agent lost a frame or has a problem.
    pub(crate) fn assert_sound(&self) {
        self.agents.iter().for_each(Agent::assert_sound);
    }
}
