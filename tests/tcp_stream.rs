//! A TCP stream between smoltcp peers at pods of two nodes, with a bad wire between the nodes.
//!
//! smoltcp is the oracle: an implementation of TCP, ARP and ND that shares no line with the switch. A peer either
//! sends segments as a NIC without offloads would, or hands over large units with a partial checksum, as a pod's
//! kernel does, which the switch cuts for the uplink and joins again. The wire loses, doubles and delays frames by
//! a seed.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use millrace_control::store::ObjectStore;
use millrace_engine::packet::{Gso, GsoKind, Mac};
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::{checksums_valid, internet_checksum};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use crate::cluster::{ClusterNode, UPLINK};
use crate::memory_store::MemoryStore;
use crate::objects;
use crate::random::Random;

/// What to send over which wire.
#[derive(Clone, Copy, Debug)]
pub struct StreamTest {
    /// IPv6 between the pods.
    pub ipv6: bool,
    /// IPv6 between the nodes.
    pub ipv6_underlay: bool,
    /// Workers of each node.
    pub workers: usize,
    /// Whether the sending pod hands over units of several segments.
    pub units: bool,
    /// Bytes to send.
    pub bytes: usize,
    /// Frames lost on the wire, in a thousand.
    pub lost: usize,
    /// Frames doubled, in a thousand.
    pub doubled: usize,
    /// Frames delayed by up to 3 ms, and so overtaken, in a thousand.
    pub delayed: usize,
    /// Seed of it all.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct StreamResult {
    /// Frames that crossed the wire.
    pub crossed: usize,
    /// Frames that were lost on it.
    pub lost: usize,
    /// Units joined at the receiving node that a pod got whole.
    pub joined_units: usize,
    /// Virtual time it took.
    pub time: Duration,
}

/// Longest packet of a pod, from the tunnel over IPv6.
const SEGMENT_MTU: usize = 1430;
/// Longest unit a pod hands over, with Ethernet header.
const UNIT_BYTES: usize = 16_000;
/// Virtual time after which a stream is stuck.
const LONGEST: Duration = Duration::from_secs(600);

/// smoltcp asks for its router from an address in the router's network and takes no other answer, so each pod has
/// this one too.
const ARP_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 2));

/// A pod's interface as smoltcp sees it.
struct PodDevice {
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
    units: bool,
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, consume: F) -> R {
        consume(&self.0)
    }
}

struct Sent<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut bytes = vec![0; length];
        let result = fill(&mut bytes);
        self.0.push_back(bytes);
        result
    }
}

