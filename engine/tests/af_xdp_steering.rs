//! Which frames the steering programs hand to user space and which they leave to the kernel, by AF_XDP and by packet
//! sockets, and what remains when the process dies. Real veth pairs and UDP sockets in namespaces of the test's own; needs
//! root.
//!
//! ```text
//!  namespace A                                switch namespace
//!  a1 192.0.2.1, .9 (unknown), 2001:db8::1    a0 192.0.2.2 (tunnel), .3 (not), 2001:db8::2 (tunnel)
//! ```
//! The switch namespace's kernel has UDP sockets on the same ports: what is passed to it is received there, what is
//! steered is not.

#[path = "support/root_tests.rs"]
#[macro_use]
mod root_tests;
#[path = "support/namespaces.rs"]
mod namespaces;

use std::collections::{HashSet, VecDeque};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use millrace_engine::packet::{FrameMemory, FrameMemoryLayout, Packet, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::af_xdp::{
    AfXdpOptions, AfXdpQueue, AttachMode, AttachPreference, Destination, SharedRules, SteeredPorts, Steering,
    SteeringError, SteeringRules, Umem, VxlanRules, set_transmit_checksum,
};
use millrace_engine::port::packet_socket::PacketSocket;
use namespaces::{End, Namespace, add_address, add_neighbour, make_veth, set_up};

const VXLAN: u16 = 8472;
const OTHER: u16 = 4789;
const HEADS: usize = 8192;
const HOLD: &str = "MILLRACE_TEST_HOLD_QUEUE";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

struct Network {
    switch: Namespace,
    a: Namespace,
}

impl Network {
    fn new() -> Self {
        let (switch, a) = (Namespace::new(), Namespace::new());
        let (near, far) = ([2, 0, 0, 0, 0, 0xa0], [2, 0, 0, 0, 0, 0xa1]);
        let ours = ["192.0.2.2", "192.0.2.3", "2001:db8::2", "2001:db8::3"].map(ip);
        let theirs = ["192.0.2.1", "192.0.2.9", "2001:db8::1", "2001:db8::9"].map(ip);
        let prefix = |address: IpAddr| if address.is_ipv4() { 24 } else { 64 };
        switch.run(|| {
            make_veth(&End { name: "a0", mac: near, mtu: 1500 }, &End { name: "a1", mac: far, mtu: 1500 }, &a);
            set_up("a0", true);
            ours.iter().for_each(|address| add_address("a0", *address, prefix(*address)));
            theirs.iter().for_each(|address| add_neighbour("a0", *address, far));
        });
        a.run(|| {
            set_up("a1", true);
            set_transmit_checksum("a1", false).expect("checksum off");
            theirs.iter().for_each(|address| add_address("a1", *address, prefix(*address)));
            ours.iter().for_each(|address| add_neighbour("a1", *address, near));
        });
        Self { switch, a }
    }

    /// Sends one datagram of `length` from `source` to `target`, with IPv4 options if asked for.
    fn send(&self, source: &str, target: &str, port: u16, length: usize, options: bool) {
        self.a.run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(ip(source), 0)).expect("bind");
            if options {
                set_ip_options(&socket);
            }
            let sent = socket.send_to(&vec![7; length], SocketAddr::new(ip(target), port)).expect("send");
            assert_eq!(sent, length);
        });
    }
}

#[allow(unsafe_code)]
fn set_ip_options(socket: &UdpSocket) {
    let options = [1u8; 8]; // eight times "no operation"
    // SAFETY: the pointer is to eight readable bytes that live through the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, options.as_ptr().cast(), 8) };
    assert_eq!(result, 0, "IP_OPTIONS");
}

/// How frames reach user space.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    AfXdp(AttachPreference),
    PacketSocket,
}

