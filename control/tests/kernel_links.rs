//! Links, addresses, routes and neighbours against the real kernel, between two namespaces of the test's own.
//! Needs root.

#[path = "../../engine/tests/support/root_tests.rs"]
#[macro_use]
mod root_tests;
mod support;

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use millrace_control::kernel::virtual_links::VxlanDevice;
use millrace_control::kernel::{
    Change, LinkChange, Monitor, Namespace, Neighbour, NeighbourState, Netlink, Route, namespace, sysctl,
};
use millrace_engine::packet::Mac;

const TIMEOUT: Duration = Duration::from_secs(10);

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn network(text: &str) -> IpNet {
    text.parse().expect("network")
}

struct Node {
    namespace: Namespace,
    netlink: Netlink,
}

/// Two namespaces joined by a veth pair `up0` with addresses .1 and .2, and ::1 and ::2.
fn nodes() -> [Node; 2] {
    let mut nodes = [(); 2].map(|()| {
        let namespace = Namespace::create_anonymous().expect("namespace");
        let netlink = Netlink::open_in(namespace.handle()).expect("netlink");
        Node { namespace, netlink }
    });
    let [first, second] = &mut nodes;
    first.netlink.create_veth(("up0", None), ("up0", Some(second.namespace.handle()))).expect("veth");
    for (number, node) in nodes.iter_mut().enumerate() {
        let change = LinkChange {
            up: Some(true),
            mac: Some(Mac([2, 0, 0, 0, 0, number as u8 + 1])),
            mtu: Some(1600),
            gso_max_size: Some(61_500),
            ..LinkChange::default()
        };
        node.netlink.change_link("up0", &change).expect("changed");
        node.netlink.change_link("lo", &LinkChange::up()).expect("up");
        for prefix in ["192.0.2.", "2001:db8::"] {
            let length = if prefix.contains(':') { 64 } else { 24 };
            let address = network(&format!("{prefix}{}/{length}", number + 1));
            node.netlink.add_address("up0", address).expect("address");
            node.netlink.add_address("up0", address).expect("and again");
        }
    }
    nodes
}

fn request_and_reply(nodes: &[Node; 2], from: IpAddr, to: IpAddr) {
    let bind = |node: &Node, address: IpAddr| {
        let socket = node.namespace.handle().enter(|| UdpSocket::bind((address, 0))).expect("entered").expect("bound");
        socket.set_read_timeout(Some(TIMEOUT)).expect("timeout");
        socket
    };
    let (client, server) = (bind(&nodes[0], from), bind(&nodes[1], to));
    client.send_to(b"request", server.local_addr().expect("address")).expect("sent");
    let mut buffer = [0; 16];
    let (length, peer) = server.recv_from(&mut buffer).expect("request arrives");
    server.send_to(&buffer[..length], peer).expect("sent");
    assert_eq!(client.recv_from(&mut buffer).expect("reply arrives").0, 7);
}

fn a_link_reads_back_as_it_was_set() {
    let mut nodes = nodes();
    let link = nodes[0].netlink.existing_link("up0").expect("link");
    assert_eq!((link.mac, link.mtu, link.up), (Mac([2, 0, 0, 0, 0, 1]), 1600, true));
    assert_eq!((link.gso_max_size, link.gso_ipv4_max_size), (Some(61_500), Some(61_500)));
    assert!(link.carrier && link.operational && link.kind.as_deref() == Some("veth"), "{link:?}");
    assert_eq!(nodes[0].netlink.links().expect("links").len(), 2);

    let netlink = &mut nodes[0].netlink;
    netlink.create_bridge("br0").expect("bridge");
    let bridge = netlink.existing_link("br0").expect("bridge");
    let join = LinkChange { controller: Some(bridge.index), ..LinkChange::default() };
    netlink.change_link("up0", &join).expect("joined");
    assert_eq!(netlink.existing_link("up0").expect("link").controller, Some(bridge.index));
    assert!(netlink.delete_link("br0").expect("deleted"));
    assert_eq!(netlink.existing_link("up0").expect("link").controller, None);

    let other = nodes[1].namespace.handle().clone();
    nodes[0].netlink.create_veth(("a0", None), ("a1", None)).expect("veth");
    nodes[0].netlink.move_link("a1", &other).expect("moved");
    assert!(nodes[0].netlink.link("a1").expect("asked").is_none());
    assert!(nodes[1].netlink.link("a1").expect("asked").is_some());
    assert!(nodes[0].netlink.delete_link("a0").expect("deleted"));
    assert!(nodes[1].netlink.link("a1").expect("asked").is_none(), "a pair goes together");
}

