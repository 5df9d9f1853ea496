//! The TAP port against the real kernel, without the control plane: frames of the test's own making go in and out.
//! Needs root.

#[path = "support/root_tests.rs"]
#[macro_use]
mod root_tests;
#[path = "tap_support/datagrams.rs"]
mod datagrams;
#[path = "tap_support/steering.rs"]
mod steering;
mod tap_support;

use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use datagrams::{
    any_mixture_of_flows_arrives_in_order_without_what_is_broken,
    joined_datagrams_reach_every_kind_of_socket_as_they_were_sent,
};
use millrace_engine::counters::WorkerCounters;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::limits;
use millrace_engine::packet::{Checksum, FrameMemory, FrameMemoryLayout, Gso, GsoKind, Packet, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::namespace::{NamespaceHandle, in_new_namespace};
use millrace_engine::port::tap::{TapDevice, TapQueue};
use rustix::event::{PollFd, PollFlags, Timespec};
use steering::{both_directions_agree_and_flows_spread, fragments_and_portless_protocols_go_by_addresses};
use tap_support::{POD, PodNamespace, SWITCH, udp_frame};

const LAYOUT: FrameMemoryLayout = FrameMemoryLayout { head_frames: 256, big_buffers: 8 };
const PORT: PortIndex = PortIndex(3);

fn memory() -> FrameMemory {
    FrameMemory::new(LAYOUT).expect("memory")
}

fn tap(queues: usize) -> (PodNamespace, Vec<TapQueue>) {
    let namespace = PodNamespace::create();
    let device = TapDevice::create_in_namespace(namespace.handle(), "eth0", queues).expect("tap");
    namespace.configure("eth0");
    (namespace, device.into_queues(PORT))
}

/// Receives until `wanted` says yes, and returns that packet; everything else is released.
fn receive(
    memory: &mut FrameMemory,
    queues: &mut [TapQueue],
    wanted: impl Fn(&FrameMemory, &Packet) -> bool,
) -> Option<(usize, Packet)> {
    let until = Instant::now() + Duration::from_secs(3);
    let mut vector = Vec::with_capacity(limits::VECTOR_PACKETS);
    let mut found = None;
    while Instant::now() < until {
        for (number, queue) in queues.iter_mut().enumerate() {
            queue.receive(memory, &mut vector);
            for packet in vector.drain(..) {
                if found.is_none() && wanted(memory, &packet) {
                    found = Some((number, packet));
                } else {
                    memory.release(packet);
                }
            }
        }
        if found.is_some() {
            return found;
        }
        let mut polled: Vec<_> = queues.iter().map(|queue| PollFd::new(queue, PollFlags::IN)).collect();
        let _ = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
    }
    None
}

fn is_udp_to(memory: &FrameMemory, packet: &Packet, port: u16) -> bool {
    let head = memory.head(packet);
    head.len() >= 42 && head[12..14] == [8, 0] && head[23] == 17 && head[36..38] == port.to_be_bytes()
}

fn bytes(memory: &FrameMemory, packet: &Packet) -> Vec<u8> {
    memory.parts(packet).flatten().copied().collect()
}

fn all_frames_are_back(memory: &FrameMemory) {
    assert_eq!((memory.free_heads(), memory.free_bigs()), (LAYOUT.head_frames, LAYOUT.big_buffers));
}

fn a_packet_from_the_pod_carries_its_metadata() {
    let (namespace, mut queues) = tap(1);
    let mut memory = memory();
    let socket = namespace.udp();
    socket.send_to(b"small", SocketAddrV4::new(SWITCH, 700)).expect("sent");
    let (_, packet) = receive(&mut memory, &mut queues, |m, p| is_udp_to(m, p, 700)).expect("arrives");
    assert_eq!((packet.ingress, packet.start(), packet.gso()), (PORT, limits::XDP_HEADROOM_BYTES, None));
    assert!(!packet.is_chained() && packet.headroom() >= limits::HEADROOM_BYTES);
    let start = packet.start() as u16 + 34;
    assert_eq!(packet.checksum(), Checksum::Partial { start, offset: 6 });
    assert_eq!(&memory.head(&packet)[42..], b"small");
    memory.release(packet);

    // MTU 9000, one long datagram: the part behind the head lies in a big buffer.
    let payload: Vec<u8> = (0..8000u32).map(|number| number as u8).collect();
    socket.send_to(&payload, SocketAddrV4::new(SWITCH, 701)).expect("sent");
    let (_, packet) = receive(&mut memory, &mut queues, |m, p| is_udp_to(m, p, 701)).expect("arrives");
    assert!(packet.is_chained());
    assert_eq!(packet.head_length(), limits::HEAD_FRAME_BYTES - limits::XDP_HEADROOM_BYTES);
    assert_eq!(bytes(&memory, &packet)[42..], payload);
    assert_eq!(memory.free_bigs(), LAYOUT.big_buffers - 1);
    memory.release(packet);
    all_frames_are_back(&memory);
}

fn a_unit_of_udp_datagrams_crosses_whole_both_ways() {
    let (namespace, mut queues) = tap(1);
    let udp_segmentation = queues[0].capabilities().udp_segmentation;
    if !udp_segmentation {
        root_tests::not_here("this kernel has no UDP segmentation for TAPs (6.2 and later have)");
    }
    let (mut memory, counters) = (memory(), WorkerCounters::default());
    let socket = namespace.udp();
    tap_support::set_udp_segment(&socket, 1000);
    let payload: Vec<u8> = (0..20_000u32).map(|number| (number % 251) as u8).collect();
    socket.send_to(&payload, SocketAddrV4::new(SWITCH, 702)).expect("sent");
    let (_, packet) = receive(&mut memory, &mut queues, |m, p| is_udp_to(m, p, 702)).expect("arrives");
    assert_eq!(packet.gso(), Some(Gso { kind: GsoKind::Udp, size: 1000, ecn: false }));
    assert_eq!(bytes(&memory, &packet)[42..], payload);
    memory.release(packet);

    // The same towards the pod: its kernel cuts it into the datagrams a plain socket reads.
    let receiver = namespace.udp();
    let port = receiver.local_addr().expect("address").port();
    let frame = udp_frame(SWITCH, POD, [702, port], &payload, true);
    let mut packet = memory.packet_from(&frame).expect("packet");
    packet.set_gso(Some(Gso { kind: GsoKind::Udp, size: 1000, ecn: false }));
    packet.set_checksum(Checksum::Partial { start: packet.start() as u16 + 34, offset: 6 });
    let mut packets = vec![packet];
    queues[0].transmit(&mut memory, &mut packets, &counters);
    assert_eq!((counters.port(3).sent_frames.get(), counters.port(3).sent_bytes.get()), (1, frame.len() as u64));
    let mut buffer = vec![0; 65536];
    for part in payload.chunks(1000) {
        let (length, from) = receiver.recv_from(&mut buffer).expect("datagram");
        assert_eq!((&buffer[..length], from.port()), (part, 702));
    }
    all_frames_are_back(&memory);
}

fn a_chain_and_a_partial_checksum_arrive_and_a_wrong_one_does_not() {
    let (namespace, mut queues) = tap(1);
    let (mut memory, counters) = (memory(), WorkerCounters::default());
    let receiver = namespace.udp();
    let port = receiver.local_addr().expect("address").port();
    let payload: Vec<u8> = (0..6000u32).map(|number| (number % 251) as u8).collect();
    let frame = udp_frame(SWITCH, POD, [800, port], &payload, true);

    let chain = |memory: &mut FrameMemory, checksum: bool| {
        let mut parts = frame.chunks(frame.len() / limits::CHAIN_SEGMENTS + 1);
        let mut packet = memory.packet_from(parts.next().expect("head")).expect("packet");
        for part in parts {
            let other = memory.packet_from(part).expect("packet");
            memory.append_packet(&mut packet, other, 0);
        }
        if checksum {
            packet.set_checksum(Checksum::Partial { start: packet.start() as u16 + 34, offset: 6 });
        }
        packet
    };
    let mut packets = vec![chain(&mut memory, false), chain(&mut memory, true)];
    queues[0].transmit(&mut memory, &mut packets, &counters);
    assert!(packets.is_empty());
    let mut buffer = vec![0; 65536];
    let (length, _) = receiver.recv_from(&mut buffer).expect("the second arrives");
    assert!(buffer[..length] == payload);
    receiver.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
    assert!(receiver.recv_from(&mut buffer).is_err(), "the first has a pseudo-header sum for a checksum");
    assert_eq!(counters.port(3).sent_frames.get(), 2);
    all_frames_are_back(&memory);
}

fn what_the_kernel_refuses_is_counted_and_freed() {
    let (namespace, mut queues) = tap(1);
    let (mut memory, counters) = (memory(), WorkerCounters::default());
    let frame = udp_frame(SWITCH, POD, [1, 2], b"payload", true);
    let mut outside = memory.packet_from(&frame).expect("packet");
    outside.set_checksum(Checksum::Partial { start: 2000, offset: 60 });
    let mut before_start = memory.packet_from(&frame).expect("packet");
    before_start.set_checksum(Checksum::Partial { start: 0, offset: 6 });
    let mut too_many = memory.packet_from(&frame).expect("packet");
    for _ in 0..limits::CHAIN_SEGMENTS + 10 {
        let other = memory.packet_from(b"x").expect("packet");
        memory.append_packet(&mut too_many, other, 0);
    }
    let mut packets = vec![outside, before_start, too_many];
    queues[0].transmit(&mut memory, &mut packets, &counters);
    assert!(packets.is_empty());
    assert_eq!(counters.drops(DropReason::PortRefused).get(), 3);

    namespace.set_down("eth0");
    packets.push(memory.packet_from(&frame).expect("packet"));
    queues[0].transmit(&mut memory, &mut packets, &counters);
    assert_eq!(counters.drops(DropReason::PortRefused).get(), 4);
    assert_eq!((counters.port(3).dropped_frames.get(), counters.port(3).sent_frames.get()), (4, 0));
    all_frames_are_back(&memory);
}

fn a_queue_without_free_frames_holds_the_pod_back() {
    let (namespace, mut queues) = tap(1);
    let mut memory = memory();
    let held: Vec<_> = std::iter::from_fn(|| memory.allocate_big()).collect();
    namespace.udp().send_to(b"waits", SocketAddrV4::new(SWITCH, 703)).expect("sent");
    let mut vector = Vec::new();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(queues[0].receive(&mut memory, &mut vector), 0);
    assert_eq!(memory.free_heads(), LAYOUT.head_frames);
    for frame in held {
        memory.release_frame(frame);
    }
    let (_, packet) = receive(&mut memory, &mut queues, |m, p| is_udp_to(m, p, 703)).expect("it was not lost");
    memory.release(packet);
    all_frames_are_back(&memory);
}

fn a_deleted_device_falls_silent() {
    let (namespace, mut queues) = tap(1);
    let (mut memory, counters) = (memory(), WorkerCounters::default());
    namespace.delete("eth0");
    let number = |queue: &TapQueue| queue.readable_descriptor().map(|descriptor| descriptor.as_raw_fd());
    let descriptor = number(&queues[0]);
    assert_eq!(queues[0].receive(&mut memory, &mut Vec::new()), 0);
    assert!(queues[0].is_gone());
    assert_eq!(number(&queues[0]), descriptor, "the number stays taken");
    let mut polled = [PollFd::from_borrowed_fd(queues[0].as_fd(), PollFlags::IN)];
    let ready = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    assert_eq!(ready, Ok(0), "a worker would spin");
    let mut packets = vec![memory.packet_from(&[0; 60]).expect("packet")];
    queues[0].transmit(&mut memory, &mut packets, &counters);
    assert_eq!(counters.drops(DropReason::PortRefused).get(), 1);
    all_frames_are_back(&memory);
}

fn every_flow_stays_on_its_queue_whichever_queue_answers() {
    let (namespace, mut queues) = tap(4);
    let (mut memory, counters) = (memory(), WorkerCounters::default());
    let mut flows_of = [0u32; 4];
    for _ in 0..64 {
        let socket: UdpSocket = namespace.udp();
        let port = socket.local_addr().expect("address").port();
        let mut first = None;
        for round in 0..4 {
            socket.send_to(b"request", SocketAddrV4::new(SWITCH, 704)).expect("sent");
            let (queue, packet) = receive(&mut memory, &mut queues, |m, p| is_udp_to(m, p, 704)).expect("arrives");
            memory.release(packet);
            assert_eq!(*first.get_or_insert(queue), queue, "the flow of port {port} moved");
            // Answer by each queue in turn: the kernel's own steering would follow it.
            let reply = udp_frame(SWITCH, POD, [704, port], b"reply", true);
            let mut packet = memory.packet_from(&reply).expect("packet");
            packet.set_checksum(Checksum::Partial { start: packet.start() as u16 + 34, offset: 6 });
            queues[round].transmit(&mut memory, &mut vec![packet], &counters);
            let (length, _) = socket.recv_from(&mut [0; 16]).expect("reply");
            assert_eq!(length, 5);
        }
        flows_of[first.expect("queue")] += 1;
    }
    assert!(flows_of.iter().all(|flows| *flows >= 4), "{flows_of:?}");
    all_frames_are_back(&memory);
}

fn a_checksum_outside_the_head_never_becomes_a_packet() {
    let (namespace, mut queues) = tap(1);
    let mut memory = memory();
    let frame = udp_frame(POD, SWITCH, [705, 706], &[7; 6000], true);
    // Partial checksum at 5000 + 6, and 5500 bytes of "headers": the pod's kernel lets it pass.
    let header =
        |start: u16| [[1, 0].as_slice(), &5500u16.to_ne_bytes(), &[0; 2], &start.to_ne_bytes(), &[6, 0]].concat();
    namespace.inject("eth0", &header(5000), &frame);
    let until = Instant::now() + Duration::from_secs(2);
    let mut vector = Vec::new();
    while queues[0].malformed() == 0 && Instant::now() < until {
        queues[0].receive(&mut memory, &mut vector);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((queues[0].malformed(), queues[0].kernel_drops(), vector.len()), (1, 1, 0));
    all_frames_are_back(&memory);

    // The same with the checksum where UDP has it passes, so it was the header.
    namespace.inject("eth0", &header(34), &frame);
    let (_, packet) = receive(&mut memory, &mut queues, |m, p| is_udp_to(m, p, 706)).expect("arrives");
    assert!(packet.is_chained() && packet.checksum() != Checksum::Complete);
    memory.release(packet);
    assert_eq!(queues[0].malformed(), 1);
}

fn a_visit_to_a_namespace_leaves_the_caller_where_it_is() {
    let own = || NamespaceHandle::open("/proc/self/ns/net").expect("own namespace").inode();
    let before = own();
    let inside =
        in_new_namespace(|| NamespaceHandle::open("/proc/thread-self/ns/net").map(|namespace| namespace.inode()));
    assert_ne!(inside.expect("entered").expect("opened"), before);
    assert_eq!(own(), before);
}

root_tests! {
    every run [
        a_visit_to_a_namespace_leaves_the_caller_where_it_is,
        both_directions_agree_and_flows_spread,
        fragments_and_portless_protocols_go_by_addresses,
        a_packet_from_the_pod_carries_its_metadata,
        a_unit_of_udp_datagrams_crosses_whole_both_ways,
        joined_datagrams_reach_every_kind_of_socket_as_they_were_sent,
        any_mixture_of_flows_arrives_in_order_without_what_is_broken,
        a_chain_and_a_partial_checksum_arrive_and_a_wrong_one_does_not,
        what_the_kernel_refuses_is_counted_and_freed,
        a_queue_without_free_frames_holds_the_pod_back,
        a_deleted_device_falls_silent,
        every_flow_stays_on_its_queue_whichever_queue_answers,
        a_checksum_outside_the_head_never_becomes_a_packet,
    ],
}
