//! Nodes in two subnets with a router of the kernel between them: plain IP inside a subnet, the tunnel across.
//!
//! ```text
//!  node a --- wire ---.                                  a 192.0.2.1, c 192.0.2.3
//!                     br0 router near1 --- up0 node b    b 198.51.100.2
//!  node c --- wire ---'
//! ```

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use millrace_control::api::model::{RouteReport, RouteTargetReport};
use millrace_control::kernel::{LinkChange, Namespace, NamespaceHandle, Netlink, Route, sysctl};
use millrace_engine::port::af_xdp::set_transmit_checksum;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{POOLS, UPLINK};
use crate::directory::{Directory, unique};
use crate::pod::Pod;
use crate::traffic;

/// A node: its name, its addresses, and its router's.
struct Node {
    name: &'static str,
    addresses: [&'static str; 2],
    gateways: [&'static str; 2],
}

const NEAR: [&str; 2] = ["192.0.2.254", "2001:db8:1::fe"];
const FAR: [&str; 2] = ["198.51.100.254", "2001:db8:2::fe"];
const NODES: [Node; 3] = [
    Node { name: "a", addresses: ["192.0.2.1", "2001:db8:1::1"], gateways: NEAR },
    Node { name: "c", addresses: ["192.0.2.3", "2001:db8:1::3"], gateways: NEAR },
    Node { name: "b", addresses: ["198.51.100.2", "2001:db8:2::2"], gateways: FAR },
];
/// The router's ends of the wires to the nodes.
const WIRES: [&str; 3] = ["near0", "near1", "far0"];

fn configure(namespace: &NamespaceHandle, link: &str, addresses: [&str; 2]) {
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    netlink.change_link(link, &LinkChange::up()).expect("up");
    for (address, length) in addresses.iter().zip([24, 64]) {
        netlink.add_address(link, format!("{address}/{length}").parse().expect("prefix")).expect("address");
    }
}

/// The router, and the nodes in their order.
fn build() -> (Namespace, [Namespace; 3]) {
    let router = Namespace::create_named(&unique("router")).expect("namespace");
    let nodes = NODES.each_ref().map(|node| Namespace::create_named(&unique(node.name)).expect("namespace"));
    let setting = |path: &str, value| (path.to_owned(), value);
    let settings = [
        setting("ipv4/ip_forward", "1"),
        setting("ipv6/conf/all/forwarding", "1"),
        // Nodes of one subnet meet on the bridge; nobody is to be told so.
        setting("ipv4/conf/all/send_redirects", "0"),
    ];
    sysctl::write(router.handle(), &settings, false).expect("settings");
    let mut netlink = Netlink::open_in(router.handle()).expect("netlink");
    netlink.create_bridge("br0").expect("bridge");
    let bridge = netlink.existing_link("br0").expect("bridge").index;
    for ((wire, node), Node { addresses, gateways, .. }) in WIRES.iter().zip(&nodes).zip(&NODES) {
        netlink.create_veth((wire, None), (UPLINK, Some(node.handle()))).expect("veth");
        for (namespace, link) in [(router.handle(), *wire), (node.handle(), UPLINK)] {
            namespace.enter(|| set_transmit_checksum(link, false)).expect("entered").expect("set");
        }
        let controller = (*gateways == NEAR).then_some(bridge);
        netlink.change_link(wire, &LinkChange { controller, ..LinkChange::up() }).expect("up");
        configure(node.handle(), UPLINK, *addresses);
        let mut own = Netlink::open_in(node.handle()).expect("netlink");
        own.change_link("lo", &LinkChange::up()).expect("up");
        let link = own.existing_link(UPLINK).expect("link").index;
        for (everything, gateway) in ["0.0.0.0/0", "::/0"].iter().zip(gateways) {
            let route = Route::by_gateway(everything.parse().expect("prefix"), gateway.parse().expect("address"), link);
            own.set_route(&route).expect("route");
        }
    }
    configure(router.handle(), "br0", NEAR);
    configure(router.handle(), "far0", FAR);
    (router, nodes)
}

fn objects() -> String {
    let pools = POOLS.replace("/16}", "/16, tunnel: acrossSubnets}").replace("/64'}", "/64', tunnel: acrossSubnets}");
    let of_node = |Node { name, addresses: [ipv4, ipv6], .. }: &Node| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus:\n  addresses:\n  \
             - {{type: InternalIP, address: {ipv4}}}\n  - {{type: InternalIP, address: '{ipv6}'}}\n\
             ---\napiVersion: millrace.dev/v1alpha1\nkind: Uplink\nmetadata: {{name: {name}}}\n\
             spec: {{node: {name}, interface: {UPLINK}, port: af_xdp}}\n"
        )
    };
    pools + &NODES.iter().map(of_node).collect::<String>()
}

