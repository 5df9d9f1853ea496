//! A new agent takes over from the one that runs, while streams of every kind go through both: nothing is lost.
//!
//! And whatever goes wrong with the new one, at whichever message, the one that runs goes on.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_control::agent::takeover::message::{Connection, Message, PROTOCOL};

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{AF_XDP, AUTOMATIC, Cluster, PACKET, Underlay};
use crate::kept::{self, Conversation};
use crate::losses::while_happens;
use crate::pod::Pod;
use crate::services::{PORT, service_at};
use crate::traffic::{self, Endpoint};

/// Times that the agent of the node is replaced.
const REPLACEMENTS: usize = 20;
/// Longest time without forwarding that needs no explanation.
const BOUND_US: u64 = 1_000;
const OPTIONS: AgentOptions = AgentOptions { workers: 2, uplink: true, more: "", under: &[] };
/// Names a socket, and the last message that [`as_successor`] says or hears.
const SUCCESSOR: &str = "MILLRACE_TEST_SUCCESSOR";

/// Opens a connection, asks, is answered, again and again; how many were, and how long the longest took.
fn open_anew(from: &Endpoint, to: SocketAddr, stop: &AtomicBool) -> (usize, Duration) {
    let (mut opened, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut one = Conversation::open("a new connection", from, to);
        one.ask().unwrap_or_else(|error| panic!("connection {opened} to {to}: {error}"));
        longest = longest.max(begun.elapsed());
        opened += 1;
        std::thread::sleep(Duration::from_millis(2));
    }
    (opened, longest)
}

/// How long nobody forwarded, replacement by replacement.
fn gap_table(way: &str, gaps: &[Vec<u64>]) {
    println!("| {way}: replacement | longest time without forwarding, by worker |\n|---|---|");
    for (number, gaps) in gaps.iter().enumerate() {
        let words: Vec<String> = gaps.iter().map(|gap| format!("{gap} us")).collect();
        println!("| {} | {} |", number + 1, words.join(", "));
    }
    let mut all: Vec<u64> = gaps.iter().flatten().copied().collect();
    all.sort_unstable();
    let beyond = all.iter().filter(|gap| **gap > BOUND_US).count();
    let at = |part: usize| all.get(all.len() * part / 100).or(all.last()).copied().unwrap_or(0);
    println!("| median, 95 of 100, longest | {}, {}, {} us |", at(50), at(95), at(100));
    println!("| beyond {BOUND_US} us | {beyond} of {} |", all.len());
}

fn replaced_under_load(way: &str, more: &str) {
    let Cluster { agents: [first, other], underlay } = Cluster::with_uplinks(Underlay::create(1), [more; 2], OPTIONS);
    let pods = [("a1", "a"), ("a2", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let ends = pods.each_ref().map(|pod| pod.add(&underlay.directory));
    ends[1..].iter().for_each(|end| traffic::check(&ends[0], end));
    let to: SocketAddr = "10.96.0.7:80".parse().expect("address");
    let service = service_at(7, "Cluster", &[(&ends[1], "a"), (&ends[2], "b")], |ipv4| {
        [if ipv4 { to.ip() } else { "fd00:96::7".parse().expect("address") }]
    });
    underlay.directory.write_objects("service.yaml", &service);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for server in &ends[1..] {
            let listen = || TcpListener::bind((server.address(true), PORT));
            let listener = server.namespace.enter(listen).expect("entered").expect("bound");
            let stop = &stop;
            scope.spawn(move || kept::answer(&listener, stop));
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            replacements(way, &underlay, first, &ends, to);
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    other.assert_sound();
}

/// Replaces the agent of node `a` again and again while streams run, conversations are held and connections opened.
fn replacements(way: &str, underlay: &Underlay, first: Agent, ends: &[Endpoint; 3], to: SocketAddr) {
    let mut conversations: Vec<Conversation> =
        (0..8).map(|_| Conversation::open("a pod to a ClusterIP", &ends[0], to)).collect();
    let streams = [
        ("pod to pod of the node", &ends[0], &ends[1]),
        ("pod to pod of another node", &ends[0], &ends[2]),
        ("pod of another node to pod", &ends[2], &ends[0]),
    ];
    let (mut agent, mut gaps) = (Some(first), Vec::new());
    let (((replaced, outcomes), held), (opened, longest)) = while_opened(&ends[0], to, || {
        kept::while_held(&mut conversations, || {
            while_happens(&streams, || {
                // The load must end, whatever happens.
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    for _ in 0..REPLACEMENTS {
                        let next = underlay.take_over(0, agent.take().expect("an agent"), OPTIONS);
                        gaps.push(next.status().takeover_gaps_us.expect("it took over"));
                        agent = Some(next);
                    }
                }))
            })
        })
    });
    gap_table(way, &gaps);
    if let Err(panic) = replaced {
        std::panic::resume_unwind(panic);
    }
    println!("| stream | sent | lost | longest silence |\n|---|---|---|---|");
    for ((name, ..), outcome) in streams.iter().zip(&outcomes) {
        println!("| {name} | {} | {} | {} ms |", outcome.sent, outcome.lost, outcome.silence.as_millis());
    }
    let waits = held.iter().map(|(_, wait)| wait.clone().expect("every conversation goes on"));
    let wait = waits.max().unwrap_or_default();
    println!("| {} TCP conversations | longest wait | {} ms |", held.len(), wait.as_millis());
    println!("| new connections | {opened}, each answered | longest {} ms |", longest.as_millis());
    assert!(outcomes.iter().all(|outcome| outcome.lost == 0 && outcome.sent > 1_000), "{outcomes:?}");
    let (_late, end) = plugged_in(underlay, "late");
    traffic::udp(&end, &ends[0], true);
    agent.expect("an agent").assert_sound();
}

