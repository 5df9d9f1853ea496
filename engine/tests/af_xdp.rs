//! AF_XDP queues and steering against the real kernel: veth pairs in namespaces of the test's own, real UDP sockets
//! at the far ends. Needs root.
//!
//! ```text
//!  namespace A        switch namespace          namespace B
//!  a1 10.0.0.1  <---> a0 [queue] [queue] b0 <---> b1 10.0.0.2
//! ```

#[path = "support/root_tests.rs"]
#[macro_use]
mod root_tests;
#[path = "support/namespaces.rs"]
mod namespaces;
#[path = "support/af_xdp_wire.rs"]
mod wire;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace_engine::counters::WorkerCounters;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::packet::{FrameMemory, Packet};
use millrace_engine::port::PortQueue;
use millrace_engine::port::af_xdp::{
    AfXdpOptions, AfXdpQueue, AttachMode, AttachPreference, OpenError, RingSizes, Steering, SteeringError, Umem,
};
use namespaces::set_up;
use wire::{A, B, HEADS, Network, PORT_A, PORT_B, Side, Wire, mac, memory, socket, wait_for};

/// Sends `count` datagrams from `a` to `b`, never more than 200 ahead of the receiver, who answers the last of each
/// hundred. Returns how many arrived, each checked.
fn exchange(network: &Network, count: u64, length: usize, done: &AtomicBool) -> u64 {
    let arrived = AtomicU64::new(0);
    let socket_b = network.b.run(|| socket(B, 9000));
    std::thread::scope(|scope| {
        let receiver = network.b.spawn(scope, || {
            let socket = &socket_b;
            let mut buffer = [0u8; 65536];
            while arrived.load(Ordering::Relaxed) < count {
                let Ok((size, from)) = socket.recv_from(&mut buffer) else { break };
                let number = arrived.fetch_add(1, Ordering::Release);
                assert_eq!((size, &buffer[..8]), (length, &number.to_be_bytes()[..]), "in order and whole");
                assert!(buffer[8..size].iter().all(|byte| *byte == number as u8));
                if number % 100 == 99 {
                    socket.send_to(b"seen", from).expect("answer");
                }
            }
        });
        let sender = network.a.spawn(scope, || {
            let socket = socket(A, 9001);
            let mut datagram = vec![0; length];
            for number in 0..count {
                datagram.fill(number as u8);
                datagram[..8].copy_from_slice(&number.to_be_bytes());
                socket.send_to(&datagram, SocketAddr::new(B, 9000)).expect("send");
                if number % 100 == 99 {
                    let mut answer = [0; 8];
                    assert_eq!(socket.recv(&mut answer).expect("an answer a hundred"), 4);
                }
            }
        });
        let outcome = (receiver.join(), sender.join());
        done.store(true, Ordering::Relaxed);
        outcome.0.expect("receiver");
        outcome.1.expect("sender");
    });
    arrived.into_inner()
}

fn forward(mtu: u32, count: u64, length: usize, preference: AttachPreference) -> (AttachMode, String) {
    let network = Network::new(mtu);
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let switch = network.switch.spawn(scope, || {
            let mut wire = Wire::open(preference);
            wire.turn();
            ready.store(true, Ordering::Relaxed);
            assert!(wire.sides.iter().all(|side| side.steering.is_attached()));
            assert_eq!(wire.sides.each_ref().map(|side| side.queue.shares_umem()), [false, true]);
            wire.run_until(&done);
            let [a, b] = [PORT_A, PORT_B].map(|port| wire.counters.port(port.0 as usize).sent_frames.get());
            assert_eq!((a, b), (count / 100, count), "answers and datagrams, and nothing else");
            assert_eq!(wire.received, wire.sent());
            assert_eq!(DropReason::ALL.iter().map(|reason| wire.counters.drops(*reason).get()).sum::<u64>(), 0);
            assert_eq!(wire.sides.each_ref().map(|side| side.queue.kernel_drops()), [0, 0]);
            let lent: usize = wire.sides.iter().map(|side| side.queue.lent_frames()).sum();
            assert_eq!(wire.memory.free_heads() + lent, HEADS, "a frame is free or lent");
            let (mode, words) = (wire.sides[0].steering.mode(), wire.sides[0].queue.describe().mode);
            wire.close();
            (mode, words)
        });
        wait_for("the switch", || ready.load(Ordering::Relaxed));
        assert_eq!(exchange(&network, count, length, &done), count);
        switch.join().expect("switch")
    })
}

