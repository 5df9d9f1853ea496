//! Agents on an API server that goes away under load and comes back another one.
//!
//! `MILLRACE_AWAY_SECONDS` says for how long; 60 is what an upgrade of a control plane takes, the default is short.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_control::observe::custom_resource_definitions;
use millrace_emulator::{Emulator, Options};
use serde_json::{Value, json};

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{NODES, POOLS, Underlay, node_object, uplink_object};
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