/// Opens connections while `event` happens: how many, and how long the longest took.
fn while_opened<T>(from: &Endpoint, to: SocketAddr, event: impl FnOnce() -> T) -> (T, (usize, Duration)) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| open_anew(from, to, &stop));
        let happened = event();
        stop.store(true, Ordering::Relaxed);
        (happened, opening.join().expect("every new connection opens"))
    })
}

fn plugged_in(underlay: &Underlay, name: &str) -> (Pod, Endpoint) {
    let pod = Pod::create(name, "a");
    let end = pod.add(&underlay.directory);
    (pod, end)
}

pub(crate) fn an_agent_is_replaced_under_load_and_nothing_is_lost() {
    replaced_under_load("UDP sockets", AUTOMATIC);
    replaced_under_load("packet sockets", PACKET);
}

/// A successor that fails, in a process of its own: the running agent kills it where it might read from queues.
pub(crate) fn as_successor() -> Option<ExitCode> {
    let words = std::env::var(SUCCESSOR).ok()?;
    let (last, socket) = words.split_once(' ')?;
    let connection = Connection::to(Path::new(socket)).ok()?;
    let patience = Duration::from_secs(10);
    let hello = Message::Hello { protocol: PROTOCOL, node: "a".to_owned(), workers: OPTIONS.workers };
    connection.say(&hello, &[]).ok()?;
    if last == "hello" {
        return Some(ExitCode::SUCCESS);
    }
    let Message::Welcome { queues, .. } = connection.hear("Welcome", patience).ok()?.0 else { return None };
    if last == "welcome" {
        return Some(ExitCode::SUCCESS);
    }
    (0..queues).for_each(|_| drop(connection.hear("Queue", patience)));
    if last == "queues" {
        return Some(ExitCode::SUCCESS);
    }
    connection.say(&Message::Ready, &[]).ok()?;
    if last == "ready" {
        return Some(ExitCode::SUCCESS);
    }
    let Message::Yours { .. } = connection.hear("Yours", patience).ok()?.0 else { return None };
    if last == "silent" {
        std::thread::sleep(Duration::from_secs(60));
    }
    Some(ExitCode::SUCCESS)
}

pub(crate) fn a_takeover_that_fails_leaves_the_running_agent() {
    let Cluster { agents: [first, other], underlay } =
        Cluster::with_uplinks(Underlay::create(1), [AUTOMATIC; 2], OPTIONS);
    let pods = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let ends = pods.each_ref().map(|pod| pod.add(&underlay.directory));
    traffic::check(&ends[0], &ends[1]);
    let socket = underlay.directory.file("a.sock");
    let refused = |protocol, node: &str, workers| {
        let connection = Connection::to(&socket).expect("connected");
        connection.say(&Message::Hello { protocol, node: node.to_owned(), workers }, &[]).expect("said");
        connection.hear("Welcome", Duration::from_secs(10)).expect_err("refused").to_string()
    };
    let expected = [
        (refused(PROTOCOL + 1, "a", 2), "protocol"),
        (refused(PROTOCOL, "b", 2), "node"),
        (refused(PROTOCOL, "a", 3), "workers"),
    ];
    for (said, word) in expected {
        assert!(said.contains(word), "{said}");
    }
    for last in ["hello", "welcome", "queues", "ready", "yours", "silent"] {
        let mut command = std::process::Command::new(std::env::current_exe().expect("own path"));
        command.env(SUCCESSOR, format!("{last} {}", socket.display()));
        let begun = Instant::now();
        let status = command.status().expect("successor");
        let took = begun.elapsed();
        assert_eq!(status.success(), last != "silent", "{last}: {status:?}: the silent one is killed");
        assert!(took < Duration::from_secs(30), "{last}: {took:?}");
        traffic::udp(&ends[0], &ends[1], true);
        let status = first.wait_for_status(|status| {
            status.problems.iter().any(|problem| problem.message.contains("this one goes on"))
        });
        assert_eq!((status.unaccounted_frames, status.pods), (0, 1), "{last}");
    }
    // After all of that it can still be taken over from, and pods be plugged in.
    let next = underlay.take_over(0, first, OPTIONS);
    let (_late, end) = plugged_in(&underlay, "late");
    traffic::udp(&end, &ends[1], true);
    next.assert_sound();
    other.assert_sound();
}

/// What cannot be handed over is refused before anything has happened.
pub(crate) fn queues_of_af_xdp_are_not_handed_over() {
    let Cluster { agents: [first, _other], underlay } =
        Cluster::with_uplinks(Underlay::create(1), [AF_XDP; 2], AgentOptions::default());
    let output = underlay.refused_successor(0);
    assert!(output.contains("AF_XDP queues cannot be handed over"), "{output}");
    assert_eq!(first.status().uplinks, 1);
}
