//! Tables of made-up reports, line by line.

use super::*;
use crate::api::model::{
    AddressReport, AssignedReport, BlockReport, CyclesReport, FindingReport, FlowReport, IpamCheckReport, IpamReport,
    PoolReport, PortCyclesReport, StationReport, TraceDrop, TraceStep,
};

/// Compares line by line, so that a failure shows what differs.
fn check(text: &str, expected: &str) {
    assert_eq!(text.lines().collect::<Vec<_>>(), expected.lines().collect::<Vec<_>>(), "\n{text}");
}

fn pod() -> PortReport {
    PortReport {
        index: 3,
        name: "default/web-0".into(),
        role: "pod".into(),
        kind: "tap".into(),
        chosen: None,
        segment: Some("default".into()),
        mac: Some("02:00:00:00:00:03".into()),
        addresses: vec!["10.1.0.5".into(), "fd00::5".into()],
        mtu_bytes: 1450,
        ingress_bits_per_second: None,
        egress_bits_per_second: None,
        queues: vec![QueueReport { worker: 0, mode: "vnet_hdr tso uso".into(), kernel_dropped_frames: 0 }],
        received_frames: 1,
        received_bytes: 98,
        sent_frames: 1_234_567,
        sent_bytes: 5_368_709_120,
        dropped_frames: 0,
    }
}

fn uplink() -> PortReport {
    PortReport {
        index: 0,
        name: "ens3".into(),
        role: "uplink".into(),
        kind: "af_xdp".into(),
        mtu_bytes: 1500,
        queues: vec![
            QueueReport { worker: 0, mode: "native copy queue 0".into(), kernel_dropped_frames: 12 },
            QueueReport { worker: 1, mode: "native copy queue 1".into(), kernel_dropped_frames: 0 },
        ],
        ..Default::default()
    }
}

#[test]
fn ports_name_their_queues() {
    check(
        &ports(&[uplink(), pod()]),
        r#"Port  Name           Role            Kind    Queues                                            Addresses  MTU   Received  Sent              Dropped
   0  ens3           uplink          af_xdp  worker 0: native copy queue 0, kernel dropped 12             1500  0 frames          0 frames        0
                                             worker 1: native copy queue 1                                           0 B               0 B
   3  default/web-0  pod in default  tap     worker 0: vnet_hdr tso uso                        10.1.0.5   1450   1 frame  1,234,567 frames        0
                                                                                               fd00::5              98 B           5.0 GiB"#,
    );
    check(&ports(&[]), "No port is attached.");
    let limited =
        PortReport { ingress_bits_per_second: Some(50_000_000), egress_bits_per_second: Some(1_000), ..uplink() };
    let text = ports(&[limited]);
    let line = text.lines().nth(3).expect("a third line");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>().join(" "), "at most 1 kbit/s at most 50,000 kbit/s");
    let chosen = PortReport { chosen: Some("chosen since AF_XDP only copies here".into()), ..uplink() };
    assert!(ports(&[chosen]).lines().nth(3).is_some_and(|line| line.trim() == "chosen since AF_XDP only copies here"));
}

#[test]
fn workers_show_how_busy_they_are() {
    let worker = WorkerReport {
        worker: 1,
        cpu: Some(3),
        generation: 42,
        slept_nanoseconds: 9_900,
        uptime_nanoseconds: 10_000,
        flow_cache_hits: 99_000,
        flow_cache_misses: 1_000,
        flows: 120,
        held_frames: 0,
        free_frames: 32_768,
        events: Default::default(),
        cycles: CyclesReport {
            packets: 6_200,
            vectors: 100,
            work: [("receive", 620_000), ("read", 124_000), ("look_up", 62_000), ("transmit", 6_200_000)]
                .map(|(name, cycles)| (name.to_owned(), cycles))
                .into(),
            idle: 5,
            ports: vec![
                PortCyclesReport { port: "default/noisy-0".into(), packets: 6_000, cycles: 900_000 },
                PortCyclesReport { port: "ens3".into(), packets: 200, cycles: 100_000 },
            ],
        },
    };
    check(
        &workers(&[worker, WorkerReport::default()]),
        r#"Worker  CPU  Awake  Flows  Flow cache hits  Misses  Hit ratio  Held  Free frames  Tables
     1    3  1.0 %    120           99,000   1,000     99.0 %     0       32,768  generation 42
     0  any      -      0                0       0          -     0            0   generation 0

Worker  Packets/vector  Cycles/packet  receive  read  look up  edit  send  decide  transmit  housekeeping
     1              62          1,130      100    20       10     0     0       0     1,000             0

Worker  From port        Cycles/packet  Share of cycles
     1  default/noisy-0            150           90.0 %
     1  ens3                       500           10.0 %"#,
    );
}

