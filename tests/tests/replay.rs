//! Golden captures through `millrace replay`: the same lines and the same bytes each time, on however many simulated
//! workers. What the captures are for is in `captures/README.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millrace_control::cluster::{NodeName, StationMac};
use millrace_control::plan::GATEWAY_MAC;
use millrace_control::replay::{Conditions, ReplayClock, ReplayError, ReplayOptions, replay};
use millrace_engine::packet::Mac;
use millrace_engine::port::pcap::Recording;
use millrace_engine::testing::{ACK, FrameBuilder, PSH, SYN, frame};
use millrace_tests::capture::golden;

const CLIENT: &str = "default/client";
const WEB: &str = "default/web";
const UPLINK: &str = "eth1";
const HOST: &str = "millrace0";
const CLIENT_MAC: &str = "02:00:5e:00:53:05";
const WEB_MAC: &str = "02:00:5e:00:53:06";
const UPLINK_MAC: &str = "02:00:5e:00:53:01";
const PEER_MAC: &str = "02:00:5e:00:53:02";
const HOST_MAC: &str = "02:00:5e:00:53:03";
const ROUTER_MAC: &str = "02:00:5e:00:53:fe";
/// The port that the switch gives the pod's question to the world, told by `out/fates.txt`.
const OUTSIDE_PORT: u16 = 59_837;
/// When the first packet of a capture arrives: nanoseconds since 1970.
const START: u64 = 1_700_000_000_000_000_000;

/// Frames by the port they arrive at, each with its time in microseconds after the first.
type Packets = Vec<(&'static str, u64, Vec<u8>)>;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("captures")
}

fn client(to: &str) -> FrameBuilder {
    frame().from(CLIENT_MAC, if to.contains(':') { "fd00:10:1::5" } else { "10.1.0.5" }).to(GATEWAY_MAC, to)
}

fn web(to: &str) -> FrameBuilder {
    frame().from(WEB_MAC, if to.contains(':') { "fd00:10:1::6" } else { "10.1.0.6" }).to(GATEWAY_MAC, to)
}

fn same_node() -> Packets {
    let mut packets = Packets::new();
    for (at, to_web, to_client) in [(0, "10.1.0.6", "10.1.0.5"), (5_000, "fd00:10:1::6", "fd00:10:1::5")] {
        packets.push((CLIENT, at, client(to_web).tcp(SYN).ports(40_000, 80).build()));
        packets.push((WEB, at + 80, web(to_client).tcp(SYN | ACK).ports(80, 40_000).build()));
        packets.push((CLIENT, at + 150, client(to_web).tcp(ACK).ports(40_000, 80).build()));
        // Both at one time: the lower port comes first.
        packets.push((CLIENT, at + 200, client(to_web).tcp(PSH | ACK).ports(40_000, 80).payload(b"GET").build()));
        packets.push((WEB, at + 200, web(to_client).tcp(PSH | ACK).ports(80, 40_000).payload(b"200").build()));
    }
    packets
}

fn from_peer(inner: FrameBuilder) -> Vec<u8> {
    inner.inside_vxlan(1, frame().from(PEER_MAC, "192.0.2.2").to(UPLINK_MAC, "192.0.2.1").ports(50_000, 8472)).build()
}

fn across_nodes() -> Packets {
    let own = StationMac::of_node(&NodeName::new("a").expect("name")).mac();
    let peer = StationMac::of_node(&NodeName::new("b").expect("name")).mac();
    let remote = |from: &str| frame().from(peer, from).to(own, "10.1.0.5");
    vec![
        (CLIENT, 0, client("10.1.1.9").udp().ports(5_000, 53).payload(b"out").build()),
        (UPLINK, 300, from_peer(remote("10.1.1.9").udp().ports(53, 5_000).payload(b"in"))),
        (CLIENT, 400, client("10.1.1.9").udp().ports(5_000, 53).payload(b"again").build()),
        (CLIENT, 500, client("fd00:10:1::109").udp().ports(5_000, 53).payload(b"six").build()),
        // The address out of this node's block that node b has borrowed: out by the longer prefix, and in from there.
        (CLIENT, 600, client("10.1.0.60").udp().ports(5_000, 53).payload(b"borrowed").build()),
        (UPLINK, 700, from_peer(remote("10.1.0.60").udp().ports(53, 5_000).payload(b"borrowed"))),
        // Node b sends from an address of this node's block.
        (UPLINK, 800, from_peer(remote("10.1.0.6").udp().ports(53, 5_000).payload(b"forged"))),
    ]
}

