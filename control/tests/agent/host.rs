//! The host's own port: node to pods, pods to their node, nodes to each other by their addresses among pods.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use millrace_control::agent::HOST_INTERFACE;
use millrace_control::kernel::{NamespaceHandle, Netlink};

use crate::agent_process::AgentOptions;
use crate::cluster::{Cluster, NODES, Underlay};
use crate::ping::ping;
use crate::pod::Pod;
use crate::traffic::{self, Endpoint};

const PATIENCE: Duration = Duration::from_secs(10);

/// The host of a node with its addresses among pods, once it has one of each family.
pub(crate) fn host(underlay: &Underlay, number: usize) -> Endpoint {
    let namespace = underlay.nodes[number].handle().clone();
    let end = Instant::now() + PATIENCE;
    loop {
        let addresses = host_addresses(&namespace);
        if addresses.len() == 2 {
            return Endpoint { name: format!("host {}", NODES[number].0), namespace, addresses };
        }
        assert!(Instant::now() < end, "the host's port has {addresses:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The host of a node with its addresses on the underlay.
pub(crate) fn node(underlay: &Underlay, number: usize) -> Endpoint {
    let (name, addresses) = NODES[number];
    let addresses = addresses.map(|address| address.parse().expect("address")).to_vec();
    Endpoint { name: format!("node {name}"), namespace: underlay.nodes[number].handle().clone(), addresses }
}

fn host_addresses(namespace: &NamespaceHandle) -> Vec<IpAddr> {
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    let Ok(all) = netlink.addresses(HOST_INTERFACE) else { return Vec::new() };
    let local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    all.iter().map(ipnet::IpNet::addr).filter(|address| !local(address)).collect()
}

/// Pings in both families; the first may be lost while the way opens.
pub(crate) fn pings(from: &Endpoint, to: &Endpoint) {
    for ipv4 in [true, false] {
        let came = (0..5).any(|_| ping(from, to.address(ipv4), 56, Duration::from_secs(1)));
        assert!(came, "ping from {} to {} (IPv4: {ipv4})", from.name, to.name);
    }
}

pub(crate) fn the_host_reaches_pods_and_pods_reach_it() {
    let Cluster { agents, underlay } = Cluster::create(1, AgentOptions::default());
    // Before the first pod: the node has blocks of its own.
    let hosts = [host(&underlay, 0), host(&underlay, 1)];
    traffic::check(&hosts[0], &hosts[1]);
    let pods = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let [a1, b1] = [0, 1].map(|number: usize| pods[number].add(&underlay.directory));
    for pod in [&a1, &b1] {
        traffic::check(&hosts[0], pod);
        pings(&hosts[0], pod);
        pings(pod, &hosts[0]);
    }
    pings(&hosts[0], &hosts[1]);
    // A pod also reaches its node by the addresses that everybody knows, and the node may answer from them.
    let node = node(&underlay, 0);
    traffic::check(&node, &a1);
    pings(&a1, &node);
    // Without being told, the host's sockets choose the address that the other node routes back.
    for ipv4 in [true, false] {
        let any: IpAddr = if ipv4 { [0; 4].into() } else { [0; 16].into() };
        let connect = || {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect((b1.address(ipv4), 9))?;
            socket.local_addr()
        };
        let chosen = hosts[0].namespace.enter(connect).expect("entered").expect("connected");
        assert_eq!(chosen.ip(), hosts[0].address(ipv4));
    }
    // A pod that is not there: the host is told by the gateway, at once.
    let block = b1.address(true);
    let IpAddr::V4(near) = block else { unreachable!() };
    let absent = IpAddr::from((near.to_bits() + 9).to_be_bytes());
    let refused = hosts[0].namespace.enter(|| TcpStream::connect_timeout(&(absent, 80).into(), PATIENCE)).expect("in");
    assert_eq!(refused.err().and_then(|error| error.raw_os_error()), Some(libc::EHOSTUNREACH));
    agents.iter().for_each(crate::agent_process::Agent::assert_sound);
}

fn routes(namespace: &NamespaceHandle) -> Vec<String> {
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    netlink.own_routes().expect("routes").iter().map(ToString::to_string).collect()
}

pub(crate) fn remove(underlay: &Underlay) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.args(["agent", "--remove-host-port", "--config"]).arg(underlay.directory.file("a.toml"));
    underlay.nodes[0].handle().enter(|| command.output()).expect("entered").expect("program")
}

pub(crate) fn the_hosts_port_outlives_its_agent() {
    let Cluster { agents: [first, other], underlay } = Cluster::create(1, AgentOptions::default());
    let (directory, namespace) = (&underlay.directory, underlay.nodes[0].handle());
    let pods = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let [a1, b1] = [0, 1].map(|number: usize| pods[number].add(directory));
    let near = host(&underlay, 0);
    traffic::udp(&near, &b1, true);
    let link = || Netlink::open_in(namespace).expect("netlink").link(HOST_INTERFACE).expect("asked");
    let state = || (link().map(|link| (link.index, link.mac, link.mtu)), host_addresses(namespace), routes(namespace));
    let before = state();
    assert_eq!((before.1.len(), before.2.len()), (2, 2), "{before:?}");

    // A connection of the host lives through a killed agent.
    let listener = b1.namespace.enter(|| TcpListener::bind((b1.address(true), 0))).expect("entered").expect("bound");
    let target = listener.local_addr().expect("address");
    let mut client = near.namespace.enter(|| TcpStream::connect(target)).expect("entered").expect("connected");
    let (mut server, _) = listener.accept().expect("accepted");
    let mut say = |word: &[u8; 4]| {
        let mut heard = [0; 4];
        client.write_all(word).expect("sent");
        server.set_read_timeout(Some(PATIENCE)).expect("timeout");
        server.read_exact(&mut heard).expect("received");
        assert_eq!(&heard, word);
    };
    say(b"one.");
    first.kill();
    assert_eq!(state(), before, "everything stays while no agent runs");
    let first = underlay.start(0, AgentOptions::default());
    say(b"two.");
    assert_eq!(state(), before, "the next agent finds everything right");
    traffic::check(&near, &a1);
    traffic::check(&near, &b1);

    // What somebody takes away comes back.
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    netlink.delete_address(HOST_INTERFACE, near.address(true).into()).expect("deleted");
    let end = Instant::now() + PATIENCE;
    while state() != before {
        assert!(Instant::now() < end, "{:?} is not mended", state());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(netlink.delete_link(HOST_INTERFACE).expect("deleted"));
    assert_eq!(host(&underlay, 0).addresses, near.addresses, "the same addresses on a new interface");
    traffic::check(&near, &b1);
    for agent in [&first, &other] {
        agent.assert_sound();
    }

    let refused = remove(&underlay);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("is running"));
    drop(first);
    assert!(link().is_some(), "a stopped agent leaves it");
    assert!(remove(&underlay).status.success());
    assert_eq!((link(), routes(namespace)), (None, Vec::new()));
    assert!(remove(&underlay).status.success(), "may be repeated");
}