#[test]
fn routes_say_where_they_lead() {
    let route = |prefix: &str, target, object: &str| RouteReport {
        segment: "default".into(),
        prefix: prefix.into(),
        target,
        object: object.into(),
    };
    let list = [
        route(
            "10.1.0.5/32",
            RouteTargetReport::Port { port: "default/web-0".into(), mac: "02:00:00:00:00:03".into() },
            "Pod default/web-0",
        ),
        route(
            "10.1.0.64/26",
            RouteTargetReport::Tunnel { peer: "192.0.2.2".into(), mac: "02:00:00:00:00:b0".into() },
            "IpBlock 10-1-0-64-26 of node b",
        ),
        route("10.1.0.0/16", RouteTargetReport::Unreachable, "IpPool pods"),
    ];
    check(
        &routes(&list),
        r#"Segment  Prefix        Target                                      Object
default  10.1.0.5/32   port default/web-0, MAC 02:00:00:00:00:03   Pod default/web-0
default  10.1.0.64/26  tunnel to 192.0.2.2, MAC 02:00:00:00:00:b0  IpBlock 10-1-0-64-26 of node b
default  10.1.0.0/16   unreachable                                 IpPool pods"#,
    );
}

#[test]
fn neighbours_may_be_unresolved() {
    let resolved = NeighbourReport {
        interface: "ens3".into(),
        address: "192.0.2.2".into(),
        mac: Some("02:00:00:00:00:b0".into()),
        state: "reachable".into(),
        nodes: vec!["b".into(), "c".into()],
    };
    let lost = NeighbourReport { address: "192.0.2.9".into(), mac: None, state: "failed".into(), ..resolved.clone() };
    check(
        &neighbours(&[resolved, lost]),
        r#"Interface  Address    MAC                State      Nodes
ens3       192.0.2.2  02:00:00:00:00:b0  reachable  b, c
ens3       192.0.2.9  unresolved         failed     b, c"#,
    );
}

#[test]
fn flows_say_when_there_are_more() {
    let flow = FlowReport {
        worker: 0,
        segment: "default".into(),
        ingress: "default/web-0".into(),
        protocol: "tcp".into(),
        source: "fd00::5".into(),
        source_port: 40_000,
        destination: "fd00::9".into(),
        destination_port: 80,
        verdict: "forward".into(),
        egress: "ens3".into(),
        packets: 10,
        bytes: 2_048,
        idle_milliseconds: 61_000,
    };
    check(
        &flows(&FlowsReport { total: 1_001, flows: vec![flow] }),
        r#"Worker  Segment  Protocol  Source           Destination   From port      Verdict          Packets  Bytes    Idle
     0  default  tcp       [fd00::5]:40000  [fd00::9]:80  default/web-0  forward to ens3       10  2.0 KiB  1 min 1 s
1 of 1,001 flows shown; --limit shows more."#,
    );
}

#[test]
fn drops_say_what_to_check_next() {
    let drop = DropReport {
        reason: "no_route".into(),
        frames: 1_500,
        sentence: "No route covers the destination.".into(),
        next_step: "`millrace show routes`; is the destination pod's block claimed by a node?".into(),
        policies: Vec::new(),
    };
    check(
        &drops(&[drop]),
        r#"Reason    Frames  What happened, and what to check next
no_route   1,500  No route covers the destination.
                  `millrace show routes`; is the destination pod's block claimed by a node?"#,
    );
    check(&drops(&[]), "Nothing was dropped.");
}

#[test]
fn status_lists_problems_with_their_place() {
    let report = StatusReport {
        node: "a".into(),
        version: "0.1.0".into(),
        uptime_seconds: 93_784,
        generation: 42,
        tables_age_seconds: 5,
        workers: 2,
        ports: 3,
        pods: 1,
        uplinks: 1,
        unaccounted_frames: 0,
        connections_taken_over: 7,
        connections_not_taken_over: 0,
        connections_adopted: 0,
        connections_end: None,
        takeover_gaps_us: Some(vec![310, 420]),
        problems: vec![
            Problem {
                file: "pods.yaml".into(),
                line: Some(12),
                object: Some("Pod default/web-0".into()),
                message: "spec.nodeName is missing".into(),
                ..Default::default()
            },
            Problem { file: "state.json".into(), message: "unusable".into(), ..Default::default() },
            Problem { message: "the uplink is down".into(), ..Default::default() },
        ],
        events: None,
    };
    check(
        &status(&report),
        r#"Node:                   a
Version:                0.1.0
Running for:            1 d 2 h
Tables:                 generation 42, published 5 s ago
Workers:                2
Ports:                  3
Pods:                   1
Uplinks:                1
Connections:            7 of the agent before, kept for the next
Frames unaccounted for: 0
Problems:               3
Took over:              from the agent before, 420 us without forwarding
  pods.yaml:12: Pod default/web-0: spec.nodeName is missing
  state.json: unusable
  the uplink is down"#,
    );
}

