//! Two hosts, and between them a switch that is a plain wire of two AF_XDP queues on one memory.
//!
//! ```text
//!  namespace A        switch namespace          namespace B
//!  a1 10.0.0.1  <---> a0 [queue] [queue] b0 <---> b1 10.0.0.2
//! ```
#![allow(dead_code)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_engine::counters::WorkerCounters;
use millrace_engine::packet::{FrameMemory, FrameMemoryLayout, Packet, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::af_xdp::{
    AfXdpOptions, AfXdpQueue, AttachPreference, Steering, Umem, set_transmit_checksum,
};

use crate::namespaces::{End, Namespace, add_address, add_neighbour, make_veth_with_queues, set_up};

pub(crate) const HEADS: usize = 16_384;
pub(crate) const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
pub(crate) const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
pub(crate) const PORT_A: PortIndex = PortIndex(1);
pub(crate) const PORT_B: PortIndex = PortIndex(2);

pub(crate) fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

pub(crate) fn memory(head_frames: usize) -> FrameMemory {
    FrameMemory::new(FrameMemoryLayout { head_frames, big_buffers: 4 }).expect("memory")
}

/// Two hosts with the switch's namespace between them.
pub(crate) struct Network {
    pub(crate) switch: Namespace,
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
}

impl Network {
    pub(crate) fn new(mtu: u32) -> Self {
        Self::with_queues(mtu, 1)
    }

    /// Interfaces with several queues in each direction.
    pub(crate) fn with_queues(mtu: u32, queues: u32) -> Self {
        let (switch, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
        switch.run(|| {
            for (near, far, number, host) in [("a0", "a1", 0xa0, &a), ("b0", "b1", 0xb0, &b)] {
                let near_end = End { name: near, mac: mac(number), mtu };
                make_veth_with_queues(&near_end, &End { name: far, mac: mac(number + 1), mtu }, host, queues);
                set_up(near, true);
            }
        });
        for (host, name, own, other, other_mac) in [(&a, "a1", A, B, mac(0xb1)), (&b, "b1", B, A, mac(0xa1))] {
            host.run(|| {
                set_up(name, true);
                add_address(name, own, 24);
                add_neighbour(name, other, other_mac);
                set_transmit_checksum(name, false).expect("checksum off");
            });
        }
        Self { switch, a, b }
    }
}

/// One queue with its steering, every frame taken.
pub(crate) struct Side {
    pub(crate) steering: Steering,
    pub(crate) queue: AfXdpQueue,
}

impl Side {
    pub(crate) fn open(port: PortIndex, interface: &str, umem: &Umem, preference: AttachPreference) -> Self {
        let mut steering = Steering::everything(interface, preference).expect("steering");
        let options = AfXdpOptions::new(port, interface, 0, steering.mode());
        let queue = AfXdpQueue::open(options, umem).expect("queue");
        steering.insert_socket(0, queue.socket().expect("socket")).expect("insert");
        Self { steering, queue }
    }
}

/// The switch of these tests: what comes in on one side leaves on the other.
pub(crate) struct Wire {
    pub(crate) memory: FrameMemory,
    pub(crate) umem: Umem,
    pub(crate) sides: [Side; 2],
    pub(crate) counters: WorkerCounters,
    pub(crate) received: u64,
    pub(crate) waiting: [Vec<Packet>; 2],
}

impl Wire {
    pub(crate) fn open(preference: AttachPreference) -> Self {
        let memory = memory(HEADS);
        let umem = Umem::new(&memory);
        let sides = [Side::open(PORT_A, "a0", &umem, preference), Side::open(PORT_B, "b0", &umem, preference)];
        Self {
            memory,
            umem,
            sides,
            counters: WorkerCounters::default(),
            received: 0,
            waiting: [Vec::with_capacity(64), Vec::with_capacity(64)],
        }
    }

    /// One turn; how many packets came in.
    pub(crate) fn turn(&mut self) -> usize {
        let mut moved = 0;
        for from in [0, 1] {
            let vector = &mut self.waiting[from];
            moved += self.sides[from].queue.receive(&mut self.memory, vector);
            if !vector.is_empty() {
                let to = &mut self.sides[1 - from].queue;
                to.transmit(&mut self.memory, vector, &self.counters);
                to.flush(&mut self.memory);
            }
        }
        self.received += moved as u64;
        moved
    }

    pub(crate) fn run_until(&mut self, done: &AtomicBool) {
        while !done.load(Ordering::Relaxed) {
            if self.turn() == 0 {
                std::thread::yield_now();
            }
        }
    }

    pub(crate) fn sent(&self) -> u64 {
        [PORT_A, PORT_B].iter().map(|port| self.counters.port(port.0 as usize).sent_frames.get()).sum()
    }

    /// Closes both queues; every frame must be back.
    pub(crate) fn close(mut self) {
        for vector in &mut self.waiting {
            for packet in vector.drain(..) {
                self.memory.release(packet);
            }
        }
        for side in &mut self.sides {
            side.queue.close(&mut self.memory);
            assert_eq!(side.queue.lent_frames(), 0);
        }
        assert_eq!((self.memory.free_heads(), self.memory.free_bigs()), (self.memory.layout().head_frames, 4));
        assert_eq!(self.umem.quarantined_frames(), 0);
    }
}

/// Waits for another thread of the test, which may have failed.
pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn socket(address: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind(SocketAddr::new(address, port)).expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
    // The default holds fewer than a hundred datagrams of an AF_XDP sender, and the test counts all.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20).expect("receive buffer");
    socket
}
