//! Datagrams joined to units on their way into a pod: what sockets of its kernel read, with `UDP_GRO` and without.
#![allow(unsafe_code)]

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use millrace_engine::counters::WorkerCounters;
use millrace_engine::packet::copy_and_checksum::Kernel;
use millrace_engine::packet::{Checksum, FrameMemory, FrameMemoryLayout, Mac, Packet, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::port::namespace::NamespaceHandle;
use millrace_engine::port::tap::{TapDevice, TapQueue};
use millrace_engine::testing::{FrameBuilder, frame};
use millrace_engine::transmit::joining::{Joined, Joiner};

use crate::tap_support::{self, POD, PodNamespace, SWITCH};

/// Datagrams of a round; their kernel memory fits the receive buffers that a kernel gives by default.
const ROUND: usize = 48;
const LAYOUT: FrameMemoryLayout = FrameMemoryLayout { head_frames: 256, big_buffers: 8 };

/// A pod, and the way into it: joiner and TAP.
struct Pod {
    namespace: PodNamespace,
    queue: TapQueue,
    memory: FrameMemory,
    joiner: Joiner,
    counters: WorkerCounters,
}

impl Pod {
    fn new() -> Self {
        let namespace = PodNamespace::create();
        let handle: &NamespaceHandle = namespace.handle();
        let device = TapDevice::create_in_namespace(handle, "eth0", 1).expect("tap");
        namespace.configure("eth0");
        let queue = device.into_queues(PortIndex(3)).pop().expect("a queue");
        if !queue.capabilities().udp_segmentation {
            crate::root_tests::not_here("this kernel has no UDP segmentation for TAPs (6.2 and later have)");
        }
        let memory = FrameMemory::new(LAYOUT).expect("memory");
        Self { namespace, queue, memory, joiner: Joiner::new(Kernel::detect()), counters: WorkerCounters::default() }
    }

    fn packet(&mut self, wire: &WireFrame) -> Packet {
        let mut packet = self.memory.packet_from(&wire.bytes).expect("packet");
        if let Some((start, offset)) = wire.partial_checksum {
            packet.set_checksum(Checksum::Partial { start: packet.start() as u16 + start, offset });
        }
        packet
    }

    /// Joins and writes, as the worker does with what is pending for a port.
    fn send(&mut self, datagrams: &[FrameBuilder]) -> Joined {
        let mut packets: Vec<_> = datagrams.iter().map(|datagram| self.packet(&datagram.wire())).collect();
        let joined = self.joiner.join(&mut self.memory, &mut packets, true);
        assert_eq!(packets.len() + joined.merged_frames(), datagrams.len());
        self.queue.transmit(&mut self.memory, &mut packets, &self.counters);
        assert!(packets.is_empty());
        assert_eq!(self.counters.port(3).dropped_frames.get(), 0);
        assert_eq!((self.memory.free_heads(), self.memory.free_bigs()), (LAYOUT.head_frames, LAYOUT.big_buffers));
        joined
    }
}

fn datagram(socket: &UdpSocket, identification: u16, payload: &[u8]) -> FrameBuilder {
    let port = socket.local_addr().expect("address").port();
    frame()
        .from(Mac([2, 0, 0x5e, 0, 0, 2]), SWITCH.to_string().as_str())
        .to(Mac([2, 0, 0x5e, 0, 0, 1]), POD.to_string().as_str())
        .identification(identification.into())
        .udp()
        .ports(900, port)
        .payload(payload)
}

/// One message of a socket, and the length of its datagrams if the kernel says that it is a unit.
fn read(socket: &UdpSocket) -> Option<(Vec<u8>, Option<usize>)> {
    let mut buffer = vec![0u8; 65536];
    let mut control = [0u64; 8];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a header of zeros is a valid one.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
    (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
    // SAFETY: the header and all that it points to live until the call returns, with their lengths given.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    buffer.truncate(usize::try_from(length).ok()?);
    assert_eq!(header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC), 0);
    // struct cmsghdr: length, level, kind; behind it a number (cmsg(3), udp(7)).
    if header.msg_controllen == 0 {
        return Some((buffer, None));
    }
    let told = control.map(u64::to_ne_bytes).concat();
    let number = |at: usize| told.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| i32::from_ne_bytes(*bytes));
    let (level, kind, size) = (number(8)?, number(12)?, number(16)?);
    assert_eq!((level, kind), (libc::SOL_UDP, libc::UDP_GRO));
    Some((buffer, usize::try_from(size).ok()))
}