fn forwards_every_datagram_through_one_memory() {
    let (mode, words) = forward(1500, 20_000, 1000, AttachPreference::NativeThenGeneric);
    assert_eq!((mode, words.as_str()), (AttachMode::Native, "native copy need_wakeup queue 0"));
}

fn forwards_in_generic_mode() {
    let (mode, words) = forward(1500, 2_000, 64, AttachPreference::Generic);
    assert_eq!((mode, words.as_str()), (AttachMode::Generic, "generic copy need_wakeup queue 0"));
}

fn forwards_frames_of_several_buffers() {
    root_tests::needs_kernel(6, 6, "AF_XDP frames of several buffers");
    let (_, words) = forward(9000, 2_000, 8900, AttachPreference::Native);
    assert_eq!(words, "native copy need_wakeup multi_buffer queue 0");
}

/// What a queue receives within a moment, released; stops early at `wanted`.
fn receive(side: &mut Side, memory: &mut FrameMemory, wanted: usize) -> usize {
    let deadline = Instant::now() + Duration::from_millis(if wanted == 0 { 100 } else { 2000 });
    let (mut vector, mut count) = (Vec::with_capacity(64), 0);
    while Instant::now() < deadline && (wanted == 0 || count < wanted) {
        count += side.queue.receive(memory, &mut vector);
        vector.drain(..).for_each(|packet| memory.release(packet));
        std::thread::yield_now();
    }
    count
}

fn a_queue_opens_again_at_once_and_sharing_outlives_the_first_socket() {
    let network = Network::new(1500);
    let send = |count: u8| {
        network.a.run(|| {
            let socket = socket(A, 9001);
            (0..count).for_each(|_| assert_eq!(socket.send_to(b"hello", SocketAddr::new(B, 9000)).expect("send"), 5));
        });
    };
    network.switch.run(|| {
        let mut memory = memory(HEADS);
        let umem = Umem::new(&memory);
        let open = |port, name| Side::open(port, name, &umem, AttachPreference::Native);
        let mut first = open(PORT_A, "a0");
        let mut second = open(PORT_B, "b0");
        assert!(!first.queue.shares_umem() && second.queue.shares_umem());
        for round in 1..=5 {
            // The one that registered the memory goes; the next shares from the one that shared.
            first.queue.close(&mut memory);
            drop(first);
            first = open(PORT_A, "a0");
            assert!(first.queue.shares_umem(), "round {round}");
            assert_eq!(receive(&mut first, &mut memory, 0), 0);
            send(30);
            assert_eq!(receive(&mut first, &mut memory, 30), 30, "round {round}");
        }
        second.queue.close(&mut memory);
        first.queue.close(&mut memory);
        assert_eq!((memory.free_heads(), umem.quarantined_frames()), (HEADS, 0));
        drop((first, second));
        let mut alone = open(PORT_B, "b0");
        assert!(!alone.queue.shares_umem(), "nobody is left to share from");
        alone.queue.close(&mut memory);
    });
}

