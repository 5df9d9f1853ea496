//! What an idle node costs, and how long its first packet takes.
//!
//! The first packet is a UDP datagram after a pause, one way, both ends on the clock of this machine. Three times of the
//! same datagram are taken from just before the call that sends it: until the sending pod's kernel has it in its
//! interface (its transmit timestamp), which is before any switch; until the receiving pod's kernel takes it from its
//! interface (its receive timestamp), which is the packet's own way; and until the receiving thread runs, which adds
//! that thread's wake-up on a processor that slept. The same is measured within one pod, where the kernel alone
//! carries the packet.

use std::net::UdpSocket;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use millrace_engine::port::socket::{departure_time, note_arrival_times, note_departure_times, receive_timed};
use serde::Serialize;

use super::cluster::Cluster;
use super::interruption::Interruption;
use super::performance::ATTEMPTS;
use super::reachability::Way;
use super::traffic::{Endpoint, Family};

/// An idle agent uses less than this share of a core.
pub(super) const SHARE: f64 = 0.01;

/// The first packet after a pause is in the receiving pod's kernel in less.
pub(super) const FIRST_PACKET_MICROSECONDS: f64 = 100.0;

/// Longest time from the end of traffic to the measurement, longest measurement, longest pause before a packet:
/// shorter only where all measurements are.
const REST: Duration = Duration::from_secs(1);

/// First packets for a median.
const PACKETS: usize = 15;

/// How long a first packet may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ticks of `/proc/PID/stat`: the same on every Linux (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// An idle second of one agent.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Idle {
    pub(super) node: String,
    /// Time its threads ran, as a share of one core.
    pub(super) share_of_core: f64,
}

/// First packets after pauses.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FirstPacket {
    pub(super) way: Way,
    /// Until the sending pod's kernel has the packet in its interface.
    pub(super) to_interface: Times,
    /// Until the receiving pod's kernel has the packet.
    pub(super) to_kernel: Times,
    /// Until the receiving thread runs.
    pub(super) to_thread: Times,
}

/// Times of several packets.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Times {
    pub(super) median_microseconds: f64,
    /// All of them, in order of time.
    pub(super) microseconds: Vec<f64>,
}

/// When one packet was where, as times of day.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    in_kernel: Duration,
    in_thread: Duration,
}

/// The agents' idle second, again if one was busy; the least of each.
pub(super) fn agents(cluster: &Cluster, duration: Duration, interruption: &Interruption) -> anyhow::Result<Vec<Idle>> {
    let mut least: Vec<Idle> = Vec::new();
    for _ in 0..ATTEMPTS {
        let measured = agents_once(cluster, duration.min(REST), interruption)?;
        if least.is_empty() {
            least = measured;
        } else {
            for (best, now) in least.iter_mut().zip(measured) {
                best.share_of_core = best.share_of_core.min(now.share_of_core);
            }
        }
        if least.iter().all(|idle| idle.share_of_core < SHARE) {
            break;
        }
    }
    Ok(least)
}

fn agents_once(cluster: &Cluster, rest: Duration, interruption: &Interruption) -> anyhow::Result<Vec<Idle>> {
    interruption.pause(rest)?;
    let processes: Vec<_> = cluster.nodes.iter().map(|node| node.agent.process()).collect();
    let start = Instant::now();
    let before = processes.iter().map(|process| run_time(*process)).collect::<anyhow::Result<Vec<_>>>()?;
    interruption.pause(rest)?;
    let after = processes.iter().map(|process| run_time(*process)).collect::<anyhow::Result<Vec<_>>>()?;
    let elapsed = start.elapsed().as_secs_f64();
    let share = |(before, after): (Duration, Duration)| after.saturating_sub(before).as_secs_f64() / elapsed;
    let shares = before.into_iter().zip(after).map(share);
    let named = cluster.nodes.iter().zip(shares);
    Ok(named.map(|(node, share_of_core)| Idle { node: node.name.to_owned(), share_of_core }).collect())
}

