//! Addresses of load balancers on the nodes' own link: one node answers for them, and another takes over when it is lost.
//!
//! The link is a bridge in a third namespace, which is a station on it as well; its kernel asks and remembers as any host's.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use millrace_control::kernel::{LinkChange, Namespace, Netlink};
use millrace_engine::packet::Mac;
use millrace_engine::port::af_xdp::set_transmit_checksum;

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{NODES, POOLS, UPLINK, Underlay, uplink_object};
use crate::directory::unique;
use crate::pod::Pod;
use crate::services::{Server, call, service_at};
use crate::traffic::Endpoint;

const BRIDGE: &str = "br0";
const STATION: [&str; 2] = ["192.0.2.9/24", "2001:db8::9/64"];
/// Addresses of the load balancer, on the link.
const ADDRESSES: [&str; 2] = ["192.0.2.50", "2001:db8::50"];
const PATIENCE: Duration = Duration::from_secs(10);

fn address(ipv4: bool) -> IpAddr {
    ADDRESSES[usize::from(!ipv4)].parse().expect("address")
}

/// A node's object with both addresses, ready or not.
fn node_object(number: usize, ready: bool) -> String {
    let (name, [ipv4, ipv6]) = NODES[number];
    let status = if ready { "True" } else { "Unknown" };
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus:\n  conditions: [{{type: Ready, status: '{status}'}}]\n  \
         addresses:\n  - {{type: InternalIP, address: {ipv4}}}\n  - {{type: InternalIP, address: '{ipv6}'}}\n"
    )
}

/// Both nodes and a station on one bridge.
fn bridged() -> (Underlay, Namespace) {
    let underlay = Underlay::without_link();
    let station = Namespace::create_named(&unique("station")).expect("namespace");
    let mut netlink = Netlink::open_in(station.handle()).expect("netlink");
    netlink.create_bridge(BRIDGE).expect("bridge");
    let bridge = netlink.existing_link(BRIDGE).expect("link").index;
    for (number, node) in underlay.nodes.iter().enumerate() {
        let end = format!("port{number}");
        netlink.create_veth((&end, None), (UPLINK, Some(node.handle()))).expect("veth");
        netlink.change_link(&end, &LinkChange { controller: Some(bridge), ..LinkChange::up() }).expect("up");
    }
    netlink.change_link(BRIDGE, &LinkChange::up()).expect("up");
    station.handle().enter(|| set_transmit_checksum(BRIDGE, false)).expect("entered").expect("set");
    STATION.iter().for_each(|own| netlink.add_address(BRIDGE, own.parse().expect("prefix")).expect("address"));
    underlay.raise();
    (underlay, station)
}

fn known_mac(station: &Endpoint, ipv4: bool) -> Option<Mac> {
    let mut netlink = Netlink::open_in(&station.namespace).expect("netlink");
    let all = netlink.neighbours().expect("neighbours");
    all.into_iter().find(|entry| entry.address == address(ipv4)).and_then(|entry| entry.mac)
}

fn uplink_mac(underlay: &Underlay, number: usize) -> Mac {
    let mut netlink = Netlink::open_in(underlay.nodes[number].handle()).expect("netlink");
    netlink.existing_link(UPLINK).expect("link").mac
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    start.elapsed()
}

pub(crate) fn one_node_announces_a_load_balancer_and_another_takes_over() {
    let (underlay, namespace) = bridged();
    let write = |ready: [bool; 2]| {
        let nodes = [0, 1].map(|number: usize| node_object(number, ready[number]) + &uplink_object(number));
        underlay.directory.write_objects("cluster.yaml", &(POOLS.to_owned() + &nodes.concat()));
    };
    write([true, true]);
    let agents = [0, 1].map(|number| underlay.start(number, AgentOptions::default()));
    let pods = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let ends = [0, 1].map(|number: usize| pods[number].add(&underlay.directory));
    let _servers = [0, 1].map(|number: usize| Server::start(&ends[number]));
    let both = [(&ends[0], "a"), (&ends[1], "b")];
    let addresses =
        |ipv4: bool| [if ipv4 { "10.96.0.1" } else { "fd00:96::1" }.parse().expect("address"), address(ipv4)];
    underlay.directory.write_objects("services.yaml", &service_at(1, "Cluster", &both, addresses));
    let own = STATION.map(|own| own.parse::<ipnet::IpNet>().expect("prefix").addr()).to_vec();
    let station = Endpoint { name: "station".to_owned(), namespace: namespace.handle().clone(), addresses: own };
    let macs = [0, 1].map(|number| uplink_mac(&underlay, number));
    for ipv4 in [true, false] {
        let to = SocketAddr::new(address(ipv4), 80);
        wait("the address is served", || call(&station, to, true).is_ok() && call(&station, to, false).is_ok());
    }
    let holders = [true, false].map(|ipv4| {
        let mac = known_mac(&station, ipv4).expect("the station asked for it");
        macs.iter().position(|known| *known == mac).expect("a node of ours")
    });
    // Each family's node is lost in turn: the other tells the station, which learns without asking.
    for (ipv4, holder) in [true, false].into_iter().zip(holders) {
        let other = 1 - holder;
        write([holder != 0, holder != 1]);
        let took = wait("the station hears of the new node", || known_mac(&station, ipv4) == Some(macs[other]));
        println!("IPv4 {ipv4}: from node {holder} to node {other}, the station knew after {took:?}");
        let to = SocketAddr::new(address(ipv4), 80);
        assert!((0..3).any(|_| call(&station, to, true).is_ok()), "served by the other node");
        write([true, true]);
        wait("the station hears that it is back", || known_mac(&station, ipv4) == Some(macs[holder]));
    }
    agents.iter().for_each(Agent::assert_sound);
}