/// Hears what the router's links carry.
fn listen(router: &NamespaceHandle) -> OwnedFd {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // ETH_P_ALL, in network byte order.
    let everything = std::num::NonZeroU32::new(u32::from(3u16.to_be())).map(rustix::net::Protocol::from_raw);
    let open = || rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, everything);
    router.enter(open).expect("entered").expect("a packet socket; CAP_NET_RAW")
}

/// Whether VXLAN was heard from one address to another, in IPv4.
fn heard_tunnel(socket: &OwnedFd, ends: [&str; 2]) -> bool {
    let bytes = |text: &str| text.parse::<std::net::Ipv4Addr>().expect("address").octets();
    let (source, target) = (bytes(ends[0]), bytes(ends[1]));
    let mut frame = [0u8; 2048];
    let mut heard = false;
    while let Ok((length, _)) = rustix::net::recv(socket, &mut frame[..], rustix::net::RecvFlags::empty()) {
        let frame = &frame[..length.min(2048)];
        let is_vxlan =
            frame.len() > 42 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == 8472u16.to_be_bytes();
        heard |= is_vxlan && frame[26..30] == source && frame[30..34] == target;
    }
    heard
}

pub(crate) fn across_subnets_there_is_a_tunnel_and_inside_there_is_none() {
    let directory = Directory::create();
    let (router, nodes) = build();
    directory.write_objects("cluster.yaml", &objects());
    let agents: Vec<Agent> = NODES
        .iter()
        .zip(&nodes)
        .map(|(node, namespace)| Agent::start(node.name, &directory, namespace.handle(), AgentOptions::default()))
        .collect();
    let pods = [("a1", "a"), ("c1", "c"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let [a1, c1, b1] = pods.each_ref().map(|pod| pod.add(&directory));
    // Room for a tunnel: a pod cannot know where it will speak.
    assert_eq!(pods[0].interface().map(|link| link.mtu), Some(1450));
    let count = |routes: &[RouteReport], directly: bool| {
        let is_wanted = |target: &RouteTargetReport| match target {
            RouteTargetReport::Direct { .. } => directly,
            RouteTargetReport::Tunnel { .. } => !directly,
            _ => false,
        };
        routes.iter().filter(|route| is_wanted(&route.target)).count()
    };
    // Of each family a block of the neighbour, and one of the node behind the router.
    for (agent, [direct, tunnelled]) in agents.iter().zip([[2, 2], [2, 2], [0, 4]]) {
        agent.wait_for_routes(|routes| count(routes, true) == direct && count(routes, false) == tunnelled);
    }
    for (one, other) in [(&a1, &c1), (&a1, &b1), (&c1, &b1)] {
        traffic::check(one, other);
    }
    let heard = listen(router.handle());
    traffic::udp(&a1, &c1, true);
    std::thread::sleep(Duration::from_millis(50));
    assert!(!heard_tunnel(&heard, ["192.0.2.1", "192.0.2.3"]), "a tunnel inside the subnet");
    traffic::udp(&a1, &b1, true);
    let end = Instant::now() + Duration::from_secs(2);
    while !heard_tunnel(&heard, ["192.0.2.1", "198.51.100.2"]) {
        assert!(Instant::now() < end, "no tunnel across the router");
        traffic::udp(&a1, &b1, true);
    }
    agents.iter().for_each(Agent::assert_sound);
}
