//! Agents on an API server that goes away under load and comes back another one.
//!
//! `MILLRACE_AWAY_SECONDS` says for how long; 60 is what an upgrade of a control plane takes, the default is short.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_control::kernel::{LinkChange, Netlink};
use millrace_control::observe::custom_resource_definitions;
use millrace_emulator::{Emulator, Options};
use serde_json::{Value, json};

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{NODES, POOLS, UPLINK, Underlay, node_object, uplink_object};
use crate::pod::Pod;
use crate::traffic::{self, Endpoint};

/// Datagrams on their way at once, at most: few enough for every buffer, so that none is lost but by the switch.
const IN_FLIGHT: usize = 32;

/// A datagram that takes longer is lost.
const LOST: Duration = Duration::from_secs(5);

fn away() -> Duration {
    let seconds = std::env::var("MILLRACE_AWAY_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

/// Puts objects of YAML text.
fn put(emulator: &Emulator, text: &str) {
    for object in serde_saphyr::from_multiple::<Value>(text).expect("YAML") {
        let plural = match object["kind"].as_str().expect("a kind") {
            "Node" => "/api/v1/nodes",
            "Uplink" => "/apis/millrace.dev/v1alpha1/uplinks",
            "IpPool" => "/apis/millrace.dev/v1alpha1/ippools",
            other => panic!("{other}"),
        };
        emulator.put(plural, object);
    }
}

/// Sends numbered datagrams and counts those that come back until told to stop: sent, returned.
fn load(client: &Endpoint, server: &Endpoint, stop: &AtomicBool) -> (u64, u64) {
    let sockets: [UdpSocket; 2] = [client.udp(true), server.udp(true)];
    let target = sockets[1].local_addr().expect("address");
    for socket in &sockets {
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
    }
    let (mut sent, mut returned) = (0u64, 0u64);
    // The answering side goes on until nothing is in flight.
    let drained = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while !drained.load(Ordering::Relaxed) {
                if let Ok((length, from)) = sockets[1].recv_from(&mut buffer) {
                    sockets[1].send_to(&buffer[..length], from).expect("sent");
                }
            }
        });
        let (mut flying, mut last) = (0, Instant::now());
        while !stop.load(Ordering::Relaxed) || (flying > 0 && last.elapsed() < LOST) {
            while flying < IN_FLIGHT && !stop.load(Ordering::Relaxed) {
                sockets[0].send_to(&sent.to_be_bytes(), target).expect("sent");
                (sent, flying) = (sent + 1, flying + 1);
            }
            let mut buffer = [0; 64];
            if sockets[0].recv_from(&mut buffer).is_ok() {
                (returned, flying, last) = (returned + 1, flying - 1, Instant::now());
            } else if last.elapsed() >= LOST {
                // What was in flight is lost: go on, and tell.
                (flying, last) = (0, Instant::now());
            }
        }
        drained.store(true, Ordering::Relaxed);
    });
    (sent, returned)
}

/// Ends the loads when it goes, also where an assertion fails: the scope waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The generation in force once none has followed for a while: what was read before the server went is compiled then.
fn settled_generation(agent: &Agent) -> u64 {
    let end = Instant::now() + Duration::from_secs(20);
    let mut last = (agent.status().generation, Instant::now());
    while last.1.elapsed() < Duration::from_millis(500) {
        assert!(Instant::now() < end, "the agent goes on publishing");
        std::thread::sleep(Duration::from_millis(20));
        let generation = agent.status().generation;
        if generation != last.0 {
            last = (generation, Instant::now());
        }
    }
    last.0
}

