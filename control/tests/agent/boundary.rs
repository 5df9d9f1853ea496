//! The boundary to the host: its own traffic over the uplink goes on beside pods, whatever the agent does.
//!
//! ```text
//!  node a (under test) --- up0 --- node b ------- far0 --- near0 middle far1 --- near1 outside
//!  192.0.2.1, 2001:db8::1  1500 B          1300 B                         1500 B   198.51.100.2, 2001:db8:1::2
//! ```
//! Each case is asked in both families and in each state of the agent, with sockets of the host; the answers are printed
//! as a table, which `docs/host-boundary.md` has. The smaller MTU lies behind node b, so that its kernel must tell node a by ICMP.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use millrace_control::api::model::WorkerReport;
use millrace_control::kernel::{LinkChange, Namespace, NamespaceHandle, Netlink, Route, sysctl};
use millrace_engine::port::af_xdp::set_transmit_checksum;
use millrace_engine::tables::Tunnels;

use crate::agent_process::{Agent, AgentOptions};
pub(crate) use crate::boundary_table::Table;
use crate::cluster::{AF_XDP, Cluster, NODES, PACKET, UPLINK, Underlay};
use crate::directory::unique;
use crate::host::{host, node};
use crate::late_fragments;
use crate::ping::ping;
use crate::pod::Pod;
use crate::traffic::Endpoint;

const PATIENCE: Duration = Duration::from_secs(1);
const SMALL_MTU: u32 = 1300;
/// More than two fragments on either hop.
const FRAGMENTED_BYTES: usize = 4000;
const STREAM_BYTES: usize = 300_000;
const PROBES: usize = 20;