impl Way {
    fn steer(self, rules: impl Into<SteeringRules>) -> Steering {
        match self {
            Way::AfXdp(preference) => Steering::by_rules("a0", rules, preference).expect("steering"),
            Way::PacketSocket => {
                root_tests::needs_kernel(6, 6, "tcx");
                Steering::for_packet_sockets("a0", rules).expect("steering")
            }
        }
    }
}

const WAYS: [Way; 3] = [Way::AfXdp(AttachPreference::Native), Way::AfXdp(AttachPreference::Generic), Way::PacketSocket];

/// The switch's end: a queue, and the kernel's sockets behind it.
struct Ends {
    memory: FrameMemory,
    queue: Box<dyn PortQueue>,
    kernel: Vec<UdpSocket>,
    /// Lengths of frames that came together with the one last told.
    steered: VecDeque<usize>,
}

impl Ends {
    fn open(steering: &mut Steering) -> Self {
        let memory = FrameMemory::new(FrameMemoryLayout { head_frames: HEADS, big_buffers: 32 }).expect("memory");
        let port = PortIndex(1);
        let queue: Box<dyn PortQueue> = if steering.mode() == AttachMode::TrafficControl {
            let socket = PacketSocket::open_group("a0", 1500, 1).expect("socket").pop().expect("one");
            steering.admit_socket(socket.as_fd()).expect("admitted");
            Box::new(socket.queue(port))
        } else {
            let options = AfXdpOptions::new(port, "a0", 0, steering.mode());
            let queue = AfXdpQueue::open(options, &Umem::new(&memory)).expect("queue");
            steering.insert_socket(0, queue.socket().expect("socket")).expect("insert");
            Box::new(queue)
        };
        let bind = |address: &str, port| {
            let socket = UdpSocket::bind(SocketAddr::new(ip(address), port)).expect("bind");
            socket.set_nonblocking(true).expect("nonblocking");
            socket
        };
        let kernel = [VXLAN, OTHER].map(|port| bind("::", port)).into();
        let mut ends = Self { memory, queue, kernel, steered: VecDeque::new() };
        assert_eq!(ends.next(Duration::ZERO), None);
        ends
    }

