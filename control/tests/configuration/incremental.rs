//! Compiling a change gives what compiling from nothing gives, shares what did not change, and names what did.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use ipnet::IpNet;
use millrace_control::compile::{CompileError, compile};
use millrace_control::plan::{NodePlan, POD_SEGMENT, SegmentPlan, plan};
use millrace_control::publish::PublishState;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::tables::{
    Change, Peer, PodPort, Port, PortRange, PortRole, Route, RouteTarget, SegmentIndex, SegmentKind, Snapshot, Vni,
    Vtep,
};
use proptest::prelude::*;

use crate::support::{address, attached, block, cluster, local, node, path};

/// One edit of a plan, over small ranges so that edits meet.
#[derive(Clone, Debug)]
enum Edit {
    Port(u16, Option<u32>),
    Route(u8, u8, bool, Option<u8>),
    Peer(u8, Option<u16>),
    Segment(u16, bool),
    Ends(u8),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (0u16..6, prop::option::of(1000u32..1003)).prop_map(|(index, mtu)| Edit::Port(index, mtu)),
        (0u8..8, 24u8..=32, any::<bool>(), prop::option::of(0u8..4))
            .prop_map(|(bits, length, ipv4, to)| Edit::Route(bits, length, ipv4, to)),
        (0u8..4, prop::option::of(1400u16..1402)).prop_map(|(last, mtu)| Edit::Peer(last, mtu)),
        (1u16..4, any::<bool>()).prop_map(|(index, present)| Edit::Segment(index, present)),
        (0u8..3).prop_map(Edit::Ends),
    ]
}

fn segment(number: u16) -> SegmentPlan {
    SegmentPlan {
        name: format!("segment {number}").into(),
        vni: Vni::new(u32::from(number) + 1).expect("vni"),
        gateway_mac: Mac([2, 0, 0, 0, 0, 1]),
        gateway_addresses: vec![address("169.254.1.1")],
        router_addresses: Vec::new(),
        masquerade_ports: PortRange::default(),
        known_outside: number.is_multiple_of(2),
        connected: BTreeMap::from([("10.9.0.0/16".parse().expect("prefix"), SegmentIndex(number + 1))]),
        tunnel_mac: Mac([2, 0, 0, 0, 0, 2]),
        routes: BTreeMap::new(),
    }
}

fn peer_address(last: u8) -> IpAddr {
    if last.is_multiple_of(2) { IpAddr::from([192, 0, 2, last]) } else { IpAddr::V6(Ipv6Addr::from_bits(last.into())) }
}

fn apply(plan: &mut NodePlan, edit: &Edit) {
    match *edit {
        Edit::Port(index, None) => drop(plan.ports.remove(&PortIndex(index))),
        Edit::Port(index, Some(mtu)) => {
            let pod = PodPort { segment: POD_SEGMENT, mac: Mac([2, 0, 0, 0, 3, index as u8]), addresses: Vec::new() };
            let port =
                Port { index: PortIndex(index), name: format!("p{index}").into(), mtu, role: PortRole::Pod(pod) };
            plan.ports.insert(port.index, port);
        }
        Edit::Route(bits, length, ipv4, to) => {
            let address = if ipv4 {
                IpAddr::V4(Ipv4Addr::from_bits(u32::from(bits) << 5))
            } else {
                IpAddr::V6(Ipv6Addr::from_bits(u128::from(bits) << 101))
            };
            let prefix = IpNet::new(address, length).expect("length").trunc();
            let routes = &mut plan.segments.get_mut(&POD_SEGMENT).expect("segment").routes;
            match to {
                None => drop(routes.remove(&prefix)),
                Some(to) => {
                    let name = format!("route {to}").into();
                    drop(routes.insert(prefix, Route { name, target: RouteTarget::Unreachable }));
                }
            }
        }
        Edit::Peer(last, None) => drop(plan.tunnels.peers.remove(&peer_address(last))),
        Edit::Peer(last, Some(mtu)) => {
            let address = peer_address(last);
            let peer = Peer { name: "b".into(), address, source: address, next_hop: None, mtu: mtu.into() };
            plan.tunnels.peers.insert(address, peer);
        }
        Edit::Segment(index, true) => drop(plan.segments.insert(SegmentIndex(index), segment(index))),
        Edit::Segment(index, false) => drop(plan.segments.remove(&SegmentIndex(index))),
        Edit::Ends(count) => {
            plan.tunnels.local =
                (0..count).map(|last| Vtep { address: peer_address(last), port: PortIndex(0) }).collect();
        }
    }
}