fn answers_and_drops() -> Packets {
    let broadcast = Mac([0xff; 6]);
    vec![
        (
            CLIENT,
            0,
            frame().from(CLIENT_MAC, "10.1.0.5").to(broadcast, "169.254.1.1").arp_request("169.254.1.1").build(),
        ),
        (CLIENT, 10, client("fe80::1").nd_solicitation("fe80::1").build()),
        (CLIENT, 20, client("169.254.1.1").echo_request(7, 1).payload(b"gateway").build()),
        (CLIENT, 1_000_000, client("10.1.0.6").ttl(1).udp().ports(33_434, 33_434).payload(b"trace").build()),
        (CLIENT, 2_000_000, client("10.1.9.9").udp().ports(1, 2).payload(b"nowhere").build()),
        (CLIENT, 3_000_000, client("10.1.1.9").dont_fragment().udp().ports(1, 2).payload_of(1_460).build()),
        (CLIENT, 4_000_000, frame().from(CLIENT_MAC, "10.1.0.6").to(GATEWAY_MAC, "10.1.1.9").udp().ports(1, 2).build()),
        (CLIENT, 5_000_000, client("10.1.0.6").udp().ports(1, 2).payload(b"cut short").cut_at(30).build()),
    ]
}

fn host_and_outside() -> Packets {
    let host = |from: &str, to: &str| frame().from(HOST_MAC, from).to(GATEWAY_MAC, to);
    let outside = |from: &str, to: &str| frame().from(ROUTER_MAC, from).to(UPLINK_MAC, to);
    vec![
        // A probe of the kubelet: from the node's address among pods.
        (HOST, 0, host("10.1.0.0", "10.1.0.5").tcp(SYN).ports(41_000, 80).build()),
        (CLIENT, 100, client("10.1.0.0").tcp(SYN | ACK).ports(80, 41_000).build()),
        (HOST, 200, host("fd00:10:1::", "fd00:10:1::5").echo_request(9, 1).payload(b"six").build()),
        (CLIENT, 300, client("fd00:10:1::").echo_reply(9, 1).payload(b"six").build()),
        // To a pod of another node, and one that the host forwards for somebody else, which it may not.
        (HOST, 400, host("10.1.0.0", "10.1.1.9").udp().ports(41_000, 53).payload(b"far").build()),
        (HOST, 500, host("172.17.0.2", "10.1.0.5").udp().ports(41_000, 53).payload(b"foreign").build()),
        // A pod to its node, by the node's own address.
        (CLIENT, 600, client("192.0.2.1").tcp(SYN).ports(40_000, 10_250).build()),
        // A pod to the world, and the answer.
        (CLIENT, 1_000, client("198.51.100.7").udp().ports(5_000, 53).payload(b"name").build()),
        (UPLINK, 1_300, outside("198.51.100.7", "192.0.2.1").udp().ports(53, OUTSIDE_PORT).payload(b"number").build()),
        // What nobody here asked for is the host's: pings, fragments and what comes to a port of ours by chance.
        (UPLINK, 2_000, outside("203.0.113.9", "192.0.2.1").echo_request(7, 1).payload(b"host").build()),
        (
            UPLINK,
            2_100,
            outside("203.0.113.9", "192.0.2.1").fragment(0, true).udp().ports(1, 53).payload_of(64).build(),
        ),
        (UPLINK, 2_200, outside("203.0.113.9", "192.0.2.1").fragment(72, false).udp().payload_of(8).build()),
        (UPLINK, 2_300, outside("203.0.113.9", "192.0.2.1").tcp(SYN).ports(9, OUTSIDE_PORT).build()),
        // Who out there claims a pod's address.
        (UPLINK, 2_400, outside("10.1.0.6", "192.0.2.1").udp().ports(1, OUTSIDE_PORT).build()),
    ]
}