fn addresses_need_no_duplicate_detection_and_can_be_taken_back() {
    let mut nodes = nodes();
    // An address under detection could not be bound yet.
    request_and_reply(&nodes, address("2001:db8::1"), address("2001:db8::2"));
    request_and_reply(&nodes, address("192.0.2.1"), address("192.0.2.2"));
    let netlink = &mut nodes[0].netlink;
    let held = netlink.addresses("up0").expect("addresses");
    assert!(held.contains(&network("192.0.2.1/24")) && held.contains(&network("2001:db8::1/64")), "{held:?}");
    assert!(netlink.delete_address("up0", network("192.0.2.1/24")).expect("deleted"));
    assert!(!netlink.delete_address("up0", network("192.0.2.1/24")).expect("not there"));
    assert!(!netlink.delete_address("up7", network("192.0.2.1/24")).expect("no link"));
    assert!(!netlink.addresses("up0").expect("addresses").contains(&network("192.0.2.1/24")));
}

fn routes_are_set_found_replaced_and_deleted() {
    let mut nodes = nodes();
    let netlink = &mut nodes[0].netlink;
    let link = netlink.existing_link("up0").expect("link").index;
    let mut routes = Vec::new();
    for (block, range, gateway, source) in [
        ("10.7.0.0/26", "10.7.0.0/16", "192.0.2.2", "192.0.2.1"),
        ("fd07::/122", "fd07::/48", "fe80::7", "2001:db8::1"),
    ] {
        let mut route = Route::by_gateway(network(block), address(gateway), link);
        (route.mtu, route.source) = (Some(1450), Some(address(source)));
        routes.extend([route, Route::blackhole(network(range))]);
    }
    for route in &routes {
        netlink.set_route(route).expect("set");
        netlink.set_route(route).expect("and again");
    }
    let found = netlink.own_routes().expect("routes");
    assert_eq!(found.len(), 4, "{found:?}");
    for route in &routes {
        let same = found.iter().find(|other| other.destination == route.destination).expect("listed");
        assert_eq!((same.blackhole, same.gateway, same.mtu), (route.blackhole, route.gateway, route.mtu));
        assert_eq!(same.source, route.source);
    }

    let lookup = netlink.lookup_route(address("10.7.0.9")).expect("asked").expect("a route");
    assert_eq!((lookup.link, lookup.next_hop, lookup.mtu), (link, address("192.0.2.2"), Some(1450)));
    assert_eq!(lookup.source, Some(address("192.0.2.1")));
    let direct = netlink.lookup_route(address("2001:db8::2")).expect("asked").expect("a route");
    assert_eq!((direct.link, direct.next_hop), (link, address("2001:db8::2")));
    for nowhere in ["10.7.1.1", "fd07::1:0", "203.0.113.1", "2001:db8:1::1"] {
        assert_eq!(netlink.lookup_route(address(nowhere)).expect("asked"), None, "{nowhere}");
    }
    for route in &routes {
        assert!(netlink.delete_route(route).expect("deleted"));
        assert!(!netlink.delete_route(route).expect("not there"));
    }
    assert_eq!(netlink.own_routes().expect("routes"), []);
}

fn wait_for(monitor: &mut Monitor, wanted: impl Fn(&Change) -> bool) -> Change {
    let until = Instant::now() + TIMEOUT;
    let mut seen = Vec::new();
    while Instant::now() < until {
        for change in monitor.wait(Duration::from_millis(200)).expect("monitor") {
            if wanted(&change) {
                return change;
            }
            seen.push(change);
        }
    }
    panic!("not seen among {seen:?}");
}

