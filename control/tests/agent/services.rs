//! Services with sockets: of the node's own processes, of pods, and of a station outside.
//!
//! Pod `a1` is on node a, `b1` on node b; the outside lies two hops behind node b (`boundary.rs`). Every server says its name
//! and the address that it was called from, so a row of the table shows who answered and as whom the caller was seen. Each row
//! is asked by TCP and UDP in both families.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millrace_control::agent::HOST_INTERFACE;
use millrace_control::kernel::{Netlink, Route};

use crate::agent_process::{Agent, AgentOptions};
use crate::boundary::Outside;
use crate::cluster::{AF_XDP, Cluster, NODES, UPLINK, Underlay};
use crate::host::{host, node, remove};
use crate::pod::Pod;
use crate::traffic::Endpoint;

/// Where servers listen in pods.
pub(crate) const PORT: u16 = 8080;
pub(crate) const HOST_PORT: u16 = 8090;
/// Of the node's loopback address.
pub(crate) const LOOPBACK_PORT: u16 = 8091;
/// Connections a row and protocol: that one of two endpoints gets none happens once in 2^15.
const CONNECTIONS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(1);
const OPENING: Duration = Duration::from_secs(20);
pub(crate) const OPTIONS: AgentOptions = AgentOptions {
    workers: 1,
    uplink: true,
    more: "[services]\ncluster_ip_ranges = ['10.96.0.0/16', 'fd00:96::/112']\n\
           node_port_addresses = ['192.0.2.0/24', '2001:db8::/64']",
    under: &[],
};

/// Addresses of Service number `number`: ClusterIP, LoadBalancer, externalIP.
fn addresses(number: u8, ipv4: bool) -> [IpAddr; 3] {
    let texts = if ipv4 {
        [format!("10.96.0.{number}"), format!("203.0.113.1{number}"), format!("203.0.113.2{number}")]
    } else {
        [format!("fd00:96::{number}"), format!("2001:db8:9::1{number}"), format!("2001:db8:9::2{number}")]
    };
    texts.map(|text| text.parse().expect("address"))
}

fn node_port(number: u8) -> u16 {
    30_080 + u16::from(number)
}

/// A Service of every kind, with TCP and UDP on one port, and its endpoints.
fn service(number: u8, external: &str, endpoints: &[(&Endpoint, &str)]) -> String {
    let own = |ipv4| addresses(number, ipv4);
    let more = format!("  externalIPs: ['{}', '{}']\n", own(true)[2], own(false)[2]);
    let [four, six] = [own(true), own(false)];
    service_with(number, external, endpoints, &more, |ipv4| if ipv4 { [four[0], four[1]] } else { [six[0], six[1]] })
}

/// The same at this ClusterIP and this address of a load balancer.
pub(crate) fn service_at(
    number: u8,
    external: &str,
    endpoints: &[(&Endpoint, &str)],
    addresses: impl Fn(bool) -> [IpAddr; 2],
) -> String {
    service_with(number, external, endpoints, "", addresses)
}

fn service_with(
    number: u8,
    external: &str,
    endpoints: &[(&Endpoint, &str)],
    more: &str,
    addresses: impl Fn(bool) -> [IpAddr; 2],
) -> String {
    let name = format!("s{number}");
    let [four, six] = [addresses(true), addresses(false)];
    let node_port = node_port(number);
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  type: LoadBalancer\n  \
         externalTrafficPolicy: {external}\n  clusterIP: {}\n  clusterIPs: ['{}', '{}']\n{more}  ports:\n  \
         - {{name: tcp, port: 80, protocol: TCP, nodePort: {node_port}}}\n  \
         - {{name: udp, port: 80, protocol: UDP, nodePort: {node_port}}}\n\
         status: {{loadBalancer: {{ingress: [{{ip: '{}'}}, {{ip: '{}'}}]}}}}\n",
        four[0], four[0], six[0], four[1], six[1]
    );
    for ipv4 in [true, false] {
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        let listed: Vec<String> = endpoints
            .iter()
            .map(|(pod, node)| {
                format!("{{addresses: ['{}'], nodeName: {node}, conditions: {{ready: true}}}}", pod.address(ipv4))
            })
            .collect();
        write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-{}, namespace: default, labels: \
             {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\nports:\n\
             - {{name: tcp, port: {PORT}, protocol: TCP}}\n- {{name: udp, port: {PORT}, protocol: UDP}}\nendpoints: [{}]\n",
            family.to_lowercase(),
            listed.join(", ")
        )
        .expect("written");
    }
    text
}