fn bridge_ports() -> Packets {
    let station = |number: u8| Mac([0x02, 0, 0x5e, 0, 0x53, number]);
    let one = || frame().from(station(0x11), "10.9.0.1");
    let two = || frame().from(station(0x12), "10.9.0.2");
    let far = || frame().from(station(0x13), "10.9.0.3");
    let from_peer = |inner: FrameBuilder| {
        let outer = frame().from(PEER_MAC, "192.0.2.2").to(UPLINK_MAC, "192.0.2.1").ports(50_000, 8472);
        inner.inside_vxlan(5_020, outer).build()
    };
    vec![
        // Flooded to the trunk, the tunnel and the mirror; the answers find their stations.
        ("p1", 0, one().to(Mac([0xff; 6]), "10.9.0.2").arp_request("10.9.0.2").build()),
        ("p2", 100, two().to(station(0x11), "10.9.0.1").vlan(20).arp_reply().build()),
        ("wan", 200, from_peer(far().to(station(0x11), "10.9.0.1").udp().ports(7, 7).payload(b"far"))),
        ("p1", 300, one().to(station(0x13), "10.9.0.3").udp().ports(7, 7).payload(b"near").build()),
        ("p1", 400, one().to(station(0x12), "10.9.0.2").udp().ports(7, 7).payload(b"here").build()),
        // A VLAN that the access port is not in, and one that the trunk does not carry.
        ("p2", 500, two().to(Mac([0xff; 6]), "10.9.0.9").vlan(30).arp_request("10.9.0.9").build()),
        ("p2", 600, two().to(station(0x11), "10.9.0.1").vlan(40).udp().ports(1, 2).build()),
        // A tunnel end that no bridge names.
        (
            "wan",
            700,
            far()
                .to(station(0x11), "10.9.0.1")
                .udp()
                .ports(1, 2)
                .inside_vxlan(
                    5_020,
                    frame().from(PEER_MAC, "192.0.2.9").to(UPLINK_MAC, "192.0.2.1").ports(50_000, 8472),
                )
                .build(),
        ),
    ]
}

fn write(folder: &Path, packets: &Packets) {
    fs::create_dir_all(folder).expect("folder");
    for (port, bytes) in captures(packets) {
        fs::write(folder.join(file_name(&port)), bytes).expect("written");
    }
}

fn file_name(port: &str) -> String {
    format!("{}.pcapng", port.replace('/', "_"))
}