fn frames_of_a_queue_that_was_only_dropped_come_back() {
    let network = Network::new(1500);
    network.switch.run(|| {
        let mut memory = memory(HEADS);
        let umem = Umem::new(&memory);
        let mut side = Side::open(PORT_A, "a0", &umem, AttachPreference::Native);
        receive(&mut side, &mut memory, 0);
        assert_eq!((side.queue.lent_frames(), memory.free_heads()), (2048, HEADS - 2048));
        drop(side);
        assert_eq!(umem.quarantined_frames(), 2048);
        let deadline = Instant::now() + Duration::from_secs(2);
        while umem.settle(&mut memory) > 0 {
            assert!(Instant::now() < deadline, "the kernel does not let go");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((memory.free_heads(), umem.quarantined_frames()), (HEADS, 0));
    });
}

fn two_workers_with_memories_of_their_own_share_an_interface() {
    let network = Network::with_queues(1500, 2);
    network.switch.run(|| {
        let mut steering = Steering::everything("a0", AttachPreference::Native).expect("steering");
        let mut workers: Vec<(FrameMemory, AfXdpQueue, usize)> = (0..2)
            .map(|queue| {
                let memory = memory(HEADS);
                let options = AfXdpOptions::new(PORT_A, "a0", queue, steering.mode());
                let opened = AfXdpQueue::open(options, &Umem::new(&memory)).expect("queue");
                steering.insert_socket(queue, opened.socket().expect("socket")).expect("insert");
                (memory, opened, 0)
            })
            .collect();
        let mut vector = Vec::with_capacity(64);
        let mut turn = |workers: &mut Vec<(FrameMemory, AfXdpQueue, usize)>| {
            for (memory, queue, count) in workers.iter_mut() {
                *count += queue.receive(memory, &mut vector);
                vector.drain(..).for_each(|packet| memory.release(packet));
            }
            workers.iter().map(|worker| worker.2).sum::<usize>()
        };
        assert_eq!(turn(&mut workers), 0);
        network.a.run(|| {
            for flow in 0..32 {
                let socket = socket(A, 10_000 + flow);
                (0..10).for_each(|_| assert_eq!(socket.send_to(b"hello", SocketAddr::new(B, 9000)).expect("send"), 5));
            }
        });
        let deadline = Instant::now() + Duration::from_secs(2);
        while turn(&mut workers) < 320 && Instant::now() < deadline {}
        assert_eq!(workers.iter().map(|worker| worker.2).sum::<usize>(), 320);
        for (number, (memory, queue, count)) in workers.iter_mut().enumerate() {
            assert!(*count > 0 && *count % 10 == 0, "flows stay on their queue: {count}");
            assert_eq!(queue.describe().mode, format!("native copy need_wakeup queue {number}"));
            queue.close(memory);
            assert_eq!(memory.free_heads(), HEADS);
        }
    });
}

fn a_worker_that_sleeps_is_woken_by_the_first_packet() {
    let network = Network::new(1500);
    network.switch.run(|| {
        let mut memory = memory(HEADS);
        let umem = Umem::new(&memory);
        let mut side = Side::open(PORT_A, "a0", &umem, AttachPreference::Native);
        assert_eq!(receive(&mut side, &mut memory, 0), 0);
        let raw = |descriptor: std::os::fd::BorrowedFd<'_>| descriptor.as_raw_fd();
        assert_eq!(side.queue.readable_descriptor().map(raw), side.queue.socket().map(raw));
        let readable = |side: &Side, milliseconds: i64| {
            let socket = side.queue.socket().expect("socket");
            let mut wanted = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)];
            let patience = rustix::event::Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
            rustix::event::poll(&mut wanted, Some(&patience)).expect("poll") == 1
        };
        for _ in 0..20 {
            assert!(side.queue.prepare_to_sleep() && !readable(&side, 5));
            std::thread::scope(|scope| {
                network.a.spawn(scope, || {
                    socket(A, 9001).send_to(b"wake up", SocketAddr::new(B, 9000)).expect("send");
                });
                assert!(readable(&side, 900), "woken");
            });
            assert_eq!(receive(&mut side, &mut memory, 1), 1);
        }
        side.queue.close(&mut memory);
        assert_eq!((side.queue.readable_descriptor().is_none(), memory.free_heads()), (true, HEADS));
    });
}

fn a_link_that_is_down_keeps_no_frame() {
    let network = Network::new(1500);
    network.switch.run(|| {
        let mut memory = memory(HEADS);
        let umem = Umem::new(&memory);
        let counters = WorkerCounters::default();
        let mut side = Side::open(PORT_A, "a0", &umem, AttachPreference::Native);
        set_up("a0", false);
        let mut packets: Vec<Packet> = (0..3000).map(|_| memory.packet_from(&[0xff; 60]).expect("packet")).collect();
        side.queue.transmit(&mut memory, &mut packets, &counters);
        assert_eq!(packets.len(), 3000 - 2048, "as many as the ring holds are taken");
        assert!(!side.queue.flush(&mut memory), "calling again does not help");
        assert_eq!((side.queue.lent_frames(), side.queue.prepare_to_sleep()), (2048, true));
        packets.drain(..).for_each(|packet| memory.release(packet));
        side.queue.close(&mut memory);
        assert_eq!((memory.free_heads(), umem.quarantined_frames()), (HEADS, 0));
    });
}

