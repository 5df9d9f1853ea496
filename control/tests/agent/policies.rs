//! Policies on a whole node: closed from a pod's first packet on, over a killed agent too; live flows are cut or finish.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::agent_process::AgentOptions;
use crate::cluster::{Cluster, POOLS, Underlay, node_object, uplink_object};
use crate::directory::Directory;
use crate::pod::Pod;
use crate::traffic::{self, Endpoint};

/// Where the sprayed datagrams go.
const PORT: u16 = 7777;
/// Pods that may be plugged in next have one of so many addresses behind that of the pod before.
const NEXT: u8 = 16;
/// What has not come after so long does not come.
const ARRIVAL: Duration = Duration::from_millis(300);
/// How long a change may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// A pod to be: name, node, and its address as far as its status tells it.
type PlannedPod<'a> = (&'a str, &'a str, Option<IpAddr>);

/// Both nodes with an agent each; the agents find these pods and the policy of `web` when they start, as an object that
/// was written a moment ago may not be known yet.
fn cluster(pods: &[PlannedPod<'_>], from: &[&str]) -> Cluster {
    let underlay = Underlay::create(1);
    let objects = [POOLS.to_owned(), node_object(0), node_object(1), uplink_object(0), uplink_object(1)];
    underlay.directory.write_objects("cluster.yaml", &objects.concat());
    write_pods(&underlay.directory, pods);
    write_policy(&underlay.directory, from, "{}");
    let agents = [0, 1].map(|number| underlay.start(number, AgentOptions::default()));
    Cluster { agents, underlay }
}

fn write_pods(directory: &Directory, pods: &[PlannedPod<'_>]) {
    let object = |(name, node, address): &PlannedPod<'_>| {
        let addresses = address.map_or(String::new(), |address| format!("{{ip: '{address}'}}"));
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: c}}]}}\nstatus: {{phase: Running, podIPs: [{addresses}]}}\n"
        )
    };
    directory.write_objects("pods.yaml", &pods.iter().map(object).collect::<String>());
}

/// The policy of `web`, which lets in whom `from` says; `annotations` as in YAML.
fn write_policy(directory: &Directory, from: &[&str], annotations: &str) {
    let peer = |name: &&str| format!("{{podSelector: {{matchLabels: {{app: {name}}}}}}}");
    let peers: Vec<String> = from.iter().map(peer).collect();
    let ingress = if peers.is_empty() { "[]".to_owned() } else { format!("[{{from: [{}]}}]", peers.join(", ")) };
    directory.write_objects(
        "policy.yaml",
        &format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: web, namespace: default, annotations: {annotations}}}\n\
             spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Ingress], ingress: {ingress}}}\n"
        ),
    );
}

/// Ends a stream when the test does, also by a panic.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends a datagram to each of the next addresses, again and again.
fn spray(from: &Endpoint, ended: &AtomicBool) {
    let socket = from.udp(true);
    let IpAddr::V4(own) = from.address(true) else { unreachable!("it is asked for IPv4") };
    let [a, b, c, d] = own.octets();
    while !ended.load(Ordering::Relaxed) {
        for step in 1..=NEXT {
            // Nobody has to be there.
            let _ = socket.send_to(b"sprayed", (Ipv4Addr::new(a, b, c, d.wrapping_add(step)), PORT));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A socket of the pod's that takes whatever comes to the port, whether the pod is plugged in yet or not.
fn listener(pod: &Pod) -> UdpSocket {
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT));
    let socket = pod.namespace.handle().enter(bind).expect("entered").expect("bound");
    socket.set_nonblocking(true).expect("set");
    socket
}

/// Datagrams that have come.
fn received(socket: &UdpSocket) -> usize {
    let mut buffer = [0; 64];
    std::iter::from_fn(|| socket.recv_from(&mut buffer).ok()).count()
}

fn wait_until(what: &str, mut met: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn a_pod_is_closed_from_its_first_packet_on() {
    let pods = ["client", "friend", "web"].map(|name| (name, "a", None));
    let Cluster { agents: [first, other], underlay } = cluster(&pods, &["friend"]);
    let directory = &underlay.directory;
    let [client, friend, web] = ["client", "friend", "web"].map(|name| Pod::create(name, "a"));
    let [client_end, friend_end] = [client.add(directory), friend.add(directory)];
    let (listening, ended) = (listener(&web), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| spray(&client_end, &ended));
        let ending = Ending(&ended);
        // Plugged in and pulled out under a stream of datagrams that a policy denies.
        for _ in 0..3 {
            let end = web.add(directory);
            traffic::udp(&friend_end, &end, true);
            std::thread::sleep(Duration::from_millis(50));
            web.delete(directory);
        }
        let end = web.add(directory);
        // The agent dies and comes again while the stream goes on.
        first.kill();
        std::thread::sleep(Duration::from_millis(50));
        let first = underlay.start(0, AgentOptions::default());
        traffic::udp(&friend_end, &end, true);
        let denied = received(&listening);
        // That they were on their way shows once they are let in.
        write_policy(directory, &["friend", "client"], "{}");
        wait_until("datagrams that are allowed arrive", || received(&listening) > 0);
        // Without an object of the pod it is closed again: labels may be any.
        write_pods(directory, &pods[..2]);
        wait_until("a pod without an object is closed", || {
            std::thread::sleep(Duration::from_millis(100));
            received(&listening) == 0
        });
        first.assert_sound();
        drop(ending);
        assert_eq!(denied, 0, "datagrams that a policy denies arrived");
    });
    other.assert_sound();
}

pub(crate) fn live_flows_are_cut_or_finish() {
    let cluster = cluster(&[("client", "a", None), ("web", "b", None)], &["client"]);
    let directory = cluster.directory();
    let [client, web] = [("client", "a"), ("web", "b")].map(|(name, node)| Pod::create(name, node));
    let ends = [client.add(directory), web.add(directory)];
    // As a kubelet would tell it: the other node knows whose address it is by the pod's status.
    let status = |number: usize| Some(ends[number].address(true));
    write_pods(directory, &[("client", "a", status(0)), ("web", "b", status(1))]);
    traffic::udp(&ends[0], &ends[1], true);
    let (near, listening) = (ends[0].udp(true), listener(&web));
    near.connect((ends[1].address(true), PORT)).expect("connected");
    let arrives = |socket: &UdpSocket| {
        (0..10).for_each(|_| drop(socket.send(b"flow")));
        let end = Instant::now() + ARRIVAL;
        while received(&listening) == 0 {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    };
    wait_until("the flow is established", || arrives(&near));
    write_policy(directory, &[], "{}");
    let wrote = Instant::now();
    wait_until("the flow is cut", || !arrives(&near));
    println!("cut within {} ms of writing the object", wrote.elapsed().as_millis());
    write_policy(directory, &["client"], "{}");
    wait_until("the flow goes on", || arrives(&near));
    // A policy that lets what is established finish denies new flows only.
    write_policy(directory, &[], "{millrace.dev/established: keep}");
    let fresh = || {
        let socket = ends[0].udp(true);
        socket.connect((ends[1].address(true), PORT)).expect("connected");
        socket
    };
    wait_until("new flows are denied", || !arrives(&fresh()));
    assert!((0..20).any(|_| arrives(&near)), "the established flow finishes");
    cluster.assert_sound();
}