/// A hop: the name, MTU and addresses of its two ends.
struct Hop {
    ends: [&'static str; 2],
    mtu: u32,
    addresses: [[&'static str; 2]; 2],
}

const NARROW: Hop = Hop {
    ends: ["far0", "near0"],
    mtu: SMALL_MTU,
    addresses: [["203.0.113.1", "203.0.113.2"], ["2001:db8:2::1", "2001:db8:2::2"]],
};
const LAST: Hop = Hop {
    ends: ["far1", "near1"],
    mtu: 1500,
    addresses: [["198.51.100.1", "198.51.100.2"], ["2001:db8:1::1", "2001:db8:1::2"]],
};
/// Networks of the underlay and of the last hop.
const UNDERLAY: [&str; 2] = ["192.0.2.0/24", "2001:db8::/64"];
const BEYOND: [&str; 2] = ["198.51.100.0/24", "2001:db8:1::/64"];

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

impl Hop {
    fn join(&self, one: &NamespaceHandle, other: &NamespaceHandle) {
        let mut netlink = Netlink::open_in(one).expect("netlink");
        netlink.create_veth((self.ends[0], None), (self.ends[1], Some(other))).expect("veth");
        for (at, namespace) in [one, other].into_iter().enumerate() {
            let (name, mut netlink) = (self.ends[at], Netlink::open_in(namespace).expect("netlink"));
            namespace.enter(|| set_transmit_checksum(name, false)).expect("entered").expect("set");
            netlink.change_link(name, &LinkChange { mtu: Some(self.mtu), ..LinkChange::up() }).expect("up");
            for (both, length) in self.addresses.iter().zip([24, 64]) {
                netlink.add_address(name, IpNet::new(address(both[at]), length).expect("prefix")).expect("address");
            }
        }
    }
}

/// The route of a family by this link: to one of two networks, by one of two gateways.
fn route(netlink: &mut Netlink, link: &str, networks: [&str; 2], gateways: [&str; 2], ipv4: bool) -> Route {
    let at = usize::from(!ipv4);
    let link = netlink.existing_link(link).expect("link").index;
    Route::by_gateway(networks[at].parse().expect("prefix"), address(gateways[at]), link)
}

fn lead(namespace: &NamespaceHandle, link: &str, networks: [&str; 2], gateways: [&str; 2]) {
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    for ipv4 in [true, false] {
        let route = route(&mut netlink, link, networks, gateways, ipv4);
        netlink.set_route(&route).expect("route");
    }
}

/// A station two hops behind node b.
pub(crate) struct Outside {
    pub(crate) endpoint: Endpoint,
    namespaces: [Namespace; 2],
}

impl Outside {
    pub(crate) fn create(underlay: &Underlay) -> Self {
        let [middle, outside] =
            ["middle", "outside"].map(|name| Namespace::create_named(&unique(name)).expect("namespace"));
        let [node, router] = [0, 1].map(|number: usize| underlay.nodes[number].handle());
        let setting = |path: &str| (path.to_owned(), "1");
        for router in [router, middle.handle()] {
            let settings = [setting("ipv4/ip_forward"), setting("ipv6/conf/all/forwarding")];
            sysctl::write(router, &settings, false).expect("forwarding");
        }
        NARROW.join(router, middle.handle());
        LAST.join(middle.handle(), outside.handle());
        let gateways = |hop: &Hop, end: usize| hop.addresses.map(|both| both[end]);
        lead(node, UPLINK, BEYOND, NODES[1].1);
        lead(router, NARROW.ends[0], BEYOND, gateways(&NARROW, 1));
        lead(middle.handle(), NARROW.ends[1], UNDERLAY, gateways(&NARROW, 0));
        lead(outside.handle(), LAST.ends[1], UNDERLAY, gateways(&LAST, 0));
        let addresses = gateways(&LAST, 1).map(address).to_vec();
        let endpoint = Endpoint { name: "outside".to_owned(), namespace: outside.handle().clone(), addresses };
        Self { endpoint, namespaces: [middle, outside] }
    }

    /// Has the station and the router beside it know the way to these addresses, by node b.
    pub(crate) fn lead_to(&self, addresses: &[IpAddr]) {
        let [middle, outside] = self.namespaces.each_ref().map(Namespace::handle);
        for (namespace, hop, at) in [(outside, &LAST, 0), (middle, &NARROW, 0)] {
            let mut netlink = Netlink::open_in(namespace).expect("netlink");
            let link = netlink.existing_link(hop.ends[1]).expect("link").index;
            for to in addresses {
                let gateway = address(hop.addresses[usize::from(!to.is_ipv4())][at]);
                netlink.set_route(&Route::by_gateway((*to).into(), gateway, link)).expect("route");
            }
        }
    }
}

pub(crate) fn echo(from: &Endpoint, to: &Endpoint, ipv4: bool) -> Result<String, String> {
    let came = ping(from, to.address(ipv4), 56, PATIENCE);
    if came { Ok("answered".to_owned()) } else { Err("no answer".to_owned()) }
}

/// One datagram in fragments.
pub(crate) fn datagram(from: &Endpoint, to: &Endpoint, ipv4: bool) -> Result<String, String> {
    let (client, server) = (from.udp(ipv4), to.udp(ipv4));
    server.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let sent: Vec<u8> = (0..FRAGMENTED_BYTES).map(|at| (at * 7 / 3) as u8).collect();
    let said = |error: std::io::Error| error.to_string();
    client.send_to(&sent, server.local_addr().map_err(said)?).map_err(said)?;
    let mut buffer = vec![0; FRAGMENTED_BYTES + 1];
    let (length, _) = server.recv_from(&mut buffer).map_err(said)?;
    if buffer[..length] == sent { Ok("arrived".to_owned()) } else { Err("other bytes".to_owned()) }
}

/// A stream, and what the sender found the way's MTU to be.
pub(crate) fn stream(from: &Endpoint, to: &Endpoint, ipv4: bool, bytes: usize) -> Result<u32, String> {
    let said = |error: std::io::Error| error.to_string();
    let listen = || TcpListener::bind((to.address(ipv4), 0));
    let listener = to.namespace.enter(listen).expect("entered").map_err(said)?;
    listener.set_nonblocking(true).map_err(said)?;
    let target = listener.local_addr().map_err(said)?;
    let connect = || TcpStream::connect_timeout(&target, 3 * PATIENCE);
    let mut client = from.namespace.enter(connect).expect("entered").map_err(said)?;
    let end = Instant::now() + PATIENCE;
    let mut server = loop {
        match listener.accept() {
            Ok((server, _)) => break server,
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(said(error)),
        }
    };
    server.set_nonblocking(false).map_err(said)?;
    server.set_read_timeout(Some(5 * PATIENCE)).map_err(said)?;
    client.set_write_timeout(Some(5 * PATIENCE)).map_err(said)?;
    let sent: Vec<u8> = (0..bytes).map(|at| (at * 5 / 3) as u8).collect();
    let mut received = vec![0; bytes];
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| client.write_all(&sent).map_err(said));
        server.read_exact(&mut received).map_err(said)?;
        sending.join().expect("the sending side")
    })?;
    if received != sent {
        return Err("other bytes".to_owned());
    }
    path_mtu(&client).map_err(said)
}