fn what_the_ring_cannot_carry_is_refused_and_counted() {
    let network = Network::new(1500);
    network.switch.run(|| {
        let mut memory = memory(HEADS);
        let umem = Umem::new(&memory);
        let counters = WorkerCounters::default();
        let mut side = Side::open(PORT_A, "a0", &umem, AttachPreference::Native);
        assert_eq!((side.queue.capabilities().frame_bytes, side.queue.capabilities().chained), (1518, false));
        let mut packets: Vec<Packet> = [13, 14, 1518, 1519, 5000]
            .iter()
            .map(|length| memory.packet_from(&vec![1; *length]).expect("packet"))
            .collect();
        packets[1].set_checksum(millrace_engine::packet::Checksum::Partial { start: 256, offset: 6 });
        side.queue.transmit(&mut memory, &mut packets, &counters);
        assert!(packets.is_empty() && !side.queue.flush(&mut memory));
        let port = counters.port(PORT_A.0 as usize);
        assert_eq!((port.sent_frames.get(), port.sent_bytes.get(), port.dropped_frames.get()), (1, 1518, 4));
        assert_eq!(counters.drops(DropReason::PortRefused).get(), 4);
        side.queue.close(&mut memory);
        assert_eq!((memory.free_heads(), memory.free_bigs()), (HEADS, 4));
    });
}

fn packets_in_big_buffers_leave_in_several_frames() {
    let network = Network::new(9000);
    let receiver = network.a.run(|| socket(A, 9001));
    network.switch.run(|| {
        let mut memory = memory(HEADS);
        let umem = Umem::new(&memory);
        let counters = WorkerCounters::default();
        let mut side = Side::open(PORT_A, "a0", &umem, AttachPreference::Native);
        let payload: Vec<u8> = (0..8900u32).map(|number| (number % 251) as u8).collect();
        let mut packets: Vec<Packet> = (0..3)
            .map(|_| memory.packet_from(&udp_frame(mac(0xa1), B, A, 9000, 9001, &payload)).expect("packet"))
            .collect();
        assert!(packets[0].is_chained());
        side.queue.transmit(&mut memory, &mut packets, &counters);
        side.queue.flush(&mut memory);
        let mut buffer = [0; 65536];
        for _ in 0..3 {
            let length = receiver.recv(&mut buffer).expect("datagram");
            assert!(buffer[..length] == payload[..], "{length} bytes, not those that were sent");
        }
        side.queue.close(&mut memory);
        assert_eq!((memory.free_heads(), memory.free_bigs()), (HEADS, 4));
    });
}

/// An Ethernet frame with a UDP datagram over IPv4, without UDP checksum.
fn udp_frame(to: [u8; 6], source: IpAddr, target: IpAddr, from_port: u16, to_port: u16, payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(target)) = (source, target) else { panic!("IPv4 only") };
    let udp_length = 8 + payload.len() as u16;
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&(20 + udp_length).to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend_from_slice(&source.octets());
    ip.extend_from_slice(&target.octets());
    let mut sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(sum as u16 + (sum >> 16) as u16)).to_be_bytes());
    let ports = [from_port.to_be_bytes(), to_port.to_be_bytes(), udp_length.to_be_bytes(), [0, 0]].concat();
    [&to[..], &mac(0xa0), &[8, 0], &ip, &ports, payload].concat()
}

fn a_worker_may_drive_the_card_itself() {
    let network = Network::new(1500);
    network.switch.run(|| {
        let mut memory = memory(HEADS);
        let umem = Umem::new(&memory);
        let mut steering = Steering::everything("a0", AttachPreference::Native).expect("steering");
        let usual = AfXdpOptions::new(PORT_A, "a0", 0, steering.mode());
        let options = AfXdpOptions { busy_poll_budget: NonZeroU16::new(64), ..usual };
        let queue = AfXdpQueue::open(options, &umem).expect("queue");
        steering.insert_socket(0, queue.socket().expect("socket")).expect("insert");
        let mut side = Side { steering, queue };
        assert_eq!(side.queue.describe().mode, "native copy need_wakeup busy_poll 64 queue 0");
        assert_eq!(receive(&mut side, &mut memory, 0), 0);
        network.a.run(|| {
            let socket = socket(A, 9001);
            (0..500).for_each(|_| assert_eq!(socket.send_to(b"hello", SocketAddr::new(B, 9000)).expect("send"), 5));
        });
        assert_eq!(receive(&mut side, &mut memory, 500), 500);
        side.queue.close(&mut memory);
        assert_eq!((side.queue.kernel_drops(), memory.free_heads()), (0, HEADS));
    });
}