    /// Who got the next datagram, with its length: 'x' the queue, 'k' the kernel.
    fn next(&mut self, patience: Duration) -> Option<(char, usize)> {
        let deadline = Instant::now() + patience;
        let mut vector: Vec<Packet> = Vec::with_capacity(64);
        let mut buffer = [0; 65536];
        loop {
            self.queue.receive(&mut self.memory, &mut vector);
            for packet in vector.drain(..) {
                self.steered.push_back(packet.length());
                self.memory.release(packet);
            }
            if let Some(length) = self.steered.pop_front() {
                return Some(('x', length));
            }
            for socket in &self.kernel {
                if let Ok((length, _)) = socket.recv_from(&mut buffer) {
                    return Some(('k', length));
                }
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::yield_now();
        }
    }
}

fn rules() -> VxlanRules {
    VxlanRules {
        port: VXLAN,
        local: HashSet::from(["192.0.2.2", "2001:db8::2"].map(ip)),
        peers: HashSet::from(["192.0.2.1", "2001:db8::1"].map(ip)),
    }
}

fn only_vxlan_from_known_peers_to_our_tunnel_address_is_steered() {
    let network = Network::new();
    for way in WAYS {
        network.switch.run(|| {
            let mut steering = way.steer(rules());
            let mut ends = Ends::open(&mut steering);
            let mut check = |name: &str, source, target, port, length, options, expected| {
                network.send(source, target, port, length, options);
                assert_eq!(ends.next(Duration::from_secs(2)), Some(expected), "{name}, {way:?}");
            };
            let (four, six) = (("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2"));
            check("IPv4", four.0, four.1, VXLAN, 100, false, ('x', 142));
            check("IPv6", six.0, six.1, VXLAN, 100, false, ('x', 162));
            check("IPv4 with options", four.0, four.1, VXLAN, 100, true, ('x', 150));
            check("IPv4, other port", four.0, four.1, OTHER, 100, false, ('k', 100));
            check("IPv6, other port", six.0, six.1, OTHER, 100, false, ('k', 100));
            check("IPv4, options, other port", four.0, four.1, OTHER, 100, true, ('k', 100));
            check("IPv4, unknown peer", "192.0.2.9", four.1, VXLAN, 100, false, ('k', 100));
            check("IPv6, unknown peer", "2001:db8::9", six.1, VXLAN, 100, false, ('k', 100));
            check("IPv4, not a tunnel address", four.0, "192.0.2.3", VXLAN, 100, false, ('k', 100));
            check("IPv6, not a tunnel address", six.0, "2001:db8::3", VXLAN, 100, false, ('k', 100));
            check("IPv4 in fragments", four.0, four.1, VXLAN, 4000, false, ('k', 4000));
            check("IPv6 in fragments", six.0, six.1, VXLAN, 4000, false, ('k', 4000));
            check("shortest", four.0, four.1, VXLAN, 0, false, ('x', 42));
            assert_eq!(ends.next(Duration::from_millis(20)), None, "{way:?}");
            ends.queue.close(&mut ends.memory);
            assert_eq!(ends.memory.free_heads(), HEADS);
        });
    }
}

/// Which of the two gets how many frames of one datagram or message.
fn frames(ends: &mut Ends) -> Vec<char> {
    let first = ends.next(Duration::from_secs(2));
    let more = std::iter::from_fn(|| ends.next(Duration::from_millis(20)));
    first.into_iter().chain(more).map(|(who, _)| who).collect()
}

fn what_is_shared_with_the_host_is_steered_only_where_it_is_handed_back() {
    let network = Network::new();
    let destination = |address| Destination { address: ip(address), protocol: 17, port: OTHER };
    let shared = SharedRules {
        own: HashSet::from(["192.0.2.2", "2001:db8::2"].map(ip)),
        destinations: HashSet::from(["192.0.2.3", "2001:db8::3"].map(destination)),
        ranges: vec![SteeredPorts { protocol: 17, first: OTHER - 1, last: OTHER }],
        ranged: HashSet::from(["192.0.2.2", "2001:db8::2"].map(ip)),
        whole: HashSet::new(),
        announced: HashSet::new(),
    };
    let with = |change: &dyn Fn(&mut SharedRules)| {
        let mut shared = shared.clone();
        change(&mut shared);
        SteeringRules { vxlan: rules(), shared: Some(shared) }
    };
    let everything = with(&|_| {});
    let no_port = with(&|shared| shared.ranges.iter_mut().for_each(|range| range.last = range.first));
    let another_protocol = with(&|shared| shared.ranges.iter_mut().for_each(|range| range.protocol = 6));
    let no_destination = with(&|shared| shared.destinations.clear());
    let whole = with(&|shared| shared.whole = HashSet::from(["192.0.2.3", "2001:db8::3"].map(ip)));
    let families = [("192.0.2.9", "192.0.2.2", "192.0.2.3"), ("2001:db8::9", "2001:db8::2", "2001:db8::3")];
    for way in [Way::AfXdp(AttachPreference::Native), Way::PacketSocket] {
        network.switch.run(|| {
            hold_shared(&network, way, families, [&everything, &no_port, &another_protocol, &no_destination, &whole])
        });
    }
}

fn hold_shared(network: &Network, way: Way, families: [(&str, &str, &str); 2], rules_of: [&SteeringRules; 5]) {
    let [everything, no_port, another_protocol, no_destination, whole] = rules_of;
    let mut steering = way.steer(SteeringRules::default());
    let mut ends = Ends::open(&mut steering);
    for (source, own, other) in families {
        let mut check = |name: &str, rules: &SteeringRules, target, port, length, expected: &str| {
            steering.set_rules(rules).expect("rules");
            network.send(source, target, port, length, false);
            assert_eq!(frames(&mut ends).iter().collect::<String>(), expected, "{name} from {source}, {way:?}");
        };
        check("fragments", everything, own, 1, 4000, "xxx");
        check("fragments, nobody to hand back to", &rules().into(), own, OTHER, 4000, "k");
        check("a port of the range", everything, own, OTHER, 100, "x");
        check("a port beyond the range", no_port, own, OTHER, 100, "k");
        check("a range of another protocol", another_protocol, own, OTHER, 100, "k");
        check("a destination", no_port, other, OTHER, 100, "x");
        check("fragments to a destination", no_port, other, 1, 4000, "xxx");
        check("another port of that address", everything, other, VXLAN, 100, "k");
        check("another port of a whole address", whole, other, VXLAN, 100, "x");
        check("fragments to a whole address", whole, other, VXLAN, 4000, "xxx");
        check("no destination", no_destination, other, OTHER, 100, "k");
        check("fragments to an address of nobody", no_destination, other, OTHER, 4000, "k");
        check("VXLAN of no peer", everything, own, VXLAN, 100, "k");
    }
    ends.queue.close(&mut ends.memory);
    assert_eq!(ends.memory.free_heads(), HEADS);
}

fn questions_for_announced_addresses_are_steered() {
    let network = Network::new();
    let (known, other) = (["192.0.2.77", "2001:db8::77"], ["192.0.2.78", "2001:db8::78"]);
    let announced = HashSet::from(known.map(ip));
    let rules = SteeringRules { shared: Some(SharedRules { announced, ..SharedRules::default() }), ..rules().into() };
    network.switch.run(|| {
        let mut steering = Steering::by_rules("a0", rules, AttachPreference::Native).expect("steering");
        let mut ends = Ends::open(&mut steering);
        // The sender's kernel must ask before it can send.
        for (source, known, other) in [("192.0.2.1", known[0], other[0]), ("2001:db8::1", known[1], other[1])] {
            network.send(source, other, OTHER, 10, false);
            assert_eq!(ends.next(Duration::from_millis(100)), None, "a question for another address");
            network.send(source, known, OTHER, 10, false);
            let length = if source.contains(':') { 86 } else { 42 };
            assert_eq!(ends.next(Duration::from_secs(2)), Some(('x', length)), "a question for {known}");
        }
        ends.queue.close(&mut ends.memory);
    });
}

fn steering_follows_its_rules_and_ends_with_its_socket() {
    let network = Network::new();
    network.switch.run(|| {
        let mut steering =
            Steering::by_rules("a0", SteeringRules::default(), AttachPreference::Native).expect("steering");
        let mut ends = Ends::open(&mut steering);
        let goes = |ends: &mut Ends, name: &str, source, port, expected| {
            network.send(source, "192.0.2.2", port, 100, false);
            assert_eq!(ends.next(Duration::from_secs(2)).map(|(who, _)| who), Some(expected), "{name}");
        };
        goes(&mut ends, "no rules", "192.0.2.1", VXLAN, 'k');
        steering.set_rules(&rules().into()).expect("rules");
        assert_eq!(steering.rules(), &rules().into());
        goes(&mut ends, "rules", "192.0.2.1", VXLAN, 'x');
        steering.set_peers(HashSet::from(["192.0.2.9"].map(ip))).expect("peers");
        goes(&mut ends, "peer removed", "192.0.2.1", VXLAN, 'k');
        goes(&mut ends, "peer added", "192.0.2.9", VXLAN, 'x');
        steering.set_rules(&VxlanRules { port: OTHER, ..rules() }.into()).expect("port");
        goes(&mut ends, "old port", "192.0.2.1", VXLAN, 'k');
        goes(&mut ends, "new port", "192.0.2.1", OTHER, 'x');
        let number = |number: u32| IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        let many = (0..65_537).map(number).collect();
        let error = steering.set_rules(&VxlanRules { local: many, ..rules() }.into()).expect_err("too many");
        assert!(matches!(error, SteeringError::TooMany { count: 65_537, limit: 65_536, .. }), "{error}");
        goes(&mut ends, "after a refusal", "192.0.2.1", OTHER, 'x');
        steering.set_peers((0..16_384).map(number).collect()).expect("a large cluster");
        goes(&mut ends, "none of many peers", "192.0.2.1", OTHER, 'k');
        steering.set_rules(&rules().into()).expect("rules");

        steering.remove_socket(0).expect("remove");
        steering.remove_socket(0).expect("remove what is not there");
        goes(&mut ends, "no socket", "192.0.2.1", VXLAN, 'k');
        ends.queue.close(&mut ends.memory);
        drop(ends);
        let mut ends = Ends::open(&mut steering);
        goes(&mut ends, "socket again", "192.0.2.1", VXLAN, 'x');
        ends.queue.close(&mut ends.memory);
        goes(&mut ends, "closed socket", "192.0.2.1", VXLAN, 'k');
        assert!(steering.is_attached());
        drop(steering);
        goes(&mut ends, "no program", "192.0.2.1", VXLAN, 'k');
        assert!(steering_can_attach(), "the program went with its owner");
    });
}

/// The kernel hears everything again the moment nobody steers, and the socket nothing.
fn packet_sockets_withhold_from_the_kernel_only_while_they_are_steered_to() {
    let network = Network::new();
    network.switch.run(|| {
        let mut steering = Way::PacketSocket.steer(rules());
        let mut ends = Ends::open(&mut steering);
        let goes = |ends: &mut Ends, name: &str, expected: &str| {
            network.send("192.0.2.1", "192.0.2.2", VXLAN, 100, false);
            assert_eq!(frames(ends).iter().collect::<String>(), expected, "{name}");
        };
        goes(&mut ends, "steered", "x");
        assert!(steering.is_attached());
        steering.set_rules(&SteeringRules::default()).expect("rules");
        goes(&mut ends, "no rules", "k");
        steering.set_rules(&rules().into()).expect("rules");
        goes(&mut ends, "rules again", "x");
        drop(steering);
        goes(&mut ends, "nobody steers", "k");
        ends.queue.close(&mut ends.memory);
        assert_eq!(ends.memory.free_heads(), HEADS);
    });
}

/// Datagrams of the host's that are numbered, and how many of a second.
const STREAM_PORT: u16 = 9000;
const STREAM_PACKETS: u32 = 10_000;
const STREAM_TIME: Duration = Duration::from_millis(500);

/// Numbered datagrams from the other side at an even pace; `act` a fifth of the way in. How many did not arrive in the
/// kernel's socket.
fn lost_while<T: Send>(network: &Network, act: impl FnOnce() -> T) -> (usize, T) {
    let socket = UdpSocket::bind(SocketAddr::new(ip("::"), STREAM_PORT)).expect("bind");
    let bytes: libc::c_int = 64 << 20;
    millrace_engine::port::socket::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).expect("buffer");
    let send = || {
        let from = UdpSocket::bind(SocketAddr::new(ip("192.0.2.1"), 0)).expect("bind");
        let begin = Instant::now();
        for number in 0..STREAM_PACKETS {
            let due = STREAM_TIME * number / STREAM_PACKETS;
            while begin.elapsed() < due {
                std::thread::sleep(Duration::from_micros(50));
            }
            from.send_to(&number.to_be_bytes(), SocketAddr::new(ip("192.0.2.2"), STREAM_PORT)).expect("send");
        }
    };
    let outcome = std::thread::scope(|scope| {
        let sending = network.a.spawn(scope, send);
        std::thread::sleep(STREAM_TIME / 5);
        let outcome = act();
        sending.join().expect("sender");
        outcome
    });
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
    let mut seen = HashSet::new();
    let mut buffer = [0; 8];
    while let Ok((4, _)) = socket.recv_from(&mut buffer) {
        seen.insert(u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]));
    }
    (STREAM_PACKETS as usize - seen.len(), outcome)
}