impl Device for PodDevice {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sent<'_>)> {
        self.received.pop_front().map(|bytes| (Received(bytes), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = if self.units { UNIT_BYTES } else { SEGMENT_MTU + 14 };
        // Of a joined unit the checksum is partial; the others are checked by the test itself.
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

/// A pod: one smoltcp interface with one TCP socket.
struct Peer {
    node: usize,
    port: u16,
    device: PodDevice,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    joined_units: usize,
}

impl Peer {
    fn new(node: usize, port: u16, mac: Mac, address: IpAddr, test: &StreamTest) -> Self {
        let mut device = PodDevice { received: VecDeque::new(), sent: VecDeque::new(), units: test.units };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        config.random_seed = test.seed;
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        let length = if address.is_ipv4() { 32 } else { 128 };
        interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(IpAddress::from(address), length)).expect("room for an address");
            list.push(IpCidr::new(IpAddress::from(ARP_ADDRESS), 24)).expect("room for an address");
        });
        let routes = interface.routes_mut();
        routes.add_default_ipv4_route("169.254.1.1".parse().expect("address")).expect("room for a route");
        routes.add_default_ipv6_route("fe80::1".parse().expect("address")).expect("room for a route");
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Self { node, port, device, interface, sockets, socket, joined_units: 0 }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    fn poll(&mut self, now: Duration) {
        let now = Instant::from_micros(now.as_micros() as i64);
        self.interface.poll(now, &mut self.device, &mut self.sockets);
    }

    /// Hands what the peer sent to the switch, large segments as units.
    fn hand_over(&mut self, node: &ClusterNode) {
        let mut switch = node.switch();
        for bytes in self.device.sent.drain(..) {
            switch.queue(self.port, unit(bytes));
        }
        switch.settle();
    }

    fn take(&mut self, node: &ClusterNode) {
        for frame in node.switch().all_sent(self.port) {
            if frame.partial_checksum.is_none() {
                checksums_valid(&frame.bytes).expect("checksums of a frame that a pod gets");
            }
            self.joined_units += usize::from(frame.gso.is_some());
            self.device.received.push_back(frame.bytes);
        }
    }
}

/// A segment longer than the path carries becomes a unit with a partial checksum, as a kernel with TSO does it.
fn unit(mut bytes: Vec<u8>) -> WireFrame {
    let ipv4 = bytes.get(12..14) == Some(&[0x08, 0x00]);
    let (protocol, network, transport) = if ipv4 { (bytes[23], 20, 34) } else { (bytes[20], 40, 54) };
    if bytes.len() <= SEGMENT_MTU + 14 || protocol != 6 {
        return WireFrame::plain(bytes);
    }
    let addresses = if ipv4 { bytes[26..34].to_vec() } else { bytes[22..54].to_vec() };
    let length = ((bytes.len() - transport) as u16).to_be_bytes();
    let sum = !internet_checksum(&[&addresses, &[0, 6], &length]);
    bytes[transport + 16..transport + 18].copy_from_slice(&sum.to_be_bytes());
    let header = usize::from(bytes[transport + 12] >> 4) * 4;
    let kind = if ipv4 { GsoKind::TcpIpv4 } else { GsoKind::TcpIpv6 };
    let gso = Gso { kind, size: (SEGMENT_MTU - network - header) as u16, ecn: false };
    WireFrame { bytes, partial_checksum: Some((transport as u16, 16)), gso: Some(gso) }
}

/// The wire between the nodes: frames with the time they arrive at.
struct BadWire {
    random: Random,
    under_way: Vec<(Duration, usize, WireFrame)>,
}

impl BadWire {
    fn send(&mut self, test: &StreamTest, now: Duration, to: usize, frame: WireFrame, result: &mut StreamResult) {
        result.crossed += 1;
        if self.random.per_mille(test.lost) {
            result.lost += 1;
            return;
        }
        let copies = 1 + usize::from(self.random.per_mille(test.doubled));
        for _ in 0..copies {
            let delay = if self.random.per_mille(test.delayed) { self.random.below(3000) } else { 0 };
            let arrives = now + Duration::from_micros(500 + delay as u64);
            self.under_way.push((arrives, to, frame.clone()));
        }
    }