fn start() -> NodePlan {
    NodePlan { segments: BTreeMap::from([(POD_SEGMENT, segment(0))]), ..NodePlan::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_change_compiles_to_what_the_whole_compiles_to(batches in prop::collection::vec(prop::collection::vec(edit(), 0..6), 1..12)) {
        let mut before = start();
        let mut tables = compile(&before, None).expect("tables");
        for batch in batches {
            let mut next = before.clone();
            batch.iter().for_each(|edit| apply(&mut next, edit));
            let incremental = compile(&next, Some((&before, &tables))).expect("tables");
            let whole = compile(&next, None).expect("tables");
            prop_assert_eq!(format!("{incremental:#?}"), format!("{whole:#?}"));
            if next.ports == before.ports {
                prop_assert!(incremental.ports.is_same(&tables.ports));
            }
            if next.segments == before.segments {
                prop_assert!(incremental.segments.is_same(&tables.segments));
            }
            (before, tables) = (next, incremental);
        }
    }
}

/// The object of the pod that is plugged in.
const WEB: &str =
    "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: default}\nspec: {nodeName: a, containers: []}\n";

/// What a change of objects or of local facts makes of the tables, by name.
#[test]
fn change_sets_name_what_changed_and_nothing_else() {
    let objects = |extra: &str| {
        let nodes = node("a", &["192.0.2.1"]) + &node("b", &["192.0.2.2"]) + WEB;
        cluster(&(nodes + &block("x", "10.1.0.0/26", "four", "a") + &block("y", "10.1.0.64/26", "four", "b") + extra))
    };
    let web = attached(3, "web", &["10.1.0.1"]);
    let mut view = local(&[], &["192.0.2.1"]);
    let mut state = PublishState::default();
    let mut publish = |cluster: &_, view: &_| {
        let changes = state.publish(plan(cluster, view).plan, Instant::now()).expect("published");
        changes.map(|changes| changes.changes)
    };
    let prefix = |text: &str| Change::Prefix(POD_SEGMENT, text.parse().expect("prefix"));
    let first = publish(&objects(""), &view).expect("changes");
    assert!(first.contains(&Change::Segment(POD_SEGMENT)) && first.contains(&Change::Tunnels), "{first:?}");
    assert_eq!(publish(&objects(""), &view), None);
    // A pod comes, and goes.
    view.pods = BTreeMap::from([web]);
    assert_eq!(publish(&objects(""), &view), Some(vec![Change::Port(PortIndex(3)), prefix("10.1.0.1/32")]));
    view.pods.clear();
    assert_eq!(publish(&objects(""), &view), Some(vec![Change::Port(PortIndex(3)), prefix("10.1.0.1/32")]));
    // The kernel resolves the next hop of node b.
    view.underlay = BTreeMap::from([(address("192.0.2.2"), path(0, "192.0.2.1"))]);
    assert_eq!(publish(&objects(""), &view), Some(vec![Change::Peer(address("192.0.2.2"))]));
    // A block more, inside the reach of a known peer.
    let more = objects(&block("z", "10.1.0.128/26", "four", "b"));
    assert_eq!(publish(&more, &view), Some(vec![prefix("10.1.0.128/26")]));
    // A node more.
    let node = objects(&(block("z", "10.1.0.128/26", "four", "b") + &node("c", &["192.0.2.3"])));
    assert_eq!(publish(&node, &view), Some(vec![Change::Peer(address("192.0.2.3"))]));
    // An MTU of an uplink.
    view.uplinks.values_mut().for_each(|uplink| uplink.mtu = 9000);
    let mtu = publish(&node, &view).expect("changes");
    assert_eq!(mtu, [Change::Port(PortIndex(0)), Change::Peer(address("192.0.2.3"))], "{mtu:?}");
}

#[test]
fn a_plan_that_contradicts_itself_leaves_the_last_good_tables() {
    let mut state = PublishState::default();
    let good = start();
    state.publish(good.clone(), Instant::now()).expect("published");
    let prefix: IpNet = "10.0.0.1/32".parse().expect("prefix");
    let broken = |edit: &dyn Fn(&mut NodePlan)| {
        let mut plan = good.clone();
        edit(&mut plan);
        plan
    };
    let route = |target: RouteTarget| {
        move |plan: &mut NodePlan| {
            let route = Route { name: "r".into(), target: target.clone() };
            plan.segments.get_mut(&POD_SEGMENT).expect("segment").routes.insert(prefix, route);
        }
    };
    let no_port = broken(&route(RouteTarget::Port { port: PortIndex(7), mac: Mac::ZERO }));
    let no_peer = broken(&route(RouteTarget::Tunnel { peer: address("192.0.2.9"), mac: Mac::ZERO }));
    let far = broken(&|plan| {
        let pod = PodPort { segment: POD_SEGMENT, mac: Mac::ZERO, addresses: Vec::new() };
        let port = Port { index: PortIndex(5000), name: "p".into(), mtu: 1500, role: PortRole::Pod(pod) };
        plan.ports.insert(port.index, port);
    });
    let twice = broken(&|plan| drop(plan.segments.insert(SegmentIndex(1), segment(0))));
    for (plan, text) in [
        (no_port, "route 10.0.0.1/32 (r) leads to port PortIndex(7), which does not exist"),
        (no_peer, "route 10.0.0.1/32 (r) leads to 192.0.2.9, which is no peer"),
        (far, "port p has the number 5000, beyond the limit of 1024"),
        (twice, "segments SegmentIndex(0) and SegmentIndex(1) both have the VNI 1"),
    ] {
        let error: CompileError = state.publish(plan, Instant::now()).expect_err("refused");
        assert_eq!(error.to_string(), text);
        let status = state.status(Instant::now());
        assert_eq!((status.generation, status.last_error), (1, Some(error)));
    }
    assert_eq!(state.publish(good, Instant::now()), Ok(None));
    assert_eq!(state.status(Instant::now()).last_error, None);
}

/// A thousand nodes: the figure is printed, the bound is loose since machines differ.
#[test]
fn a_thousand_nodes_compile_quickly_and_a_change_more_so() {
    let mut text = String::new();
    for number in 0..1000 {
        let name = format!("n{number}");
        text += &node(&name, &[&format!("192.0.{}.{}", number / 200, number % 200 + 1)]);
        text += &block(&format!("b{number}"), &format!("10.{}.{}.0/26", number / 250, number % 250), "four", &name);
    }
    let cluster = cluster(&(text + WEB));
    let mut view = local(&[], &["192.0.0.1"]);
    view.node = crate::support::node_name("n0");
    let started = Instant::now();
    let first = plan(&cluster, &view).plan;
    let planned = started.elapsed();
    let tables = compile(&first, None).expect("tables");
    let compiled = started.elapsed() - planned;
    view.pods = BTreeMap::from([attached(3, "web", &["10.0.0.1"])]);
    let started = Instant::now();
    let second = plan(&cluster, &view).plan;
    let planned_again = started.elapsed();
    let after = compile(&second, Some((&first, &tables))).expect("tables");
    let compiled_again = started.elapsed() - planned_again;
    let started = Instant::now();
    let changes = millrace_engine::tables::change::changes(&tables, &after);
    let compared = started.elapsed();
    println!(
        "1,000 nodes and blocks: plan {planned:?}, compile from nothing {compiled:?}; one pod more: plan {planned_again:?}, \
         compile {compiled_again:?}, change set {compared:?}"
    );
    assert_eq!(changes.changes.len(), 2);
    assert!((planned_again + compiled_again).as_millis() < 500);
    assert_eq!(routes_of(&after), 1001);
}

fn routes_of(tables: &Snapshot) -> usize {
    match &tables.segments.get(POD_SEGMENT).expect("segment").kind {
        SegmentKind::Routed(routed) => routed.routes_ipv4.len() + routed.routes_ipv6.len(),
        SegmentKind::Bridged(_) => 0,
    }
}