/// A pod whose container has a port at its node.
pub(crate) fn host_port_object(pod: &Endpoint, node: &str) -> String {
    let ips: Vec<String> = pod.addresses.iter().map(|address| format!("{{ip: '{address}'}}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {}, namespace: default}}\nspec:\n  nodeName: {node}\n  containers:\n  \
         - name: web\n    ports:\n    - {{containerPort: {PORT}, hostPort: {HOST_PORT}, protocol: TCP}}\n    \
         - {{containerPort: {PORT}, hostPort: {HOST_PORT}, protocol: UDP}}\n    \
         - {{containerPort: {PORT}, hostPort: {LOOPBACK_PORT}, hostIP: 127.0.0.1, protocol: TCP}}\n    \
         - {{containerPort: {PORT}, hostPort: {LOOPBACK_PORT}, hostIP: 127.0.0.1, protocol: UDP}}\nstatus: {{phase: Running, podIPs: [{}]}}\n",
        pod.name,
        ips.join(", ")
    )
}

/// Servers of a pod, in both protocols and families, until dropped.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(pod: &Endpoint) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for ipv4 in [true, false] {
            let at = SocketAddr::new(pod.address(ipv4), PORT);
            let listen = || TcpListener::bind(at).and_then(|listener| UdpSocket::bind(at).map(|udp| (listener, udp)));
            let (listener, udp) = pod.namespace.enter(listen).expect("entered").expect("bound");
            listener.set_nonblocking(true).expect("set");
            udp.set_nonblocking(true).expect("set");
            let (name, stop) = (pod.name.clone(), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || serve(&name, &listener, &udp, &stop)));
        }
        Self { stop, threads }
    }
}

fn serve(name: &str, listener: &TcpListener, udp: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        let mut idle = true;
        if let Ok((mut client, from)) = listener.accept() {
            let _ = client.write_all(format!("{name} {}", from.ip()).as_bytes());
            idle = false;
        }
        if let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
            idle = false;
        }
        if idle {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Calls once without choosing a source; what the server said.
pub(crate) fn call(from: &Endpoint, to: SocketAddr, tcp: bool) -> Result<String, String> {
    let said = |error: std::io::Error| error.to_string();
    let mut text = String::new();
    if tcp {
        let connect = || TcpStream::connect_timeout(&to, PATIENCE);
        let mut socket = from.namespace.enter(connect).expect("entered").map_err(said)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(said)?;
        socket.read_to_string(&mut text).map_err(said)?;
        assert_eq!(socket.peer_addr().map_err(said)?, to, "the peer is who was called");
    } else {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        text = call_by_udp(from, any, to)?;
    }
    Ok(text)
}

/// The same by UDP from a socket that is bound to this address.
fn call_by_udp(from: &Endpoint, source: IpAddr, to: SocketAddr) -> Result<String, String> {
    let said = |error: std::io::Error| error.to_string();
    let socket = from.namespace.enter(|| UdpSocket::bind((source, 0))).expect("entered").map_err(said)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    socket.send_to(b"who", to).map_err(said)?;
    let mut buffer = [0; 128];
    let (length, answerer) = socket.recv_from(&mut buffer).map_err(said)?;
    if answerer != to {
        return Err(format!("{answerer} answered"));
    }
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Who called, as servers may see it.
struct Seen<'a> {
    caller: &'a Endpoint,
    node: &'a Endpoint,
}

impl Seen<'_> {
    /// `a1 node`, `b1 kept`: who answered, and as whom the caller was seen.
    fn word(&self, answer: &str) -> String {
        let (server, source) = answer.split_once(' ').unwrap_or((answer, ""));
        let source: Option<IpAddr> = source.parse().ok();
        let is = |endpoint: &Endpoint| source.is_some_and(|source| endpoint.addresses.contains(&source));
        let whose = if is(self.node) {
            "node"
        } else if is(self.caller) {
            "kept"
        } else {
            "other"
        };
        if whose == "other" { answer.to_owned() } else { format!("{server} {whose}") }
    }
}

#[derive(Default)]
struct Table {
    text: String,
    rows: usize,
    failed: usize,
}

impl Table {
    /// Calls several times by both protocols in both families.
    fn ask(&mut self, what: &str, seen: &Seen<'_>, to: impl Fn(bool) -> SocketAddr, expected: &str) {
        [true, false].into_iter().for_each(|ipv4| self.ask_by(ipv4, what, seen, &to, expected));
    }

