//! What streams lose while an agent ends and the next one starts: numbered datagrams at a fixed pace, counted at the other
//! end, of the host beside the agent and of pods behind it.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{AF_XDP, Cluster, PACKET, Underlay};
use crate::host::node;
use crate::pod::Pod;
use crate::traffic::{self, Endpoint};

/// Time from packet to packet: 2,000 in a second.
const PACE: Duration = Duration::from_micros(500);
/// How long streams run before and after the event.
const AROUND: Duration = Duration::from_millis(500);
/// How long what is on its way may take.
const LATE: Duration = Duration::from_millis(300);

/// What became of one stream.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) sent: usize,
    pub(crate) lost: usize,
    /// The longest time without an arrival.
    pub(crate) silence: Duration,
}

fn send(socket: &UdpSocket, to: &UdpSocket, stop: &AtomicBool) -> usize {
    let target = to.local_addr().expect("address");
    let begun = Instant::now();
    let mut number = 0u32;
    while !stop.load(Ordering::Relaxed) {
        // What the kernel refuses is lost, too.
        let _ = socket.send_to(&number.to_be_bytes(), target);
        number += 1;
        std::thread::sleep((PACE * number).saturating_sub(begun.elapsed()));
    }
    number as usize
}

/// Numbers that arrived, each once, and the longest time between two.
fn receive(socket: &UdpSocket, stop: &AtomicBool) -> (usize, Duration) {
    socket.set_read_timeout(Some(LATE)).expect("timeout");
    // A machine that is busy with other things reads late.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, 8 << 20).expect("buffer");
    let (mut came, mut silence, mut last) = (std::collections::HashSet::new(), Duration::ZERO, Instant::now());
    let mut number = [0; 4];
    loop {
        match socket.recv_from(&mut number) {
            Ok(_) => {
                came.insert(number);
                silence = silence.max(last.elapsed());
                last = Instant::now();
            }
            Err(_) if stop.load(Ordering::Relaxed) => return (came.len(), silence),
            Err(_) => {}
        }
    }
}

/// Runs the streams while `event` happens.
pub(crate) fn while_happens<T>(
    streams: &[(&str, &Endpoint, &Endpoint)],
    event: impl FnOnce() -> T,
) -> (T, Vec<Outcome>) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let running: Vec<_> = streams
            .iter()
            .map(|(_, from, to)| {
                let (near, far) = (from.udp(true), to.udp(true));
                let received = far.try_clone().expect("cloned");
                let stop = &stop;
                let receiving = scope.spawn(move || receive(&received, stop));
                (scope.spawn(move || send(&near, &far, stop)), receiving)
            })
            .collect();
        std::thread::sleep(AROUND);
        let happened = event();
        std::thread::sleep(AROUND);
        stop.store(true, Ordering::Relaxed);
        let outcomes = running.into_iter().map(|(sending, receiving)| {
            let sent = sending.join().expect("sender");
            let (came, silence) = receiving.join().expect("receiver");
            Outcome { sent, lost: sent - came, silence }
        });
        (happened, outcomes.collect())
    })
}

/// What happens to an agent, in words, and how.
type Event = (&'static str, fn(Agent));

fn told(what: &str, streams: &[(&str, &Endpoint, &Endpoint)], outcomes: &[Outcome]) {
    for ((name, ..), Outcome { sent, lost, silence }) in streams.iter().zip(outcomes) {
        println!("| {what} | {name} | {sent} | {lost} | {} ms |", silence.as_millis());
    }
}

pub(crate) fn what_streams_lose_while_agents_come_and_go() {
    println!("| event | stream | sent | lost | longest silence |\n|---|---|---|---|---|");
    for (kind, more) in [("AF_XDP", AF_XDP), ("packet sockets", PACKET)] {
        let cluster = Cluster::with_uplinks(Underlay::create(1), [more; 2], AgentOptions::default());
        let Cluster { agents: [agent, other], underlay } = cluster;
        let pods = [("a1", "a"), ("a2", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
        let ends = pods.each_ref().map(|pod| pod.add(&underlay.directory));
        ends[1..].iter().for_each(|end| traffic::udp(&ends[0], end, true));
        let [own, next] = [0, 1].map(|number| node(&underlay, number));
        let streams = [
            ("host of b to host of a", &next, &own),
            ("host of a to host of b", &own, &next),
            ("pod to pod of the node", &ends[0], &ends[1]),
            ("pod to pod of another node", &ends[0], &ends[2]),
            ("pod of another node to pod", &ends[2], &ends[0]),
        ];
        let start = || underlay.start(0, AgentOptions::default());
        let events: [Event; 2] =
            [("told to end, and the next started", drop), ("killed, and the next started", Agent::kill)];
        let mut agent = Some(agent);
        for (event, end) in events {
            let ((), nothing) = while_happens(&streams, || std::thread::sleep(AROUND));
            assert!(nothing.iter().all(|outcome| outcome.lost == 0), "nothing happened: {nothing:?}");
            let old = agent.take().expect("an agent");
            let (new, outcomes) = while_happens(&streams, || {
                end(old);
                start()
            });
            told(&format!("{event}, {kind}"), &streams, &outcomes);
            let lost_by_host: usize = outcomes[..2].iter().map(|outcome| outcome.lost).sum();
            assert_eq!(lost_by_host, 0, "the host's own streams lose nothing");
            // Pods speak again before the streams end.
            let again = outcomes[2..].iter().all(|outcome| outcome.lost < outcome.sent && outcome.lost > 0);
            assert!(again, "{outcomes:?}");
            new.assert_sound();
            agent = Some(new);
        }
        ends[1..].iter().for_each(|end| traffic::udp(&ends[0], end, true));
        other.assert_sound();
    }
}