#[test]
fn trace_ends_with_the_verdict_and_the_next_step() {
    let report = TraceReport {
        generation: 42,
        packet: "tcp syn 10.1.0.5:40000 > 10.9.0.1:80".into(),
        steps: vec![
            TraceStep { stage: "admit".into(), decision: "segment default".into(), object: "Pod default/web-0".into() },
            TraceStep { stage: "route".into(), decision: "no prefix covers 10.9.0.1".into(), object: String::new() },
        ],
        verdict: "drop no_route".into(),
        drop: Some(TraceDrop {
            reason: "no_route".into(),
            sentence: "No route covers the destination.".into(),
            next_step: "`millrace show routes`.".into(),
        }),
    };
    check(
        &trace(&report),
        r#"tcp syn 10.1.0.5:40000 > 10.9.0.1:80
tables of generation 42
Stage  Decision                   Object
admit  segment default            Pod default/web-0
route  no prefix covers 10.9.0.1
=> drop no_route
   No route covers the destination.
   Next: `millrace show routes`."#,
    );
}

#[test]
fn amounts_are_told_in_units_that_suit_them() {
    let numbers = [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")];
    assert!(numbers.iter().all(|(amount, text)| number(*amount) == *text));
    let sizes = [(1023, "1023 B"), (1024, "1.0 KiB"), (1_610_612_736, "1.5 GiB"), (u64::MAX, "16.0 EiB")];
    assert!(sizes.iter().all(|(amount, text)| bytes(*amount) == *text));
    let times = [(999, "999 ms"), (59_999, "59 s"), (3_599_000, "59 min 59 s"), (90_000_000, "1 d 1 h")];
    assert!(times.iter().all(|(amount, text)| duration(*amount) == *text));
}

#[test]
fn addresses_are_shown_by_pool_block_and_holder_and_leaks_with_what_to_do() {
    let assigned = |address: &str, node: &str, kept_for: Option<&str>| AssignedReport {
        address: address.into(),
        node: node.into(),
        kept_for: kept_for.map(str::to_owned),
    };
    let report = IpamReport {
        node: "a".into(),
        source: "blocks".into(),
        pools: vec![PoolReport {
            name: "pods".into(),
            cidr: "10.1.0.0/24".into(),
            block_length: 26,
            blocks: 2,
            blocks_possible: 4,
            network: None,
            only_on_request: false,
        }],
        blocks: vec![
            BlockReport {
                network: None,
                cidr: "10.1.0.0/26".into(),
                pool: "pods".into(),
                node: "a".into(),
                used: Some(3),
                capacity: 63,
                lendable: 46,
                assigned: vec![assigned("10.1.0.62", "a", Some("shop/db-0")), assigned("10.1.0.63", "b", None)],
            },
            BlockReport { cidr: "10.1.0.64/26".into(), node: "b".into(), capacity: 63, ..Default::default() },
        ],
        addresses: vec![AddressReport {
            network: None,
            address: "10.1.0.5".into(),
            holder: "c1/eth0".into(),
            pod: Some("default/web-0".into()),
        }],
    };
    check(
        &ipam(&report),
        "\
Pool  Addresses    Block  Claimed  For
pods  10.1.0.0/24    /26   2 of 4  everybody

Block         Node  Used     Lendable  Assigned
10.1.0.0/26   a     3 of 63        46  10.1.0.62 on a for shop/db-0
                                       10.1.0.63 to b
10.1.0.64/26  b     ? of 63         0

Address   Pod            Held by
10.1.0.5  default/web-0  c1/eth0",
    );
    let finding = FindingReport {
        kind: "namespace_gone".into(),
        subject: "10.1.0.5".into(),
        message: "held by c1/eth0, whose network namespace is gone".into(),
        next_step: "run GC".into(),
    };
    let mut found = IpamCheckReport { node: "a".into(), addresses: 1, blocks: 2, findings: vec![finding] };
    check(
        &ipam_check(&found),
        "\
Address or block  Finding         What is wrong, and what to do
10.1.0.5          namespace_gone  held by c1/eth0, whose network namespace is gone
                                  run GC
Looked at 1 address of node a and 2 blocks of all nodes.",
    );
    found.findings.clear();
    check(&ipam_check(&found), "Looked at 1 address of node a and 2 blocks of all nodes.\nNothing is lost.");
}

#[test]
fn stations_show_where_they_live_and_since_when_they_are_silent() {
    let station = |mac: &str, vlan, age_milliseconds| StationReport {
        segment: "lan".into(),
        vlan,
        mac: mac.into(),
        location: "port 3".into(),
        age_milliseconds,
        is_static: age_milliseconds.is_none(),
    };
    check(
        &stations(&[station("02:00:00:00:00:01", Some(7), Some(61_000)), station("02:00:00:00:00:02", None, None)]),
        "\
Segment  VLAN  MAC                Where   Age
lan         7  02:00:00:00:00:01  port 3  1 min 1 s
lan         -  02:00:00:00:00:02  port 3     static",
    );
    check(&stations(&[]), "No station is known.");
}