fn a_managed_neighbour_is_resolved_without_traffic_and_reported() {
    let mut nodes = nodes();
    let mut monitor = Monitor::open_in(nodes[0].namespace.handle()).expect("monitor");
    let link = nodes[0].netlink.existing_link("up0").expect("link").index;
    for text in ["192.0.2.2", "2001:db8::2"] {
        let next_hop = address(text);
        nodes[0].netlink.set_managed_neighbour(link, next_hop).expect("set");
        nodes[0].netlink.set_managed_neighbour(link, next_hop).expect("and again");
        let resolved = |neighbour: &Neighbour| neighbour.address == next_hop && neighbour.usable_mac().is_some();
        let change = wait_for(&mut monitor, |change| matches!(change, Change::Neighbour(found) if resolved(found)));
        let Change::Neighbour(neighbour) = change else { unreachable!("asked for a neighbour") };
        assert_eq!((neighbour.link, neighbour.mac), (link, Some(Mac([2, 0, 0, 0, 0, 2]))));
        assert!(neighbour.managed, "{neighbour:?}");
        let listed = nodes[0].netlink.neighbours().expect("neighbours");
        assert!(listed.iter().any(|other| resolved(other) && other.managed), "{listed:?}");
    }

    // One that does not answer may not be used.
    let absent = address("192.0.2.9");
    nodes[0].netlink.set_managed_neighbour(link, absent).expect("set");
    wait_for(&mut monitor, |change| {
        matches!(change, Change::Neighbour(found) if found.address == absent
            && found.state == NeighbourState::Failed && found.usable_mac().is_none())
    });
    assert!(nodes[0].netlink.delete_neighbour(link, absent).expect("deleted"));
    wait_for(&mut monitor, |change| matches!(change, Change::NeighbourRemoved(found) if found.address == absent));
    assert!(!nodes[0].netlink.delete_neighbour(link, absent).expect("not there"));
}

/// Reads away what the kernel still says of the links just made (carrier, link-local addresses and their routes come
/// late on a busy machine) until a wait ends with nothing.
fn wait_for_silence(monitor: &mut Monitor) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !monitor.wait(Duration::from_millis(200)).expect("a wait").is_empty() {
        assert!(Instant::now() < deadline, "the kernel never falls silent about new links");
    }
}

fn the_monitor_reports_links_addresses_and_routes() {
    let mut nodes = nodes();
    let mut monitor = Monitor::open_in(nodes[0].namespace.handle()).expect("monitor");
    wait_for_silence(&mut monitor);
    let netlink = &mut nodes[0].netlink;
    let index = netlink.existing_link("up0").expect("link").index;
    let route = Route::blackhole(network("10.9.0.0/16"));
    netlink.set_route(&route).expect("set");
    wait_for(&mut monitor, |change| matches!(change, Change::Route(found) if *found == route));
    netlink.delete_route(&route).expect("deleted");
    wait_for(&mut monitor, |change| matches!(change, Change::RouteRemoved(found) if *found == route));
    netlink.add_address("up0", network("198.51.100.1/24")).expect("added");
    wait_for(&mut monitor, |change| *change == Change::Addresses(index));
    netlink.change_link("up0", &LinkChange { mtu: Some(1400), ..LinkChange::default() }).expect("changed");
    wait_for(&mut monitor, |change| matches!(change, Change::Link(link) if link.name == "up0" && link.mtu == 1400));
    nodes[1].netlink.change_link("up0", &LinkChange { up: Some(false), ..LinkChange::default() }).expect("down");
    wait_for(&mut monitor, |change| matches!(change, Change::Link(link) if link.name == "up0" && !link.carrier));
    nodes[1].netlink.delete_link("up0").expect("deleted");
    wait_for(&mut monitor, |change| matches!(change, Change::LinkRemoved(link) if link.name == "up0"));
}

