//! Pods and the world: a station two hops behind the other node, with sockets at both ends.
//!
//! The hops are those of `boundary.rs`; the one of a smaller MTU lies on the way, so errors of routers must find the pod.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use millrace_control::kernel::{Netlink, Route, sysctl};
use millrace_engine::limits;

use crate::agent_process::{Agent, AgentOptions};
use crate::boundary::{Outside, Table, closed_port, datagram, echo, passes};
use crate::cluster::{Cluster, NODES, UPLINK, Underlay};
use crate::host::node;
use crate::pod::Pod;
use crate::traffic::Endpoint;

const RESERVED: &str = "ipv4/ip_local_reserved_ports";
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the far end: the address and port it is known by there.
fn seen_as(client: &Endpoint, server: &Endpoint, ipv4: bool) -> Result<(IpAddr, u16), String> {
    let said = |error: std::io::Error| error.to_string();
    let listen = || TcpListener::bind((server.address(ipv4), 0));
    let listener = server.namespace.enter(listen).expect("entered").map_err(said)?;
    let target = listener.local_addr().map_err(said)?;
    let connect = || TcpStream::connect_timeout(&target, PATIENCE);
    let _client = client.namespace.enter(connect).expect("entered").map_err(said)?;
    listener.accept().map(|(_, peer)| (peer.ip(), peer.port())).map_err(said)
}

fn is_masqueraded(client: &Endpoint, server: &Endpoint, ipv4: bool) -> Result<String, String> {
    let (address, port) = seen_as(client, server, ipv4)?;
    let node: IpAddr = NODES[0].1[usize::from(!ipv4)].parse().expect("address");
    let (first, last) = limits::OUTSIDE_PORTS;
    let is_ours = address == node && (first..=last).contains(&port);
    if is_ours { Ok("node".to_owned()) } else { Err(format!("{address} port {port}")) }
}

fn has_own_address(client: &Endpoint, server: &Endpoint, ipv4: bool) -> Result<String, String> {
    let (address, _) = seen_as(client, server, ipv4)?;
    if address == client.address(ipv4) { Ok("pod".to_owned()) } else { Err(address.to_string()) }
}

/// A stream, and the MTU that the sender found: routers on the way told the pod.
fn finds_the_mtu(client: &Endpoint, server: &Endpoint, ipv4: bool) -> Result<String, String> {
    crate::boundary::stream(client, server, ipv4, 300_000).map(|mtu| format!("arrived, MTU {mtu}"))
}

/// Waits until the agent knows a way out and its neighbour.
pub(crate) fn wait_for_way_out(agent: &Agent) {
    agent.wait_for_routes(|routes| routes.iter().filter(|route| route.object.starts_with("outside, by")).count() == 2);
}

pub(crate) fn pods_reach_the_outside() {
    let underlay = Underlay::create(1);
    sysctl::write(underlay.nodes[0].handle(), &[(RESERVED.to_owned(), "8080,50000")], false).expect("set");
    let Cluster { agents: [first, other], underlay } = Cluster::on(underlay, AgentOptions::default());
    let outside = Outside::create(&underlay);
    wait_for_way_out(&first);
    let pods = ["a1", "a2"].map(|name| Pod::create(name, "a"));
    let ends = pods.each_ref().map(|pod| pod.add(&underlay.directory));
    let (far, next) = (&outside.endpoint, node(&underlay, 1));
    let mut table = Table::default();
    for pod in &ends {
        table.ask("up", "ping", "answered", (pod, far), echo);
        table.ask("up", "TCP", "arrived", (pod, far), passes);
        table.ask("up", "TCP, seen as", "node", (pod, far), is_masqueraded);
    }
    table.ask("up", "TCP through a hop of a smaller MTU", "arrived, MTU 1300", (&ends[0], far), finds_the_mtu);
    table.ask("up", "UDP in fragments", "arrived", (&ends[0], far), datagram);
    table.ask("up", "UDP to a closed port", "refused", (&ends[0], far), closed_port);
    table.ask("up", "TCP to another node's address", "arrived", (&ends[0], &next), passes);
    table.ask("up", "TCP to another node, seen as", "node", (&ends[0], &next), is_masqueraded);
    table.ask("up", "TCP from outside to the node", "arrived", (far, &node(&underlay, 0)), passes);

    // The router is gone for a while: the host forgot its address and asks again.
    let mut netlink = Netlink::open_in(underlay.nodes[0].handle()).expect("netlink");
    let link = netlink.existing_link(UPLINK).expect("link").index;
    for ipv4 in [true, false] {
        netlink.delete_neighbour(link, next.address(ipv4)).expect("deleted");
    }
    table.ask("neighbour", "TCP", "arrived", (&ends[0], far), passes);
    println!("{}", table.text());
    assert_eq!(table.wrong(), Vec::<String>::new());

    let reserved = || sysctl::read(underlay.nodes[0].handle(), RESERVED).expect("setting");
    let (first_port, last_port) = limits::OUTSIDE_PORTS;
    assert_eq!(reserved(), format!("8080,{first_port}-{last_port}"), "the host's sockets keep off these ports");
    for agent in [&first, &other] {
        agent.assert_sound();
    }
    first.kill();
    assert_eq!(reserved(), format!("8080,{first_port}-{last_port}"));
    let first = underlay.start(0, AgentOptions::default());
    wait_for_way_out(&first);
    let mut table = Table::default();
    table.ask("restarted", "TCP", "arrived", (&ends[0], far), passes);
    assert_eq!(table.wrong(), Vec::<String>::new());
    drop(first);
    assert_eq!(reserved(), format!("8080,{first_port}-{last_port}"), "connections that outlive it keep their ports");
}

pub(crate) fn an_exempt_network_sees_pods_by_their_own_addresses() {
    let options = AgentOptions {
        more: "[masquerade]\nexempt = ['198.51.100.0/24', '2001:db8:1::/64']",
        ..AgentOptions::default()
    };
    let Cluster { agents: [first, _], underlay } = Cluster::on(Underlay::create(1), options);
    let outside = Outside::create(&underlay);
    wait_for_way_out(&first);
    let pod = Pod::create("a1", "a");
    let (end, far) = (pod.add(&underlay.directory), &outside.endpoint);
    outside.lead_to(&end.addresses);
    let router = underlay.nodes[1].handle();
    let mut netlink = Netlink::open_in(router).expect("netlink");
    let link = netlink.existing_link(UPLINK).expect("link").index;
    for ipv4 in [true, false] {
        let gateway = NODES[0].1[usize::from(!ipv4)].parse().expect("address");
        netlink.set_route(&Route::by_gateway(end.address(ipv4).into(), gateway, link)).expect("route");
    }
    let mut table = Table::default();
    table.ask("up", "TCP to outside, seen as", "pod", (&end, far), has_own_address);
    table.ask("up", "TCP to outside", "arrived", (&end, far), passes);
    table.ask("up", "ping to outside", "answered", (&end, far), echo);
    table.ask("up", "UDP in fragments", "arrived", (&end, far), datagram);
    table.ask("up", "TCP from outside, seen as", "pod", (far, &end), has_own_address);
    table.ask("up", "TCP from outside", "arrived", (far, &end), passes);
    table.ask("up", "ping from outside", "answered", (far, &end), echo);
    println!("{}", table.text());
    first.assert_sound();
    assert_eq!(table.wrong(), Vec::<String>::new());
}
