//! Limits of pods' bandwidth, measured with the kernel's own sockets, and where they come from.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace_cni::spec::code;
use millrace_control::api::model::{DropReport, PortReport};
use serde_json::json;

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{Cluster, Underlay};
use crate::pod::Pod;
use crate::traffic::Endpoint;

/// What the pod may receive and send, in bits per second: different, so that they cannot be taken for each other.
const INGRESS: u64 = 50_000_000;
const EGRESS: u64 = 30_000_000;
/// Time until bursts are spent, and time that is measured.
const SETTLING: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(10);
/// Payload of a datagram, and of a TCP segment at the pods' MTU of 1,450 with time stamps.
const DATAGRAM: u64 = 1_400;
const SEGMENT: u64 = 1_398;

/// A thread's work that goes on until it is told to stop, and what it counts.
#[derive(Default)]
struct Flow {
    stop: AtomicBool,
    bytes: AtomicU64,
}

impl Flow {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Bits per second of payload, between settling and the end.
    fn measure(&self) -> f64 {
        std::thread::sleep(SETTLING);
        let (before, begin) = (self.bytes.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(MEASURED);
        let bytes = self.bytes.load(Ordering::Relaxed) - before;
        let rate = 8.0 * bytes as f64 / begin.elapsed().as_secs_f64();
        self.stop.store(true, Ordering::Relaxed);
        rate
    }
}

/// Frames of UDP that arrive, in bits per second, of some 160 Mbit/s from each of the senders.
fn udp_rate(senders: &[&Endpoint], to: &Endpoint) -> Vec<f64> {
    let flows: Vec<Flow> = senders.iter().map(|_| Flow::default()).collect();
    let payloads = std::thread::scope(|scope| {
        for (number, (flow, from)) in (0..).zip(flows.iter().zip(senders)) {
            // Paces that differ a little, so that nobody always comes just before the others.
            let pace = Duration::from_micros(1_000 + 37 * number);
            let (near, far) = (from.udp(true), to.udp(true));
            let target = far.local_addr().expect("address");
            far.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
            scope.spawn(move || send_datagrams(flow, &near, target, pace));
            scope.spawn(move || receive_datagrams(flow, &far));
        }
        let measuring: Vec<_> = flows.iter().map(|flow| scope.spawn(|| flow.measure())).collect();
        measuring.into_iter().map(|thread| thread.join().expect("measured")).collect::<Vec<_>>()
    });
    payloads.into_iter().map(|payload| payload * (DATAGRAM + 42) as f64 / DATAGRAM as f64).collect()
}

fn send_datagrams(flow: &Flow, socket: &UdpSocket, target: std::net::SocketAddr, pace: Duration) {
    let payload = [7; DATAGRAM as usize];
    let begin = Instant::now();
    let mut sent = 0u32;
    while flow.goes_on() {
        for _ in 0..14 {
            // A full socket is a loss like another.
            let _ = socket.send_to(&payload, target);
        }
        sent += 1;
        std::thread::sleep((pace * sent).saturating_sub(begin.elapsed()));
    }
}

fn receive_datagrams(flow: &Flow, socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while flow.goes_on() {
        if let Ok(length) = socket.recv(&mut buffer) {
            flow.bytes.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
}

/// The same of one TCP stream that sends what it can.
fn tcp_rate(from: &Endpoint, to: &Endpoint) -> f64 {
    let flow = Flow::default();
    let listen = || TcpListener::bind((to.address(true), 0));
    let listener = to.namespace.enter(listen).expect("entered").expect("bound");
    let target = listener.local_addr().expect("address");
    let connect = || TcpStream::connect_timeout(&target, PATIENCE);
    let mut near = from.namespace.enter(connect).expect("entered").expect("connected");
    let (mut far, _) = listener.accept().expect("accepted");
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
        socket.set_write_timeout(Some(Duration::from_millis(100))).expect("timeout");
    }
    let payload = std::thread::scope(|scope| {
        scope.spawn(|| {
            while flow.goes_on() {
                match near.write(&[7; 65_536]) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => panic!("{error}"),
                    _ => {}
                }
            }
        });
        scope.spawn(|| {
            let mut buffer = vec![0; 65_536];
            while flow.goes_on() {
                if let Ok(length) = far.read(&mut buffer) {
                    flow.bytes.fetch_add(length as u64, Ordering::Relaxed);
                }
            }
        });
        flow.measure()
    });
    payload * (SEGMENT + 66) as f64 / SEGMENT as f64
}

/// Prints the rate, and says whether it is the limit's within a tenth.
fn is_at(what: &str, rate: f64, limit: u64) -> bool {
    let share = rate / limit as f64;
    println!("{what:<44} {:>7.2} Mbit/s of {} ({:.1} %)", rate / 1e6, limit / 1_000_000, 100.0 * share);
    (0.9..=1.1).contains(&share)
}

fn over_bandwidth(agent: &Agent) -> u64 {
    let drops: Vec<DropReport> = agent.client().show("drops").expect("report");
    drops.iter().filter(|drop| drop.reason == "over_bandwidth").map(|drop| drop.frames).sum()
}

/// Limits of a pod's port, what it receives first.
fn limits(agent: &Agent, pod: &str) -> [Option<u64>; 2] {
    let ports: Vec<PortReport> = agent.client().show("ports").expect("report");
    let port = ports.into_iter().find(|port| port.name == format!("default/{pod}")).expect("the pod's port");
    [port.ingress_bits_per_second, port.egress_bits_per_second]
}

fn wait_for_limits(agent: &Agent, pod: &str, wanted: [Option<u64>; 2]) {
    let end = Instant::now() + PATIENCE;
    while limits(agent, pod) != wanted {
        assert!(Instant::now() < end, "{pod} has the limits {:?}, not {wanted:?}", limits(agent, pod));
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn end(pod: &Pod, answer: &crate::pod::Answer) -> Endpoint {
    Endpoint { name: pod.name.clone(), namespace: pod.namespace.handle().clone(), addresses: answer.addresses() }
}

pub(crate) fn pods_keep_to_their_bandwidth() {
    let Cluster { agents: [agent, other], underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let [limited, annotated, free] = ["limited", "annotated", "free"].map(|name| Pod::create(name, "a"));
    let far = Pod::create("far", "b");
    // As containerd writes it where a kubelet's pod has annotations.
    let asked = json!({"runtimeConfig": {"bandwidth": {"IngressRate": INGRESS, "IngressBurst": 4_294_967_295_u64,
        "EgressRate": EGRESS, "EgressBurst": 4_294_967_295_u64}}});
    let limited_end = end(&limited, &limited.call_with("ADD", directory, &asked));
    assert_eq!(limits(&agent, "limited"), [Some(INGRESS), Some(EGRESS)]);
    // By the object alone.
    directory.write_objects("annotated.yaml", &annotations("50M", "30M"));
    let annotated_end = annotated.add(directory);
    wait_for_limits(&agent, "annotated", [Some(INGRESS), Some(EGRESS)]);
    let (free_end, far_end) = (free.add(directory), far.add(directory));

    let mut right = true;
    let mut row = |what: String, rate: f64, limit: u64| right &= is_at(&what, rate, limit);
    for (name, peer) in [("pod of the node", &free_end), ("pod of another node", &far_end)] {
        let before = over_bandwidth(&agent);
        row(format!("UDP from a {name}"), udp_rate(&[peer], &limited_end)[0], INGRESS);
        row(format!("UDP to a {name}"), udp_rate(&[&limited_end], peer)[0], EGRESS);
        assert!(over_bandwidth(&agent) > before + 10_000, "what is over the rate is counted");
        row(format!("TCP from a {name}"), tcp_rate(peer, &limited_end), INGRESS);
        row(format!("TCP to a {name}"), tcp_rate(&limited_end, peer), EGRESS);
    }
    row("annotations, UDP from a pod of the node".into(), udp_rate(&[&free_end], &annotated_end)[0], INGRESS);
    row("annotations, UDP to a pod of the node".into(), udp_rate(&[&annotated_end], &free_end)[0], EGRESS);
    assert!(right, "a rate is off");
    let before = over_bandwidth(&agent);
    let unlimited = tcp_rate(&free_end, &far_end) / 1e6;
    println!("between pods without limits {unlimited:.0} Mbit/s");
    assert!(unlimited > 200.0 && over_bandwidth(&agent) == before, "{unlimited} Mbit/s");

    // Another word in the object counts at once, for the pod that has no other; what the runtime said stays.
    directory.write_objects(
        "annotated.yaml",
        &(annotations("80M", "1G") + &annotations("1M", "1M").replace("annotated", "limited")),
    );
    wait_for_limits(&agent, "annotated", [Some(80_000_000), Some(1_000_000_000)]);
    assert_eq!(limits(&agent, "limited"), [Some(INGRESS), Some(EGRESS)]);
    assert!(is_at("changed annotations, UDP", udp_rate(&[&free_end], &annotated_end)[0], 80_000_000));

    // A new agent has the runtime's word from the record.
    agent.kill();
    let agent = underlay.start(0, AgentOptions::default());
    assert_eq!(limits(&agent, "limited"), [Some(INGRESS), Some(EGRESS)]);
    assert!(is_at("a new agent, UDP", udp_rate(&[&free_end], &limited_end)[0], INGRESS));
    agent.assert_sound();
    other.assert_sound();
}

fn annotations(ingress: &str, egress: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: annotated, namespace: default, annotations: \
         {{kubernetes.io/ingress-bandwidth: {ingress}, kubernetes.io/egress-bandwidth: {egress}}}}}, spec: {{nodeName: a}}}}\n"
    )
}

