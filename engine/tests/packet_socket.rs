//! The packet port against the real kernel: a veth pair, the kernel using both its ends. Needs root.
//!
//! ```text
//!  namespace host                     namespace lan
//!  e0 192.0.2.1, a port beside it <---> e1 192.0.2.2, a port beside it
//! ```

#[path = "support/root_tests.rs"]
#[macro_use]
mod root_tests;
#[path = "support/namespaces.rs"]
mod namespaces;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use millrace_engine::counters::WorkerCounters;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::packet::{Checksum, FrameMemory, FrameMemoryLayout, Gso, Mac, Packet, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::af_xdp::Withholding;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::port::packet_socket::{Accept, PacketError, PacketQueue, PacketSocket};
use millrace_engine::testing::{FrameBuilder, describe, frame};
use namespaces::{End, Namespace, add_address, add_neighbour, make_veth, set_up};

const HOST: (Mac, Ipv4Addr) = (Mac([2, 0, 0x5e, 0, 0, 1]), Ipv4Addr::new(192, 0, 2, 1));
const LAN: (Mac, Ipv4Addr) = (Mac([2, 0, 0x5e, 0, 0, 2]), Ipv4Addr::new(192, 0, 2, 2));
/// A station behind the host's port that the host's kernel does not know.
const POD: (Mac, Ipv4Addr) = (Mac([2, 0, 0x5e, 0, 0, 9]), Ipv4Addr::new(192, 0, 2, 9));
const OTHER: (Mac, Ipv4Addr) = (Mac([2, 0, 0x5e, 0, 0, 8]), Ipv4Addr::new(192, 0, 2, 8));
const MTU: u32 = 1500;
const LAYOUT: FrameMemoryLayout = FrameMemoryLayout { head_frames: 256, big_buffers: 8 };

/// A port with frames of its own.
struct Side {
    socket: PacketSocket,
    queue: PacketQueue,
    memory: FrameMemory,
    counters: WorkerCounters,
}

/// What came in: the bytes and what stood beside them, relative to the frame.
type Seen = (Vec<u8>, Option<(usize, u16)>, Option<Gso>);

impl Side {
    fn open(namespace: &Namespace, interface: &str, accept: &Accept) -> Self {
        Self::of(namespace.run(|| PacketSocket::open(interface, MTU, accept)).expect("a socket"))
    }

    fn of(socket: PacketSocket) -> Self {
        let memory = FrameMemory::new(LAYOUT).expect("memory");
        Self { queue: socket.queue(PortIndex(3)), socket, memory, counters: WorkerCounters::default() }
    }

    fn send(&mut self, wire: &WireFrame) {
        let mut packet = self.memory.packet_from(&wire.bytes).expect("a packet");
        packet.set_gso(wire.gso);
        if let Some((start, offset)) = wire.partial_checksum {
            packet.set_checksum(Checksum::Partial { start: packet.start() as u16 + start, offset });
        }
        let mut packets = vec![packet];
        self.queue.transmit(&mut self.memory, &mut packets, &self.counters);
        assert!(packets.is_empty(), "the kernel takes it or refuses it");
    }

    fn seen(&self, packet: &Packet) -> Seen {
        let partial = match packet.checksum() {
            Checksum::Complete => None,
            Checksum::Partial { start, offset } => Some((usize::from(start) - packet.start(), offset)),
        };
        (self.memory.parts(packet).flatten().copied().collect(), partial, packet.gso())
    }