    /// The same in one family.
    fn ask_by(&mut self, ipv4: bool, what: &str, seen: &Seen<'_>, to: impl Fn(bool) -> SocketAddr, expected: &str) {
        for tcp in [true, false] {
            let target = to(ipv4);
            let mut answers = BTreeSet::new();
            for _ in 0..CONNECTIONS {
                // A single loss on a busy machine is no finding.
                let answer = call(seen.caller, target, tcp).or_else(|_| call(seen.caller, target, tcp));
                answers.insert(answer.map_or_else(|error| error, |answer| seen.word(&answer)));
            }
            let got = answers.into_iter().collect::<Vec<_>>().join(", ");
            let wrong = if got == expected { "" } else { "  WRONG" };
            self.failed += usize::from(got != expected);
            self.rows += 1;
            let protocol = if tcp { "TCP" } else { "UDP" };
            let between = format!("{} to {what}", seen.caller.name);
            writeln!(self.text, "{between:<44} {protocol} {target:<28} {expected:<18} {got}{wrong}").expect("written");
        }
    }

    fn check(&self) {
        println!("{}{} rows", self.text, self.rows);
        assert_eq!(self.failed, 0, "rows that went wrong:\n{}", self.text);
    }
}

fn wait_until_served(from: &Endpoint, to: impl Fn(bool) -> SocketAddr) {
    let end = Instant::now() + OPENING;
    while ![true, false].into_iter().all(|ipv4| call(from, to(ipv4), true).is_ok()) {
        assert!(Instant::now() < end, "{} is not served: {:?}", to(true), call(from, to(true), true));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Pods, servers and Services: number 1 under the policy `Cluster`, 2 under `Local`.
struct World {
    ends: [Endpoint; 2],
    _pods: [Pod; 2],
    _servers: [Server; 2],
}

impl World {
    fn create(underlay: &Underlay) -> Self {
        let pods = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
        let ends = [0, 1].map(|number: usize| pods[number].add(&underlay.directory));
        let servers = [0, 1].map(|number: usize| Server::start(&ends[number]));
        let both = [(&ends[0], "a"), (&ends[1], "b")];
        let objects = [service(1, "Cluster", &both), service(2, "Local", &both), host_port_object(&ends[0], "a")];
        underlay.directory.write_objects("services.yaml", &objects.concat());
        Self { ends, _pods: pods, _servers: servers }
    }
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

pub(crate) fn the_host_reaches_services() {
    let Cluster { agents, underlay } = Cluster::on(Underlay::create(1), OPTIONS);
    let world = World::create(&underlay);
    let (own, other) = (node(&underlay, 0), node(&underlay, 1));
    let among_pods = host(&underlay, 0);
    let seen = Seen { caller: &own, node: &among_pods };
    wait_until_served(&own, |ipv4| at(own.address(ipv4), node_port(2)));
    wait_until_served(&own, |ipv4| at(other.address(ipv4), node_port(2)));
    let mut table = Table::default();
    for number in [1, 2] {
        let policy = if number == 1 { "Cluster" } else { "Local" };
        for (kind, name) in ["ClusterIP", "LoadBalancer", "externalIP"].into_iter().enumerate() {
            let to = |ipv4| at(addresses(number, ipv4)[kind], 80);
            table.ask(&format!("{name}, {policy}"), &seen, to, "a1 node, b1 node");
        }
        let to = |ipv4| at(own.address(ipv4), node_port(number));
        table.ask(&format!("its own NodePort, {policy}"), &seen, to, "a1 node, b1 node");
    }
    table.ask("its own hostPort", &seen, |ipv4| at(own.address(ipv4), HOST_PORT), "a1 node");
    // With the source that the kernel prefers, and with one that the caller chose.
    let loopback = |_| at(Ipv4Addr::LOCALHOST.into(), LOOPBACK_PORT);
    table.ask_by(true, "a hostPort at loopback", &seen, loopback, "a1 node");
    let answer = call_by_udp(&own, own.address(true), loopback(true)).expect("an answer");
    assert_eq!(seen.word(&answer), "a1 node");
    for (number, pod) in world.ends.iter().enumerate() {
        let name = ["a1 node", "b1 node"][number];
        table.ask(&format!("pod {}", pod.name), &seen, |ipv4| at(pod.address(ipv4), PORT), name);
    }
    // From a node's own address the other node is called like any station outside.
    let far = Seen { caller: &own, node: &host(&underlay, 1) };
    let to_other =
        |number| move |ipv4: bool| at(NODES[1].1[usize::from(!ipv4)].parse().expect("address"), node_port(number));
    table.ask("the other node's NodePort, Cluster", &far, to_other(1), "a1 node, b1 node");
    table.ask("the other node's NodePort, Local", &far, to_other(2), "b1 kept");
    table.check();

    // An address of a range that no Service has, and a port that it has not: silence, and a refusal at once.
    let connect = |to: SocketAddr| own.namespace.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("entered");
    let [service, ..] = addresses(1, true);
    assert_eq!(connect(at(service, 81)).expect_err("refused").kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(connect(at([10, 96, 0, 99].into(), 80)).expect_err("silence").kind(), std::io::ErrorKind::TimedOut);
    // A port of the node's own beside node ports is its own.
    let listener = own.namespace.enter(|| TcpListener::bind((own.address(true), 0))).expect("entered").expect("bound");
    connect(listener.local_addr().expect("address")).expect("connected by `lo`");
    agents.iter().for_each(Agent::assert_sound);

    // With the host's port its rules go: the port is the node's own again.
    drop(agents);
    assert!(remove(&underlay).status.success());
    for ipv4 in [true, false] {
        let to = at(own.address(ipv4), node_port(1));
        let listener = own.namespace.enter(|| TcpListener::bind(to)).expect("entered").expect("bound");
        connect(to).expect("connected by `lo`");
        assert!(listener.accept().is_ok());
    }
}

pub(crate) fn clients_outside_reach_services() {
    call_from_outside(AF_XDP);
}

pub(crate) fn clients_outside_reach_services_beside_udp_sockets() {
    call_from_outside(", port: udp");
}

/// With these fields in the objects of the uplinks.
fn call_from_outside(more: &str) {
    let cluster = Cluster::with_uplinks(Underlay::create(1), [more; 2], OPTIONS);
    let Cluster { agents: [first, other], underlay } = cluster;
    let outside = Outside::create(&underlay);
    let world = World::create(&underlay);
    let (own, next, far) = (node(&underlay, 0), node(&underlay, 1), &outside.endpoint);
    let seen = Seen { caller: far, node: &host(&underlay, 0) };
    wait_until_served(far, |ipv4| at(own.address(ipv4), node_port(2)));
    let mut table = Table::default();
    table.ask("NodePort, Cluster", &seen, |ipv4| at(own.address(ipv4), node_port(1)), "a1 node, b1 node");
    table.ask("NodePort, Local", &seen, |ipv4| at(own.address(ipv4), node_port(2)), "a1 kept");
    table.ask("hostPort", &seen, |ipv4| at(own.address(ipv4), HOST_PORT), "a1 kept");
    // A pod at the other node's address, which sees the pod's node.
    let at_home = Seen { caller: &world.ends[0], node: &host(&underlay, 0) };
    let pod = Seen { caller: &world.ends[0], node: &host(&underlay, 1) };
    let as_node = Seen { caller: &own, node: &host(&underlay, 1) };
    // Given to itself, the pod meets its node.
    table.ask("its node's NodePort, Local", &at_home, |ipv4| at(own.address(ipv4), node_port(2)), "a1 node, b1 kept");
    table.ask(
        "the other node's NodePort, Cluster",
        &pod,
        |ipv4| at(next.address(ipv4), node_port(1)),
        "a1 node, b1 node",
    );
    let answer = call(&world.ends[0], at(next.address(true), node_port(2)), true).expect("an answer");
    assert_eq!(as_node.word(&answer), "b1 kept", "to the other node a pod is its node");

    // The other node stops to be one of ours: only its kernel forwards.
    for agent in [&first, &other] {
        agent.assert_sound();
    }
    drop(other);
    remove_host_port(&underlay, 1);
    let mut netlink = Netlink::open_in(underlay.nodes[1].handle()).expect("netlink");
    let link = netlink.existing_link(UPLINK).expect("link").index;
    let to_services = ["203.0.113.16/28", "203.0.113.8/29", "2001:db8:9::/64", "10.96.0.0/16", "fd00:96::/112"];
    for prefix in to_services {
        let prefix: ipnet::IpNet = prefix.parse().expect("prefix");
        let gateway = own.address(prefix.addr().is_ipv4());
        netlink.set_route(&Route::by_gateway(prefix, gateway, link)).expect("route");
    }
    outside.lead_to(&[true, false].map(|ipv4| addresses(2, ipv4)).concat());
    let only_here = service(2, "Local", &[(&world.ends[0], "a")]);
    underlay.directory.write_objects("services.yaml", &only_here);
    for (kind, name, expected) in
        [(0, "ClusterIP", "a1 node"), (1, "LoadBalancer", "a1 kept"), (2, "externalIP", "a1 kept")]
    {
        let to = |ipv4| at(addresses(2, ipv4)[kind], 80);
        wait_until_served(far, to);
        table.ask(&format!("{name}, Local"), &seen, to, expected);
    }
    table.check();
    first.assert_sound();
}

fn remove_host_port(underlay: &Underlay, number: usize) {
    let mut netlink = Netlink::open_in(underlay.nodes[number].handle()).expect("netlink");
    assert!(netlink.delete_link(HOST_INTERFACE).expect("deleted"));
}