/// What of the host's own stream is lost while programs come, change and go. Printed; what is bounded here holds whatever
/// else the machine does, since a program that changes drops nothing and one that comes or goes only stops the driver for a
/// moment.
fn what_the_hosts_stream_loses_while_programs_come_and_go() {
    let network = Network::new();
    network.switch.run(|| {
        for way in WAYS {
            let (attach, (mut steering, mut ends)) = lost_while(&network, || {
                let mut steering = way.steer(rules());
                let ends = Ends::open(&mut steering);
                (steering, ends)
            });
            let (change, ()) = lost_while(&network, || {
                for port in OTHER..OTHER + 100 {
                    steering.set_rules(&VxlanRules { port, ..rules() }.into()).expect("rules");
                }
            });
            let (again, ()) = lost_while(&network, || {
                ends.queue.close(&mut ends.memory);
                drop((steering, ends));
                steering_again(way);
            });
            let (detach, ()) = {
                let mut steering = way.steer(rules());
                let mut ends = Ends::open(&mut steering);
                lost_while(&network, || {
                    drop(steering);
                    ends.queue.close(&mut ends.memory);
                })
            };
            println!(
                "{way:?}: of {STREAM_PACKETS} packets in {STREAM_TIME:?} lost at attach {attach}, at 100 changes of rules {change}, at \
                 detach and attach {again}, at detach {detach}"
            );
            assert_eq!(change, 0, "{way:?}");
            assert!(attach.max(again).max(detach) < STREAM_PACKETS as usize / 10, "{way:?}: an outage, not a moment");
        }
    });
}