    fn arrived(&mut self, now: Duration) -> Vec<(Duration, usize, WireFrame)> {
        let (mut arrived, later): (Vec<_>, Vec<_>) = self.under_way.drain(..).partition(|(at, ..)| *at <= now);
        self.under_way = later;
        arrived.sort_by_key(|(at, ..)| *at);
        arrived
    }
}

/// Two nodes with their control planes and a pod each.
fn nodes(test: &StreamTest) -> (Vec<ClusterNode>, [(u16, Mac, IpAddr); 2]) {
    let store = MemoryStore::default();
    let ip = |text: String| -> IpAddr { text.parse().expect("address") };
    let underlay =
        |number: u8| ip(if test.ipv6_underlay { format!("2001:db8::{number}") } else { format!("192.0.2.{number}") });
    let mut wanted = vec![objects::pool("four", "10.0.0.0/8", 24), objects::pool("six", "fd00::/16", 112)];
    for (number, name) in [(1, "a"), (2, "b")] {
        wanted.push(objects::node(name, &[underlay(number)]));
        wanted.push(objects::block(&format!("10.{number}.0.0/24"), "four", name));
        wanted.push(objects::block(&format!("fd00:{number}::/112"), "six", name));
    }
    wanted.iter().for_each(|object| drop(store.create(object).expect("object")));
    let new = |(number, name): (u8, &str)| ClusterNode::new(number, name, &[underlay(number)], test.workers, &store);
    let mut nodes: Vec<ClusterNode> = [(1, "a"), (2, "b")].map(new).into();
    let (first, second) = (nodes[0].uplink_mac, nodes[1].uplink_mac);
    nodes[0].tell_underlay([(underlay(2), second)]);
    nodes[1].tell_underlay([(underlay(1), first)]);
    let mut ends = Vec::new();
    for (number, node) in nodes.iter_mut().enumerate() {
        let number = number + 1;
        node.follow(usize::MAX);
        let address = ip(if test.ipv6 { format!("fd00:{number}::5") } else { format!("10.{number}.0.5") });
        let (port, mac) = node.plug_in("peer", &[address, ARP_ADDRESS]);
        ends.push((port, mac, address));
        let settled = node.follow(usize::MAX);
        assert!(settled.problems.is_empty() && settled.error.is_none(), "{settled:?}");
    }
    (nodes, [ends[0], ends[1]])
}

fn byte(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// Sends the stream.
///
/// # Panics
/// If a byte is wrong or missing, the stream stands still, a checksum is wrong or a switch loses frames.
#[must_use]
pub fn run(test: &StreamTest) -> StreamResult {
    let (nodes, ends) = nodes(test);
    let mut peers = [0, 1].map(|at| Peer::new(at, ends[at].0, ends[at].1, ends[at].2, test));
    peers[1].socket().listen(80).expect("listen");
    let target = (IpAddress::from(ends[1].2), 80);
    let [client, _] = &mut peers;
    let socket = client.sockets.get_mut::<tcp::Socket>(client.socket);
    socket.connect(client.interface.context(), target, 40_000).expect("connect");
    let mut wire = BadWire { random: Random::new(test.seed), under_way: Vec::new() };
    let (mut result, mut now, mut written, mut read) = (StreamResult::default(), Duration::ZERO, 0, 0);
    while read < test.bytes {
        now += Duration::from_micros(250);
        assert!(now < LONGEST, "the stream stands still after {read} of {} bytes: {result:?}", test.bytes);
        for (_, to, frame) in wire.arrived(now) {
            nodes[to].switch().queue(UPLINK, frame);
        }
        for node in &nodes {
            let mut switch = node.switch();
            switch.clock.advance(Duration::from_micros(250));
            switch.settle();
        }
        for peer in &mut peers {
            peer.take(&nodes[peer.node]);
            peer.poll(now);
            peer.hand_over(&nodes[peer.node]);
            let node = &nodes[peer.node];
            for frame in node.switch().all_sent(UPLINK) {
                checksums_valid(&frame.bytes).expect("checksums on the wire");
                assert!(frame.bytes.len() <= 1514, "a frame of {} bytes on the wire", frame.bytes.len());
                wire.send(test, now, 1 - peer.node, frame, &mut result);
            }
        }
        written = write(peers[0].socket(), written, test.bytes);
        read = check(peers[1].socket(), read);
    }
    for node in &nodes {
        assert_eq!(node.switch().switch.lost_frames(), 0);
        node.switch().assert_conserved();
    }
    result.joined_units = peers[1].joined_units;
    result.time = now;
    result
}

fn write(socket: &mut tcp::Socket<'_>, written: usize, bytes: usize) -> usize {
    if !socket.may_send() {
        return written;
    }
    let more = socket.send(|buffer| {
        let count = buffer.len().min(bytes - written);
        buffer.iter_mut().zip(written..written + count).for_each(|(place, at)| *place = byte(at));
        (count, count)
    });
    written + more.expect("the stream is open")
}

fn check(socket: &mut tcp::Socket<'_>, read: usize) -> usize {
    if !socket.can_recv() {
        return read;
    }
    let more = socket.recv(|buffer| {
        let wrong = buffer.iter().zip(read..).position(|(found, at)| *found != byte(at));
        assert_eq!(wrong.map(|at| read + at), None, "a byte of the stream is wrong");
        (buffer.len(), buffer.len())
    });
    read + more.expect("the stream is open")
}