/// What flannel makes of a node: one VXLAN device, the peers' devices as permanent neighbours and forwarding
/// entries, the peers' blocks by on-link routes.
fn the_kernels_vxlan_device_works_in_flannels_layout() {
    let mut nodes = nodes();
    let mac = |node: usize| Mac([0x12, 0, 0, 0, 0, node as u8 + 1]);
    for underlay in ["192.0.2.", "2001:db8::"] {
        for (own, node) in nodes.iter_mut().enumerate() {
            let peer = 1 - own;
            let netlink = &mut node.netlink;
            let device = VxlanDevice {
                name: "flannel.1",
                vni: 1,
                local: address(&format!("{underlay}{}", own + 1)),
                underlay: "up0",
                port: 8472,
                mtu: 1500,
            };
            netlink.create_vxlan(&device).expect("vxlan");
            let change = LinkChange { up: Some(true), mac: Some(mac(own)), ..LinkChange::default() };
            netlink.change_link("flannel.1", &change).expect("up");
            netlink.add_address("flannel.1", network(&format!("10.8.{own}.0/32"))).expect("address");
            netlink.add_address("flannel.1", network(&format!("fd08:{own}::/128"))).expect("address");
            netlink
                .append_vxlan_peer("flannel.1", mac(peer), address(&format!("{underlay}{}", peer + 1)))
                .expect("fdb");
            let index = netlink.existing_link("flannel.1").expect("device").index;
            for (gateway, block) in [
                (format!("10.8.{peer}.0"), format!("10.8.{peer}.0/24")),
                (format!("fd08:{peer}::"), format!("fd08:{peer}::/64")),
            ] {
                netlink.set_permanent_neighbour("flannel.1", address(&gateway), mac(peer)).expect("neighbour");
                netlink.set_route(&Route::by_gateway(network(&block), address(&gateway), index)).expect("route");
            }
        }
        request_and_reply(&nodes, address("10.8.0.0"), address("10.8.1.0"));
        request_and_reply(&nodes, address("fd08:0::"), address("fd08:1::"));
        for node in &mut nodes {
            let link = node.netlink.existing_link("flannel.1").expect("device");
            assert_eq!((link.mtu, link.kind.as_deref()), (1500, Some("vxlan")));
            assert!(node.netlink.delete_link("flannel.1").expect("deleted"));
        }
    }
}

fn a_named_namespace_is_found_by_name_and_leaves_nothing() {
    let name = support::unique("named");
    let made = Namespace::create_named(&name).expect("made");
    let found = namespace::open_named(&name).expect("found");
    assert_eq!(&found, made.handle());
    assert!(Namespace::create_named(&name).is_err(), "the name is taken");
    assert_eq!(sysctl::read(&found, "ipv4/ip_forward").expect("read"), "0");
    sysctl::write(&found, &[("ipv4/ip_forward".to_owned(), "1")], false).expect("written");
    assert_eq!(sysctl::read(&found, "ipv4/ip_forward").expect("read"), "1");
    assert!(sysctl::write(&found, &[("ipv4/no_such".to_owned(), "1")], false).is_err());
    sysctl::write(&found, &[("ipv4/no_such".to_owned(), "1")], true).expect("passed over");
    drop(made);
    assert!(!found.path().exists());
    assert!(found.enter(|| ()).is_err());
    assert!(!namespace::delete_named(&name).expect("nothing to delete"));
    for wrong in ["", "..", "a/b"] {
        assert!(Namespace::create_named(wrong).is_err(), "{wrong:?}");
    }
    let kept = Namespace::create_named(&name).expect("made").keep();
    assert!(kept.enter(|| ()).is_ok());
    assert!(namespace::delete_named(&name).expect("deleted"));
}

root_tests! {
    every run [
        a_link_reads_back_as_it_was_set,
        addresses_need_no_duplicate_detection_and_can_be_taken_back,
        routes_are_set_found_replaced_and_deleted,
        a_managed_neighbour_is_resolved_without_traffic_and_reported,
        the_monitor_reports_links_addresses_and_routes,
        the_kernels_vxlan_device_works_in_flannels_layout,
        a_named_namespace_is_found_by_name_and_leaves_nothing,
    ],
}