pub(crate) fn the_api_server_may_be_away() {
    let underlay = Underlay::create(1);
    let (_, [address, _]) = NODES[0];
    let options = Options {
        address: format!("{address}:6443").parse().expect("address"),
        definitions: custom_resource_definitions(),
        ..Options::default()
    };
    let emulator = underlay.nodes[0].handle().enter(|| Emulator::start(options)).expect("entered").expect("emulator");
    let objects = [POOLS.to_owned(), node_object(0), node_object(1), uplink_object(0), uplink_object(1)].concat();
    put(&emulator, &objects);
    let directory = &underlay.directory;
    let kubeconfig = directory.file("kubeconfig");
    std::fs::write(&kubeconfig, emulator.kubeconfig()).expect("written");
    let more = format!("[api_server]\nkubeconfig = {:?}\n", kubeconfig.display().to_string());
    let options = AgentOptions { more: more.leak(), ..AgentOptions::default() };
    let agents = [0, 1].map(|number| underlay.start(number, options));
    let pods = [Pod::create("a1", "a"), Pod::create("a2", "a"), Pod::create("b1", "b")];
    let ends = pods.each_ref().map(|pod| pod.add(directory));
    traffic::udp(&ends[0], &ends[2], true);
    traffic::udp(&ends[0], &ends[1], true);

    let stop = AtomicBool::new(false);
    let (near, far) = std::thread::scope(|scope| {
        let near = scope.spawn(|| load(&ends[0], &ends[1], &stop));
        let far = scope.spawn(|| load(&ends[0], &ends[2], &stop));
        let stop = Stop(&stop);
        std::thread::sleep(Duration::from_secs(1));
        emulator.go_away();
        let gone = Instant::now();
        for agent in &agents {
            agent.wait_for_status(|status| {
                status.problems.iter().any(|problem| problem.message.contains("does not answer"))
            });
        }
        let generation = settled_generation(&agents[0]);
        // Meanwhile the cluster changes: a node comes, and the server forgets how.
        let peer = json!({
            "metadata": {"name": "c"}, "spec": {"podCIDRs": ["10.9.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.3"}]},
        });
        emulator.put("/api/v1/nodes", peer);
        emulator.forget();
        std::thread::sleep(away().saturating_sub(gone.elapsed()));
        assert_eq!(agents[0].status().generation, generation, "nothing is published while nothing is known to change");
        emulator.come_back();
        // The longest pause between two tries.
        let end = Instant::now() + Duration::from_secs(60);
        for agent in &agents {
            while !agent.client().show::<Value>("routes").expect("routes").to_string().contains("10.9.1.0/24") {
                assert!(Instant::now() < end, "the tables do not converge");
                std::thread::sleep(Duration::from_millis(50));
            }
            while !agent.status().problems.is_empty() {
                assert!(Instant::now() < end, "{:?}", agent.status().problems);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        let published = agents[0].status().generation - generation;
        assert!(published <= 2, "the difference is published, not everything anew: {published} generations");
        std::thread::sleep(Duration::from_secs(1));
        drop(stop);
        (near.join().expect("load"), far.join().expect("load"))
    });
    println!(
        "API server away for {:?}: {} of {} lost on the node, {} of {} between nodes",
        away(),
        near.0 - near.1,
        near.0,
        far.0 - far.1,
        far.0
    );
    assert_eq!((near.0 - near.1, far.0 - far.1), (0, 0), "packets were lost");
    assert!(near.1 > 1000 && far.1 > 1000, "no load: {near:?} {far:?}");
    // And it is used again: a pod needs an address, which may need a block.
    let more = Pod::create("a3", "a");
    traffic::udp(&more.add(directory), &ends[2], true);
    agents.iter().for_each(Agent::assert_sound);
}

/// Events of one reason, as `events.k8s.io/v1` has them.
fn events(emulator: &Emulator, reason: &str) -> Vec<Value> {
    let all = emulator.list("/apis/events.k8s.io/v1/namespaces/default/events");
    all.into_iter().filter(|event| event["reason"] == reason).collect()
}

fn wait_for_event(emulator: &Emulator, reason: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let found = events(emulator, reason).into_iter().find(|event| wanted(event));
        if let Some(event) = found {
            return event;
        }
        assert!(
            Instant::now() < end,
            "no such {reason}: {:#?}",
            emulator.list("/apis/events.k8s.io/v1/namespaces/default/events")
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn events_tell_what_an_operator_must_see() {
    let underlay = Underlay::create(1);
    // Not by way of the uplink, which goes down.
    let mut netlink = Netlink::open_in(underlay.nodes[0].handle()).expect("netlink");
    netlink.add_address("lo", "198.51.100.1/32".parse().expect("prefix")).expect("added");
    let options = Options {
        address: "198.51.100.1:6443".parse().expect("address"),
        definitions: custom_resource_definitions(),
        ..Options::default()
    };
    let emulator = underlay.nodes[0].handle().enter(|| Emulator::start(options)).expect("entered").expect("emulator");
    // Room for the node itself and three pods.
    let small = POOLS.split_once("---").expect("two pools").0.replace("10.1.0.0/16", "10.1.0.0/30, blockSize: 30");
    put(&emulator, &(small + &node_object(0) + &uplink_object(0)));
    let directory = &underlay.directory;
    let kubeconfig = directory.file("kubeconfig");
    std::fs::write(&kubeconfig, emulator.kubeconfig()).expect("written");
    let more = format!("[api_server]\nkubeconfig = {:?}\n", kubeconfig.display().to_string());
    let agent = underlay.start(0, AgentOptions { more: more.leak(), ..AgentOptions::default() });
    let started = wait_for_event(&emulator, "AgentStarted", |_| true);
    assert_eq!((&started["regarding"]["kind"], &started["type"]), (&json!("Node"), &json!("Normal")));

    let pool = |cidr: &str| json!({"metadata": {"name": "broken"}, "spec": {"cidr": cidr}});
    emulator.put("/apis/millrace.dev/v1alpha1/ippools", pool("10.300.0.0/16"));
    let told = wait_for_event(&emulator, "InvalidObject", |_| true);
    assert_eq!((&told["regarding"]["kind"], &told["regarding"]["name"]), (&json!("IpPool"), &json!("broken")));
    assert!(told["note"].as_str().is_some_and(|note| note.contains("spec.cidr")), "{told}");
    // While it lasts it is not told again; when it comes back, the series counts.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((events(&emulator, "InvalidObject").len(), &told["series"]), (1, &Value::Null));
    emulator.put("/apis/millrace.dev/v1alpha1/ippools", pool("10.200.0.0/30"));
    agent.wait_for_status(|status| status.problems.is_empty());
    std::thread::sleep(Duration::from_secs(2));
    emulator.put("/apis/millrace.dev/v1alpha1/ippools", pool("10.300.0.0/16"));
    wait_for_event(&emulator, "InvalidObject", |event| event["series"]["count"] == 2);
    emulator.remove("/apis/millrace.dev/v1alpha1/ippools", "broken");

    let pods: Vec<Pod> = (0..4).map(|number| Pod::create(&format!("a{number}"), "a")).collect();
    let mut answers: Vec<bool> = pods.iter().map(|pod| pod.call("ADD", directory).success).collect();
    assert_eq!(answers.pop(), Some(false), "there is no address left");
    let told = wait_for_event(&emulator, "AddressPoolExhausted", |_| true);
    assert_eq!(told["regarding"]["name"], "pods-ipv4");
    pods[0].delete(directory);
    pods[3].add(directory);
    agent.wait_for_status(|status| status.problems.is_empty());

    let mut set = |up: bool| {
        let change = LinkChange { up: Some(up), ..LinkChange::default() };
        netlink.change_link(UPLINK, &change).expect("changed");
    };
    set(false);
    let end = Instant::now() + Duration::from_secs(20);
    while !agent.status().problems.iter().any(|problem| problem.kind.as_deref() == Some("uplink_down")) {
        assert!(Instant::now() < end, "{:?}", agent.status().problems);
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(2));
    set(true);
    wait_for_event(&emulator, "UplinkDown", |event| event["regarding"]["name"] == "a");
    wait_for_event(&emulator, "UplinkDownResolved", |event| event["type"] == "Normal");
    let counts = agent.status().events.expect("Events are counted");
    assert!(counts.written >= 6 && counts.refused == 0, "{counts:?}");
}