    /// All that comes in until nothing has come for a while.
    fn receive(&mut self) -> Vec<Seen> {
        let (mut all, mut vector) = (Vec::new(), Vec::with_capacity(64));
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(100) {
            self.queue.receive(&mut self.memory, &mut vector);
            for packet in vector.drain(..) {
                all.push(self.seen(&packet));
                assert_eq!(packet.ingress, PortIndex(3));
                self.memory.release(packet);
                last = Instant::now();
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        assert_eq!((self.memory.free_heads(), self.memory.free_bigs()), (LAYOUT.head_frames, LAYOUT.big_buffers));
        all
    }
}

fn network() -> (Namespace, Namespace) {
    let (host, lan) = (Namespace::new(), Namespace::new());
    host.run(|| {
        let end = |name, station: (Mac, Ipv4Addr)| End { name, mac: station.0.0, mtu: MTU };
        make_veth(&end("e0", HOST), &end("e1", LAN), &lan);
    });
    for (namespace, name, own, peer) in [(&host, "e0", HOST, LAN), (&lan, "e1", LAN, HOST)] {
        namespace.run(|| {
            set_up(name, true);
            add_address(name, IpAddr::V4(own.1), 24);
            add_neighbour(name, IpAddr::V4(peer.1), peer.0.0);
        });
    }
    (host, lan)
}

fn between(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) -> FrameBuilder {
    frame().from(from.0, from.1.to_string().as_str()).to(to.0, to.1.to_string().as_str())
}

/// What the stations of this test sent; a kernel may have things to say of its own.
fn bytes(seen: &[Seen]) -> Vec<Vec<u8>> {
    let ours = seen.iter().filter(|(bytes, ..)| bytes.get(6..9) == Some(&LAN.0.0[..3]));
    ours.map(|(bytes, ..)| bytes.clone()).filter(|bytes| bytes[12..14] == [8, 0]).collect()
}

fn the_kernel_keeps_its_interface() {
    let (host, lan) = network();
    let mut near = Side::open(&host, "e0", &Accept::Everything);
    let sockets = [(&host, HOST), (&lan, LAN)];
    let [here, there] =
        sockets.map(|(namespace, own)| namespace.run(|| UdpSocket::bind((own.1, 7000)).expect("socket")));
    here.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
    there.send_to(b"in", (HOST.1, 7000)).expect("sent");
    let mut buffer = [0; 8];
    assert_eq!(here.recv(&mut buffer).expect("the kernel's copy"), 2);
    here.send_to(b"out", (LAN.1, 7000)).expect("sent");
    let seen = near.receive();
    assert_eq!(seen.len(), 1, "what the host sends itself does not come in: {seen:?}");
    assert_eq!(seen[0].0[..12], [HOST.0.0, LAN.0.0].concat());
}

fn what_is_withheld_reaches_the_socket_and_not_the_kernel() {
    let (host, lan) = network();
    let mut near = Side::open(&host, "e0", &Accept::Everything);
    let [here, there] = [(&host, HOST), (&lan, LAN)]
        .map(|(namespace, own)| namespace.run(|| UdpSocket::bind((own.1, 7000)).expect("socket")));
    here.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
    let program = Withholding::load().expect("the program; CAP_BPF");
    let withheld = host.run(|| program.keep("e0")).expect("tcx; Linux 6.6");
    there.send_to(b"in", (HOST.1, 7000)).expect("sent");
    assert_eq!(near.receive().len(), 1);
    let mut buffer = [0; 8];
    assert!(here.recv(&mut buffer).is_err(), "the kernel was kept out");
    assert!(host.run(|| program.keep("e7")).is_err(), "no such interface");
    drop(withheld);
    there.send_to(b"in", (HOST.1, 7000)).expect("sent");
    assert_eq!(here.recv(&mut buffer).expect("the kernel's copy"), 2);
}

fn only_groups_and_named_stations_come_in() {
    let (host, lan) = network();
    let mut near = Side::open(&host, "e0", &Accept::Stations(vec![POD.0]));
    let mut far = Side::open(&lan, "e1", &Accept::Everything);
    let frame_to = |station| between(LAN, station).udp().payload_of(40).wire();
    let everybody = between(LAN, (Mac::BROADCAST, Ipv4Addr::new(192, 0, 2, 255))).udp().payload_of(40).wire();
    for wire in [&frame_to(HOST), &frame_to(POD), &frame_to(OTHER), &everybody] {
        far.send(wire);
    }
    assert_eq!(bytes(&near.receive()), [frame_to(POD).bytes, everybody.bytes]);
    near.socket.accept(&Accept::Stations(vec![OTHER.0])).expect("changed");
    for station in [POD, OTHER] {
        far.send(&frame_to(station));
    }
    assert_eq!(bytes(&near.receive()), [frame_to(OTHER).bytes]);
    let many = Accept::Stations(vec![POD.0; 801]);
    assert!(matches!(near.socket.accept(&many), Err(PacketError::TooMany { count: 801, .. })));
    let missing = host.run(|| PacketSocket::open("e7", MTU, &Accept::Everything));
    assert!(matches!(missing, Err(PacketError::Interface { .. })));
}

fn tags_are_as_on_the_wire() {
    let (host, lan) = network();
    let mut near = Side::open(&host, "e0", &Accept::Stations(vec![POD.0]));
    let mut far = Side::open(&lan, "e1", &Accept::Everything);
    let tagged = [
        between(LAN, POD).tag(0x8100, 0xa014).udp().payload_of(40).wire(),
        between(LAN, POD).tag(0x88a8, 100).udp().payload_of(40).wire(),
        between(LAN, POD).qinq(100, 20).udp().payload_of(1464).wire(),
        between(LAN, POD).vlan(20).udp().payload_of(40).partial_checksum().wire(),
    ];
    for wire in &tagged {
        far.send(wire);
    }
    let seen = near.receive();
    assert_eq!(seen.len(), tagged.len());
    for ((bytes, partial, gso), wire) in seen.iter().zip(&tagged) {
        assert!(*bytes == wire.bytes, "{} instead of {}", describe(bytes), describe(&wire.bytes));
        assert_eq!(*partial, wire.partial_checksum.map(|(start, offset)| (usize::from(start), offset)));
        assert_eq!(*gso, None);
    }
}

fn units_cross_whole() {
    let (host, lan) = network();
    let mut near = Side::open(&host, "e0", &Accept::Stations(vec![POD.0]));
    let mut far = Side::open(&lan, "e1", &Accept::Everything);
    for builder in [between(LAN, POD), between(LAN, POD).vlan(20)] {
        let unit = builder.tcp(0x10).payload_of(40_000).gso(1400).wire();
        far.send(&unit);
        let seen = near.receive();
        let [(bytes, partial, gso)] = seen.as_slice() else { panic!("{} packets", seen.len()) };
        assert!(*bytes == unit.bytes, "{} instead of {}", describe(bytes), describe(&unit.bytes));
        assert_eq!(*gso, unit.gso);
        assert_eq!(*partial, unit.partial_checksum.map(|(start, offset)| (usize::from(start), offset)));
    }
}

fn what_the_interface_cannot_carry_is_refused_and_counted() {
    let (host, lan) = network();
    let mut near = Side::open(&host, "e0", &Accept::Everything);
    let mut far = Side::open(&lan, "e1", &Accept::Everything);
    assert_eq!(near.queue.capabilities().frame_bytes, 1518);
    near.send(&between(POD, LAN).udp().payload_of(1472).wire());
    near.send(&between(POD, LAN).udp().payload_of(1473 + 4).wire());
    assert_eq!(far.receive().len(), 1);
    assert_eq!(near.counters.drops(DropReason::PortRefused).get(), 1);
    host.run(|| set_up("e0", false));
    near.send(&between(POD, LAN).udp().payload_of(40).wire());
    assert_eq!(near.counters.drops(DropReason::PortRefused).get(), 2);
    host.run(|| set_up("e0", true));
    // The kernel tells once that the interface was down.
    near.receive();
    far.receive();
    let [there, back] = [(POD, LAN), (LAN, POD)].map(|(from, to)| between(from, to).udp().payload_of(40).wire());
    near.send(&there);
    far.send(&back);
    assert_eq!((bytes(&near.receive()), bytes(&far.receive())), (vec![back.bytes], vec![there.bytes]));
}

fn what_nobody_takes_in_time_is_counted_by_the_kernel() {
    let (host, lan) = network();
    let mut near = Side::open(&host, "e0", &Accept::Stations(vec![POD.0]));
    let mut far = Side::open(&lan, "e1", &Accept::Stations(Vec::new()));
    let sent = 4_000;
    for _ in 0..sent {
        far.send(&between(LAN, POD).udp().payload_of(1400).wire());
    }
    let arrived = near.receive().len() as u64;
    assert!(arrived > 0 && arrived < sent, "{arrived}");
    assert_eq!(near.queue.kernel_drops(), sent - arrived);
    assert_eq!(near.queue.kernel_drops(), sent - arrived, "asking does not change the answer");
}

fn each_flow_comes_in_by_one_socket_of_a_group() {
    const FLOWS: usize = 32;
    let (host, lan) = network();
    let mut sides = host.run(|| PacketSocket::open_group("e0", MTU, 2)).expect("sockets").into_iter().map(Side::of);
    let mut sides = [(); 2].map(|()| sides.next().expect("two"));
    let send_flow = || {
        let socket = lan.run(|| UdpSocket::bind((LAN.1, 0)).expect("socket"));
        for _ in 0..3 {
            socket.send_to(b"again", (HOST.1, 7000)).expect("sent");
        }
    };
    send_flow();
    assert!(sides.iter_mut().all(|side| side.receive().is_empty()), "nothing comes in unasked");
    sides.iter().for_each(|side| side.socket.accept(&Accept::Everything).expect("accepted"));
    let mut flows = [0; 2];
    for _ in 0..FLOWS {
        send_flow();
        let came = sides.each_mut().map(|side| bytes(&side.receive()).len());
        assert!(came == [3, 0] || came == [0, 3], "each frame once, all by one: {came:?}");
        flows[usize::from(came[1] > 0)] += 1;
    }
    // Both get some, but for one time in 2^31.
    assert!(flows.iter().all(|flows| *flows > 0), "{flows:?}");
}

root_tests!(every run [
    the_kernel_keeps_its_interface,
    what_is_withheld_reaches_the_socket_and_not_the_kernel,
    only_groups_and_named_stations_come_in,
    tags_are_as_on_the_wire,
    units_cross_whole,
    what_the_interface_cannot_carry_is_refused_and_counted,
    what_nobody_takes_in_time_is_counted_by_the_kernel,
    each_flow_comes_in_by_one_socket_of_a_group,
]);