/// All datagrams that wait, units cut as their reader would, and the number of messages they came in.
fn drain(socket: &UdpSocket) -> (Vec<Vec<u8>>, usize) {
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("timeout");
    let (mut datagrams, mut messages) = (Vec::new(), 0);
    while let Some((bytes, size)) = read(socket) {
        messages += 1;
        match size {
            Some(size) => datagrams.extend(bytes.chunks(size).map(<[u8]>::to_vec)),
            None => datagrams.push(bytes),
        }
    }
    (datagrams, messages)
}

fn accept_units(socket: &UdpSocket) {
    tap_support::set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1).expect("Linux 5.0");
}

pub(crate) fn joined_datagrams_reach_every_kind_of_socket_as_they_were_sent() {
    let mut pod = Pod::new();
    let (plain, units) = (pod.namespace.udp(), pod.namespace.udp());
    accept_units(&units);
    for socket in [&plain, &units] {
        let payloads: Vec<Vec<u8>> = (0..40u8).map(|number| vec![number; if number < 39 { 1000 } else { 7 }]).collect();
        let sent: Vec<_> = payloads.iter().zip(0..).map(|(payload, id)| datagram(socket, id, payload)).collect();
        assert_eq!(pod.send(&sent), Joined { units: 1, segments: 40 });
        let (received, messages) = drain(socket);
        assert_eq!(received, payloads);
        let is_plain = std::ptr::eq(socket, &raw const plain);
        assert_eq!(messages, if is_plain { 40 } else { 1 }, "whole only where it is understood");
    }
}

/// Sixty-four bits that look random, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % limit
    }
}

/// What becomes of a datagram with this checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sum {
    Right,
    Open,
    Absent,
    Wrong,
}

pub(crate) fn any_mixture_of_flows_arrives_in_order_without_what_is_broken() {
    let mut pod = Pod::new();
    let sockets: Vec<_> = (0..4).map(|_| pod.namespace.udp()).collect();
    sockets[2..].iter().for_each(accept_units);
    let (mut random, mut identification, mut all) = (Random(0x9e37_79b9_7f4a_7c15), 0u16, Joined::default());
    for round in 0..60 {
        let (mut sent, mut expected) = (Vec::new(), vec![Vec::new(); sockets.len()]);
        let (mut flow, mut length) = (0, 100);
        for number in 0..ROUND {
            if random.below(4) == 0 {
                flow = random.below(sockets.len());
            }
            if random.below(6) == 0 {
                length = [1, 37, 100, 101, 1400, 0][random.below(6)];
            }
            let sum = match random.below(16) {
                0 => Sum::Wrong,
                1 => Sum::Absent,
                2..5 => Sum::Open,
                _ => Sum::Right,
            };
            identification = identification.wrapping_add(if random.below(12) == 0 { 5 } else { 1 });
            let payload: Vec<u8> = (0..length).map(|byte| (byte * 31 + number * 7 + round) as u8).collect();
            let plain = datagram(&sockets[flow], identification, &payload);
            sent.push(match sum {
                Sum::Right => plain,
                Sum::Open => plain.partial_checksum(),
                Sum::Absent => plain.udp_without_checksum(),
                Sum::Wrong => plain.with_bad_checksum(),
            });
            if sum != Sum::Wrong {
                expected[flow].push(payload);
            }
        }
        let joined = pod.send(&sent);
        all = Joined { units: all.units + joined.units, segments: all.segments + joined.segments };
        for (socket, expected) in sockets.iter().zip(&expected) {
            let (received, _) = drain(socket);
            let lengths = |datagrams: &[Vec<u8>]| datagrams.iter().map(Vec::len).collect::<Vec<_>>();
            assert_eq!(lengths(&received), lengths(expected), "round {round}");
            assert!(received == *expected, "round {round}");
        }
    }
    assert!(all.units > 100 && all.segments > 2 * all.units, "too little was joined to show anything: {all:?}");
}