/// The MTU by which TCP cuts its segments now: `TCP_INFO` (tcp(7)). `IPV6_MTU` would say that of the route it began with.
#[allow(unsafe_code)]
fn path_mtu(socket: &TcpStream) -> std::io::Result<u32> {
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut information: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    let target = std::ptr::from_mut(&mut information).cast();
    // SAFETY: both pointers are to live variables, the first of `length` bytes.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, target, &raw mut length) };
    if result == 0 { Ok(information.tcpi_pmtu) } else { Err(std::io::Error::last_os_error()) }
}

/// A datagram and what is answered to it.
fn question(from: &Endpoint, to: &Endpoint, ipv4: bool) -> Result<String, String> {
    let said = |error: std::io::Error| error.to_string();
    let (client, server) = (from.udp(ipv4), to.udp(ipv4));
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    }
    let mut buffer = [0; 600];
    client.send_to(b"who is it", server.local_addr().map_err(said)?).map_err(said)?;
    let (_, asking) = server.recv_from(&mut buffer).map_err(said)?;
    server.send_to(&[0x17; 512], asking).map_err(said)?;
    let (length, _) = client.recv_from(&mut buffer).map_err(said)?;
    if length == 512 { Ok("answered".to_owned()) } else { Err(format!("{length} bytes")) }
}

/// An ICMP error reaches the socket that it is about.
pub(crate) fn closed_port(from: &Endpoint, to: &Endpoint, ipv4: bool) -> Result<String, String> {
    let port = to.udp(ipv4).local_addr().map_err(|error| error.to_string())?.port();
    nobody_listens(from, to, ipv4, port)
}

fn nobody_listens(from: &Endpoint, to: &Endpoint, ipv4: bool, port: u16) -> Result<String, String> {
    let said = |error: std::io::Error| error.to_string();
    let closed = SocketAddr::new(to.address(ipv4), port);
    let open = || UdpSocket::bind((from.address(ipv4), 0)).and_then(|socket| socket.connect(closed).map(|()| socket));
    let socket = from.namespace.enter(open).expect("entered").map_err(said)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    socket.send(b"anybody there").map_err(said)?;
    match socket.recv(&mut [0; 16]) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok("refused".to_owned()),
        other => Err(format!("{other:?}")),
    }
}

/// The neighbour is forgotten and must be asked for again.
fn forgotten_neighbour(from: &Endpoint, to: &Endpoint, ipv4: bool) -> Result<String, String> {
    let mut netlink = Netlink::open_in(&to.namespace).expect("netlink");
    let link = netlink.existing_link(UPLINK).expect("link").index;
    netlink.delete_neighbour(link, from.address(ipv4)).map_err(|error| error.to_string())?;
    echo(from, to, ipv4)
}

/// What the kubelet does: a connection for each probe, a word and its answer.
fn probes(from: &Endpoint, to: &Endpoint, ipv4: bool) -> Result<String, String> {
    for probe in 1..=PROBES {
        stream(from, to, ipv4, 64).map_err(|error| format!("probe {probe}: {error}"))?;
    }
    Ok("answered".to_owned())
}

pub(crate) fn passes(from: &Endpoint, to: &Endpoint, ipv4: bool) -> Result<String, String> {
    stream(from, to, ipv4, STREAM_BYTES).map(|_| "arrived".to_owned())
}

