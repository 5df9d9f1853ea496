//! What an agent costs that has nothing to do, and how long its first packet takes.

use std::fs;
use std::time::{Duration, Instant};

use crate::agent_process::AgentOptions;
use crate::cluster::Cluster;
use crate::pod::Pod;
use crate::traffic::{self, Endpoint};

/// Most of a core that an idle agent uses.
const SHARE: f64 = 0.01;
/// Length of a measurement; a tick of `/proc/PID/stat` would be a hundredth of it.
const SECOND: Duration = Duration::from_secs(1);
/// Times the measurement is repeated on a busy machine.
const ATTEMPTS: usize = 10;
/// First packets measured.
const PACKETS: usize = 5;

pub(crate) fn an_idle_agent_sleeps() {
    let cluster = Cluster::create(1, AgentOptions::default());
    let pods = [("a1", "a"), ("a2", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let ends = [0, 1, 2].map(|number: usize| pods[number].add(cluster.directory()));
    traffic::check(&ends[0], &ends[2]);
    traffic::udp(&ends[0], &ends[1], true);
    std::thread::sleep(SECOND);
    for agent in &cluster.agents {
        let mut shares = Vec::new();
        while shares.len() < ATTEMPTS && shares.last().is_none_or(|share| *share >= SHARE) {
            shares.push(share_of_a_core(agent.process()));
        }
        let last = shares.last().copied().unwrap_or(1.0);
        assert!(last < SHARE, "an idle agent uses these shares of a core: {shares:?}");
        eprintln!("an idle agent uses {:.3} % of a core", last * 100.0);
    }
    for (way, server) in [("the same node", &ends[1]), ("another node", &ends[2])] {
        let times: Vec<String> = (0..PACKETS).map(|_| format!("{:.0}", first_packet(&ends[0], server))).collect();
        eprintln!("first packet to a pod on {way} after a second: {} us", times.join(", "));
    }
    cluster.assert_sound();
}

/// Share of a core that all threads of a process used during a second, from the kernel's count in nanoseconds.
fn share_of_a_core(process: u32) -> f64 {
    let (start, before) = (Instant::now(), run_time(process));
    std::thread::sleep(SECOND);
    (run_time(process) - before).max(0.0) / start.elapsed().as_secs_f64()
}

/// Seconds that the threads of a process have run.
fn run_time(process: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("a process").flatten();
    let nanoseconds = |text: String| text.split_whitespace().next().and_then(|first| first.parse::<f64>().ok());
    let counted: Vec<f64> = threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(nanoseconds)
        .collect();
    assert!(counted.iter().any(|time| *time > 0.0), "the kernel does not count");
    counted.iter().sum::<f64>() / 1e9
}

/// Microseconds from before the call that sends a datagram after a pause until the receiver has it.
fn first_packet(client: &Endpoint, server: &Endpoint) -> f64 {
    let (near, far) = (client.udp(true), server.udp(true));
    far.set_read_timeout(Some(5 * SECOND)).expect("timeout");
    let target = far.local_addr().expect("address");
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| far.recv_from(&mut [0; 16]).map(|_| Instant::now()).expect("it arrives"));
        std::thread::sleep(SECOND);
        let start = Instant::now();
        near.send_to(b"first", target).expect("sent");
        receiving.join().expect("received").duration_since(start).as_secs_f64() * 1e6
    })
}
