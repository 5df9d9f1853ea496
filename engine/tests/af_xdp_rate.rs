//! How many minimum frames a second one thread forwards between two AF_XDP queues on veth pairs: the kernel's cost of
//! this port, since the thread itself does nothing with a packet. Two seconds; not run by default.
//!
//! `cargo test --release -p millrace-engine --test af_xdp_rate -- --ignored --nocapture`
//!
//! The forwarder is pinned to the last core, sender and receiver to core 0; the rate is counted at the receiver, so
//! packets the sender offers beyond what the path takes do not count. It stands and falls with the quiet of the
//! machine: compare runs on one machine, interleaved.
#![allow(unsafe_code)]

#[path = "support/root_tests.rs"]
#[macro_use]
mod root_tests;
#[path = "support/namespaces.rs"]
mod namespaces;
#[path = "support/af_xdp_wire.rs"]
mod wire;

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_engine::port::PortQueue;
use millrace_engine::port::af_xdp::AttachPreference;
use wire::{A, B, Network, Wire, socket, wait_for};

const SECONDS: u64 = 2;
const BATCH: usize = 64;
/// UDP payload of a 60-byte frame.
const PAYLOAD: usize = 18;

fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).expect("affinity");
}

/// Time this thread ran, not counting what others took of its core.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A batch of messages over buffers that live as long.
struct Batch {
    buffers: Box<[[u8; 64]; BATCH]>,
    vectors: Vec<libc::iovec>,
}

impl Batch {
    fn new() -> Self {
        let mut buffers = Box::new([[7u8; 64]; BATCH]);
        let vectors =
            buffers.iter_mut().map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: PAYLOAD });
        let vectors = vectors.collect();
        Self { buffers, vectors }
    }

    fn headers(&mut self) -> Vec<libc::mmsghdr> {
        assert_eq!(self.buffers.len(), self.vectors.len());
        let header = |vector: &mut libc::iovec| {
            // SAFETY: a struct of integers and pointers, for which zero is a value.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message
        };
        self.vectors.iter_mut().map(header).collect()
    }
}

fn send(socket: &UdpSocket, done: &AtomicBool) -> u64 {
    let mut batch = Batch::new();
    let mut headers = batch.headers();
    let mut sent = 0;
    while !done.load(Ordering::Relaxed) {
        // SAFETY: the headers point to vectors and buffers that live in `batch`.
        let count = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), BATCH as u32, 0) };
        sent += u64::try_from(count).unwrap_or(0);
    }
    sent
}

fn receive(socket: &UdpSocket, done: &AtomicBool) -> u64 {
    let mut batch = Batch::new();
    let mut headers = batch.headers();
    let mut received = 0;
    while !done.load(Ordering::Relaxed) {
        let (flags, none) = (libc::MSG_WAITFORONE, std::ptr::null_mut());
        // SAFETY: the headers point to vectors and buffers that live in `batch`.
        let count = unsafe { libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), BATCH as u32, flags, none) };
        received += u64::try_from(count).unwrap_or(0);
    }
    received
}

fn forwarding_rate_of_minimum_frames() {
    let network = Network::new(1500);
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let (sink, source) = (network.b.run(|| socket(B, 9000)), network.a.run(|| socket(A, 9001)));
    source.connect(SocketAddr::new(B, 9000)).expect("connect");
    std::thread::scope(|scope| {
        let switch = network.switch.spawn(scope, || {
            pin(std::thread::available_parallelism().map_or(1, usize::from) - 1);
            let mut wire = Wire::open(AttachPreference::Native);
            wire.turn();
            ready.store(true, Ordering::Relaxed);
            let before = processor_time();
            wire.run_until(&done);
            let busy = processor_time() - before;
            let (received, sent) = (wire.received, wire.sent());
            let dropped = wire.sides[0].queue.kernel_drops();
            wire.close();
            (received, sent, dropped, busy)
        });
        wait_for("the switch", || ready.load(Ordering::Relaxed));
        let receiver = scope.spawn(|| {
            pin(0);
            receive(&sink, &done)
        });
        let sender = scope.spawn(|| {
            pin(0);
            send(&source, &done)
        });
        let started = Instant::now();
        std::thread::sleep(Duration::from_secs(SECONDS));
        let elapsed = started.elapsed();
        done.store(true, Ordering::Relaxed);
        let (offered, arrived) = (sender.join().expect("sender"), receiver.join().expect("receiver"));
        let (received, sent, dropped, busy) = switch.join().expect("switch");
        let rate = |count: u64| count as f64 / elapsed.as_secs_f64() / 1000.0;
        println!(
            "offered {:.0} kpps, forwarded {:.0}, arrived {:.0}; the forwarder had {:.0} % of a core and forwarded {:.0} \
             thousand packets in a second of it; dropped before the queue {dropped}",
            rate(offered),
            rate(sent),
            rate(arrived),
            100.0 * busy.as_secs_f64() / elapsed.as_secs_f64(),
            sent as f64 / busy.as_secs_f64() / 1000.0
        );
        assert!(arrived > 0 && received >= sent && sent >= arrived);
    });
}

root_tests! {
    every run [],
    on demand [
        forwarding_rate_of_minimum_frames,
    ],
}