/// Puts the route in place anew: such a one knows nothing of what was learned on the old one.
fn forget_path(namespace: &NamespaceHandle, link: &str, networks: [&str; 2], gateways: [&str; 2], ipv4: bool) {
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    let route = route(&mut netlink, link, networks, gateways, ipv4);
    netlink.delete_route(&route).expect("deleted");
    netlink.set_route(&route).expect("set");
}

/// Neither end knows the way's MTU beforehand: the far one would ask for short segments.
fn finds_the_mtu(from: &Endpoint, to: &Endpoint, ipv4: bool) -> Result<String, String> {
    forget_path(&from.namespace, UPLINK, BEYOND, NODES[1].1, ipv4);
    forget_path(&to.namespace, LAST.ends[1], UNDERLAY, LAST.addresses.map(|both| both[0]), ipv4);
    stream(from, to, ipv4, STREAM_BYTES).map(|mtu| format!("arrived, MTU {mtu}"))
}

/// A connection as of SSH: from the outside to the node, made before all else and kept.
struct Session {
    client: TcpStream,
    server: TcpStream,
}

impl Session {
    fn open(from: &Endpoint, to: &Endpoint, ipv4: bool) -> Session {
        let listener =
            to.namespace.enter(|| TcpListener::bind((to.address(ipv4), 0))).expect("entered").expect("bound");
        let target = listener.local_addr().expect("address");
        let connect = || TcpStream::connect_timeout(&target, 3 * PATIENCE);
        let client = from.namespace.enter(connect).expect("entered").expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        for end in [&client, &server] {
            end.set_read_timeout(Some(5 * PATIENCE)).expect("timeout");
        }
        Session { client, server }
    }

    /// A line and its echo, in both directions.
    fn speak(&self) -> Result<String, String> {
        let said = |error: std::io::Error| error.to_string();
        for (mut from, mut to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            let mut heard = [0; 2000];
            from.write_all(&[0x2e; 2000]).map_err(said)?;
            to.read_exact(&mut heard).map_err(said)?;
        }
        Ok("alive".to_owned())
    }
}

struct Stations {
    outside: Outside,
    own: Endpoint,
    among_pods: Endpoint,
    next: Endpoint,
    pods: [Endpoint; 2],
    /// In IPv4, and in IPv6.
    sessions: [Session; 2],
}

impl Stations {
    /// Everything that does not need an agent.
    fn ask_of_the_host(&self, table: &mut Table, state: &'static str) {
        let (own, outside, next) = (&self.own, &self.outside.endpoint, &self.next);
        for ends in [(own, outside), (outside, own), (own, next)] {
            table.ask(state, "ping", "answered", ends, echo);
        }
        let forgotten = "ping after the neighbour is forgotten (ARP, ND)";
        table.ask(state, forgotten, "answered", (next, own), forgotten_neighbour);
        for ends in [(own, outside), (outside, own)] {
            table.ask(state, "UDP question and answer, as of DNS", "answered", ends, question);
        }
        for ends in [(own, outside), (outside, own), (next, own)] {
            table.ask(state, "UDP in fragments", "arrived", ends, datagram);
        }
        let late = |from: &Endpoint, to: &Endpoint, ipv4| late_fragments::arrive(from, to, ipv4, PATIENCE);
        table.ask(state, "UDP, the last fragment first", "arrived", (next, own), late);
        for ends in [(own, outside), (outside, own)] {
            table.ask(state, "UDP to a closed port", "refused", ends, closed_port);
        }
        let vxlan = |from: &Endpoint, to: &Endpoint, ipv4| nobody_listens(from, to, ipv4, Tunnels::UDP_PORT);
        table.ask(state, "VXLAN from who is no node", "refused", (outside, own), vxlan);
        table.ask(state, "TCP through a hop of a smaller MTU", "arrived, MTU 1300", (own, outside), finds_the_mtu);
        table.ask(state, "TCP to the node", "arrived", (outside, own), passes);
        let session = |_: &Endpoint, _: &Endpoint, ipv4: bool| self.sessions[usize::from(!ipv4)].speak();
        table.ask(state, "TCP to the node, one connection throughout", "alive", (outside, own), session);
    }