fn the_kernel_counts_each_packet_it_drops_once() {
    let network = Network::new(1500);
    for (heads, receive_ring) in [(128, 2048), (HEADS, 64)] {
        network.switch.run(|| {
            let mut memory = memory(heads);
            let umem = Umem::new(&memory);
            let mut steering = Steering::everything("a0", AttachPreference::Native).expect("steering");
            let mut options = AfXdpOptions::new(PORT_A, "a0", 0, steering.mode());
            options.rings = RingSizes { receive: receive_ring, ..RingSizes::default() };
            let queue = AfXdpQueue::open(options, &umem).expect("queue");
            steering.insert_socket(0, queue.socket().expect("socket")).expect("insert");
            let mut side = Side { steering, queue };
            assert_eq!(receive(&mut side, &mut memory, 0), 0);
            network.a.run(|| {
                let socket = socket(A, 9001);
                (0..500).for_each(|_| assert_eq!(socket.send_to(b"hello", SocketAddr::new(B, 9000)).expect("send"), 5));
            });
            std::thread::sleep(Duration::from_millis(50));
            let expected = if heads == 128 { 128 } else { 64 };
            assert!(!side.queue.prepare_to_sleep(), "packets are there");
            assert_eq!(receive(&mut side, &mut memory, 0), expected);
            assert_eq!(side.queue.kernel_drops(), 500 - expected as u64);
            side.queue.close(&mut memory);
            assert_eq!((side.queue.kernel_drops(), memory.free_heads()), (500 - expected as u64, heads));
        });
    }
}

fn refusals_name_the_interface_the_queue_and_what_was_tried() {
    let network = Network::new(1500);
    network.switch.run(|| {
        let memory = memory(HEADS);
        let umem = Umem::new(&memory);
        let options = |interface, queue| AfXdpOptions::new(PORT_A, interface, queue, AttachMode::Native);
        let refusal = |options| AfXdpQueue::open(options, &umem).err().expect("refused").to_string();
        assert_eq!(
            refusal(options("a0", 7)),
            "AF_XDP on a0 queue 7 refused: zero-copy, own UMEM: bind: Invalid argument (os error 22) (no such queue, \
             or a flag this kernel does not know); copy, own UMEM: bind: Invalid argument (os error 22) (no such \
             queue, or a flag this kernel does not know)"
        );
        assert!(refusal(options("none", 0)).contains("AF_XDP on none queue 0: cannot look up the interface: No such"));
        let odd = AfXdpOptions { rings: RingSizes { fill: 100, ..RingSizes::default() }, ..options("a0", 0) };
        assert!(refusal(odd).contains("ring size 100 is not a power of two"));

        let held = AfXdpQueue::open(options("a0", 0), &umem).expect("queue");
        let started = Instant::now();
        let error = AfXdpQueue::open(options("a0", 0), &Umem::new(&memory)).err().expect("busy");
        assert!(
            matches!(error, OpenError::Refused { .. }) && error.to_string().contains("another socket holds"),
            "{error}"
        );
        assert!(started.elapsed() >= Duration::from_millis(900), "a busy queue is tried again for a second");
        drop(held);

        let steering = Steering::everything("a0", AttachPreference::Native).expect("steering");
        for preference in [AttachPreference::NativeThenGeneric, AttachPreference::Generic] {
            let error = Steering::everything("a0", preference).err().expect("occupied");
            assert!(matches!(error, SteeringError::Occupied { .. }), "{error}");
        }
        drop(steering);
        let error = Steering::everything("none", AttachPreference::Native).err().expect("no interface");
        assert!(matches!(error, SteeringError::Interface { .. }), "{error}");
    });
}

root_tests! {
    every run [
        forwards_every_datagram_through_one_memory,
        forwards_in_generic_mode,
        forwards_frames_of_several_buffers,
        a_queue_opens_again_at_once_and_sharing_outlives_the_first_socket,
        frames_of_a_queue_that_was_only_dropped_come_back,
        two_workers_with_memories_of_their_own_share_an_interface,
        a_worker_that_sleeps_is_woken_by_the_first_packet,
        a_link_that_is_down_keeps_no_frame,
        what_the_ring_cannot_carry_is_refused_and_counted,
        packets_in_big_buffers_leave_in_several_frames,
        a_worker_may_drive_the_card_itself,
        the_kernel_counts_each_packet_it_drops_once,
        refusals_name_the_interface_the_queue_and_what_was_tried,
    ],
}