pub(crate) fn two_workers_keep_to_one_bandwidth() {
    let options = AgentOptions { workers: 2, ..AgentOptions::default() };
    let Cluster { agents: [agent, other], underlay } = Cluster::on(Underlay::create(2), options);
    let directory = &underlay.directory;
    let limited = Pod::create("limited", "a");
    let asked = json!({"runtimeConfig": {"bandwidth": {"ingressRate": INGRESS}}});
    let to = end(&limited, &limited.call_with("ADD", directory, &asked));
    // Flows are spread over workers by their ports.
    let senders: Vec<Pod> = (0..4).map(|number| Pod::create(&format!("sender-{number}"), "a")).collect();
    let ends: Vec<Endpoint> = senders.iter().map(|pod| pod.add(directory)).collect();
    let rates = udp_rate(&ends.iter().collect::<Vec<_>>(), &to);
    assert!(is_at("four pods by two workers, UDP", rates.iter().sum(), INGRESS), "{rates:?}");
    // Who comes when some of the rate is left gets it; a fair share is 12.5 Mbit/s.
    assert!(rates.iter().all(|rate| *rate > INGRESS as f64 / 16.0), "nobody is left out: {rates:?}");
    println!("shares in Mbit/s: {:?}", rates.iter().map(|rate| (rate / 1e5).round() / 10.0).collect::<Vec<_>>());
    agent.assert_sound();
    other.assert_sound();
}