    fn ask_of_pods(&self, table: &mut Table, state: &'static str) {
        for pod in &self.pods {
            table.ask(state, "TCP from node to pod", "arrived", (&self.own, pod), passes);
            table.ask(state, "ping from pod to node", "answered", (pod, &self.among_pods), echo);
        }
        table.ask(state, "ping from pod to its node", "answered", (&self.pods[0], &self.own), echo);
        table.ask(state, "TCP from pod to node", "arrived", (&self.pods[0], &self.own), passes);
        table.ask(state, "probes of the kubelet", "answered", (&self.own, &self.pods[0]), probes);
    }
}

/// Datagrams between pods as fast as one thread can send them, until told to stop or a minute has passed.
fn load(from: &Endpoint, to: &Endpoint, stop: &AtomicBool) -> u64 {
    let (client, server) = (from.udp(true), to.udp(true));
    let target: SocketAddr = server.local_addr().expect("address");
    let end = Instant::now() + Duration::from_secs(60);
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) && Instant::now() < end {
        for _ in 0..64 {
            sent += u64::from(client.send_to(&[7; 64], target).is_ok());
        }
    }
    sent
}

fn handed_back(agent: &Agent) -> u64 {
    let workers: Vec<WorkerReport> = agent.client().show("workers").expect("workers");
    workers.iter().filter_map(|worker| worker.events.get("host.handed_back")).sum()
}

pub(crate) fn the_hosts_own_traffic_goes_on_beside_pods() {
    ask_everything(AF_XDP, "By AF_XDP");
}

pub(crate) fn the_hosts_own_traffic_goes_on_beside_packet_sockets() {
    crate::root_tests::needs_kernel(6, 6, "tcx");
    ask_everything(PACKET, "By packet sockets");
}

/// Asks all of it with these fields in the objects of the uplinks, and compares the page.
fn ask_everything(more: &str, heading: &str) {
    let cluster = Cluster::with_uplinks(Underlay::create(1), [more; 2], AgentOptions::default());
    let Cluster { agents: [first, other], underlay } = cluster;
    let outside = Outside::create(&underlay);
    let pods = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let ends = [0, 1].map(|number: usize| pods[number].add(&underlay.directory));
    // The load has a pod of its own: what is asked is whether others suffer, and who floods fills his own queue.
    let flooder = Pod::create("a2", "a");
    let flooding = flooder.add(&underlay.directory);
    let [among_pods, _] = [0, 1].map(|number| host(&underlay, number));
    let [own, next] = [0, 1].map(|number| node(&underlay, number));
    let sessions = [true, false].map(|ipv4| Session::open(&outside.endpoint, &own, ipv4));
    let stations = Stations { outside, own, among_pods, next, pods: ends, sessions };
    crate::traffic::udp(&stations.pods[0], &stations.pods[1], true);
    let mut table = Table::default();

    stations.ask_of_the_host(&mut table, "up");
    stations.ask_of_pods(&mut table, "up");
    let given_back = handed_back(&first);
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let loading = scope.spawn(|| load(&flooding, &stations.pods[1], &stop));
        stations.ask_of_the_host(&mut table, "under load");
        stations.ask_of_pods(&mut table, "under load");
        stop.store(true, Ordering::Relaxed);
        loading.join().expect("load")
    });
    first.assert_sound();
    first.kill();
    stations.ask_of_the_host(&mut table, "killed");
    let first = underlay.start(0, AgentOptions::default());
    crate::traffic::udp(&stations.pods[0], &stations.pods[1], true);
    stations.ask_of_the_host(&mut table, "restarted");
    stations.ask_of_pods(&mut table, "restarted");

    println!("{}", table.text());
    println!("{} answers, {given_back} frames handed back before the load, {sent} datagrams of load", table.answers());
    assert_eq!(table.wrong(), Vec::<String>::new());
    assert!(given_back > 0 && handed_back(&first) > 0, "the uplink took what the host got back");
    assert!(sent > 10_000, "there was load: {sent}");
    first.assert_sound();
    other.assert_sound();
    table.hold(heading);
}