/// Time that all threads of a process have run, in nanoseconds where the kernel counts them (`schedstat`), else in
/// ticks of 10 ms.
fn run_time(process: u32) -> anyhow::Result<Duration> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).context("an agent is gone")?;
    let mut time = Duration::ZERO;
    for thread in threads.flatten() {
        // A thread may end meanwhile.
        let Ok(text) = std::fs::read_to_string(thread.path().join("schedstat")) else { continue };
        let nanoseconds = text.split_whitespace().next().and_then(|first| first.parse().ok());
        time += Duration::from_nanos(nanoseconds.unwrap_or(0));
    }
    if time.is_zero() { ticks(process) } else { Ok(time) }
}

/// User and system time of a process (proc(5), fields 14 and 15 of `stat`).
fn ticks(process: u32) -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).context("an agent is gone")?;
    // The name, in brackets, may hold blanks; the third field follows it.
    let (_, rest) = text.rsplit_once(')').context("the kernel's process statistics cannot be read")?;
    let times = rest.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
    Ok(Duration::from_millis(times.sum::<u64>().saturating_mul(1000) / TICKS_PER_SECOND))
}

/// First packets on one node and across nodes, again if one way was slow; the best median of each.
pub(super) fn first_packets(
    cluster: &Cluster,
    duration: Duration,
    interruption: &Interruption,
) -> anyhow::Result<Vec<FirstPacket>> {
    let mut best = Vec::new();
    for (to, way) in [(0, Way::WithinPod), (1, Way::SameNode), (2, Way::AcrossNodes)] {
        let (from, to) = (&cluster.pod(0)?.endpoint, &cluster.pod(to)?.endpoint);
        let mut attempts: Vec<FirstPacket> = Vec::new();
        while attempts.len() < ATTEMPTS && !attempts.last().is_some_and(FirstPacket::is_as_expected) {
            let [to_interface, to_kernel, to_thread] =
                one_way_times(from, to, duration.min(REST), interruption)?.map(Times::new);
            attempts.push(FirstPacket { way, to_interface, to_kernel, to_thread });
        }
        let median = |first: &FirstPacket| first.to_kernel.median_microseconds;
        best.extend(attempts.into_iter().min_by(|one, other| median(one).total_cmp(&median(other))));
    }
    Ok(best)
}

impl FirstPacket {
    fn is_as_expected(&self) -> bool {
        self.to_kernel.median_microseconds < FIRST_PACKET_MICROSECONDS
    }
}

impl Times {
    fn new(microseconds: Vec<f64>) -> Self {
        let mut sorted = microseconds.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let median_microseconds = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::INFINITY);
        Self { median_microseconds, microseconds }
    }
}

/// Microseconds to the sending interface, to the receiving kernel, and to the receiving thread.
fn one_way_times(
    from: &Endpoint,
    to: &Endpoint,
    pause: Duration,
    interruption: &Interruption,
) -> anyhow::Result<[Vec<f64>; 3]> {
    let (sender, receiver) = (from.udp_socket(Family::Ipv4)?, to.udp_socket(Family::Ipv4)?);
    sender.connect(receiver.local_addr()?)?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    note_departure_times(&sender)?;
    note_arrival_times(&receiver)?;
    let (arrivals, arrived) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || note_arrivals(&receiver, &arrivals));
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..PACKETS {
            interruption.pause(pause)?;
            let start = time_of_day();
            sender.send(&[0])?;
            let arrival = arrived.recv_timeout(PATIENCE).context("the first packet after a pause did not arrive")?;
            // The kernel notes the departure before it hands the packet over.
            let departure = departure_time(&sender)?.context("the kernel did not note when it sent the packet")?;
            for (times, end) in times.iter_mut().zip([departure, arrival.in_kernel, arrival.in_thread]) {
                times.push(end.saturating_sub(start).as_nanos() as f64 / 1000.0);
            }
        }
        Ok(times)
    })
}

/// Ends after the last packet, or when none has come for longer than a pause.
fn note_arrivals(receiver: &UdpSocket, arrivals: &mpsc::Sender<Arrival>) {
    for _ in 0..PACKETS {
        let Ok((_, Some(in_kernel))) = receive_timed(receiver, &mut [0; 8]) else { return };
        if arrivals.send(Arrival { in_kernel, in_thread: time_of_day() }).is_err() {
            return;
        }
    }
}

/// The clock of the kernel's receive timestamps.
fn time_of_day() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