/// The captures of these packets, by port.
fn captures(packets: &Packets) -> BTreeMap<String, Vec<u8>> {
    #[derive(Clone, Default)]
    struct Sink(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("whole").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut ports: BTreeMap<String, (Sink, Recording)> = BTreeMap::new();
    for (port, at, bytes) in packets {
        let sink = Sink::default();
        let (_, recording) = ports.entry((*port).to_owned()).or_insert_with(|| (sink.clone(), Recording::new(sink)));
        assert!(recording.write(START + at * 1_000, std::iter::once(bytes.as_slice()), None));
    }
    ports.into_iter().map(|(port, (sink, _))| (port, sink.0.lock().expect("whole").clone())).collect()
}

/// A directory of one test.
struct Out(PathBuf);

impl Out {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("millrace-replay-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    /// Everything in it, by name.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(&self.0).expect("directory").map(|entry| entry.expect("entry"));
        entries
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("file")))
            .collect()
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn options(objects: &str, folder: &str, ports: &[&str], workers: usize, out: &Out) -> ReplayOptions {
    let input = |port: &&str| ((*port).to_owned(), directory().join(folder).join(file_name(port)));
    ReplayOptions {
        objects: directory().join(objects),
        node: NodeName::new("a").expect("name"),
        inputs: ports.iter().map(input).collect(),
        out: Some(out.0.clone()),
        workers,
        clock: ReplayClock::Capture,
    }
}

/// The lines and the files of one replay.
fn run(options: &ReplayOptions, out: &Out) -> (String, BTreeMap<String, Vec<u8>>) {
    let mut text = String::new();
    let summary = replay(options, |report| text += &format!("{report}\n")).expect("replayed");
    assert!(summary.problems.is_empty(), "{:?}", summary.problems);
    (text, out.files())
}

fn check(folder: &str, packets: &Packets, ports: &[&str]) {
    check_with("objects", folder, packets, ports);
}

fn check_with(objects: &str, folder: &str, packets: &Packets, ports: &[&str]) {
    let path = directory().join(folder);
    let write_anew = std::env::var_os("MILLRACE_WRITE_CAPTURES").is_some();
    if write_anew {
        write(&path, packets);
    }
    for (port, bytes) in captures(packets) {
        let checked_in = fs::read(path.join(file_name(&port))).expect("a capture");
        assert!(checked_in == bytes, "{folder}/{} is not what the builder makes", file_name(&port));
    }
    let out = Out::new();
    let options = options(objects, folder, ports, 1, &out);
    golden(&options, &Conditions::default(), &path.join("out")).unwrap_or_else(|error| panic!("{folder}: {error}"));
}

#[test]
fn pods_of_one_node() {
    check("same-node", &same_node(), &[CLIENT, WEB]);
}

#[test]
fn pods_of_two_nodes() {
    check("across-nodes", &across_nodes(), &[CLIENT, UPLINK]);
}

#[test]
fn what_the_switch_answers_and_drops() {
    check("answers-and-drops", &answers_and_drops(), &[CLIENT]);
}

#[test]
fn the_hosts_own_port_and_the_way_out() {
    check("host-and-outside", &host_and_outside(), &[CLIENT, HOST, UPLINK]);
}

#[test]
fn ports_of_a_bridge() {
    check_with("switch-objects", "bridge-ports", &bridge_ports(), &["p1", "p2", "wan"]);
}

/// Thousands of flows, so that caches, lanes and all workers have a part in it.
#[test]
fn a_crowd_of_flows_gives_the_same_bytes_on_any_number_of_workers() {
    let folder = Out::new();
    let mut packets = Packets::new();
    for number in 0..3_000u64 {
        let flow = (number * 7_919 % 500) as u16;
        let local = flow.is_multiple_of(2);
        let to = if local { "10.1.0.6" } else { "10.1.1.9" };
        let packet = client(to).udp().ports(1_000 + flow, 53).payload(&number.to_be_bytes()).build();
        packets.push((CLIENT, number * 37, packet));
        if local {
            let answer = web("10.1.0.5").udp().ports(53, 1_000 + flow).payload(&number.to_be_bytes()).build();
            packets.push((WEB, number * 37 + 11, answer));
        }
    }
    write(&folder.0, &packets);
    let run_with = |workers: usize| {
        let out = Out::new();
        let mut options = options("objects", "", &[CLIENT, WEB], workers, &out);
        for (port, path) in &mut options.inputs {
            *path = folder.0.join(file_name(port));
        }
        run(&options, &out)
    };
    let (text, files) = run_with(1);
    assert_eq!(text.lines().count(), packets.len());
    for workers in [1, 2, 4] {
        let (again, same) = run_with(workers);
        assert!(again == text && same == files, "{workers} workers give something else");
    }
}

#[test]
fn mistakes_are_named() {
    let out = Out::new();
    let refused = |options: &ReplayOptions| replay(options, |_| {}).expect_err("refused").to_string();
    let good = options("objects", "same-node", &[CLIENT], 1, &out);
    let capture = good.inputs[0].1.clone();
    let mut unknown = good.clone();
    unknown.inputs = vec![("default/nobody".to_owned(), capture.clone())];
    let words = refused(&unknown);
    assert_eq!(words, "node a has no port \"default/nobody\"; it has millrace0, eth1, default/client, default/web");
    let mut twice = good.clone();
    twice.inputs.push((CLIENT.to_owned(), capture));
    assert!(matches!(replay(&twice, |_| {}), Err(ReplayError::PortTwice(_))));
    let mut absent = good.clone();
    absent.inputs[0].1 = "/nonexistent.pcap".into();
    assert!(refused(&absent).contains("/nonexistent.pcap"));
    let mut nowhere = good.clone();
    nowhere.objects = "/nonexistent".into();
    assert!(refused(&nowhere).contains("/nonexistent"));
    // The clock may be other than the capture's.
    let mut slow = good;
    slow.clock = ReplayClock::Step(Duration::from_millis(1));
    let mut times = Vec::new();
    replay(&slow, |report| times.push(report.time_nanoseconds)).expect("replayed");
    assert_eq!(times[..3], [0, 1_000_000, 2_000_000]);
}
