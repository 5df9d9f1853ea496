//! Two TAPs, one thread: what comes out of one goes into the other, addressed to its pod.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use millrace_engine::counters::WorkerCounters;
use millrace_engine::packet::{FrameMemory, FrameMemoryLayout, GsoKind, Mac, Packet, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::tap::{TapDevice, TapQueue};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::time::ClockId;

use super::GATEWAY;

const LAYOUT: FrameMemoryLayout = FrameMemoryLayout { head_frames: 4096, big_buffers: 128 };

/// What crossed.
#[derive(Default)]
pub(crate) struct Crossed {
    /// Longest packet in bytes.
    pub(crate) longest: usize,
    /// Units of segments, by kind: TCP over IPv4, TCP over IPv6, UDP.
    pub(crate) units: [u64; 3],
    /// Packets whose checksum was partial.
    pub(crate) partial: u64,
    /// For each UDP flow over IPv4 (lower and higher port), the queues its packets came out of, by side.
    pub(crate) queues: HashMap<(u16, u16), [Vec<usize>; 2]>,
    /// Packets in all.
    pub(crate) packets: u64,
    /// Share of the time that the forwarder's thread really had its core.
    pub(crate) on_core: f64,
}

/// A running forwarder.
pub(crate) struct Forwarder {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Crossed>,
}

impl Forwarder {
    /// Connects the two devices; `macs` are those of the pods behind them. With `core`, polls without sleeping there.
    pub(crate) fn start(devices: [TapDevice; 2], macs: [Mac; 2], core: Option<usize>) -> Forwarder {
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || run(devices, macs, core, &until));
        Forwarder { stop, thread }
    }

    /// Ends it, closes the queues and returns what crossed.
    pub(crate) fn stop(self) -> Crossed {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("forwarder")
    }
}

fn run(devices: [TapDevice; 2], macs: [Mac; 2], core: Option<usize>, until: &AtomicBool) -> Crossed {
    if let Some(core) = core {
        pin(core);
    }
    let mut memory = FrameMemory::new(LAYOUT).expect("memory");
    let counters = WorkerCounters::default();
    let mut number = 0;
    let mut sides = devices.map(|device| {
        let queues = device.into_queues(PortIndex(number));
        number += 1;
        queues
    });
    let mut crossed = Crossed::default();
    let started = (seconds(ClockId::Monotonic), seconds(ClockId::ThreadCPUTime));
    let mut vector: Vec<Packet> = Vec::with_capacity(64);
    while !until.load(Ordering::Relaxed) {
        let mut moved = 0;
        for side in 0..2 {
            for queue in 0..sides[side].len() {
                moved += sides[side][queue].receive(&mut memory, &mut vector);
                for packet in &mut vector {
                    assert_eq!(packet.ingress, PortIndex(side as u16));
                    observe(&mut crossed, &memory, packet, side, queue, core.is_some());
                    let head = memory.head_mut(packet);
                    head[..6].copy_from_slice(&macs[1 - side].0);
                    head[6..12].copy_from_slice(&GATEWAY.0);
                }
                sides[1 - side][queue].transmit(&mut memory, &mut vector, &counters);
                assert!(vector.is_empty(), "a TAP always has room");
            }
        }
        if moved == 0 && core.is_none() {
            sleep(&sides);
        }
    }
    crossed.on_core = (seconds(ClockId::ThreadCPUTime) - started.1) / (seconds(ClockId::Monotonic) - started.0);
    assert_eq!((memory.free_heads(), memory.free_bigs()), (LAYOUT.head_frames, LAYOUT.big_buffers), "frames leaked");
    let sent: u64 = (0..2).map(|port| counters.port(port).sent_frames.get()).sum();
    let refused: u64 = (0..2).map(|port| counters.port(port).dropped_frames.get()).sum();
    assert_eq!(crossed.packets, sent + refused);
    assert!(sides.iter().flatten().all(|queue| queue.malformed() == 0 && !queue.is_gone()));
    crossed
}

fn observe(crossed: &mut Crossed, memory: &FrameMemory, packet: &Packet, side: usize, queue: usize, fast: bool) {
    crossed.packets += 1;
    crossed.longest = crossed.longest.max(packet.length());
    if let Some(gso) = packet.gso() {
        let kind = match gso.kind {
            GsoKind::TcpIpv4 => 0,
            GsoKind::TcpIpv6 => 1,
            GsoKind::Udp => 2,
        };
        crossed.units[kind] += 1;
    }
    if packet.checksum() != millrace_engine::packet::Checksum::Complete {
        crossed.partial += 1;
    }
    let head = memory.head(packet);
    if !fast && head.len() >= 42 && head[12..14] == [8, 0] && head[23] == 17 {
        let port = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let flow = (port(34).min(port(36)), port(34).max(port(36)));
        crossed.queues.entry(flow).or_default()[side].push(queue);
    }
}

fn sleep(sides: &[Vec<TapQueue>; 2]) {
    let mut polled: Vec<PollFd<'_>> = sides.iter().flatten().map(|queue| PollFd::new(queue, PollFlags::IN)).collect();
    let _ = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 }));
}

fn seconds(clock: ClockId) -> f64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Binds the calling thread to one core.
pub(crate) fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).expect("affinity");
}
