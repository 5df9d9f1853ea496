//! Uplinks in every shape: many queues, on top of other interfaces, several, with other addresses, and refused ones.
//!
//! Interfaces that netlink's wrapper does not make are made by `ip`. A kernel without a kind of interface is said aloud and
//! that shape left out.

use std::net::UdpSocket;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use millrace_control::api::model::{PortReport, Problem, StatusReport};
use millrace_control::kernel::{LinkChange, Namespace, NamespaceHandle, Netlink};

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{
    self, AF_XDP, AUTOMATIC, Cluster, NODES, PACKET, POOLS, UPLINK, Underlay, node_object, uplink_object,
    uplink_object_of,
};
use crate::host::{self, node};
use crate::ping::ping;
use crate::pod::Pod;
use crate::root_tests;
use crate::traffic::{self, Endpoint};

const PATIENCE: Duration = Duration::from_secs(10);

fn ip(namespace: &NamespaceHandle, words: &str) -> Output {
    let run = || Command::new("ip").args(words.split(' ')).output();
    root_tests::needs_program("ip", "iproute2");
    namespace.enter(run).expect("entered").expect("ip")
}

fn must(namespace: &NamespaceHandle, words: &str) {
    let output = ip(namespace, words);
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One pod on each node.
fn pods(underlay: &Underlay) -> ([Pod; 2], [Endpoint; 2]) {
    let pods = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let ends = [0, 1].map(|number: usize| pods[number].add(&underlay.directory));
    (pods, ends)
}

fn uplinks(agent: &Agent) -> Vec<PortReport> {
    let ports: Vec<PortReport> = agent.client().show("ports").expect("ports");
    ports.into_iter().filter(|port| port.role == "uplink").collect()
}

fn kinds(agent: &Agent) -> Vec<String> {
    uplinks(agent).into_iter().map(|port| port.kind).collect()
}

fn problems(status: &StatusReport) -> Vec<(&str, &str)> {
    status
        .problems
        .iter()
        .map(|Problem { kind, message, .. }| (kind.as_deref().unwrap_or_default(), message.as_str()))
        .collect()
}

pub(crate) fn packet_sockets_serve_what_af_xdp_cannot() {
    root_tests::needs_kernel(6, 6, "tcx");
    // Four queues are too many for one worker; the other node is told to do without AF_XDP.
    let Cluster { agents, underlay } =
        Cluster::with_uplinks(Underlay::create(4), [AUTOMATIC, PACKET], AgentOptions::default());
    let (_pods, ends) = pods(&underlay);
    traffic::check(&ends[0], &ends[1]);
    assert_eq!(agents.each_ref().map(kinds), [["udp"], ["packet"]]);
    let status = agents[0].status();
    let [(kind, message)] = problems(&status)[..] else { panic!("{status:#?}") };
    assert_eq!(kind, "uplink_sockets");
    assert!(message.contains("4 receive queues for 1 workers") && message.contains("ethtool -L"), "{message}");
    agents[1].assert_sound();

    // Told otherwise it is refused, and told again it works.
    let objects =
        |more: &str| [uplink_object_of(0, UPLINK, more), uplink_object_of(1, UPLINK, ", port: packet")].concat();
    let write = |more: &str| {
        let others = [POOLS.to_owned(), node_object(0), node_object(1), objects(more)];
        underlay.directory.write_objects("cluster.yaml", &others.concat());
    };
    write(", port: af_xdp");
    agents[0].wait_for_status(|status| problems(status).iter().any(|(kind, _)| *kind == "uplink_queues"));
    assert_eq!(kinds(&agents[0]), Vec::<String>::new());
    write(", port: packet");
    agents[0].wait_for_status(|status| status.problems.is_empty() && status.uplinks == 1);
    traffic::check(&ends[0], &ends[1]);
    agents.iter().for_each(Agent::assert_sound);
}

/// An agent that may choose takes UDP sockets where AF_XDP copies, says why, and AF_XDP where these cannot be had; what it
/// may not choose it does not.
pub(crate) fn an_agent_chooses_how_an_uplink_is_served() {
    let Cluster { agents, underlay } =
        Cluster::with_uplinks(Underlay::create(1), [AUTOMATIC, AF_XDP], AgentOptions::default());
    let (_pods, ends) = pods(&underlay);
    traffic::check(&ends[0], &ends[1]);
    let chosen = |agent: &Agent| uplinks(agent).into_iter().map(|port| (port.kind, port.chosen)).collect::<Vec<_>>();
    let why = |why: &str| Some(format!("chosen since {why}"));
    assert_eq!(chosen(&agents[0]), [("udp".to_owned(), why("AF_XDP would copy every frame here"))]);
    assert_eq!(chosen(&agents[1]), [("af_xdp".to_owned(), None)]);
    agents.iter().for_each(Agent::assert_sound);

    // A VXLAN device of the host has the tunnels' port.
    let underlay = Underlay::create(1);
    let own = underlay.nodes[0].handle();
    must(own, "link add vx0 type vxlan id 5 dev up0 dstport 8472");
    must(own, "link set vx0 up");
    let objects = [POOLS.to_owned(), node_object(0), node_object(1), uplink_object_of(0, UPLINK, AUTOMATIC)];
    underlay.directory.write_objects("cluster.yaml", &objects.concat());
    let agent = underlay.start(0, AgentOptions { uplink: false, ..AgentOptions::default() });
    agent.wait_for_status(|status| status.uplinks == 1);
    let [(kind, Some(why))] = &chosen(&agent)[..] else { panic!("{:?}", chosen(&agent)) };
    assert_eq!(kind, "af_xdp");
    assert!(why.starts_with("chosen since UDP sockets cannot have the tunnels: ") && why.contains("8472"), "{why}");
    assert_eq!(agent.status().problems.len(), 0);
}

/// Both nodes by UDP sockets, and one of them beside a node with another kind; one worker and two; over both families.
pub(crate) fn udp_sockets_carry_the_tunnels() {
    const UDP: &str = ", port: udp";
    let ways = [([UDP, UDP], 1), ([UDP, UDP], 2), ([UDP, ", port: af_xdp"], 1), ([", port: packet", UDP], 1)];
    for (more, workers) in ways {
        let options = AgentOptions { workers, ..AgentOptions::default() };
        let Cluster { agents, underlay } = Cluster::with_uplinks(Underlay::create(1), more, options);
        let (_pods, ends) = pods(&underlay);
        traffic::check(&ends[0], &ends[1]);
        traffic::check(&ends[1], &ends[0]);
        let wanted = more.map(|more| more.trim_start_matches(", port: ").to_owned());
        assert_eq!(agents.each_ref().map(kinds), wanted.map(|kind| [kind]));
        let [own, other] = [0, 1].map(|number| node(&underlay, number));
        host::pings(&other, &own);
        for ipv4 in [true, false] {
            let came = (0..5).any(|_| ping(&other, own.address(ipv4), 3000, Duration::from_secs(1)));
            assert!(came, "fragments to the node (IPv4: {ipv4})");
        }
        let sent = uplinks(&agents[0]).iter().map(|port| port.sent_frames).sum::<u64>();
        assert!(sent > 100, "the uplink carried the tunnel: {sent} frames");
        agents.iter().for_each(Agent::assert_sound);
    }
    // A VXLAN device of the host has the port: that is said.
    let underlay = Underlay::create(1);
    let [own, _] = [0, 1].map(|number| underlay.nodes[number].handle());
    must(own, "link add vx0 type vxlan id 5 dev up0 dstport 8472");
    must(own, "link set vx0 up");
    let objects = [POOLS.to_owned(), node_object(0), node_object(1), uplink_object_of(0, UPLINK, UDP)];
    underlay.directory.write_objects("cluster.yaml", &objects.concat());
    let agent = underlay.start(0, AgentOptions { uplink: false, ..AgentOptions::default() });
    let told =
        |status: &StatusReport| problems(status).iter().any(|(_, message)| message.contains("port 8472 is taken"));
    agent.wait_for_status(told);
    must(own, "link del vx0");
    agent.wait_for_status(|status| status.uplinks == 1 && status.problems.is_empty());
    assert_eq!(kinds(&agent), ["udp"]);
}

/// What lies below, and how an uplink is put on top; `low0` and `low1` are veth pairs between the nodes.
const SHAPES: [(&str, &[&str]); 5] = [
    ("macvlan", &["link add UPLINK link low0 type macvlan mode bridge"]),
    ("VLAN", &["link add UPLINK link low0 type vlan id 10"]),
    ("bond, active-backup", &["link add UPLINK type bond mode active-backup miimon 100", "BOND"]),
    ("bond, LACP", &["link add UPLINK type bond mode 802.3ad miimon 100 lacp_rate fast", "BOND"]),
    ("bridge", &["link add UPLINK type bridge", "link set low0 master UPLINK"]),
];

fn stack(nodes: &[Namespace; 2], steps: &[&str]) -> bool {
    cluster::join(nodes, "low0", 1);
    cluster::join(nodes, "low1", 1);
    for node in nodes.iter().map(Namespace::handle) {
        for step in steps {
            let words = match *step {
                "BOND" => &[
                    "link set low0 down",
                    "link set low0 master UPLINK",
                    "link set low1 down",
                    "link set low1 master UPLINK",
                ][..],
                _ => std::slice::from_ref(step),
            };
            for words in words {
                let words = words.replace("UPLINK", UPLINK);
                let output = ip(node, &words);
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                if said.contains("Unknown device type") {
                    return false;
                }
                assert!(output.status.success(), "ip {words}: {said}");
            }
        }
    }
    true
}

pub(crate) fn an_interface_on_top_of_others_is_an_uplink() {
    let mut made = false;
    for (shape, steps) in SHAPES {
        let Some(underlay) = Underlay::create_over(|nodes| stack(nodes, steps)) else {
            eprintln!("not run: this kernel makes no {shape}");
            continue;
        };
        made = true;
        let Cluster { agents, underlay } =
            Cluster::with_uplinks(underlay, [AUTOMATIC, PACKET], AgentOptions::default());
        let (_pods, ends) = pods(&underlay);
        traffic::check(&ends[0], &ends[1]);
        let [own, other] = [0, 1].map(|number| node(&underlay, number));
        host::pings(&other, &own);
        for ipv4 in [true, false] {
            let came = (0..5).any(|_| ping(&other, own.address(ipv4), 3000, Duration::from_secs(1)));
            assert!(came, "fragments to the node over {shape} (IPv4: {ipv4})");
        }
        let shown = agents.each_ref().map(kinds);
        assert_eq!(shown, [["udp"], ["packet"]], "{shape}");
        for agent in &agents {
            assert_eq!(agent.status().unaccounted_frames, 0, "{shape}");
        }
        println!("{shape}: pods of both nodes speak, the host gets its fragments");
    }
    if !made {
        root_tests::not_here("this kernel makes neither VLAN interfaces nor bonds");
    }
}

pub(crate) fn a_second_uplink_takes_over() {
    let underlay = Underlay::create_over(|nodes| {
        cluster::join(nodes, UPLINK, 1);
        cluster::join(nodes, "up1", 1);
        true
    });
    let underlay = underlay.expect("nodes");
    for (number, own) in ["198.51.100.1/24", "198.51.100.2/24"].into_iter().enumerate() {
        let mut netlink = Netlink::open_in(underlay.nodes[number].handle()).expect("netlink");
        netlink.add_address("up1", own.parse().expect("prefix")).expect("address");
    }
    let seconds = [0, 1].map(|number| uplink_object_of(number, "up1", AF_XDP));
    underlay.directory.write_objects("second.yaml", &seconds.concat());
    let Cluster { agents, underlay } = Cluster::with_uplinks(underlay, [AF_XDP; 2], AgentOptions::default());
    agents.iter().for_each(|agent| drop(agent.wait_for_status(|status| status.uplinks == 2)));
    let (_pods, ends) = pods(&underlay);
    traffic::check(&ends[0], &ends[1]);
    let sent =
        |agent: &Agent, name: &str| uplinks(agent).iter().find(|port| port.name == name).expect("port").sent_frames;
    assert_eq!(sent(&agents[0], "up1"), 0, "the kernel's routes lead by the first");

    // The routes of both kernels change; nobody is told but by them.
    for (number, other) in [(0, 1), (1, 0)] {
        let (own, far) = (NODES[number].1[0], NODES[other].1[0]);
        let namespace = underlay.nodes[number].handle();
        must(namespace, &format!("route replace {far}/32 via 198.51.100.{} dev up1 src {own}", other + 1));
    }
    let end = Instant::now() + PATIENCE;
    while agents.iter().any(|agent| sent(agent, "up1") == 0) {
        assert!(Instant::now() < end, "nothing leaves by the second uplink");
        let _ = ping(&ends[0], ends[1].address(true), 56, Duration::from_millis(100));
    }
    for node in &underlay.nodes {
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        Netlink::open_in(node.handle()).expect("netlink").change_link(UPLINK, &down).expect("down");
    }
    traffic::check(&ends[0], &ends[1]);
    agents.iter().for_each(|agent| assert_eq!(agent.status().unaccounted_frames, 0));
}

pub(crate) fn a_node_with_another_address_is_followed() {
    follows_the_address(true);
    follows_the_address(false);
}

/// The node's address of one family is another from now on, and its object says so.
fn follows_the_address(ipv4: bool) {
    let (other_address, length) = if ipv4 { ("192.0.2.11", 24) } else { ("2001:db8::11", 64) };
    // Nodes that have an address of this family only.
    let underlay = Underlay::create(1);
    let node_with =
        |number: usize, address: &str| node_object(number).replace(NODES[number].1[0], &format!("'{address}'"));
    let at = usize::from(!ipv4);
    let (former, far) = (NODES[0].1[at], NODES[1].1[at]);
    let write = |own: &str| {
        let objects = [POOLS.to_owned(), node_with(0, own), node_with(1, far), uplink_object(0), uplink_object(1)];
        underlay.directory.write_objects("cluster.yaml", &objects.concat());
    };
    write(former);
    let agents = [0, 1].map(|number| underlay.start(number, AgentOptions::default()));
    let (_pods, ends) = pods(&underlay);
    traffic::check(&ends[0], &ends[1]);
    let namespace = underlay.nodes[0].handle();
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    let prefix = |address: &str| format!("{address}/{length}").parse().expect("prefix");
    // The other way round the new one would be a secondary of the old one, and go with it.
    netlink.delete_address(UPLINK, prefix(former)).expect("deleted");
    netlink.add_address(UPLINK, prefix(other_address)).expect("added");
    write(other_address);

    let end = Instant::now() + PATIENCE;
    let knows = |agent: &Agent| {
        let neighbours: serde_json::Value = agent.client().show("neighbours").expect("neighbours");
        neighbours.to_string().contains(other_address)
    };
    while !knows(&agents[1]) || !ping(&ends[0], ends[1].address(ipv4), 56, Duration::from_millis(200)) {
        assert!(Instant::now() < end, "{:#?}", agents[0].status());
        std::thread::sleep(Duration::from_millis(20));
    }
    traffic::check(&ends[0], &ends[1]);
    // What is the host's at the new address comes back to it: fragments.
    let other = node(&underlay, 1);
    let to = other_address.parse().expect("address");
    assert!((0..5).any(|_| ping(&other, to, 3000, Duration::from_secs(1))), "fragments to the new address");
    let own: Vec<_> = uplinks(&agents[0]).into_iter().flat_map(|port| port.addresses).collect();
    assert!(own.contains(&other_address.to_owned()) && !own.contains(&former.to_owned()), "{own:?}");
    // A socket that does not say from where still gets the source that the other node routes back.
    let chosen = namespace.enter(|| {
        let socket = UdpSocket::bind(if ipv4 { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect((ends[1].address(ipv4), 9))?;
        socket.local_addr()
    });
    let chosen = chosen.expect("entered").expect("connected").ip();
    assert_eq!(chosen, host::host(&underlay, 0).address(ipv4));
    agents.iter().for_each(Agent::assert_sound);
}

/// Pods that are plugged in keep their MTU and are told what fits; later ones get the new one, and frames as long pass.
pub(crate) fn an_uplinks_mtu_is_followed() {
    for more in [AF_XDP, PACKET] {
        let Cluster { agents, underlay } =
            Cluster::with_uplinks(Underlay::create(1), [more; 2], AgentOptions::default());
        let (_pods, ends) = pods(&underlay);
        traffic::check(&ends[0], &ends[1]);
        let set = |mtu: u32| {
            for node in &underlay.nodes {
                let change = LinkChange { mtu: Some(mtu), ..LinkChange::default() };
                Netlink::open_in(node.handle()).expect("netlink").change_link(UPLINK, &change).expect("changed");
            }
            let end = Instant::now() + PATIENCE;
            let followed = |agent: &Agent| {
                let ports: Vec<PortReport> = agent.client().show("ports").expect("ports");
                let has = |role: &str, mtu| ports.iter().any(|port| port.role == role && port.mtu_bytes == mtu);
                has("uplink", mtu) && has("host", mtu - 50)
            };
            while !agents.iter().all(followed) {
                assert!(Instant::now() < end, "the MTU of {mtu} is not followed");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        for (mtu, names) in [(1400, ["a2", "b2"]), (1800, ["a3", "b3"]), (4000, ["a5", "b5"]), (1500, ["a4", "b4"])] {
            set(mtu);
            let newer = [(names[0], "a"), (names[1], "b")].map(|(name, node)| Pod::create(name, node));
            let far = newer.each_ref().map(|pod| pod.add(&underlay.directory));
            assert!(newer.iter().all(|pod| pod.interface().is_some_and(|link| link.mtu == mtu - 50)));
            traffic::check(&far[0], &far[1]);
            // Frames of the full length: 28 bytes of headers, 48 over IPv6.
            for (ipv4, headers) in [(true, 28), (false, 48)] {
                let length = (mtu - 50 - headers) as usize;
                let came = (0..5).any(|_| ping(&far[0], far[1].address(ipv4), length, Duration::from_secs(1)));
                assert!(came, "full frames at MTU {mtu} (IPv4: {ipv4})");
            }
            // The older pods have the MTU they were made with: what does not fit, they are told.
            for ipv4 in [true, false] {
                traffic::tcp(&ends[0], &ends[1], ipv4);
                traffic::tcp(&ends[1], &far[0], ipv4);
            }
        }
        agents.iter().for_each(|agent| assert_eq!(agent.status().unaccounted_frames, 0));
    }
}

/// How the program is started, the kind of problem that its status then has, and words of it.
const REFUSALS: [(&[&str], &str, &str); 4] = [
    (&["setpriv", "--bounding-set=-net_raw"], "uplink_capability", "lacks CAP_NET_RAW: grant it"),
    (&["setpriv", "--bounding-set=-net_admin"], "capability", "lacks CAP_NET_ADMIN"),
    (&["setpriv", "--bounding-set=-bpf,-sys_admin,-perfmon"], "uplink_capability", "lacks CAP_BPF: grant it"),
    (
        &["prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-ipc_lock"],
        "uplink_sockets",
        "65536 bytes of memory may be locked",
    ),
];

pub(crate) fn a_missing_right_is_named() {
    let underlay = Underlay::create(1);
    let objects = [POOLS.to_owned(), node_object(0), node_object(1), uplink_object_of(0, UPLINK, AUTOMATIC)];
    underlay.directory.write_objects("cluster.yaml", &objects.concat());
    for (under, kind, words) in REFUSALS {
        let agent = underlay.start(0, AgentOptions { uplink: false, under, ..AgentOptions::default() });
        let named = |status: &StatusReport| {
            problems(status).iter().any(|(found, message)| *found == kind && message.contains(words))
        };
        let status = agent.wait_for_status(named);
        for (kind, message) in problems(&status) {
            println!("{}: {kind}: {message}", under.join(" "));
        }
        // The host's own network does not care.
        assert!(ping(&node(&underlay, 1), node(&underlay, 0).address(true), 3000, Duration::from_secs(1)));
    }
}