pub(crate) fn a_bandwidth_that_cannot_be_is_refused() {
    let Cluster { agents: [agent, other], underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let pod = Pod::create("annotated", "a");
    for (bandwidth, key) in [
        (json!({"ingressRate": 999}), "bandwidth.ingressRate"),
        (json!({"egressBurst": 1}), "bandwidth.egressBurst"),
        (json!({"egressRate": "50M"}), "bandwidth.egressRate"),
    ] {
        let refused = pod.call_with("ADD", directory, &json!({"runtimeConfig": {"bandwidth": bandwidth}}));
        assert_eq!(refused.code(), Some(u64::from(code::INVALID_CONFIGURATION)), "{}", refused.document);
        assert!(refused.document["msg"].as_str().is_some_and(|text| text.contains(key)), "{}", refused.document);
    }
    directory.write_objects("annotated.yaml", &annotations("fast", "30M"));
    agent.wait_for_status(|status| !status.problems.is_empty());
    let refused = pod.call("ADD", directory);
    assert_eq!(refused.code(), Some(u64::from(code::INVALID_CONFIGURATION)), "{}", refused.document);
    let text = refused.document["msg"].as_str().unwrap_or_default();
    assert!(text.contains("kubernetes.io/ingress-bandwidth") && text.contains("\"fast\""), "{text}");
    assert!(pod.interface().is_none());
    directory.write_objects("annotated.yaml", &annotations("1k", "30M"));
    agent.wait_for_status(|status| status.problems.is_empty());
    other.wait_for_status(|status| status.problems.is_empty());
    pod.add(directory);
    wait_for_limits(&agent, "annotated", [Some(1_000), Some(30_000_000)]);
    pod.delete(directory);
    agent.assert_sound();
    other.assert_sound();
}