fn steering_again(way: Way) {
    let mut steering = way.steer(rules());
    let mut ends = Ends::open(&mut steering);
    ends.queue.close(&mut ends.memory);
}

fn steering_can_attach() -> bool {
    Steering::everything("a0", AttachPreference::Native).is_ok_and(|steering| steering.is_attached())
}

/// Not a test: what [`a_killed_process_leaves_the_interface_to_the_kernel`] starts and kills.
fn hold_the_queue_until_killed() {
    if std::env::var_os(HOLD).is_none() {
        return;
    }
    let mut steering = Steering::by_rules("a0", rules(), AttachPreference::Native).expect("steering");
    let mut ends = Ends::open(&mut steering);
    println!("\nholding");
    ends.next(Duration::from_secs(30));
}

fn a_killed_process_leaves_the_interface_to_the_kernel() {
    let network = Network::new();
    network.switch.run(|| {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["--ignored", "--exact", "--nocapture", "hold_the_queue_until_killed"])
            .env(HOLD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("child");
        let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let holding = lines.map_while(Result::ok).any(|line| line == "holding");
        let occupied = Steering::everything("a0", AttachPreference::Native).err().map(|error| error.to_string());
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(holding, "the child opened the queue");
        assert!(occupied.is_some_and(|error| error.contains("another XDP program is attached (native)")));
        // A successor has the queue and the program within the second for which opening tries.
        let mut steering = Steering::by_rules("a0", rules(), AttachPreference::Native).expect("steering");
        let mut ends = Ends::open(&mut steering);
        network.send("192.0.2.1", "192.0.2.2", VXLAN, 100, false);
        assert_eq!(ends.next(Duration::from_secs(2)), Some(('x', 142)));
        ends.queue.close(&mut ends.memory);
    });
}

root_tests! {
    every run [
        only_vxlan_from_known_peers_to_our_tunnel_address_is_steered,
        what_is_shared_with_the_host_is_steered_only_where_it_is_handed_back,
        questions_for_announced_addresses_are_steered,
        steering_follows_its_rules_and_ends_with_its_socket,
        packet_sockets_withhold_from_the_kernel_only_while_they_are_steered_to,
        what_the_hosts_stream_loses_while_programs_come_and_go,
        a_killed_process_leaves_the_interface_to_the_kernel,
    ],
    on demand [
        hold_the_queue_until_killed,
    ],
}
